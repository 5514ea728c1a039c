"""How routes ask the Clerk, and what a client hears when it could not do it."""

from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from ..messages.base import Request
from ..messages.clerk import QUEUE_LIMIT_S, NotDone, Overloaded
from ..messages.spec import MAX_NAME_BYTES
from .errors import ApiError, ErrorBody
from .table import Call, Shape
from .waiting import overloaded

T = TypeVar("T")
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_BYTES)]
"""A name in a body; whether its bytes fit is checked beside."""

MARGIN_S: Final = 5.0
"""For connecting, and for the way of an answer."""
WRONG_STATUS: Final = Shape("The node is not running.", ErrorBody)
NO_POSTGRES: Final = "Postgres cannot be asked, or refuses; the text says why."


def ask_clerk(
    call: Call, request: Request[T | NotDone | Overloaded], limit_s: float, *, prefix: str = ""
) -> T:
    """Ask the Clerk for what takes at most that long. Raises ApiError (500 and 503), its text behind the prefix."""
    answer = call.wait(request, QUEUE_LIMIT_S + limit_s + MARGIN_S, of=call.node.clerk)
    if isinstance(answer, NotDone):
        raise ApiError(500, prefix + answer.error)
    if isinstance(answer, Overloaded):
        raise overloaded(answer.error)
    return answer

"""What a route is: one row of the table from which the application and its description are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from ..messages.base import Request
from ..messages.lifecycle import GetStatus, Status
from ..messages.serving import FREE_BODY
from .errors import ApiError
from .port import Asker, Node
from .waiting import Waiters

R = TypeVar("R")
T = TypeVar("T")

SMALL_BODY: Final = 2 * 1024 * 1024
LARGE_BODY: Final = 8 * 1024 * 1024
"""For specs with many roles and databases, where the counterpart's 2 MiB are too little."""

ASK_S: Final = 5.0
"""Longest wait for an answer that the Supervisor has in memory."""

JSON: Final = "application/json"


class Scope(Enum):
    """Who may call a route."""

    TOKEN = "token"  # noqa: S105 - not a password
    PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class Shape:
    """One response of a route, for the description. `kind` None means an empty body."""

    text: str
    kind: Any = None
    media: str = JSON


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler gives back. `content` is encoded as JSON, unless it is bytes already, or a StreamedBody."""

    content: object
    status: int = 200
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """What all requests of one application share."""

    node: Node
    waiters: Waiters
    description: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, authorized and decoded. `gone` tells whether its client has disconnected.

    `admin` tells whether its token opens every node.
    """

    context: Context
    gone: Callable[[], bool]
    admin: bool = False
    decoded_query: object = None
    decoded_body: object = None
    path: Mapping[str, str] = field(default_factory=dict)

    @property
    def node(self) -> Node:
        """The node."""
        return self.context.node

    def body(self, kind: type[T]) -> T:
        """Return the body, which the route said is of this type."""
        return _as(self.decoded_body, kind)

    def query(self, kind: type[T]) -> T | None:
        """Return the query, which the route said is of this type; None without one."""
        return None if self.decoded_query is None else _as(self.decoded_query, kind)

    def ask(self, request: Request[R]) -> R:
        """Ask the Supervisor for what it has in memory. Raises AskError."""
        return self.node.supervisor.ask(request, ASK_S)

    def wait(self, request: Request[R], limit_s: float, *, of: Asker | None = None) -> R:
        """Ask the Supervisor, or another, for an outcome that may take long.

        One of the limited waiting places is taken meanwhile; of those for another there are fewer.
        """
        asked = self.node.supervisor if of is None else of
        return self.context.waiters.wait(
            asked, request, limit_s=limit_s, gone=self.gone, minor=of is not None
        )

    def ask_lfc(self, request: Request[R]) -> R:
        """Ask the LfcManager for what it has in memory. Raises AskError."""
        return self.node.lfc.ask(request, ASK_S)

    def require_running(self) -> None:
        """Raise ApiError (412) unless the node is running; a moment later it may be so no more."""
        status = self.ask(GetStatus()).status
        if status is not Status.RUNNING:
            raise ApiError(412, f"invalid compute status: {status.text}")


Handler: TypeAlias = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A path and method, who may call it, what it takes and gives, and the function that does it.

    A route needs a token unless it says that it is public; a public one takes no more than FREE_BODY. With `query`, no query string at all is fine
    when `query_optional` says so. A `probe` is called often, so its requests are logged at debug level.
    """

    path: str
    method: str
    handler: Handler
    summary: str
    responses: Mapping[int, Shape]
    scope: Scope = Scope.TOKEN
    body: msgspec.json.Decoder[Any] | None = None
    form: type[msgspec.Struct] | None = None
    """What else the body may be: a form with these fields."""
    body_limit: int = SMALL_BODY
    query: type[msgspec.Struct] | None = None
    query_optional: bool = False
    waits: bool = False
    probe: bool = False

    @property
    def largest_body(self) -> int:
        """Bytes of a body that this route takes."""
        return FREE_BODY if self.scope is Scope.PUBLIC else self.body_limit


def _as(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        msg = f"the route does not say that it takes a {kind.__name__}"
        raise TypeError(msg)
    return value

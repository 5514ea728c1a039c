"""`POST /check_writability`: whether Postgres takes a write now."""

from typing import Final

from ...messages.clerk import CheckWritability
from ..clerk import NO_POSTGRES, WRONG_STATUS, ask_clerk
from ..errors import ErrorBody
from ..table import Answer, Call, Route, Shape


def _check(call: Call) -> Answer:
    call.require_running()
    ask_clerk(call, CheckWritability(), CheckWritability.limit_s)
    return Answer(content=True)


ROUTES: Final = (
    Route(
        path="/check_writability",
        method="POST",
        handler=_check,
        waits=True,
        summary="Write a row into `public.health_check`.",
        responses={
            200: Shape("`true`: it was written, or only a full disk was in the way.", bool),
            412: WRONG_STATUS,
            500: Shape(NO_POSTGRES, ErrorBody),
        },
    ),
)

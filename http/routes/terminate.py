"""`POST /terminate`: stop Postgres and the node, and wait until Postgres is gone."""

from typing import Final, assert_never

import msgspec

from ...messages.lifecycle import ShutdownMode, Terminate, Terminated, TerminateFailed
from ..errors import ApiError, ErrorBody
from ..table import Answer, Call, Route, Shape
from ..waiting import STOP_MARGIN_S


class TerminateQuery(msgspec.Struct, frozen=True):
    """The query of `/terminate`."""

    mode: ShutdownMode


class TerminateAnswer(msgspec.Struct, frozen=True):
    """The position up to which WAL is on a quorum of safekeepers; null without safekeepers."""

    lsn: str | None


def _terminate(call: Call) -> Answer:
    query = call.query(TerminateQuery)
    mode = ShutdownMode.FAST if query is None else query.mode
    outcome = call.wait(Terminate(mode), call.node.stop_timeout_s + STOP_MARGIN_S)
    match outcome:
        case Terminated(lsn, repeated):
            return Answer(TerminateAnswer(lsn), status=201 if repeated else 200)
        case TerminateFailed(error):
            raise ApiError(500, error)
        case _:
            assert_never(outcome)


ROUTES: Final = (
    Route(
        path="/terminate",
        method="POST",
        handler=_terminate,
        query=TerminateQuery,
        query_optional=True,
        waits=True,
        summary="Stop Postgres and the node. The modes differ in how long the node lingers: fast is default.",
        responses={
            200: Shape("Postgres is gone.", TerminateAnswer),
            201: Shape("Postgres had been gone already.", TerminateAnswer),
            500: Shape("The stop was given up; the process ends, and kills Postgres if it must.", ErrorBody),
        },
    ),
)

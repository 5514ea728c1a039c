"""`POST /terminate`: stop Postgres and the node, and wait until Postgres is gone."""

from typing import Final

import msgspec

from ...messages.lifecycle import ShutdownMode, Terminate
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
    ended = call.wait(Terminate(mode), call.node.stop_timeout_s + STOP_MARGIN_S)
    return Answer(TerminateAnswer(ended.lsn), status=201 if ended.repeated else 200)


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
        },
    ),
)

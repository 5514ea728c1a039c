"""What is decided about the process's own life: boot, the servers, lingering, the exit."""

import logging
from typing import Final

from ...messages.catalog import MakeReady
from ...messages.lifecycle import (
    AwaitExit,
    Boot,
    StatusChanged,
)
from ...messages.postgres import (
    InspectPgdata,
    PgdataInspected,
    PgdataRefused,
    WarmMemory,
)
from ...messages.serving import ServingFailed, ServingStarted, ServingStopped, StartServing
from ...messages.settings import SourceName
from ..kit.effects import After, Never
from . import attempts, leaving, stopping
from .effects import CONFIGURATOR, HTTP, POSTGRES, Publish
from .leaving import CLOSING_S
from .lifecycle import Event
from .private import ClosingOverdue, HeadStartEnded, LingerEnded
from .state import Cause, Origin, Phase
from .turn import Turn

HEAD_START_S: Final = 0.03
"""Loading the HTTP servers holds up everything else of Python; the programs of Postgres go first."""
UNPACKING_HEAD_START_S: Final = 0.6
"""The same where this process makes PGDATA itself, until Postgres is ready: most archives are unpacked by then."""


def boot(turn: Turn, message: Boot, _: int | None) -> None:
    turn.set(phase=Phase.INSPECTING, spec=message.spec)
    if message.spec is not None:
        turn.move(Event.START_BEGAN)
    turn.tell(POSTGRES, InspectPgdata())


def pgdata_inspected(turn: Turn, _: PgdataInspected, __: int | None) -> None:
    if turn.state.ending is not None or turn.state.phase is not Phase.INSPECTING:
        return
    turn.set(phase=Phase.UP)
    if turn.state.spec is None:
        serve(turn)
        if turn.state.settings.warms_memory:
            turn.tell(POSTGRES, WarmMemory())
    else:
        attempts.begin(turn, turn.state.spec, Origin.BOOT)
        unpacks = turn.state.settings.source is SourceName.PAGESERVER
        turn.effects.append(After(UNPACKING_HEAD_START_S if unpacks else HEAD_START_S, HeadStartEnded()))


def head_start_ended(turn: Turn, _: HeadStartEnded, __: int | None) -> None:
    serve(turn)


def serve(turn: Turn) -> None:
    """Begin to serve, once, and load what is heavy."""
    if not turn.state.serves and turn.state.phase not in {Phase.CLOSING, Phase.OVER}:
        turn.set(serves=True)
        turn.tell(HTTP, StartServing())
        turn.tell(CONFIGURATOR, MakeReady())


def pgdata_refused(turn: Turn, message: PgdataRefused, _: int | None) -> None:
    turn.log(logging.ERROR, message.error)
    turn.set(error=message.error, exit_code=message.exit_code, exit_reason=message.error)
    leaving.finish(turn)


def serving_started(turn: Turn, _: ServingStarted, __: int | None) -> None:
    if turn.state.spec is None and turn.state.attempt is None and turn.state.ending is None:
        turn.log(logging.INFO, "no compute spec provided, waiting")
        turn.effects.append(Publish(StatusChanged(None, turn.state.status)))


def serving_failed(turn: Turn, message: ServingFailed, _: int | None) -> None:
    turn.log(logging.ERROR, message.error)
    turn.broken(message.error, unexpected=False)
    if turn.state.ending is None:
        stopping.terminate(turn, Cause.FAILURE, immediate=True)


def serving_stopped(turn: Turn, _: ServingStopped, __: int | None) -> None:
    if turn.state.phase is Phase.CLOSING:
        turn.effects.append(Never(ClosingOverdue))
        leaving.finish(turn)


def closing_overdue(turn: Turn, _: ClosingOverdue, __: int | None) -> None:
    turn.log(logging.WARNING, f"the HTTP servers did not close within {CLOSING_S:g} s; ending without them")
    leaving.finish(turn)


def linger_ended(turn: Turn, _: LingerEnded, __: int | None) -> None:
    leaving.leave(turn)


def await_exit(turn: Turn, _: AwaitExit, waiter: int | None) -> None:
    if waiter is None:
        return
    if turn.state.phase is Phase.OVER:
        turn.answer((waiter,), leaving.exit_report(turn))
    else:
        turn.set(exit_waiters=(*turn.state.exit_waiters, waiter))

"""How the process leaves: it lingers, closes its servers, and says how it has ended."""

import logging
from typing import Final

from msgspec.structs import replace

from ...messages.lifecycle import ConfigureFailed, ExitReport, Terminated, TerminateFailed
from ...messages.promotion import PromoteFailed
from ...messages.serving import StopServing
from ..kit.effects import After, Never
from . import attempts, stopping
from .effects import HTTP
from .private import ClosingOverdue, LingerEnded
from .state import Phase
from .turn import Turn

LINGER_FAILED_START_S: Final = 30.0
LINGER_FAST_S: Final = 30.0
LINGER_IMMEDIATE_S: Final = 0.3
LINGER_LOST_S: Final = 5.0
LINGER_DEV_S: Final = 0.3
DRAIN_S: Final = 1.0
"""How long requests under way may take to end when the servers close."""
CLOSING_S: Final = 2.0
"""After this long the process ends without waiting for the servers."""
TIDY_S: Final = 3.0
"""How long it may take to clear away what a Postgres that ended unasked has left."""


def linger(turn: Turn, seconds: float, reason: str = "") -> None:
    """Keep serving for a while, so that the outcome can be read; then leave."""
    if turn.state.phase in {Phase.CLOSING, Phase.OVER}:
        return
    if turn.state.settings.dev:
        seconds = min(seconds, LINGER_DEV_S)
    if reason:
        turn.log(logging.INFO, reason)
    turn.set(phase=Phase.LINGERING)
    if seconds > 0:
        turn.effects.append(After(seconds, LingerEnded()))
    else:
        leave(turn)


def leave(turn: Turn) -> None:
    """Close, once what a Postgres that ended unasked has left is cleared away."""
    if turn.state.tidied:
        close(turn)
    else:
        stopping.stop_postgres(turn, TIDY_S)


def close(turn: Turn) -> None:
    """Close the servers; the process ends when they are, or a moment later."""
    if turn.state.phase in {Phase.CLOSING, Phase.OVER}:
        return
    turn.effects.append(Never(LingerEnded))
    turn.set(phase=Phase.CLOSING)
    turn.tell(HTTP, StopServing(DRAIN_S))
    turn.effects.append(After(CLOSING_S, ClosingOverdue()))


def give_up(turn: Turn) -> None:
    """Let the process end although Postgres may live: nobody is told that it is gone."""
    error = turn.state.error or "unknown error"
    attempts.end(turn, ConfigureFailed(error))
    attempts.end_promotion(turn, PromoteFailed(error))
    ending = turn.state.ending
    if ending is not None:
        turn.answer(ending.waiters, TerminateFailed(error))
        turn.set(ending=replace(ending, waiters=()))
    close(turn)  # the answers reach those who wait


def finish(turn: Turn) -> None:
    """Let the process end; nobody is left waiting."""
    if turn.state.phase is Phase.OVER:
        return
    attempts.end(turn, ConfigureFailed(turn.state.error or "the node has ended"))
    attempts.end_promotion(turn, PromoteFailed(turn.state.error or "the node has ended"))
    ending = turn.state.ending
    if ending is not None and ending.waiters:
        turn.answer(ending.waiters, Terminated(turn.state.synced_lsn))
        turn.set(ending=replace(ending, waiters=()))
    turn.set(phase=Phase.OVER)
    report = exit_report(turn)
    turn.log(logging.INFO, f"shutting down: {report.reason}")
    turn.answer(turn.state.exit_waiters, report)
    turn.set(exit_waiters=())


def exit_report(turn: Turn) -> ExitReport:
    """Say how the process is to end."""
    state = turn.state
    left_s = None
    if state.ending is not None and not state.tidied:
        left_s = max(1.0, state.ending.deadline_s - turn.now_s)
    return ExitReport(state.exit_code, state.exit_reason or "stopped in order", left_s)

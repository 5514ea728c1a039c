"""What is decided about the end: terminations, signals, a lost Postgres, a dead actor."""

import logging
from typing import Final

from msgspec.structs import replace

from ...messages.catalog import CancelApply, CheckpointEnded
from ...messages.lfc import LastOffloadEnded
from ...messages.lifecycle import (
    EXIT_FAILED,
    ActorFailed,
    ConfigureFailed,
    ShutdownMode,
    SignalReceived,
    Status,
    Terminate,
    Terminated,
    TerminateFailed,
)
from ...messages.postgres import (
    PostgresExited,
    PostgresStopped,
    SafekeepersSynced,
    SafekeeperSyncFailed,
    StopPostgres,
    StopRung,
)
from ...messages.promotion import PromoteFailed
from ..kit.effects import Never
from . import attempts, configuring, leaving, stopping, syncing
from .effects import CONFIGURATOR, HTTP, POSTGRES
from .leaving import LINGER_FAILED_START_S, LINGER_FAST_S, LINGER_IMMEDIATE_S, LINGER_LOST_S
from .lifecycle import Event
from .private import CheckpointOverdue, ConfigurationGraceEnded, StopOverdue, SyncOverdue
from .state import Cause, Ending, Phase, Step
from .stopping import APPLYING
from .turn import Turn

_STOPPING: Final = frozenset({Status.TERMINATION_PENDING_FAST, Status.TERMINATION_PENDING_IMMEDIATE})


def actor_failed(turn: Turn, message: ActorFailed, _: int | None) -> None:
    error = f"the actor {message.actor} died: {message.error}"
    turn.log(logging.ERROR, f"{error}; the node is stopped (this is a defect of compute-node)")
    turn.broken(error)
    ending = turn.state.ending
    if message.actor == POSTGRES:
        # Nobody is left who could stop Postgres in order: the main thread does it, as its last resort.
        leaving.give_up(turn)
    elif message.actor == HTTP and turn.state.phase in {Phase.LINGERING, Phase.CLOSING}:
        leaving.finish(turn)
    elif ending is None and turn.state.phase is Phase.LINGERING:
        leaving.close(turn)
    elif ending is None:
        drop_configuration(turn, error)
        stopping.terminate(turn, Cause.FAILURE, immediate=False)
    elif ending.queued:
        drop_configuration(turn, error)
    else:
        stopping.end_duties(turn)


def drop_configuration(turn: Turn, error: str) -> None:
    """Give a configuration under way up, so that the node can end."""
    attempt = turn.attempt
    if attempt is not None and not attempt.starts and turn.state.status in APPLYING:
        turn.tell(CONFIGURATOR, CancelApply(attempt.operation))
        configuring.reconfiguration_failed(turn, error)


def terminate(turn: Turn, message: Terminate, waiter: int | None) -> None:
    immediate = message.mode is ShutdownMode.IMMEDIATE
    waiters = () if waiter is None else (waiter,)
    ending = turn.state.ending
    status = turn.state.status
    closing = turn.state.phase in {Phase.CLOSING, Phase.OVER}
    if closing and not turn.state.tidied:
        turn.answer(waiters, TerminateFailed(turn.state.error or "Postgres was given up"))
    elif status is Status.TERMINATED or closing:
        turn.answer(waiters, Terminated(turn.state.synced_lsn, repeated=status is Status.TERMINATED))
        if turn.state.phase is Phase.LINGERING:
            leaving.close(turn)
    elif ending is not None:
        turn.set(
            ending=replace(
                ending, waiters=(*ending.waiters, *waiters), immediate=ending.immediate or immediate
            )
        )
        if immediate and not ending.queued:
            turn.move(Event.TERMINATE_IMMEDIATE)
            stopping.end_duties(turn)
    else:
        stopping.terminate(turn, Cause.REQUEST, immediate=immediate, waiters=waiters)


def signal_received(turn: Turn, message: SignalReceived, _: int | None) -> None:
    turn.log(logging.INFO, f"received {message.signal}")
    ending = turn.state.ending
    if turn.state.phase is Phase.LINGERING and turn.state.tidied:
        leaving.close(turn)
    elif ending is None and turn.state.phase not in {Phase.CLOSING, Phase.OVER}:
        stopping.terminate(turn, Cause.SIGNAL, immediate=False, signals=1)
    elif ending is not None and turn.state.phase is Phase.UP:
        turn.set(ending=replace(ending, cause=Cause.SIGNAL, signals=ending.signals + 1))
        if syncing.given_up(turn, f"{message.signal} broke it off"):
            everything_stopped(turn, turn.state.ending)
        elif ending.has_duties:
            stopping.end_duties(turn)
        elif ending.signals >= 1 and ending.queued:
            configuration_grace_ended(turn, ConfigurationGraceEnded(), None)
        elif ending.signals >= 1:
            turn.tell(POSTGRES, StopPostgres(budget_s=max(0.5, ending.deadline_s - turn.now_s), hurry=True))


def checkpoint_ended(turn: Turn, message: CheckpointEnded, _: int | None) -> None:
    if message.error is not None and turn.state.ending is not None and turn.state.ending.checkpointing:
        turn.log(logging.INFO, f"no checkpoint before the stop: {message.error}")
    stopping.end_duties(turn, checkpointing=False)


def last_offload_ended(turn: Turn, message: LastOffloadEnded, _: int | None) -> None:
    if message.error is not None and turn.state.ending is not None and turn.state.ending.offloading:
        turn.log(logging.INFO, f"the state of the cache is not saved before the stop: {message.error}")
    stopping.end_duties(turn, offloading=False)


def checkpoint_overdue(turn: Turn, _: CheckpointOverdue, __: int | None) -> None:
    stopping.end_duties(turn)


def configuration_grace_ended(turn: Turn, _: ConfigurationGraceEnded, __: int | None) -> None:
    ending = turn.state.ending
    if ending is not None and ending.queued:
        drop_configuration(turn, "the configuration was broken off: the node is terminating")


def postgres_stopped(turn: Turn, message: PostgresStopped, _: int | None) -> None:
    turn.effects.append(Never(StopOverdue))
    stopping.stop_vm(turn)
    was_up = turn.state.postgres_up
    turn.set(postgres_up=False, raised=(), tidied=True)
    ending = turn.state.ending
    if message.rung is StopRung.KILL:
        turn.set(exit_code=EXIT_FAILED, exit_reason="Postgres had to be killed")
    elif message.trouble is not None:
        error = f"Postgres did not stop in order: {message.trouble}"
        turn.log(logging.ERROR, error)
        turn.set(exit_code=EXIT_FAILED, exit_reason=error)
    attempt = turn.attempt
    if attempt is not None and attempt.step is Step.ABORTING:
        turn.move(Event.START_FAILED)
        attempts.end(turn, ConfigureFailed(turn.state.error or "unknown error"))
        leaving.linger(
            turn,
            LINGER_FAILED_START_S,
            f"giving control plane {LINGER_FAILED_START_S:g}s to collect the error before shutdown",
        )
        return
    if ending is None and turn.state.phase is Phase.LINGERING:
        leaving.close(turn)
        return
    if ending is None or ending.queued:
        turn.log(logging.WARNING, "Postgres was reported stopped although nobody had asked for it")
        return
    if turn.state.status not in _STOPPING or ending.syncing:
        return  # it was reported before
    if turn.state.phase in {Phase.CLOSING, Phase.OVER}:
        return  # it was given up before
    if not was_up or not syncing.begin(turn):
        everything_stopped(turn, ending)


def safekeepers_synced(turn: Turn, message: SafekeepersSynced, _: int | None) -> None:
    if syncing.synced(turn, message):
        everything_stopped(turn, turn.state.ending)


def safekeeper_sync_failed(turn: Turn, message: SafekeeperSyncFailed, _: int | None) -> None:
    if syncing.given_up(turn, message.error):
        everything_stopped(turn, turn.state.ending)


def sync_overdue(turn: Turn, _: SyncOverdue, __: int | None) -> None:
    if syncing.given_up(turn, "it was not reported over in time"):
        everything_stopped(turn, turn.state.ending)


def everything_stopped(turn: Turn, ending: Ending | None) -> None:
    """Answer those who wait for the end of Postgres, and let the node linger as it should."""
    assert ending is not None  # noqa: S101 - callers have looked
    turn.move(Event.STOPPED_BROKEN if ending.cause is Cause.FAILURE else Event.STOPPED)
    turn.answer(ending.waiters, Terminated(turn.state.synced_lsn))
    turn.set(ending=replace(ending, waiters=()))
    if ending.cause is Cause.FAILURE:
        leaving.linger(turn, 0 if ending.immediate else LINGER_LOST_S)
        return
    if ending.cause is Cause.REQUEST:
        leaving.linger(
            turn, LINGER_IMMEDIATE_S if ending.immediate or ending.failed_before else LINGER_FAST_S
        )
    else:
        leaving.close(turn)


def stop_overdue(turn: Turn, _: StopOverdue, __: int | None) -> None:
    error = "Postgres was not reported stopped within the stop budget"
    turn.log(logging.ERROR, f"{error}; the process ends and stops it as a last resort")
    turn.broken(error)
    leaving.give_up(turn)


def postgres_exited(turn: Turn, message: PostgresExited, _: int | None) -> None:
    error = f"Postgres ended although nobody asked it to: {message.description}"
    turn.log(logging.ERROR, error)
    turn.broken(error)
    attempt, ending = turn.attempt, turn.state.ending
    is_stopping = ending is not None and not ending.queued
    if is_stopping or (attempt is not None and attempt.step is Step.ABORTING):
        stopping.end_duties(turn)
        return  # it went while the order to stop was on its way; PostgresStopped follows
    turn.set(postgres_up=False, raised=(), ending=None)
    stopping.end_upkeep(turn)
    stopping.stop_vm(turn)
    if attempt is not None:
        turn.tell(CONFIGURATOR, CancelApply(attempt.operation))
    turn.move(Event.POSTGRES_LOST)
    attempts.end(turn, ConfigureFailed(error))
    attempts.end_promotion(turn, PromoteFailed(error))
    if ending is not None:
        turn.effects.append(Never(ConfigurationGraceEnded))
        turn.answer(ending.waiters, Terminated(lsn=None))
    leaving.linger(turn, 0 if ending is not None and ending.cause is Cause.SIGNAL else LINGER_LOST_S)

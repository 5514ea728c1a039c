"""What the PostgresProcess decides: pure. Which message is decided where, and in which phase a command is taken."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ....messages.base import Message
from ....messages.lifecycle import EXIT_FAILED
from ....messages.planning import CompareSettings
from ....messages.postgres import (
    CheckConfiguration,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    InspectPgdata,
    InstallConfiguration,
    PgdataFailed,
    PgdataRefused,
    PostgresStartFailed,
    PreparePgdata,
    SafekeeperSyncFailed,
    SettleConfiguration,
    StartPostgres,
    StopPostgres,
    SyncSafekeepers,
    WarmMemory,
)
from ....messages.promotion import PostgresPromotionFailed, PromotePostgres
from ..private import (
    WORK_OF,
    AttemptDue,
    BecamePrimary,
    BecameReady,
    BudgetSpent,
    Checked,
    CheckRefused,
    Compared,
    DiskDue,
    DiskSeen,
    DiskUnknown,
    Done,
    Ended,
    Inspected,
    InspectionRefused,
    InstallationFailed,
    Installed,
    Launched,
    LaunchFailed,
    NotPromoted,
    NotReady,
    NotSynced,
    PreparationFailed,
    Prepared,
    QuorumSeen,
    QuorumUnknown,
    RungDue,
    SpaceRefused,
    SyncDue,
    Synced,
)
from ..state import Effect, Phase, ProcessState
from ..work import Work
from . import configuring, postmaster, preparing, stopping
from .turn import Turn

TAKEN_IN: Final[dict[type[Message], frozenset[Phase]]] = {
    InspectPgdata: frozenset({Phase.IDLE}),
    CheckConfiguration: frozenset(
        {Phase.INSPECTED, Phase.PREPARING, Phase.PREPARED, Phase.STARTING, Phase.RUNNING}
    ),
    CompareSettings: frozenset({Phase.RUNNING}),
    PreparePgdata: frozenset({Phase.INSPECTED}),
    WarmMemory: frozenset({Phase.INSPECTED}),
    StartPostgres: frozenset({Phase.PREPARED}),
    InstallConfiguration: frozenset({Phase.RUNNING}),
    PromotePostgres: frozenset({Phase.RUNNING}),
    SettleConfiguration: frozenset({Phase.RUNNING}),
    StopPostgres: frozenset(Phase),
    SyncSafekeepers: frozenset({Phase.GONE}),
}
"""In which phases each command is taken; in the others it is refused at once, by its own failure message."""


def decide(state: ProcessState, message: Message, now_s: float) -> tuple[ProcessState, tuple[Effect, ...]]:
    """Return the state after a message, and what is to be done, in order."""
    turn = Turn(state, now_s)
    work = message.work if isinstance(message, Done) else WORK_OF.get(type(message))
    if work is not None:
        turn.set(work=turn.state.work - {work})
    taken_in = TAKEN_IN.get(type(message))
    if taken_in is not None and state.phase not in taken_in:
        _refuse(turn, message)
    else:
        _HANDLERS[type(message)](turn, message)
    stopping.finish(turn)
    return turn.state, tuple(turn.effects)


def _refuse(turn: Turn, message: Message) -> None:
    phase = turn.state.phase
    reason = "Postgres is stopping" if phase is Phase.STOPPING else f"Postgres is {phase.value}"
    match message:
        case InspectPgdata():
            turn.tell(PgdataRefused(f"PGDATA is inspected once, before all else: {reason}", EXIT_FAILED))
        case CheckConfiguration(operation):
            turn.tell(ConfigurationRefused(operation, f"the configuration cannot be checked: {reason}"))
        case CompareSettings():
            configuring.refuse_to_compare(turn, reason)
        case PreparePgdata(operation):
            turn.tell(PgdataFailed(operation, f"PGDATA cannot be prepared: {reason}"))
        case StartPostgres(operation):
            turn.tell(PostgresStartFailed(operation, f"Postgres cannot be started: {reason}"))
        case InstallConfiguration(operation):
            text = f"the configuration cannot be installed: {reason}"
            turn.tell(ConfigurationInstallFailed(operation, text))
        case SyncSafekeepers():
            turn.tell(SafekeeperSyncFailed(f"the safekeepers cannot be synced: {reason}"))
        case PromotePostgres(operation):
            turn.tell(PostgresPromotionFailed(operation, f"Postgres cannot be promoted: {reason}"))
        case SettleConfiguration() | WarmMemory():
            pass  # what does not run has nothing to be settled; what starts is warm soon
        case _:
            msg = f"{type(message).__name__} has no refusal"
            raise TypeError(msg)


def _done(turn: Turn, message: Done) -> None:
    match message.work:
        case Work.WARM:
            preparing.warmed(turn)
        case Work.SETTLE:
            _settled(turn)
        case Work.TIDY:
            turn.cancel(Work.LOGS)
        case _:
            pass


def _settled(turn: Turn) -> None:
    """Go on with what was asked for meanwhile."""
    following = turn.state.after_settling
    turn.set(after_settling=None)
    if following is None:
        return
    if turn.state.phase is Phase.RUNNING:
        _HANDLERS[type(following)](turn, following)
    elif not turn.is_stopping:
        _refuse(turn, following)


_Handler: TypeAlias = Callable[[Turn, Any], None]

_HANDLERS: Final[dict[type[Message], _Handler]] = {
    AttemptDue: preparing.attempt_due,
    BecamePrimary: configuring.promoted,
    BecameReady: postmaster.became_ready,
    BudgetSpent: stopping.budget_spent,
    CheckConfiguration: configuring.check,
    CheckRefused: configuring.checked,
    Checked: configuring.checked,
    CompareSettings: configuring.compare,
    Compared: configuring.compared,
    DiskDue: postmaster.disk_due,
    DiskSeen: postmaster.disk_seen,
    DiskUnknown: postmaster.disk_unknown,
    Done: _done,
    Ended: postmaster.ended,
    InspectPgdata: preparing.inspect,
    Inspected: preparing.inspected,
    InspectionRefused: preparing.inspected,
    InstallConfiguration: configuring.install,
    InstallationFailed: configuring.installed,
    Installed: configuring.installed,
    LaunchFailed: postmaster.launch_failed,
    Launched: postmaster.launched,
    NotPromoted: configuring.promoted,
    NotReady: postmaster.not_ready,
    NotSynced: preparing.synced,
    PreparationFailed: preparing.preparation_failed,
    PreparePgdata: preparing.prepare,
    Prepared: preparing.prepared,
    PromotePostgres: configuring.promote,
    QuorumSeen: preparing.quorum_seen,
    QuorumUnknown: preparing.quorum_seen,
    RungDue: stopping.rung_due,
    SettleConfiguration: configuring.settle,
    SpaceRefused: postmaster.space_refused,
    StartPostgres: postmaster.start,
    StopPostgres: stopping.stop,
    SyncDue: preparing.sync_due,
    SyncSafekeepers: preparing.sync_at_end,
    Synced: preparing.synced,
    WarmMemory: preparing.warm,
}

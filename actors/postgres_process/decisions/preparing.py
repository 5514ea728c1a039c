"""What is decided before there is a postmaster: the inspection, the safekeepers, the making of PGDATA."""

import logging
from typing import Final

from msgspec.structs import replace

from ....messages.postgres import (
    InspectPgdata,
    PgdataFailed,
    PgdataInspected,
    PgdataPrepared,
    PgdataRefused,
    PgdataStages,
    PreparePgdata,
    SafekeepersSynced,
    SafekeeperSyncFailed,
    SyncSafekeepers,
    WarmMemory,
)
from ....messages.spec import Mode
from ....postgres.lsn import show_lsn
from ..private import (
    AttemptDue,
    Inspected,
    InspectionRefused,
    NotSynced,
    PreparationFailed,
    Prepared,
    QuorumSeen,
    QuorumUnknown,
    SyncDue,
    Synced,
)
from ..state import Begin, Phase
from ..work import Work
from .retries import RETRIES, pause_s
from .turn import Turn

SYNC_PAUSES_S: Final = (0.0, 1.1, 1.1**2, 1.1**3, 1.1**4)
"""Before each further try to bring the safekeepers together at the start (`startup-and-spec` reference, 10.3)."""
SYNC_LIMIT_S: Final = 600.0
"""Of one try: without a quorum the program waits for ever."""


def inspect(turn: Turn, _: InspectPgdata) -> None:
    turn.set(phase=Phase.INSPECTING)
    turn.begin(Begin(Work.INSPECT))


def inspected(turn: Turn, outcome: Inspected | InspectionRefused) -> None:
    if turn.state.phase is not Phase.INSPECTING:
        return
    match outcome:
        case Inspected(kind):
            turn.set(phase=Phase.INSPECTED)
            turn.tell(PgdataInspected(kind))
        case InspectionRefused(error, exit_code):
            turn.set(phase=Phase.GONE, tidied=True)
            turn.tell(PgdataRefused(error, exit_code))


# --- The memory


def warm(turn: Turn, _: WarmMemory) -> None:
    if not turn.does(Work.WARM):
        turn.begin(Begin(Work.WARM))


def warmed(turn: Turn) -> None:
    """Go on with the preparation that has waited: both use the same folders."""
    if turn.state.phase is Phase.PREPARING and turn.state.after_warming:
        _attempt(turn, turn.state.attempt)


# --- PGDATA


def prepare(turn: Turn, message: PreparePgdata) -> None:
    turn.set(phase=Phase.PREPARING, operation=message.operation, preparing=message.spec)
    turn.set(sync_tries=0, sync_began_s=turn.now_s, stages=PgdataStages())
    turn.cancel(Work.WARM)
    if turn.state.has_safekeepers and message.spec.compute_mode is Mode.PRIMARY:
        turn.begin(Begin(Work.QUORUM, message.spec))
    else:
        _prepare_from(turn, 0)


def _prepare_from(turn: Turn, lsn: int) -> None:
    turn.set(began_s=turn.now_s, start_lsn=lsn)
    _attempt(turn, 1)


def attempt_due(turn: Turn, message: AttemptDue) -> None:
    if _is_of_preparation(turn, message.operation):
        _attempt(turn, message.attempt)


def _attempt(turn: Turn, number: int) -> None:
    turn.set(attempt=number, after_warming=turn.does(Work.WARM))
    if not turn.state.after_warming:
        turn.begin(Begin(Work.PREPARE, turn.state.preparing, start_lsn=turn.state.start_lsn))


def prepared(turn: Turn, message: Prepared) -> None:
    if turn.state.phase is not Phase.PREPARING:
        return
    before = turn.state.stages
    turn.set(phase=Phase.PREPARED, kept=message.kept, preparing=None)
    stages = replace(
        message.stages,
        sync_sk_check_ms=before.sync_sk_check_ms,
        sync_safekeepers_ms=before.sync_safekeepers_ms,
    )
    turn.tell(PgdataPrepared(turn.state.operation, message.kept, turn.took_ms, stages))


def preparation_failed(turn: Turn, message: PreparationFailed) -> None:
    if turn.state.phase is not Phase.PREPARING:
        return
    attempt = turn.state.attempt
    again_in_s = pause_s(attempt, turn.now_s - turn.state.began_s) if message.passing else None
    if again_in_s is not None:
        why = message.error.removeprefix("failed to get ")  # what a source says when it is the last attempt
        turn.log(logging.WARNING, f"Failed to get basebackup: {why} (attempt {attempt}/{RETRIES + 1})")
        turn.remind(again_in_s, AttemptDue(turn.state.operation, attempt + 1))
        return
    tried = f" (after {attempt} attempts)" if attempt > 1 else ""
    _fail(turn, f"{message.error}{tried}")


def _fail(turn: Turn, error: str) -> None:
    turn.set(phase=Phase.INSPECTED, preparing=None)
    turn.tell(PgdataFailed(turn.state.operation, error))


def _is_of_preparation(turn: Turn, operation: int) -> bool:
    return turn.state.phase is Phase.PREPARING and operation == turn.state.operation


# --- Safekeepers


def quorum_seen(turn: Turn, outcome: QuorumSeen | QuorumUnknown) -> None:
    if turn.state.phase is not Phase.PREPARING:
        return
    turn.set(stages=replace(turn.state.stages, sync_sk_check_ms=_sync_took_ms(turn)))
    match outcome:
        case QuorumSeen(None):
            _sync(turn)
        case QuorumSeen(int(lsn)):
            turn.log(logging.INFO, f"the safekeepers are synced at LSN {show_lsn(lsn)} already")
            _prepare_from(turn, lsn)
        case QuorumUnknown(error):
            _fail(turn, error)


def sync_due(turn: Turn, message: SyncDue) -> None:
    if _is_of_preparation(turn, message.operation):
        _sync(turn)


def _sync(turn: Turn) -> None:
    turn.set(sync_began_s=turn.now_s, sync_tries=turn.state.sync_tries + 1)
    turn.begin(Begin(Work.SYNC, turn.state.preparing, limit_s=SYNC_LIMIT_S))


def sync_at_end(turn: Turn, message: SyncSafekeepers) -> None:
    if turn.does(Work.SYNC):
        turn.tell(SafekeeperSyncFailed("the safekeepers are being synced already"))
        return
    turn.set(sync_began_s=turn.now_s, syncs_at_end=True)
    turn.begin(Begin(Work.SYNC, message.spec, limit_s=message.budget_s))


def synced(turn: Turn, outcome: Synced | NotSynced) -> None:
    at_end = turn.state.syncs_at_end
    turn.set(syncs_at_end=False)
    match outcome:
        case Synced(lsn) if at_end:
            turn.tell(SafekeepersSynced(show_lsn(lsn), _sync_took_ms(turn)))
        case NotSynced(error) if at_end:
            turn.tell(SafekeeperSyncFailed(error))
        case _ if turn.state.phase is not Phase.PREPARING:
            pass
        case Synced(lsn):
            took_ms = _sync_took_ms(turn)
            turn.set(stages=replace(turn.state.stages, sync_safekeepers_ms=took_ms))
            turn.log(logging.INFO, f"synced safekeepers at LSN {show_lsn(lsn)} in {took_ms} ms")
            _prepare_from(turn, lsn)
        case NotSynced(error) if turn.state.sync_tries <= len(SYNC_PAUSES_S):
            turn.log(logging.WARNING, f"the safekeepers are not synced: {error}")
            turn.remind(SYNC_PAUSES_S[turn.state.sync_tries - 1], SyncDue(turn.state.operation))
        case NotSynced(error):
            _fail(turn, f"failed to sync safekeepers, {turn.state.sync_tries} times; the last time: {error}")


def _sync_took_ms(turn: Turn) -> int:
    return round((turn.now_s - turn.state.sync_began_s) * 1000)

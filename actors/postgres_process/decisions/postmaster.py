"""What is decided about the postmaster from its launch to its end, and about the disk that it writes to."""

import logging
from typing import Final

from msgspec.structs import replace

from ....messages.lifecycle import Condition, ConditionCleared, ConditionRaised
from ....messages.postgres import (
    PostgresExited,
    PostgresReady,
    PostgresStartFailed,
    StartPostgres,
    StopRung,
)
from ..disk import judge
from ..private import (
    BecameReady,
    DiskDue,
    DiskSeen,
    DiskUnknown,
    Ended,
    Launched,
    LaunchFailed,
    NotReady,
    SpaceRefused,
)
from ..state import Begin, Phase, Show
from ..work import Work
from .stopping import climb, end_within
from .turn import Turn

NOT_READY_BUDGET_S: Final = 6.0
"""How long a postmaster that did not become ready in time gets to end: immediate, then kill."""
DISK_EVERY_S: Final = 5.0
DISK_FULL_EVERY_S: Final = 1.0
"""How often the disk is looked at, and how often while it is full."""
RECOVERING_DETAIL: Final = (
    "Postgres was not shut down in order, or is a copy of a running one, and replays its log"
)


def start(turn: Turn, message: StartPostgres) -> None:
    turn.set(phase=Phase.STARTING, operation=message.operation, began_s=turn.now_s)
    turn.begin(Begin(Work.LOGS))
    turn.begin(Begin(Work.LAUNCH, message.spec))


def launched(turn: Turn, message: Launched) -> None:
    turn.set(pid=message.pid)
    turn.begin(Begin(Work.AWAIT_EXIT))
    _look_at_disk(turn)
    if turn.is_stopping:
        climb(turn, StopRung.FAST)
        return
    turn.set(recovering=message.recovering)
    if message.recovering:
        turn.tell(ConditionRaised(Condition.RECOVERING, RECOVERING_DETAIL))
    limit_s = None if message.recovering else turn.state.start_timeout_s
    turn.begin(Begin(Work.AWAIT_READY, limit_s=limit_s))


def launch_failed(turn: Turn, message: LaunchFailed) -> None:
    _start_failed(turn, message.error)


def became_ready(turn: Turn, _: BecameReady) -> None:
    if turn.state.phase is not Phase.STARTING or turn.state.pid is None:
        return
    turn.set(phase=Phase.RUNNING)
    _recovered(turn)
    turn.tell(PostgresReady(turn.state.operation, turn.state.pid, turn.took_ms))


def not_ready(turn: Turn, message: NotReady) -> None:
    """End a postmaster that will not do; the start has failed when it is gone."""
    if message.error is None or turn.state.phase is not Phase.STARTING or turn.state.pid is None:
        return
    turn.set(fault=message.error)
    end_within(turn, NOT_READY_BUDGET_S)


def ended(turn: Turn, message: Ended) -> None:
    turn.set(pid=None)
    _recovered(turn)
    turn.cancel(Work.AWAIT_READY, Work.COMPARE, Work.INSTALL, Work.PROMOTE, Work.SETTLE)
    turn.begin(Begin(Work.CORES))
    match turn.state.phase:
        case Phase.STARTING:
            fault = turn.state.fault
            _start_failed(turn, message.description if fault is None else f"{fault}; {message.description}")
        case Phase.RUNNING:
            turn.set(phase=Phase.GONE)
            turn.tell(PostgresExited(message.description))
        case Phase.STOPPING if message.failed and turn.state.ladder is not None:
            forced = turn.state.ladder.reached is not StopRung.FAST
            turn.set(trouble=None if forced else message.description)
        case _:
            pass


def _start_failed(turn: Turn, error: str) -> None:
    if turn.state.phase is Phase.STARTING:
        turn.set(phase=Phase.GONE)
        turn.tell(PostgresStartFailed(turn.state.operation, error))


def _recovered(turn: Turn) -> None:
    if turn.state.recovering:
        turn.set(recovering=False)
        turn.tell(ConditionCleared(Condition.RECOVERING))


# --- The disk


def disk_due(turn: Turn, message: DiskDue) -> None:
    if message.number == turn.state.disk_looks:
        _look_at_disk(turn)


def space_refused(turn: Turn, _: SpaceRefused) -> None:
    turn.set(disk=replace(turn.state.disk, said_s=turn.now_s))
    _look_at_disk(turn)


def disk_seen(turn: Turn, message: DiskSeen) -> None:
    before = turn.state.disk
    after = judge(before, message.areas, turn.now_s)
    turn.set(disk=after, disk_unknown=False)
    turn.effects.append(Show(message.areas))
    if turn.state.pid is None:
        return
    if after.detail is not None and before.detail is None:
        turn.log(logging.ERROR, f"the disk is full: {after.detail}")
        turn.tell(ConditionRaised(Condition.DISK_FULL, after.detail))
    elif after.detail is None and before.detail is not None:
        turn.log(logging.INFO, "the disk has room again")
        turn.tell(ConditionCleared(Condition.DISK_FULL))
    is_well = after.detail is None and after.said_s is None
    _plan_look(turn, DISK_EVERY_S if is_well else DISK_FULL_EVERY_S)


def disk_unknown(turn: Turn, message: DiskUnknown) -> None:
    if not turn.state.disk_unknown:
        text = f"whether the disk is full cannot be told, and is not watched meanwhile: {message.error}"
        turn.log(logging.WARNING, text)
    turn.set(disk_unknown=True)
    _plan_look(turn, DISK_EVERY_S)


def _look_at_disk(turn: Turn) -> None:
    if turn.state.pid is not None and not turn.does(Work.DISK):
        turn.begin(Begin(Work.DISK))


def _plan_look(turn: Turn, after_s: float) -> None:
    turn.set(disk_looks=turn.state.disk_looks + 1)
    turn.remind(after_s, DiskDue(turn.state.disk_looks))

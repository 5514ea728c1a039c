"""The PostgresProcess: carries out what was decided (decisions/), through the port."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias

from typing_extensions import override

from ...messages.base import Message
from ...messages.failpoints import FailpointError
from ...messages.lifecycle import EXIT_FAILED
from ...messages.metrics import DISK_FREE
from ...messages.planning import CannotPlan, CompareSettings, ComparisonOutcome
from ...messages.postgres import (
    CheckConfiguration,
    InspectPgdata,
    InstallConfiguration,
    PreparePgdata,
    SettleConfiguration,
    StartPostgres,
    StopPostgres,
    SyncSafekeepers,
    WarmMemory,
)
from ...messages.promotion import PromotePostgres
from ...messages.settings import NodeSettings, SourceName
from ...messages.spec import ComputeSpec
from ..kit.actor import Actor, Ref, Replier
from ..kit.effects import Log, Remind, Tell
from ..kit.jobs import Cancellation, CancelledError, Job, OnFailure, describe
from ..kit.jobs import Work as Run
from ..kit.programs import ProgramError
from .decisions import decide
from .port import PassingError, PgdataRefusedError, Port, PostgresError
from .private import (
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
from .state import Answer, Begin, Cancel, Effect, Phase, ProcessState, Send, Show
from .work import Work

PostgresMessage: TypeAlias = (
    AttemptDue
    | BecamePrimary
    | BecameReady
    | BudgetSpent
    | CheckConfiguration
    | CheckRefused
    | Checked
    | CompareSettings
    | Compared
    | DiskDue
    | DiskSeen
    | DiskUnknown
    | Done
    | Ended
    | InspectPgdata
    | Inspected
    | InspectionRefused
    | InstallConfiguration
    | InstallationFailed
    | Installed
    | LaunchFailed
    | Launched
    | NotPromoted
    | NotReady
    | NotSynced
    | PreparationFailed
    | PreparePgdata
    | Prepared
    | QuorumSeen
    | QuorumUnknown
    | PromotePostgres
    | SettleConfiguration
    | RungDue
    | SpaceRefused
    | StartPostgres
    | StopPostgres
    | SyncDue
    | SyncSafekeepers
    | Synced
    | WarmMemory
)

CANCELLED: Final = "it was broken off"

log = logging.getLogger("compute_node.postgres_process")


class PostgresProcess(Actor[PostgresMessage]):
    """Owns PGDATA and the postmaster. `supervisor` hears the facts of messages/postgres.py and conditions."""

    max_jobs: ClassVar[int] = 8  # more than can ever be under way at once (see decisions/)

    def __init__(self, settings: NodeSettings, supervisor: Ref[Any], port: Port) -> None:
        self._state = ProcessState(
            start_timeout_s=settings.start_timeout_s,
            has_safekeepers=settings.source is SourceName.PAGESERVER,
        )
        self._supervisor = supervisor
        self._port = port
        self._jobs: dict[Work, Job] = {}
        self._askers: list[Replier[ComparisonOutcome]] = []

    @property
    def state(self) -> ProcessState:
        """What the actor knows; frozen."""
        return self._state

    @property
    def phase(self) -> Phase:
        """Where PGDATA and the postmaster are in their life."""
        return self._state.phase

    @override
    def receive(self, message: PostgresMessage) -> None:
        if isinstance(message, CompareSettings):
            self._askers.append(self.defer(message))
        self._state, effects = decide(self._state, message, self.clock.now())
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Tell(message):
                self._supervisor.tell(message)
            case Answer(outcome, refused):
                self._askers.pop(-1 if refused else 0).answer(outcome)
            case Begin():
                run, failed = self._run(effect), _FAILED.get(effect.work)
                self._jobs[effect.work] = self.start_job(effect.work.value, run, failed=failed)
            case Cancel(work):
                self._jobs[work].cancel()
            case Send(rung):
                self._port.signal(rung)
            case Remind(after_s, message):
                self.timers.after(after_s, message)
            case Show(areas):
                self.metrics.replace(DISK_FREE, {(area.name,): area.free for area in areas})
            case Log(level, text):
                log.log(level, "%s", text)

    def _space_refused(self) -> None:
        self.myself.tell(SpaceRefused())

    def _run(self, begin: Begin) -> Run:
        port = self._port
        table: dict[Work, Run] = {
            Work.INSPECT: lambda cancellation: Inspected(port.inspect(cancellation)),
            Work.CHECK: lambda cancellation: Checked(
                port.check(_spec(begin), cancellation, promoting=begin.promoting)
            ),
            Work.COMPARE: lambda cancellation: Compared(port.compare(_spec(begin), cancellation)),
            Work.QUORUM: lambda cancellation: QuorumSeen(port.check_safekeepers(_spec(begin), cancellation)),
            Work.SYNC: partial(_sync, port, begin),
            Work.PREPARE: partial(_prepare, port, begin),
            Work.WARM: _ended(Work.WARM, port.warm),
            Work.LOGS: _ended(Work.LOGS, partial(port.pump_logs, self._space_refused)),
            Work.LAUNCH: partial(_launch, port, begin),
            Work.AWAIT_READY: partial(_await_ready, port, begin.limit_s),
            Work.AWAIT_EXIT: partial(_await_exit, port),
            Work.DISK: lambda _: DiskSeen(port.look_at_disk()),
            Work.INSTALL: lambda cancellation: Installed(port.install(_spec(begin), cancellation)),
            Work.PROMOTE: partial(_promote, port, begin),
            Work.SETTLE: _ended(Work.SETTLE, partial(_settle, port, begin)),
            Work.KILL: _ended(Work.KILL, port.kill),
            Work.TIDY: _ended(Work.TIDY, port.tidy),
            Work.CORES: _ended(Work.CORES, port.report_cores),
        }
        return table[begin.work]


def _await_exit(port: Port, cancellation: Cancellation) -> Message:
    ended = port.await_exit(cancellation)
    return Ended(ended.description, ended.failed)


def _spec(begin: Begin) -> ComputeSpec:
    if begin.spec is None:
        msg = f"'{begin.work.value}' needs a spec"
        raise ValueError(msg)
    return begin.spec


def _sync(port: Port, begin: Begin, cancellation: Cancellation) -> Message:
    assert begin.limit_s is not None  # noqa: S101 - it never goes without
    return Synced(port.sync_safekeepers(_spec(begin), begin.limit_s, cancellation))


def _prepare(port: Port, begin: Begin, cancellation: Cancellation) -> Message:
    prepared = port.prepare(_spec(begin), begin.start_lsn, cancellation)
    return Prepared(prepared.kept, prepared.stages)


def _launch(port: Port, begin: Begin, cancellation: Cancellation) -> Message:
    launch = port.launch(_spec(begin), cancellation)
    return Launched(launch.pid, launch.recovering)


def _promote(port: Port, begin: Begin, cancellation: Cancellation) -> Message:
    done = port.promote(_spec(begin), begin.wal_flush_lsn, cancellation)
    return BecamePrimary(done.lsn_wait_time_ms, done.pg_promote_time_ms)


def _settle(port: Port, begin: Begin, cancellation: Cancellation) -> None:
    port.settle(_spec(begin), cancellation, subscribers=begin.subscribers)


def _await_ready(port: Port, limit_s: float | None, cancellation: Cancellation) -> Message:
    return BecameReady() if port.await_ready(limit_s, cancellation) else NotReady(None)


def _ended(work: Work, effect: Callable[[Cancellation], None]) -> Run:
    def run(cancellation: Cancellation) -> Message:
        effect(cancellation)
        return Done(work)

    return run


def _text(error: Exception) -> str:
    """Say what went wrong: our own errors speak for themselves, others are named."""
    if isinstance(error, CancelledError):
        return CANCELLED
    return str(error) if isinstance(error, (PostgresError, ProgramError, FailpointError)) else describe(error)


def _not_inspected(error: Exception) -> Message:
    exit_code = error.exit_code if isinstance(error, PgdataRefusedError) else EXIT_FAILED
    return InspectionRefused(_text(error), exit_code)


def _not_ready(error: Exception) -> Message:
    return NotReady(None if isinstance(error, CancelledError) else _text(error))


def _not_done(work: Work) -> OnFailure:
    def failed(error: Exception) -> Message:
        if not isinstance(error, CancelledError):
            log.error("could not %s: %s", work.value, _text(error))
        return Done(work)

    return failed


def _pump_over(error: Exception) -> Message:
    """Being broken off before it began is the one failure that is none."""
    if isinstance(error, CancelledError):
        return Done(Work.LOGS)
    raise error


_FAILED: Final[dict[Work, OnFailure]] = {
    Work.INSPECT: _not_inspected,
    Work.CHECK: lambda error: CheckRefused(_text(error)),
    Work.COMPARE: lambda error: Compared(
        CannotPlan(f"the settings cannot be compared: {_text(error)}", busy=isinstance(error, CancelledError))
    ),
    Work.QUORUM: lambda error: QuorumUnknown(_text(error)),
    Work.SYNC: lambda error: NotSynced(_text(error)),
    Work.PREPARE: lambda error: PreparationFailed(_text(error), isinstance(error, PassingError)),
    Work.LAUNCH: lambda error: LaunchFailed(_text(error)),
    Work.AWAIT_READY: _not_ready,
    Work.INSTALL: lambda error: InstallationFailed(_text(error)),
    Work.PROMOTE: lambda error: NotPromoted(_text(error)),
    Work.LOGS: _pump_over,
    Work.DISK: lambda error: DiskUnknown(_text(error)),
    Work.SETTLE: _not_done(Work.SETTLE),
    Work.WARM: _not_done(Work.WARM),
    Work.KILL: _not_done(Work.KILL),
    Work.TIDY: _not_done(Work.TIDY),
    Work.CORES: _not_done(Work.CORES),
}
"""How a failure of each work is told; the actor dies when LOGS or AWAIT_EXIT fail."""

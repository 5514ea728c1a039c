"""What the PostgresProcess knows and decides: pure. A phase, a message, and what is to be done about it.

    idle -> inspecting -> inspected -> preparing -> prepared -> starting -> running -> gone
                              any of them -> stopping -> gone

Checks and installations go on beside a phase; everything else has one.
"""

import logging
from enum import Enum
from typing import Any, Final, TypeAlias

import msgspec

from ...messages.base import Message
from ...messages.lifecycle import EXIT_FAILED, Condition, ConditionCleared, ConditionRaised
from ...messages.planning import CannotPlan, CompareSettings, ComparisonOutcome
from ...messages.postgres import (
    CheckConfiguration,
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    InspectPgdata,
    InstallConfiguration,
    PgdataFailed,
    PgdataInspected,
    PgdataPrepared,
    PgdataRefused,
    PgdataStages,
    PostgresExited,
    PostgresReady,
    PostgresStartFailed,
    PostgresStopped,
    PreparePgdata,
    SafekeepersSynced,
    SafekeeperSyncFailed,
    SettleConfiguration,
    StartPostgres,
    StopPostgres,
    StopRung,
    SyncSafekeepers,
    WarmMemory,
)
from ...messages.promotion import PostgresPromoted, PostgresPromotionFailed, PromotePostgres
from ...messages.spec import ComputeSpec, Mode
from ...postgres.lsn import show_lsn
from .disk import Area, Fullness, judge
from .private import (
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
from .retries import RETRIES, pause_s
from .stopping import next_rung, rungs
from .work import ENDED_BY_A_STOP, Work

NOT_READY_BUDGET_S: Final = 6.0
"""How long a postmaster that did not become ready in time gets to end: immediate, then kill."""
DISK_EVERY_S: Final = 5.0
DISK_FULL_EVERY_S: Final = 1.0
"""How often the disk is looked at, and how often while it is full."""
SYNC_PAUSES_S: Final = (0.0, 1.1, 1.1**2, 1.1**3, 1.1**4)
"""Before each further try to bring the safekeepers together at the start (`startup-and-spec` reference, 10.3)."""
SYNC_LIMIT_S: Final = 600.0
"""Of one try: without a quorum the program waits for ever."""
RECOVERING_DETAIL: Final = (
    "Postgres was not shut down in order, or is a copy of a running one, and replays its log"
)


class Phase(Enum):
    """Where the folder and the postmaster are in their life."""

    IDLE = "idle"
    INSPECTING = "inspecting"
    INSPECTED = "inspected"
    PREPARING = "preparing"
    PREPARED = "prepared"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    GONE = "gone"


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


# --- Effects ---------------------------------------------------------------------------------------------


class Tell(msgspec.Struct, frozen=True):
    """Tell the Supervisor."""

    message: Message


class Begin(msgspec.Struct, frozen=True):
    """Begin a piece of work; `limit_s` is for the wait for readiness and the sync of safekeepers alone."""

    work: Work
    spec: ComputeSpec | None = None
    limit_s: float | None = None
    subscribers: bool = False
    """For the settling alone."""
    start_lsn: int = 0
    """For the preparation alone."""
    promoting: bool = False
    """For the check alone."""
    wal_flush_lsn: str | None = None
    """For the promotion alone."""


class Answer(msgspec.Struct, frozen=True):
    """Answer one who asked for a comparison: who came last and is refused, or who waits for the work."""

    outcome: ComparisonOutcome
    refused: bool = False


class Cancel(msgspec.Struct, frozen=True):
    """Ask a piece of work to end; its outcome still comes."""

    work: Work


class Send(msgspec.Struct, frozen=True):
    """Send the signal of a rung to the postmaster."""

    rung: StopRung


class Remind(msgspec.Struct, frozen=True):
    """Send oneself a message later."""

    after_s: float
    message: Message


class Show(msgspec.Struct, frozen=True):
    """Show in the metrics how much is left on the disk."""

    areas: tuple[Area, ...]


class Log(msgspec.Struct, frozen=True):
    """Write into the log."""

    level: int
    text: str


Effect: TypeAlias = Tell | Answer | Begin | Cancel | Send | Remind | Show | Log


# --- State -----------------------------------------------------------------------------------------------


class Ladder(msgspec.Struct, frozen=True):
    """A postmaster is being ended; `number` tells its reminders from those of an earlier ladder."""

    number: int
    deadline_s: float
    reached: StopRung = StopRung.NOT_RUNNING


class ProcessState(msgspec.Struct, frozen=True):
    """All that the actor remembers."""

    start_timeout_s: float
    has_safekeepers: bool = False
    """The source is Neon's storage: a Primary begins where its safekeepers end."""
    phase: Phase = Phase.IDLE
    work: frozenset[Work] = frozenset()
    pid: int | None = None
    """The postmaster, from its launch until it was waited for."""
    operation: int = 0
    """Of the preparation or start under way."""
    began_s: float = 0.0
    preparing: ComputeSpec | None = None
    """What the preparation under way is for."""
    attempt: int = 0
    after_warming: bool = False
    """The attempt begins when the warming, which was broken off, has ended."""
    start_lsn: int = 0
    """Where it begins; 0: at the latest."""
    sync_began_s: float = 0.0
    sync_tries: int = 0
    syncs_at_end: bool = False
    """The sync of safekeepers under way is that after the end of Postgres."""
    stages: PgdataStages = PgdataStages()
    """What of the preparation was measured here."""
    check_operation: int = 0
    install_operation: int = 0
    promote_operation: int = 0
    kept: bool = False
    recovering: bool = False
    fault: str | None = None
    """Why the postmaster of a failing start is being ended."""
    ladder: Ladder | None = None
    ladders: int = 0
    tidied: bool = False
    trouble: str | None = None
    """What went wrong with a stop that was not forced: the postmaster's own words."""
    after_settling: InstallConfiguration | SettleConfiguration | PromotePostgres | None = None
    """Asked for while a configuration was being settled: both write the same files."""
    disk: Fullness = Fullness()
    disk_looks: int = 0
    disk_unknown: bool = False
    """The disk cannot be looked at; said once."""


def decide(state: ProcessState, message: Message, now_s: float) -> tuple[ProcessState, tuple[Effect, ...]]:
    """Return the state after a message, and what is to be done, in order."""
    turn = _Turn(state, now_s)
    work = message.work if isinstance(message, Done) else WORK_OF.get(type(message))
    if work is not None:
        turn.set(work=turn.state.work - {work})
    taken_in = TAKEN_IN.get(type(message))
    if taken_in is not None and state.phase not in taken_in:
        turn.refuse(message)
    else:
        turn.handle(message)
    turn.settle()
    return turn.state, tuple(turn.effects)


class _Turn:
    """One decision in the making."""

    def __init__(self, state: ProcessState, now_s: float) -> None:
        self.state = state
        self.now_s = now_s
        self.effects: list[Effect] = []

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - fields of any type
        self.state = msgspec.structs.replace(self.state, **changes)

    def tell(self, message: Message) -> None:
        self.effects.append(Tell(message))

    def begin(
        self,
        work: Work,
        spec: ComputeSpec | None = None,
        limit_s: float | None = None,
        *,
        subscribers: bool = False,
        start_lsn: int = 0,
    ) -> None:
        self.set(work=self.state.work | {work})
        self.effects.append(Begin(work, spec, limit_s, subscribers, start_lsn))

    def cancel(self, *kinds: Work) -> None:
        self.effects += [Cancel(work) for work in kinds if work in self.state.work]

    @property
    def took_ms(self) -> int:
        return round((self.now_s - self.state.began_s) * 1000)

    def refuse(self, message: Message) -> None:
        phase = self.state.phase
        reason = "Postgres is stopping" if phase is Phase.STOPPING else f"Postgres is {phase.value}"
        match message:
            case InspectPgdata():
                self.tell(PgdataRefused(f"PGDATA is inspected once, before all else: {reason}", EXIT_FAILED))
            case CheckConfiguration(operation):
                self.tell(ConfigurationRefused(operation, f"the configuration cannot be checked: {reason}"))
            case CompareSettings():
                self.refuse_to_compare(reason)
            case PreparePgdata(operation):
                self.tell(PgdataFailed(operation, f"PGDATA cannot be prepared: {reason}"))
            case StartPostgres(operation):
                self.tell(PostgresStartFailed(operation, f"Postgres cannot be started: {reason}"))
            case InstallConfiguration(operation):
                text = f"the configuration cannot be installed: {reason}"
                self.tell(ConfigurationInstallFailed(operation, text))
            case SyncSafekeepers():
                self.tell(SafekeeperSyncFailed(f"the safekeepers cannot be synced: {reason}"))
            case PromotePostgres(operation):
                self.tell(PostgresPromotionFailed(operation, f"Postgres cannot be promoted: {reason}"))
            case SettleConfiguration() | WarmMemory():
                pass  # what does not run has nothing to be settled; what starts is warm soon
            case _:
                msg = f"{type(message).__name__} has no refusal"
                raise TypeError(msg)

    def handle(self, message: Message) -> None:  # noqa: C901, PLR0912, PLR0915 - one flat table of messages
        match message:
            case InspectPgdata():
                self.set(phase=Phase.INSPECTING)
                self.begin(Work.INSPECT)
            case CheckConfiguration():
                self.check(message)
            case CompareSettings() | Compared():
                self.compare(message)
            case PreparePgdata(operation, spec):
                self.prepare(operation, spec)
            case WarmMemory():
                if Work.WARM not in self.state.work:
                    self.begin(Work.WARM)
            case Done(Work.WARM):
                self.warmed()
            case AttemptDue(operation, attempt):
                if self.state.phase is Phase.PREPARING and operation == self.state.operation:
                    self.attempt(attempt)
            case QuorumSeen() | QuorumUnknown():
                self.quorum_seen(message)
            case SyncSafekeepers(spec, budget_s):
                self.sync_at_end(spec, budget_s)
            case Synced() | NotSynced():
                self.synced(message)
            case SyncDue(operation):
                if self.state.phase is Phase.PREPARING and operation == self.state.operation:
                    self.sync()
            case StartPostgres(operation, spec):
                self.set(phase=Phase.STARTING, operation=operation, began_s=self.now_s)
                self.begin(Work.LOGS)
                self.begin(Work.LAUNCH, spec)
            case InstallConfiguration():
                self.install(message)
            case PromotePostgres():
                self.promote(message)
            case BecamePrimary() | NotPromoted():
                self.promoted(message)
            case SettleConfiguration():
                self.settle_configuration(message)
            case StopPostgres(budget_s, hurry):
                self.stop(budget_s, hurry=hurry)
            case Inspected(kind):
                self.inspected(PgdataInspected(kind), Phase.INSPECTED)
            case InspectionRefused(error, exit_code):
                self.inspected(PgdataRefused(error, exit_code), Phase.GONE)
            case Checked() | CheckRefused():
                self.checked(message)
            case Prepared() | PreparationFailed():
                self.prepared(message)
            case Launched(pid, recovering):
                self.launched(pid, recovering=recovering)
            case LaunchFailed(error):
                self.start_failed(error)
            case BecameReady():
                self.ready()
            case NotReady(error):
                self.not_ready(error)
            case Ended(description, failed):
                self.ended(description, failed=failed)
            case Installed() | InstallationFailed():
                self.installed(message)
            case DiskDue() | SpaceRefused() | DiskSeen() | DiskUnknown():
                self.disk(message)
            case RungDue(number, rung):
                self.rung_due(number, rung)
            case BudgetSpent(number):
                if self.state.ladder is not None and self.state.ladder.number == number:
                    self.cancel(Work.CORES)
            case Done(Work.SETTLE):
                self.settled()
            case Done(work):
                if work is Work.TIDY:
                    self.cancel(Work.LOGS)
            case _:
                msg = f"{type(message).__name__} means nothing here"
                raise TypeError(msg)

    # --- Before Postgres runs

    def inspected(self, outcome: PgdataInspected | PgdataRefused, phase: Phase) -> None:
        if self.state.phase is Phase.INSPECTING:
            self.set(phase=phase, tidied=phase is Phase.GONE)
            self.tell(outcome)

    def prepare(self, operation: int, spec: ComputeSpec) -> None:
        self.set(phase=Phase.PREPARING, operation=operation, preparing=spec)
        self.set(sync_tries=0, sync_began_s=self.now_s, stages=PgdataStages())
        self.cancel(Work.WARM)
        if self.state.has_safekeepers and spec.compute_mode is Mode.PRIMARY:
            self.begin(Work.QUORUM, spec)
        else:
            self.prepare_from(0)

    def prepare_from(self, lsn: int) -> None:
        self.set(began_s=self.now_s, start_lsn=lsn)
        self.attempt(1)

    def attempt(self, number: int) -> None:
        self.set(attempt=number, after_warming=Work.WARM in self.state.work)
        if not self.state.after_warming:
            self.begin(Work.PREPARE, self.state.preparing, start_lsn=self.state.start_lsn)

    def warmed(self) -> None:
        """Go on with the preparation that has waited: both use the same folders."""
        if self.state.phase is Phase.PREPARING and self.state.after_warming:
            self.attempt(self.state.attempt)

    def prepared(self, outcome: Prepared | PreparationFailed) -> None:
        if self.state.phase is not Phase.PREPARING:
            return
        operation, before = self.state.operation, self.state.stages
        match outcome:
            case Prepared(kept, stages):
                self.set(phase=Phase.PREPARED, kept=kept, preparing=None)
                stages = msgspec.structs.replace(
                    stages,
                    sync_sk_check_ms=before.sync_sk_check_ms,
                    sync_safekeepers_ms=before.sync_safekeepers_ms,
                )
                self.tell(PgdataPrepared(operation, kept, self.took_ms, stages))
            case PreparationFailed(error, passing):
                self.preparation_failed(error, passing=passing)

    def preparation_failed(self, error: str, *, passing: bool) -> None:
        operation, attempt = self.state.operation, self.state.attempt
        again_in_s = pause_s(attempt, self.now_s - self.state.began_s) if passing else None
        if again_in_s is not None:
            why = error.removeprefix("failed to get ")  # what a source says when it is the last attempt
            text = f"Failed to get basebackup: {why} (attempt {attempt}/{RETRIES + 1})"
            self.effects.append(Log(logging.WARNING, text))
            self.effects.append(Remind(again_in_s, AttemptDue(operation, attempt + 1)))
            return
        tried = f" (after {attempt} attempts)" if attempt > 1 else ""
        self.set(phase=Phase.INSPECTED, preparing=None)
        self.tell(PgdataFailed(operation, f"{error}{tried}"))

    # --- Safekeepers

    @property
    def sync_took_ms(self) -> int:
        return round((self.now_s - self.state.sync_began_s) * 1000)

    def quorum_seen(self, outcome: QuorumSeen | QuorumUnknown) -> None:
        if self.state.phase is not Phase.PREPARING:
            return
        took_ms = self.sync_took_ms
        self.set(stages=msgspec.structs.replace(self.state.stages, sync_sk_check_ms=took_ms))
        match outcome:
            case QuorumSeen(None):
                self.sync()
            case QuorumSeen(int(lsn)):
                text = f"the safekeepers are synced at LSN {show_lsn(lsn)} already"
                self.effects.append(Log(logging.INFO, text))
                self.prepare_from(lsn)
            case QuorumUnknown(error):
                self.preparation_failed(error, passing=False)

    def sync(self) -> None:
        self.set(sync_began_s=self.now_s, sync_tries=self.state.sync_tries + 1)
        self.begin(Work.SYNC, self.state.preparing, limit_s=SYNC_LIMIT_S)

    def sync_at_end(self, spec: ComputeSpec, budget_s: float) -> None:
        if Work.SYNC in self.state.work:
            self.tell(SafekeeperSyncFailed("the safekeepers are being synced already"))
            return
        self.set(sync_began_s=self.now_s, syncs_at_end=True)
        self.begin(Work.SYNC, spec, limit_s=budget_s)

    def synced(self, outcome: Synced | NotSynced) -> None:
        at_end = self.state.syncs_at_end
        self.set(syncs_at_end=False)
        match outcome:
            case Synced(lsn) if at_end:
                self.tell(SafekeepersSynced(show_lsn(lsn), self.sync_took_ms))
            case NotSynced(error) if at_end:
                self.tell(SafekeeperSyncFailed(error))
            case _ if self.state.phase is not Phase.PREPARING:
                pass
            case Synced(lsn):
                took_ms = self.sync_took_ms
                self.set(stages=msgspec.structs.replace(self.state.stages, sync_safekeepers_ms=took_ms))
                text = f"synced safekeepers at LSN {show_lsn(lsn)} in {took_ms} ms"
                self.effects.append(Log(logging.INFO, text))
                self.prepare_from(lsn)
            case NotSynced(error) if self.state.sync_tries <= len(SYNC_PAUSES_S):
                self.effects.append(Log(logging.WARNING, f"the safekeepers are not synced: {error}"))
                after_s = SYNC_PAUSES_S[self.state.sync_tries - 1]
                self.effects.append(Remind(after_s, SyncDue(self.state.operation)))
            case NotSynced(error):
                text = f"failed to sync safekeepers, {self.state.sync_tries} times; the last time: {error}"
                self.preparation_failed(text, passing=False)

    # --- Configurations

    def check(self, message: CheckConfiguration) -> None:
        if Work.CHECK in self.state.work:
            text = "another configuration is being checked: try again"
            self.tell(ConfigurationRefused(message.operation, text))
            return
        self.set(check_operation=message.operation, work=self.state.work | {Work.CHECK})
        self.effects.append(Begin(Work.CHECK, message.spec, promoting=message.promoting))

    def checked(self, outcome: Checked | CheckRefused) -> None:
        if self.state.phase is Phase.STOPPING:
            return
        operation = self.state.check_operation
        match outcome:
            case Checked(warnings):
                self.tell(ConfigurationAccepted(operation, warnings))
            case CheckRefused(error):
                self.tell(ConfigurationRefused(operation, error))

    def compare(self, message: CompareSettings | Compared) -> None:
        match message:
            case Compared(outcome):
                self.effects.append(Answer(outcome))
            case CompareSettings() if Work.COMPARE in self.state.work:
                self.refuse_to_compare("another plan is being made; try again in a moment")
            case CompareSettings(spec):
                self.begin(Work.COMPARE, spec)

    def refuse_to_compare(self, reason: str) -> None:
        outcome = CannotPlan(f"the settings cannot be compared: {reason}", busy=True)
        self.effects.append(Answer(outcome, refused=True))

    def install(self, message: InstallConfiguration) -> None:
        if self.state.work & _WRITING or isinstance(self.state.after_settling, _WRITERS):
            text = "another configuration is being installed: try again"
            self.tell(ConfigurationInstallFailed(message.operation, text))
        elif Work.SETTLE in self.state.work:
            self.set(after_settling=message)
        else:
            self.set(install_operation=message.operation)
            self.begin(Work.INSTALL, message.spec)

    def installed(self, outcome: Installed | InstallationFailed) -> None:
        if self.state.phase is Phase.STOPPING:
            return
        operation = self.state.install_operation
        match outcome:
            case Installed(pending_restart):
                self.tell(ConfigurationInstalled(operation, pending_restart))
            case InstallationFailed(error):
                self.tell(ConfigurationInstallFailed(operation, error))

    def settle_configuration(self, message: SettleConfiguration) -> None:
        if self.state.work & _WRITING or isinstance(self.state.after_settling, _WRITERS):
            return  # it is overtaken
        if Work.SETTLE in self.state.work:
            self.set(after_settling=message)
        else:
            self.begin(Work.SETTLE, message.spec, subscribers=message.subscribers)

    def promote(self, message: PromotePostgres) -> None:
        if self.state.work & _WRITING or isinstance(self.state.after_settling, _WRITERS):
            text = "a configuration is being installed: try again"
            self.tell(PostgresPromotionFailed(message.operation, text))
        elif Work.SETTLE in self.state.work:
            self.set(after_settling=message)
        else:
            self.set(promote_operation=message.operation, work=self.state.work | {Work.PROMOTE})
            self.effects.append(Begin(Work.PROMOTE, message.spec, wal_flush_lsn=message.wal_flush_lsn))

    def promoted(self, outcome: BecamePrimary | NotPromoted) -> None:
        if self.state.phase is Phase.STOPPING:
            return
        operation = self.state.promote_operation
        match outcome:
            case BecamePrimary(lsn_wait_time_ms, pg_promote_time_ms):
                self.tell(PostgresPromoted(operation, lsn_wait_time_ms, pg_promote_time_ms))
            case NotPromoted(error):
                self.tell(PostgresPromotionFailed(operation, error))

    def settled(self) -> None:
        following = self.state.after_settling
        self.set(after_settling=None)
        match following:
            case InstallConfiguration() if self.state.phase is Phase.RUNNING:
                self.install(following)
            case PromotePostgres() if self.state.phase is Phase.RUNNING:
                self.promote(following)
            case InstallConfiguration() | PromotePostgres() if self.state.phase is not Phase.STOPPING:
                self.refuse(following)
            case SettleConfiguration() if self.state.phase is Phase.RUNNING:
                self.settle_configuration(following)
            case _:
                pass

    # --- The postmaster's life

    def launched(self, pid: int, *, recovering: bool) -> None:
        self.set(pid=pid)
        self.begin(Work.AWAIT_EXIT)
        self.look_at_disk()
        if self.state.phase is Phase.STOPPING:
            self.climb(StopRung.FAST)
            return
        self.set(recovering=recovering)
        if recovering:
            self.tell(ConditionRaised(Condition.RECOVERING, RECOVERING_DETAIL))
        self.begin(Work.AWAIT_READY, limit_s=None if recovering else self.state.start_timeout_s)

    def ready(self) -> None:
        if self.state.phase is not Phase.STARTING or self.state.pid is None:
            return
        self.set(phase=Phase.RUNNING)
        self.recovered()
        self.tell(PostgresReady(self.state.operation, self.state.pid, self.took_ms))

    def recovered(self) -> None:
        if self.state.recovering:
            self.set(recovering=False)
            self.tell(ConditionCleared(Condition.RECOVERING))

    def not_ready(self, error: str | None) -> None:
        """End a postmaster that will not do; the start has failed when it is gone."""
        if error is None or self.state.phase is not Phase.STARTING or self.state.pid is None:
            return
        self.set(fault=error)
        self.new_ladder(self.now_s + NOT_READY_BUDGET_S)
        self.climb(StopRung.IMMEDIATE)

    def start_failed(self, error: str) -> None:
        if self.state.phase is Phase.STARTING:
            self.set(phase=Phase.GONE)
            self.tell(PostgresStartFailed(self.state.operation, error))

    def ended(self, description: str, *, failed: bool) -> None:
        self.set(pid=None)
        self.recovered()
        self.cancel(Work.AWAIT_READY, Work.COMPARE, Work.INSTALL, Work.PROMOTE, Work.SETTLE)
        self.begin(Work.CORES)
        match self.state.phase:
            case Phase.STARTING:
                fault = self.state.fault
                self.start_failed(description if fault is None else f"{fault}; {description}")
            case Phase.RUNNING:
                self.set(phase=Phase.GONE)
                self.tell(PostgresExited(description))
            case Phase.STOPPING if failed and self.state.ladder is not None:
                forced = self.state.ladder.reached is not StopRung.FAST
                self.set(trouble=None if forced else description)
            case _:
                pass

    # --- The disk

    def disk(self, message: DiskDue | SpaceRefused | DiskSeen | DiskUnknown) -> None:
        match message:
            case DiskDue(number):
                if number == self.state.disk_looks:
                    self.look_at_disk()
            case SpaceRefused():
                self.set(disk=msgspec.structs.replace(self.state.disk, said_s=self.now_s))
                self.look_at_disk()
            case DiskSeen(areas):
                self.disk_seen(areas)
            case DiskUnknown(error):
                self.disk_unknown(error)

    def look_at_disk(self) -> None:
        if self.state.pid is not None and Work.DISK not in self.state.work:
            self.begin(Work.DISK)

    def disk_seen(self, areas: tuple[Area, ...]) -> None:
        before = self.state.disk
        after = judge(before, areas, self.now_s)
        self.set(disk=after, disk_unknown=False)
        self.effects.append(Show(areas))
        if self.state.pid is None:
            return
        if after.detail is not None and before.detail is None:
            self.effects.append(Log(logging.ERROR, f"the disk is full: {after.detail}"))
            self.tell(ConditionRaised(Condition.DISK_FULL, after.detail))
        elif after.detail is None and before.detail is not None:
            self.effects.append(Log(logging.INFO, "the disk has room again"))
            self.tell(ConditionCleared(Condition.DISK_FULL))
        is_well = after.detail is None and after.said_s is None
        self.plan_look(DISK_EVERY_S if is_well else DISK_FULL_EVERY_S)

    def plan_look(self, after_s: float) -> None:
        self.set(disk_looks=self.state.disk_looks + 1)
        self.effects.append(Remind(after_s, DiskDue(self.state.disk_looks)))

    def disk_unknown(self, error: str) -> None:
        if not self.state.disk_unknown:
            text = f"whether the disk is full cannot be told, and is not watched meanwhile: {error}"
            self.effects.append(Log(logging.WARNING, text))
        self.set(disk_unknown=True)
        self.plan_look(DISK_EVERY_S)

    # --- Stopping

    def stop(self, budget_s: float, *, hurry: bool) -> None:
        if self.state.phase is Phase.STOPPING:
            self.join(budget_s, hurry=hurry)
            return
        ending, never_began = self.state.ladder, self.state.phase is Phase.IDLE
        self.set(phase=Phase.STOPPING, tidied=self.state.tidied or never_began)
        self.new_ladder(self.now_s + budget_s)
        self.effects.append(Remind(budget_s, BudgetSpent(self.state.ladders)))
        self.cancel(*sorted(ENDED_BY_A_STOP, key=lambda work: work.value))
        if self.state.pid is not None:
            reached = StopRung.NOT_RUNNING if ending is None else ending.reached
            self.climb(StopRung.FAST if reached is StopRung.NOT_RUNNING else next_rung(reached))

    def join(self, budget_s: float, *, hurry: bool) -> None:
        ladder = self.state.ladder
        if not hurry or ladder is None:
            return
        self.new_ladder(min(ladder.deadline_s, self.now_s + budget_s), ladder.reached)
        self.effects.append(Remind(budget_s, BudgetSpent(self.state.ladders)))
        if self.state.pid is not None:
            self.climb(next_rung(ladder.reached))

    def new_ladder(self, deadline_s: float, reached: StopRung = StopRung.NOT_RUNNING) -> None:
        number = self.state.ladders + 1
        self.set(ladders=number, ladder=Ladder(number, deadline_s, reached))

    def climb(self, first: StopRung | None) -> None:
        """Step on this rung now and plan those above it within what is left of the budget."""
        ladder = self.state.ladder
        if ladder is None or first is None:
            return
        for rung, due_s in rungs(ladder.deadline_s - self.now_s, first):
            if rung is first:
                self.step_on(rung)
            else:
                self.effects.append(Remind(due_s, RungDue(ladder.number, rung)))

    def rung_due(self, number: int, rung: StopRung) -> None:
        ladder = self.state.ladder
        if ladder is not None and ladder.number == number and self.state.pid is not None:
            self.effects.append(Log(logging.WARNING, f"Postgres has not stopped yet: {_STEPS[rung]}"))
            self.step_on(rung)

    def step_on(self, rung: StopRung) -> None:
        assert self.state.ladder is not None  # noqa: S101 - callers have made one
        self.set(ladder=msgspec.structs.replace(self.state.ladder, reached=rung))
        if rung is not StopRung.KILL:
            self.effects.append(Send(rung))
        elif Work.KILL not in self.state.work:
            self.begin(Work.KILL)

    def settle(self) -> None:
        """Once nothing runs any more: clean up, once; then say that it has stopped."""
        state = self.state
        if state.phase not in {Phase.STOPPING, Phase.GONE} or state.pid is not None:
            return
        if not state.tidied and not state.work - {Work.LOGS, Work.CORES, Work.CHECK, Work.DISK}:
            self.set(tidied=True)
            self.begin(Work.TIDY)
        # A file system that does not answer holds up nothing.
        if self.state.phase is Phase.STOPPING and self.state.tidied and not self.state.work - {Work.DISK}:
            reached = StopRung.NOT_RUNNING if state.ladder is None else state.ladder.reached
            self.set(phase=Phase.GONE, ladder=None)
            self.tell(PostgresStopped(reached, state.trouble))


_WRITING: Final = frozenset({Work.INSTALL, Work.PROMOTE})
_WRITERS: Final = (InstallConfiguration, PromotePostgres)
"""What writes the configuration of a running Postgres: one at a time."""

_STEPS: Final = {
    StopRung.FAST: "asking for a fast shutdown",
    StopRung.IMMEDIATE: "asking for an immediate shutdown, without a checkpoint",
    StopRung.KILL: "killing it",
}

"""What the Supervisor decides: whole lives, message by message, without actors."""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import pytest
from compute_node.actors.kit.effects import After, Log, Never
from compute_node.actors.kit.turn import Moment
from compute_node.actors.supervisor.decisions import DECIDED, decide
from compute_node.actors.supervisor.effects import (
    CONFIGURATOR,
    HTTP,
    LEASE,
    LFC,
    MONITOR,
    POSTGRES,
    VM,
    Answer,
    DumpJournal,
    Effect,
    Publish,
    ReadConfiguration,
    Tell,
)
from compute_node.actors.supervisor.private import (
    CheckpointOverdue,
    ClosingOverdue,
    ConfigurationGraceEnded,
    ConfigurationReread,
    HeadStartEnded,
    LingerEnded,
    RefreshDue,
    StopOverdue,
    SyncOverdue,
)
from compute_node.actors.supervisor.state import Cause, NodeState, Phase, node_status, readiness
from compute_node.actors.supervisor.turn import Decision
from compute_node.messages.activity import ActivityObserved, StartMonitoring, StopMonitoring
from compute_node.messages.base import Message, Request, decode, encode
from compute_node.messages.catalog import (
    ApplyFailed,
    ApplySpec,
    CancelApply,
    Checkpoint,
    CheckpointEnded,
    CollectExtensions,
    MakeReady,
    RunMigrations,
    SpecApplied,
    StopUpkeep,
)
from compute_node.messages.lease import KeepLease, LeaseRefused, ReleaseLease
from compute_node.messages.lfc import (
    CacheLost,
    FollowSpec,
    LastOffloadEnded,
    OffloadLast,
    PrewarmStatus,
    StopLfc,
)
from compute_node.messages.lifecycle import (
    ActorFailed,
    AwaitExit,
    Boot,
    Condition,
    ConditionCleared,
    ConditionRaised,
    Configure,
    Configured,
    ConfigureFailed,
    ConfigureRefused,
    ExitReport,
    RefreshConfiguration,
    RefreshTaken,
    RereadConfiguration,
    ShutdownMode,
    SignalReceived,
    Status,
    StatusChanged,
    Terminate,
    Terminated,
    TerminateFailed,
    WrongStatus,
)
from compute_node.messages.postgres import (
    CheckConfiguration,
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    InspectPgdata,
    InstallConfiguration,
    PgdataFailed,
    PgdataInspected,
    PgdataKind,
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
from compute_node.messages.promotion import (
    PostgresPromoted,
    PostgresPromotionFailed,
    Promote,
    Promoted,
    PromoteFailed,
    PromotePostgres,
    PromoteRefused,
)
from compute_node.messages.secret import Secret
from compute_node.messages.serving import (
    ServingFailed,
    ServingStarted,
    ServingStopped,
    StartServing,
    StopServing,
)
from compute_node.messages.settings import SourceName
from compute_node.messages.spec import Cluster, ComputeSpec, GenericOption, StaticMode
from compute_node.messages.vm import (
    PrepareVm,
    StartVmMonitor,
    StopVmMonitor,
    VmPreparationFailed,
    VmPrepared,
)
from msgspec.structs import replace

from doubles.specs import a_spec, settings, with_role

E = TypeVar("E")
M = TypeVar("M", bound=Message)

FAST, IMMEDIATE = ShutdownMode.FAST, ShutdownMode.IMMEDIATE


HEARERS: dict[str, tuple[type[Message], ...]] = {
    POSTGRES: (
        InspectPgdata,
        CheckConfiguration,
        PreparePgdata,
        StartPostgres,
        InstallConfiguration,
        PromotePostgres,
        SettleConfiguration,
        StopPostgres,
        WarmMemory,
        SyncSafekeepers,
    ),
    CONFIGURATOR: (
        MakeReady,
        ApplySpec,
        CancelApply,
        Checkpoint,
        RunMigrations,
        CollectExtensions,
        StopUpkeep,
    ),
    LEASE: (KeepLease, ReleaseLease),
    MONITOR: (StartMonitoring, StopMonitoring),
    HTTP: (StartServing, StopServing),
    LFC: (CacheLost, FollowSpec, OffloadLast, StopLfc),
    VM: (PrepareVm, StartVmMonitor, StopVmMonitor),
}
LEVELS = {logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR}


def assert_well_formed(decision: Decision) -> None:
    """Check what holds for every decision: all values are of their types, and who is told understands it."""
    assert decode(NodeState, encode(decision.state)) == decision.state
    for effect in decision.effects:
        match effect:
            case Tell(to, message):
                assert type(message) in HEARERS[to]
                assert decode(type(message), encode(message)) == message
            case Publish(message) | After(_, message) | Answer(_, message):
                assert decode(type(message), encode(message)) == message
            case Never(kind):
                assert issubclass(kind, Message)
            case Log(level, text):
                assert level in LEVELS
                assert text
            case DumpJournal(level):
                assert level in LEVELS
            case ReadConfiguration(waiters):
                assert all(isinstance(waiter, int) for waiter in waiters)
        if isinstance(effect, After):
            assert effect.delay_s > 0


class Life:
    """One node's life: hears messages, remembers what was told, answered and promised."""

    def __init__(self, **changes: object) -> None:
        self.state = NodeState(settings=settings(**changes), began_wall_s=1_000_000.0, began_s=100.0)
        self.now_s = 100.0
        self.told: list[tuple[str, Message]] = []
        self.effects: list[Effect] = []
        self.answers: dict[int, Any] = {}
        self.statuses: list[Status] = []
        self._waiters = 0

    def hear(self, *messages: Message) -> int:
        """Let messages happen; return the waiter's number of the last one, if it is a request."""
        for message in messages:
            waiter = None
            if isinstance(message, Request):
                self._waiters += 1
                waiter = self._waiters
            decision = decide(self.state, message, Moment(self.now_s, 1_000_000.0 + self.now_s), waiter)
            assert_well_formed(decision)
            self.state = decision.state
            self._remember(decision.effects)
        return self._waiters

    def _remember(self, effects: Iterable[Effect]) -> None:
        self.effects = list(effects)
        for effect in self.effects:
            if isinstance(effect, Tell):
                self.told.append((effect.to, effect.message))
            elif isinstance(effect, Answer):
                assert effect.waiter not in self.answers, "answered twice"
                self.answers[effect.waiter] = effect.value
            elif isinstance(effect, Publish):
                assert isinstance(effect.message, StatusChanged)
                self.statuses.append(effect.message.new)

    def last(self, kind: type[M]) -> M:
        """Return the last message of that kind that was told to anyone."""
        return next(message for _, message in reversed(self.told) if isinstance(message, kind))

    def has_told(self, kind: type[Message]) -> bool:
        return any(isinstance(message, kind) for _, message in self.told)

    def reminder(self, kind: type[Message]) -> float | None:
        """Return after how long the last message's decision wants to be reminded of `kind`."""
        delays = [e.delay_s for e in self.effects if isinstance(e, After) and isinstance(e.message, kind)]
        return delays[-1] if delays else None

    def logged(self) -> list[str]:
        """Return what the last message's decision logs."""
        return [effect.text for effect in self.effects if isinstance(effect, Log)]

    def status(self) -> Status:
        return self.state.status

    @property
    def operation(self) -> int:
        return self.state.operation


def booted(spec: ComputeSpec | None = None, **changes: object) -> Life:
    life = Life(**changes)
    life.hear(Boot(spec), PgdataInspected(PgdataKind.ABSENT), ServingStarted(3080, 3081))
    return life


def running(spec: ComputeSpec | None = None, **changes: object) -> Life:
    life = booted(spec or a_spec(), **changes)
    n = life.operation
    life.hear(
        ConfigurationAccepted(n),
        PgdataPrepared(n, kept=False, took_ms=7),
        PostgresReady(n, 42, 9),
        SpecApplied(n, 3, 5),
    )
    assert life.status() is Status.RUNNING
    return life


def reconfiguring(**changes: Any) -> tuple[Life, int]:
    life = running(**changes)
    waiter = life.hear(Configure(with_role("a")))
    life.hear(ConfigurationAccepted(life.operation))
    assert life.status() is Status.CONFIGURATION
    return life, waiter


# --- Boot and start ----------------------------------------------------------------------------------------


def test_the_folder_is_inspected_before_anything_is_served() -> None:
    life = Life()
    life.hear(Boot(a_spec()))
    assert life.told == [(POSTGRES, InspectPgdata())]


def test_a_second_inspection_changes_nothing() -> None:
    life = running()
    before = life.state
    life.hear(PgdataInspected(PgdataKind.ABSENT))
    assert (life.state, life.effects) == (before, [])


def test_a_refused_folder_ends_the_node_at_once_and_serves_nothing() -> None:
    life = Life()
    waiter = life.hear(AwaitExit())
    life.hear(Boot(a_spec()), PgdataRefused("it is not ours", 75))
    assert life.answers[waiter] == ExitReport(75, "it is not ours")
    assert not life.has_told(StartServing)


def test_with_a_spec_at_boot_the_status_is_never_empty_once_servers_start() -> None:
    life = Life()
    life.hear(Boot(a_spec()))
    assert life.status() is Status.INIT
    assert life.statuses[-1] is Status.INIT


@pytest.mark.parametrize(
    ("source", "head_start_s"),
    [(SourceName.INITDB, 0.03), (SourceName.UPSTREAM, 0.03), (SourceName.PAGESERVER, 0.6)],
)
def test_what_makes_pgdata_begins_before_what_is_heavy_is_loaded(
    source: SourceName, head_start_s: float
) -> None:
    life = Life(source=source)
    life.hear(Boot(a_spec(mode="Replica")), PgdataInspected(PgdataKind.ABSENT))
    assert life.has_told(PreparePgdata)
    assert not life.has_told(StartServing)
    assert life.reminder(HeadStartEnded) == pytest.approx(head_start_s)
    life.hear(HeadStartEnded())
    assert [message for _, message in life.told[-2:]] == [StartServing(), MakeReady()]


def test_the_head_start_of_a_start_that_is_quick_ends_with_it() -> None:
    life = Life(source=SourceName.PAGESERVER)
    life.hear(Boot(a_spec(mode="Replica")), PgdataInspected(PgdataKind.ABSENT))
    operation = life.state.operation
    life.hear(PgdataPrepared(operation, kept=False, took_ms=1), ConfigurationAccepted(operation))
    assert not life.has_told(StartServing)
    life.hear(PostgresReady(operation, 4711, 10))
    assert life.has_told(StartServing)
    life.hear(HeadStartEnded())
    assert len([message for _, message in life.told if message == StartServing()]) == 1


def test_without_a_spec_nothing_is_waited_for() -> None:
    life = Life()
    life.hear(Boot(None), PgdataInspected(PgdataKind.ABSENT))
    assert [message for _, message in life.told[-3:]] == [StartServing(), MakeReady(), WarmMemory()]
    cold = Life(warms_memory=False)
    cold.hear(Boot(None), PgdataInspected(PgdataKind.ABSENT))
    assert not cold.has_told(WarmMemory)


def test_a_node_that_closes_during_the_head_start_does_not_begin_to_serve() -> None:
    life = Life()
    life.hear(Boot(a_spec()), PgdataInspected(PgdataKind.ABSENT), SignalReceived("SIGTERM"))
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.has_told(StopServing)
    life.hear(HeadStartEnded())
    assert not life.has_told(StartServing)


def test_at_boot_preflight_and_pgdata_go_side_by_side_and_postgres_waits_for_both() -> None:
    life = booted(a_spec())
    assert life.last(CheckConfiguration).operation == life.last(PreparePgdata).operation == 1
    life.hear(PgdataPrepared(1, kept=True, took_ms=1))
    assert not life.has_told(StartPostgres)
    life.hear(ConfigurationAccepted(1))
    assert life.has_told(StartPostgres)


MACHINE: dict[str, Any] = {"resize_swap": True, "disk_quota_mount": "/mnt"}
SIZED = a_spec(swap_size_bytes=5, disk_quota_bytes=0)


@pytest.mark.parametrize(
    ("spec", "flags", "wanted"),
    [
        (SIZED, MACHINE, PrepareVm(1, 5, 0)),
        (SIZED, {"resize_swap": True}, PrepareVm(1, 5, None)),
        (SIZED, {"disk_quota_mount": "/mnt"}, PrepareVm(1, None, 0)),
        (SIZED, {}, None),
        (a_spec(), MACHINE, None),
    ],
)
def test_swap_and_quota_are_set_beside_pgdata_where_flag_and_spec_say_so_and_postgres_waits(
    spec: ComputeSpec, flags: dict[str, Any], wanted: PrepareVm | None
) -> None:
    life = booted(spec, **flags)
    assert [message for to, message in life.told if to == VM] == ([] if wanted is None else [wanted])
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=1))
    assert life.has_told(StartPostgres) is (wanted is None)
    if wanted is not None:
        life.hear(VmPrepared(7))
        assert not life.has_told(StartPostgres), "the outcome of something else"
        life.hear(VmPrepared(1))
        assert life.has_told(StartPostgres)


def test_the_machine_is_made_ready_also_for_a_spec_that_comes_later() -> None:
    life = booted(**MACHINE)
    life.hear(Configure(SIZED), ConfigurationAccepted(1))
    assert life.last(PrepareVm) == PrepareVm(1, 5, 0)
    life.hear(VmPrepared(1), PgdataPrepared(1, kept=False, took_ms=1))
    assert life.has_told(StartPostgres)
    life.hear(PostgresReady(1, 42, 9), SpecApplied(1, 3, 5))
    before = len(life.told)
    life.hear(Configure(a_spec(swap_size_bytes=9)), ConfigurationAccepted(2), ConfigurationInstalled(2))
    assert not [message for to, message in life.told[before:] if to == VM], "only before Postgres starts"


def test_a_machine_that_cannot_be_made_ready_fails_a_start_that_came_by_request_too() -> None:
    life = booted(**MACHINE)
    waiter = life.hear(Configure(SIZED))
    life.hear(ConfigurationAccepted(1), VmPreparationFailed(1, "failed to resize swap: no"))
    assert life.has_told(StopPostgres)
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.answers[waiter] == ConfigureFailed("failed to resize swap: no")


def test_a_machine_that_cannot_be_made_ready_fails_the_start() -> None:
    life = booted(SIZED, **MACHINE)
    life.hear(VmPreparationFailed(1, "failed to resize swap: no"))
    assert life.has_told(StopPostgres)
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.status() is Status.FAILED
    assert life.state.error == "failed to resize swap: no"
    assert life.last(StopVmMonitor) == StopVmMonitor()
    life.hear(VmPreparationFailed(1, "again"))
    assert life.state.error == "failed to resize swap: no"


@pytest.mark.parametrize(
    ("disabled", "resizes"), [(None, True), (False, True), (True, False)], ids=["absent", "false", "true"]
)
def test_the_vm_monitor_runs_from_running_until_postgres_is_gone(
    disabled: bool | None,  # noqa: FBT001 - a case of a table
    *,
    resizes: bool,
) -> None:
    spec = a_spec(disable_lfc_resizing=disabled)
    life = running(spec, autoscaling=True)
    assert [message for to, message in life.told if to == VM] == [StartVmMonitor(42, resizes)]
    life.hear(Configure(a_spec(disable_lfc_resizing=not disabled)), ConfigurationAccepted(2))
    life.hear(ConfigurationInstalled(2), SpecApplied(2, 0, 1), Terminate(IMMEDIATE))
    assert not life.has_told(StopVmMonitor), "the agent is served until Postgres is gone"
    life.hear(PostgresStopped(StopRung.FAST))
    assert [message for to, message in life.told if to == VM][1:] == [StopVmMonitor()]


def test_the_vm_monitor_ends_with_a_postgres_that_ends_unasked_and_is_not_there_without_autoscaling() -> None:
    life = running(autoscaling=True)
    life.hear(PostgresExited("it fell"))
    assert life.has_told(StopVmMonitor)
    plain = running()
    plain.hear(PostgresExited("it fell"))
    assert not [message for to, message in plain.told if to == VM]


def test_a_start_passes_its_stages_and_records_their_times() -> None:
    life = booted(a_spec())
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=70))
    life.hear(PostgresReady(1, 42, 90))
    assert life.last(ApplySpec) == ApplySpec(1, a_spec(), starting=True)
    life.now_s += 2
    life.hear(SpecApplied(1, 4, 20))
    assert life.status() is Status.RUNNING
    times = life.state.startup
    assert (times.start_postgres_ms, times.config_ms, times.total_startup_ms) == (90, 2000, 2000)
    assert life.last(StartMonitoring) == StartMonitoring(experimental=False)


def test_what_the_storage_took_is_recorded() -> None:
    life = booted(a_spec())
    life.hear(PgdataPrepared(1, kept=False, took_ms=70, stages=PgdataStages(1, 2, 3, 4, 5)))
    times = life.state.startup
    assert (times.sync_sk_check_ms, times.sync_safekeepers_ms, times.pageserver_connect_micros) == (1, 2, 3)
    assert (times.basebackup_ms, times.basebackup_bytes) == (4, 5)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (a_spec(), [RunMigrations(), CollectExtensions(at_once=True)]),
        (a_spec(skip_pg_catalog_updates=True), [CollectExtensions(at_once=True)]),
        (a_spec(mode="Replica"), [CollectExtensions(at_once=False)]),
        (a_spec(mode=StaticMode("0/1")), [CollectExtensions(at_once=False)]),
    ],
)
def test_upkeep_begins_when_the_node_runs_and_not_again_when_it_is_configured(
    spec: ComputeSpec, told: list[Message]
) -> None:
    life = booted(spec)
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=70), PostgresReady(1, 42, 90))
    before = len(life.told)
    life.hear(SpecApplied(1, 4, 20))
    assert life.status() is Status.RUNNING
    assert [message for to, message in life.told[before:] if to == CONFIGURATOR] == told
    life.hear(Configure(spec), ConfigurationAccepted(2), ConfigurationInstalled(2), SpecApplied(2, 0, 1))
    assert [message for to, message in life.told[before:] if type(message) is type(told[-1])] == told[-1:]


@pytest.mark.parametrize(
    "end",
    [Terminate(FAST), Terminate(IMMEDIATE), SignalReceived("SIGTERM"), PostgresExited("it fell")],
    ids=lambda message: str(message)[:28],
)
def test_upkeep_ends_before_postgres_does(end: Message) -> None:
    life = running()
    before = len(life.told)
    life.hear(end)
    told = [message for _, message in life.told[before:]]
    assert told[:3] == [StopLfc(), StopUpkeep(), StopMonitoring()]


def test_the_experimental_monitor_is_asked_for_by_feature() -> None:
    assert running(a_spec(features=("activity_monitor_experimental",))).last(StartMonitoring).experimental


@pytest.mark.parametrize(
    "failure",
    [
        ConfigurationRefused(1, "no such setting"),
        PgdataFailed(1, "no such setting"),
    ],
)
def test_a_start_that_fails_early_is_failed_with_its_cause_and_lingers(failure: Message) -> None:
    life = booted(a_spec())
    exit_waiter = life.hear(AwaitExit())
    life.hear(failure)
    assert life.status() is Status.INIT, "not failed before everything is gone"
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.status() is Status.FAILED
    assert node_status(life.state).error == "no such setting"
    assert life.reminder(LingerEnded) == 30
    life.hear(LingerEnded(), ServingStopped())
    assert life.answers[exit_waiter].code == 1


@pytest.mark.parametrize("failure", [PostgresStartFailed(1, "boom"), None])
def test_a_start_that_fails_late_stops_postgres_first(failure: Message | None) -> None:
    life = booted(a_spec())
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=1))
    if failure is None:
        life.hear(PostgresReady(1, 42, 1), ApplyFailed(1, "boom"))
    else:
        life.hear(failure)
    assert life.has_told(StopPostgres)
    life.hear(PostgresStopped(StopRung.FAST))
    assert (life.status(), life.state.error) == (Status.FAILED, "boom")


def test_sql_that_fails_while_the_disk_is_full_says_so_and_what_to_do() -> None:
    full = ConditionRaised(Condition.DISK_FULL, "/data has 0 MB left: free some space")
    life = booted(a_spec())
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=1), full)
    life.hear(PostgresReady(1, 42, 1), ApplyFailed(1, "could not write init file"))
    told = "could not write init file; the disk is full: /data has 0 MB left: free some space, then "
    assert life.state.error == f"{told}start the node again"
    life, waiter = reconfiguring()
    life.hear(full, ConfigurationInstalled(2), ApplyFailed(2, "could not write init file"))
    assert life.answers[waiter] == ConfigureFailed(f"{told}configure again")


def test_in_dev_nothing_lingers_long() -> None:
    life = booted(a_spec(), dev=True)
    life.hear(PgdataFailed(1, "boom"), PostgresStopped(StopRung.NOT_RUNNING))
    assert life.reminder(LingerEnded) == pytest.approx(0.3)


def test_a_server_that_cannot_be_bound_ends_the_start() -> None:
    life = Life()
    waiter = life.hear(AwaitExit())
    life.hear(Boot(a_spec()), PgdataInspected(PgdataKind.ABSENT), ServingFailed("port 3080 is taken"))
    assert life.has_told(StopPostgres)
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.has_told(StopServing)
    life.hear(ServingStopped())
    assert life.answers[waiter] == ExitReport(1, "port 3080 is taken")


# --- Configure ---------------------------------------------------------------------------------------------


def test_a_spec_for_an_empty_node_starts_it_and_is_answered_when_running() -> None:
    life = booted()
    life.now_s += 4
    waiter = life.hear(Configure(a_spec()))
    assert life.status() is Status.EMPTY, "preflight changes nothing"
    assert not life.has_told(PreparePgdata)
    life.hear(ConfigurationAccepted(1))
    assert life.statuses[1:] == [Status.CONFIGURATION_PENDING, Status.INIT]
    assert life.state.startup.wait_for_spec_ms == 4000
    life.hear(PgdataPrepared(1, kept=False, took_ms=1), PostgresReady(1, 4, 1), SpecApplied(1, 0, 1))
    assert isinstance(life.answers[waiter], Configured)
    assert life.answers[waiter].status.status is Status.RUNNING


def test_the_spec_of_a_request_is_that_of_the_node_from_when_it_is_accepted() -> None:
    life, _ = reconfiguring()
    assert life.state.spec == with_role("a")


def test_a_running_node_is_reconfigured_settings_first_and_sql_after() -> None:
    life, waiter = reconfiguring()
    assert isinstance(life.told[-1][1], InstallConfiguration)
    life.hear(ConfigurationInstalled(2, ("shared_buffers",)))
    assert life.told[-1] == (CONFIGURATOR, ApplySpec(2, with_role("a"), starting=False))
    life.hear(SpecApplied(2, 1, 1))
    assert isinstance(life.answers[waiter], Configured)
    assert life.statuses[-3:] == [Status.CONFIGURATION_PENDING, Status.CONFIGURATION, Status.RUNNING]


@pytest.mark.parametrize("life", [booted(), running()], ids=["empty", "running"])
def test_a_configuration_refused_in_preflight_changes_nothing(life: Life) -> None:
    before = (life.status(), life.state.spec, life.state.error)
    waiter = life.hear(Configure(with_role("a")))
    life.hear(ConfigurationRefused(life.operation, "setting foo: unknown"))
    assert life.answers[waiter] == ConfigureRefused("setting foo: unknown", bad_spec=True)
    assert (life.status(), life.state.spec, life.state.error) == before


@pytest.mark.parametrize("fails_at", ["install", "apply"])
def test_a_failed_reconfiguration_goes_back_to_running_with_its_error_until_the_next_success(
    fails_at: str,
) -> None:
    life, waiter = reconfiguring()
    if fails_at == "install":
        life.hear(ConfigurationInstallFailed(2, "no"))
    else:
        life.hear(ConfigurationInstalled(2), ApplyFailed(2, "no"))
    assert life.answers[waiter] == ConfigureFailed("no")
    assert (life.status(), life.state.error) == (Status.RUNNING, "no")
    again = life.hear(Configure(a_spec()))
    life.hear(ConfigurationAccepted(3), ConfigurationInstalled(3), SpecApplied(3, 0, 1))
    assert life.answers[again].status.error is None


@pytest.mark.parametrize("in_preflight", [True, False])
def test_an_identical_spec_joins_the_one_under_way_and_another_is_refused(*, in_preflight: bool) -> None:
    life = running()
    first = life.hear(Configure(with_role("a")))
    if not in_preflight:
        life.hear(ConfigurationAccepted(2))
    second = life.hear(Configure(with_role("a")))
    other = life.hear(Configure(with_role("b")))
    assert isinstance(life.answers[other], ConfigureRefused)
    assert not life.answers[other].bad_spec
    if in_preflight:
        life.hear(ConfigurationAccepted(2))
    life.hear(ConfigurationInstalled(2), SpecApplied(2, 0, 1))
    assert life.answers[first] == life.answers[second]


@pytest.mark.parametrize("status", ["init", "failed", "terminated", "termination_pending_fast"])
def test_a_spec_is_refused_with_the_status_where_it_cannot_be_taken(status: str) -> None:
    life = booted(a_spec()) if status in {"init", "failed"} else running()
    if status == "failed":
        life.hear(PgdataFailed(1, "x"), PostgresStopped(StopRung.NOT_RUNNING))
    elif status != "init":
        life.hear(Terminate(FAST))
        if status == "terminated":
            life.hear(PostgresStopped(StopRung.FAST))
    waiter = life.hear(Configure(with_role("z")))
    assert life.answers[waiter].error == f"invalid compute status: {status.replace('_', '-')}"


def test_a_late_outcome_of_an_earlier_operation_is_ignored() -> None:
    life, waiter = reconfiguring()
    life.hear(ApplyFailed(1, "old"), SpecApplied(1, 0, 0), ConfigurationRefused(1, "old"))
    assert life.status() is Status.CONFIGURATION
    assert waiter not in life.answers


def test_a_hangup_reads_the_file_and_configures_and_is_answered_like_a_request() -> None:
    life = running(config_path="/some/config.json")
    waiter = life.hear(RereadConfiguration())
    assert life.effects == [ReadConfiguration((waiter,))]
    life.hear(ConfigurationReread(spec=with_role("a"), waiters=(waiter,)))
    life.hear(ConfigurationAccepted(2), ConfigurationInstalled(2))
    assert waiter not in life.answers
    life.hear(SpecApplied(2, 0, 1))
    assert life.state.spec == with_role("a")
    assert isinstance(life.answers[waiter], Configured)


@pytest.mark.parametrize("error", ["bad", None])
def test_a_hangup_with_an_unusable_file_changes_nothing(error: str | None) -> None:
    life = running(config_path="/some/config.json")
    before = life.state
    waiter = life.hear(RereadConfiguration())
    life.hear(ConfigurationReread(error=error, waiters=(waiter,)))
    assert life.state == before
    why = "it has no spec; nothing is changed" if error is None else f"it could not be read again: {error}"
    assert life.answers[waiter] == ConfigureRefused(why, bad_spec=False)
    assert life.logged() == [f"the configuration file was not applied: {why}"]


def test_a_hangup_names_the_control_plane_where_the_configuration_came_from_there() -> None:
    life = running(control_plane_uri="http://plane")
    life.hear(RereadConfiguration(), ConfigurationReread(error="away"))
    why = "it could not be read again: away"
    assert life.logged() == [f"the configuration of the control plane was not applied: {why}"]


def test_a_hangup_that_comes_at_a_bad_time_is_refused_and_the_log_says_so() -> None:
    starting, ending, fileless = booted(a_spec(), config_path="/c"), running(config_path="/c"), running()
    ending.hear(Terminate(FAST))
    for life, why in (
        (starting, "invalid compute status: init"),
        (ending, "invalid compute status: termination-pending-fast"),
        (fileless, "there is no --config file"),
    ):
        waiter = life.hear(RereadConfiguration())
        if life is starting:
            life.hear(ConfigurationReread(spec=with_role("a"), waiters=(waiter,)))
        assert life.answers[waiter].error.startswith(why)
        assert any("was not applied" in effect.text for effect in life.effects if isinstance(effect, Log))


def test_an_empty_node_is_told_once_it_serves_and_one_with_a_spec_is_never_empty() -> None:
    life = Life()
    life.hear(Boot(None), PgdataInspected(PgdataKind.ABSENT))
    assert life.statuses == []
    life.hear(ServingStarted(3080, 3081))
    assert life.statuses == [Status.EMPTY]
    assert booted(a_spec()).statuses == [Status.INIT]


# --- Terminate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "linger"), [(FAST, 30), (IMMEDIATE, 0.3)])
def test_a_running_node_is_terminated_and_lingers_by_its_mode(mode: ShutdownMode, linger: float) -> None:
    life = running()
    exit_waiter = life.hear(AwaitExit())
    waiter = life.hear(Terminate(mode))
    if mode is FAST:
        assert life.told[-2:] == [(MONITOR, StopMonitoring()), (CONFIGURATOR, Checkpoint(5.0))]
        life.hear(CheckpointEnded())
        assert life.told[-1] == (POSTGRES, life.last(StopPostgres))
    else:
        assert life.told[-2:] == [(MONITOR, StopMonitoring()), (POSTGRES, life.last(StopPostgres))]
    assert waiter not in life.answers
    life.hear(PostgresStopped(StopRung.FAST))
    assert life.answers[waiter] == Terminated(lsn=None)
    assert life.status() is Status.TERMINATED
    assert life.reminder(LingerEnded) == linger
    life.hear(LingerEnded(), ServingStopped())
    assert life.answers[exit_waiter].code == 0


def test_the_stop_has_one_budget_of_which_postgres_gets_the_greater_part() -> None:
    life = running(stop_timeout_s=10.0)
    life.hear(Terminate(IMMEDIATE))
    assert 8 < life.last(StopPostgres).budget_s < 10


# --- The cache


def test_the_cache_follows_each_spec_that_comes_into_force() -> None:
    life = running()
    assert life.last(FollowSpec) == FollowSpec(a_spec(), starting=True)
    life.hear(Configure(with_role("a")))
    life.hear(ConfigurationAccepted(life.operation), ConfigurationInstalled(life.operation))
    life.hear(SpecApplied(life.operation, 1, 1))
    assert life.last(FollowSpec) == FollowSpec(with_role("a"), starting=False)


def test_the_cache_is_told_when_postgres_is_back_from_a_crash() -> None:
    life = running()
    life.hear(ConditionCleared(Condition.RECOVERING), ConditionRaised(Condition.POSTGRES_FROZEN))
    life.hear(ConditionCleared(Condition.POSTGRES_FROZEN), ConditionRaised(Condition.RECOVERING))
    assert not life.has_told(CacheLost)
    life.hear(ConditionCleared(Condition.RECOVERING))
    assert life.has_told(CacheLost)


@pytest.mark.parametrize("message", [Terminate(FAST), Terminate(IMMEDIATE), SignalReceived("SIGTERM")])
def test_unless_the_command_line_wants_it_nothing_is_saved_before_a_stop(message: Message) -> None:
    life = running()
    life.hear(message)
    assert life.has_told(StopLfc)
    assert not life.has_told(OffloadLast)


@pytest.mark.parametrize("error", [None, "a prewarm is under way"])
def test_before_a_stop_by_a_signal_the_cache_is_saved_once_more_while_postgres_serves(
    error: str | None,
) -> None:
    life = running(lfc_offload_on_stop=True)
    life.hear(SignalReceived("SIGTERM"))
    assert life.has_told(OffloadLast)
    assert not life.has_told(StopPostgres)
    assert not life.has_told(Checkpoint)
    life.now_s += 3
    life.hear(LastOffloadEnded(error))
    assert life.last(StopPostgres).budget_s < 25 - 3
    assert life.has_told(StopLfc)


@pytest.mark.parametrize("first", [LastOffloadEnded(), CheckpointEnded()], ids=lambda m: type(m).__name__)
def test_the_stop_waits_for_both_the_checkpoint_and_the_last_offload(first: Message) -> None:
    life = running(lfc_offload_on_stop=True)
    life.hear(Terminate(FAST))
    assert life.has_told(Checkpoint)
    assert life.has_told(OffloadLast)
    life.hear(first)
    assert not life.has_told(StopPostgres)
    life.hear(LastOffloadEnded() if isinstance(first, CheckpointEnded) else CheckpointEnded())
    assert life.has_told(StopPostgres)
    assert sum(isinstance(message, StopPostgres) for _, message in life.told) == 1


@pytest.mark.parametrize(
    "message",
    [
        CheckpointOverdue(),
        Terminate(IMMEDIATE),
        SignalReceived("SIGTERM"),
        PostgresExited("killed by SIGKILL"),
        ActorFailed(LFC, "KeyError"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_whatever_happens_to_the_last_offload_the_stop_comes_once(message: Message) -> None:
    life = running(lfc_offload_on_stop=True)
    life.hear(SignalReceived("SIGTERM"))
    assert life.reminder(CheckpointOverdue) == pytest.approx(5.5)
    life.hear(message, LastOffloadEnded(), CheckpointOverdue())
    assert sum(isinstance(message, StopPostgres) for _, message in life.told) == 1


def test_a_last_offload_that_failed_is_told_while_it_is_waited_for() -> None:
    said = "the state of the cache is not saved before the stop: storage is away"
    life = running(lfc_offload_on_stop=True)
    life.hear(Terminate(FAST), LastOffloadEnded(error="storage is away"))
    assert life.logged() == [said]
    life.hear(LastOffloadEnded(error="storage is away"))
    assert life.logged() == []
    fine = running(lfc_offload_on_stop=True)
    fine.hear(Terminate(FAST), LastOffloadEnded())
    assert fine.logged() == []


@pytest.mark.parametrize("stop", [Terminate(IMMEDIATE), ActorFailed(MONITOR, "KeyError")])
def test_there_is_no_last_offload_where_there_is_no_time_or_the_node_has_failed(stop: Message) -> None:
    life = running(lfc_offload_on_stop=True)
    life.hear(stop)
    assert not life.has_told(OffloadLast)
    assert life.has_told(StopPostgres)


def test_a_node_that_refreshes_its_spec_saves_its_cache_before_a_stop_as_any_that_serves() -> None:
    moved = neon("postgresql://ps2")
    for messages in ([], [fetched(error="the control plane is away")], [fetched(moved)]):
        life = refreshing(lfc_offload_on_stop=True)
        life.hear(*messages)
        life.hear(SignalReceived("SIGTERM"))
        assert life.has_told(OffloadLast), messages
        assert not life.has_told(StopPostgres)


@pytest.mark.parametrize("applied", [True, False])
def test_a_termination_that_has_waited_for_a_configuration_saves_the_cache_too(*, applied: bool) -> None:
    life, _ = reconfiguring(lfc_offload_on_stop=True)
    life.hear(Terminate(FAST))
    life.now_s += 5
    outcome = SpecApplied(life.operation, 1, 1) if applied else ApplyFailed(life.operation, "no")
    life.hear(ConfigurationInstalled(life.operation), outcome)
    assert life.has_told(OffloadLast)
    assert life.has_told(Checkpoint)
    assert life.reminder(CheckpointOverdue) == pytest.approx(0.2 * 20 + 0.5)
    assert not life.has_told(StopPostgres)


@pytest.mark.parametrize(
    "hurry",
    [
        [Terminate(IMMEDIATE)],
        [SignalReceived("SIGTERM"), SignalReceived("SIGTERM")],
        [ActorFailed(MONITOR, "KeyError")],
    ],
    ids=["immediate", "two signals", "dead actor"],
)
def test_a_termination_that_has_waited_and_is_in_a_hurry_stops_postgres_at_once(hurry: list[Message]) -> None:
    life, _ = reconfiguring(lfc_offload_on_stop=True)
    life.hear(Terminate(FAST), *hurry, ConfigurationGraceEnded())
    assert life.has_told(StopPostgres)
    assert not life.has_told(OffloadLast)


def checkpointing() -> Life:
    life = running()
    life.hear(Terminate(FAST))
    assert life.has_told(Checkpoint)
    assert not life.has_told(StopPostgres)
    return life


@pytest.mark.parametrize(
    "message",
    [
        CheckpointEnded(),
        CheckpointEnded("the connection was lost"),
        CheckpointOverdue(),
        Terminate(IMMEDIATE),
        SignalReceived("SIGTERM"),
        PostgresExited("killed by SIGKILL"),
        ActorFailed(CONFIGURATOR, "KeyError"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_whatever_happens_to_the_checkpoint_the_stop_comes_once_and_within_the_budget(
    message: Message,
) -> None:
    life = checkpointing()
    life.now_s += 3.0
    life.hear(message)
    stops = [told for _, told in life.told if isinstance(told, StopPostgres)]
    assert len(stops) == 1
    assert stops[0].budget_s < 25.0 - 3.0
    life.hear(CheckpointEnded(), CheckpointOverdue())
    assert [told for _, told in life.told if isinstance(told, StopPostgres)] == stops


def test_the_checkpoint_is_not_waited_for_beyond_its_limit_and_a_grace() -> None:
    life = checkpointing()
    limit_s = life.last(Checkpoint).limit_s
    overdue = life.reminder(CheckpointOverdue)
    assert overdue is not None
    assert limit_s < overdue < limit_s + 2
    life.hear(CheckpointEnded())
    assert Never(CheckpointOverdue) in life.effects


@pytest.mark.parametrize(
    ("error", "said"), [(None, []), ("it was lost", ["no checkpoint before the stop: it was lost"])]
)
def test_a_checkpoint_that_could_not_be_written_is_told_once(error: str | None, said: list[str]) -> None:
    life = checkpointing()
    life.hear(CheckpointEnded(error))
    assert [effect.text for effect in life.effects if isinstance(effect, Log)] == said
    life.hear(CheckpointEnded(error))
    assert [effect.text for effect in life.effects if isinstance(effect, Log)] == []


def test_a_checkpoint_gets_a_fifth_of_the_budget_if_that_is_a_second() -> None:
    life = running(stop_timeout_s=5.0)
    life.hear(Terminate(FAST))
    assert life.last(Checkpoint).limit_s == 1.0


def test_a_stop_after_a_checkpoint_that_took_everything_has_a_moment_still() -> None:
    life = checkpointing()
    life.now_s += 60.0
    life.hear(CheckpointOverdue())
    assert life.last(StopPostgres).budget_s < 1.0


def test_a_second_termination_fast_waits_for_the_same_checkpoint() -> None:
    life = checkpointing()
    life.hear(Terminate(FAST))
    assert not life.has_told(StopPostgres)
    assert sum(isinstance(told, Checkpoint) for _, told in life.told) == 1


@pytest.mark.parametrize(
    ("life", "message"),
    [
        (running(), Terminate(IMMEDIATE)),
        (running(), SignalReceived("SIGTERM")),
        (running(stop_timeout_s=4.0), Terminate(FAST)),
        (booted(a_spec()), Terminate(FAST)),
        (booted(), Terminate(FAST)),
    ],
    ids=["immediate", "signal", "short budget", "starting", "empty"],
)
def test_there_is_no_checkpoint_before_a_stop_that_is_in_a_hurry_or_where_none_can_be_written(
    life: Life, message: Message
) -> None:
    life.hear(message)
    assert life.has_told(StopPostgres)
    assert not life.has_told(Checkpoint)


def test_there_is_no_checkpoint_where_postgres_is_not_well() -> None:
    life = running()
    life.hear(ConditionRaised(Condition.DISK_FULL), Terminate(FAST))
    assert life.has_told(StopPostgres)
    assert not life.has_told(Checkpoint)


def test_an_empty_node_terminates_too() -> None:
    life = booted()
    waiter = life.hear(Terminate(FAST))
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.answers[waiter] == Terminated(lsn=None)


def test_a_failed_node_is_terminated_without_long_lingering_and_still_exits_with_failure() -> None:
    life = booted(a_spec())
    exit_waiter = life.hear(AwaitExit())
    life.hear(PgdataFailed(1, "x"), PostgresStopped(StopRung.NOT_RUNNING))
    waiter = life.hear(Terminate(FAST))
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.answers[waiter] == Terminated(lsn=None)
    assert life.reminder(LingerEnded) == pytest.approx(0.3)
    life.hear(LingerEnded(), ServingStopped())
    assert life.answers[exit_waiter].code == 1


def test_a_termination_during_the_start_cancels_it_and_tells_its_waiter() -> None:
    life = booted()
    configure = life.hear(Configure(a_spec()))
    life.hear(ConfigurationAccepted(1))
    waiter = life.hear(Terminate(IMMEDIATE))
    assert isinstance(life.answers[configure], ConfigureFailed)
    life.hear(PgdataPrepared(1, kept=False, took_ms=1), PostgresStopped(StopRung.NOT_RUNNING))
    assert life.answers[waiter] == Terminated(lsn=None)
    assert not life.has_told(StartPostgres)


def test_a_termination_during_preflight_refuses_the_configuration() -> None:
    life = running()
    configure = life.hear(Configure(with_role("a")))
    life.hear(Terminate(FAST))
    assert life.answers[configure] == ConfigureRefused(
        "invalid compute status: termination-pending-fast", bad_spec=False
    )


def test_a_termination_waits_for_a_configuration_that_ends_in_time() -> None:
    life, configure = reconfiguring()
    waiter = life.hear(Terminate(FAST))
    assert life.reminder(ConfigurationGraceEnded) == 5
    assert not life.has_told(StopPostgres)
    life.hear(ConfigurationInstalled(2), SpecApplied(2, 0, 1))
    assert isinstance(life.answers[configure], Configured)
    assert life.status() is Status.TERMINATION_PENDING_FAST
    life.hear(PostgresStopped(StopRung.FAST))
    assert life.answers[waiter] == Terminated(lsn=None)


def test_a_termination_cancels_a_configuration_that_takes_too_long() -> None:
    life, configure = reconfiguring()
    life.hear(ConfigurationInstalled(2))
    waiter = life.hear(Terminate(IMMEDIATE))
    life.now_s += 5
    life.hear(ConfigurationGraceEnded())
    assert life.has_told(CancelApply)
    assert isinstance(life.answers[configure], ConfigureFailed)
    assert life.status() is Status.TERMINATION_PENDING_IMMEDIATE
    life.hear(ApplyFailed(2, "cancelled"), PostgresStopped(StopRung.FAST))
    assert life.answers[waiter] == Terminated(lsn=None)


def test_a_second_termination_joins_and_immediate_shortens_fast() -> None:
    life = running()
    first = life.hear(Terminate(FAST))
    second = life.hear(Terminate(IMMEDIATE))
    assert life.status() is Status.TERMINATION_PENDING_IMMEDIATE
    life.hear(PostgresStopped(StopRung.FAST))
    assert life.answers[first] == life.answers[second] == Terminated(lsn=None)
    assert life.reminder(LingerEnded) == pytest.approx(0.3)


def test_a_terminated_node_repeats_its_answer_and_stops_lingering() -> None:
    life = running()
    life.hear(Terminate(FAST), PostgresStopped(StopRung.FAST))
    waiter = life.hear(Terminate(FAST))
    assert life.answers[waiter] == Terminated(lsn=None, repeated=True)
    assert life.has_told(StopServing)


def test_the_kill_rung_is_a_failure_of_the_exit_code() -> None:
    life = running()
    exit_waiter = life.hear(AwaitExit())
    life.hear(Terminate(IMMEDIATE), PostgresStopped(StopRung.KILL), LingerEnded(), ServingStopped())
    assert life.answers[exit_waiter].code == 1


def test_a_stop_that_postgres_calls_a_failure_is_one_of_the_exit_code() -> None:
    life = running()
    exit_waiter = life.hear(AwaitExit())
    stopped = PostgresStopped(StopRung.FAST, "exit code 1; No space left on device")
    terminate = life.hear(Terminate(IMMEDIATE), stopped)
    assert life.state.status is Status.TERMINATED
    life.hear(LingerEnded(), ServingStopped())
    assert life.answers[exit_waiter].code == 1
    assert "No space left on device" in life.answers[exit_waiter].reason
    assert terminate in life.answers


def test_a_stop_that_is_never_reported_is_given_up_and_every_waiter_is_answered() -> None:
    life = running(stop_timeout_s=10.0)
    exit_waiter, waiter = life.hear(AwaitExit()), life.hear(Terminate(IMMEDIATE))
    overdue = life.reminder(StopOverdue)
    assert overdue is not None
    assert life.last(StopPostgres).budget_s < overdue < 10
    life.hear(StopOverdue())
    assert waiter in life.answers
    assert exit_waiter not in life.answers, "the answer is on its way"
    life.hear(ServingStopped())
    assert life.answers[exit_waiter].code == 1


# --- Signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("life", [booted(), booted(a_spec()), running()], ids=["empty", "init", "running"])
def test_a_signal_stops_the_node_in_order_without_lingering(life: Life) -> None:
    exit_waiter = life.hear(AwaitExit())
    life.hear(SignalReceived("SIGTERM"))
    assert life.has_told(StopPostgres)
    life.hear(PostgresStopped(StopRung.FAST))
    assert life.has_told(StopServing)
    life.hear(ServingStopped())
    assert life.answers[exit_waiter].code == 0


def test_a_second_signal_skips_a_rung() -> None:
    life = running()
    life.hear(SignalReceived("SIGTERM"))
    assert not life.last(StopPostgres).hurry
    life.hear(SignalReceived("SIGTERM"))
    assert life.last(StopPostgres).hurry


def test_a_second_signal_does_not_wait_for_a_configuration() -> None:
    life, configure = reconfiguring()
    life.hear(SignalReceived("SIGTERM"))
    assert not life.has_told(StopPostgres)
    life.hear(SignalReceived("SIGTERM"))
    assert configure in life.answers
    assert life.has_told(StopPostgres)


def test_a_signal_takes_the_lingering_of_a_termination_away() -> None:
    life = running()
    waiter = life.hear(Terminate(FAST))
    life.hear(SignalReceived("SIGTERM"))
    assert not life.last(StopPostgres).hurry
    life.hear(PostgresStopped(StopRung.FAST))
    assert waiter in life.answers
    assert life.state.phase is Phase.CLOSING


def test_a_signal_before_the_folder_is_inspected_ends_the_node() -> None:
    life = Life()
    exit_waiter = life.hear(AwaitExit())
    life.hear(Boot(a_spec()), SignalReceived("SIGINT"), PgdataInspected(PgdataKind.ABSENT))
    assert not life.has_told(StartServing)
    life.hear(PostgresStopped(StopRung.NOT_RUNNING), ServingStopped())
    assert life.answers[exit_waiter].code == 0


def test_a_signal_while_a_failed_start_is_being_stopped_ends_it_without_lingering_and_with_failure() -> None:
    life = booted(a_spec())
    exit_waiter = life.hear(AwaitExit())
    life.hear(PgdataFailed(1, "x"), SignalReceived("SIGTERM"), PostgresStopped(StopRung.NOT_RUNNING))
    assert life.state.phase is Phase.CLOSING
    life.hear(ServingStopped())
    assert life.answers[exit_waiter].code == 1


def test_servers_that_do_not_close_do_not_hold_the_end_up() -> None:
    life = running()
    exit_waiter = life.hear(AwaitExit())
    life.hear(SignalReceived("SIGTERM"), PostgresStopped(StopRung.FAST), ClosingOverdue())
    assert life.answers[exit_waiter].code == 0


# --- What goes wrong ---------------------------------------------------------------------------------------


def test_postgres_ending_unasked_fails_the_node_whatever_its_exit_code() -> None:
    life = running()
    exit_waiter = life.hear(AwaitExit())
    life.hear(PostgresExited("exit code 0"))
    assert life.status() is Status.FAILED
    assert "exit code 0" in (life.state.error or "")
    assert life.last(StopMonitoring) == StopMonitoring()
    assert life.reminder(LingerEnded) == 5
    life.hear(LingerEnded())
    assert life.has_told(StopPostgres), "what Postgres left is cleared away first"
    life.hear(PostgresStopped(StopRung.NOT_RUNNING), ServingStopped())
    assert life.status() is Status.FAILED
    assert life.answers[exit_waiter].code == 1


def test_a_signal_after_postgres_ended_unasked_still_clears_away_what_it_left() -> None:
    life = running()
    exit_waiter = life.hear(AwaitExit())
    life.hear(PostgresExited("exit code 2"), SignalReceived("SIGTERM"))
    assert life.has_told(StopPostgres)
    assert not life.has_told(StopServing)
    life.hear(PostgresStopped(StopRung.NOT_RUNNING), ServingStopped())
    assert life.answers[exit_waiter].code == 1


def test_postgres_ending_unasked_answers_a_configuration_and_a_queued_termination() -> None:
    life, configure = reconfiguring()
    waiter = life.hear(Terminate(FAST))
    life.hear(PostgresExited("killed by SIGKILL"))
    assert isinstance(life.answers[configure], ConfigureFailed)
    assert life.answers[waiter] == Terminated(lsn=None)
    assert life.status() is Status.FAILED


def test_postgres_ending_while_the_order_to_stop_is_on_its_way_is_a_failure_but_the_stop_completes() -> None:
    life = running()
    exit_waiter, waiter = life.hear(AwaitExit()), life.hear(Terminate(IMMEDIATE))
    life.hear(PostgresExited("exit code 1"), PostgresStopped(StopRung.NOT_RUNNING))
    assert life.answers[waiter] == Terminated(lsn=None)
    life.hear(LingerEnded(), ServingStopped())
    assert life.answers[exit_waiter].code == 1


@pytest.mark.parametrize("actor", [MONITOR, CONFIGURATOR, HTTP, LFC])
def test_a_dead_actor_stops_postgres_in_order_and_fails_the_node(actor: str) -> None:
    life = running()
    exit_waiter = life.hear(AwaitExit())
    life.hear(ActorFailed(actor, "KeyError: 1"))
    assert life.has_told(StopPostgres)
    life.hear(PostgresStopped(StopRung.FAST))
    assert life.status() is Status.FAILED
    assert actor in (node_status(life.state).error or "")
    life.hear(LingerEnded(), ServingStopped())
    assert life.answers[exit_waiter].code == 1


def test_a_dead_postgres_process_leaves_the_stop_to_the_last_resort_once_those_who_wait_have_their_answers() -> (
    None
):
    life, configure = reconfiguring()
    exit_waiter = life.hear(AwaitExit())
    life.hear(ActorFailed(POSTGRES, "KeyError: 1"))
    assert life.answers[configure] == ConfigureFailed("the actor postgres_process died: KeyError: 1")
    assert exit_waiter not in life.answers, "the answer is on its way"
    life.hear(ServingStopped())
    assert life.answers[exit_waiter].code == 1


def test_a_termination_of_a_node_that_gives_up_is_told_that_postgres_may_live() -> None:
    life = running()
    life.hear(ActorFailed(POSTGRES, "KeyError: 1"))
    waiter = life.hear(Terminate(FAST))
    assert life.answers[waiter] == TerminateFailed("the actor postgres_process died: KeyError: 1")


def test_a_dead_configurator_during_a_configuration_answers_its_waiter() -> None:
    life, configure = reconfiguring()
    life.hear(ConfigurationInstalled(2), ActorFailed(CONFIGURATOR, "boom"))
    assert isinstance(life.answers[configure], ConfigureFailed)
    assert life.has_told(StopPostgres)


# --- What is merely noted ----------------------------------------------------------------------------------


def test_the_last_activity_never_goes_back() -> None:
    life = running()
    life.hear(ActivityObserved(50.5), ActivityObserved(20.0))
    assert life.state.last_active_s == 50.5


def test_conditions_of_others_show_until_they_are_cleared_or_the_node_stops() -> None:
    life = running()
    assert readiness(life.state).ready
    life.hear(ConditionRaised(Condition.POSTGRES_FROZEN, "for 2 s"))
    assert [r.condition for r in readiness(life.state).conditions] == [Condition.POSTGRES_FROZEN]
    life.hear(ConditionCleared(Condition.POSTGRES_FROZEN))
    assert readiness(life.state).ready
    life.hear(ConditionRaised(Condition.POSTGRES_FROZEN), Terminate(FAST))
    assert [r.condition for r in readiness(life.state).conditions] == [Condition.STOPPING]


@pytest.mark.parametrize(
    ("life", "condition"),
    [
        (booted(), Condition.WAITING_FOR_SPEC),
        (booted(a_spec()), Condition.STARTING),
        (reconfiguring()[0], Condition.CONFIGURING),
    ],
)
def test_every_status_but_running_is_a_reason_not_to_be_ready(life: Life, condition: Condition) -> None:
    assert [report.condition for report in readiness(life.state).conditions] == [condition]


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (1752753600.0, "2025-07-17T12:00:00Z"),
        (1752753600.5, "2025-07-17T12:00:00.500Z"),
        (1752753600.000123, "2025-07-17T12:00:00.000123Z"),
    ],
)
def test_the_start_time_has_as_many_digits_as_it_needs(wall: float, text: str) -> None:
    assert node_status(NodeState(settings=settings(), began_wall_s=wall, began_s=0)).start_time == text


def test_ids_are_shown_in_lower_case_and_activity_with_an_offset() -> None:
    spec = a_spec(
        tenant_id="C9269C359E9A199FAD1EA0981246A78F", timeline_id="ece7de74d4b8cbe5433a68ce4d1b97b4"
    )
    life = running(spec)
    life.hear(ActivityObserved(1752753900.500123))
    shown = node_status(life.state)
    assert shown.tenant == "c9269c359e9a199fad1ea0981246a78f"
    assert shown.last_active == "2025-07-17T12:05:00.500123+00:00"


def test_every_message_that_is_decided_is_handled_in_every_phase_without_an_exception() -> None:
    samples: dict[type[Message], Message] = {}
    for kind in DECIDED:
        fields = {
            "operation": 1,
            "error": "e",
            "code": 1,
            "exit_code": 1,
            "spec": a_spec(),
            "signal": "SIGTERM",
        }
        fields |= {"kind": PgdataKind.ABSENT, "kept": True, "took_ms": 1, "pid": 1, "rung": StopRung.FAST}
        fields |= {
            "mode": FAST,
            "at_s": 1.0,
            "condition": Condition.DISK_FULL,
            "actor": MONITOR,
            "statements": 1,
        }
        fields |= {"lsn": "0/1", "description": "d", "external_port": 1, "internal_port": 2}
        fields |= {"description": "d", "external_port": 1, "internal_port": 2}
        fields |= {"lsn_wait_time_ms": 1, "pg_promote_time_ms": 1}
        samples[kind] = kind(**{name: fields[name] for name in kind.__struct_fields__ if name in fields})
    makers: list[Callable[[], Life]] = [Life, booted, partial(booted, a_spec()), running]
    makers.append(lambda: reconfiguring()[0])
    makers.append(lambda: promoting(BY_SPEC)[0])
    makers.append(lambda: promoting(BY_FORM)[0])
    for make in makers:
        for message in samples.values():
            make().hear(message)


# --- What each end leaves, in full -------------------------------------------------------------------------


def test_a_start_tells_everybody_the_same_operation_and_spec_and_takes_the_times_of_its_stages() -> None:
    life = booted()
    life.now_s += 3
    life.hear(Configure(with_role("a", operation_uuid="u")))
    life.hear(ConfigurationAccepted(1, ("careful",)))
    assert Log(logging.WARNING, "careful") in life.effects
    assert (life.state.began_s, life.state.began_wall_s) == (103.0, 1_000_103.0)
    assert life.last(PreparePgdata) == PreparePgdata(1, with_role("a", operation_uuid="u"))
    life.now_s += 1
    life.hear(PgdataPrepared(1, kept=False, took_ms=70))
    assert life.last(StartPostgres) == StartPostgres(1, with_role("a", operation_uuid="u"))
    life.now_s += 1
    life.hear(PostgresReady(1, 42, 90))
    life.now_s += 1
    life.hear(SpecApplied(1, 4, 20))
    times = life.state.startup
    assert (times.wait_for_spec_ms, times.basebackup_ms, times.start_postgres_ms) == (3000, 70, 90)
    assert (times.config_ms, times.total_startup_ms) == (1000, 3000)


def test_a_reconfiguration_hands_on_what_awaits_a_restart_and_names_its_operation() -> None:
    life = running()
    wanted = with_role("a", operation_uuid="u-7")
    waiter = life.hear(Configure(wanted))
    life.hear(ConfigurationAccepted(2))
    assert life.told[-1] == (POSTGRES, InstallConfiguration(2, wanted))
    life.hear(ConfigurationInstalled(2, ("shared_buffers", "wal_level")))
    assert any(
        "shared_buffers, wal_level" in effect.text for effect in life.effects if isinstance(effect, Log)
    )
    life.hear(SpecApplied(2, 1, 1))
    assert life.answers[waiter].pending_restart == ("shared_buffers", "wal_level")
    assert any(effect.text.endswith("operation u-7") for effect in life.effects if isinstance(effect, Log))


def test_an_unexpected_failure_is_dumped_with_the_log_and_a_bad_spec_only_for_debugging() -> None:
    life = running()
    life.hear(ActorFailed("configurator", "boom"))
    assert DumpJournal(logging.INFO) in life.effects
    life.hear(ActorFailed("activity_monitor", "boom too"))
    assert not any(isinstance(effect, DumpJournal) for effect in life.effects), "once"
    life = booted(a_spec())
    life.hear(ConfigurationRefused(1, "no such setting"))
    assert DumpJournal(logging.DEBUG) in life.effects
    life = Life()
    life.hear(Boot(None), PgdataInspected(PgdataKind.ABSENT), ServingFailed("taken"))
    assert DumpJournal(logging.DEBUG) in life.effects


def test_a_change_of_status_tells_where_from_and_why() -> None:
    life = running()
    life.hear(PostgresExited("killed by SIGKILL"))
    error = "Postgres ended although nobody asked it to: killed by SIGKILL"
    assert Publish(StatusChanged(Status.RUNNING, Status.FAILED, error)) in life.effects


def test_a_dead_actor_ends_the_node_as_a_fast_termination_would() -> None:
    life = running()
    life.hear(ActorFailed("configurator", "boom"))
    assert life.state.ending is not None
    assert (life.state.ending.cause, life.state.ending.immediate) == (Cause.FAILURE, False)
    assert life.status() is Status.TERMINATION_PENDING_FAST
    waiter = life.hear(Terminate(FAST))
    life.hear(PostgresStopped(StopRung.FAST))
    assert life.answers[waiter] == Terminated(lsn=None)
    assert (life.status(), life.reminder(LingerEnded)) == (Status.FAILED, 5)
    assert life.state.error == "the actor configurator died: boom"
    assert life.state.ending.waiters == ()
    assert [effect.text for effect in life.effects if isinstance(effect, Log)] == [
        "Changing compute status from termination-pending-fast to failed"
    ]


def test_a_dead_actor_and_an_immediate_termination_do_not_linger() -> None:
    life = running()
    life.hear(ActorFailed("configurator", "boom"), Terminate(IMMEDIATE), PostgresStopped(StopRung.FAST))
    assert life.state.phase is Phase.CLOSING


@pytest.mark.parametrize(("actor", "over"), [("http_facade", True), ("activity_monitor", False)])
def test_an_actor_that_dies_while_the_node_lingers_ends_it(actor: str, *, over: bool) -> None:
    life = running()
    life.hear(PostgresExited("it fell"))
    assert life.state.phase is Phase.LINGERING
    life.hear(ActorFailed(actor, "boom"))
    assert life.state.phase is (Phase.OVER if over else Phase.CLOSING)


@pytest.mark.parametrize("queued", [True, False])
def test_a_dead_actor_gives_a_configuration_up_and_tells_its_waiter_why(*, queued: bool) -> None:
    life, waiter = reconfiguring()
    if queued:
        life.hear(Terminate(FAST))
        assert life.status() is Status.CONFIGURATION
    life.hear(ActorFailed("activity_monitor", "boom"))
    assert life.answers[waiter] == ConfigureFailed("the actor activity_monitor died: boom")
    assert (CONFIGURATOR, CancelApply(2)) in life.told
    assert life.status() is Status.TERMINATION_PENDING_FAST


def test_a_start_is_not_broken_off_by_an_actors_death_but_by_the_stop_that_follows() -> None:
    life = booted(a_spec())
    life.hear(ActorFailed("activity_monitor", "boom"))
    assert not life.has_told(CancelApply)
    assert life.has_told(StopPostgres)


def test_signals_are_counted_and_the_second_leaves_postgres_what_is_left_of_the_budget() -> None:
    life = running()
    life.hear(SignalReceived("SIGTERM"))
    assert life.state.ending is not None
    assert (life.state.ending.cause, life.state.ending.signals) == (Cause.SIGNAL, 1)
    assert (life.state.ending.immediate, life.state.ending.deadline_s) == (False, 125.0)
    assert life.last(StopPostgres) == StopPostgres(budget_s=22.0, hurry=False)
    life.now_s += 10
    life.hear(SignalReceived("SIGTERM"))
    assert life.last(StopPostgres) == StopPostgres(budget_s=15.0, hurry=True)
    assert life.state.ending.signals == 2
    life.now_s += 14.75
    life.hear(SignalReceived("SIGTERM"))
    assert life.last(StopPostgres).budget_s == 0.5
    assert life.state.ending.signals == 3


def test_a_signal_during_a_termination_is_the_first_one_and_hurries_nobody() -> None:
    life = running()
    life.hear(Terminate(FAST), SignalReceived("SIGTERM"))
    assert life.state.ending is not None
    assert (life.state.ending.cause, life.state.ending.signals) == (Cause.SIGNAL, 1)
    assert not life.last(StopPostgres).hurry


def test_a_signal_while_the_servers_close_changes_nothing() -> None:
    life = running()
    life.hear(SignalReceived("SIGTERM"), PostgresStopped(StopRung.FAST))
    assert life.state.phase is Phase.CLOSING
    before = life.state
    life.hear(SignalReceived("SIGTERM"))
    assert life.state == before


def test_what_a_configuration_is_told_that_a_termination_broke_off() -> None:
    life, waiter = reconfiguring()
    life.hear(Terminate(FAST), ConfigurationGraceEnded())
    assert life.answers[waiter] == ConfigureFailed(
        "the configuration was broken off: the node is terminating"
    )
    assert life.told[-5:] == [
        (CONFIGURATOR, CancelApply(2)),
        (LFC, StopLfc()),
        (CONFIGURATOR, StopUpkeep()),
        (MONITOR, StopMonitoring()),
        (CONFIGURATOR, Checkpoint(5.0)),
    ]
    assert Never(ConfigurationGraceEnded) in life.effects
    assert life.state.ending is not None
    assert life.state.ending.queued is False


@pytest.mark.parametrize(("late_s", "budget_s"), [(5.0, 20.0 * 0.88), (24.5, 0.88)])
def test_a_termination_that_has_waited_gives_postgres_what_is_left(late_s: float, budget_s: float) -> None:
    life, _ = reconfiguring()
    life.hear(Terminate(FAST))
    life.now_s += late_s
    life.hear(ConfigurationGraceEnded(), CheckpointEnded("the spec is still being applied"))
    assert life.last(StopPostgres).budget_s == pytest.approx(budget_s)


def test_a_stop_never_gets_less_than_half_a_second() -> None:
    life = running(stop_timeout_s=0.1)
    life.hear(Terminate(FAST))
    assert life.last(StopPostgres).budget_s == 0.5
    assert life.reminder(StopOverdue) == 1.5


def test_an_immediate_termination_during_a_configuration_is_remembered() -> None:
    life, _ = reconfiguring()
    life.hear(Terminate(FAST), Terminate(IMMEDIATE))
    assert life.status() is Status.CONFIGURATION
    life.hear(ConfigurationGraceEnded())
    assert life.statuses[-2:] == [Status.RUNNING, Status.TERMINATION_PENDING_IMMEDIATE]


@pytest.mark.parametrize("mode", [FAST, IMMEDIATE])
def test_a_request_that_is_still_in_preflight_is_refused_in_the_words_of_the_termination(
    mode: ShutdownMode,
) -> None:
    life = running()
    waiter = life.hear(Configure(with_role("a")))
    life.hear(Terminate(mode))
    refused = f"invalid compute status: termination-pending-{mode.value}"
    assert life.answers[waiter] == ConfigureRefused(refused, bad_spec=False)


@pytest.mark.parametrize("error", [None, "no such setting"])
def test_a_start_that_a_termination_cancels_tells_its_own_error_or_the_termination(error: str | None) -> None:
    life = booted()
    waiter = life.hear(Configure(a_spec()))
    life.hear(ConfigurationAccepted(1))
    if error is not None:
        life.hear(PgdataFailed(1, error))
    life.hear(Terminate(FAST))
    told = error or "the start was cancelled: the node is terminating"
    assert life.answers[waiter] == ConfigureFailed(told)


def test_a_start_that_failed_tells_its_waiter_and_the_control_plane_how_long_it_may_ask() -> None:
    life = booted()
    waiter = life.hear(Configure(a_spec()))
    life.hear(ConfigurationAccepted(1), PgdataFailed(1, "disk full"), PostgresStopped(StopRung.NOT_RUNNING))
    assert life.answers[waiter] == ConfigureFailed("disk full")
    assert Never(StopOverdue) in life.effects
    told = "giving control plane 30s to collect the error before shutdown"
    assert Log(logging.INFO, told) in life.effects


def test_a_stopped_postgres_is_down_and_raises_nothing_any_more() -> None:
    life = running()
    life.hear(ConditionRaised(Condition.POSTGRES_FROZEN, "no answer"), Terminate(FAST))
    life.hear(PostgresStopped(StopRung.FAST))
    assert (life.state.postgres_up, life.state.raised, life.state.tidied) == (False, (), True)
    assert life.state.ending is not None
    assert life.state.ending.waiters == ()


def test_a_killed_postgres_is_the_reason_of_the_exit() -> None:
    life = running()
    waiter = life.hear(AwaitExit())
    life.hear(SignalReceived("SIGTERM"), PostgresStopped(StopRung.KILL), ServingStopped())
    assert life.answers[waiter] == ExitReport(1, "Postgres had to be killed")
    assert Never(ClosingOverdue) in life.effects


def test_a_stop_that_nobody_asked_for_is_noted_and_changes_no_status() -> None:
    life = running()
    life.hear(PostgresStopped(StopRung.FAST))
    assert life.status() is Status.RUNNING
    assert any(isinstance(effect, Log) and effect.level == logging.WARNING for effect in life.effects)


def test_a_stop_that_is_never_reported_is_the_reason_of_the_exit() -> None:
    life = running()
    waiter = life.hear(AwaitExit())
    ending = life.hear(Terminate(FAST))
    life.now_s += 22
    life.hear(StopOverdue(), ServingStopped())
    reason = "Postgres was not reported stopped within the stop budget"
    assert life.answers[waiter] == ExitReport(1, reason, stop_budget_s=3.0), (
        "the last resort gets what is left"
    )
    assert life.answers[ending] == TerminateFailed(reason)
    assert (life.state.phase, life.state.exit_waiters) == (Phase.OVER, ())
    life.now_s += 22
    asked_late = life.hear(AwaitExit())
    assert life.answers[asked_late] == ExitReport(1, reason, stop_budget_s=1.0)


def test_a_termination_refuses_a_configuration_in_preflight_with_the_reason() -> None:
    life = running()
    life.hear(Configure(with_role("a")))
    refused = life.hear(Configure(with_role("b")))
    assert life.answers[refused] == ConfigureRefused(
        "invalid compute status: configuration-pending", bad_spec=False
    )


def test_a_lost_postgres_leaves_nothing_under_way() -> None:
    life, waiter = reconfiguring()
    life.hear(ConditionRaised(Condition.DISK_FULL), Terminate(FAST))
    life.hear(PostgresExited("it fell"))
    assert (life.state.postgres_up, life.state.raised, life.state.ending) == (False, (), None)
    assert Never(ConfigurationGraceEnded) in life.effects
    assert (CONFIGURATOR, CancelApply(2)) in life.told
    assert (MONITOR, StopMonitoring()) in life.told
    assert life.answers[waiter] == ConfigureFailed("Postgres ended although nobody asked it to: it fell")
    assert life.reminder(LingerEnded) == 5


def test_a_postgres_that_is_lost_while_a_signal_waits_for_a_configuration_ends_the_node_once_it_is_tidy() -> (
    None
):
    life, _ = reconfiguring()
    life.hear(SignalReceived("SIGTERM"), PostgresExited("it fell"))
    assert life.has_told(StopPostgres), "what Postgres left is cleared away first"
    assert not life.has_told(StopServing)
    assert life.reminder(LingerEnded) is None
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.state.phase is Phase.CLOSING
    assert life.told[-1] == (HTTP, StopServing(1.0))
    assert life.reminder(ClosingOverdue) == 2.0


def test_a_postgres_that_ends_while_its_failed_start_is_being_stopped_is_waited_for() -> None:
    life = booted(a_spec())
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=1))
    life.hear(PostgresReady(1, 42, 1), ApplyFailed(1, "no"), PostgresExited("it fell"))
    assert life.status() is Status.INIT, "PostgresStopped follows"
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.status() is Status.FAILED


def test_a_lingering_that_a_termination_ends_is_forgotten() -> None:
    life = running()
    life.hear(PostgresExited("it fell"), Terminate(IMMEDIATE))
    assert Never(LingerEnded) in life.effects
    assert life.state.phase is Phase.UP
    assert life.statuses[-1] is Status.TERMINATION_PENDING_IMMEDIATE


def test_a_condition_that_is_raised_again_replaces_its_detail_and_leaves_the_others() -> None:
    life = running()
    life.hear(ConditionRaised(Condition.DISK_FULL, "wal"), ConditionRaised(Condition.POSTGRES_FROZEN, "1 s"))
    life.hear(ConditionRaised(Condition.POSTGRES_FROZEN, "2 s"))
    assert [(report.condition, report.detail) for report in life.state.raised] == [
        (Condition.DISK_FULL, "wal"),
        (Condition.POSTGRES_FROZEN, "2 s"),
    ]


def test_a_refused_folder_is_the_error_that_is_shown() -> None:
    life = Life()
    life.hear(Boot(a_spec()), PgdataRefused("it is not ours", 75))
    assert life.state.error == "it is not ours"


def test_a_server_that_cannot_be_bound_ends_the_node_by_failure_and_at_once() -> None:
    life = Life()
    life.hear(Boot(a_spec()), PgdataInspected(PgdataKind.ABSENT), ServingFailed("taken"))
    assert life.state.ending is not None
    assert (life.state.ending.cause, life.state.ending.immediate) == (Cause.FAILURE, True)
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    assert life.state.phase is Phase.CLOSING


def test_the_outcome_of_another_operation_is_ignored_in_the_right_step_too() -> None:
    life = booted(a_spec())
    life.hear(ConfigurationAccepted(7), PgdataPrepared(1, kept=False, took_ms=1))
    assert not life.has_told(StartPostgres)


def test_what_cannot_happen_is_noted_and_what_is_refused_or_queued_is_not() -> None:
    life, _ = reconfiguring()
    life.hear(Terminate(FAST))
    assert not any(isinstance(effect, Log) and "ignored" in effect.text for effect in life.effects)


def test_a_second_death_while_the_node_is_stopping_changes_nothing_about_the_stop() -> None:
    life = running()
    life.hear(ActorFailed("configurator", "boom"))
    told = len(life.told)
    life.hear(ActorFailed("activity_monitor", "boom too"))
    assert life.told[told:] == []


def test_a_start_that_was_given_up_is_not_given_up_again_as_a_configuration() -> None:
    life = booted()
    waiter = life.hear(Configure(a_spec()))
    life.hear(ConfigurationAccepted(1), ActorFailed("activity_monitor", "boom"))
    assert not life.has_told(CancelApply)
    assert life.answers[waiter] == ConfigureFailed("the actor activity_monitor died: boom")


def test_a_second_termination_of_the_same_mode_is_no_event() -> None:
    life = running()
    life.hear(Terminate(FAST))
    statuses = list(life.statuses)
    life.hear(Terminate(FAST))
    assert (life.statuses, life.effects) == (statuses, [])


def test_a_hangup_that_is_refused_is_the_nodes_status_and_not_a_bad_spec() -> None:
    life = running(config_path=None)
    waiter = life.hear(RereadConfiguration())
    assert life.answers[waiter] == ConfigureRefused("there is no --config file to read again", bad_spec=False)


def test_a_hangup_without_anybody_who_waits_is_carried_out() -> None:
    life = running(config_path="/c.json")
    decision = decide(life.state, RereadConfiguration(), Moment(0.0, 0.0), None)
    assert decision.effects == (ReadConfiguration(()),)
    decision = decide(life.state, Configure(with_role("a")), Moment(0.0, 0.0), None)
    assert decision.state.attempt is not None
    assert decision.state.attempt.waiters == ()
    decision = decide(life.state, Terminate(FAST), Moment(0.0, 0.0), None)
    assert decision.state.ending is not None
    assert decision.state.ending.waiters == ()


def test_the_end_of_lingering_is_forgotten_when_the_servers_close() -> None:
    life = running()
    life.hear(Terminate(FAST), PostgresStopped(StopRung.FAST), SignalReceived("SIGTERM"))
    assert Never(LingerEnded) in life.effects


def test_those_who_wait_for_a_termination_are_forgotten_once_they_are_answered() -> None:
    life = running()
    life.hear(Terminate(FAST), StopOverdue())
    assert life.state.ending is not None
    assert life.state.ending.waiters == ()


def test_a_postgres_that_ends_while_it_is_stopped_leaves_the_ending_as_it_is() -> None:
    life = running()
    life.hear(Terminate(FAST))
    waiters = [ending.waiters for ending in (life.state.ending,) if ending is not None]
    life.hear(PostgresExited("it fell"))
    assert [ending.waiters for ending in (life.state.ending,) if ending is not None] == waiters == [(1,)]
    assert life.status() is Status.TERMINATION_PENDING_FAST


def test_a_dead_actor_refuses_a_request_that_is_still_in_preflight() -> None:
    life = running()
    waiter = life.hear(Configure(with_role("a")))
    life.hear(ActorFailed("activity_monitor", "boom"))
    assert not life.has_told(CancelApply)
    assert isinstance(life.answers[waiter], ConfigureRefused)


def test_the_log_tells_the_stages_of_a_start_and_which_operation_was_configured() -> None:
    life = booted(a_spec())
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=70), PostgresReady(1, 42, 90))
    life.hear(SpecApplied(1, 3, 5))
    (finished,) = [
        effect.text for effect in life.effects if isinstance(effect, Log) and "finished" in effect.text
    ]
    assert '"basebackup_ms":70' in finished
    assert '"start_postgres_ms":90' in finished
    life.hear(
        Configure(with_role("a")), ConfigurationAccepted(2), ConfigurationInstalled(2), SpecApplied(2, 1, 1)
    )
    told = "finished reconfiguration of compute node for operation unknown"
    assert Log(logging.INFO, told) in life.effects


def test_servers_that_start_after_the_start_has_failed_announce_no_wait_for_a_spec() -> None:
    life = Life()
    life.hear(Boot(a_spec()), PgdataInspected(PgdataKind.ABSENT), PgdataFailed(1, "disk full"))
    life.hear(PostgresStopped(StopRung.NOT_RUNNING), ServingStarted(3080, 3081))
    assert life.effects == []


# --- What holds only while a spec is applied ---------------------------------------------------------------


@pytest.mark.parametrize("subscribers", [False, True])
def test_once_a_spec_was_applied_or_not_the_configuration_is_settled(*, subscribers: bool) -> None:
    for outcome in (SpecApplied(2, 0, 0, subscribers), ApplyFailed(2, "no", subscribers)):
        life, _ = reconfiguring()
        life.hear(ConfigurationInstalled(2))
        before = len(life.told)
        life.hear(outcome)
        assert (POSTGRES, SettleConfiguration(with_role("a"), subscribers)) in life.told[before:]


def test_a_start_settles_the_configuration_when_it_has_succeeded_only() -> None:
    assert running().last(SettleConfiguration).subscribers
    life = booted(a_spec())
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=1), PostgresReady(1, 42, 1))
    life.hear(ApplyFailed(1, "no"))
    assert not life.has_told(SettleConfiguration)


# --- Safekeepers after the end -----------------------------------------------------------------------------

STORED: dict[str, Any] = {"source": SourceName.PAGESERVER}
NOT_SYNCED = "the safekeepers were not synced after the end of Postgres: {}; the next start syncs them"


def stopped(mode: ShutdownMode = FAST, spec: ComputeSpec | None = None) -> tuple[Life, int]:
    """A node of Neon's storage that was terminated, and whose Postgres is gone; who waits for that."""
    life = running(spec, **STORED)
    waiter = life.hear(Terminate(mode))
    life.now_s += 5
    life.hear(PostgresStopped(StopRung.FAST))
    return life, waiter


def test_a_primary_of_neons_storage_syncs_its_safekeepers_before_anybody_is_told_that_it_has_ended() -> None:
    life, waiter = stopped()
    assert life.last(SyncSafekeepers) == SyncSafekeepers(a_spec(), 25 - 5 - 0.5)
    assert life.reminder(SyncOverdue) == pytest.approx(20.5)
    assert waiter not in life.answers
    assert life.status() is Status.TERMINATION_PENDING_FAST
    life.hear(SafekeepersSynced("0/28F10D8", 40))
    assert Never(SyncOverdue) in life.effects
    assert life.answers[waiter] == Terminated("0/28F10D8")
    assert life.status() is Status.TERMINATED
    assert life.state.startup.sync_safekeepers_ms == 40
    assert life.reminder(LingerEnded) == 30
    again = life.hear(Terminate(FAST))
    assert life.answers[again] == Terminated("0/28F10D8", repeated=True)


@pytest.mark.parametrize("synced", [True, False])
def test_a_stop_that_is_reported_twice_counts_once(*, synced: bool) -> None:
    """Whoever terminates a node whose failing start is just over orders a second stop."""
    life, waiter = stopped()
    exit_waiter = life.hear(AwaitExit())
    if synced:
        life.hear(SafekeepersSynced("0/28F10D8", 40), LingerEnded())
    life.hear(PostgresStopped(StopRung.NOT_RUNNING))
    if not synced:
        assert waiter not in life.answers
        life.hear(SafekeepersSynced("0/28F10D8", 40), LingerEnded())
    assert life.answers[waiter] == Terminated("0/28F10D8")
    life.hear(ServingStopped())
    assert life.answers[exit_waiter].code == 0


@pytest.mark.parametrize("changes", [STORED, {}], ids=["with safekeepers", "without"])
def test_a_stop_that_is_reported_after_it_was_given_up_holds_the_end_up_no_longer(
    changes: dict[str, Any],
) -> None:
    life = running(**changes)
    exit_waiter, waiter = life.hear(AwaitExit()), life.hear(Terminate(FAST))
    life.hear(StopOverdue(), PostgresStopped(StopRung.KILL))
    assert isinstance(life.answers[waiter], TerminateFailed)
    assert not life.has_told(SyncSafekeepers)
    life.hear(ServingStopped())
    assert life.answers[exit_waiter].code == 1
    assert life.answers[exit_waiter].stop_budget_s is None, "there is nothing left to stop"


def test_a_sync_that_fails_skips_nothing_of_the_rest() -> None:
    life, waiter = stopped()
    exit_waiter = life.hear(AwaitExit())
    life.hear(SafekeeperSyncFailed("no quorum"))
    assert life.answers[waiter] == Terminated(lsn=None)
    assert life.status() is Status.TERMINATED
    assert "not synced after the end of Postgres: no quorum" in (life.state.error or "")
    life.hear(LingerEnded(), ServingStopped())
    assert life.answers[exit_waiter].code == 0


def test_a_sync_that_nobody_reports_on_is_given_up() -> None:
    life, waiter = stopped()
    life.hear(SyncOverdue())
    assert life.answers[waiter] == Terminated(lsn=None)
    assert life.state.error == NOT_SYNCED.format("it was not reported over in time")
    life.hear(SafekeeperSyncFailed("late"))
    assert life.effects == []
    life.hear(SafekeepersSynced("0/1", 1))
    assert life.status() is Status.TERMINATED


def test_a_signal_breaks_a_sync_off_and_the_node_ends() -> None:
    life, waiter = stopped()
    life.hear(SignalReceived("SIGTERM"))
    assert life.answers[waiter] == Terminated(lsn=None)
    assert life.state.error == NOT_SYNCED.format("SIGTERM broke it off")
    assert life.has_told(StopServing)


def test_whoever_comes_during_a_sync_joins_and_immediate_shortens_the_lingering() -> None:
    life, first = stopped()
    second = life.hear(Terminate(IMMEDIATE))
    life.hear(SafekeepersSynced("0/1", 1))
    assert life.answers[first] == life.answers[second] == Terminated("0/1")
    assert life.reminder(LingerEnded) == pytest.approx(0.3)


def test_a_signal_and_a_dead_actor_sync_too() -> None:
    for end in (SignalReceived("SIGTERM"), ActorFailed(MONITOR, "KeyError")):
        life = running(**STORED)
        life.hear(end, PostgresStopped(StopRung.FAST))
        assert life.has_told(SyncSafekeepers)
        life.hear(SafekeepersSynced("0/1", 1))
        assert life.status() in {Status.TERMINATED, Status.FAILED}


def test_a_late_stop_leaves_the_sync_at_least_a_second() -> None:
    life = running(**STORED)
    life.hear(Terminate(FAST))
    life.now_s += 60
    life.hear(PostgresStopped(StopRung.KILL))
    assert life.last(SyncSafekeepers).budget_s == 1


@pytest.mark.parametrize("mode", ["Replica", StaticMode("0/1")], ids=["replica", "static"])
def test_only_a_primary_syncs_at_its_end(mode: object) -> None:
    life, waiter = stopped(spec=a_spec(mode=mode))
    assert not life.has_told(SyncSafekeepers)
    assert life.answers[waiter] == Terminated(lsn=None)


def test_a_local_cluster_and_a_start_that_was_cancelled_have_nothing_to_sync() -> None:
    local = running()
    local.hear(Terminate(FAST), PostgresStopped(StopRung.FAST))
    cancelled = booted(a_spec(), **STORED)
    cancelled.hear(Terminate(FAST), PostgresStopped(StopRung.NOT_RUNNING))
    assert not local.has_told(SyncSafekeepers)
    assert not cancelled.has_told(SyncSafekeepers)


# --- Promotion ---------------------------------------------------------------------------------------------

LSN = "0/28F10D8"
REPLICA = a_spec(
    mode="Replica",
    cluster=Cluster(roles=(), databases=(), settings=(GenericOption("neon.safekeepers", "string", "old:1"),)),
)
NEW = with_role("a", safekeeper_connstrings=("sk1:1", "sk2:2"), safekeepers_generation=3)
BY_SPEC = Promote(LSN, NEW)
BY_FORM = Promote(LSN, safekeepers="g#4:sk1:1,sk2:2")


def promoting(request: Promote) -> tuple[Life, int]:
    """A replica whose Postgres is being promoted, and who waits for it."""
    life = running(REPLICA)
    waiter = life.hear(request)
    if request.spec is not None:
        assert life.last(CheckConfiguration) == CheckConfiguration(life.operation, NEW, promoting=True)
        assert not life.has_told(PromotePostgres)
        life.hear(ConfigurationAccepted(life.operation))
    return life, waiter


def test_a_promotion_by_form_changes_mode_and_safekeepers_and_nothing_else() -> None:
    life, waiter = promoting(BY_FORM)
    order = life.last(PromotePostgres)
    assert (order.operation, order.wal_flush_lsn, order.spec.mode) == (2, LSN, "Replica")
    assert (order.spec.safekeepers_generation, order.spec.safekeeper_connstrings) == (4, ("sk1:1", "sk2:2"))
    assert order.spec.cluster.settings == (), "the old list in the settings would win"
    life.hear(PostgresPromoted(life.operation, 7, 9))
    assert life.answers[waiter] == Promoted(7, 9)
    assert life.status() is Status.RUNNING
    assert life.state.spec is not None
    assert life.state.spec.mode == "Primary"
    assert not life.has_told(InstallConfiguration)


def test_a_promotion_by_spec_is_checked_first_and_applies_it_last() -> None:
    life, waiter = promoting(BY_SPEC)
    assert life.last(PromotePostgres).spec.safekeeper_connstrings == NEW.safekeeper_connstrings
    life.hear(PostgresPromoted(life.operation, 7, 9))
    assert life.state.spec == NEW
    assert life.last(InstallConfiguration) == InstallConfiguration(life.operation, NEW)
    life.now_s += 2
    life.hear(ConfigurationInstalled(life.operation))
    assert waiter not in life.answers
    life.hear(SpecApplied(life.operation, 4, 20))
    assert life.answers[waiter] == Promoted(7, 9, 2000)
    assert life.status() is Status.RUNNING


@pytest.mark.parametrize("request_", [BY_SPEC, BY_FORM], ids=["by spec", "by form"])
def test_who_asks_the_same_joins_and_later_gets_the_same_answer(request_: Promote) -> None:
    life, waiter = promoting(request_)
    second = life.hear(request_)
    other = life.hear(Promote("0/1", request_.spec, request_.safekeepers))
    assert life.answers[other] == PromoteRefused("another promotion is under way")
    life.hear(PostgresPromoted(life.operation, 7, 9))
    if request_.spec is not None:
        life.hear(ConfigurationInstalled(life.operation), SpecApplied(life.operation, 1, 1))
    third = life.hear(request_)
    assert life.answers[waiter] == life.answers[second] == life.answers[third]
    assert isinstance(life.answers[third], Promoted)
    different = life.hear(Promote("0/1", request_.spec, request_.safekeepers))
    assert isinstance(life.answers[different], PromoteFailed)
    assert "is not replica" in life.answers[different].error


def test_safekeepers_of_a_promotion_may_stand_in_the_settings_of_its_spec_or_be_none() -> None:
    listed = Cluster((), (), settings=(GenericOption("neon.safekeepers", "string", "g#5:sk3:3"),))
    life = running(REPLICA)
    life.hear(Promote(LSN, a_spec(cluster=listed)), ConfigurationAccepted(life.operation + 1))
    order = life.last(PromotePostgres)
    assert (order.spec.safekeepers_generation, order.spec.safekeeper_connstrings) == (5, ("sk3:3",))
    life = running(REPLICA)
    life.hear(Promote())
    assert life.last(PromotePostgres).spec.safekeeper_connstrings == ()


def test_a_replica_without_neons_storage_is_promoted_however_warm_it_is() -> None:
    life = running(REPLICA)
    first = life.hear(replace(BY_FORM, prewarm=PrewarmStatus.NOT_PREWARMED))
    second = life.hear(replace(BY_FORM, prewarm=PrewarmStatus.COMPLETED))
    life.hear(PostgresPromoted(life.operation, 7, 9))
    assert life.answers[first] == life.answers[second] == Promoted(7, 9)


@pytest.mark.parametrize("request_", [BY_FORM, RefreshConfiguration()], ids=["promote", "refresh"])
def test_a_request_for_which_nobody_waits_is_answered_to_nobody(request_: Message) -> None:
    life = running(REPLICA)
    decision = decide(life.state, request_, Moment(life.now_s, 0.0), None)
    decision = decide(decision.state, PostgresPromoted(2, 7, 9), Moment(life.now_s, 0.0), None)
    assert not [effect for effect in decision.effects if isinstance(effect, Answer)]


def test_a_promotion_that_failed_can_be_asked_for_again() -> None:
    life, waiter = promoting(BY_FORM)
    life.hear(PostgresPromotionFailed(life.operation, "didn't catch up with primary in 20 retries"))
    assert life.answers[waiter] == PromoteFailed("didn't catch up with primary in 20 retries")
    assert life.state.spec == REPLICA
    again = life.hear(BY_FORM)
    life.hear(PostgresPromoted(life.operation, 7, 9))
    assert life.answers[again] == Promoted(7, 9)


def test_a_promoted_node_whose_spec_was_not_applied_goes_on_from_there() -> None:
    life, waiter = promoting(BY_SPEC)
    life.hear(PostgresPromoted(life.operation, 7, 9), ConfigurationInstalled(life.operation))
    life.hear(ApplyFailed(life.operation, "no"))
    assert "its spec is not applied: no" in life.answers[waiter].error
    assert life.status() is Status.RUNNING
    again = life.hear(BY_SPEC)
    life.hear(ConfigurationAccepted(life.operation))
    assert life.last(PromotePostgres).spec.mode == "Replica", "as what it is checked and promoted"
    life.hear(PostgresPromoted(life.operation, 0, 1))
    life.hear(ConfigurationInstalled(life.operation), SpecApplied(life.operation, 1, 1))
    assert isinstance(life.answers[again], Promoted)


def test_a_node_that_is_promoted_in_another_status_is_told_so_and_may_be_asked_again() -> None:
    life, waiter = promoting(BY_SPEC)
    life.state = replace(life.state, status=Status.REFRESH_CONFIGURATION_PENDING)
    life.hear(PostgresPromoted(life.operation, 7, 9))
    assert "in status refresh-configuration-pending" in life.answers[waiter].error
    assert not life.has_told(InstallConfiguration)
    assert life.state.attempt is None


def test_a_spec_that_postgres_would_refuse_is_refused_before_anything_changes() -> None:
    life = running(REPLICA)
    waiter = life.hear(BY_SPEC)
    life.hear(ConfigurationRefused(life.operation, "foo: no"))
    assert life.answers[waiter] == PromoteRefused("foo: no", bad_request=True)
    assert not life.has_told(PromotePostgres)
    assert life.state.promotion is None


@pytest.mark.parametrize(
    ("make", "request_", "answer"),
    [
        (booted, BY_SPEC, PromoteRefused("invalid compute status: empty")),
        (lambda: booted(REPLICA), BY_SPEC, PromoteRefused("invalid compute status: init")),
        (lambda: reconfiguring()[0], BY_SPEC, PromoteRefused("invalid compute status: configuration")),
        (running, BY_SPEC, PromoteFailed('compute mode "primary" is not replica')),
        (running, BY_FORM, PromoteFailed("primary is not replica")),
        (lambda: running(a_spec(mode=StaticMode("0/1"))), BY_FORM, PromoteFailed("static is not replica")),
        (
            lambda: running(REPLICA),
            Promote(LSN, REPLICA),
            PromoteRefused("the spec of the new primary has the mode replica", bad_request=True),
        ),
        (
            lambda: running(REPLICA, source=SourceName.PAGESERVER),
            Promote(None, NEW),
            PromoteRefused(
                "wal_flush_lsn is needed: what the old primary has committed must be replayed first",
                bad_request=True,
            ),
        ),
        *(
            (
                lambda: running(REPLICA, source=SourceName.PAGESERVER),
                Promote(LSN, safekeepers=given),
                PromoteRefused(error, bad_request=True),
            )
            for given, error in (
                ("", "safekeepers is empty"),
                (None, "safekeepers is empty"),
                ("g#3: , ", "safekeepers is empty"),
                ("sk1:1,sk2:2,sk1:1", "duplicate entry in safekeepers: sk1:1!"),
                ("sk1:1,g#2:sk2:2", "safekeepers: entry 2 is not of the form host:port"),
            )
        ),
        *(
            (lambda: running(REPLICA, source=SourceName.PAGESERVER), replace(request, prewarm=status), answer)
            for status, request, answer in (
                (PrewarmStatus.NOT_PREWARMED, BY_SPEC, PromoteFailed("compute NotPrewarmed")),
                (PrewarmStatus.PREWARMING, BY_SPEC, PromoteFailed("compute Prewarming")),
                (PrewarmStatus.PREWARMING, BY_FORM, PromoteFailed("prewarm not requested or pending")),
            )
        ),
    ],
)
def test_what_cannot_be_promoted_is_told_why(
    make: Callable[[], Life], request_: Promote, answer: object
) -> None:
    life = make()
    waiter = life.hear(request_)
    assert life.answers[waiter] == answer
    assert not life.has_told(PromotePostgres)


def test_a_configuration_waits_for_nobody_while_the_node_is_promoted() -> None:
    life, _ = promoting(BY_FORM)
    waiter = life.hear(Configure(with_role("b")))
    assert life.answers[waiter] == ConfigureRefused("the node is being promoted", bad_spec=False)


@pytest.mark.parametrize("request_", [BY_SPEC, BY_FORM], ids=["by spec", "by form"])
@pytest.mark.parametrize(
    "end",
    [
        Terminate(FAST),
        SignalReceived("SIGTERM"),
        PostgresExited("gone"),
        ActorFailed(MONITOR, "e"),
        ActorFailed(POSTGRES, "e"),
    ],
    ids=lambda end: f"{type(end).__name__} {getattr(end, 'actor', '')}".strip(),
)
def test_whatever_ends_the_node_ends_its_promotion_and_late_news_of_it_means_nothing(
    request_: Promote, end: Message
) -> None:
    life, waiter = promoting(request_)
    operation = life.operation
    life.hear(end)
    assert isinstance(life.answers[waiter], PromoteFailed)
    life.hear(PostgresPromoted(operation, 7, 9))
    assert life.state.promotion is None
    assert life.state.spec == REPLICA
    assert not life.has_told(InstallConfiguration)


@pytest.mark.parametrize("request_", [BY_SPEC, BY_FORM], ids=["by spec", "by form"])
def test_whoever_still_waits_for_a_promotion_when_the_process_ends_is_answered(request_: Promote) -> None:
    life, waiter = promoting(request_)
    life.state = replace(life.state, phase=Phase.CLOSING)
    life.hear(ServingStopped())
    assert life.answers[waiter] == PromoteFailed("the node has ended")
    assert life.state.phase is Phase.OVER


# --- Refreshing --------------------------------------------------------------------------------------------

FETCH = ReadConfiguration(refreshes=True)


def neon(pageserver: str = "postgresql://ps1", **changes: object) -> ComputeSpec:
    return a_spec(
        pageserver_connstring=Secret(pageserver), tenant_id="1" * 32, timeline_id="2" * 32, **changes
    )


def fetched(spec: ComputeSpec | None = None, error: str | None = None) -> ConfigurationReread:
    return ConfigurationReread(spec=spec, error=error, refreshes=True)


def refreshing(before: ComputeSpec | None = None, **changes: object) -> Life:
    """A node that fetches its spec again."""
    life = running(before or neon(), **changes)
    waiter = life.hear(RefreshConfiguration())
    assert life.answers[waiter] == RefreshTaken()
    assert FETCH in life.effects
    assert life.status() is Status.REFRESH_CONFIGURATION
    assert life.statuses[-2:] == [Status.REFRESH_CONFIGURATION_PENDING, Status.REFRESH_CONFIGURATION]
    return life


def test_a_spec_with_the_same_pageservers_changes_nothing_and_the_next_fetch_waits() -> None:
    life = refreshing()
    life.hear(fetched(neon(operation_uuid="u")))
    assert life.status() is Status.RUNNING
    assert life.last(CheckConfiguration).operation == 1
    life.now_s += 2
    life.hear(RefreshConfiguration())
    assert life.status() is Status.REFRESH_CONFIGURATION_PENDING
    assert FETCH not in life.effects
    assert life.reminder(RefreshDue) == pytest.approx(3)
    waiter = life.hear(RefreshConfiguration())
    assert life.answers[waiter] == RefreshTaken()
    life.hear(RefreshDue())
    assert FETCH in life.effects
    assert life.status() is Status.REFRESH_CONFIGURATION


@pytest.mark.parametrize(("passed_s", "left_s"), [(4.5, 0.5), (5.0, None)])
def test_the_pause_between_two_fetches_is_five_seconds(passed_s: float, left_s: float | None) -> None:
    life = refreshing()
    life.hear(fetched(neon(operation_uuid="u")))
    life.now_s += passed_s
    life.hear(RefreshConfiguration())
    assert life.reminder(RefreshDue) == left_s
    assert (FETCH in life.effects) == (left_s is None)


def test_without_storage_a_spec_has_moved_when_it_is_another() -> None:
    life = refreshing(a_spec())
    life.hear(fetched(a_spec()))
    assert life.status() is Status.RUNNING
    life = refreshing(a_spec())
    life.hear(fetched(with_role("a")))
    assert life.last(CheckConfiguration) == CheckConfiguration(2, with_role("a"))


def test_the_lease_follows_a_refresh_and_the_spec_is_another_only_when_it_is_applied() -> None:
    before, moved = neon(mode=StaticMode("0/1")), neon("postgresql://ps2", mode=StaticMode("0/1"))
    life = refreshing(before, **STORED)
    life.hear(fetched(moved), ConfigurationAccepted(2))
    assert life.last(KeepLease) == KeepLease(moved)
    assert life.state.spec == before


def test_whoever_has_joined_a_refresh_hears_why_it_failed() -> None:
    life, moved = refreshing(), neon("postgresql://ps2")
    life.hear(fetched(moved))
    waiter = life.hear(Configure(moved))
    life.hear(ConfigurationRefused(2, "no"))
    error = "the spec that was fetched is refused: no"
    assert life.answers[waiter] == ConfigureRefused(error, bad_spec=True)
    assert life.logged()[0] == f"could not refresh the configuration: {error}"
    life = refreshing()
    life.hear(fetched(error="the plane is away"))
    assert life.logged()[0] == (
        "could not refresh the configuration: the spec could not be fetched again: the plane is away"
    )


def test_a_spec_with_other_pageservers_is_checked_installed_and_applied() -> None:
    life, moved = refreshing(), neon("postgresql://ps2")
    life.hear(fetched(moved))
    assert life.last(CheckConfiguration) == CheckConfiguration(2, moved)
    life.hear(ConfigurationAccepted(2), ConfigurationInstalled(2))
    assert life.last(ApplySpec) == ApplySpec(2, moved, starting=False)
    assert life.status() is Status.REFRESH_CONFIGURATION
    life.hear(SpecApplied(2, 0, 1))
    assert life.status() is Status.RUNNING
    assert life.state.spec == moved
    assert life.state.error is None


def test_a_refresh_that_fails_at_any_step_is_tried_again_with_the_spec_that_was_not_applied() -> None:
    moved = neon("postgresql://ps2")
    ways: list[list[Message]] = [
        [fetched(error="the control plane is away")],
        [fetched(moved), ConfigurationRefused(2, "no")],
        [fetched(moved), ConfigurationAccepted(2), ConfigurationInstallFailed(2, "no")],
        [fetched(moved), ConfigurationAccepted(2), ConfigurationInstalled(2), ApplyFailed(2, "no")],
    ]
    for messages in ways:
        life = refreshing()
        life.hear(*messages)
        assert life.status() is Status.REFRESH_CONFIGURATION_PENDING, messages
        assert life.reminder(RefreshDue) == 5
        life.hear(RefreshDue(), fetched(moved))
        n = life.operation
        life.hear(ConfigurationAccepted(n), ConfigurationInstalled(n), SpecApplied(n, 0, 1))
        assert (life.status(), life.state.spec, life.state.error) == (Status.RUNNING, moved, None)


def test_a_configuration_file_without_a_spec_leaves_the_one_that_a_request_brought() -> None:
    life = refreshing(config_path="/etc/config.json")
    life.hear(fetched())
    assert life.status() is Status.RUNNING
    assert life.state.spec == neon()
    assert not life.has_told(StopPostgres)
    life.hear(RefreshConfiguration())
    assert life.reminder(RefreshDue) == 5


def test_a_node_that_is_to_have_no_spec_any_more_ends_in_order_and_as_a_failure() -> None:
    life = refreshing(control_plane_uri="http://plane")
    exit_waiter = life.hear(AwaitExit())
    life.hear(fetched())
    assert DumpJournal(logging.DEBUG) in life.effects, "nothing is wrong with the node"
    assert life.has_told(StopPostgres)
    life.hear(PostgresStopped(StopRung.FAST), ServingStopped())
    assert life.answers[exit_waiter].code == 1
    assert "there was none" in life.answers[exit_waiter].reason


def test_after_a_configuration_that_failed_a_refresh_applies_what_it_finds() -> None:
    life, _ = reconfiguring()
    life.hear(ConfigurationInstallFailed(2, "no"), RefreshConfiguration(), fetched(with_role("a")))
    assert life.last(CheckConfiguration) == CheckConfiguration(3, with_role("a"))


def test_a_refresh_is_needless_while_a_spec_is_on_its_way() -> None:
    starting, checking = booted(a_spec()), running()
    checking.hear(Configure(with_role("a")))
    for life in (starting, checking):
        status = life.status()
        waiter = life.hear(RefreshConfiguration())
        assert life.answers[waiter] == RefreshTaken()
        assert life.status() is status


def test_elsewhere_a_refresh_is_refused() -> None:
    ended = running()
    ended.hear(Terminate(FAST))
    checking, configuring = running(REPLICA), promoting(BY_SPEC)[0]
    checking.hear(BY_SPEC)
    configuring.hear(PostgresPromoted(configuring.operation, 7, 9))
    promotions = (checking, promoting(BY_SPEC)[0], promoting(BY_FORM)[0], configuring)
    for life in (booted(), reconfiguring()[0], ended, *promotions):
        waiter = life.hear(RefreshConfiguration())
        assert life.answers[waiter] == WrongStatus(life.status())


def test_a_configuration_is_refused_during_a_refresh_unless_it_is_the_same() -> None:
    life, moved = refreshing(), neon("postgresql://ps2")
    other = life.hear(Configure(with_role("a")))
    assert life.answers[other] == ConfigureRefused(
        "invalid compute status: refresh-configuration", bad_spec=False
    )
    life.hear(fetched(moved))
    same = life.hear(Configure(moved))
    life.hear(ConfigurationAccepted(2), ConfigurationInstalled(2), SpecApplied(2, 0, 1))
    assert isinstance(life.answers[same], Configured)


def test_a_termination_breaks_a_fetch_off_and_waits_for_what_is_being_applied() -> None:
    moved = neon("postgresql://ps2")
    for messages in ([], [fetched(moved)]):
        fetching = refreshing()
        fetching.hear(*messages)
        fetching.hear(Terminate(IMMEDIATE))
        assert fetching.has_told(StopPostgres)
        fetching.hear(fetched(moved), ConfigurationAccepted(2), RefreshDue())
        assert fetching.status() is Status.TERMINATION_PENDING_IMMEDIATE
    applying = refreshing()
    applying.hear(fetched(moved), ConfigurationAccepted(2))
    waiter = applying.hear(Terminate(IMMEDIATE))
    assert applying.reminder(ConfigurationGraceEnded) == 5
    assert not applying.has_told(StopPostgres)
    applying.hear(ConfigurationGraceEnded())
    assert applying.has_told(CancelApply)
    assert applying.status() is Status.TERMINATION_PENDING_IMMEDIATE
    applying.hear(PostgresStopped(StopRung.FAST))
    assert applying.answers[waiter] == Terminated(lsn=None)


def test_a_configuration_that_has_joined_a_refresh_is_refused_when_a_termination_breaks_that_off() -> None:
    life, moved = refreshing(), neon("postgresql://ps2")
    life.hear(fetched(moved))
    waiter = life.hear(Configure(moved))
    life.hear(Terminate(FAST))
    refusal = ConfigureRefused("invalid compute status: termination-pending-fast", bad_spec=False)
    assert life.answers[waiter] == refusal


def test_a_postgres_that_is_lost_during_a_refresh_is_a_failure() -> None:
    life = refreshing()
    life.hear(PostgresExited("gone"), fetched(neon("postgresql://ps2")), RefreshDue())
    assert life.status() is Status.FAILED
    assert life.operation == 1


# --- The lease of a Static node ----------------------------------------------------------------------------


def pinned(lsn: str = "0/1") -> ComputeSpec:
    return neon(mode=StaticMode(lsn))


def test_a_static_node_of_neons_storage_holds_its_lsn_before_its_folder_is_made() -> None:
    life = booted(pinned(), **STORED)
    kinds = [type(message) for _, message in life.told]
    assert kinds.index(KeepLease) < kinds.index(PreparePgdata)
    assert life.last(KeepLease) == KeepLease(pinned())


def test_a_lease_follows_the_spec_and_ends_with_the_node() -> None:
    life = running(pinned(), **STORED)
    life.hear(Configure(pinned("0/2")), ConfigurationAccepted(2))
    assert life.last(KeepLease) == KeepLease(pinned("0/2"))
    life.hear(ConfigurationInstalled(2), SpecApplied(2, 0, 1), Terminate(FAST))
    assert life.has_told(ReleaseLease)


def test_a_refused_lease_is_shown_until_another_spec_is_followed() -> None:
    life = booted(pinned(), **STORED)
    life.hear(LeaseRefused("behind the cutoff"))
    life.hear(ConfigurationAccepted(1), PgdataPrepared(1, kept=False, took_ms=1), PostgresReady(1, 2, 3))
    life.hear(SpecApplied(1, 0, 1))
    assert (life.status(), node_status(life.state).error) == (Status.RUNNING, "behind the cutoff")
    assert readiness(life.state).ready
    life.hear(Configure(pinned("0/2")), ConfigurationAccepted(2))
    assert node_status(life.state).error is None


def test_nobody_else_holds_anything_and_a_start_that_fails_lets_go() -> None:
    for life in (running(neon(), **STORED), running(a_spec())):
        life.hear(Terminate(FAST))
        assert not life.has_told(KeepLease)
        assert not life.has_told(ReleaseLease)
    failing = booted(pinned(), **STORED)
    failing.hear(PgdataFailed(1, "no"))
    assert failing.has_told(ReleaseLease)
    failing.hear(LeaseRefused("late"))
    assert failing.state.lease_error is None

"""What the Supervisor decides: whole lives, message by message, without actors."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import pytest
from compute_node.actors.supervisor.decisions import DECIDED, decide
from compute_node.actors.supervisor.effects import (
    CONFIGURATOR,
    HTTP,
    MONITOR,
    POSTGRES,
    After,
    Answer,
    Effect,
    Log,
    Publish,
    ReadConfiguration,
    Tell,
)
from compute_node.actors.supervisor.private import (
    ClosingOverdue,
    ConfigurationGraceEnded,
    ConfigurationReread,
    HeadStartEnded,
    LingerEnded,
    StopOverdue,
)
from compute_node.actors.supervisor.state import NodeState, Phase, node_status, readiness
from compute_node.actors.supervisor.turn import Moment
from compute_node.messages.activity import ActivityObserved, StartMonitoring, StopMonitoring
from compute_node.messages.base import Message, Request
from compute_node.messages.catalog import ApplyFailed, ApplySpec, CancelApply, MakeReady, SpecApplied
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
    RereadConfiguration,
    ShutdownMode,
    SignalReceived,
    Status,
    StatusChanged,
    Terminate,
    Terminated,
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
    PostgresExited,
    PostgresReady,
    PostgresStartFailed,
    PostgresStopped,
    PreparePgdata,
    StartPostgres,
    StopPostgres,
    StopRung,
)
from compute_node.messages.serving import (
    ServingFailed,
    ServingStarted,
    ServingStopped,
    StartServing,
    StopServing,
)
from compute_node.messages.spec import ComputeSpec

from doubles.specs import a_spec, settings, with_role

E = TypeVar("E")
M = TypeVar("M", bound=Message)

FAST, IMMEDIATE = ShutdownMode.FAST, ShutdownMode.IMMEDIATE


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


def reconfiguring() -> tuple[Life, int]:
    life = running()
    waiter = life.hear(Configure(with_role("a")))
    life.hear(ConfigurationAccepted(life.operation))
    assert life.status() is Status.CONFIGURATION
    return life, waiter


# --- Boot and start ----------------------------------------------------------------------------------------


def test_the_folder_is_inspected_before_anything_is_served() -> None:
    life = Life()
    life.hear(Boot(a_spec()))
    assert life.told == [(POSTGRES, InspectPgdata())]


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


def test_the_programs_of_postgres_begin_before_what_is_heavy_is_loaded() -> None:
    life = Life()
    life.hear(Boot(a_spec()), PgdataInspected(PgdataKind.ABSENT))
    assert life.has_told(PreparePgdata)
    assert not life.has_told(StartServing)
    assert life.reminder(HeadStartEnded) == pytest.approx(0.03)
    life.hear(HeadStartEnded())
    assert [message for _, message in life.told[-2:]] == [StartServing(), MakeReady()]


def test_without_a_spec_nothing_is_waited_for() -> None:
    life = Life()
    life.hear(Boot(None), PgdataInspected(PgdataKind.ABSENT))
    assert [message for _, message in life.told[-2:]] == [StartServing(), MakeReady()]


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
    assert isinstance(life.answers[waiter], ConfigureRefused)


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
    life.hear(Terminate(FAST))
    assert 8 < life.last(StopPostgres).budget_s < 10


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
    exit_waiter, waiter = life.hear(AwaitExit()), life.hear(Terminate(FAST))
    overdue = life.reminder(StopOverdue)
    assert overdue is not None
    assert life.last(StopPostgres).budget_s < overdue < 10
    life.hear(StopOverdue())
    assert life.answers[exit_waiter].code == 1
    assert waiter in life.answers


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


@pytest.mark.parametrize("actor", [MONITOR, CONFIGURATOR, HTTP])
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


def test_a_dead_postgres_process_leaves_the_stop_to_the_last_resort_at_once() -> None:
    life = running()
    exit_waiter = life.hear(AwaitExit())
    life.hear(ActorFailed(POSTGRES, "KeyError: 1"))
    assert life.answers[exit_waiter].code == 1


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
        fields |= {"description": "d", "external_port": 1, "internal_port": 2}
        samples[kind] = kind(**{name: fields[name] for name in kind.__struct_fields__ if name in fields})
    makers: list[Callable[[], Life]] = [Life, booted, partial(booted, a_spec()), running]
    makers.append(lambda: reconfiguring()[0])
    for make in makers:
        for message in samples.values():
            make().hear(message)

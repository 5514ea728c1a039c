"""The PostgresProcess over a Postgres in memory: orders drawn from seeds, faults by switch, time made up."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.postgres_process.actor import CANCELLED, PostgresProcess
from compute_node.actors.postgres_process.decisions import TAKEN_IN, preparing
from compute_node.actors.postgres_process.decisions.postmaster import DISK_EVERY_S, DISK_FULL_EVERY_S
from compute_node.actors.postgres_process.decisions.preparing import SYNC_PAUSES_S
from compute_node.actors.postgres_process.disk import FULL_BYTES, HOLD_S, ROOM_BYTES
from compute_node.actors.postgres_process.state import Phase
from compute_node.actors.postgres_process.work import Work
from compute_node.messages.base import Message
from compute_node.messages.lifecycle import Condition, ConditionCleared, ConditionRaised
from compute_node.messages.metrics import DISK_FREE
from compute_node.messages.planning import CannotPlan, CompareSettings, SettingsCompared
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
    SafekeepersSynced,
    SafekeeperSyncFailed,
    SettleConfiguration,
    StartPostgres,
    StopPostgres,
    StopRung,
    SyncSafekeepers,
    WarmMemory,
)
from compute_node.messages.settings import SourceName
from compute_node.messages.spec import StaticMode
from typing_extensions import override

from doubles.postgres_server import FakeServer, Faults
from doubles.scripted import Note
from doubles.specs import a_spec, settings

SEEDS = range(25)
SPEC = a_spec()
START_TIMEOUT_S = 10.0
IGNORES_FAST = frozenset({StopRung.FAST})
IGNORES_ALL_BUT_KILL = frozenset({StopRung.FAST, StopRung.IMMEDIATE})


class Ticker(Actor[Note]):
    """Lets time pass while jobs wait for it."""

    @override
    def started(self) -> None:
        self.timers.every(0.05, Note("tick"))

    @override
    def receive(self, message: Note) -> None:
        pass


class Starter(Actor[Message]):
    """A Supervisor that goes through a start, if it is to, and remembers what it was told and when."""

    def __init__(self, *, starts: bool) -> None:
        self.told: list[Message] = []
        self.times: list[float] = []
        self.starts = starts
        self.stops = False
        self._postgres: Ref[Any] | None = None

    def meet(self, postgres: Ref[Any]) -> None:
        self._postgres = postgres

    @override
    def receive(self, message: Message) -> None:
        assert self._postgres is not None
        self.told.append(message)
        self.times.append(self.clock.now())
        if not self.starts or self.stops:
            return
        match message:
            case PgdataInspected():
                self._postgres.tell(CheckConfiguration(1, SPEC))
                self._postgres.tell(PreparePgdata(1, SPEC))
            case PgdataPrepared() | ConfigurationAccepted(1):
                if {PgdataPrepared, ConfigurationAccepted} <= {type(told) for told in self.told}:
                    self._postgres.tell(StartPostgres(1, SPEC))
            case _:
                pass


class World:
    """One simulated PostgresProcess."""

    def __init__(
        self,
        seed: int,
        faults: Faults | None = None,
        *,
        starts: bool = True,
        source: SourceName = SourceName.INITDB,
        **fake: Any,
    ) -> None:
        self.runtime = SimulatedRuntime(seed)
        self.server = FakeServer(self.runtime.clock, faults or Faults(), **fake)
        self.starter = Starter(starts=starts)
        self.runtime.spawn("supervisor", self.starter)
        self.actor = PostgresProcess(
            settings(start_timeout_s=START_TIMEOUT_S, source=source),
            self.runtime.ref("supervisor"),
            self.server,
        )
        self.postgres: Ref[Any] = self.runtime.spawn("postgres", self.actor)
        self.starter.meet(self.postgres)
        self.runtime.spawn("ticker", Ticker())

    def begin(self) -> None:
        self.postgres.tell(InspectPgdata())

    def until(self, *kinds: type[Message], count: int = 1) -> None:
        def there() -> bool:
            assert not self.runtime.abandoned, self.runtime.abandoned
            return sum(isinstance(told, kinds) for told in self.starter.told) >= count

        try:
            self.runtime.run(until=there, max_steps=20_000)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.runtime.trace[-40:]])) from error

    def rest(self, seconds: float = 60.0) -> None:
        """Let everything happen that still would."""
        self.runtime.advance(seconds)
        assert not self.runtime.abandoned, self.runtime.abandoned

    def stop(self, budget_s: float = 20.0, *, hurry: bool = False) -> None:
        self.starter.stops = True
        self.postgres.tell(StopPostgres(budget_s, hurry))

    def start(self) -> "World":
        self.begin()
        self.until(PostgresReady)
        return self

    def told(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.starter.told if isinstance(message, kind)]

    def names(self) -> Counter[str]:
        return Counter(type(message).__name__ for message in self.starter.told)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_start_tells_each_step_once_in_any_order_of_events(seed: int) -> None:
    world = World(seed, Faults(initdb_takes_s=0.5, launch_takes_s=0.1, ready_after_s=0.3)).start()
    world.rest()
    assert world.names() == {
        "PgdataInspected": 1,
        "ConfigurationAccepted": 1,
        "PgdataPrepared": 1,
        "PostgresReady": 1,
    }
    ready = world.told(PostgresReady)[0]
    assert (ready.operation, ready.pid) == (1, 4711)
    assert ready.took_ms >= 400
    assert world.actor.phase is Phase.RUNNING


LIVES = {
    "quick": Faults(),
    "slow": Faults(initdb_takes_s=0.4, launch_takes_s=0.3, ready_after_s=0.4, stop_takes_s=0.3),
    "slow installation": Faults(initdb_takes_s=0.1, install_takes_s=1.0),
    "deaf to fast": Faults(initdb_takes_s=0.2, ready_after_s=0.2, ignores=IGNORES_FAST),
    "deaf to all but kill": Faults(ready_after_s=0.2, ignores=IGNORES_ALL_BUT_KILL),
    "never ready": Faults(never_ready=True),
    "recovering": Faults(ready_after_s=2.0, recovering=True),
    "initdb fails": Faults(initdb_takes_s=0.2, initdb_fails="no"),
    "fails a few times": Faults(initdb_takes_s=0.1, passing_failures=3),
    "launch fails": Faults(launch_takes_s=0.2, launch_fails="no"),
    "refused": Faults(conf_refused="no", initdb_takes_s=0.2),
    "exits at once": Faults(exits_after_s=0.0, exit_code=1, never_ready=True),
    "exits later": Faults(ready_after_s=0.1, exits_after_s=0.5),
    "dumps core": Faults(ready_after_s=0.1, exits_after_s=0.5, cores_take_s=60.0),
    "cannot be tidied": Faults(tidy_fails="no"),
    "foreign": Faults(folder_refused=1),
}


@pytest.mark.parametrize("life", LIVES)
def test_a_stop_at_any_step_of_any_life_is_answered_once_in_time_and_leaves_nothing(life: str) -> None:
    budget_s = 5.0
    for stop_at in range(0, 90, 2):
        world = World(stop_at, LIVES[life])
        world.begin()
        for _ in range(stop_at):
            world.runtime.step()
        began = world.runtime.clock.now()
        world.stop(budget_s)
        world.until(PostgresStopped)
        took_s = world.starter.times[-1] - began
        told = len(world.starter.told)
        assert world.server.left == [], stop_at
        world.rest(10.0)
        assert world.names()["PostgresStopped"] == 1, stop_at
        assert len(world.starter.told) == told, f"something was told after the stop: {world.starter.told}"
        assert took_s < budget_s + 0.5, (stop_at, took_s)
        assert world.actor.phase is Phase.GONE


@pytest.mark.parametrize("seed", SEEDS)
def test_commands_at_random_are_each_answered_and_never_break_the_rules(seed: int) -> None:
    choice = random.Random(seed)  # noqa: S311 - a seeded choice is what is wanted
    life = choice.choice([name for name in LIVES if name != "cannot be tidied"])
    world = World(seed, LIVES[life], starts=choice.random() < 0.7)
    asked: Counter[str] = Counter()
    commands = (
        lambda n: InspectPgdata(),
        lambda n: CheckConfiguration(n, SPEC),
        lambda n: PreparePgdata(n, SPEC),
        lambda n: StartPostgres(n, SPEC),
        lambda n: InstallConfiguration(n, SPEC),
    )
    world.begin()
    for number in range(100, 140):
        for _ in range(choice.randrange(12)):
            world.runtime.step()
        command = choice.choice(commands)(number)
        asked[type(command).__name__] += 1
        world.postgres.tell(command)
    world.rest()
    answers = world.names()
    answered_by = {
        "CheckConfiguration": ("ConfigurationAccepted", "ConfigurationRefused"),
        "PreparePgdata": ("PgdataPrepared", "PgdataFailed"),
        "StartPostgres": ("PostgresReady", "PostgresStartFailed"),
        "InstallConfiguration": ("ConfigurationInstalled", "ConfigurationInstallFailed"),
    }
    for kind, outcomes in answered_by.items():
        operations = [
            operation
            for message in world.starter.told
            if type(message).__name__ in outcomes and (operation := getattr(message, "operation", 0)) >= 100
        ]
        assert len(operations) == len(set(operations)) == asked[kind], (kind, seed, life)
    assert answers["PostgresExited"] <= 1
    assert answers["PostgresStopped"] == 0
    world.stop(5.0)
    world.until(PostgresStopped)
    assert world.server.left == []
    assert world.server.launched <= 1


def reach(phase: Phase, seed: int = 1) -> World:
    """A world in that phase."""
    slow = Faults(initdb_takes_s=1.0, ready_after_s=1.0, stop_takes_s=3.0)
    world = World(
        seed, slow, starts=phase not in {Phase.IDLE, Phase.INSPECTING, Phase.INSPECTED, Phase.PREPARED}
    )
    if phase is Phase.IDLE:
        return world
    world.begin()
    if phase is Phase.INSPECTING:
        world.runtime._deliver("postgres")
        return world
    if phase in {Phase.STOPPING, Phase.GONE}:
        world.until(PostgresReady)
        world.stop(8.0)
    if phase is Phase.GONE:
        world.until(PostgresStopped)
    if phase in {Phase.INSPECTED, Phase.PREPARED}:
        world.until(PgdataInspected)
    if phase is Phase.PREPARED:
        world.postgres.tell(PreparePgdata(1, SPEC))
    world.runtime.run(
        until=lambda: (
            world.actor.phase is phase and (phase is not Phase.STARTING or world.actor.state.pid is not None)
        )
    )
    return world


@pytest.mark.parametrize("phase", Phase)
def test_a_stop_in_each_phase_says_how_far_it_had_to_go(phase: Phase) -> None:
    world = reach(phase)
    assert world.actor.phase is phase
    world.stop(8.0)
    world.rest()
    runs = phase in {Phase.STARTING, Phase.RUNNING, Phase.STOPPING}
    assert world.told(PostgresStopped)[-1].rung is (StopRung.FAST if runs else StopRung.NOT_RUNNING)
    assert world.names()["PostgresStopped"] == (2 if phase is Phase.GONE else 1)
    assert world.server.left == []


REFUSALS: dict[type[Message], tuple[Message, type[Message]]] = {
    InspectPgdata: (InspectPgdata(), PgdataRefused),
    CheckConfiguration: (CheckConfiguration(9, SPEC), ConfigurationRefused),
    PreparePgdata: (PreparePgdata(9, SPEC), PgdataFailed),
    StartPostgres: (StartPostgres(9, SPEC), PostgresStartFailed),
    InstallConfiguration: (InstallConfiguration(9, SPEC), ConfigurationInstallFailed),
    SyncSafekeepers: (SyncSafekeepers(SPEC, 5.0), SafekeeperSyncFailed),
}


@pytest.mark.parametrize(
    ("phase", "kind"),
    [(phase, kind) for phase in Phase for kind in REFUSALS if phase not in TAKEN_IN[kind]],
    ids=str,
)
def test_a_command_out_of_its_phase_is_refused_at_once_and_changes_nothing(
    phase: Phase, kind: type[Message]
) -> None:
    world = reach(phase)
    before = world.actor.state
    waiting = world.runtime._mailboxes["supervisor"]
    waiting.clear()
    command, refusal = REFUSALS[kind]
    world.postgres.tell(command)
    while world.runtime._mailboxes["postgres"]:
        world.runtime._deliver("postgres")
    assert world.actor.state == before
    assert [type(envelope.message) for envelope in waiting] == [refusal]


def test_a_second_order_to_stop_joins_the_first_and_hurry_skips_to_the_next_rung() -> None:
    world = World(3, Faults(ignores=IGNORES_FAST, stop_takes_s=0.2)).start()
    world.stop(60.0)
    world.runtime.advance(0.3)
    world.stop(60.0)
    world.runtime.advance(0.3)
    assert [rung for _, rung in world.server.signals] == [StopRung.FAST]
    world.stop(30.0, hurry=True)
    world.until(PostgresStopped)
    assert [rung for _, rung in world.server.signals] == [StopRung.FAST, StopRung.IMMEDIATE]
    world.rest(120)
    assert world.told(PostgresStopped) == [PostgresStopped(StopRung.IMMEDIATE)]


def test_hurry_twice_kills() -> None:
    world = World(3, Faults(ignores=IGNORES_ALL_BUT_KILL)).start()
    began = world.runtime.clock.now()
    world.stop(60.0)
    world.stop(60.0, hurry=True)
    world.stop(60.0, hurry=True)
    world.until(PostgresStopped)
    assert [rung for _, rung in world.server.signals] == [StopRung.FAST, StopRung.IMMEDIATE, StopRung.KILL]
    assert world.runtime.clock.now() - began < 1.0
    assert world.told(PostgresStopped) == [PostgresStopped(StopRung.KILL)]


@pytest.mark.parametrize("budget_s", [0.5, 2.0, 25.0])
def test_a_deaf_postgres_is_killed_within_the_budget(budget_s: float) -> None:
    world = World(1, Faults(ignores=IGNORES_ALL_BUT_KILL)).start()
    began = world.runtime.clock.now()
    world.stop(budget_s)
    world.until(PostgresStopped)
    assert [rung for _, rung in world.server.signals] == [StopRung.FAST, StopRung.IMMEDIATE, StopRung.KILL]
    assert world.runtime.clock.now() - began < budget_s
    assert world.told(PostgresStopped)[0].rung is StopRung.KILL


def test_a_healthy_stop_may_take_as_long_as_its_budget_says() -> None:
    world = World(1, Faults(stop_takes_s=90.0)).start()
    world.stop(120.0)
    world.rest(110)
    assert world.told(PostgresStopped) == [PostgresStopped(StopRung.FAST)]
    assert [rung for _, rung in world.server.signals] == [StopRung.FAST]


def test_what_cannot_be_killed_is_not_called_stopped() -> None:
    world = World(1, Faults(ignores=frozenset(StopRung))).start()
    world.stop(2.0)
    world.rest(60)
    assert world.told(PostgresStopped) == []
    assert world.actor.phase is Phase.STOPPING


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fresh_postgres_that_is_not_ready_in_time_is_gone_before_the_start_is_called_failed(
    seed: int,
) -> None:
    ignores = IGNORES_ALL_BUT_KILL if seed % 2 else frozenset()
    world = World(seed, Faults(never_ready=True, ignores=ignores))
    world.begin()
    world.until(PostgresStartFailed)
    assert not world.server.alive
    failed = world.told(PostgresStartFailed)[0]
    assert "timed out while waiting for Postgres to start" in failed.error
    world.rest()
    assert world.server.left == []
    assert world.names()["PostgresStartFailed"] == 1
    assert world.names()["PostgresReady"] == world.names()["PostgresExited"] == 0


def test_a_recovering_postgres_has_all_the_time_it_needs_and_says_so() -> None:
    world = World(
        1, Faults(recovering=True, ready_after_s=20 * START_TIMEOUT_S), kind=PgdataKind.OURS_COMPLETE
    )
    world.begin()
    world.until(PostgresReady)
    told = [
        message for message in world.starter.told if isinstance(message, (ConditionRaised, ConditionCleared))
    ]
    assert [type(message) for message in told] == [ConditionRaised, ConditionCleared]
    assert all(message.condition is Condition.RECOVERING for message in told)
    assert world.starter.told.index(told[1]) < world.starter.told.index(world.told(PostgresReady)[0])


@pytest.mark.parametrize("exit_code", [0, 1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_exit_that_nobody_asked_for_is_told_whatever_its_code(seed: int, exit_code: int) -> None:
    world = World(seed, Faults(exits_after_s=3.0, exit_code=exit_code)).start()
    world.until(PostgresExited)
    assert world.told(PostgresExited) == [PostgresExited(f"exit code {exit_code}")]
    world.rest()
    assert world.server.left == []
    assert world.server.cores_reported == 1
    assert world.names()["PostgresStopped"] == 0


def test_an_exit_during_the_start_fails_the_start_with_its_description() -> None:
    world = World(1, Faults(exits_after_s=0.0, exit_code=1, never_ready=True))
    world.begin()
    world.until(PostgresStartFailed)
    world.rest()
    assert world.told(PostgresStartFailed) == [PostgresStartFailed(1, "exit code 1")]
    assert world.names()["PostgresExited"] == 0


def test_an_exit_ends_an_installation_under_way_with_an_answer() -> None:
    world = World(1, Faults(install_takes_s=600.0)).start()
    world.postgres.tell(InstallConfiguration(2, SPEC))
    world.runtime.advance(1.0)
    world.server.crash()
    world.until(ConfigurationInstallFailed)
    assert world.told(ConfigurationInstallFailed) == [ConfigurationInstallFailed(2, CANCELLED)]
    assert world.names()["PostgresExited"] == 1


def test_backtraces_never_delay_a_stop_beyond_its_budget() -> None:
    world = World(1, Faults(cores_take_s=600.0)).start()
    world.server.crash()
    world.until(PostgresExited)
    began = world.runtime.clock.now()
    world.stop(4.0)
    world.until(PostgresStopped)
    assert 3.9 < world.runtime.clock.now() - began < 4.5


def test_a_refused_folder_is_told_with_its_exit_code_and_nothing_is_begun() -> None:
    world = World(1, Faults(folder_refused=75))
    world.begin()
    world.rest()
    assert world.starter.told == [PgdataRefused("the folder is foreign", 75)]
    assert world.server.begun == []


def test_a_refused_configuration_reaches_the_supervisor_while_pgdata_is_being_prepared() -> None:
    world = World(1, Faults(conf_refused="`x` is wrong", initdb_takes_s=5.0))
    world.begin()
    world.until(ConfigurationRefused)
    assert world.told(ConfigurationRefused) == [ConfigurationRefused(1, "`x` is wrong")]
    world.stop(5.0)
    world.until(PostgresStopped)
    assert world.server.launched == 0
    assert world.server.left == []


def test_an_installation_reports_what_awaits_a_restart_and_a_refusal_its_reason() -> None:
    world = World(1, Faults(pending_restart=("max_connections",))).start()
    world.postgres.tell(InstallConfiguration(2, SPEC))
    world.until(ConfigurationInstalled)
    assert world.told(ConfigurationInstalled) == [ConfigurationInstalled(2, ("max_connections",))]
    world.server.faults.install_refused = "`x` is wrong"
    world.postgres.tell(InstallConfiguration(3, SPEC))
    world.until(ConfigurationInstallFailed)
    assert world.told(ConfigurationInstallFailed) == [ConfigurationInstallFailed(3, "`x` is wrong")]
    assert world.actor.phase is Phase.RUNNING


def test_a_configuration_is_settled_and_what_comes_meanwhile_comes_after() -> None:
    world = World(1, Faults(settle_takes_s=2.0)).start()
    newer = a_spec(operation_uuid="newer")
    world.postgres.tell(SettleConfiguration(SPEC, subscribers=True))
    world.postgres.tell(SettleConfiguration(SPEC, subscribers=False))
    world.runtime.advance(5.0)
    assert world.server.settled == [(SPEC, True), (SPEC, False)]
    world.postgres.tell(SettleConfiguration(SPEC, subscribers=True))
    world.postgres.tell(InstallConfiguration(2, newer))
    world.postgres.tell(SettleConfiguration(newer, subscribers=True))
    world.runtime.advance(1.0)
    assert world.told(ConfigurationInstalled) == []
    world.until(ConfigurationInstalled)
    world.runtime.advance(5.0)
    assert world.server.settled[2:] == [(SPEC, True)]  # what speaks of one that is not in force is overtaken


def test_an_exit_answers_an_installation_that_waits_for_the_settling_of_another() -> None:
    world = World(1, Faults(settle_takes_s=600.0)).start()
    world.postgres.tell(SettleConfiguration(SPEC, subscribers=True))
    world.postgres.tell(InstallConfiguration(2, SPEC))
    world.runtime.advance(1.0)
    world.server.crash()
    world.until(ConfigurationInstallFailed)
    world.postgres.tell(SettleConfiguration(SPEC, subscribers=True))
    world.rest()
    assert world.server.settled == []


def test_a_kept_folder_is_not_built_again() -> None:
    world = World(1, kind=PgdataKind.OURS_COMPLETE).start()
    assert world.told(PgdataPrepared)[0].kept
    assert "initdb" not in world.server.begun


def test_what_may_pass_is_tried_again_with_growing_pauses_and_each_attempt_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(1, Faults(passing_failures=3)).start()
    assert [record.message for record in caplog.records if "basebackup" in record.message] == [
        f"Failed to get basebackup: the connection was cut (attempt {number}/11)" for number in (1, 2, 3)
    ]
    assert world.told(PgdataPrepared)[0].took_ms == pytest.approx(500 + 750 + 1125, abs=100)


def test_what_does_not_pass_is_given_up_after_eleven_attempts_in_about_a_minute() -> None:
    world = World(1, Faults(passing_failures=99))
    began = world.runtime.clock.now()
    world.begin()
    world.rest(50.0)
    assert world.told(PgdataFailed) == []
    world.rest(10.0)
    assert world.told(PgdataFailed) == [PgdataFailed(1, "the connection was cut (after 11 attempts)")]
    assert world.server.faults.passing_failures == 99 - 11
    failed_at = world.starter.times[world.starter.told.index(world.told(PgdataFailed)[0])]
    assert failed_at - began == pytest.approx(56.7, abs=1.0)
    assert world.server.left == []


def test_a_failure_that_does_not_pass_is_the_last() -> None:
    world = World(1, Faults(initdb_fails="no such timeline"))
    world.begin()
    world.until(PgdataFailed)
    assert world.told(PgdataFailed) == [PgdataFailed(1, "no such timeline")]


def test_the_same_seed_tells_the_same_story() -> None:
    def story(seed: int) -> list[str]:
        world = World(seed, Faults(initdb_takes_s=0.5, ready_after_s=0.3, stop_takes_s=0.2)).start()
        world.stop(5.0)
        world.until(PostgresStopped)
        return world.runtime.trace

    assert story(7) == story(7)
    assert story(7) != story(8)


# --- The disk ----------------------------------------------------------------------------------------------


def disk_conditions(world: World) -> list[type[Message]]:
    return [
        type(told)
        for told in world.starter.told
        if isinstance(told, (ConditionRaised, ConditionCleared)) and told.condition is Condition.DISK_FULL
    ]


def test_a_full_disk_is_a_condition_until_there_is_room_again() -> None:
    world = World(0).start()
    world.rest(30)
    assert disk_conditions(world) == []
    world.server.faults.disk_free = FULL_BYTES - 1
    world.rest(DISK_EVERY_S + 1)
    assert disk_conditions(world) == [ConditionRaised]
    world.server.faults.disk_free = FULL_BYTES + 1
    world.rest(30)
    assert disk_conditions(world) == [ConditionRaised], "a little is not enough"
    world.server.faults.disk_free = ROOM_BYTES
    world.rest(DISK_FULL_EVERY_S + 1)
    assert disk_conditions(world) == [ConditionRaised, ConditionCleared]
    assert world.runtime.metrics.read(DISK_FREE) == {("pgdata",): ROOM_BYTES}


def test_what_postgres_says_of_the_disk_is_heard_at_once_and_counts_for_a_while() -> None:
    world = World(0).start()
    for _ in range(3):
        world.server.faults.space_refused = True
        world.rest(1)
        assert disk_conditions(world) == [ConditionRaised]
    world.rest(HOLD_S + 2 * DISK_FULL_EVERY_S)
    assert disk_conditions(world) == [ConditionRaised, ConditionCleared]
    before = len(world.runtime.trace)
    world.rest(10 * DISK_EVERY_S)
    looks = [line for line in world.runtime.trace[before:] if "job 'look at the disk' ended" in line]
    assert 9 <= len(looks) <= 11, "one look after the other, however often Postgres called"


def test_a_disk_that_cannot_be_looked_at_is_warned_about_once_and_holds_up_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(0, Faults(disk_free=None)).start()
    world.rest(60)
    assert disk_conditions(world) == []
    assert sum("whether the disk is full cannot be told" in text for text in caplog.messages) == 1
    world.stop()
    world.until(PostgresStopped)


def test_a_fast_stop_that_postgres_itself_calls_a_failure_is_told_with_its_words() -> None:
    world = World(0).start()
    world.server.faults.stop_fails = True
    world.stop()
    world.until(PostgresStopped)
    (stopped,) = world.told(PostgresStopped)
    assert (stopped.rung, stopped.trouble) == (StopRung.FAST, "fast shutdown")


def test_a_forced_stop_has_no_further_trouble_to_tell() -> None:
    world = World(0).start()
    world.server.faults.stop_fails = True
    world.server.faults.ignores = IGNORES_FAST
    world.stop()
    world.until(PostgresStopped)
    (stopped,) = world.told(PostgresStopped)
    assert (stopped.rung, stopped.trouble) == (StopRung.IMMEDIATE, None)


def test_a_comparison_is_answered_and_one_beside_it_is_refused_for_the_moment() -> None:
    world = World(1, Faults(compare_takes_s=1.0)).start()
    first = world.postgres.request(CompareSettings(SPEC))
    second = world.postgres.request(CompareSettings(SPEC))
    world.runtime.advance(0.5)
    refused = second.get(0)
    assert isinstance(refused, CannotPlan)
    assert refused.busy
    assert not first.done
    world.runtime.advance(1.0)
    assert first.get(0) == SettingsCompared()
    third = world.postgres.request(CompareSettings(SPEC))
    world.runtime.advance(2.0)
    assert third.get(0) == SettingsCompared()


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.RUNNING])
def test_settings_are_compared_only_with_those_of_a_running_postgres(phase: Phase) -> None:
    world = reach(phase)
    pending = world.postgres.request(CompareSettings(SPEC))
    while not pending.done:
        world.runtime._deliver("postgres")
    refused = pending.get(0)
    assert isinstance(refused, CannotPlan)
    assert refused.busy


def test_a_stop_ends_a_comparison_under_way_with_an_answer_and_waits_for_its_end() -> None:
    world = World(1, Faults(compare_takes_s=600.0, stop_takes_s=3.0)).start()
    pending = world.postgres.request(CompareSettings(SPEC))
    world.runtime.advance(1.0)
    world.stop(8.0)
    world.runtime.advance(1.0)
    assert pending.done, "it is not the end of Postgres that ends it"
    world.until(PostgresStopped)
    assert pending.get(0) == CannotPlan(f"the settings cannot be compared: {CANCELLED}", busy=True)


def test_a_postgres_that_goes_away_ends_a_comparison_with_an_answer() -> None:
    world = World(1, Faults(compare_takes_s=600.0)).start()
    pending = world.postgres.request(CompareSettings(SPEC))
    world.runtime.advance(1.0)
    world.server.crash()
    world.until(PostgresExited)
    world.rest(1.0)
    assert isinstance(pending.get(0), CannotPlan)


# --- Safekeepers -------------------------------------------------------------------------------------------


def stored(faults: Faults, seed: int = 1, **options: Any) -> World:
    """A world whose data is in Neon's storage."""
    return World(seed, faults, source=SourceName.PAGESERVER, **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_quorum_agrees_on_is_where_the_folder_begins(seed: int) -> None:
    world = stored(Faults(agreed_lsn=0x16ABCDE, quorum_takes_s=0.1, initdb_takes_s=0.5), seed).start()
    assert world.server.start_lsns == [0x16ABCDE]
    (prepared,) = world.told(PgdataPrepared)
    assert prepared.stages.sync_sk_check_ms >= 100
    assert prepared.stages.sync_safekeepers_ms == 0
    assert prepared.took_ms >= 500
    assert "sync" not in world.server.begun


@pytest.mark.parametrize("seed", SEEDS)
def test_safekeepers_that_do_not_agree_are_synced_first(seed: int) -> None:
    world = stored(Faults(agreed_lsn=None, synced_lsn=9, sync_takes_s=2.0), seed).start()
    assert world.server.start_lsns == [9]
    (prepared,) = world.told(PgdataPrepared)
    assert prepared.stages.sync_safekeepers_ms >= 2000
    assert prepared.took_ms < 1000


@pytest.mark.parametrize("mode", ["Replica", StaticMode("0/1")], ids=["Replica", "Static"])
def test_only_a_primary_asks_safekeepers(mode: str | StaticMode) -> None:
    world = stored(Faults(), starts=False)
    world.begin()
    world.until(PgdataInspected)
    world.postgres.tell(PreparePgdata(9, a_spec(mode=mode)))
    world.until(PgdataPrepared)
    assert "quorum" not in world.server.begun
    assert world.server.start_lsns == [0]


def test_a_local_cluster_asks_nobody() -> None:
    assert World(1).start().server.begun == ["initdb", "launch"]


@pytest.mark.parametrize("failures", range(len(SYNC_PAUSES_S) + 2))
def test_a_sync_is_tried_again_five_times_after_the_documented_pauses(failures: int) -> None:
    world = stored(Faults(agreed_lsn=None, syncs_that_fail=failures))
    began = world.runtime.clock.now()
    world.begin()
    world.until(PgdataPrepared, PgdataFailed)
    took_s = world.starter.times[-1] - began
    assert sum(SYNC_PAUSES_S[:failures]) <= took_s < sum(SYNC_PAUSES_S[:failures]) + 0.5
    if failures <= len(SYNC_PAUSES_S):
        assert world.server.start_lsns == [9]
    else:
        (failed,) = world.told(PgdataFailed)
        assert failed.error == "failed to sync safekeepers, 6 times; the last time: no quorum"
        assert not world.server.building


def test_a_sync_without_a_quorum_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "SYNC_LIMIT_S", 2.0)
    world = stored(Faults(agreed_lsn=None, sync_takes_s=1e9))
    world.begin()
    world.until(PgdataFailed)
    assert "it had not ended after 2 s" in world.told(PgdataFailed)[0].error


STORED_LIVES = {
    "agreed": Faults(quorum_takes_s=0.5),
    "synced": Faults(agreed_lsn=None, sync_takes_s=0.5, quorum_takes_s=0.1),
    "synced at last": Faults(agreed_lsn=None, sync_takes_s=0.3, syncs_that_fail=3),
    "never synced": Faults(agreed_lsn=None, sync_takes_s=1e9),
}


@pytest.mark.parametrize("life", STORED_LIVES)
def test_a_stop_at_any_step_of_a_start_over_safekeepers_ends_it(life: str) -> None:
    for stop_at in range(0, 90, 2):
        world = stored(replace(STORED_LIVES[life]), stop_at)
        world.begin()
        for _ in range(stop_at):
            world.runtime.step()
        began = world.runtime.clock.now()
        world.stop(5.0)
        world.until(PostgresStopped)
        assert world.starter.times[-1] - began < 1.0, stop_at
        assert world.server.left == [], stop_at
        told = len(world.starter.told)
        world.rest(10.0)
        assert len(world.starter.told) == told, f"something was told after the stop: {world.starter.told}"


def gone(faults: Faults) -> World:
    """A world whose Postgres was stopped in order."""
    world = stored(faults).start()
    world.stop()
    world.until(PostgresStopped)
    return world


def test_after_the_end_of_postgres_the_safekeepers_are_synced_when_asked() -> None:
    world = gone(Faults(sync_takes_s=2.0))
    world.postgres.tell(SyncSafekeepers(SPEC, 5.0))
    world.until(SafekeepersSynced)
    assert [message.lsn for message in world.told(SafekeepersSynced)] == ["0/9"]
    assert world.server.start_lsns == [7]


def test_after_the_end_of_postgres_a_sync_is_tried_once_and_within_its_budget() -> None:
    failing, hanging = gone(Faults(syncs_that_fail=1)), gone(Faults(sync_takes_s=1e9))
    for world in (failing, hanging):
        world.postgres.tell(SyncSafekeepers(SPEC, 5.0))
        world.until(SafekeeperSyncFailed)
    assert failing.told(SafekeeperSyncFailed) == [SafekeeperSyncFailed("no quorum")]
    assert hanging.told(SafekeeperSyncFailed) == [SafekeeperSyncFailed("it had not ended after 5 s")]


def test_a_second_order_to_sync_at_the_end_is_refused() -> None:
    world = gone(Faults(sync_takes_s=2.0))
    world.postgres.tell(SyncSafekeepers(SPEC, 5.0))
    world.postgres.tell(SyncSafekeepers(SPEC, 5.0))
    world.rest(5.0)
    assert world.names()["SafekeepersSynced"] == 1
    assert world.names()["SafekeeperSyncFailed"] == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fails", [None, "no memory"])
def test_a_start_breaks_the_warming_off_and_waits_for_its_end(seed: int, fails: str | None) -> None:
    world = World(seed, Faults(warm_takes_s=600.0, warm_fails=fails))
    world.starter.starts = False
    world.begin()
    world.until(PgdataInspected)
    world.postgres.tell(WarmMemory())
    world.runtime.run(until=lambda: "warm" in world.server.begun)
    world.postgres.tell(PreparePgdata(1, SPEC))
    world.until(PgdataPrepared, PgdataFailed)
    assert isinstance(world.starter.told[-1], PgdataPrepared)
    ended = [line.partition("job ")[2] for line in world.runtime.trace if "job '" in line]
    assert ended.index("'warm the memory' ended") < ended.index("'prepare PGDATA' ended"), (
        "they share folders"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stop_breaks_the_warming_off(seed: int) -> None:
    world = World(seed, Faults(warm_takes_s=600.0))
    world.starter.starts = False
    world.begin()
    world.until(PgdataInspected)
    world.postgres.tell(WarmMemory())
    world.runtime.run(until=lambda: "warm" in world.server.begun)
    world.postgres.tell(StopPostgres(20.0))
    world.until(PostgresStopped)
    assert Work.WARM not in world.actor.state.work

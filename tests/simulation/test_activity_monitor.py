"""The ActivityMonitor under made-up time, in orders drawn from seeds."""

import logging
import random

import pytest
from compute_node.actors.activity_monitor.actor import ActivityMonitor, MonitorMessage, ToSupervisor
from compute_node.actors.activity_monitor.checks import Readings, Sessions, Totals
from compute_node.actors.activity_monitor.outcomes import (
    Disconnected,
    JobBrokenOff,
    LookAgain,
    Observed,
)
from compute_node.actors.activity_monitor.reach import CONDITIONS, Observation, Reach
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.simulated import SimulatedClock, SimulatedRuntime
from compute_node.messages.activity import ActivityObserved, StartMonitoring, StopMonitoring
from compute_node.messages.base import Message, decode, encode
from compute_node.messages.lifecycle import ActorFailed, Condition, ConditionCleared, ConditionRaised
from compute_node.messages.metrics import CRASH_RESTARTS, CURRENT_DOWNTIME, DOWNTIME_TOTAL
from typing_extensions import override

from doubles.observer import ACTIVE, FakeObserver
from doubles.specs import settings

LOGGER = "compute_node.activity_monitor"


class Listener(Actor[ToSupervisor | ActorFailed]):
    """Stands for the Supervisor."""

    def __init__(self) -> None:
        self.heard: list[ToSupervisor | ActorFailed] = []

    @override
    def receive(self, message: ToSupervisor | ActorFailed) -> None:
        self.heard.append(message)

    @property
    def conditions(self) -> set[Condition]:
        holding: set[Condition] = set()
        for message in self.heard:
            if isinstance(message, ConditionRaised):
                holding.add(message.condition)
            elif isinstance(message, ConditionCleared):
                assert message.condition in holding, "a condition was cleared that did not hold"
                holding.remove(message.condition)
        return holding

    @property
    def activity(self) -> list[float]:
        return [message.at_s for message in self.heard if isinstance(message, ActivityObserved)]


class Stage:
    """A monitor, its Postgres, and who listens to it."""

    def __init__(self, seed: int = 0) -> None:
        self.runtime = SimulatedRuntime(seed)
        self.clock = SimulatedClock()
        self.runtime.clock = self.clock
        self.listener = Listener()
        supervisor = self.runtime.spawn("supervisor", self.listener)
        self.postgres = FakeObserver(self.clock)
        self.actor = ActivityMonitor(settings(), supervisor, self.postgres)
        self.monitor: Ref[MonitorMessage] = self.runtime.spawn("activity_monitor", self.actor)

    def start(self, *, experimental: bool = False) -> None:
        self.monitor.tell(StartMonitoring(experimental))

    def stop(self) -> None:
        self.monitor.tell(StopMonitoring())

    @property
    def total(self) -> float:
        return self.runtime.metrics.read(DOWNTIME_TOTAL)[()]

    @property
    def current(self) -> float:
        return self.runtime.metrics.read(CURRENT_DOWNTIME)[()]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_nothing_is_looked_at_before_the_start(stage: Stage) -> None:
    stage.runtime.advance(60)

    assert stage.postgres.looks == 0


def test_the_first_look_comes_at_once_and_the_next_half_a_second_after_the_end_of_the_last(
    stage: Stage,
) -> None:
    stage.postgres.takes_s = 0.3
    stage.start()
    stage.runtime.advance(0.3)
    stage.runtime.settle()
    assert stage.postgres.looks == 1

    stage.runtime.advance(0.49)
    assert stage.runtime._jobs == []

    stage.runtime.advance(0.02)
    assert len(stage.runtime._jobs) == 1


def test_every_second_look_probes_while_all_is_well(stage: Stage) -> None:
    stage.start()
    stage.runtime.advance(1.6)

    assert stage.postgres.probes == [True, False, True, False]


def test_every_look_probes_while_something_is_wrong(stage: Stage) -> None:
    stage.postgres.reach = Reach.FROZEN
    stage.start()
    stage.runtime.advance(1.6)

    assert stage.postgres.probes == [True, True, True, True]


@pytest.mark.parametrize("reach", tuple(CONDITIONS))
def test_trouble_raises_its_condition_and_counts_until_it_is_over(stage: Stage, reach: Reach) -> None:
    stage.start()
    stage.runtime.advance(2.1)
    stage.postgres.reach = reach
    stage.runtime.advance(2.1)

    assert stage.listener.conditions == {CONDITIONS[reach]}
    assert stage.current > 1500
    total = stage.total
    assert total == stage.current

    stage.postgres.reach = Reach.UP
    stage.runtime.advance(2.1)

    assert stage.listener.conditions == set()
    assert stage.current == 0
    assert stage.total == total


def test_a_condition_that_lasts_is_told_once(stage: Stage) -> None:
    stage.postgres.reach = Reach.FROZEN
    stage.start()
    stage.runtime.advance(60)

    assert [type(message) for message in stage.listener.heard if isinstance(message, ConditionRaised)] == [
        ConditionRaised
    ]


def test_one_condition_follows_another(stage: Stage) -> None:
    stage.start()
    stage.postgres.reach = Reach.UNREACHABLE
    stage.runtime.advance(1.1)
    stage.postgres.reach = Reach.RECOVERING
    stage.runtime.advance(1.1)

    assert stage.listener.conditions == {Condition.RECOVERING}


def test_timeouts_of_the_monitor_are_neither_down_nor_up(stage: Stage) -> None:
    stage.start()
    stage.runtime.advance(1)
    stage.postgres.reach = Reach.SLOW
    stage.runtime.advance(9)

    assert stage.total == 0
    assert stage.listener.conditions == set()


def test_logins_that_hang_for_ten_seconds_are_downtime_from_the_beginning(stage: Stage) -> None:
    stage.start()
    stage.runtime.advance(1.1)
    stage.postgres.reach = Reach.SLOW
    stage.runtime.advance(12)

    assert stage.listener.conditions == {Condition.POSTGRES_FROZEN}
    assert stage.total > 10_000


def test_an_outage_is_logged_when_it_changes_and_every_ten_seconds(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    stage.start()
    stage.runtime.advance(2.1)
    stage.postgres.reach = Reach.UNREACHABLE
    stage.runtime.advance(25)
    stage.postgres.reach = Reach.RECOVERING
    stage.runtime.advance(2)
    stage.postgres.reach = Reach.UP
    stage.runtime.advance(5)

    texts = [record.getMessage() for record in caplog.records if record.name.startswith(LOGGER)]
    assert [text.split(":")[0].split(";")[0] for text in texts] == [
        "Postgres is unreachable",
        "Postgres is unreachable",
        "Postgres is unreachable",
        "Postgres is recovering",
        "Postgres is up again",
    ]
    assert all("downtime_info: current_ms=" in text for text in texts)


def test_a_crash_that_is_over_before_anybody_looks_is_shown_and_counted_once(stage: Stage) -> None:
    stage.postgres.readings = Readings(server_began_s=1.0)
    stage.start()
    stage.runtime.advance(10)
    assert stage.listener.heard == []

    stage.postgres.readings = Readings(server_began_s=2.0)
    stage.runtime.advance(10)
    assert [type(message) for message in stage.listener.heard] == [ConditionRaised, ConditionCleared]
    assert stage.runtime.metrics.read(CRASH_RESTARTS)[()] == 1
    assert 0 < stage.total <= 600

    stage.stop()
    stage.postgres.readings = Readings(server_began_s=3.0)
    stage.start()
    stage.runtime.advance(10)
    assert stage.runtime.metrics.read(CRASH_RESTARTS)[()] == 1, "a new server is no crash of the old one"


def test_a_stop_is_silent_and_clears_what_was_shown(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.postgres.reach = Reach.UNREACHABLE
    stage.start()
    stage.runtime.advance(5)
    total = stage.total
    caplog.clear()

    stage.stop()
    stage.runtime.advance(60)

    assert stage.listener.conditions == set()
    assert stage.current == 0
    assert stage.total == total > 0
    assert not [record for record in caplog.records if record.name.startswith(LOGGER)]


def test_a_stop_closes_the_connection(stage: Stage) -> None:
    stage.start()
    stage.runtime.advance(1)
    before = stage.postgres.connected

    stage.stop()
    stage.runtime.advance(0)

    assert (before, stage.postgres.connected) == (True, False)
    assert stage.runtime._jobs == []


def test_a_stop_during_a_look_breaks_it_off_and_counts_nothing(stage: Stage) -> None:
    stage.start()
    stage.runtime.advance(1.1)
    stage.postgres.reach = Reach.FROZEN
    stage.postgres.takes_s = 1.0
    stage.runtime.advance(0.7)
    looks = stage.postgres.looks

    stage.stop()
    stage.runtime.advance(10)

    assert stage.postgres.looks == looks
    assert not stage.postgres.connected
    assert stage.total == 0
    assert stage.listener.conditions == set()


def test_a_stop_before_any_start_does_nothing(stage: Stage) -> None:
    stage.stop()
    stage.runtime.advance(1)

    assert stage.listener.heard == []
    assert stage.postgres.looks == 0


def test_the_time_between_stop_and_start_is_no_downtime(stage: Stage) -> None:
    stage.start()
    stage.runtime.advance(1)
    stage.stop()
    stage.runtime.advance(100)
    stage.postgres.reach = Reach.UNREACHABLE
    stage.start()
    stage.runtime.advance(0.6)

    assert 0 < stage.total <= 600


def test_a_start_while_watching_is_a_new_server_with_a_new_connection(stage: Stage) -> None:
    stage.start()
    stage.runtime.advance(0.1)
    stage.start(experimental=True)
    stage.runtime.advance(0.1)

    assert len(set(stage.postgres.generations)) == 2
    assert stage.postgres.experimental == [False, True]


def test_what_was_seen_of_the_server_before_counts_no_more(stage: Stage) -> None:
    stage.postgres.reach = Reach.FROZEN
    stage.start()
    stage.runtime.step()
    (look,) = stage.runtime._jobs
    stage.start()
    stage.runtime._try_job(look)
    stage.postgres.reach = Reach.UP
    stage.runtime.settle()

    assert stage.postgres.generations == [1, 2]
    assert stage.listener.heard == []


def test_activity_is_told_only_when_it_moved(stage: Stage) -> None:
    at = stage.clock.wall() - 30
    stage.postgres.readings = Readings(
        sessions=(Sessions(own=False, state="idle", count=1, changed_at_s=at),)
    )
    stage.start()
    stage.runtime.advance(10)

    assert stage.listener.heard == [ActivityObserved(at, "a session became idle")]


def test_a_running_session_is_told_at_every_look(stage: Stage) -> None:
    stage.postgres.readings = ACTIVE
    stage.start()
    stage.runtime.advance(1.1)

    began = 1_700_001_000.0
    assert stage.listener.activity == [began, began + 0.5, began + 1.0]


def test_an_old_connection_shows_activity_although_new_ones_hang(stage: Stage) -> None:
    stage.postgres.readings = ACTIVE
    stage.postgres.reach = Reach.FROZEN
    stage.start()
    stage.runtime.advance(0.1)

    assert stage.listener.activity
    assert stage.listener.conditions == {Condition.POSTGRES_FROZEN}


def test_counters_of_another_run_are_not_compared(stage: Stage) -> None:
    stage.postgres.readings = Readings(totals=Totals(5, 1.0))
    stage.start(experimental=True)
    stage.runtime.advance(1)
    stage.stop()
    stage.runtime.advance(1)
    stage.postgres.readings = Readings(totals=Totals(0, 0.0))
    stage.start(experimental=True)
    stage.runtime.advance(1)

    assert stage.listener.activity == []


def test_a_fault_of_the_program_is_not_taken_for_an_outage(stage: Stage) -> None:
    stage.postgres.broken = LookupError("a row is missing")
    stage.start()
    stage.runtime.advance(1)

    assert stage.listener.heard == [
        ActorFailed("activity_monitor", "job 'look': LookupError: a row is missing")
    ]


@pytest.mark.parametrize(
    "message",
    [
        LookAgain(),
        Observed(3, Observation(Reach.FROZEN, "why", ACTIVE)),
        Observed(3, Observation(Reach.UP, readings=Readings(totals=Totals(1, 2.5)))),
        Disconnected(),
        JobBrokenOff(),
    ],
)
def test_its_private_messages_encode_and_decode(message: Message) -> None:
    assert decode(type(message), encode(message)) == message


class Chaos:
    """Does one thing after another to the monitor, drawn from a seed, and checks the promises at each step."""

    def __init__(self, seed: int) -> None:
        self.stage = Stage(seed)
        self.choose = random.Random(seed + 1)  # noqa: S311 - a seeded choice is what is wanted
        self.total = 0.0
        self.total_at_stop: float | None = None
        self.stage.runtime.after_step = self.check

    def check(self) -> None:
        stage = self.stage
        assert len(stage.runtime._jobs) <= 1, "two jobs at once"
        assert stage.total >= self.total, "the total shrank"
        self.total = stage.total
        if self.total_at_stop is not None:
            assert self.total == self.total_at_stop, "downtime was counted after the stop"
            assert stage.current == 0
        told = stage.listener.activity
        assert told == sorted(set(told)), "activity moved back or was told twice"
        assert not any(isinstance(message, ActorFailed) for message in stage.listener.heard)

    def act(self) -> None:
        self.choose.choice(
            (self.start, self.stage.stop, self.change_postgres, self.set_the_clock, self.pass_time, self.step)
        )()
        if not self.stage.actor._monitoring and not self.stage.runtime._mailboxes["activity_monitor"]:
            self.total_at_stop = self.stage.total

    def start(self) -> None:
        self.total_at_stop = None
        self.stage.start(experimental=self.choose.random() < 0.5)

    def change_postgres(self) -> None:
        postgres = self.stage.postgres
        changed_at_s = self.stage.clock.wall() + self.choose.uniform(-100, 100)
        idle = Sessions(own=False, state="idle", count=1, changed_at_s=changed_at_s)
        postgres.reach = self.choose.choice(list(Reach))
        postgres.takes_s = self.choose.choice([0.0, 0.2, 1.0])
        postgres.readings = self.choose.choice(
            [
                None,
                ACTIVE,
                Readings(),
                Readings(sessions=(idle,)),
                Readings(totals=Totals(self.choose.randrange(3), 0.0)),
            ]
        )

    def set_the_clock(self) -> None:
        self.stage.clock.wall_is_off_by_s += self.choose.uniform(-3600, 3600)

    def pass_time(self) -> None:
        self.stage.runtime.advance(self.choose.uniform(0, 12))

    def step(self) -> None:
        for _ in range(self.choose.randrange(5)):
            self.stage.runtime.step()

    def end(self, caplog: pytest.LogCaptureFixture) -> None:
        """Stop for good: nothing is looked at, shown, counted or logged any more."""
        self.total_at_stop = None
        self.stage.stop()
        self.stage.runtime.settle()
        self.total_at_stop = self.stage.total
        caplog.clear()
        looks = self.stage.postgres.looks
        self.stage.runtime.advance(30)

        assert self.stage.postgres.looks == looks
        assert not self.stage.postgres.connected
        assert self.stage.listener.conditions == set()
        assert self.stage.runtime._jobs == []
        assert not [record for record in caplog.records if record.name.startswith(LOGGER)]


@pytest.mark.parametrize("seed", range(100))
def test_no_order_of_events_breaks_the_promises(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    chaos = Chaos(seed)
    try:
        for _ in range(60):
            chaos.act()
        chaos.end(caplog)
    except AssertionError as error:
        msg = "\n".join((f"seed {seed}: {error}", *chaos.stage.runtime.trace[-100:]))
        raise AssertionError(msg) from error


def test_the_same_seed_replays_exactly(caplog: pytest.LogCaptureFixture) -> None:
    traces = []
    for _ in range(2):
        chaos = Chaos(7)
        for _ in range(60):
            chaos.act()
        traces.append(chaos.stage.runtime.trace)

    assert traces[0] == traces[1]

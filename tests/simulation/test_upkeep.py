"""Migrations and collections beside the rest of the Configurator's work, in made-up time."""

import logging
from typing import Any

import pytest
from compute_node.actors.configurator.actor import Configurator
from compute_node.actors.configurator.extensions import Extension
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.messages.base import Message
from compute_node.messages.catalog import (
    ApplySpec,
    Checkpoint,
    CheckpointEnded,
    CollectExtensions,
    RunMigrations,
    SpecApplied,
    StopUpkeep,
)
from compute_node.messages.metrics import FAILED_MIGRATIONS, INSTALLED_EXTENSIONS
from compute_node.messages.spec import ComputeSpec
from typing_extensions import override

from doubles.administration import FakeAdministration
from doubles.specs import a_spec, settings

SEEDS = range(20)
PLPGSQL = ("plpgsql", "1.0", "1")


class Listener(Actor[Message]):
    """Stands where the Supervisor is."""

    def __init__(self) -> None:
        self.heard: list[Message] = []

    @override
    def receive(self, message: Message) -> None:
        self.heard.append(message)


class House:
    def __init__(self, seed: int = 0, **flags: Any) -> None:
        self.runtime = SimulatedRuntime(seed)
        self.listener = Listener()
        self.postgres = FakeAdministration()
        supervisor: Ref[Any] = self.runtime.spawn("supervisor", self.listener)
        actor = Configurator(settings(**flags), supervisor, self.postgres)
        self.configurator = self.runtime.spawn("configurator", actor)

    def tell(self, *messages: Any) -> None:
        """Tell it all of these, and let it come to rest."""
        for message in messages:
            self.configurator.tell(message)
        self.runtime.settle()

    def configure(self, spec: ComputeSpec, *, starting: bool = False) -> None:
        self.tell(ApplySpec(1, spec, starting=starting))

    @property
    def shown(self) -> dict[tuple[str, ...], float]:
        return self.runtime.metrics.read(INSTALLED_EXTENSIONS)

    def looks_after(self, seconds: float) -> int:
        """Let that much time pass and say how often it looked meanwhile."""
        before = self.postgres.collections
        self.runtime.advance(seconds)
        return self.postgres.collections - before


@pytest.mark.parametrize("seed", SEEDS)
def test_upkeep_that_does_not_end_is_in_the_way_of_neither_an_application_nor_a_checkpoint(seed: int) -> None:
    house = House(seed)
    house.postgres.upkeep_held = True
    house.tell(RunMigrations(), CollectExtensions(at_once=True))
    house.configure(a_spec())
    house.tell(Checkpoint(5.0))
    assert [type(message) for message in house.listener.heard] == [SpecApplied, CheckpointEnded]
    assert (house.postgres.migrations_done, house.shown) == (0, {})
    house.postgres.upkeep_held = False
    house.runtime.settle()
    assert (house.postgres.migrations_done, house.shown) == (12, {PLPGSQL: 1.0})


# --- Migrations ------------------------------------------------------------------------------------------


def test_a_failed_migration_is_counted_by_its_number_and_told_and_nothing_else_comes_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    house.postgres.failing_migration = 4
    house.tell(RunMigrations())
    assert house.runtime.metrics.read(FAILED_MIGRATIONS) == {("4",): 1.0}
    assert "Failed to run migrations: migration 4 failed; 3 of 12 are done" in caplog.text
    assert house.listener.heard == []


def test_a_postgres_that_cannot_be_reached_is_told_and_no_migrations_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    house.postgres.unreachable = True
    house.tell(RunMigrations())
    assert house.runtime.metrics.read(FAILED_MIGRATIONS) == {}
    assert "Failed to run migrations: nobody listens" in caplog.text


def test_a_defect_in_the_upkeep_costs_no_actor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    house = House()
    for method in ("migrate", "installed_extensions"):
        monkeypatch.setattr(house.postgres, method, fail)
    house.tell(RunMigrations(), CollectExtensions(at_once=True))
    assert "Failed to run migrations: ZeroDivisionError" in caplog.text
    assert "installed extensions could not be collected: ZeroDivisionError" in caplog.text
    assert "Traceback" in caplog.text
    house.configure(a_spec())
    assert isinstance(house.listener.heard[-1], SpecApplied)


# --- Collections -----------------------------------------------------------------------------------------


def test_the_next_look_comes_twice_the_interval_after_the_last_one_has_ended() -> None:
    house = House(installed_extensions_interval_s=300)
    house.postgres.upkeep_held = True
    house.tell(CollectExtensions(at_once=True))
    assert house.looks_after(10_000) == 0
    house.postgres.upkeep_held = False
    assert house.looks_after(599) == 1
    assert house.looks_after(2) == 1
    assert house.looks_after(6_000) == 10


def test_where_nothing_is_to_be_looked_at_yet_it_sleeps_first() -> None:
    house = House(installed_extensions_interval_s=300)
    house.tell(CollectExtensions(at_once=False))
    assert house.looks_after(599) == 0
    assert house.looks_after(2) == 1


@pytest.mark.parametrize(
    ("spec", "period_s"),
    [
        (a_spec(suspend_timeout_seconds=100), 200),
        (a_spec(suspend_timeout_seconds=100, skip_pg_catalog_updates=True), 20),
        (a_spec(suspend_timeout_seconds=100, mode="Replica"), 20),
        (a_spec(suspend_timeout_seconds=-1), 7200),
        (a_spec(suspend_timeout_seconds=-(2**63)), 7200),
    ],
    ids=["primary", "skipped", "replica", "never suspended", "nonsense"],
)
def test_the_spec_of_a_primary_sets_the_pace_instead_of_the_flag(spec: ComputeSpec, period_s: int) -> None:
    house = House(installed_extensions_interval_s=10)
    house.configure(spec, starting=True)
    house.tell(CollectExtensions(at_once=True))
    assert house.looks_after(period_s - 1) == 0
    assert house.looks_after(2) == 1


def test_a_reconfiguration_changes_the_pace_from_the_next_pause_on_and_never_to_a_faster_one() -> None:
    house = House()
    house.configure(a_spec(suspend_timeout_seconds=100), starting=True)
    house.tell(CollectExtensions(at_once=True))
    house.configure(a_spec(suspend_timeout_seconds=500, skip_pg_catalog_updates=True))
    assert house.looks_after(201) == 1
    assert house.looks_after(998) == 0
    house.configure(a_spec(suspend_timeout_seconds=10))
    assert house.looks_after(2) == 1
    assert house.looks_after(998) == 0
    assert house.looks_after(2) == 1


def test_an_extension_that_is_gone_is_not_shown_any_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    house = House(installed_extensions_interval_s=1)
    house.postgres.extensions = (Extension("hstore", "1.8", 16400), Extension("plpgsql", "1.0", 10))
    house.tell(CollectExtensions(at_once=True))
    assert house.shown == {("hstore", "1.8", "0"): 1.0, PLPGSQL: 1.0}
    house.postgres.extensions = (Extension("plpgsql", "1.0", 10), Extension("plpgsql", "1.0", 10))
    house.runtime.advance(2.5)
    assert house.shown == {PLPGSQL: 2.0}
    said = [record.message for record in caplog.records if "[NEON_EXT" in record.message]
    assert said[0] == "[NEON_EXT_SPAWN] Spawning background installed extensions worker with Timeout: 2"
    assert said[1].startswith('[NEON_EXT_STAT] {"extensions":[{"extname":"hstore"')
    assert said[2] == "[NEON_EXT_INT_SLEEP]: Interval: 2"


def test_a_look_that_fails_is_told_what_is_known_stays_and_it_looks_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(installed_extensions_interval_s=1)
    house.tell(CollectExtensions(at_once=True))
    house.postgres.unreachable = True
    assert house.looks_after(2.5) == 0
    assert "installed extensions could not be collected: nobody listens" in caplog.text
    assert house.shown == {PLPGSQL: 1.0}
    house.postgres.unreachable = False
    assert house.looks_after(2) == 1


# --- The end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stop_breaks_off_what_is_under_way_without_a_complaint(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(seed)
    house.postgres.upkeep_held = True
    house.tell(RunMigrations(), CollectExtensions(at_once=True))
    house.tell(StopUpkeep())
    house.postgres.upkeep_held = False
    assert house.looks_after(100_000) == 0
    assert house.postgres.migrations_done == 0
    assert house.runtime.metrics.read(FAILED_MIGRATIONS) == {}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_after_a_stop_nothing_begins_any_more() -> None:
    house = House()
    house.tell(CollectExtensions(at_once=True))
    house.tell(StopUpkeep())
    assert house.looks_after(100_000) == 0


def test_a_look_whose_outcome_comes_after_the_stop_is_the_last_one() -> None:
    """Its job may end between the stop's arrival and its handling."""
    orders = set()
    for seed in SEEDS:
        house = House(seed)
        house.postgres.upkeep_held = True
        house.tell(CollectExtensions(at_once=True))
        house.postgres.upkeep_held = False
        house.configurator.tell(StopUpkeep())
        for _ in range(10):
            house.runtime.step()
        orders.add(house.postgres.collections)
        assert house.looks_after(100_000) == 0
    assert orders == {0, 1}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stop_in_the_middle_of_anything_is_the_last_of_it(seed: int) -> None:
    house = House(seed, installed_extensions_interval_s=1)
    house.configurator.tell(RunMigrations())
    house.configurator.tell(CollectExtensions(at_once=seed % 2 == 0))
    for _ in range(house.runtime.random.randrange(40)):
        house.runtime.step()
    house.tell(StopUpkeep())
    assert house.looks_after(100_000) == 0

"""The Configurator among other actors, in made-up time, over a Postgres that is a model."""

from typing import Any

import msgspec
import pytest
from compute_node.actors.configurator.actor import Configurator
from compute_node.actors.configurator.model import DatabaseState, Mark
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.messages.base import Message
from compute_node.messages.catalog import (
    ApplyFailed,
    ApplySpec,
    CancelApply,
    Checkpoint,
    CheckpointEnded,
    MakeReady,
    SpecApplied,
)
from compute_node.messages.metrics import APPLIED_STATEMENTS
from compute_node.messages.planning import CannotPlan, CatalogPlanned, PlanSpec
from compute_node.messages.spec import Cluster, ComputeSpec, Database, Role, StaticMode
from typing_extensions import override

from doubles.administration import FakeAdministration
from doubles.specs import a_spec, settings

SEEDS = range(20)


class Listener(Actor[Message]):
    """Stands where the Supervisor is."""

    def __init__(self) -> None:
        self.heard: list[Message] = []

    @override
    def receive(self, message: Message) -> None:
        self.heard.append(message)


class House:
    def __init__(self, seed: int) -> None:
        self.runtime = SimulatedRuntime(seed)
        self.listener = Listener()
        self.postgres = FakeAdministration()
        supervisor: Ref[Any] = self.runtime.spawn("supervisor", self.listener)
        actor = Configurator(settings(), supervisor, self.postgres)
        self.configurator = self.runtime.spawn("configurator", actor)

    def apply(self, operation: int, spec: ComputeSpec, *, starting: bool = True) -> Message:
        """Apply a spec and return the outcome."""
        before = len(self.listener.heard)
        self.configurator.tell(ApplySpec(operation, spec, starting))
        self.runtime.run(until=lambda: len(self.listener.heard) > before)
        return self.listener.heard[-1]


@pytest.fixture(params=SEEDS)
def house(request: pytest.FixtureRequest) -> House:
    return House(request.param)


def two_databases(**changes: Any) -> ComputeSpec:
    cluster = Cluster((Role("a"), Role("b")), (Database("x", "a"), Database("y", "b")))
    return a_spec(cluster=cluster, **changes)


def test_a_spec_is_applied_and_its_changes_are_counted(house: House) -> None:
    outcome = house.apply(7, two_databases())
    assert isinstance(outcome, SpecApplied)
    assert (outcome.operation, outcome.statements) == (7, len(house.postgres.done))
    assert set(house.postgres.visited) == {"x", "y"}
    assert house.runtime.metrics.read(APPLIED_STATEMENTS) == {(): float(outcome.statements)}


def test_what_applying_takes_is_loaded_ahead_and_an_application_waits_for_it(house: House) -> None:
    house.configurator.tell(MakeReady())
    assert isinstance(house.apply(1, two_databases()), SpecApplied)
    assert house.postgres.loaded


def test_the_same_spec_again_changes_nothing_and_looks_into_no_database(house: House) -> None:
    house.apply(1, two_databases())
    house.postgres.visited.clear()
    outcome = house.apply(2, two_databases(), starting=False)
    assert isinstance(outcome, SpecApplied)
    assert (outcome.statements, house.postgres.visited) == (0, [])


def test_start_and_reconfiguration_make_the_same_changes(house: House) -> None:
    other = House(0)
    house.apply(1, two_databases(), starting=True)
    other.apply(1, two_databases(), starting=False)
    assert house.postgres.done == other.postgres.done


def test_after_a_failed_visit_the_database_is_visited_again(house: House) -> None:
    house.postgres.broken['database "x"'] = "out of sorts"
    failed = house.apply(1, two_databases())
    assert isinstance(failed, ApplyFailed)
    house.postgres.broken.clear()
    assert isinstance(house.apply(2, two_databases()), SpecApplied)
    house.postgres.visited.clear()
    house.apply(3, two_databases())
    assert house.postgres.visited == []


def test_one_broken_object_stops_neither_its_neighbours_nor_hides_its_name(house: House) -> None:
    house.postgres.broken['role "a"'] = "no such luck"
    outcome = house.apply(1, two_databases())
    assert isinstance(outcome, ApplyFailed)
    assert outcome.error == (
        'cannot apply the spec: create and alter roles: cannot create role "a": no such luck'
        ' | create and alter databases: cannot create database "x" with owner "a": cannot create database x of a'
    )
    assert "b" in house.postgres.catalog.roles
    assert house.postgres.catalog.databases.keys() & {"x", "y"} == {"y"}
    assert house.postgres.visited == ["y"]


BRANCH = "b" * 32


@pytest.mark.parametrize(
    ("mark", "shut", "subscribers"),
    [
        (None, False, False),
        (Mark("a" * 32), False, False),
        (Mark(BRANCH, frozenset({9})), False, False),
        (Mark(BRANCH, frozenset({9})), True, True),
        (Mark(BRANCH, frozenset({8})), False, True),
        (Mark(BRANCH), False, True),
    ],
    ids=["no mark", "of another", "not yet dropped", "where nobody can connect", "gone already", "dropped"],
)
def test_a_catalog_that_is_left_alone_is_read_to_know_if_subscribers_may_work(
    mark: Mark | None,
    shut: bool,  # noqa: FBT001 - a case
    subscribers: bool,  # noqa: FBT001 - a case
) -> None:
    house = House(1)
    known = house.postgres.catalog
    house.postgres.catalog = msgspec.structs.replace(
        known,
        databases=known.databases | {"x": DatabaseState("cloud_admin", oid=50, connectable=not shut)},
        subscriptions=frozenset({("x", 9)}),
        mark=mark,
    )
    spec = two_databases(
        skip_pg_catalog_updates=True, drop_subscriptions_before_start=True, timeline_id=BRANCH
    )
    outcome = house.apply(1, spec)
    assert isinstance(outcome, SpecApplied)
    assert (outcome.subscribers, outcome.statements, house.postgres.done) == (subscribers, 0, [])


def test_a_failure_elsewhere_does_not_hold_subscribers_and_one_of_theirs_does(house: House) -> None:
    spec = two_databases(drop_subscriptions_before_start=True, timeline_id=BRANCH)
    house.postgres.broken['role "a"'] = "no such luck"
    outcome = house.apply(1, spec)
    assert isinstance(outcome, ApplyFailed)
    assert outcome.subscribers
    house.postgres.broken = {"the list of inherited subscriptions": "no room"}
    house.postgres.catalog = msgspec.structs.replace(house.postgres.catalog, mark=None)
    outcome = house.apply(2, spec)
    assert isinstance(outcome, ApplyFailed)
    assert not outcome.subscribers


def test_what_is_refused_is_told_after_the_rest_is_done(house: House) -> None:
    spec = a_spec(cluster=Cluster((Role("pg_mine"), Role("a")), (Database("x", "a"),)))
    outcome = house.apply(1, spec)
    assert isinstance(outcome, ApplyFailed)
    assert 'role "pg_mine": it must not be created: Postgres reserves this name' in outcome.error
    assert "x" in house.postgres.catalog.databases


def test_a_postgres_that_cannot_be_reached_is_a_failed_application_not_a_dead_actor(house: House) -> None:
    house.postgres.unreachable = True
    outcome = house.apply(1, two_databases())
    assert outcome == ApplyFailed(1, "cannot apply the spec: cannot read the catalog: nobody listens")
    house.postgres.unreachable = False
    assert isinstance(house.apply(2, two_databases()), SpecApplied)


def test_an_unexpected_error_fails_the_application_and_forgets_what_was_seen(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.apply(1, two_databases())

    def bug(*_: object) -> None:
        msg = "a bug"
        raise RuntimeError(msg)

    with monkeypatch.context() as patched:
        patched.setattr(house.postgres, "apply", bug)
        assert house.apply(2, two_databases()) == ApplyFailed(2, "cannot apply the spec: RuntimeError: a bug")
    house.postgres.visited.clear()
    house.apply(3, two_databases())
    assert set(house.postgres.visited) == {"x", "y"}


def test_a_cut_application_is_made_complete_by_the_next_one(house: House) -> None:
    whole = House(0)
    whole.apply(1, two_databases())
    for cut in range(len(whole.postgres.done)):
        again = House(cut)
        again.postgres.operations_left = cut
        assert isinstance(again.apply(1, two_databases()), ApplyFailed)
        again.postgres.operations_left = None
        assert isinstance(again.apply(2, two_databases()), SpecApplied)
        assert again.postgres.catalog.roles == whole.postgres.catalog.roles
        assert set(again.postgres.catalog.databases) == set(whole.postgres.catalog.databases)


def test_a_cancelled_application_fails_and_the_next_one_is_taken(house: House) -> None:
    house.postgres.held = True
    house.configurator.tell(ApplySpec(1, two_databases(), starting=True))
    house.runtime.settle()
    house.configurator.tell(CancelApply(1))
    house.runtime.run(until=lambda: bool(house.listener.heard))
    (outcome,) = house.listener.heard
    assert isinstance(outcome, ApplyFailed)
    assert "asked to end" in outcome.error
    house.postgres.held = False
    assert isinstance(house.apply(2, two_databases()), SpecApplied)


def test_a_cancellation_of_another_operation_is_not_meant_for_this_one(house: House) -> None:
    house.postgres.held = True
    house.configurator.tell(ApplySpec(2, two_databases(), starting=True))
    house.configurator.tell(CancelApply(1))
    house.runtime.settle()
    assert house.listener.heard == []
    house.postgres.held = False
    house.runtime.run(until=lambda: bool(house.listener.heard))
    assert isinstance(house.listener.heard[0], SpecApplied)


def test_a_cancellation_when_nothing_runs_does_nothing(house: House) -> None:
    house.configurator.tell(CancelApply(1))
    house.runtime.settle()
    assert house.listener.heard == []
    assert isinstance(house.apply(2, two_databases()), SpecApplied)


def test_a_second_spec_while_one_is_applied_is_refused_and_the_first_goes_on(house: House) -> None:
    house.postgres.held = True
    house.configurator.tell(ApplySpec(1, two_databases(), starting=True))
    house.configurator.tell(ApplySpec(2, two_databases(), starting=True))
    house.runtime.settle()
    assert house.listener.heard == [ApplyFailed(2, "the spec of operation 1 is still being applied")]
    house.postgres.held = False
    house.runtime.run(until=lambda: len(house.listener.heard) > 1)
    assert isinstance(house.listener.heard[-1], SpecApplied)


@pytest.mark.parametrize(
    "changes",
    [{"skip_pg_catalog_updates": True}, {"mode": "Replica"}, {"mode": StaticMode("0/1")}],
    ids=["skipped", "replica", "static"],
)
def test_where_the_catalog_is_not_to_be_touched_nothing_is_done(changes: dict[str, Any]) -> None:
    house = House(0)
    assert house.apply(3, two_databases(**changes)) == SpecApplied(3, statements=0, took_ms=0)
    assert house.postgres.orders == []


def test_a_checkpoint_is_written_and_told_and_so_is_one_that_could_not_be() -> None:
    house = House(0)
    house.configurator.tell(Checkpoint(5.0))
    house.runtime.settle()
    assert (house.listener.heard, house.postgres.checkpoints) == ([CheckpointEnded()], 1)
    house.postgres.unreachable = True
    house.configurator.tell(Checkpoint(5.0))
    house.runtime.settle()
    assert house.listener.heard[1:] == [CheckpointEnded("nobody listens")]


def test_there_is_no_checkpoint_beside_an_application() -> None:
    house = House(0)
    house.postgres.held = True
    house.configurator.tell(ApplySpec(1, two_databases(), starting=True))
    house.configurator.tell(Checkpoint(5.0))
    house.runtime.settle()
    assert house.listener.heard == [CheckpointEnded("the spec of operation 1 is still being applied")]
    assert house.postgres.checkpoints == 0


def test_a_plan_says_what_an_application_does_and_changes_nothing(house: House) -> None:
    pending = house.configurator.request(PlanSpec(two_databases()))
    house.runtime.settle()
    planned = pending.get(0)
    assert isinstance(planned, CatalogPlanned)
    assert house.postgres.done == []
    house.apply(1, two_databases())
    assert [o.action for o in planned.operations] == [o.describe() for o in house.postgres.done]
    again = house.configurator.request(PlanSpec(two_databases()))
    house.runtime.settle()
    assert again.get(0) == CatalogPlanned()


def test_a_plan_leaves_out_databases_that_are_known_unless_it_is_to_look_everywhere() -> None:
    house = House(0)
    house.apply(1, two_databases())
    house.postgres.visited.clear()
    for everywhere, visited in ((False, []), (True, ["x", "y"])):
        pending = house.configurator.request(PlanSpec(two_databases(), everywhere=everywhere))
        house.runtime.settle()
        assert pending.get(0) == CatalogPlanned()
        assert house.postgres.visited == visited


def test_a_plan_is_made_beside_an_application_and_does_not_wait_for_it() -> None:
    house = House(0)
    house.postgres.held = True
    house.configurator.tell(ApplySpec(1, two_databases(), starting=True))
    house.runtime.settle()
    pending = house.configurator.request(PlanSpec(a_spec()))
    house.runtime.settle()
    busy = house.configurator.request(PlanSpec(a_spec()))
    house.runtime.settle()
    refused = busy.get(0)
    assert isinstance(refused, CannotPlan)
    assert refused.busy
    assert not pending.done
    house.postgres.held = False
    house.runtime.settle()
    assert isinstance(pending.get(0), CatalogPlanned)


def test_a_postgres_that_cannot_be_reached_is_no_plan_and_the_next_one_is_made() -> None:
    house = House(0)
    house.postgres.unreachable = True
    for unreachable in (True, False):
        house.postgres.unreachable = unreachable
        pending = house.configurator.request(PlanSpec(a_spec()))
        house.runtime.settle()
        reason = "cannot plan the spec: cannot read the catalog: nobody listens"
        assert (pending.get(0) == CannotPlan(reason)) is unreachable


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"skip_pg_catalog_updates": True}, "skip_pg_catalog_updates"), ({"mode": "Replica"}, "mode replica")],
    ids=["skipped", "replica"],
)
def test_where_the_catalog_is_not_to_be_touched_a_plan_says_so(changes: dict[str, Any], why: str) -> None:
    house = House(0)
    pending = house.configurator.request(PlanSpec(two_databases(**changes)))
    house.runtime.settle()
    planned = pending.get(0)
    assert isinstance(planned, CatalogPlanned)
    assert (planned.operations, house.postgres.planned) == ((), [])
    assert why in planned.warnings[0]

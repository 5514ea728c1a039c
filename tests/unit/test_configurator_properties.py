"""Whatever the catalog and the spec: a second application finds nothing to do, and a cut one can be resumed."""

import copy
from typing import Any

import msgspec
import pytest
from compute_node.actors.configurator.desired import Context
from compute_node.actors.configurator.model import (
    DROP_MARK,
    HEALTH_CHECK,
    SHARED,
    Catalog,
    DatabaseFacts,
    DatabaseState,
    ExtensionState,
    Holdings,
    Mark,
    RoleState,
)
from compute_node.actors.configurator.operations import DefaultTarget, DropDatabase, Grant, GrantTarget
from compute_node.actors.configurator.phases import plan
from compute_node.actors.configurator.port import AdministrationError, Order, Report
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Audit, Cluster, ComputeSpec, Database, DeltaOp, Role
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from msgspec import UNSET

from doubles.administration import ADMINISTRATOR, FakeAdministration, plain_catalog

pytestmark = pytest.mark.timeout(300)
"""A failing example takes its time to be made small."""

ROLES = ["a", "b", "c", "d"]
DATABASES = ["p", "q", "r", "s"]
DIGESTS = ["0" * 32, "f" * 32]
VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$" + "A" * 43 + "=:" + "B" * 43 + "="


@st.composite
def worlds(draw: st.DrawFn) -> FakeAdministration:
    catalog = plain_catalog(draw(st.sampled_from([140000, 150000, 170000])))
    stored = st.sampled_from([None, Secret("md5" + DIGESTS[0]), Secret("md5" + DIGESTS[1]), Secret(VERIFIER)])
    names = st.sampled_from([*ROLES, "neon_superuser", "web_access"])
    roles = draw(st.dictionaries(names, stored.map(RoleState)))
    databases: dict[str, DatabaseState] = {}
    facts: dict[str, DatabaseFacts] = {}
    dependents: set[tuple[str, str]] = set()
    owners = st.sampled_from([ADMINISTRATOR, *sorted(roles)])
    for number, name in enumerate([*draw(st.sets(st.sampled_from(DATABASES))), "postgres"]):
        databases[name] = DatabaseState(
            draw(owners) if name != "postgres" else ADMINISTRATOR,
            oid=100 + number,
            valid=name == "postgres" or draw(st.integers(0, 9)) > 0,
            template=name != "postgres" and draw(st.integers(0, 9)) == 0,
            grants_untouched=draw(st.booleans()),
            connectable=name == "postgres" or draw(st.integers(0, 9)) > 0,
            replicating=name != "postgres" and draw(st.integers(0, 9)) == 0,
        )
        holdings = draw(
            st.dictionaries(
                st.sampled_from([*sorted(roles), "a"]),
                st.builds(
                    Holdings,
                    owns=st.booleans(),
                    foreign_grants=st.frozensets(
                        st.builds(
                            Grant,
                            owners,
                            st.sampled_from(GrantTarget),
                            st.sampled_from([("1", "2", ""), ("3", "4", "")]),
                            st.just(("SELECT",)),
                        ),
                        max_size=2,
                    ),
                ),
            )
        )
        holdings = {role: held for role, held in holdings.items() if role in roles}
        dependents |= {(name, role) for role in holdings}
        facts[name] = DatabaseFacts(
            oid=100 + number,
            public_owner=draw(st.sampled_from([None, ADMINISTRATOR, "zenith_admin", "pg_database_owner"])),
            web_access_creates=draw(st.booleans()),
            default_privileges=draw(st.frozensets(st.sampled_from(DefaultTarget))),
            holdings=holdings,
        )
    dependents |= {(SHARED, role) for role in draw(st.sets(st.sampled_from(ROLES))) if role in roles}
    subscriptions = {
        (name, 900 + number): f"s{number}"
        for number, name in enumerate(draw(st.lists(st.sampled_from(sorted(facts)), max_size=3)))
    }
    for (name, oid), subscription in subscriptions.items():
        known = facts[name]
        facts[name] = msgspec.structs.replace(known, subscriptions=known.subscriptions | {subscription: oid})
    timelines = st.sampled_from([None, Mark("", frozenset({900})), Mark("aa" * 16, frozenset({900, 901}))])
    mark = draw(timelines)
    relocatable = st.booleans()
    packaged = st.builds(ExtensionState, st.just("2"), st.just("neon"), relocatable)
    installed = st.builds(
        ExtensionState, st.sampled_from(["1", "2"]), st.sampled_from(["neon", "public"]), relocatable
    )
    neon = draw(st.none() | packaged)
    return FakeAdministration(
        Catalog(
            catalog.server_version,
            catalog.roles | roles,
            catalog.databases | databases,
            draw(st.sampled_from([frozenset({"public"}), frozenset({"neon", "public"}), frozenset()])),
            frozenset(dependents),
            extensions={} if neon is None or draw(st.booleans()) else {"neon": draw(installed)},
            neon=neon,
            tables=draw(st.frozensets(st.just(HEALTH_CHECK)))
            | (frozenset() if mark is None else frozenset({DROP_MARK})),
            subscriptions=frozenset(subscriptions),
            mark=mark,
            silent=draw(st.frozensets(st.just("postgres"))),
        ),
        facts,
    )


@st.composite
def specs(draw: st.DrawFn) -> ComputeSpec:
    passwords = st.sampled_from([UNSET, None, *map(Secret, DIGESTS), Secret(VERIFIER)])
    names = st.lists(st.sampled_from([*ROLES, "web_access"]), max_size=4)
    roles = [Role(name, draw(passwords)) for name in draw(names)]
    owners = st.sampled_from([ADMINISTRATOR, *(role.name for role in roles)])
    listed = st.lists(st.sampled_from([*DATABASES, "postgres"]), max_size=4)
    databases = [Database(name, draw(owners)) for name in draw(listed)]

    def steps(delete: str, rename: str, known: list[str]) -> st.SearchStrategy[DeltaOp]:
        name = st.sampled_from(known)
        return st.builds(DeltaOp, st.just(delete), name) | st.builds(DeltaOp, st.just(rename), name, name)

    delta = st.lists(
        steps("delete_db", "rename_db", DATABASES) | steps("delete_role", "rename_role", ROLES), max_size=6
    )
    return ComputeSpec(
        format_version=1.0,
        cluster=Cluster(roles=tuple(roles), databases=tuple(databases)),
        suspend_timeout_seconds=0,
        delta_operations=tuple(draw(delta)),
        audit_log_level=draw(st.sampled_from([Audit.DISABLED, Audit.BASE, Audit.FULL])),
        drop_subscriptions_before_start=draw(st.booleans()),
        timeline_id=draw(st.sampled_from([None, "aa" * 16])),
    )


def told(world: FakeAdministration, spec: ComputeSpec) -> None:
    """Let a failing example be read."""
    note(f"roles {world.catalog.roles}")
    note(f"databases {world.catalog.databases}")
    note(f"spec: {spec.cluster.roles} {spec.cluster.databases}")
    note(f"delta: {[(step.action, step.name, step.new_name) for step in spec.delta_operations or ()]}")


def applied(world: FakeAdministration, spec: ComputeSpec, seen: frozenset[int] = frozenset()) -> Report:
    return world.apply(
        Order(spec, starting=True, privileged_role="neon_superuser", seen=seen), Cancellation()
    )


def refused(world: FakeAdministration, spec: ComputeSpec) -> tuple[str, ...]:
    """What the planner leaves out: the only errors there may be."""
    planned = plan(world.catalog, spec, Context(ADMINISTRATOR, "postgres"))
    return tuple(refusal.describe() for refusal in planned.refusals)


def final(world: FakeAdministration) -> tuple[Any, ...]:
    databases = {
        name: msgspec.structs.replace(state, oid=0 if state.oid > 20_000 else state.oid)
        for name, state in world.catalog.databases.items()
    }
    facts = {
        name: msgspec.structs.replace(known, oid=0 if known.oid > 20_000 else known.oid)
        for name, known in world.facts.items()
    }
    return (world.catalog.roles, databases, world.catalog.schemas, world.catalog.dependents, facts)


@given(worlds(), specs())
@settings(max_examples=50, deadline=None)
def test_a_second_application_finds_nothing_to_do(world: FakeAdministration, spec: ComputeSpec) -> None:
    told(world, spec)
    expected = refused(world, spec)
    first = applied(world, spec)
    assert first.errors == expected
    state = final(world)
    again = applied(world, spec, first.seen)
    assert (again.statements, again.visited, again.errors) == (0, 0, first.errors)
    afresh = applied(world, spec)
    assert (afresh.statements, afresh.errors) == (0, first.errors)
    assert final(world) == state


@given(worlds(), specs())
@settings(max_examples=50, deadline=None)
def test_the_planned_catalog_needs_no_plan(world: FakeAdministration, spec: ComputeSpec) -> None:
    told(world, spec)
    context = Context(ADMINISTRATOR, "postgres")
    planned = plan(world.catalog, spec, context)
    assert plan(planned.catalog, spec, context).operations == ()


@given(worlds(), specs())
@settings(max_examples=100, deadline=None)
def test_a_rehearsal_says_exactly_what_an_application_does_and_does_none_of_it(
    world: FakeAdministration, spec: ComputeSpec
) -> None:
    told(world, spec)
    before = final(world)
    order = Order(spec, starting=False, privileged_role="neon_superuser")
    rehearsed = world.rehearse(order, Cancellation())
    assert (final(world), world.done) == (before, [])
    report = world.apply(order, Cancellation())
    assert list(rehearsed.operations) == world.done
    assert tuple(refusal.describe() for refusal in rehearsed.refusals) == report.errors
    again = msgspec.structs.replace(order, seen=report.seen)
    assert world.rehearse(again, Cancellation()).operations == ()


@given(worlds(), specs(), st.data())
@settings(max_examples=50, deadline=None)
def test_what_failed_is_made_up_for_by_the_next_application(
    world: FakeAdministration, spec: ComputeSpec, data: st.DataObject
) -> None:
    told(world, spec)
    sound = copy.deepcopy(world)
    expected = applied(sound, spec)
    subjects = sorted({operation.subject for operation in sound.done})
    assume(subjects)
    broken = data.draw(st.sets(st.sampled_from(subjects), min_size=1, max_size=2))
    world.broken = dict.fromkeys(broken, "out of sorts")
    failed = applied(world, spec)
    assert len(failed.errors) > len(expected.errors)
    world.broken.clear()
    assert applied(world, spec, failed.seen).errors == expected.errors
    assert final(world) == final(sound)


@given(worlds(), specs(), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_an_application_cut_after_any_step_and_begun_again_reaches_the_same_catalog(
    world: FakeAdministration, spec: ComputeSpec, cut: int
) -> None:
    told(world, spec)
    uncut = copy.deepcopy(world)
    applied(uncut, spec)
    assume(cut < len(uncut.done))
    world.operations_left = cut
    with pytest.raises(AdministrationError):
        applied(world, spec)
    world.operations_left = None
    applied(world, spec)
    assert final(world) == final(uncut)


@given(worlds(), specs())
@settings(max_examples=50, deadline=None)
def test_a_database_is_dropped_only_if_the_spec_asks_for_it_or_it_is_invalid(
    world: FakeAdministration, spec: ComputeSpec
) -> None:
    told(world, spec)
    before = dict(world.catalog.databases)
    applied(world, spec)
    kept = {state.oid for state in world.catalog.databases.values()}
    gone = {name for name, state in before.items() if state.valid and state.oid not in kept}
    named = {step.name for step in spec.delta_operations or () if step.action in {"delete_db", "rename_db"}}
    assert gone <= named
    assert len(gone) <= sum(isinstance(done, DropDatabase) for done in world.done)

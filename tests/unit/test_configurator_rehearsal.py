"""What an application would do is found by looking, at the catalog as it stands."""

from collections.abc import Sequence

import msgspec
import pytest
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator import rehearsal
from compute_node.actors.configurator.model import (
    CollationDrift,
    DatabaseFacts,
    DatabaseState,
    Holdings,
    RoleState,
)
from compute_node.actors.configurator.plans import Plan, Visit, Visits
from compute_node.actors.configurator.port import Order
from compute_node.actors.configurator.rehearsal import Rehearsed, rehearse
from compute_node.actors.configurator.session import DecideVisit, Failure, VisitOutcome
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.planning import PlannedOperation, PlanRefusal
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Cluster, ComputeSpec, Database, DeltaOp, GenericOption, Role
from typing_extensions import override

from doubles.administration import ADMINISTRATOR, FakeAdministration, FakeSession, finish, plain_catalog
from doubles.specs import a_spec

DIGEST = "0123456789abcdef" * 2


def of(
    spec: ComputeSpec, world: FakeAdministration | None = None, seen: frozenset[int] = frozenset()
) -> Rehearsed:
    order = Order(spec, starting=False, privileged_role="neon_superuser", seen=seen)
    return (world or FakeAdministration()).rehearse(order, Cancellation())


def listed(*databases: Database, delta: tuple[DeltaOp, ...] = ()) -> ComputeSpec:
    roles = tuple(Role(name) for name in sorted({database.owner for database in databases}))
    return a_spec(cluster=Cluster(roles, databases), delta_operations=delta)


def world(server_version: int = 150000, **databases: DatabaseState) -> FakeAdministration:
    """A Postgres with these databases, their owners and the privileged role."""
    catalog = plain_catalog(server_version)
    owners = {state.owner: RoleState() for state in databases.values()} | {"neon_superuser": RoleState()}
    return FakeAdministration(
        msgspec.structs.replace(
            catalog, roles=catalog.roles | owners, databases=catalog.databases | databases
        )
    )


def test_a_new_database_is_looked_at_in_its_template_and_many_in_one_look() -> None:
    postgres = world()
    postgres.facts["template1"] = DatabaseFacts(oid=1, public_owner=ADMINISTRATOR)
    rehearsed = of(listed(Database("x", "a"), Database("y", "b")), postgres)
    assert postgres.visited == ["template1"]
    assert op.SetPublicOwner("x", "a") in rehearsed.operations
    assert op.SetPublicOwner("y", "b") in rehearsed.operations


def test_a_template_that_a_database_names_is_looked_into_instead() -> None:
    postgres = world(mine=DatabaseState("a", oid=50, template=True))
    postgres.facts["mine"] = DatabaseFacts(oid=50, default_privileges=frozenset(op.DefaultTarget))
    options = (GenericOption("template", "integer", '"mine"'),)
    rehearsed = of(listed(Database("x", "a", options)), postgres)
    assert postgres.visited == ["mine"]
    assert not [o for o in rehearsed.operations if isinstance(o, op.AlterDefaultPrivileges)]


@pytest.mark.parametrize(("version", "takes_public"), [(140000, True), (150000, False)])
def test_where_a_template_takes_no_connections_the_database_is_as_initdb_makes_it(
    version: int, *, takes_public: bool
) -> None:
    postgres = world(version)
    options = (GenericOption("TEMPLATE", "string", "template0"),)
    rehearsed = of(listed(Database("x", "a", options)), postgres)
    assert postgres.visited == []
    assert (op.SetPublicOwner("x", "a") in rehearsed.operations) is takes_public


def test_a_database_that_would_be_renamed_is_looked_into_under_the_name_that_it_has() -> None:
    postgres = world(old=DatabaseState("a", oid=50))
    rehearsed = of(listed(Database("new", "a"), delta=(DeltaOp("rename_db", "old", "new"),)), postgres)
    assert postgres.visited == ["old"]
    assert op.RenameDatabase("old", "new") in rehearsed.operations
    assert op.AlterDefaultPrivileges("new", "neon_superuser", op.DefaultTarget.TABLES) in rehearsed.operations


def test_grants_are_told_by_the_name_that_their_grantor_would_have() -> None:
    postgres = world(x=DatabaseState("m", oid=50))
    postgres.catalog = msgspec.structs.replace(
        postgres.catalog,
        roles=postgres.catalog.roles | {"gone": RoleState(), "old": RoleState()},
        dependents=frozenset({("x", "gone")}),
    )
    grant = op.Grant("old", op.GrantTarget.TABLE, ("public",), ("SELECT",))
    postgres.facts["x"] = DatabaseFacts(
        oid=50, holdings={"gone": Holdings(foreign_grants=frozenset({grant}))}
    )
    spec = a_spec(
        cluster=Cluster((Role("new"), Role("m")), (Database("x", "m"),)),
        delta_operations=(DeltaOp("rename_role", "old", "new"), DeltaOp("delete_role", "gone")),
    )
    rehearsed = of(spec, postgres)
    assert (
        op.RevokeGrant("x", "gone", op.Grant("new", op.GrantTarget.TABLE, ("public",), ("SELECT",)))
        in rehearsed.operations
    )


def test_a_role_that_would_be_new_counts_where_databases_are_visited() -> None:
    spec = a_spec(cluster=Cluster((Role("web_access"), Role("a")), (Database("x", "a"),)))
    assert op.GrantPublicToWebAccess("x") in of(spec).operations
    assert op.GrantPublicToWebAccess("x") not in of(listed(Database("x", "a"))).operations


def test_a_database_that_is_visited_twice_is_the_second_time_as_the_first_visit_would_leave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visit = Visits((Visit("postgres", ADMINISTRATOR, permissions=True),))
    monkeypatch.setattr(rehearsal, "plan", lambda catalog, *_: Plan((visit, visit), catalog))
    rehearsed = of(listed())
    assert len(rehearsed.operations) == len(set(rehearsed.operations)) == len(op.DefaultTarget)


def test_databases_that_an_application_would_leave_out_are_left_out() -> None:
    postgres = world(x=DatabaseState("a", oid=50))
    of(listed(Database("x", "a")), postgres, frozenset({50}))
    assert postgres.visited == []


def test_what_is_refused_and_what_is_warned_about_is_told() -> None:
    postgres = world(x=DatabaseState("a", oid=50, connectable=False))
    drift = CollationDrift("postgres", "2.31", "2.36")
    postgres.catalog = msgspec.structs.replace(postgres.catalog, drift=(drift,))
    spec = a_spec(cluster=Cluster((Role("pg_mine"), Role("a")), (Database("x", "a"),)))
    told = of(spec, postgres).told()
    assert told.refused == (
        PlanRefusal('role "pg_mine"', "it must not be created: Postgres reserves this name"),
    )
    assert told.warnings[0] == 'database "x" takes no connections: it was not looked into'
    assert 'database "postgres" was made with version 2.31' in told.warnings[1]


def test_operations_are_told_without_their_passwords() -> None:
    told = of(a_spec(cluster=Cluster((Role("a", Secret(DIGEST)),), ()))).told()
    wanted = PlannedOperation("create and alter roles", None, 'role "a"', 'create role "a"')
    assert wanted in told.operations
    assert DIGEST not in repr(told)


class _Closed(FakeSession):
    @override
    async def visit(self, visits: Sequence[Visit], decide: DecideVisit) -> tuple[VisitOutcome, ...]:
        closed = [visit for visit in visits if visit.database == "template1"]
        others = await super().visit([visit for visit in visits if visit not in closed], decide)
        return (
            *others,
            *(VisitOutcome(visit, failures=(Failure("look", "it is closed"),)) for visit in closed),
        )


def test_a_database_that_cannot_be_looked_into_is_refused_and_the_rest_is_planned() -> None:
    spec = listed(Database("new", "a"), Database("x", "a"))
    order = Order(spec, starting=False, privileged_role="neon_superuser")
    told = finish(rehearse(_Closed(world(x=DatabaseState("a", oid=50))), order, Cancellation())).told()
    assert told.refused == (PlanRefusal('database "new"', "it cannot be looked into: it is closed"),)
    assert {operation.database for operation in told.operations} == {None, "x"}

"""A Postgres without Postgres: a catalog in memory that changes as the model says, and breaks on demand."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.apply import apply
from compute_node.actors.configurator.extensions import Extension
from compute_node.actors.configurator.model import (
    Catalog,
    DatabaseFacts,
    DatabaseState,
    Holdings,
    RoleState,
    after,
    facts_after,
    facts_renamed,
)
from compute_node.actors.configurator.plans import Visit
from compute_node.actors.configurator.port import (
    Administration,
    AdministrationError,
    MigrationReport,
    Order,
    Report,
)
from compute_node.actors.configurator.rehearsal import Rehearsed, rehearse
from compute_node.actors.configurator.session import (
    DecideVisit,
    Failure,
    Outcome,
    Session,
    VisitOutcome,
    failure_of,
)
from compute_node.actors.kit.jobs import Blocked, Cancellation
from compute_node.messages.planning import CatalogPlanned
from typing_extensions import override

T = TypeVar("T")

ADMINISTRATOR = "cloud_admin"


def plain_catalog(server_version: int = 150000) -> Catalog:
    """What initdb leaves."""
    return Catalog(
        server_version,
        roles={ADMINISTRATOR: RoleState(), "pg_read_all_data": RoleState()},
        databases={
            "postgres": DatabaseState(ADMINISTRATOR, oid=5),
            "template1": DatabaseState(ADMINISTRATOR, oid=1, template=True),
            "template0": DatabaseState(ADMINISTRATOR, oid=4, template=True, connectable=False),
        },
        schemas=frozenset({"public"}),
    )


class FakeAdministration(Administration):
    """Applies specs to `catalog` and `facts`. The faults: `held`, `unreachable`, `broken`, `operations_left`."""

    def __init__(self, catalog: Catalog | None = None, facts: dict[str, DatabaseFacts] | None = None) -> None:
        self.catalog = plain_catalog() if catalog is None else catalog
        self.facts = {name: DatabaseFacts(oid=d.oid) for name, d in self.catalog.databases.items()}
        self.facts |= facts or {}
        self.done: list[op.AnyOperation] = []
        self.visited: list[str] = []
        self.orders: list[Order] = []
        self.planned: list[Order] = []
        self.loaded = False
        self.held = False
        self.checkpoints = 0
        """Jobs do not come to an end until this is False or they are cancelled."""
        self.unreachable = False
        self.broken: dict[str, str] = {}
        """What a statement about this subject fails with."""
        self.operations_left: int | None = None
        """The connection is lost before the one after these."""
        self.before_each: Callable[[], None] = lambda: None
        self.migrations_done = 0
        self.migrations_known = 12
        self.failing_migration: int | None = None
        self.upkeep_held = False
        """Neither migrations nor collections come to an end until this is False or they are cancelled."""
        self.extensions: tuple[Extension, ...] = (Extension("plpgsql", "1.0", owner=10),)
        self.collections = 0
        self._next_oid = 20_000

    @override
    def load(self) -> None:
        self.loaded = True

    @override
    def apply(self, order: Order, cancellation: Cancellation) -> Report:
        cancellation.check()
        if self.held:
            raise Blocked
        self.orders.append(order)
        return finish(apply(FakeSession(self), order, cancellation))

    @override
    def plan(self, order: Order, cancellation: Cancellation) -> CatalogPlanned:
        return self.rehearse(order, cancellation).told()

    def rehearse(self, order: Order, cancellation: Cancellation) -> Rehearsed:
        cancellation.check()
        if self.held:
            raise Blocked
        self.planned.append(order)
        return finish(rehearse(FakeSession(self), order, cancellation))

    @override
    def checkpoint(self, limit_s: float, cancellation: Cancellation) -> None:
        cancellation.check()
        if self.unreachable:
            msg = "nobody listens"
            raise AdministrationError(msg)
        self.checkpoints += 1

    @override
    def migrate(self, privileged_role: str, cancellation: Cancellation) -> MigrationReport:
        self._begin_upkeep(cancellation)
        for number in range(self.migrations_done + 1, self.migrations_known + 1):
            if number == self.failing_migration:
                return MigrationReport(number - 1, self.migrations_known, number, "no")
            self.migrations_done = number
        return MigrationReport(self.migrations_done, self.migrations_known)

    @override
    def installed_extensions(self, cancellation: Cancellation) -> tuple[Extension, ...]:
        self._begin_upkeep(cancellation)
        self.collections += 1
        return self.extensions

    def _begin_upkeep(self, cancellation: Cancellation) -> None:
        cancellation.check()
        if self.unreachable:
            msg = "nobody listens"
            raise AdministrationError(msg)
        if self.upkeep_held:
            raise Blocked

    def run(self, operation: op.AnyOperation) -> str | None:
        """Change the world, or say why Postgres would not."""
        self.before_each()
        if self.operations_left is not None:
            if self.operations_left == 0:
                msg = "the connection was lost"
                raise AdministrationError(msg)
            self.operations_left -= 1
        if (problem := self.broken.get(operation.subject) or self._problem(operation)) is not None:
            return problem
        self.done.append(operation)
        self.catalog = after(self.catalog, operation)
        self._change_facts(operation)
        return None

    def _change_facts(self, operation: op.AnyOperation) -> None:
        match operation:
            case op.CreateDatabase(name):
                self._next_oid += 1
                created = msgspec.structs.replace(self.catalog.databases[name], oid=self._next_oid)
                self.catalog.databases[name] = created
                self.facts[name] = DatabaseFacts(oid=self._next_oid)
            case op.DropDatabase(name) | op.DropInvalidDatabase(name):
                self.facts.pop(name, None)
            case op.RenameDatabase(name, new_name):
                self.facts[new_name] = self.facts.pop(name)
            case op.RenameRole(name, new_name):
                self.facts = {db: facts_renamed(facts, name, new_name) for db, facts in self.facts.items()}
            case (
                op.ReassignOwned()
                | op.RevokeGrant()
                | op.DropOwned()
                | op.DropSubscription()
                | op.SetPublicOwner()
                | op.GrantPublicToWebAccess()
                | op.AlterDefaultPrivileges()
            ):
                self.facts[operation.database] = facts_after(self.facts[operation.database], [operation])
            case _:
                pass

    def _problem(self, operation: op.AnyOperation) -> str | None:  # noqa: C901, PLR0911, PLR0912 - one case for each kind
        roles, databases = self.catalog.roles, self.catalog.databases
        match operation:
            case op.CreateRole(name) | op.CreatePrivilegedRole(name) if name in roles:
                return f"role {name} already exists"
            case op.RenameRole(name, new_name) if name not in roles or new_name in roles:
                return f"cannot rename role {name} to {new_name}"
            case op.AlterRole(name) if name not in roles:
                return f"role {name} does not exist"
            case op.DropDatabase(name) if name in databases and databases[name].template:
                return "cannot drop a template database"
            case op.DropDatabase(name) if name in databases and databases[name].replicating:
                return "it is used by an active logical replication slot"
            case op.DropDatabase(name) if any(db == name for db, _ in self.catalog.subscriptions):
                return "it is being used by logical replication subscription"
            case op.CreateExtension(name) if name in self.catalog.extensions:
                return f"extension {name} already exists"
            case op.MoveExtension(name) if not self.catalog.extensions[name].relocatable:
                return f"extension {name} does not support SET SCHEMA"
            case op.RenameDatabase(name, new_name) if name not in databases or new_name in databases:
                return f"cannot rename database {name} to {new_name}"
            case op.CreateDatabase(name, owner) if name in databases or owner not in roles:
                return f"cannot create database {name} of {owner}"
            case op.AlterDatabaseOwner(name, owner) if name not in databases or owner not in roles:
                return f"cannot give database {name} to {owner}"
            case op.GrantDatabase(name, role) if name not in databases or role not in roles:
                return f"cannot grant database {name} to {role}"
            case op.ReassignOwned(_, _, owner) if owner not in roles:
                return f"role {owner} does not exist"
            case op.DropOwned(database, role) if self._still_owns(database, role):
                return f"{role} would lose its tables in {database}"
            case op.DropRole(name) if self._depends(name):
                return f"some objects depend on role {name}"
            case _:
                return None

    def _still_owns(self, database: str, role: str) -> bool:
        return self.facts[database].holdings.get(role, Holdings()).owns

    def _depends(self, role: str) -> bool:
        return any(known.owner == role for known in self.catalog.databases.values()) or any(
            holder == role for _, holder in self.catalog.dependents
        )


class FakeSession(Session):
    def __init__(self, world: FakeAdministration) -> None:
        self._world = world

    @property
    @override
    def administrator(self) -> str:
        return ADMINISTRATOR

    @property
    @override
    def system_database(self) -> str:
        return "postgres"

    @override
    async def snapshot(self, departing: frozenset[str]) -> Catalog:
        if self._world.unreachable:
            msg = "cannot read the catalog: nobody listens"
            raise AdministrationError(msg)
        known = self._world.catalog
        return msgspec.structs.replace(
            known, dependents=frozenset(entry for entry in known.dependents if entry[1] in departing)
        )

    @override
    async def execute(self, operations: Sequence[op.Maintaining]) -> Outcome:
        return self._run(operations)

    @override
    async def visit(self, visits: Sequence[Visit], decide: DecideVisit) -> tuple[VisitOutcome, ...]:
        outcomes = []
        for visit in visits:
            if visit.database not in self._world.catalog.databases:
                failure = Failure("look into it", "database does not exist", visit.spoils)
                outcomes.append(VisitOutcome(visit, failures=(failure,)))
                continue
            assert self._world.catalog.databases[visit.database].connectable, visit
            self._world.visited.append(visit.database)
            facts = self._world.facts[visit.database]
            known = {role: held for role, held in facts.holdings.items() if role in visit.departing}
            if visit.shared:
                known |= {
                    role: known.get(role, Holdings())
                    for database, role in self._world.catalog.dependents
                    if database == "" and role in visit.departing
                }
            has_web_access = "web_access" in self._world.catalog.roles
            facts = msgspec.structs.replace(facts, holdings=known, has_web_access=has_web_access)
            outcome = self._run(decide(visit, facts))
            outcomes.append(VisitOutcome(visit, facts.oid, outcome.done, outcome.failures))
        return tuple(outcomes)

    def _run(self, operations: Sequence[op.AnyOperation]) -> Outcome:
        problems = [(operation, self._world.run(operation)) for operation in operations]
        failed = [failure_of(operation, problem) for operation, problem in problems if problem]
        first = {failure.spoils: failure for failure in reversed(failed)}  # the others follow from it
        return Outcome(len(operations) - len(failed), tuple(first.values())[::-1])


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    msg = "the coroutine waits for something"
    raise AssertionError(msg)

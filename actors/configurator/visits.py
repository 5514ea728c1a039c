"""Which databases are looked into, and what is done there by what is found. Pure."""

from collections.abc import Iterable, Iterator
from typing import Final

from ...messages.spec import ComputeSpec
from . import operations as op
from .desired import BOOTSTRAP_SUPERUSER, Context, Desired
from .model import SHARED, Catalog, DatabaseFacts, Holdings
from .operations import Phase, database_named, role_named
from .plans import Planner, Visit, Visits, departing_roles, is_open

WEB_ACCESS_SINCE: Final = 150000
"""Before Postgres 15 everybody may create in the schema public."""


def choose(planner: Planner, planned: Iterable[op.Maintaining]) -> tuple[Visits, ...]:
    """Choose the databases to visit.

    A listed one that is new, has a new owner, or was not yet seen; and wherever a departing role holds
    something. What belongs to no database is released first and in one place: two sessions that change
    the same shared privileges disturb each other.
    """
    touched = set(_touched(planned, planner.wish))
    departing = departing_roles(planner)
    system = planner.context.system_database
    chosen = []
    for name, database in planner.draft.databases.items():
        owner = planner.wish.owner_of(name)
        leaving = tuple(role for role in departing if (name, role) in planner.draft.dependents)
        shared = name == system and any((SHARED, role) in planner.draft.dependents for role in departing)
        unseen = owner is not None and (name in touched or database.oid not in planner.context.seen)
        if not (leaving or shared or unseen):
            continue
        if not is_open(database):
            planner.warnings.append(f"{database_named(name)} takes no connections: it was not looked into")
            for role in leaving:
                planner.stuck.add(role)
                planner.refuse(
                    role_named(role),
                    f"it cannot be dropped: it holds something in {database_named(name)}, which takes no connections",
                )
            continue
        heir = owner or (planner.context.administrator if name == system else database.owner)
        chosen.append(Visit(name, heir, owner is not None, departing if shared else leaving, shared))
    first = tuple(visit for visit in chosen if visit.shared)
    rest = tuple(visit for visit in chosen if not visit.shared)
    return tuple(Visits(group) for group in (first, rest) if group)


def detach(planner: Planner, planned: Iterable[op.Maintaining]) -> tuple[Visits, ...]:
    """Choose the databases to be deleted that have subscriptions: with them they cannot be dropped."""
    doomed = [operation.name for operation in planned if isinstance(operation, op.DropDatabase)]
    known = planner.catalog
    return _dropping(
        planner, Phase.DETACH_DATABASES, known, [s for s in known.subscriptions if s[0] in doomed]
    )


def branch_off(planner: Planner) -> tuple[Visits, ...]:
    """Choose the databases with subscriptions of the branch that this one was made from, listed or not."""
    mark = planner.draft.mark
    if planner.wish.branch is None or mark is None or mark.timeline != planner.wish.branch:
        return ()
    due = [entry for entry in planner.draft.subscriptions if entry[1] in mark.left]
    steps = _dropping(planner, Phase.DROP_SUBSCRIPTIONS, planner.draft.catalog(), due)
    for step in steps:
        for visit in step.visits:
            planner.draft.subscriptions -= {(visit.database, oid) for oid in visit.subscriptions}
    return steps


def is_clean(catalog: Catalog, spec: ComputeSpec) -> bool:
    """Whether no logical subscription that the branch has inherited is left where it could work."""
    mark = catalog.mark
    if not spec.drop_subscriptions_before_start:
        return True
    if mark is None or mark.timeline != spec.branch:
        return not catalog.subscriptions
    return not any(
        is_open(catalog.databases[name]) for name, oid in catalog.subscriptions if oid in mark.left
    )


def _dropping(
    planner: Planner, phase: Phase, catalog: Catalog, due: Iterable[tuple[str, int]]
) -> tuple[Visits, ...]:
    found: dict[str, set[int]] = {}
    for name, oid in sorted(due):
        found.setdefault(name, set()).add(oid)
    visits = []
    for name, oids in found.items():
        database = catalog.databases[name]
        if is_open(database):
            inherited = phase is Phase.DROP_SUBSCRIPTIONS
            visits.append(
                Visit(
                    name,
                    database.owner,
                    permissions=False,
                    subscriptions=frozenset(oids),
                    inherited=inherited,
                )
            )
        else:
            planner.warnings.append(
                f"{database_named(name)} takes no connections: its logical subscriptions stay"
            )
    return (Visits(tuple(visits), phase),) if visits else ()


def plan_visit(
    visit: Visit, facts: DatabaseFacts, catalog: Catalog, context: Context
) -> tuple[op.Visiting, ...]:
    """Say what is to be done in one database, by what was found there."""
    operations: list[op.Visiting] = [
        op.DropSubscription(visit.database, name, oid)
        for name, oid in sorted(facts.subscriptions.items())
        if oid in visit.subscriptions
    ]
    for role in visit.departing:
        if (held := facts.holdings.get(role)) is not None:
            operations += _release(visit, role, held)
    if visit.permissions and facts.public_owner is not None:
        operations += _schema_permissions(visit, facts, catalog, context)
    return tuple(operations)


def _release(visit: Visit, role: str, held: Holdings) -> Iterator[op.Visiting]:
    if held.owns:
        yield op.ReassignOwned(visit.database, role, visit.owner)
    for grant in sorted(held.foreign_grants, key=repr):
        yield op.RevokeGrant(visit.database, role, grant)
    yield op.DropOwned(visit.database, role)


def _schema_permissions(
    visit: Visit, facts: DatabaseFacts, catalog: Catalog, context: Context
) -> Iterator[op.Visiting]:
    makers = {context.administrator, BOOTSTRAP_SUPERUSER}
    if facts.public_owner in makers and facts.public_owner != visit.owner:
        yield op.SetPublicOwner(visit.database, visit.owner)
    if facts.has_web_access and not facts.web_access_creates and catalog.server_version >= WEB_ACCESS_SINCE:
        yield op.GrantPublicToWebAccess(visit.database)
    for target in op.DefaultTarget:
        if target not in facts.default_privileges:
            yield op.AlterDefaultPrivileges(visit.database, context.privileged_role, target)


def _touched(operations: Iterable[op.Maintaining], wish: Desired) -> Iterator[str]:
    """Name the listed databases in which what was found before holds no longer."""
    for operation in operations:
        match operation:
            case op.CreateDatabase(name) | op.AlterDatabaseOwner(name):
                yield name
            case op.CreatePrivilegedRole() | op.CreateRole("web_access") | op.RenameRole(_, "web_access"):
                yield from (database.name for database in wish.databases)  # it has no privileges anywhere yet
            case _:
                pass

"""The planner: from a catalog and a spec to the operations that are needed, phase by phase. Pure.

One plan builder for the start and for reconfigurations. A phase sees the catalog as the phases before it
leave it. To add a phase: a function here, its place in MAINTENANCE (or a visit), its operations in
operations.py, model.py and sql.py.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Final, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from ...messages.spec import ComputeSpec
from . import operations as op
from .desired import (
    BOOTSTRAP_SUPERUSER,
    PROTECTED_DATABASES,
    Context,
    Desired,
    Refusal,
    desired,
    protected_role,
)
from .model import (
    HEALTH_CHECK,
    NEON,
    PUBLIC,
    SHARED,
    Catalog,
    DatabaseFacts,
    DatabaseState,
    Draft,
    Holdings,
)
from .operations import Phase, database_named, role_named
from .renames import Deletion, Renaming

WEB_ACCESS_SINCE: Final = 150000
"""Before Postgres 15 everybody may create in the schema public."""
OWN_DATABASE: Final = "postgres"
"""The database that is kept out of the audit, whatever the one of `-C` is."""
_NO_PUBLIC: Final = "the database of --connstr has no schema public"


class Maintenance(msgspec.Struct, frozen=True):
    """Operations of one phase, on the maintenance connection, in this order."""

    phase: Phase
    operations: tuple[op.Maintaining, ...]


class Visit(msgspec.Struct, frozen=True):
    """One database to look into."""

    database: str
    owner: str
    """Who gets what departing roles own there."""
    permissions: bool
    """Whether the spec lists it, so that its schema permissions are put right."""
    departing: tuple[str, ...] = ()
    shared: bool = False
    """Whether departing roles are to let go of what belongs to no database, too."""
    subscriptions: frozenset[int] = frozenset()
    """The logical subscriptions to be dropped there, by oid."""
    inherited: bool = False
    """Whether it is done because they are on the list of inherited ones."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The objects with which nothing may have gone wrong before."""
        listed = (op.MARK_SUBJECT,) if self.inherited else ()
        return (database_named(self.database), *listed)

    @property
    def spoils(self) -> tuple[str, ...]:
        """The objects that are left alone from then on when the database cannot be looked into."""
        left = (op.LEFT_SUBJECT,) if self.subscriptions else ()
        return (database_named(self.database), *map(role_named, self.departing), *left)


class Visits(msgspec.Struct, frozen=True):
    """Databases that may be visited at the same time."""

    visits: tuple[Visit, ...]
    phase: Phase = Phase.VISIT_DATABASES


Step: TypeAlias = Maintenance | Visits


class Plan(msgspec.Struct, frozen=True):
    """What is to be done, in order; the operations of a visit are planned when its facts are known."""

    steps: tuple[Step, ...]
    catalog: Catalog
    """As it is when all this is done, but for what the visits find."""
    refusals: tuple[Refusal, ...] = ()
    """Parts of the spec that are left out; all else is done, and then the application fails."""
    warnings: tuple[str, ...] = ()

    @property
    def operations(self) -> tuple[op.Maintaining, ...]:
        """All operations that do not depend on a visit."""
        return tuple(
            operation for step in self.steps if isinstance(step, Maintenance) for operation in step.operations
        )

    @property
    def visits(self) -> tuple[Visit, ...]:
        """All visits."""
        return tuple(visit for step in self.steps if isinstance(step, Visits) for visit in step.visits)


class Planner:
    """What the phases share: the wish, the catalog so far, and what is to be told about the plan."""

    def __init__(self, catalog: Catalog, wish: Desired, context: Context) -> None:
        self.catalog = catalog
        self.draft = Draft(catalog)
        self.wish = wish
        self.context = context
        self.stuck: set[str] = set()
        """Departing roles that hold something where nobody can connect."""
        self.refusals = list(wish.refusals)
        self.warnings: list[str] = []

    def refuse(self, subject: str, reason: str) -> None:
        """Leave this part of the spec out."""
        self.refusals.append(Refusal(subject, reason))


Decide: TypeAlias = Callable[[Planner], Iterator[op.Maintaining]]


def plan(catalog: Catalog, spec: ComputeSpec, context: Context) -> Plan:
    """Say what brings the catalog to the state that the spec describes."""
    planner = Planner(catalog, desired(spec, context), context)
    before = [_maintenance(planner, phase, decide) for phase, decide in BEFORE_VISITS]
    planned = [operation for step in before for operation in step.operations]
    visits = _visits(planner, set(_touched(planned, planner.wish)))
    branching = _branching(planner)
    after = [_maintenance(planner, phase, decide) for phase, decide in AFTER_VISITS]
    return Plan(
        (
            *_detaching(planner, planned),
            *filter(_is_needed, before),
            *visits,
            *branching,
            *filter(_is_needed, after),
        ),
        planner.draft.catalog(),
        tuple(planner.refusals),
        tuple(planner.warnings),
    )


def _maintenance(planner: Planner, phase: Phase, decide: Decide) -> Maintenance:
    made = []
    for operation in decide(planner):
        planner.draft.record(operation)
        made.append(operation)
    return Maintenance(phase, tuple(made))


def _is_needed(step: Maintenance) -> bool:
    return bool(step.operations)


# --- Before the visits -----------------------------------------------------------------------------------


def create_privileged_role(planner: Planner) -> Iterator[op.Maintaining]:
    """Make sure that there is a role for those who administer databases."""
    if planner.context.privileged_role not in planner.draft.roles:
        yield op.CreatePrivilegedRole(planner.context.privileged_role)


def drop_invalid_databases(planner: Planner) -> Iterator[op.Maintaining]:
    """Finish interrupted drops, also of databases that the spec does not know; it may create them anew."""
    for name, database in tuple(planner.draft.databases.items()):
        if not database.valid:
            yield op.DropInvalidDatabase(name)


def rename_roles(planner: Planner) -> Iterator[op.Maintaining]:
    """Rename a role that exists to a name that does not."""
    for change in planner.wish.role_renamings:
        if _is_due(change, planner.draft.roles):
            yield op.RenameRole(change.name, change.target)


def create_and_alter_roles(planner: Planner) -> Iterator[op.Maintaining]:
    """Create what is missing; of an existing role only the password is compared, as it is stored."""
    for wish in planner.wish.roles:
        known = planner.draft.roles.get(wish.name)
        if known is not None and wish.password in (UNSET, known.password):
            continue
        if (reason := protected_role(wish.name, planner.context)) is not None:
            verb = "created" if known is None else "changed"
            planner.refuse(role_named(wish.name), f"it must not be {verb}: {reason}")
            continue
        password = None if isinstance(wish.password, UnsetType) else wish.password
        if known is not None:
            yield op.AlterRole(wish.name, password, wish.options)
        else:
            group = None if wish.for_tokens else planner.context.privileged_role
            yield op.CreateRole(wish.name, password, wish.options, group)


def rename_and_delete_databases(planner: Planner) -> Iterator[op.Maintaining]:
    """Do what the spec's list asks for and the catalog shows as not done."""
    databases = planner.draft.databases
    for change in planner.wish.database_changes:
        if not _is_due(change, databases):
            continue
        if isinstance(change, Renaming):
            yield op.RenameDatabase(change.name, change.target)
        elif not _is_open(databases[change.name]) and _is_subscribed(planner, change.name):
            planner.refuse(
                database_named(change.name),
                "it cannot be dropped: it has logical subscriptions, and takes no connections to drop them",
            )
        else:
            if databases[change.name].template:
                yield op.ClearTemplateFlag(change.name)
            if databases[change.name].replicating:
                yield op.EndReplication(change.name)
            yield op.DropDatabase(change.name)


def create_and_alter_databases(planner: Planner) -> Iterator[op.Maintaining]:
    """Create what is missing and put owners right; the first grant follows its creation, now or later."""
    draft, context = planner.draft, planner.context
    for wish in planner.wish.databases:
        known = draft.databases.get(wish.name)
        if known is None:
            yield op.CreateDatabase(wish.name, wish.owner, wish.options)
        elif known.owner != wish.owner:
            yield op.AlterDatabaseOwner(wish.name, wish.owner)
        of_ours = wish.name not in PROTECTED_DATABASES | {context.system_database}
        if of_ours and draft.databases[wish.name].grants_untouched:
            yield op.GrantDatabase(wish.name, context.privileged_role)
    for name, database in tuple(draft.databases.items()):
        if database.owner in planner.wish.departing:
            yield op.AlterDatabaseOwner(name, context.administrator)


def create_schema_neon(planner: Planner) -> Iterator[op.Maintaining]:
    """Make sure that there is a place for this program's own tables."""
    if NEON not in planner.draft.schemas:
        yield op.CreateSchema(NEON)


def mark_subscriptions(planner: Planner) -> Iterator[op.Maintaining]:
    """Write down, before the first one is dropped, which subscriptions the branch was made with.

    Later ones belong to its own users. A branch of a branch has the mark of another timeline.
    """
    branch, mark = planner.wish.branch, planner.draft.mark
    if branch is None:
        return
    if foreign := planner.catalog.foreign & {"schema neon", op.MARK_TABLE}:
        planner.refuse(
            op.MARK_SUBJECT,
            f"it cannot be kept: {' and '.join(sorted(foreign))} must belong to a superuser;"
            " give it to the administrator, or rename it",
        )
    elif mark is None or mark.timeline != branch:
        yield op.NoteSubscriptions(branch, tuple(sorted(oid for _, oid in planner.draft.subscriptions)))


# --- The visits ------------------------------------------------------------------------------------------


def _visits(planner: Planner, touched: set[str]) -> tuple[Visits, ...]:
    """Choose the databases to visit.

    A listed one that is new, has a new owner, or was not yet seen; and wherever a departing role holds
    something. What belongs to no database is released first and in one place: two sessions that change
    the same shared privileges disturb each other.
    """
    departing = _departing(planner)
    system = planner.context.system_database
    chosen = []
    for name, database in planner.draft.databases.items():
        owner = planner.wish.owner_of(name)
        leaving = tuple(role for role in departing if (name, role) in planner.draft.dependents)
        shared = name == system and any((SHARED, role) in planner.draft.dependents for role in departing)
        unseen = owner is not None and (name in touched or database.oid not in planner.context.seen)
        if not (leaving or shared or unseen):
            continue
        if not _is_open(database):
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


def _detaching(planner: Planner, planned: Iterable[op.Maintaining]) -> tuple[Visits, ...]:
    """Choose the databases to be deleted that have subscriptions: with them they cannot be dropped."""
    doomed = [operation.name for operation in planned if isinstance(operation, op.DropDatabase)]
    known = planner.catalog
    return _dropping(
        planner, Phase.DETACH_DATABASES, known, [s for s in known.subscriptions if s[0] in doomed]
    )


def _branching(planner: Planner) -> tuple[Visits, ...]:
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
        _is_open(catalog.databases[name]) for name, oid in catalog.subscriptions if oid in mark.left
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
        if _is_open(database):
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


# --- After the visits ------------------------------------------------------------------------------------


def create_extensions(planner: Planner) -> Iterator[op.Maintaining]:
    """Create the extensions whose libraries are preloaded."""
    for name in _missing(planner, planner.wish.extensions):
        if PUBLIC in planner.draft.schemas:
            yield op.CreateExtension(name, PUBLIC)
        else:
            planner.warnings.append(f"the extension {name} is not created: {_NO_PUBLIC}")


def bring_extension_neon(planner: Planner) -> Iterator[op.Maintaining]:
    """On a Neon-flavoured node only: the extension neon, in its schema, in the server's version."""
    offered = planner.catalog.neon
    if offered is None:
        return
    if NEON not in planner.draft.extensions:
        yield op.CreateExtensionNeon(NEON, NEON)
    installed = planner.draft.extensions
    if installed[NEON].schema != NEON:
        if not installed[NEON].relocatable:
            yield op.MakeRelocatable(NEON)
        yield op.MoveExtension(NEON, NEON)
    if installed[NEON].version != offered.version:
        yield op.UpdateExtension(NEON, offered.version)
    if not installed[NEON].relocatable:
        yield op.MakeRelocatable(NEON)


def create_availability_check(planner: Planner) -> Iterator[op.Maintaining]:
    """Make sure that there is something to write to."""
    if HEALTH_CHECK not in planner.draft.tables:
        if PUBLIC in planner.draft.schemas:
            yield op.CreateAvailabilityCheck()
        else:
            planner.warnings.append(f"the table of the availability check is not created: {_NO_PUBLIC}")
    elif (table := f"table public.{HEALTH_CHECK}") in planner.catalog.foreign:
        planner.warnings.append(f"{table} does not belong to a superuser: nothing is written to it")


def drop_roles(planner: Planner) -> Iterator[op.Maintaining]:
    """Drop the departing roles, which by now hold nothing."""
    for name in _departing(planner):
        if name not in planner.stuck:
            yield op.DropRole(name)


def finish_subscriptions(planner: Planner) -> Iterator[op.Maintaining]:
    """Write down which inherited subscriptions could not be dropped because nobody can connect."""
    branch, mark = planner.wish.branch, planner.draft.mark
    if branch is None or mark is None or mark.timeline != branch:
        return
    left = mark.left & {oid for _, oid in planner.draft.subscriptions}
    if left != mark.left:
        yield op.NoteSubscriptionsLeft(branch, tuple(sorted(left)))


def create_audit_extensions(planner: Planner) -> Iterator[op.Maintaining]:
    """Create what the audit level needs."""
    for name in _missing(planner, planner.wish.audit):
        if PUBLIC in planner.draft.schemas:
            yield op.CreateAuditExtension(name, PUBLIC)
        else:
            planner.refuse(f"extension {name}", f"it cannot be created: {_NO_PUBLIC}")


def silence_own_audit(planner: Planner) -> Iterator[op.Maintaining]:
    """Leave the database out in which none but the node itself works."""
    there = OWN_DATABASE in planner.draft.databases
    if planner.wish.audit and there and OWN_DATABASE not in planner.draft.silent:
        yield op.SilenceOwnAudit(OWN_DATABASE)


def _missing(planner: Planner, names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in planner.draft.extensions]


BEFORE_VISITS: Final[tuple[tuple[Phase, Decide], ...]] = (
    (Phase.CREATE_PRIVILEGED_ROLE, create_privileged_role),
    (Phase.DROP_INVALID_DATABASES, drop_invalid_databases),
    (Phase.RENAME_ROLES, rename_roles),
    (Phase.CREATE_AND_ALTER_ROLES, create_and_alter_roles),
    (Phase.RENAME_AND_DELETE_DATABASES, rename_and_delete_databases),
    (Phase.CREATE_AND_ALTER_DATABASES, create_and_alter_databases),
    (Phase.CREATE_SCHEMA_NEON, create_schema_neon),
    (Phase.MARK_SUBSCRIPTIONS, mark_subscriptions),
)
AFTER_VISITS: Final[tuple[tuple[Phase, Decide], ...]] = (
    (Phase.CREATE_EXTENSIONS, create_extensions),
    (Phase.BRING_EXTENSION_NEON, bring_extension_neon),
    (Phase.CREATE_AVAILABILITY_CHECK, create_availability_check),
    (Phase.DROP_ROLES, drop_roles),
    (Phase.FINISH_SUBSCRIPTIONS, finish_subscriptions),
    (Phase.CREATE_AUDIT_EXTENSIONS, create_audit_extensions),
    (Phase.SILENCE_OWN_AUDIT, silence_own_audit),
)


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


def _departing(planner: Planner) -> tuple[str, ...]:
    return tuple(role for role in planner.wish.departing if role in planner.draft.roles)


def _is_open(database: DatabaseState) -> bool:
    return database.connectable and database.valid


def _is_subscribed(planner: Planner, database: str) -> bool:
    return any(name == database for name, _ in planner.draft.subscriptions)


def _is_due(change: Renaming | Deletion, known: Container[str]) -> bool:
    if change.name not in known or (isinstance(change, Renaming) and change.target in known):
        return False
    return change.only_before is None or change.only_before in known

"""The planner: from a catalog and a spec to the operations that are needed, phase by phase. Pure.

One plan builder for the start and for reconfigurations. A phase sees the catalog as the phases before it
leave it. To add a phase: a function here, its place in BEFORE_VISITS or AFTER_VISITS (or something done at a
visit: visits.py), its operations in operations.py, model.py and sql.py.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Final, TypeAlias

from msgspec import UNSET, UnsetType

from ...messages.spec import ComputeSpec
from . import operations as op
from .desired import (
    PROTECTED_DATABASES,
    Context,
    desired,
    protected_role,
)
from .model import (
    HEALTH_CHECK,
    NEON,
    PUBLIC,
    Catalog,
)
from .operations import Phase, database_named, role_named
from .plans import Maintenance, Plan, Planner, departing_roles, is_open
from .renames import Deletion, Renaming
from .visits import branch_off, choose, detach

OWN_DATABASE: Final = "postgres"
"""The database that is kept out of the audit, whatever the one of `-C` is."""
_NO_PUBLIC: Final = "the database of --connstr has no schema public"


Decide: TypeAlias = Callable[[Planner], Iterator[op.Maintaining]]


def plan(catalog: Catalog, spec: ComputeSpec, context: Context) -> Plan:
    """Say what brings the catalog to the state that the spec describes."""
    planner = Planner(catalog, desired(spec, context), context)
    before = [_maintenance(planner, phase, decide) for phase, decide in BEFORE_VISITS]
    planned = [operation for step in before for operation in step.operations]
    visits = choose(planner, planned)
    branching = branch_off(planner)
    after = [_maintenance(planner, phase, decide) for phase, decide in AFTER_VISITS]
    return Plan(
        (
            *detach(planner, planned),
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
        elif not is_open(databases[change.name]) and _is_subscribed(planner, change.name):
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
    for name in departing_roles(planner):
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


def _is_subscribed(planner: Planner, database: str) -> bool:
    return any(name == database for name, _ in planner.draft.subscriptions)


def _is_due(change: Renaming | Deletion, known: Container[str]) -> bool:
    if change.name not in known or (isinstance(change, Renaming) and change.target in known):
        return False
    return change.only_before is None or change.only_before in known

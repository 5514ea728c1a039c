"""What is known of a catalog, and what it looks like after an operation. Pure."""

from collections.abc import Iterable
from typing import Final, TypeAlias, assert_never

import msgspec

from ...messages.secret import Secret
from . import operations as op

SHARED: Final = ""
"""Stands for the objects that belong to no database; no database has an empty name."""

MD5_PREFIX: Final = "md5"

NEON: Final = "neon"
"""The extension, and the schema that it and this program's own tables are in."""
PUBLIC: Final = "public"
HEALTH_CHECK: Final = "health_check"
"""In the schema public: what the availability check writes to."""
DROP_MARK: Final = "drop_subscriptions_done"
"""In the schema neon: which timeline's subscriptions were dropped, and which are left."""


_Other: TypeAlias = (
    op.NoteSubscriptions
    | op.DropSubscription
    | op.CreateExtension
    | op.MakeRelocatable
    | op.MoveExtension
    | op.UpdateExtension
    | op.CreateAvailabilityCheck
    | op.SilenceOwnAudit
    | op.ReassignOwned
    | op.RevokeGrant
    | op.SetPublicOwner
    | op.GrantPublicToWebAccess
    | op.AlterDefaultPrivileges
)


class RoleState(msgspec.Struct, frozen=True):
    """A role of the catalog; `password` as it is stored."""

    password: Secret | None = None


class DatabaseState(msgspec.Struct, frozen=True):
    """A database of the catalog."""

    owner: str
    oid: int = 0
    """0 for one that the model has created."""
    connectable: bool = True
    valid: bool = True
    template: bool = False
    grants_untouched: bool = True
    """Nobody ever granted or revoked anything on it: so its own first grant is still to come."""
    replicating: bool = False
    """Somebody reads its changes through a logical slot at this moment."""


class CollationDrift(msgspec.Struct, frozen=True):
    """A database whose texts were sorted by another version of its collation than this machine's; "" is none."""

    database: str
    made_with: str
    actual: str


class ExtensionState(msgspec.Struct, frozen=True):
    """An extension as it is installed; or, of the server's packaging, as it would be."""

    version: str
    schema: str = ""
    relocatable: bool = True


class Mark(msgspec.Struct, frozen=True):
    """What is written down about the subscriptions that a branch has inherited."""

    timeline: str
    left: frozenset[int] = frozenset()
    """The oids of those that were not dropped yet."""


class Catalog(msgspec.Struct, frozen=True):
    """A snapshot of what all databases share, and of what this program has in the maintenance database."""

    server_version: int
    """As `server_version_num` has it: 150018."""
    roles: dict[str, RoleState]
    databases: dict[str, DatabaseState]
    schemas: frozenset[str] = frozenset()
    dependents: frozenset[tuple[str, str]] = frozenset()
    """(database or SHARED, role): there the role owns something or was granted something.

    Only of roles that are to be dropped; ownership of databases is in `databases`.
    """
    drift: tuple[CollationDrift, ...] = ()
    extensions: dict[str, ExtensionState] = {}
    """Those of the maintenance database."""
    neon: ExtensionState | None = None
    """The extension neon as the server has it to offer; None on a plain Postgres."""
    tables: frozenset[str] = frozenset()
    """Of the tables of ours (HEALTH_CHECK, DROP_MARK) those that exist."""
    foreign: frozenset[str] = frozenset()
    """Tables and schemas that have a name of ours and do not belong to a superuser: not to be trusted."""
    subscriptions: frozenset[tuple[str, int]] = frozenset()
    """(database, oid) of every logical subscription."""
    mark: Mark | None = None
    silent: frozenset[str] = frozenset()
    """Databases whose setting pgaudit.log is `none`."""


class Holdings(msgspec.Struct, frozen=True):
    """What stands in the way of a role's drop in one database."""

    owns: bool = False
    foreign_grants: frozenset[op.Grant] = frozenset()
    """Privileges granted to the role by others than the owner."""


class DatabaseFacts(msgspec.Struct, frozen=True):
    """What a visit finds in one database."""

    oid: int = 0
    public_owner: str | None = "pg_database_owner"
    """None: there is no schema public."""
    has_web_access: bool = False
    """Whether the role exists."""
    web_access_creates: bool = False
    default_privileges: frozenset[op.DefaultTarget] = frozenset()
    """For which objects the privileged role has its default privileges in full."""
    holdings: dict[str, Holdings] = {}
    """By departing role; one that holds nothing here is absent."""
    subscriptions: dict[str, int] = {}
    """The oids of the logical subscriptions of this database, by name."""


class Draft:
    """A catalog under change; the planner records its operations here as it makes them."""

    def __init__(self, catalog: Catalog) -> None:
        self._start = catalog
        self.roles = dict(catalog.roles)
        self.databases = dict(catalog.databases)
        self.schemas = set(catalog.schemas)
        self.dependents = set(catalog.dependents)
        self.extensions = dict(catalog.extensions)
        self.tables = set(catalog.tables)
        self.subscriptions = set(catalog.subscriptions)
        self.mark = catalog.mark
        self.silent = set(catalog.silent)

    def catalog(self) -> Catalog:
        """Return the state so far."""
        return msgspec.structs.replace(
            self._start,
            roles=dict(self.roles),
            databases=dict(self.databases),
            schemas=frozenset(self.schemas),
            dependents=frozenset(self.dependents),
            extensions=dict(self.extensions),
            tables=frozenset(self.tables),
            subscriptions=frozenset(self.subscriptions),
            mark=self.mark,
            silent=frozenset(self.silent),
        )

    def record(self, operation: op.AnyOperation) -> None:  # noqa: C901, PLR0912 - one case for each kind
        """Change the state as Postgres would."""
        match operation:
            case op.CreatePrivilegedRole(name):
                self.roles[name] = RoleState()
            case op.CreateRole(name, password) | op.AlterRole(name, password):
                self.roles[name] = RoleState(password)
            case op.RenameRole(name, new_name):
                self._rename_role(name, new_name)
            case op.DropInvalidDatabase(name) | op.DropDatabase(name):
                self.databases.pop(name, None)
                self.dependents = {entry for entry in self.dependents if entry[0] != name}
                self.subscriptions = {entry for entry in self.subscriptions if entry[0] != name}
                self.silent.discard(name)
            case op.EndReplication(name):
                self._change_database(name, replicating=False, connectable=False)
            case op.ClearTemplateFlag(name):
                self._change_database(name, template=False)
            case op.RenameDatabase(name, new_name):
                self._rename_database(name, new_name)
            case op.AlterDatabaseOwner(name, owner):
                self._change_database(name, owner=owner)
            case op.CreateDatabase(name, owner):
                self.databases[name] = DatabaseState(owner)
            case op.GrantDatabase(name):
                self._change_database(name, grants_untouched=False)
            case op.CreateSchema(name):
                self.schemas.add(name)
            case op.DropRole(name):
                self.roles.pop(name, None)
                self.dependents = {entry for entry in self.dependents if entry[1] != name}
            case op.DropOwned(database, role):
                self.dependents -= {(database, role), (SHARED, role)}
            case _:
                self._record_own(operation)

    def _record_own(self, operation: _Other) -> None:  # noqa: C901 - one case for each kind
        match operation:
            case op.NoteSubscriptions(timeline, left):
                self.mark = Mark(timeline, frozenset(left))
                self.tables.add(DROP_MARK)
            case op.DropSubscription(database, _, oid):
                self.subscriptions.discard((database, oid))
            case op.CreateExtensionNeon(name, schema) if self._start.neon is not None:
                self.extensions[name] = msgspec.structs.replace(self._start.neon, schema=schema)
            case op.CreateExtension(name, schema):
                self.extensions[name] = ExtensionState("", schema)
            case op.MakeRelocatable(name):
                self._change_extension(name, relocatable=True)
            case op.MoveExtension(name, schema):
                self._change_extension(name, schema=schema)
            case op.UpdateExtension(name, version):
                offered = self._start.neon if name == NEON else None
                relocatable = self.extensions[name].relocatable if offered is None else offered.relocatable
                self._change_extension(name, version=version, relocatable=relocatable)
            case op.CreateAvailabilityCheck():
                self.tables.add(HEALTH_CHECK)
            case op.SilenceOwnAudit(name):
                self.silent.add(name)
            case (
                op.ReassignOwned()
                | op.RevokeGrant()
                | op.SetPublicOwner()
                | op.GrantPublicToWebAccess()
                | op.AlterDefaultPrivileges()
            ):
                pass  # seen in DatabaseFacts only
            case _:
                assert_never(operation)

    def _rename_role(self, name: str, new_name: str) -> None:
        state = self.roles.pop(name)
        if state.password is not None and state.password.reveal().startswith(MD5_PREFIX):
            state = RoleState()  # salted with the old name; Postgres removes it
        self.roles[new_name] = state
        self.dependents = {(db, new_name if role == name else role) for db, role in self.dependents}
        for database, known in tuple(self.databases.items()):
            if known.owner == name:
                self._change_database(database, owner=new_name)

    def _rename_database(self, name: str, new_name: str) -> None:
        def new(database: str) -> str:
            return new_name if database == name else database

        self.databases[new_name] = self.databases.pop(name)
        self.dependents = {(new(database), role) for database, role in self.dependents}
        self.subscriptions = {(new(database), oid) for database, oid in self.subscriptions}
        self.silent = {new(database) for database in self.silent}

    def _change_extension(self, name: str, **changes: object) -> None:
        self.extensions[name] = msgspec.structs.replace(self.extensions[name], **changes)

    def _change_database(self, name: str, **changes: object) -> None:
        self.databases[name] = msgspec.structs.replace(self.databases[name], **changes)


def after(catalog: Catalog, *operations: op.AnyOperation) -> Catalog:
    """Return the catalog as it is once these operations are done."""
    draft = Draft(catalog)
    for operation in operations:
        draft.record(operation)
    return draft.catalog()


def facts_renamed(facts: DatabaseFacts, name: str, new_name: str) -> DatabaseFacts:
    """Return what a visit finds once this role has another name."""

    def new(role: str) -> str:
        return new_name if role == name else role

    holdings = {
        new(role): Holdings(
            held.owns,
            frozenset(
                msgspec.structs.replace(grant, grantor=new(grant.grantor)) for grant in held.foreign_grants
            ),
        )
        for role, held in facts.holdings.items()
    }
    owner = new_name if facts.public_owner == name else facts.public_owner
    return msgspec.structs.replace(facts, public_owner=owner, holdings=holdings)


def facts_after(facts: DatabaseFacts, operations: Iterable[op.Visiting]) -> DatabaseFacts:
    """Return what the next visit of this database would find."""
    for operation in operations:
        facts = _facts_after_one(facts, operation)
    return facts


def _facts_after_one(facts: DatabaseFacts, operation: op.Visiting) -> DatabaseFacts:
    replace = msgspec.structs.replace
    match operation:
        case op.ReassignOwned(_, role):
            held = replace(facts.holdings.get(role, Holdings()), owns=False)
            return replace(facts, holdings=facts.holdings | {role: held})
        case op.RevokeGrant(_, role, grant):
            held = facts.holdings.get(role, Holdings())
            held = replace(held, foreign_grants=held.foreign_grants - {grant})
            return replace(facts, holdings=facts.holdings | {role: held})
        case op.DropOwned(_, role):
            return replace(facts, holdings={r: held for r, held in facts.holdings.items() if r != role})
        case op.DropSubscription(_, name):
            return replace(facts, subscriptions={n: o for n, o in facts.subscriptions.items() if n != name})
        case op.SetPublicOwner(_, owner):
            return replace(facts, public_owner=owner)
        case op.GrantPublicToWebAccess():
            return replace(facts, web_access_creates=True)
        case op.AlterDefaultPrivileges(_, _, target):
            return replace(facts, default_privileges=facts.default_privileges | {target})
        case _:
            assert_never(operation)

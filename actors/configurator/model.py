"""What is known of a catalog, and what it looks like after an operation. Pure."""

from collections.abc import Iterable
from typing import Final, assert_never

import msgspec

from ...messages.secret import Secret
from . import operations as op

SHARED: Final = ""
"""Stands for the objects that belong to no database; no database has an empty name."""

MD5_PREFIX: Final = "md5"


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


class CollationDrift(msgspec.Struct, frozen=True):
    """A database whose texts were sorted by another version of its collation than this machine's; "" is none."""

    database: str
    made_with: str
    actual: str


class Catalog(msgspec.Struct, frozen=True):
    """A snapshot of what all databases share, and of the maintenance database's schemas."""

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


class Holdings(msgspec.Struct, frozen=True):
    """What stands in the way of a role's drop in one database."""

    owns: bool = False
    foreign_grants: frozenset[tuple[str, str, op.GrantTarget]] = frozenset()
    """(grantor, schema, what): privileges granted to the role by others than the owner."""


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


class Draft:
    """A catalog under change; the planner records its operations here as it makes them."""

    def __init__(self, catalog: Catalog) -> None:
        self.server_version = catalog.server_version
        self.roles = dict(catalog.roles)
        self.databases = dict(catalog.databases)
        self.schemas = set(catalog.schemas)
        self.dependents = set(catalog.dependents)

    def catalog(self) -> Catalog:
        """Return the state so far."""
        return Catalog(
            self.server_version,
            dict(self.roles),
            dict(self.databases),
            frozenset(self.schemas),
            frozenset(self.dependents),
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
            case op.ClearTemplateFlag(name):
                self._change_database(name, template=False)
            case op.RenameDatabase(name, new_name):
                self.databases[new_name] = self.databases.pop(name)
                self.dependents = {(new_name if db == name else db, role) for db, role in self.dependents}
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
            case (
                op.ReassignOwned()
                | op.RevokeGrants()
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
        new(role): Holdings(held.owns, frozenset((new(g), schema, t) for g, schema, t in held.foreign_grants))
        for role, held in facts.holdings.items()
    }
    owner = None if facts.public_owner is None else new(facts.public_owner)
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
        case op.RevokeGrants(_, role, grantor, schema, target):
            held = facts.holdings.get(role, Holdings())
            held = replace(held, foreign_grants=held.foreign_grants - {(grantor, schema, target)})
            return replace(facts, holdings=facts.holdings | {role: held})
        case op.DropOwned(_, role):
            return replace(facts, holdings={r: held for r, held in facts.holdings.items() if r != role})
        case op.SetPublicOwner(_, owner):
            return replace(facts, public_owner=owner)
        case op.GrantPublicToWebAccess():
            return replace(facts, web_access_creates=True)
        case op.AlterDefaultPrivileges(_, _, target):
            return replace(facts, default_privileges=facts.default_privileges | {target})
        case _:
            assert_never(operation)

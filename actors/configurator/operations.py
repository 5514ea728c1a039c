"""Every change that the Configurator makes to a catalog: one kind of value for each, and its place in the order."""

from enum import Enum
from typing import ClassVar, TypeAlias

import msgspec
from typing_extensions import override

from ...messages.secret import Secret
from ...messages.spec import GenericOption


class Phase(Enum):
    """The phases in the order of their execution; the values are what logs and errors call them."""

    CREATE_PRIVILEGED_ROLE = "create the privileged role"
    DROP_INVALID_DATABASES = "drop invalid databases"
    RENAME_ROLES = "rename roles"
    CREATE_AND_ALTER_ROLES = "create and alter roles"
    RENAME_AND_DELETE_DATABASES = "rename and delete databases"
    CREATE_AND_ALTER_DATABASES = "create and alter databases"
    CREATE_SCHEMA_NEON = "create the schema neon"
    VISIT_DATABASES = "visit databases"
    DROP_ROLES = "drop roles"


def shown(name: str) -> str:
    """Write a name on one line, in double quotes, whatever characters it has; for people, not for SQL."""
    return msgspec.json.encode(name).decode()


def role_named(name: str) -> str:
    """Return what logs and errors call a role."""
    return f"role {shown(name)}"


def database_named(name: str) -> str:
    """Return what logs and errors call a database."""
    return f"database {shown(name)}"


class Operation(msgspec.Struct, frozen=True):
    """One change; executed as one transaction, unless its `unit` joins it to its neighbours."""

    phase: ClassVar[Phase]

    @property
    def where(self) -> str | None:
        """The database in which it runs; None: any one, the maintenance connection's."""
        return None

    @property
    def subject(self) -> str:
        """The object that it changes; errors are listed by it, and it never contains a secret."""
        raise NotImplementedError

    @property
    def unit(self) -> str | None:
        """Neighbours of the same unit succeed or fail together, in one transaction."""
        return None

    def describe(self) -> str:
        """Say in one line what it does; never with a password."""
        raise NotImplementedError


class _RoleOperation(Operation, frozen=True):
    name: str

    @property
    @override
    def subject(self) -> str:
        return role_named(self.name)


class _DatabaseOperation(Operation, frozen=True):
    name: str

    @property
    @override
    def subject(self) -> str:
        return database_named(self.name)


class _Visiting(Operation, frozen=True):
    phase: ClassVar[Phase] = Phase.VISIT_DATABASES
    database: str

    @property
    @override
    def where(self) -> str | None:
        return self.database

    @property
    @override
    def subject(self) -> str:
        return database_named(self.database)


class _Releasing(_Visiting, frozen=True):
    """A part of the preparation of a role's drop: all of it, or nothing.

    Were DROP OWNED to run after a REASSIGN OWNED that failed, it would drop tables.
    """

    role: str

    @property
    @override
    def subject(self) -> str:
        return f"{role_named(self.role)} in {database_named(self.database)}"

    @property
    @override
    def unit(self) -> str | None:
        return self.subject


# --- On the maintenance connection -----------------------------------------------------------------------


class CreatePrivilegedRole(_RoleOperation, frozen=True):
    """Create the role whose members administer databases without being superusers."""

    phase: ClassVar[Phase] = Phase.CREATE_PRIVILEGED_ROLE

    @override
    def describe(self) -> str:
        return f"create the privileged {self.subject}"


class DropInvalidDatabase(_DatabaseOperation, frozen=True):
    """Finish a DROP DATABASE that was interrupted."""

    phase: ClassVar[Phase] = Phase.DROP_INVALID_DATABASES

    @override
    def describe(self) -> str:
        return f"drop the invalid {self.subject}"


class RenameRole(_RoleOperation, frozen=True):
    """Rename a role; Postgres forgets its password if that was stored as md5."""

    phase: ClassVar[Phase] = Phase.RENAME_ROLES
    new_name: str

    @override
    def describe(self) -> str:
        return f"rename {self.subject} to {shown(self.new_name)}"


class CreateRole(_RoleOperation, frozen=True):
    """Create a role that may log in.

    With `member_of` it also gets the attributes of an ordinary user; without, it is one for tokens only.
    """

    phase: ClassVar[Phase] = Phase.CREATE_AND_ALTER_ROLES
    password: Secret | None
    """As Postgres stores it."""
    options: tuple[GenericOption, ...] = ()
    member_of: str | None = None

    @override
    def describe(self) -> str:
        return f"create {self.subject}"


class AlterRole(_RoleOperation, frozen=True):
    """Set or remove a role's password."""

    phase: ClassVar[Phase] = Phase.CREATE_AND_ALTER_ROLES
    password: Secret | None
    """As Postgres stores it; None removes it."""
    options: tuple[GenericOption, ...] = ()

    @override
    def describe(self) -> str:
        return f"{'remove' if self.password is None else 'set'} the password of {self.subject}"


class ClearTemplateFlag(_DatabaseOperation, frozen=True):
    """Make a template an ordinary database, so that it can be dropped."""

    phase: ClassVar[Phase] = Phase.RENAME_AND_DELETE_DATABASES

    @override
    def describe(self) -> str:
        return f"clear the template flag of {self.subject}"


class DropDatabase(_DatabaseOperation, frozen=True):
    """Drop a database with whatever sessions it has."""

    phase: ClassVar[Phase] = Phase.RENAME_AND_DELETE_DATABASES

    @override
    def describe(self) -> str:
        return f"drop {self.subject}"


class RenameDatabase(_DatabaseOperation, frozen=True):
    """Rename a database."""

    phase: ClassVar[Phase] = Phase.RENAME_AND_DELETE_DATABASES
    new_name: str

    @override
    def describe(self) -> str:
        return f"rename {self.subject} to {shown(self.new_name)}"


class AlterDatabaseOwner(_DatabaseOperation, frozen=True):
    """Give a database to another role."""

    phase: ClassVar[Phase] = Phase.CREATE_AND_ALTER_DATABASES
    owner: str

    @override
    def describe(self) -> str:
        return f"make {role_named(self.owner)} the owner of {self.subject}"


class CreateDatabase(_DatabaseOperation, frozen=True):
    """Create a database."""

    phase: ClassVar[Phase] = Phase.CREATE_AND_ALTER_DATABASES
    owner: str
    options: tuple[GenericOption, ...] = ()

    @override
    def describe(self) -> str:
        return f"create {self.subject} with owner {shown(self.owner)}"


class GrantDatabase(_DatabaseOperation, frozen=True):
    """Grant all privileges on a new database to the privileged role."""

    phase: ClassVar[Phase] = Phase.CREATE_AND_ALTER_DATABASES
    role: str

    @override
    def describe(self) -> str:
        return f"grant all on {self.subject} to {role_named(self.role)}"


class CreateSchema(Operation, frozen=True):
    """Create a schema in the maintenance database."""

    phase: ClassVar[Phase] = Phase.CREATE_SCHEMA_NEON
    name: str

    @property
    @override
    def subject(self) -> str:
        return f"schema {shown(self.name)}"

    @override
    def describe(self) -> str:
        return f"create {self.subject}"


class DropRole(_RoleOperation, frozen=True):
    """Drop a role that nothing depends on any more."""

    phase: ClassVar[Phase] = Phase.DROP_ROLES

    @override
    def describe(self) -> str:
        return f"drop {self.subject}"


# --- In a database that is visited -----------------------------------------------------------------------


class ReassignOwned(_Releasing, frozen=True):
    """Give everything that a departing role owns in this database to another role."""

    owner: str

    @override
    def describe(self) -> str:
        return f"reassign what {self.subject} owns to {shown(self.owner)}"


class GrantTarget(Enum):
    """What a grant was made on; the values are the words of GRANT and REVOKE."""

    TABLES = "ALL TABLES IN SCHEMA"
    SEQUENCES = "ALL SEQUENCES IN SCHEMA"
    ROUTINES = "ALL ROUTINES IN SCHEMA"
    SCHEMA = "SCHEMA"


class RevokeGrants(_Releasing, frozen=True):
    """Revoke what a role other than the owner granted to a departing role; DROP OWNED does not."""

    grantor: str
    schema: str
    target: GrantTarget

    @override
    def describe(self) -> str:
        return (
            f"revoke what {role_named(self.grantor)} granted to {self.subject}"
            f" on {self.target.value.lower()} {shown(self.schema)}"
        )


class DropOwned(_Releasing, frozen=True):
    """Revoke the other privileges of a departing role, and drop its default privileges."""

    @override
    def describe(self) -> str:
        return f"drop the remaining privileges of {self.subject}"


class SetPublicOwner(_Visiting, frozen=True):
    """Give the schema public to the owner of the database."""

    owner: str

    @override
    def describe(self) -> str:
        return f"make {role_named(self.owner)} the owner of schema public in {self.subject}"


class GrantPublicToWebAccess(_Visiting, frozen=True):
    """Let the role web_access create in the schema public."""

    @override
    def describe(self) -> str:
        return f'grant create on schema public to role "web_access" in {self.subject}'


class DefaultTarget(Enum):
    """What default privileges are about; the values are the words of ALTER DEFAULT PRIVILEGES."""

    TABLES = "TABLES"
    SEQUENCES = "SEQUENCES"


class AlterDefaultPrivileges(_Visiting, frozen=True):
    """Grant all on what the administrator will create in the schema public to the privileged role."""

    role: str
    target: DefaultTarget

    @override
    def describe(self) -> str:
        return (
            f"grant all on future {self.target.value.lower()} in schema public"
            f" to {role_named(self.role)} in {self.subject}"
        )


Maintaining: TypeAlias = (
    CreatePrivilegedRole
    | DropInvalidDatabase
    | RenameRole
    | CreateRole
    | AlterRole
    | ClearTemplateFlag
    | DropDatabase
    | RenameDatabase
    | AlterDatabaseOwner
    | CreateDatabase
    | GrantDatabase
    | CreateSchema
    | DropRole
)
Visiting: TypeAlias = (
    ReassignOwned
    | RevokeGrants
    | DropOwned
    | SetPublicOwner
    | GrantPublicToWebAccess
    | AlterDefaultPrivileges
)
AnyOperation: TypeAlias = Maintaining | Visiting

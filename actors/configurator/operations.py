"""Every change that the Configurator makes to a catalog: one kind of value for each, and its place in the order."""

from enum import Enum
from typing import ClassVar, Final, TypeAlias

import msgspec
from typing_extensions import override

from ...messages.secret import Secret
from ...messages.spec import GenericOption

MARK_TABLE: Final = "table neon.drop_subscriptions_done"
MARK_SUBJECT: Final = "the list of inherited subscriptions"
LEFT_SUBJECT: Final = "what is left of the inherited subscriptions"


class Phase(Enum):
    """The phases in the order of their execution; the values are what logs and errors call them."""

    DETACH_DATABASES = "drop the subscriptions of databases to be deleted"
    CREATE_PRIVILEGED_ROLE = "create the privileged role"
    DROP_INVALID_DATABASES = "drop invalid databases"
    RENAME_ROLES = "rename roles"
    CREATE_AND_ALTER_ROLES = "create and alter roles"
    RENAME_AND_DELETE_DATABASES = "rename and delete databases"
    CREATE_AND_ALTER_DATABASES = "create and alter databases"
    CREATE_SCHEMA_NEON = "create the schema neon"
    MARK_SUBSCRIPTIONS = "note the subscriptions to be dropped"
    VISIT_DATABASES = "visit databases"
    DROP_SUBSCRIPTIONS = "drop subscriptions"
    CREATE_EXTENSIONS = "create extensions"
    BRING_EXTENSION_NEON = "bring the extension neon up to date"
    CREATE_AVAILABILITY_CHECK = "create the table of the availability check"
    DROP_ROLES = "drop roles"
    FINISH_SUBSCRIPTIONS = "note which subscriptions are left"
    CREATE_AUDIT_EXTENSIONS = "create the extensions of the audit"
    SILENCE_OWN_AUDIT = "keep the node's own sessions out of the audit"


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
    def spoils(self) -> tuple[str, ...]:
        """The objects that are left alone from then on when it fails."""
        return (self.subject,)

    @property
    def renamed(self) -> tuple[str, ...]:
        """The objects whose names mean something else than planned when it fails."""
        return ()

    @property
    def mentions(self) -> tuple[str, ...]:
        """The other objects that it names."""
        return ()

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
    def spoils(self) -> tuple[str, ...]:
        return (self.subject, role_named(self.role))

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return (role_named(self.role),)

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

    @property
    @override
    def spoils(self) -> tuple[str, ...]:
        return (self.subject, role_named(self.new_name))

    @property
    @override
    def renamed(self) -> tuple[str, ...]:
        return self.spoils

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

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return () if self.member_of is None else (role_named(self.member_of),)

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


class EndReplication(_DatabaseOperation, frozen=True):
    """Close a database and end the sessions that read its changes: with them no force drops it."""

    phase: ClassVar[Phase] = Phase.RENAME_AND_DELETE_DATABASES

    @override
    def describe(self) -> str:
        return f"close {self.subject} and end the logical replication from it"


class RenameDatabase(_DatabaseOperation, frozen=True):
    """Rename a database."""

    phase: ClassVar[Phase] = Phase.RENAME_AND_DELETE_DATABASES
    new_name: str

    @property
    @override
    def spoils(self) -> tuple[str, ...]:
        return (self.subject, database_named(self.new_name))

    @property
    @override
    def renamed(self) -> tuple[str, ...]:
        return self.spoils

    @override
    def describe(self) -> str:
        return f"rename {self.subject} to {shown(self.new_name)}"


class AlterDatabaseOwner(_DatabaseOperation, frozen=True):
    """Give a database to another role."""

    phase: ClassVar[Phase] = Phase.CREATE_AND_ALTER_DATABASES
    owner: str

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return (role_named(self.owner),)

    @override
    def describe(self) -> str:
        return f"make {role_named(self.owner)} the owner of {self.subject}"


class CreateDatabase(_DatabaseOperation, frozen=True):
    """Create a database."""

    phase: ClassVar[Phase] = Phase.CREATE_AND_ALTER_DATABASES
    owner: str
    options: tuple[GenericOption, ...] = ()

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return (role_named(self.owner),)

    @override
    def describe(self) -> str:
        return f"create {self.subject} with owner {shown(self.owner)}"


class GrantDatabase(_DatabaseOperation, frozen=True):
    """Grant all privileges on a new database to the privileged role."""

    phase: ClassVar[Phase] = Phase.CREATE_AND_ALTER_DATABASES
    role: str

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return (role_named(self.role),)

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


class NoteSubscriptions(Operation, frozen=True):
    """Write down which subscriptions this branch has inherited and not dropped yet."""

    phase: ClassVar[Phase] = Phase.MARK_SUBSCRIPTIONS
    timeline: str
    left: tuple[int, ...]
    """Their oids."""

    @property
    @override
    def subject(self) -> str:
        return MARK_SUBJECT

    @property
    @override
    def spoils(self) -> tuple[str, ...]:
        return (MARK_SUBJECT, LEFT_SUBJECT)

    @override
    def describe(self) -> str:
        return (
            f"note for timeline {shown(self.timeline)} that {len(self.left)} subscriptions are to be dropped"
        )


class NoteSubscriptionsLeft(NoteSubscriptions, frozen=True):
    """Write down which of them are left."""

    phase: ClassVar[Phase] = Phase.FINISH_SUBSCRIPTIONS

    @property
    @override
    def subject(self) -> str:
        return LEFT_SUBJECT

    @override
    def describe(self) -> str:
        return f"note for timeline {shown(self.timeline)} that {len(self.left)} subscriptions are left"


class _ExtensionOperation(Operation, frozen=True):
    name: str

    @property
    @override
    def subject(self) -> str:
        return f"extension {shown(self.name)}"


class CreateExtension(_ExtensionOperation, frozen=True):
    """Create an extension in the maintenance database."""

    phase: ClassVar[Phase] = Phase.CREATE_EXTENSIONS
    schema: str

    @override
    def describe(self) -> str:
        return f"create {self.subject} in schema {shown(self.schema)}"


class CreateAuditExtension(CreateExtension, frozen=True):
    """Create an extension that the audit needs."""

    phase: ClassVar[Phase] = Phase.CREATE_AUDIT_EXTENSIONS


class CreateExtensionNeon(CreateExtension, frozen=True):
    """Create the extension neon."""

    phase: ClassVar[Phase] = Phase.BRING_EXTENSION_NEON


class MakeRelocatable(_ExtensionOperation, frozen=True):
    """Let an extension change its schema, which its packaging forbade."""

    phase: ClassVar[Phase] = Phase.BRING_EXTENSION_NEON

    @override
    def describe(self) -> str:
        return f"make {self.subject} relocatable"


class MoveExtension(_ExtensionOperation, frozen=True):
    """Put an extension into another schema."""

    phase: ClassVar[Phase] = Phase.BRING_EXTENSION_NEON
    schema: str

    @override
    def describe(self) -> str:
        return f"move {self.subject} to schema {shown(self.schema)}"


class UpdateExtension(_ExtensionOperation, frozen=True):
    """Bring an extension to the version that the server has."""

    phase: ClassVar[Phase] = Phase.BRING_EXTENSION_NEON
    version: str

    @override
    def describe(self) -> str:
        return f"update {self.subject} to version {shown(self.version)}"


class CreateAvailabilityCheck(Operation, frozen=True):
    """Create the table, with its one row, that is written to find out whether that is possible."""

    phase: ClassVar[Phase] = Phase.CREATE_AVAILABILITY_CHECK

    @property
    @override
    def subject(self) -> str:
        return "table public.health_check"

    @override
    def describe(self) -> str:
        return f"create {self.subject}"


class SilenceOwnAudit(_DatabaseOperation, frozen=True):
    """Leave a database without audit: the node's own sessions are there, not those of users."""

    phase: ClassVar[Phase] = Phase.SILENCE_OWN_AUDIT

    @override
    def describe(self) -> str:
        return f"set pgaudit.log to none for {self.subject}"


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

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return (role_named(self.role), role_named(self.owner))

    @override
    def describe(self) -> str:
        return f"reassign what {self.subject} owns to {shown(self.owner)}"


class GrantTarget(Enum):
    """What a grant was made on; the values are the words of REVOKE."""

    TABLE = "TABLE"
    COLUMN = "COLUMN"
    SEQUENCE = "SEQUENCE"
    ROUTINE = "ROUTINE"
    SCHEMA = "SCHEMA"
    TYPE = "TYPE"
    LANGUAGE = "LANGUAGE"
    LARGE_OBJECT = "LARGE OBJECT"
    WRAPPER = "FOREIGN DATA WRAPPER"
    SERVER = "FOREIGN SERVER"
    DATABASE = "DATABASE"
    TABLESPACE = "TABLESPACE"
    PARAMETER = "PARAMETER"


class Grant(msgspec.Struct, frozen=True):
    """What one role granted to another on one thing.

    Exactly these privileges are revoked, on nothing else: asked for more, Postgres would act in the name of another
    role that the grantor is a member of, or refuse.
    """

    grantor: str
    target: GrantTarget
    names: tuple[str, ...]
    """Of the thing, part by part: schema, table, column; schema, routine, types; the oid of a large object."""
    privileges: tuple[str, ...]


class RevokeGrant(_Releasing, frozen=True):
    """Revoke what a role other than the owner granted to a departing role; DROP OWNED does not."""

    grant: Grant

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return (role_named(self.role), role_named(self.grant.grantor))

    @override
    def describe(self) -> str:
        return (
            f"revoke what {role_named(self.grant.grantor)} granted to {self.subject}"
            f" on {self.grant.target.value.lower()} {'.'.join(map(shown, self.grant.names))}"
        )


class DropOwned(_Releasing, frozen=True):
    """Revoke the other privileges of a departing role, and drop its default privileges."""

    @override
    def describe(self) -> str:
        return f"drop the remaining privileges of {self.subject}"


class DropSubscription(_Visiting, frozen=True):
    """Drop a logical subscription and leave its slots at the publisher alone."""

    phase: ClassVar[Phase] = Phase.DROP_SUBSCRIPTIONS
    name: str
    oid: int

    @property
    @override
    def subject(self) -> str:
        return f"subscription {shown(self.name)} in {database_named(self.database)}"

    @property
    @override
    def spoils(self) -> tuple[str, ...]:
        return (self.subject, LEFT_SUBJECT)

    @property
    @override
    def unit(self) -> str | None:
        return self.subject

    @override
    def describe(self) -> str:
        return f"drop {self.subject}"


class SetPublicOwner(_Visiting, frozen=True):
    """Give the schema public to the owner of the database."""

    owner: str

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return (role_named(self.owner),)

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

    @property
    @override
    def mentions(self) -> tuple[str, ...]:
        return (role_named(self.role),)

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
    | EndReplication
    | DropDatabase
    | RenameDatabase
    | AlterDatabaseOwner
    | CreateDatabase
    | GrantDatabase
    | CreateSchema
    | NoteSubscriptions
    | CreateExtension
    | MakeRelocatable
    | MoveExtension
    | UpdateExtension
    | CreateAvailabilityCheck
    | DropRole
    | SilenceOwnAudit
)
Visiting: TypeAlias = (
    ReassignOwned
    | RevokeGrant
    | DropOwned
    | DropSubscription
    | SetPublicOwner
    | GrantPublicToWebAccess
    | AlterDefaultPrivileges
)
AnyOperation: TypeAlias = Maintaining | Visiting

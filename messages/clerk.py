"""What the Clerk hears and answers: single requests about the catalog of the running Postgres."""

from enum import Enum
from typing import ClassVar, Final, TypeAlias

import msgspec
from typing_extensions import override

from .base import Message, Request, Summarised
from .secret import Secret
from .stream import ByteStream

QUEUE_LIMIT_S: Final = 15.0
"""How long a request may wait for its turn; then it is not begun."""
QUERY_LIMIT_S: Final = 30.0


class Privilege(Enum):
    """What a role may be granted; on a schema, Postgres takes CREATE and USAGE."""

    SELECT = "SELECT"
    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    TRUNCATE = "TRUNCATE"
    REFERENCES = "REFERENCES"
    TRIGGER = "TRIGGER"
    USAGE = "USAGE"
    CREATE = "CREATE"
    CONNECT = "CONNECT"
    TEMPORARY = "TEMPORARY"
    EXECUTE = "EXECUTE"


# --- Answers ---------------------------------------------------------------------------------------------


class NotDone(Message, frozen=True):
    """It could not be done; `error` says why. `missing`: the database that was named is not there."""

    error: str
    missing: bool = False


class Overloaded(Message, frozen=True):
    """It was not begun, because too much of its kind is under way; later it will."""

    error: str


class Writable(Message, frozen=True):
    """A row was written, or Postgres would have, had its disk not been full."""

    disk_full: bool = False


class RoleEntry(msgspec.Struct, frozen=True):
    """A role; its password as Postgres keeps it, if that was asked for."""

    name: str
    encrypted_password: Secret | None = None


class DatabaseEntry(msgspec.Struct, frozen=True):
    """A database; `invalid` when dropping it was interrupted."""

    name: str
    owner: str
    restrict_conn: bool
    invalid: bool


class Listing(Summarised, frozen=True):
    """All roles and databases; `errors` names those that cannot be shown, and why."""

    roles: tuple[RoleEntry, ...] = ()
    databases: tuple[DatabaseEntry, ...] = ()
    errors: tuple[str, ...] = ()

    @override
    def __repr__(self) -> str:
        return f"Listing(roles={len(self.roles)}, databases={len(self.databases)}, errors={len(self.errors)})"


class Listed(Message, frozen=True):
    """The roles and databases."""

    listing: Listing


class Statements(Summarised, frozen=True):
    """Rows of `pg_stat_statements`, each a JSON object; they hold the text of people's statements."""

    rows: tuple[str, ...] = ()

    @override
    def __repr__(self) -> str:
        return f"Statements(rows={len(self.rows)})"


class Insights(Message, frozen=True):
    """The statements that take longest."""

    statements: Statements


class Done(Message, frozen=True):
    """It is as was asked for."""


class DumpBegun(Message, frozen=True):
    """The first bytes of the dump are in the stream of the request."""


Refusal: TypeAlias = NotDone | Overloaded

# --- Requests: `limit_s` is how long each may take, once it has begun --------------------------------------


class CheckWritability(Request[Writable | Refusal], frozen=True):
    """Write a row."""

    limit_s: ClassVar[float] = QUERY_LIMIT_S


class ListCatalog(Request[Listed | Refusal], frozen=True):
    """List roles and databases, with passwords or without."""

    limit_s: ClassVar[float] = QUERY_LIMIT_S
    with_passwords: bool = False


class CollectInsights(Request[Insights | Refusal], frozen=True):
    """Read which statements take longest; none where Postgres does not keep account."""

    limit_s: ClassVar[float] = QUERY_LIMIT_S


class InstallExtension(Request[Done | Refusal], frozen=True):
    """Install this version of an extension in a database, or bring an installed one to it."""

    limit_s: ClassVar[float] = 120.0
    database: str
    extension: str
    version: str


class SetGrants(Request[Done | Refusal], frozen=True):
    """Grant a role those of the privileges on a schema that it does not have."""

    limit_s: ClassVar[float] = QUERY_LIMIT_S
    database: str
    schema: str
    privileges: tuple[Privilege, ...]
    role: str


class DumpSchema(Request[DumpBegun | Refusal], frozen=True):
    """Dump the schema of a database into the stream; whoever asks closes it, whatever comes of it."""

    limit_s: ClassVar[float] = 600.0
    database: str
    stream: ByteStream


Query: TypeAlias = CheckWritability | ListCatalog | CollectInsights | InstallExtension | SetGrants
"""What is answered by a few statements."""
ClerkRequest: TypeAlias = Query | DumpSchema
QueryAnswer: TypeAlias = Writable | Listed | Insights | Done | NotDone | Overloaded

"""What the Clerk says to Postgres, one short-lived connection for each request. Imported late, for psycopg."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, assert_never

from psycopg import AsyncConnection, Error, sql
from psycopg.rows import TupleRow

from ...messages.clerk import (
    CheckWritability,
    CollectInsights,
    DatabaseEntry,
    Done,
    Insights,
    InstallExtension,
    ListCatalog,
    Listed,
    Listing,
    NotDone,
    Privilege,
    Query,
    QueryAnswer,
    RoleEntry,
    SetGrants,
    Statements,
    Writable,
)
from ...messages.secret import Secret
from ...postgres.asking import Row, StatementError, ask
from ...postgres.connection import (
    EVENT_TRIGGERS_SINCE,
    QUIET_OPTIONS,
    SET_EVENT_TRIGGERS_OFF,
    UNDISTURBED_OPTIONS,
    connect,
)
from ...postgres.coroutines import run_async
from ...postgres.target import Target
from ...postgres.text import one_line
from ..kit.jobs import Cancellation

Connection: TypeAlias = AsyncConnection[TupleRow]
T = TypeVar("T")

OPTIONS: Final = (*QUIET_OPTIONS, *UNDISTURBED_OPTIONS)
CONNECT_FAILED: Final = "Failed to connect to the database"
QUERY_FAILED: Final = "Failed to execute query"
NAMES: Final[dict[type[Query], str]] = {
    CheckWritability: "compute_ctl:availability_checker",
    ListCatalog: "compute_ctl:get_dbs_and_roles",
    CollectInsights: "compute_ctl:collect_insights",
    InstallExtension: "compute_ctl:install_extension",
    SetGrants: "compute_ctl:set_role_grants",
}

ATTEMPTS: Final = 3
DISTURBED: Final = frozenset({"XX000", "40001", "40P01", "23505", "42710"})
"""What another session that does the same may cause: `tuple concurrently updated`, an extension that now exists."""
DISK_FULL: Final = "53100"
NOT_LOADED: Final = "55000"

TABLE_OWNER: Final = b"""\
SELECT owner.rolname, owner.rolsuper
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_authid AS owner ON owner.oid = c.relowner
 WHERE n.nspname = 'public' AND c.relname = 'health_check'
"""
"""Whoever owns a table decides what is run by those who write into it."""
WRITE: Final = b"""\
INSERT INTO public.health_check (id, updated_at) VALUES (1, pg_catalog.now())
    ON CONFLICT (id) DO UPDATE SET updated_at = EXCLUDED.updated_at
"""

ROLES: Final = b"SELECT rolname, NULL FROM pg_catalog.pg_authid ORDER BY 1"
ROLES_WITH_PASSWORDS: Final = b"SELECT rolname, rolpassword FROM pg_catalog.pg_authid ORDER BY 1"
DATABASES: Final = b"""\
SELECT d.datname, r.rolname, d.datallowconn, d.datconnlimit = -2
  FROM pg_catalog.pg_database AS d
  JOIN pg_catalog.pg_authid AS r ON r.oid = d.datdba
 ORDER BY 1
"""
EXISTS: Final = b"SELECT FROM pg_catalog.pg_database WHERE datname = $1"

STATISTICS_SCHEMA: Final = b"""\
SELECT n.nspname
  FROM pg_catalog.pg_extension AS e
  JOIN pg_catalog.pg_depend AS d
    ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid AND d.deptype = 'e'
  JOIN pg_catalog.pg_class AS c ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE e.extname = 'pg_stat_statements' AND c.relname = 'pg_stat_statements'
"""
"""Where the extension's own view is: not one of the same name."""
STATISTICS: Final = """\
SELECT line
  FROM (
    SELECT line, pg_catalog.sum(pg_catalog.octet_length(line)) OVER (ORDER BY place) AS size
      FROM (
        SELECT pg_catalog.row_to_json(s)::pg_catalog.text AS line,
               pg_catalog.row_number() OVER (ORDER BY s.mean_exec_time + s.mean_plan_time DESC) AS place
          FROM {}.pg_stat_statements AS s
         WHERE s.userid IS DISTINCT FROM (SELECT oid FROM pg_catalog.pg_authid WHERE rolname = $1)
      ) AS placed
     WHERE place <= 100
  ) AS measured
 WHERE size <= 16777216
 ORDER BY size
"""
"""The hundred slowest, but for our own, and 16 MiB at most: Postgres keeps statements of any length."""

INSTALLED_VERSION: Final = b"SELECT extversion FROM pg_catalog.pg_extension WHERE extname = $1"
FIXED_SCHEMA: Final = b"""\
SELECT schema FROM pg_catalog.pg_available_extension_versions WHERE name = $1 AND version = $2
"""
HELD_PRIVILEGES: Final = b"""\
SELECT held.privilege_type
  FROM pg_catalog.pg_namespace AS n
 CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS held
  JOIN pg_catalog.pg_authid AS r ON r.oid = held.grantee
 WHERE n.nspname = $1 AND r.rolname = $2
"""


class QueryError(Exception):
    """It could not be done; the text begins as the counterpart's does."""


def answer(target: Target, query: Query, cancellation: Cancellation) -> QueryAnswer:
    """Carry out a query on this thread; see `port.CatalogAccess`."""
    limit_s = query.limit_s
    try:
        return run_async(partial(_limited, limit_s, partial(_answer, target, query)), cancellation)
    except TimeoutError:
        return NotDone(f"it took longer than {limit_s:g} s, and was broken off")
    except (QueryError, StatementError, Error) as error:
        return NotDone(one_line(error))


def exists(target: Target, database: str, cancellation: Cancellation) -> bool:
    """Tell whether there is such a database; also True where that cannot be found out."""

    async def look() -> bool:
        connection = await connect(target, application_name=NAMES[ListCatalog], extra_options=OPTIONS)
        try:
            return bool(await ask(connection, EXISTS, [database.encode()]))
        finally:
            connection.pgconn.finish()

    try:
        return run_async(partial(_limited, ListCatalog.limit_s, look), cancellation)
    except (StatementError, Error, TimeoutError):
        return True


async def _limited(limit_s: float, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async with asyncio.timeout(limit_s):
        return await work()


async def _answer(target: Target, query: Query) -> QueryAnswer:
    database = query.database if isinstance(query, InstallExtension | SetGrants) else target.dbname
    try:
        connection = await connect(
            target, application_name=NAMES[type(query)], dbname=database, extra_options=OPTIONS
        )
    except Error as error:
        msg = f"{CONNECT_FAILED}: {one_line(error)}"
        raise QueryError(msg) from error
    try:
        match query:
            case CheckWritability():
                return await _write(connection)
            case ListCatalog(with_passwords):
                return await _list(connection, with_passwords=with_passwords)
            case CollectInsights():
                return await _insights(connection, target.user)
            case InstallExtension() | SetGrants():
                return await _change(connection, query)
            case _:
                assert_never(query)
    finally:
        connection.pgconn.finish()


# --- Looking ---------------------------------------------------------------------------------------------


async def _write(connection: Connection) -> QueryAnswer:
    rows = await ask(connection, TABLE_OWNER)
    if rows and rows[0][1] != b"t":
        owner = (rows[0][0] or b"").decode(errors="replace")
        return NotDone(
            f'the table public.health_check belongs to the role "{owner}", who could run code of theirs as a '
            "superuser: drop it, and apply the spec again"
        )
    try:
        await ask(connection, WRITE)
    except StatementError as error:
        if error.sqlstate != DISK_FULL:
            raise
        return Writable(disk_full=True)
    return Writable()


async def _list(connection: Connection, *, with_passwords: bool) -> Listed:
    errors: list[str] = []
    roles = [
        RoleEntry(name, None if password is None else Secret(password))
        for row in await ask(connection, ROLES_WITH_PASSWORDS if with_passwords else ROLES)
        if (texts := _texts("role", row, errors)) is not None
        for name, password in [(texts[0] or "", texts[1])]
    ]
    databases = [
        DatabaseEntry(name or "", owner or "", allowed == "f", invalid == "t")
        for row in await ask(connection, DATABASES)
        if (texts := _texts("database", row, errors)) is not None
        for name, owner, allowed, invalid in [texts]
    ]
    return Listed(Listing(tuple(roles), tuple(databases), tuple(errors)))


def _texts(kind: str, row: Row, errors: list[str]) -> list[str | None] | None:
    """Decode a row, or note why it cannot be shown."""
    try:
        return [None if value is None else value.decode() for value in row]
    except UnicodeDecodeError:
        name = (row[0] or b"").decode("latin-1").encode("unicode_escape").decode()
        errors.append(f"the {kind} '{name}' cannot be shown: a name that belongs to it is not UTF-8")
        return None


async def _insights(connection: Connection, ours: str) -> Insights:
    found = await ask(connection, STATISTICS_SCHEMA)
    rows: Sequence[Row] = ()
    if found:
        schema = (found[0][0] or b"").decode()
        query = sql.SQL(STATISTICS).format(sql.Identifier(schema))
        try:
            rows = await ask(connection, query.as_bytes(connection), [ours.encode()])
        except StatementError as error:
            if error.sqlstate != NOT_LOADED:  # the library, by shared_preload_libraries
                raise
    return Insights(Statements(tuple((row[0] or b"").decode(errors="replace") for row in rows)))


# --- Changing --------------------------------------------------------------------------------------------


async def _change(connection: Connection, query: InstallExtension | SetGrants) -> Done:
    """Do it, again if somebody who does the same was in the way."""
    if connection.pgconn.server_version >= EVENT_TRIGGERS_SINCE:
        await ask(connection, SET_EVENT_TRIGGERS_OFF)
    for attempt in range(1, ATTEMPTS + 1):
        if isinstance(query, InstallExtension):
            statement = await _installation(connection, query)
        else:
            statement = await _grant(connection, query)
        if statement is None:
            break
        try:
            await ask(connection, statement.as_bytes(connection))
            break
        except StatementError as error:
            if attempt == ATTEMPTS or error.sqlstate not in DISTURBED:
                msg = f"{QUERY_FAILED}: {statement.as_string(connection)}: {error}"
                raise QueryError(msg) from error
    return Done()


async def _installation(connection: Connection, wish: InstallExtension) -> sql.Composed | None:
    """Return what brings the extension to that version; None when it is there."""
    name, version = sql.Identifier(wish.extension), sql.Identifier(wish.version)
    installed = await ask(connection, INSTALLED_VERSION, [wish.extension.encode()])
    if installed:
        if installed[0][0] == wish.version.encode():
            return None
        return sql.SQL("ALTER EXTENSION {} UPDATE TO {}").format(name, version)
    fixed = await ask(connection, FIXED_SCHEMA, [wish.extension.encode(), wish.version.encode()])
    if fixed and fixed[0][0] is not None:
        return sql.SQL("CREATE EXTENSION IF NOT EXISTS {} WITH VERSION {}").format(name, version)
    return sql.SQL("CREATE EXTENSION IF NOT EXISTS {} WITH SCHEMA public VERSION {}").format(name, version)


async def _grant(connection: Connection, wish: SetGrants) -> sql.Composed | None:
    """Return what grants that which the role does not have; None when it has all."""
    rows = await ask(connection, HELD_PRIVILEGES, [wish.schema.encode(), wish.role.encode()])
    held = {value for (value,) in rows}
    missing = [p for p in dict.fromkeys(wish.privileges) if p.value.encode() not in held]
    if not missing:
        return None
    return sql.SQL("GRANT {} ON SCHEMA {} TO {}").format(
        sql.SQL(", ").join(map(_word, missing)), sql.Identifier(wish.schema), sql.Identifier(wish.role)
    )


def _word(privilege: Privilege) -> sql.SQL:
    return sql.SQL(privilege.value)

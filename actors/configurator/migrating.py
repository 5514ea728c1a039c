"""Runs the migrations over libpq, each in one transaction together with its count. Imported late."""

import asyncio
import logging
from functools import partial
from typing import Final, TypeAlias

from psycopg import AsyncConnection, Error
from psycopg.rows import TupleRow

from ...messages.failpoints import Failpoint, FailpointError
from ...postgres.connection import EVENT_TRIGGERS_SINCE, SET_EVENT_TRIGGERS_OFF, connect
from ...postgres.coroutines import run_async
from ...postgres.target import Target, parse_connstr
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from .conversation import TRANSIENT
from .executor import OPTIONS
from .migrations import MIGRATIONS, Step, due
from .operations import role_named
from .port import AdministrationError, MigrationReport

APPLICATION_NAME: Final = "compute_ctl:migrations"
LIMIT_S: Final = 540.0
"""All of them together; as long as an application of the spec."""
ATTEMPTS: Final = 3
"""For what another session may have caused; each waits for at most the lock timeout."""

OWNER: Final = b"""
SELECT pg_catalog.pg_get_userbyid(c.relowner)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'neon_migration' AND c.relname = 'migration_id'
"""
SCHEMA: Final = (
    b"CREATE SCHEMA IF NOT EXISTS neon_migration",
    b"ALTER SCHEMA neon_migration OWNER TO CURRENT_USER",
    b"REVOKE ALL ON SCHEMA neon_migration FROM PUBLIC",
)
TABLE: Final = b"""
CREATE TABLE IF NOT EXISTS neon_migration.migration_id
  (key pg_catalog.int4 NOT NULL PRIMARY KEY, id pg_catalog.int8 NOT NULL DEFAULT 0)
"""
FIRST: Final = b"INSERT INTO neon_migration.migration_id VALUES (0, 0) ON CONFLICT DO NOTHING"
DONE: Final = b"SELECT id FROM neon_migration.migration_id WHERE key = 0"
COUNT: Final = b"UPDATE neon_migration.migration_id SET id = %s WHERE key = 0"

Connection: TypeAlias = AsyncConnection[TupleRow]
log = logging.getLogger(__name__)


def migrate(connstr: str, privileged_role: str, cancellation: Cancellation) -> MigrationReport:
    """Run what is due on the Postgres of that URL, on this thread; see `port.Administration`."""
    return run_async(partial(_migrate, parse_connstr(connstr), privileged_role, cancellation), cancellation)


async def _migrate(target: Target, privileged_role: str, cancellation: Cancellation) -> MigrationReport:
    try:
        async with asyncio.timeout(LIMIT_S):
            connection = await connect(target, application_name=APPLICATION_NAME, extra_options=OPTIONS)
            try:
                return await _run(connection, target.user, privileged_role, cancellation)
            finally:
                connection.pgconn.finish()  # what still runs ends in the server, too
    except TimeoutError:
        msg = f"they were broken off after {LIMIT_S:g} s: something holds them up (see pg_locks)"
        raise AdministrationError(msg) from None
    except Error as error:
        raise AdministrationError(one_line(error)) from error


async def _run(
    connection: Connection, administrator: str, privileged_role: str, cancellation: Cancellation
) -> MigrationReport:
    version = connection.pgconn.server_version
    if version >= EVENT_TRIGGERS_SINCE:
        await connection.execute(SET_EVENT_TRIGGERS_OFF)
    done = await _prepare(connection, administrator)
    for step in due(done, version, privileged_role):
        cancellation.check()
        if (error := await _take(connection, step, cancellation)) is not None:
            return MigrationReport(done, len(MIGRATIONS), step.number, error)
        done = step.number
    return MigrationReport(done, len(MIGRATIONS))


async def _prepare(connection: Connection, administrator: str) -> int:
    """Make the place where the count is kept, and return the count.

    A table of somebody else's is not written to: its triggers would run with our rights.
    """
    async with connection.transaction():
        for statement in SCHEMA:
            await connection.execute(statement)
        owner = await (await connection.execute(OWNER)).fetchone()
        if owner is not None and owner[0] != administrator:
            msg = f"the table neon_migration.migration_id belongs to {role_named(owner[0])}: drop it"
            raise AdministrationError(msg)
        await connection.execute(TABLE)
        await connection.execute(FIRST)
        row = await (await connection.execute(DONE)).fetchone()
    assert row is not None  # noqa: S101 - it was inserted
    return int(row[0])


async def _take(connection: Connection, step: Step, cancellation: Cancellation) -> str | None:
    """Run one migration and count it; return why it could not be. What another session disturbed is repeated."""
    if step.text is None:
        log.info("Skipping migration id=%d (%s)", step.number, step.reason)
    else:
        log.info("Running migration id=%d:\n%s", step.number, step.text)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with connection.transaction():
                if step.text is not None:
                    await connection.execute(step.text.encode())
                _reach(step.number, cancellation)
                await connection.execute(COUNT, (step.number,))
        except (Error, FailpointError) as error:
            disturbed = isinstance(error, Error) and (error.sqlstate or "").encode() in TRANSIENT
            if attempt < ATTEMPTS and disturbed:
                continue
            reason = one_line(error)
            log.error("Failed to run migration id=%d: %s", step.number, reason)  # noqa: TRY400 - a line is enough
            return reason
        break
    log.info("Finished migration id=%d", step.number)
    return None


def _reach(number: int, cancellation: Cancellation) -> None:
    """Say that a migration is done and not counted; `return(<n>)` is meant for one of them."""
    try:
        cancellation.reach(Failpoint.MIGRATION)
    except FailpointError as error:
        meant = str(error)
        if not meant.isdecimal() or int(meant) == number:
            raise

"""Sessions in the running Postgres, for caches. Imported late, for psycopg."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final, TypeAlias

from psycopg import AsyncConnection, Error
from psycopg.pq.abc import PGconn
from psycopg.rows import TupleRow

from ...postgres.asking import ask
from ...postgres.connection import EVENT_TRIGGERS_OFF, EVENT_TRIGGERS_SINCE, UNDISTURBED_OPTIONS, connect
from ...postgres.target import Target
from ...postgres.text import one_line
from .port import CacheError

Connection: TypeAlias = AsyncConnection[TupleRow]

NAME: Final = "compute_ctl:apply_config"
"""The counterpart's, for these calls too."""
OPTIONS: Final = (
    *UNDISTURBED_OPTIONS,
    "lock_timeout=100ms",  # whoever is in the way of a read that nobody waits for goes first
    "work_mem=64MB",
    "track_activities=off",  # to users and monitors this is no session at work
    "log_min_duration_statement=-1",
    "neon.forward_ddl=false",
)
AS_IT_IS: Final = "client_encoding=SQL_ASCII"
"""For a database without an encoding: else it refuses to show names that are not UTF-8."""
CONNECTING: Final = "connecting to postgres"


class Sessions:
    """Connects to the databases of one Postgres."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @contextlib.asynccontextmanager
    async def connect(self, dbname: str | None = None) -> AsyncIterator[Connection]:
        """Give a session, and end it at once afterwards, whatever it does.

        Raises CacheError, StatementError and psycopg.Error.
        """
        try:
            connection = await connect(
                self._target, application_name=NAME, dbname=dbname, extra_options=OPTIONS
            )
        except Error as error:
            msg = f"{CONNECTING}: {one_line(error)}"
            raise CacheError(msg) from None
        try:
            for setting in _by_server(connection.pgconn):
                name, _, value = setting.encode().partition(b"=")
                await ask(connection, b"SELECT pg_catalog.set_config($1, $2, false)", [name, value])
            yield connection
        finally:
            connection.pgconn.finish()


def _by_server(connection: PGconn) -> Iterator[str]:
    """Yield the settings that can be chosen only once its version and the database are known."""
    if connection.server_version >= EVENT_TRIGGERS_SINCE:
        yield EVENT_TRIGGERS_OFF
    if connection.parameter_status(b"server_encoding") == b"SQL_ASCII":
        yield AS_IT_IS

"""Sessions in the running Postgres, for caches. Imported late, for psycopg."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final, TypeAlias

from psycopg import AsyncConnection, Error
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
CONNECTING: Final = "connecting to postgres"


class Sessions:
    """Connects to the databases of one Postgres."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @contextlib.asynccontextmanager
    async def connect(self, dbname: str | None = None) -> AsyncIterator[Connection]:
        """Give a session, and end it at once afterwards, whatever it does. Raises CacheError."""
        try:
            connection = await connect(
                self._target, application_name=NAME, dbname=dbname, extra_options=OPTIONS
            )
        except Error as error:
            msg = f"{CONNECTING}: {one_line(error)}"
            raise CacheError(msg) from None
        try:
            if connection.pgconn.server_version >= EVENT_TRIGGERS_SINCE:
                name, _, value = EVENT_TRIGGERS_OFF.partition("=")
                await ask(
                    connection,
                    b"SELECT pg_catalog.set_config($1, $2, false)",
                    [name.encode(), value.encode()],
                )
            yield connection
        finally:
            connection.pgconn.finish()

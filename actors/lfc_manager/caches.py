"""The cache of the running Postgres: that of the extension neon where it is there, else the shared buffers.

Light to import: the driver is loaded by the first who asks.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec.structs import replace
from typing_extensions import override

from ...messages.settings import NodeSettings
from ...postgres.coroutines import run_async
from ...postgres.target import parse_connstr
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from .port import Cache, CacheError, Counts, Progress, Taken

if TYPE_CHECKING:
    from .sessions import Connection, Sessions

R = TypeVar("R")

TAKE_S: Final = 120.0
LOAD_S: Final = 7_200.0
"""Longest time for a prewarm; what hangs must not be in the way of everything after it for ever."""
TAKING: Final = "querying LFC state"
LOADING: Final = "loading LFC state into postgres"
"""The counterpart's texts."""
HAS_NEON: Final = b"""\
SELECT pg_catalog.count(*) = 3
  FROM pg_catalog.pg_depend AS d
  JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
 WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
   AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
   AND d.deptype = 'e' AND e.extname = 'neon'
   AND d.objid IN (pg_catalog.to_regprocedure('neon.get_local_cache_state(integer)'),
                   pg_catalog.to_regprocedure('neon.prewarm_local_cache(bytea,integer)'),
                   pg_catalog.to_regprocedure('neon.get_prewarm_info()'))
"""
"""The extension's own: whoever owns the database can make functions of these names, and we call them as superuser."""
LIFE: Final = b"""\
SELECT pg_catalog.string_agg(pid || '@' || pg_catalog.date_part('epoch', backend_start), ',')
  FROM pg_catalog.pg_stat_activity
 WHERE backend_type = 'checkpointer'
"""
"""The postmaster survives a crash of a backend, and so do its own facts; its children do not."""


class PostgresCache(Cache):
    """Asks the Postgres of the settings' connection string."""

    def __init__(self, settings: NodeSettings, *, take_s: float = TAKE_S, load_s: float = LOAD_S) -> None:
        self._target = parse_connstr(settings.connstr.reveal())
        self._take_s = take_s
        self._load_s = load_s

    @override
    def take(self, cancellation: Cancellation) -> Taken:
        async def taken(sessions: "Sessions", connection: "Connection") -> Taken:
            from . import buffers, neon

            life = await life_of(connection)
            if await has_neon(connection):
                return Taken(await neon.take(connection), life)
            return Taken(await buffers.take(sessions, connection), life)

        return self._ask(taken, TAKING, self._take_s, cancellation)

    @override
    def load(self, state: bytes, progress: Progress, cancellation: Cancellation) -> Counts:
        async def loaded(sessions: "Sessions", connection: "Connection") -> Counts:
            from . import buffers, neon

            if await has_neon(connection):
                counts = await neon.load(sessions, connection, state, progress)
            else:
                counts = await buffers.load(sessions, connection, state, progress)
            # a session of before a crash does not answer any more
            return replace(counts, life=await life_of(connection))

        return self._ask(loaded, LOADING, self._load_s, cancellation)

    def _ask(
        self,
        work: "Callable[[Sessions, Connection], Awaitable[R]]",
        doing: str,
        limit_s: float,
        cancellation: Cancellation,
    ) -> R:
        """Do the work in a session, within its time. Raises CacheError, and what else the work raises."""

        async def asked() -> R:
            import asyncio

            from psycopg import Error

            from ...postgres.asking import StatementError
            from .sessions import Sessions

            sessions = Sessions(self._target)
            try:
                async with asyncio.timeout(limit_s), sessions.connect() as connection:
                    return await work(sessions, connection)
            except TimeoutError:
                msg = f"{doing}: it took longer than {limit_s:g} s, and was broken off"
                raise CacheError(msg) from None
            except (StatementError, Error) as error:
                msg = f"{doing}: {one_line(error)}"
                raise CacheError(msg) from None

        return run_async(asked, cancellation)


async def has_neon(connection: "Connection") -> bool:
    """Tell whether the extension neon is there. Raises StatementError and psycopg.Error."""
    from ...postgres.asking import ask

    return await ask(connection, HAS_NEON) == [[b"t"]]


async def life_of(connection: "Connection") -> str | None:
    """Name the life of the server's shared memory. Raises StatementError and psycopg.Error."""
    from ...postgres.asking import ask

    [[life]] = await ask(connection, LIFE)
    return None if life is None else life.decode()

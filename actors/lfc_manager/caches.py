"""The cache of the running Postgres: that of the extension neon where it is there, else the shared buffers.

Light to import: the driver is loaded by the first who asks.
"""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace
from typing_extensions import override

from ...messages.settings import NodeSettings
from ...postgres.coroutines import run_async
from ...postgres.target import parse_connstr
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from .port import Cache, CacheError, Counts, Progress, Taken

if TYPE_CHECKING:
    from .sessions import Connection

TAKE_S: Final = 120.0
LOAD_S: Final = 7_200.0
"""Longest time for a prewarm; what hangs must not be in the way of everything after it for ever."""
HAS_NEON: Final = b"SELECT pg_catalog.to_regprocedure('neon.get_local_cache_state(integer)') IS NOT NULL"

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
        import asyncio

        from ...postgres.asking import ask
        from . import buffers, neon
        from .sessions import Sessions

        sessions = Sessions(self._target)

        async def taken() -> Taken:
            async with asyncio.timeout(self._take_s), sessions.connect() as connection:
                life = await life_of(connection, "querying LFC state")
                if await ask(connection, HAS_NEON) == [[b"t"]]:
                    return Taken(await neon.take(connection), life)
                return Taken(await buffers.take(sessions, connection), life)

        try:
            return run_async(taken, cancellation)
        except TimeoutError:
            msg = f"querying LFC state: it took longer than {self._take_s:g} s, and was broken off"
            raise CacheError(msg) from None

    @override
    def load(self, state: bytes, progress: Progress, cancellation: Cancellation) -> Counts:
        import asyncio

        from ...postgres.asking import ask
        from . import buffers, neon
        from .sessions import Sessions

        sessions = Sessions(self._target)

        async def loaded() -> Counts:
            async with asyncio.timeout(self._load_s), sessions.connect() as connection:
                if await ask(connection, HAS_NEON) == [[b"t"]]:
                    counts = await neon.load(sessions, connection, state, progress)
                else:
                    counts = await buffers.load(sessions, connection, state, progress)
                # a session of before a crash does not answer any more
                return replace(counts, life=await life_of(connection, "loading LFC state into postgres"))

        try:
            return run_async(loaded, cancellation)
        except TimeoutError:
            msg = (
                f"loading LFC state into postgres: it took longer than {self._load_s:g} s, and was broken off"
            )
            raise CacheError(msg) from None


async def life_of(connection: "Connection", doing: str) -> str | None:
    """Name the life of the server's shared memory. Raises CacheError."""
    from psycopg import Error

    from ...postgres.asking import StatementError, ask

    try:
        [[life]] = await ask(connection, LIFE)
    except (StatementError, Error) as error:
        msg = f"{doing}: {one_line(error)}"
        raise CacheError(msg) from None
    return None if life is None else life.decode()

"""The cache of the running Postgres: that of the extension neon where it is there, else the shared buffers.

Light to import: the driver is loaded by the first who asks.
"""

from typing import Final

from typing_extensions import override

from ...messages.settings import NodeSettings
from ...postgres.connection import parse_connstr, run_async
from ..kit.jobs import Cancellation
from .port import Cache, CacheError, Counts, Progress

TAKE_S: Final = 120.0
LOAD_S: Final = 7_200.0
"""Longest time for a prewarm; what hangs must not be in the way of everything after it for ever."""
HAS_NEON: Final = b"SELECT pg_catalog.to_regprocedure('neon.get_local_cache_state(integer)') IS NOT NULL"


class PostgresCache(Cache):
    """Asks the Postgres of the settings' connection string."""

    def __init__(self, settings: NodeSettings, *, take_s: float = TAKE_S, load_s: float = LOAD_S) -> None:
        self._target = parse_connstr(settings.connstr.reveal())
        self._take_s = take_s
        self._load_s = load_s

    @override
    def take(self, cancellation: Cancellation) -> bytes | None:
        import asyncio

        from ...postgres.asking import ask
        from . import buffers, neon
        from .sessions import Sessions

        sessions = Sessions(self._target)

        async def taken() -> bytes | None:
            async with asyncio.timeout(self._take_s), sessions.connect() as connection:
                if await ask(connection, HAS_NEON) == [[b"t"]]:
                    return await neon.take(connection)
                return await buffers.take(sessions, connection)

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
                    return await neon.load(sessions, connection, state, progress)
                return await buffers.load(sessions, connection, state, progress)

        try:
            return run_async(loaded, cancellation)
        except TimeoutError:
            msg = (
                f"loading LFC state into postgres: it took longer than {self._load_s:g} s, and was broken off"
            )
            raise CacheError(msg) from None

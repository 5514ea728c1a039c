"""The file cache of the extension neon, through its functions. Imported late, for psycopg."""

import asyncio
import contextlib
import struct
from typing import Final, NamedTuple

from psycopg import Error

from ...postgres.asking import StatementError, ask, break_off
from .packing import StateError
from .port import CacheError, Counts, Progress
from .sessions import Connection, Sessions

TAKE: Final = b"SELECT neon.get_local_cache_state(NULL::pg_catalog.int4)"
LOAD: Final = b"SELECT neon.prewarm_local_cache($1::pg_catalog.bytea, 1::pg_catalog.int4)"
"""With all arguments, so that no other function of the name is meant."""
INFO: Final = b"SELECT total_pages, prewarmed_pages, skipped_pages FROM neon.get_prewarm_info()"
CANCEL_S: Final = 0.3
LOOK_S: Final = 1.0
"""Pause between two looks at how far it has come."""

_HEAD: Final = struct.Struct("<IIIHxx")
_MAGIC: Final = 0xFCFCFCFC
_CHUNK: Final = 20
_MAX_CHUNK_LOG: Final = 7


class Size(NamedTuple):
    """How much of the cache a state describes."""

    chunks: int
    pages: int


def size_of(state: bytes) -> Size:
    """Return what the head of a state tells, once its length is right. Raises StateError."""
    if len(state) < _HEAD.size:
        msg = f"decoding LFC state: it has {len(state)} bytes, and its head alone has {_HEAD.size}"
        raise StateError(msg)
    magic, chunks, pages, chunk_log = _HEAD.unpack_from(state)
    if magic != _MAGIC:
        msg = "decoding LFC state: it is not of the cache of the extension neon"
        raise StateError(msg)
    if chunk_log > _MAX_CHUNK_LOG:
        msg = f"decoding LFC state: its chunks have {2**chunk_log} pages"
        raise StateError(msg)
    length = _HEAD.size + _CHUNK * chunks + -(-(chunks << chunk_log) // 8)
    if len(state) != length:
        msg = f"decoding LFC state: it has {len(state)} bytes, and {length} are told"
        raise StateError(msg)
    return Size(chunks, pages)


async def take(connection: Connection) -> bytes | None:
    """Return the state of the cache; None when it is off or empty.

    Raises CacheError, StatementError and psycopg.Error.
    """
    [[state]] = await ask(connection, TAKE, binary=True)
    if state is None:
        return None
    try:
        return state if all(size_of(state)) else None
    except StateError as error:
        msg = f"querying LFC state: what Postgres returned is no state: {error}"
        raise CacheError(msg) from None


async def load(sessions: Sessions, connection: Connection, state: bytes, progress: Progress) -> Counts:
    """Have all pages of a state read, by Postgres itself. Raises StateError, StatementError and psycopg.Error."""
    size_of(state)
    watch = asyncio.create_task(_watch(sessions, progress))
    try:
        await ask(connection, LOAD, [state], binary=True)
        return await _counts(connection)
    except asyncio.CancelledError:
        await break_off(connection, CANCEL_S)  # its workers end only with a statement that was cancelled
        raise
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch


async def _watch(sessions: Sessions, progress: Progress) -> None:
    """Tell again and again how far it has come; whoever cannot look does not."""
    with contextlib.suppress(CacheError, StatementError, Error):
        async with sessions.connect() as connection:
            while True:
                await asyncio.sleep(LOOK_S)
                progress(await _counts(connection))


async def _counts(connection: Connection) -> Counts:
    rows = await ask(connection, INFO)
    total, prewarmed, skipped = (int(value or 0) for value in rows[0]) if rows else (0, 0, 0)
    return Counts(total, prewarmed, skipped)

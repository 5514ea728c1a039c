"""Making a primary of a standby: wait until it has caught up, promote it, and see that it can be written to."""

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from ...postgres.connection import STATEMENT_S, connect, fetch
from ...postgres.coroutines import run_async
from ...postgres.lsn import parse_lsn, show_lsn
from ...postgres.target import Target
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from .port import PostgresError

R = TypeVar("R")

APPLICATION: Final = "compute_ctl:promote"
CATCH_UP_S: Final = 20.0
"""The counterpart looks 21 times, a second apart."""
PROMOTE_S: Final = 60
"""How long Postgres may take to become a primary; its own default."""
_POLL_S: Final = 0.05

_REPLAYED: Final = (
    b"SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text"
)
_PROMOTE: Final = f"SELECT pg_catalog.pg_promote(true, {PROMOTE_S})".encode()
_READ_ONLY: Final = b"SHOW transaction_read_only"


def catch_up(target: Target, wal_flush_lsn: str | None, cancellation: Cancellation) -> bool:
    """Wait until this position is replayed; False when it is a primary already. Raises PostgresError."""
    return _run(lambda: _catch_up(target, wal_flush_lsn), "getting last replay lsn", cancellation)


def promote(target: Target, cancellation: Cancellation) -> None:
    """Promote a standby that has caught up. Raises PostgresError."""
    _run(lambda: _promote(target), "pg_promote", cancellation)


def see_that_it_writes(target: Target, cancellation: Cancellation) -> None:
    """Raise PostgresError unless new sessions may write."""
    _run(lambda: _see_that_it_writes(target), "getting transaction_read_only", cancellation)


def _run(work: Callable[[], Coroutine[Any, Any, R]], what: str, cancellation: Cancellation) -> R:
    from psycopg import Error

    try:
        return run_async(work, cancellation)
    except (Error, TimeoutError) as error:
        said = one_line(error) or type(error).__name__
        msg = f"{what}: {said}"
        raise PostgresError(msg) from error


async def _catch_up(target: Target, wal_flush_lsn: str | None) -> bool:
    import asyncio

    wanted = None if wal_flush_lsn is None else parse_lsn(wal_flush_lsn)
    deadline = asyncio.get_running_loop().time() + CATCH_UP_S
    async with await connect(target, application_name=APPLICATION) as connection:
        while True:
            ((in_recovery, replayed),) = await fetch(connection, _REPLAYED)
            if not in_recovery:
                return False
            if wanted is None or (replayed is not None and parse_lsn(replayed) >= wanted):
                return True
            if asyncio.get_running_loop().time() > deadline:
                where = "nothing" if replayed is None else show_lsn(parse_lsn(replayed))
                msg = (
                    f"didn't catch up with primary in 20 retries: it has replayed {where} of {show_lsn(wanted)} "
                    f"after {CATCH_UP_S:g} s"
                )
                raise PostgresError(msg)
            await asyncio.sleep(_POLL_S)


async def _promote(target: Target) -> None:
    async with await connect(target, application_name=APPLICATION) as connection:
        ((done,),) = await fetch(connection, _PROMOTE, PROMOTE_S + STATEMENT_S)
    if not done:
        msg = f"pg_promote() returned false: Postgres was no primary within {PROMOTE_S} s"
        raise PostgresError(msg)


async def _see_that_it_writes(target: Target) -> None:
    async with await connect(target, application_name=APPLICATION) as connection:
        ((read_only,),) = await fetch(connection, _READ_ONLY)
    if read_only != "off":
        msg = "replica in read only mode after promotion"
        raise PostgresError(msg)

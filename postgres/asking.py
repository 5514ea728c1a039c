"""One statement after the other over libpq: rows as bytes, refusals in one line. Imported late, for psycopg."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from psycopg import AsyncConnection, Error, generators, waiting
from psycopg.pq import DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

from .text import one_line

Row: TypeAlias = list[bytes | None]

LOCK_TIMEOUT: Final = b"55P03"


class StatementError(Exception):
    """Postgres refused a statement."""

    def __init__(self, sqlstate: str, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


async def ask(
    connection: AsyncConnection[TupleRow],
    statement: bytes,
    parameters: Sequence[bytes] = (),
    *,
    binary: bool = False,
) -> list[Row]:
    """Run one statement and return its rows. Raises StatementError and psycopg.Error.

    `binary`: parameters and rows are in Postgres's binary form, else they are text.

    If it is broken off, the connection must be closed: that ends it in the server, too.
    """
    pgconn = connection.pgconn
    form = Format.BINARY if binary else Format.TEXT
    pgconn.send_query_params(
        statement, parameters or None, param_formats=[form] * len(parameters) or None, result_format=form
    )
    result = (await waiting.wait_async(generators.execute(pgconn), pgconn.socket, interval=1.0))[-1]
    if result.status == ExecStatus.FATAL_ERROR:
        sqlstate = result.error_field(DiagnosticField.SQLSTATE) or b""
        raise StatementError(sqlstate.decode(), reason(result))
    return [
        [result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)
    ]


async def break_off(connection: AsyncConnection[TupleRow], limit_s: float) -> None:
    """Have the server cancel the statement under way, and hear that it has; the connection is to be closed then.

    For statements that must clean up behind them: who merely loses its client may end without.
    """
    pgconn = connection.pgconn
    with contextlib.suppress(Error, TimeoutError):
        async with asyncio.timeout(limit_s):
            await connection.cancel_safe(timeout=limit_s)
            await waiting.wait_async(generators.fetch_many(pgconn), pgconn.socket, interval=limit_s)


def reason(result: PGresult) -> str:
    """Put a refusal into one line; never with the text of the statement, as libpq's own message has it."""

    def field(which: DiagnosticField) -> str:
        return one_line((result.error_field(which) or b"").decode(errors="replace"))

    text = f"{field(DiagnosticField.MESSAGE_PRIMARY)} (SQLSTATE {field(DiagnosticField.SQLSTATE)})"
    if detail := field(DiagnosticField.MESSAGE_DETAIL):
        text += f"; {detail}"
    if result.error_field(DiagnosticField.SQLSTATE) == LOCK_TIMEOUT:
        text += "; another session holds a lock that is needed: end it (see pg_locks), then try again"
    return text

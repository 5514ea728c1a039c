"""How a pageserver or safekeeper is asked one thing: libpq without TLS, the simple protocol, one time limit.

They speak the protocol of Postgres, and little else of it: no query can be cancelled, and a connection is only closed.
"""

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..messages.secret import Secret
from .connection import LIBPQ_TIMEOUT_S, connect_once
from .hosts import look_up
from .target import DEFAULT_PORT
from .text import one_line

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.pq.abc import PGconn
    from psycopg.rows import TupleRow

Rows: TypeAlias = tuple[tuple[str | None, ...], ...]

USER: Final = "no_user"
"""Whom Neon's connection strings name: who somebody is, the token says."""
_POLL_S: Final = 0.1


class NeighbourError(Exception):
    """There was no answer; the message says why, and never repeats the connection string."""


async def ask(
    conninfo: Secret, query: str, *, token: Secret | None, limit_s: float, options: str | None = None
) -> Rows:
    """Connect, ask one query, and return the rows of its answer, within `limit_s` seconds in all.

    The token stands in for a password of the connection string, `options` for its options. Raises NeighbourError.
    """
    import asyncio

    from psycopg import OperationalError

    try:
        async with asyncio.timeout(limit_s):
            connection = await connect(conninfo, token=token, limit_s=limit_s, options=options)
            try:
                return await _query(connection.pgconn, query)
            finally:
                connection.pgconn.finish()
    except TimeoutError:
        msg = f"no answer within {limit_s:g} s"
        raise NeighbourError(msg) from None
    except OperationalError as error:
        raise NeighbourError(one_line(error)) from error


async def connect(
    conninfo: Secret,
    *,
    token: Secret | None,
    limit_s: float,
    options: str | None = None,
    application_name: str | None = None,
) -> "AsyncConnection[TupleRow]":
    """Connect as `ask` does, and leave the rest to the caller. Raises NeighbourError."""
    import asyncio

    from psycopg import OperationalError

    keywords = _keywords(conninfo, token, options)
    if application_name is not None:
        keywords["application_name"] = application_name
    try:
        async with asyncio.timeout(limit_s):
            await _find(keywords)
            return await connect_once(keywords)
    except TimeoutError:
        msg = f"no answer within {limit_s:g} s"
        raise NeighbourError(msg) from None
    except OperationalError as error:
        raise NeighbourError(one_line(error)) from error


def _keywords(conninfo: Secret, token: Secret | None, options: str | None) -> dict[str, Any]:
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        keywords: dict[str, Any] = {"user": USER} | conninfo_to_dict(conninfo.reveal())
    except ProgrammingError:
        msg = "its connection string is neither a URL nor keywords and values of libpq"
        raise NeighbourError(msg) from None
    if token is not None:
        keywords["password"] = token.reveal()
    if options is not None:
        keywords["options"] = options
    own = {"sslmode": "disable", "gssencmode": "disable", "connect_timeout": str(round(LIBPQ_TIMEOUT_S))}
    return keywords | own


async def _find(keywords: dict[str, Any]) -> None:
    """Look the host up; psycopg would wait for a thread that asyncio waits for."""
    host, port = str(keywords.get("host") or "localhost"), str(keywords.get("port") or DEFAULT_PORT)
    if "hostaddr" in keywords or "," in host or host.startswith("/"):
        return
    if not (port.isascii() and port.isdecimal()):
        msg = f"invalid port number: {port[:40]!r}"
        raise NeighbourError(msg)
    try:
        result = await look_up(host, int(port))
    except OSError as error:
        msg = f"the host {host!r} cannot be found: {error.strerror or error}"
        raise NeighbourError(msg) from error
    keywords["host"], keywords["hostaddr"] = ",".join(host for _ in result), ",".join(result)


async def _query(pgconn: "PGconn", query: str) -> Rows:
    """Ask below psycopg's own level, which on a time-out would first try to cancel the query in the server."""
    from psycopg import OperationalError
    from psycopg.generators import execute
    from psycopg.pq import ExecStatus
    from psycopg.waiting import wait_async

    pgconn.send_query(query.encode())
    results = await wait_async(execute(pgconn), pgconn.socket, interval=_POLL_S)
    rows: list[tuple[str | None, ...]] = []
    for result in results:
        if result.status in {ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE, ExecStatus.NONFATAL_ERROR}:
            raise OperationalError(result.get_error_message())
        columns = range(result.nfields)
        values = ([result.get_value(row, column) for column in columns] for row in range(result.ntuples))
        rows += (
            tuple(None if one is None else one.decode(errors="replace") for one in row) for row in values
        )
    return tuple(rows)

"""One connection to Postgres, kept from look to look, and probes beside it; imported late, for its weight.

Every wait here has a limit on our side: a frozen backend answers neither a query nor its cancellation.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow

from ...postgres.connection import addresses, connect
from ...postgres.target import Target
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from .checks import Readings, Sessions, Totals
from .reach import Answer, Observation, Probe, judge

R = TypeVar("R")

LIMIT_S: Final = 1.0
"""For a probe, and for a look with all it needs."""
HELD_UP_S: Final = 1.5
"""When a look took this long, it was this process that did not run."""
OPTIONS: Final = ("idle_session_timeout=0", "jit=off")
"""On top of those of every connection: it is idle most of the time, and its query is small."""
MAX_SAID: Final = 500
"""Characters of an error that are repeated."""

SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)
PROTOCOL_3: Final = 196608
CANNOT_CONNECT_NOW: Final = b"57P03"
MAX_REPLY_BYTES: Final = 64 * 1024

CHECKS: Final[LiteralString] = """\
SELECT 'sessions', usename IS NOT DISTINCT FROM session_user, state, pg_catalog.count(*),
       pg_catalog.date_part('epoch', pg_catalog.max(state_change))
  FROM pg_catalog.pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
 GROUP BY 2, 3
UNION ALL
SELECT 'walsenders', NULL, NULL, pg_catalog.count(*), NULL
  FROM pg_catalog.pg_stat_replication
 WHERE application_name IS DISTINCT FROM 'walproposer'
UNION ALL
SELECT 'subscriptions', NULL, NULL, pg_catalog.count(*), NULL
  FROM pg_catalog.pg_stat_subscription
 WHERE pid IS NOT NULL
UNION ALL
SELECT 'autovacuum_workers', NULL, NULL, pg_catalog.count(*), NULL
  FROM pg_catalog.pg_stat_activity
 WHERE backend_type = 'autovacuum worker'
UNION ALL
SELECT 'server', NULL, NULL, pg_catalog.count(*), pg_catalog.date_part('epoch', pg_catalog.max(backend_start))
  FROM pg_catalog.pg_stat_activity
 WHERE backend_type = 'checkpointer'
"""
"""Times are read as epochs: whatever the session's time zone, they are right."""

TOTALS: Final[LiteralString] = """\
UNION ALL
SELECT 'totals', NULL, NULL, coalesce(pg_catalog.sum(sessions), 0)::pg_catalog.int8,
       coalesce(pg_catalog.sum(active_time), 0)
  FROM pg_catalog.pg_stat_database
 WHERE datname NOT IN ('postgres', 'template0', 'template1')
"""


class Session:
    """Does the looking; one caller at a time."""

    def __init__(self, target: Target, application_name: str) -> None:
        self._target = target
        self._application_name = application_name
        self._runner = asyncio.Runner()
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None

    def observe(self, *, experimental: bool, probe: bool, cancellation: Cancellation) -> Observation:
        """Look once. Raises CancelledError of the kit when asked to end."""
        cancellation.check()
        try:
            return self._runner.run(self._cancellable(self._observe(experimental, probe), cancellation))
        except asyncio.CancelledError:
            cancellation.check()
            raise

    def close(self) -> None:
        """Close the connection and the event loop; waits for nobody."""
        self._drop()
        self._runner.close()

    async def _cancellable(self, work: Coroutine[Any, Any, R], cancellation: Cancellation) -> R:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: the work was over before
                loop.call_soon_threadsafe(task.cancel)

        cancellation.on_request(cancel)
        return await task

    async def _observe(self, experimental: bool, probe: bool) -> Observation:  # noqa: FBT001 - private
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self._look(experimental, began + LIMIT_S))
            probing = group.create_task(self._probe()) if probe else None
        answer, answer_detail, readings = looking.result()
        probed, probe_detail = (Probe.NOT_MADE, "") if probing is None else probing.result()
        if probed is Probe.REFUSED:
            self._drop()
        reach = judge(probed, answer, held_up=loop.time() - began > HELD_UP_S)
        return Observation(reach, probe_detail or answer_detail, readings)

    # --- The look

    async def _look(self, experimental: bool, deadline: float) -> tuple[Answer, str, Readings | None]:  # noqa: FBT001
        """Read through the connection there is; when it turns out to be dead, through a new one."""
        if self._connection is not None:
            try:
                return Answer.CHECKED, "", await self._read(self._connection, experimental, deadline)
            except errors.QueryCanceled as error:
                return Answer.ALIVE, one_line(error, MAX_SAID), None
            except TimeoutError:
                self._drop()
                return Answer.SILENT, "the monitor's connection does not answer", None
            except psycopg.Error:
                self._drop()
        try:
            self._connection = await self._connect(deadline)
        except (errors.ConnectionTimeout, TimeoutError):
            return Answer.SILENT, "a login is not answered", None
        except psycopg.Error as error:
            not_now = await self._refused_for_now(deadline)
            return Answer.NOT_NOW if not_now else Answer.FAILED, one_line(error, MAX_SAID), None
        try:
            return Answer.CHECKED, "", await self._read(self._connection, experimental, deadline)
        except (errors.QueryCanceled, TimeoutError):
            self._drop()
            return Answer.ALIVE, "", None
        except psycopg.Error as error:
            self._drop()
            return Answer.FAILED, one_line(error, MAX_SAID), None

    async def _connect(self, deadline: float) -> psycopg.AsyncConnection[TupleRow]:
        return await connect(
            self._target,
            application_name=self._application_name,
            extra_options=OPTIONS,
            timeout_s=_left(deadline),
        )

    async def _read(
        self,
        connection: psycopg.AsyncConnection[TupleRow],
        experimental: bool,  # noqa: FBT001 - private
        deadline: float,
    ) -> Readings:
        """Run all checks in one round trip. Raises TimeoutError and psycopg.Error."""
        query = asyncio.create_task(_rows(connection, CHECKS + TOTALS if experimental else CHECKS))
        try:
            done, _ = await asyncio.wait({query}, timeout=_left(deadline))
        finally:
            if not query.done():
                _hang_up(connection)
                await asyncio.wait({query})
                query.exception()  # it is known: we hung up
        if not done:
            raise TimeoutError
        return _readings(query.result())

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.pgconn.finish()
            self._connection = None

    # --- Probes

    async def _probe(self) -> tuple[Probe, str]:
        """Ask a new connection to the port for TLS: the postmaster must answer with one byte, and logs nothing."""
        outcome = Probe.REFUSED, "new connections are closed at once"
        try:
            async with asyncio.timeout(LIMIT_S), self._dial() as (reader, writer):
                writer.write(SSL_REQUEST)
                if reply := await reader.read(1):
                    outcome = Probe.ANSWERED, ""
                if reply == b"S":
                    await _finish_tls(writer)
        except TimeoutError:
            if outcome[0] is not Probe.ANSWERED:
                return Probe.SILENT, f"new connections are not answered within {LIMIT_S:g} s"
        except (ConnectionResetError, BrokenPipeError):
            pass  # closed at once, or after the answer
        except OSError as error:
            if outcome[0] is not Probe.ANSWERED:
                return Probe.REFUSED, f"no connection to port {self._target.port}: {error.strerror or error}"
        return outcome

    async def _refused_for_now(self, deadline: float) -> bool:
        """Tell whether a login is refused with 57P03; libpq does not hand that code out."""
        fields = ("user", self._target.user, "database", self._target.dbname, "", "")
        body = struct.pack("!I", PROTOCOL_3) + "\0".join(fields).encode()
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_left(deadline)), self._dial() as (reader, writer):
                writer.write(struct.pack("!I", len(body) + 4) + body)
                return _sqlstate(await reader.read(MAX_REPLY_BYTES)) == CANNOT_CONNECT_NOW
        return False

    @contextlib.asynccontextmanager
    async def _dial(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        target = self._target
        failure: OSError | None = None
        for address in addresses(target):
            try:
                if address.startswith("/"):
                    path = f"{address}/.s.PGSQL.{target.port}"
                    reader, writer = await asyncio.open_unix_connection(path)
                else:
                    reader, writer = await asyncio.open_connection(address, target.port)
            except OSError as error:
                failure = failure or error
                continue
            try:
                yield reader, writer
            finally:
                writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
            return
        raise failure or OSError("no address to connect to")


async def _rows(connection: psycopg.AsyncConnection[TupleRow], query: LiteralString) -> Sequence[TupleRow]:
    cursor = await connection.execute(query)
    return await cursor.fetchall()


def _readings(rows: Sequence[TupleRow]) -> Readings:
    counts = {kind: count for kind, _, _, count, _ in rows}
    return Readings(
        sessions=tuple(
            Sessions(own, state, count, changed_at_s)
            for kind, own, state, count, changed_at_s in rows
            if kind == "sessions"
        ),
        walsenders=counts["walsenders"],
        subscriptions=counts["subscriptions"],
        autovacuum_workers=counts["autovacuum_workers"],
        totals=next((Totals(count, ms) for kind, _, _, count, ms in rows if kind == "totals"), None),
        server_began_s=next((began_s for kind, _, _, _, began_s in rows if kind == "server"), None),
    )


def _hang_up(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    """Make whoever waits for this connection see its end.

    Cancelling would not do: psycopg then waits for the server to confirm, seconds long. Nor closing the
    descriptor: a probe beside us may get the same number while the event loop still knows the old one.
    """
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as same:
        same.shutdown(socket.SHUT_RDWR)


async def _finish_tls(writer: asyncio.StreamWriter) -> None:
    """Shake hands before leaving: a server that offered TLS logs a client that walks away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # nothing is sent and nothing believed
    context.verify_mode = ssl.CERT_NONE
    await writer.start_tls(context)


def _sqlstate(reply: bytes) -> bytes | None:
    """Read the code of an ErrorResponse; None for any other message."""
    if reply[:1] != b"E":
        return None
    return next((field[1:] for field in reply[5:].split(b"\0") if field[:1] == b"C"), None)


def _left(deadline: float) -> float:
    return max(0.01, deadline - asyncio.get_running_loop().time())

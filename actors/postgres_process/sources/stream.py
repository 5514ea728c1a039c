"""A base backup as it comes from a pageserver: connect, one request, and the stream to its very end.

No thread waits, and a job that is asked to end leaves at once; so libpq is read below psycopg's own level.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ....messages.secret import Secret
from ....postgres import page_api
from ....postgres.coroutines import run_async
from ....postgres.neighbours import NeighbourError, connect
from ...kit.jobs import Cancellation
from ...kit.programs import ProgramError, Starter, Wake
from .refusals import PageserverError

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.rows import TupleRow

CONNECT_S: Final = 30.0
REPLY_S: Final = 330.0
"""Until the stream begins: a pageserver waits for an LSN to arrive, 300 s unless it is told otherwise."""
SILENCE_S: Final = 60.0
"""Within the stream."""
APPLICATION: Final = "compute_ctl"
_CHUNK: Final = 256 << 10


class LibpqStream:
    """The stream of one command; a context that leaves no connection behind."""

    def __init__(
        self,
        url: Secret,
        command: str,
        *,
        token: Secret | None,
        options: str,
        cancellation: Cancellation,
    ) -> None:
        self._url = url
        self._command = command
        self._token = token
        self._options = options
        self._cancellation = cancellation
        self._connection: AsyncConnection[TupleRow] | None = None
        self._wake: Wake | None = None
        self.connect_us = 0

    def __enter__(self) -> Self:
        began_s = self._cancellation.now()
        try:
            self._connection = run_async(
                lambda: connect(
                    self._url,
                    token=self._token,
                    options=self._options,
                    application_name=APPLICATION,
                    limit_s=CONNECT_S,
                ),
                self._cancellation,
            )
        except NeighbourError as error:
            raise PageserverError(str(error)) from error
        self.connect_us = round((self._cancellation.now() - began_s) * 1_000_000)
        self._wake = Wake(self._cancellation)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wake is not None:
            self._wake.close()
        if self._connection is not None:
            self._connection.pgconn.finish()

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield what comes until the server has said that all is well. Raises PageserverError, CancelledError."""
        from psycopg.pq import ExecStatus

        assert self._connection is not None  # noqa: S101 - within the context
        pgconn = self._connection.pgconn
        pgconn.send_query(self._command.encode())
        limit_s = REPLY_S
        while pgconn.flush():
            self._wait(pgconn, limit_s, writing=True)
        result = self._result(pgconn, limit_s)
        if result is None or result.status != ExecStatus.COPY_OUT:
            raise _refused(result, "it answered with no stream")
        limit_s = SILENCE_S
        while (part := pgconn.get_copy_data(1))[0] >= 0:
            size, data = part
            if size:
                yield data
            else:
                self._wait(pgconn, limit_s)
        while (result := self._result(pgconn, limit_s)) is not None:
            if result.status != ExecStatus.COMMAND_OK:
                raise _refused(result, "the stream was cut off")

    def _result(self, pgconn: "PGconn", limit_s: float) -> "PGresult | None":
        while pgconn.is_busy():
            self._wait(pgconn, limit_s)
        return pgconn.get_result()

    def _wait(self, pgconn: "PGconn", limit_s: float, *, writing: bool = False) -> None:
        from psycopg import OperationalError

        assert self._wake is not None  # noqa: S101 - within the context
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN | (select.POLLOUT if writing else 0))
        poll.register(self._wake.descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(limit_s * 1000)}
        self._cancellation.check()
        if not ready:
            msg = f"it has sent nothing for {limit_s:g} s"
            raise PageserverError(msg)
        try:
            pgconn.consume_input()
        except OperationalError as error:
            raise PageserverError(str(error).splitlines()[0]) from error


def _refused(result: "PGresult | None", otherwise: str) -> PageserverError:
    from psycopg.pq import DiagnosticField

    if result is None:
        return PageserverError(otherwise)
    message = result.error_field(DiagnosticField.MESSAGE_PRIMARY)
    text = message or result.error_message or otherwise.encode()
    code = result.error_field(DiagnosticField.SQLSTATE)
    return PageserverError(
        " ".join(text.decode(errors="replace").split()),
        None if code is None else code.decode(errors="replace"),
    )


class GrpcStream:
    """The same over gRPC, by a helper process: what the library starts and holds ends with it."""

    def __init__(
        self,
        endpoint: page_api.Endpoint,
        lsn: int,
        *,
        replica: bool,
        starter: Starter,
        cancellation: Cancellation,
    ) -> None:
        self._call = page_api.BaseBackup((endpoint,), lsn, replica, CONNECT_S)
        self._starter = starter
        self._cancellation = cancellation
        self._process: subprocess.Popen[bytes] | None = None
        self._wake: Wake | None = None
        self._began_s = 0.0
        self.connect_us = 0

    def __enter__(self) -> Self:
        self._began_s = self._cancellation.now()
        with page_api.described(self._call) as descriptor:
            try:
                self._process = self._starter.start(
                    page_api.command(descriptor),
                    env=page_api.environment(),
                    cwd="/",
                    output=subprocess.PIPE,
                    errors=subprocess.PIPE,
                    pass_fds=(descriptor,),
                )
            except ProgramError as error:
                raise PageserverError(str(error)) from error
        self._wake = Wake(self._cancellation)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wake is not None:
            self._wake.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with self._process:  # its pipes are closed, and it is waited for
                pass

    def chunks(self) -> Iterator[bytes]:
        """Yield what comes until the server has said that all is well. Raises PageserverError, CancelledError."""
        assert self._process is not None  # noqa: S101 - within the context
        assert self._process.stdout is not None  # noqa: S101 - it was made with pipes
        assert self._process.stderr is not None  # noqa: S101 - as above
        output = self._process.stdout.fileno()
        limit_s = CONNECT_S + REPLY_S
        while data := self._read(output, limit_s):
            if limit_s != SILENCE_S:
                self.connect_us = round((self._cancellation.now() - self._began_s) * 1_000_000)
                limit_s = SILENCE_S
            yield data
        said = b""
        while part := self._read(self._process.stderr.fileno(), SILENCE_S):
            said = (said + part)[-_CHUNK:]
        if self._process.wait() != 0:
            raise PageserverError(*page_api.failure(said.decode(errors="replace")))

    def _read(self, descriptor: int, limit_s: float) -> bytes:
        assert self._wake is not None  # noqa: S101 - within the context
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._wake.descriptor, select.POLLIN)
        ready = poll.poll(limit_s * 1000)
        self._cancellation.check()
        if not ready:
            msg = f"it has sent nothing for {limit_s:g} s"
            raise PageserverError(msg)
        return os.read(descriptor, _CHUNK)

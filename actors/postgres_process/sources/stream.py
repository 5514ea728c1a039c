"""A base backup as it comes from a pageserver: connect, one request, and the stream to its very end.

No thread waits, and a job that is asked to end leaves at once; so libpq is read below psycopg's own level.
"""

import contextlib
import os
import select
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from typing_extensions import override

from ....messages.secret import Secret
from ....postgres import page_api
from ....postgres.coroutines import run_async
from ....postgres.neighbours import NeighbourError, connect
from ....postgres.page_api_call import CONNECTED
from ...kit.jobs import Cancellation
from ...kit.programs import ProgramError, Starter
from ...kit.wake import Wake
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
TOTAL_S: Final = 1800.0
"""From the first step to the last: without the relations it is small, and one that trickles holds up a start."""
APPLICATION: Final = "compute_ctl"
_CHUNK: Final = 256 << 10
_CONNECTED: Final = f"{CONNECTED}\n".encode()


class Stream(ABC):
    """The stream of one request; a context that leaves nothing of it behind."""

    def __init__(self, cancellation: Cancellation) -> None:
        self._cancellation = cancellation
        self._began_s = 0.0
        self.connect_us = 0
        """How long it took until there was a connection."""

    def __enter__(self) -> Self:
        self._began_s = self._cancellation.now()
        with contextlib.ExitStack() as ends:
            self._wake = Wake(self._cancellation)
            ends.callback(self._wake.close)
            self._open(ends)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    @abstractmethod
    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield what comes until the server has said that all is well. Raises PageserverError, CancelledError."""

    @abstractmethod
    def _open(self, ends: contextlib.ExitStack) -> None:
        """Begin; `ends` hears how it is ended. Raises PageserverError, CancelledError."""

    def _is_connected(self) -> None:
        self.connect_us = round((self._cancellation.now() - self._began_s) * 1_000_000)

    def _wait(self, limit_s: float, *descriptors: int, events: int = select.POLLIN) -> set[int]:
        """Return those of the descriptors that are ready. Raises PageserverError after the limits, CancelledError."""
        left_s = max(0.0, self._began_s + TOTAL_S - self._cancellation.now())
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, events)
        poll.register(self._wake.descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(min(limit_s, left_s) * 1000)}
        self._cancellation.check()
        if ready and left_s:
            return ready
        is_slow = left_s <= limit_s
        msg = (
            f"it has not ended within {TOTAL_S:g} s" if is_slow else f"it has sent nothing for {limit_s:g} s"
        )
        raise PageserverError(msg)


class LibpqStream(Stream):
    """The stream of one command."""

    def __init__(
        self,
        url: Secret,
        command: str,
        *,
        token: Secret | None,
        options: str,
        cancellation: Cancellation,
    ) -> None:
        super().__init__(cancellation)
        self._url = url
        self._command = command
        self._token = token
        self._options = options

    @override
    def _open(self, ends: contextlib.ExitStack) -> None:
        try:
            self._connection: AsyncConnection[TupleRow] = run_async(
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
        ends.callback(self._connection.pgconn.finish)
        self._is_connected()

    @override
    def chunks(self) -> Iterator[bytes | memoryview]:
        from psycopg import OperationalError

        try:
            yield from self._chunks(self._connection.pgconn)
        except OperationalError as error:  # the connection is lost, or what came is not of the protocol
            raise PageserverError(str(error).splitlines()[0]) from error

    def _chunks(self, pgconn: "PGconn") -> Iterator[bytes | memoryview]:
        from psycopg.pq import ExecStatus

        pgconn.send_query(self._command.encode())
        while pgconn.flush():
            self._receive(pgconn, REPLY_S, select.POLLIN | select.POLLOUT)
        result = self._result(pgconn, REPLY_S)
        if result is None or result.status != ExecStatus.COPY_OUT:
            raise _refused(result, "it answered with no stream")
        while (part := pgconn.get_copy_data(1))[0] >= 0:
            size, data = part
            if size:
                yield data
            else:
                self._receive(pgconn, SILENCE_S)
        while (result := self._result(pgconn, SILENCE_S)) is not None:
            if result.status != ExecStatus.COMMAND_OK:
                raise _refused(result, "the stream was cut off")

    def _result(self, pgconn: "PGconn", limit_s: float) -> "PGresult | None":
        while pgconn.is_busy():
            self._receive(pgconn, limit_s)
        return pgconn.get_result()

    def _receive(self, pgconn: "PGconn", limit_s: float, events: int = select.POLLIN) -> None:
        self._wait(limit_s, pgconn.socket, events=events)
        pgconn.consume_input()


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


class GrpcStream(Stream):
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
        super().__init__(cancellation)
        self._call = page_api.BaseBackup((endpoint,), lsn, replica, CONNECT_S)
        self._starter = starter

    @override
    def _open(self, ends: contextlib.ExitStack) -> None:
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
        ends.callback(_end, self._process)

    @override
    def chunks(self) -> Iterator[bytes]:
        assert self._process.stdout is not None  # noqa: S101 - it was made with pipes
        assert self._process.stderr is not None  # noqa: S101 - as above
        output, errors = self._process.stdout.fileno(), self._process.stderr.fileno()
        opened, said, limit_s = {output, errors}, b"", CONNECT_S + REPLY_S
        while opened:
            for descriptor in opened & self._wait(limit_s, *opened):
                data = os.read(descriptor, _CHUNK)
                if not data:
                    opened.discard(descriptor)
                elif descriptor == output:
                    limit_s = SILENCE_S
                    yield data
                else:
                    said = (said + data)[-_CHUNK:]
                    if not self.connect_us and _CONNECTED in said:
                        said = said.replace(_CONNECTED, b"")
                        self._is_connected()
        if self._process.wait() != 0:
            raise PageserverError(*page_api.failure(said.decode(errors="replace")))


def _end(process: "subprocess.Popen[bytes]") -> None:
    with process:  # its pipes are closed, and it is waited for
        if process.returncode is None:  # else its number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

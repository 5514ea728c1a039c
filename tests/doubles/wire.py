"""A small real server of the Postgres wire protocol, and the switchboard of its faults; others build neighbours of it.

It speaks what the pageserver and the safekeepers of Neon speak (reference: protocols 2.2): startup with options,
a password in clear or none, the simple protocol with rows, COPY OUT, errors. Each connection has a thread.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

SSL_REQUEST: Final = 80877103
GSS_REQUEST: Final = 80877104
CANCEL_REQUEST: Final = 80877102
PROTOCOL: Final = 3
INTERNAL_ERROR: Final = "XX000"
TEXT_OID: Final = 25
STOP_S: Final = 10.0
"""How long the threads of a closed server may take to end."""


@dataclass(frozen=True)
class Rows:
    """A result of text columns; a value of None is NULL."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...] = ()
    tag: str = "SELECT 1"


@dataclass(frozen=True)
class CopyOut:
    """A stream of bytes; each chunk is one CopyData message."""

    chunks: Iterable[bytes]
    tag: str = "SELECT 1"


@dataclass(frozen=True)
class Refused:
    """An error; the connection goes on."""

    message: str
    sqlstate: str = INTERNAL_ERROR


@dataclass(frozen=True)
class Done:
    """A command without a result."""

    tag: str


Reply: TypeAlias = Rows | CopyOut | Refused | Done


@dataclass(frozen=True)
class Client:
    """Who has connected; `parameters` are those of the startup message: user, database, options, …."""

    parameters: Mapping[str, str]
    password: str | None

    @property
    def options(self) -> str:
        return self.parameters.get("options", "")


@dataclass
class WireFaults:
    """What goes wrong; may be changed while the server runs. Offsets count bytes of COPY data."""

    connections: int | None = None
    """For how many connections all of this holds, counted down; None: for all."""
    hangs_up: bool = False
    """Closes the connection as soon as it is there."""
    deaf: bool = False
    """Takes connections and never answers."""
    mute: bool = False
    """Takes the password and the query, and never answers that."""
    refuses: Refused | None = None
    """Answers each query with this."""
    cut_at: int | None = None
    """Closes the connection after so many bytes."""
    stall_at: int | None = None
    """Sends nothing more after so many bytes, until the client leaves."""
    error_at: int | None = None
    """Sends `error` in the stream after so many bytes, and no CopyDone."""
    error_after: Refused | None = None
    """Sends the whole stream, and then this in place of CopyDone."""
    done_at: int | None = None
    """Ends the stream in order after so many bytes."""
    garbage_at: int | None = None
    """Sends what is no message after so many bytes."""
    error: Refused = field(default_factory=lambda: Refused("the server is shutting down", "57P01"))
    flips: Mapping[int, int] = field(default_factory=dict)
    """At these offsets the byte is XORed with this."""
    pause_s: float = 0.0
    """Before each chunk."""


_NO_FAULTS: Final = WireFaults()


class Hangup(Exception):  # noqa: N818 - not an error: the conversation is over
    """This connection is to be closed now."""


class WireServer:
    """Listens on a free port of loopback and answers each query with what `answer` returns.

    With a `password` every client must give it. Use it as a context: at its end no thread of it lives.
    """

    def __init__(
        self,
        answer: Callable[[Client, str], Reply],
        *,
        password: str | None = None,
        server_version: str = "14.1",
        faults: WireFaults | None = None,
    ) -> None:
        self.faults = WireFaults() if faults is None else faults
        self.password = password
        self.clients: list[Client] = []
        """All that got in, in order."""
        self.queries: list[str] = []
        self.connected = 0
        """How many are there now, faults and failed passwords included; wait for it to be 0."""
        self.connections = 0
        self.stalled = threading.Event()
        """Somebody waits for what does not come: deaf, mute, stall_at."""
        self._answer = answer
        self._server_version = server_version
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name=f"wire-{self.port}")
        self._accepting.start()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The connection string that a spec would have."""
        return f"postgresql://no_user@{self.address}"

    def close(self) -> None:
        """Leave every client alone, and wait for the threads."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(STOP_S)
        self._listener.close()
        with self._lock:
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(STOP_S)
        left = [thread.name for thread in (self._accepting, *self._threads) if thread.is_alive()]
        assert not left, f"threads of a double live on: {left}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Its own

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.add(connection)
                self.connected += 1
                self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), name=f"wire-{self.port}-client")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as stream:
                _Conversation(self, connection, stream.read).run(self._faults_of_this_connection())
        except (Hangup, OSError):
            pass
        finally:
            with self._lock:
                self._sockets.discard(connection)
                connection.close()
                self.connected -= 1

    def _faults_of_this_connection(self) -> WireFaults:
        with self._lock:
            if self.faults.connections is None:
                return self.faults
            if self.faults.connections == 0:
                return _NO_FAULTS
            self.faults.connections -= 1
            return self.faults


class _Conversation:
    """One connection, from its startup to its end."""

    def __init__(self, server: WireServer, connection: socket.socket, read: Callable[[int], bytes]) -> None:
        self._server = server
        self._connection = connection
        self._read_some = read

    def run(self, faults: WireFaults) -> None:
        if faults.hangs_up:
            raise Hangup
        if faults.deaf:
            self._wait_for_the_end()
        client = self._welcome()
        self._server.clients.append(client)
        while True:
            kind, body = self._message()
            if kind == b"X":
                return
            if kind != b"Q":
                self._send(_error(Refused(f"only the simple protocol is spoken here, not {kind!r}", "08P01")))
                self._send(_ready())
                continue
            query = body.rstrip(b"\0").decode()
            self._server.queries.append(query)
            if faults.mute:
                self._wait_for_the_end()
            self._reply(
                self._server._answer(client, query) if faults.refuses is None else faults.refuses, faults
            )
            self._send(_ready())

    def _welcome(self) -> Client:
        while (code := (packet := self._packet())[:4]) in {_int(SSL_REQUEST), _int(GSS_REQUEST)}:
            self._send(b"N")
        if code == _int(CANCEL_REQUEST):
            raise Hangup  # no BackendKeyData was sent: nothing can be cancelled
        if struct.unpack("!H", code[:2]) != (PROTOCOL,):
            self._send(_error(Refused("unsupported protocol version", "08P01")))
            raise Hangup
        words = packet[4:].decode().split("\0")
        parameters = dict(zip(words[::2], words[1::2], strict=False))
        given: str | None = None
        settings = {"client_encoding": "UTF8"}
        if self._server.password is None:
            settings |= {"integer_datetimes": "on", "server_version": self._server._server_version}
        else:
            self._send(_framed(b"R", _int(3)))  # AuthenticationCleartextPassword
            kind, body = self._message()
            given = body.rstrip(b"\0").decode()
            if kind != b"p" or given != self._server.password:
                self._send(_error(Refused("JWT authentication error")))
                raise Hangup
        told = (_framed(b"S", f"{name}\0{value}\0".encode()) for name, value in settings.items())
        self._send(_framed(b"R", _int(0)) + b"".join(told) + _ready())
        return Client(parameters, given)

    def _reply(self, reply: Reply, faults: WireFaults) -> None:
        match reply:
            case Rows():
                self._send(_row_description(reply.columns))
                self._send(b"".join(_data_row(row) for row in reply.rows) + _complete(reply.tag))
            case CopyOut():
                self._copy(reply, faults)
            case Refused():
                self._send(_error(reply))
            case Done(tag):
                self._send(_complete(tag))

    def _copy(self, reply: CopyOut, faults: WireFaults) -> None:
        self._send(_framed(b"H", struct.pack("!bh", 0, 0)))
        places = (faults.cut_at, faults.stall_at, faults.error_at, faults.done_at, faults.garbage_at)
        end = min((at for at in places if at is not None), default=None)
        sent = 0
        for chunk in _damaged(reply.chunks, faults.flips):
            if faults.pause_s and self._server._closing.wait(faults.pause_s):
                raise Hangup
            part = chunk if end is None else chunk[: end - sent]
            if part:
                self._send(_framed(b"d", part))
            sent += len(part)
            if sent == end:
                break
        if end is not None and end != faults.done_at:
            self._break_off(end, faults)
            return
        if faults.error_after is not None:
            self._send(_error(faults.error_after))
            return
        self._send(_framed(b"c", b"") + _complete(reply.tag))

    def _break_off(self, end: int, faults: WireFaults) -> None:
        if end == faults.error_at:
            self._send(_error(faults.error))
            return
        if end == faults.stall_at:
            self._wait_for_the_end()
        if end == faults.garbage_at:
            self._send(b"d" + _int(2))
        raise Hangup

    def _wait_for_the_end(self) -> None:
        self._server.stalled.set()
        while self._read_some(1):
            pass
        raise Hangup

    def _message(self) -> tuple[bytes, bytes]:
        kind = self._read(1)
        return kind, self._packet()

    def _packet(self) -> bytes:
        (size,) = struct.unpack("!I", self._read(4))
        return self._read(size - 4)

    def _read(self, size: int) -> bytes:
        data = self._read_some(size)
        if len(data) < size:
            raise Hangup
        return data

    def _send(self, data: bytes) -> None:
        self._connection.sendall(data)


def _damaged(chunks: Iterable[bytes], flips: Mapping[int, int]) -> Iterator[bytes]:
    begin = 0
    for chunk in chunks:
        hit = [at for at in flips if begin <= at < begin + len(chunk)]
        if hit:
            changed = bytearray(chunk)
            for at in hit:
                changed[at - begin] ^= flips[at]
            yield bytes(changed)
        else:
            yield chunk
        begin += len(chunk)


def _int(number: int) -> bytes:
    return struct.pack("!I", number)


def _framed(kind: bytes, body: bytes) -> bytes:
    return kind + _int(len(body) + 4) + body


def _ready() -> bytes:
    return _framed(b"Z", b"I")


def _complete(tag: str) -> bytes:
    return _framed(b"C", tag.encode() + b"\0")


def _error(refused: Refused) -> bytes:
    fields = f"SERROR\0C{refused.sqlstate}\0M{refused.message}\0\0"
    return _framed(b"E", fields.encode())


def _row_description(columns: tuple[str, ...]) -> bytes:
    described = b"".join(
        name.encode() + b"\0" + struct.pack("!IhIhih", 0, 0, TEXT_OID, -1, -1, 0) for name in columns
    )
    return _framed(b"T", struct.pack("!h", len(columns)) + described)


def _data_row(row: tuple[str | None, ...]) -> bytes:
    values = b"".join(
        struct.pack("!i", -1) if value is None else _int(len(value.encode())) + value.encode()
        for value in row
    )
    return _framed(b"D", struct.pack("!h", len(row)) + values)

"""Bodies that are sent while they come: cut off visibly, no faster than they are read, given up with their client."""

import socket
import struct
import threading

import pytest
from compute_node.actors.http_facade import channels, web
from compute_node.messages.clerk import DumpBegun, DumpSchema
from compute_node.messages.metrics import WAITERS
from compute_node.messages.stream import CAPACITY, ByteStream, StreamClosedError

from doubles.served import TOKEN, WAIT_S, Connection, Served
from fix_postgres import wait_until

PATH = "/database_schema?database=x"
PIECE = bytes(64 * 1024)


def begin(served: Served, connection: Connection, version: str = "1.1") -> ByteStream:
    """Ask for a dump and return its stream; the status line has come."""
    served.supervisor.answers[DumpSchema] = DumpBegun()
    asked = len(served.supervisor.asked)
    head = f"GET {PATH} HTTP/{version}\r\nHost: node\r\nAuthorization: {TOKEN}\r\n\r\n"
    connection.sock.sendall(head.encode())
    served.supervisor.wait_until_asked(asked + 1, WAIT_S)
    request = served.supervisor.asked[asked][0]
    assert isinstance(request, DumpSchema)
    return request.stream


def rest(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


@pytest.mark.parametrize(
    ("version", "tail"), [("1.1", b"5\r\nbegin\r\n3\r\nend\r\n0\r\n\r\n"), ("1.0", b"beginend")]
)
def test_a_whole_body_has_an_end(served: Served, version: str, tail: bytes) -> None:
    with served.connection() as connection:
        stream = begin(served, connection, version)
        stream.write(b"begin", 0)
        stream.write(b"end", 0)
        stream.end()
        head, _, body = rest(connection.sock).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/{version} 200 OK".encode())
    assert body == tail


def test_a_body_that_breaks_off_has_no_end(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with served.connection() as connection:
        stream = begin(served, connection)
        stream.write(b"begin", 0)
        while not (seen := connection.sock.recv(65536)).endswith(b"5\r\nbegin\r\n"):
            assert seen
        stream.fail("pg_dump was killed")
        assert rest(connection.sock) == b"", "neither a last chunk nor anything else"
    assert served.get("/status").status == 200
    assert [record for record in caplog.records if record.exc_info] == []


def test_to_a_client_that_knows_no_chunks_a_broken_body_is_a_broken_connection(served: Served) -> None:
    with served.connection() as connection:
        stream = begin(served, connection, "1.0")
        stream.write(b"begin", 0)
        while not (seen := connection.sock.recv(65536)).endswith(b"begin"):
            assert seen
        stream.fail("pg_dump was killed")
        with pytest.raises(ConnectionResetError):
            rest(connection.sock)


def test_a_client_that_does_not_read_holds_its_writer_up_and_little_memory(served: Served) -> None:
    with served.connection() as connection:
        stream = begin(served, connection)
        written = 0
        while stream.write(PIECE, 1.0):
            written += len(PIECE)
            assert written < 64 << 20, "nobody waits for the client"
        assert written < web.HELD + CAPACITY + (12 << 20), "the system's own buffers apart"
        threading.Thread(target=finish, args=(stream,), daemon=True).start()
        body = rest(connection.sock)
    assert body.endswith(b"\r\n0\r\n\r\n")
    assert len(body) > written + len(PIECE)


def finish(stream: ByteStream) -> None:
    assert stream.write(PIECE, WAIT_S)
    stream.end()


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("moment", ["in the middle", "before the first byte"])
def test_what_pours_for_a_client_that_has_left_is_told(served: Served, how: str, moment: str) -> None:
    with served.connection() as connection:
        stream = begin(served, connection)
        if moment == "in the middle":
            stream.write(b"begin", 0)
            while not (seen := connection.sock.recv(65536)).endswith(b"begin\r\n"):
                assert seen
        if how == "resets":
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left = threading.Event()
    stream.on_close(left.set)
    assert left.wait(WAIT_S)
    with pytest.raises(StreamClosedError):
        stream.write(b"more", 0)
    served.metrics.wait_for(WAITERS, lambda taken: taken == 0)


def test_a_client_that_stops_reading_for_good_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "IDLE_S", 1)
    monkeypatch.setattr(web, "CLEANUP_S", 1)
    served = Served()
    try:
        with served.connection() as connection:
            stream = begin(served, connection)
            with pytest.raises(StreamClosedError):
                write_for_ever(stream)
        served.metrics.wait_for(WAITERS, lambda taken: taken == 0)
    finally:
        served.stop(0)
        served.join()


def write_for_ever(stream: ByteStream) -> None:
    while stream.write(PIECE, WAIT_S):
        pass


def test_the_end_of_the_servers_ends_what_nobody_reads(served: Served) -> None:
    with served.connection() as connection:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream = begin(served, connection)
        while stream.write(PIECE, 0.5):
            pass
        served.stop(0.1)
        served.join()
        wait_until(lambda: stream.closed, "the stream is closed", WAIT_S)

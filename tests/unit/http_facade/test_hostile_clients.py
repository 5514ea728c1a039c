"""Clients that send what is no request, or leave at the wrong moment: a documented answer or none, and no harm."""

import errno
import logging
import os
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

import pytest
from compute_node.actors.http_facade.servers import EXTERNAL_CONNECTIONS
from compute_node.http.app import EXTERNAL, INTERNAL
from compute_node.http.openapi import EVERY_ROUTE, responses
from compute_node.http.table import Scope
from compute_node.messages.lifecycle import Configured, GetReadiness
from compute_node.messages.metrics import WAITERS

from doubles.node import RUNNING
from doubles.served import TOKEN, Connection, Served

SEED: Final = int(os.environ.get("HTTP_FUZZ_SEED", "20261122"))
REQUESTS: Final = int(os.environ.get("HTTP_FUZZ_REQUESTS", "1500"))
PATIENCE_S: Final = 0.05
"""How long an answer to half a request is waited for."""
DOCUMENTED: Final = {404, 405, *EVERY_ROUTE} | {
    s for route in (*EXTERNAL, *INTERNAL) for s in responses(route)
}
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW")


@pytest.fixture(autouse=True)
def nothing_breaks(served: Served, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each test the servers answer, and the log knows of no fault."""
    yield
    assert served.get("/status").status == 200
    assert served.get("/live", internal=True).status == 200
    assert served.failures == []
    for record in (*caplog.get_records("call"), *caplog.records):
        assert record.exc_info is None, record
        assert record.name.startswith("compute_node") or record.levelno < logging.WARNING, record
        assert not re.search(r"[Tt]raceback|uncaptured|descriptor", record.getMessage())


# --- Without a token ---------------------------------------------------------------------------------------

SPELLINGS: Final = (
    "{}", "{}/", "{}//", "//{}", "/{}", "/.{}", "{}/.", "/x/..{}", "{};x", "{}%00", "{}%2f", "{}%20", "{}?x=1",
    "{}#x", "http://node{}", "http://node//{}", "http://[::1]{}", "%2f{}", "/%2e{}", "\\{}",
)  # fmt: skip


@pytest.mark.parametrize("listener", ["external", "internal"])
def test_without_a_token_only_public_routes_open_by_any_method_and_spelling(
    served: Served, listener: str
) -> None:
    internal = listener == "internal"
    public = {route.path for route in (INTERNAL if internal else EXTERNAL) if route.scope is Scope.PUBLIC}
    for route in EXTERNAL:
        with served.connection(internal=internal) as connection:
            for spelling in SPELLINGS:
                for method in METHODS:
                    target = spelling.format(route.path)
                    connection.send(method, target, headers={"Authorization": ""})
                    response = connection.response(bodiless=method == "HEAD")
                    case = (method, target, response.status)
                    assert response.status in DOCUMENTED, case
                    if response.status < 400:
                        assert route.path in public, case
                        assert method in {"GET", "HEAD"}, case
                    if response.headers.get("connection") == "close":
                        raise AssertionError(case)
    assert {type(request) for request, _ in served.supervisor.asked} <= {GetReadiness}


# --- Garbage -----------------------------------------------------------------------------------------------

GOOD: Final = (
    f"GET /status HTTP/1.1\r\nHost: node\r\nAuthorization: {TOKEN}\r\n\r\n".encode(),
    b"GET /live HTTP/1.1\r\nHost: node\r\n\r\n",
    b"HEAD /metrics HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET http://node/live HTTP/1.1\r\nHost: other\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: node\r\n\r\n",
    b"GET /status\r\n\r\n",
    b"POST /configure HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    f"POST /configure HTTP/1.1\r\nAuthorization: {TOKEN}\r\nContent-Type: application/json\r\n"
    "Transfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nTrailer: x\r\n\r\n".encode(),
    b"POST /terminate?mode=slow HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde",
    b"GET /live HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
)
PIECES: Final = (
    b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"%", b"%zz", b"%00", b"\xff\xfe", b"[", b"]", b"//",
    b"#", b"?", b"Content-Length: 1\r\n", b"Content-Length: -1\r\n", b"Content-Length: 0x5\r\n", b"Content_Length: 9\r\n",
    b"Content-Length: " + b"9" * 5000 + b"\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n", b"HTTP/9.9", b"HTTP/1.1", b"http://[", b"http://[::1", b"://",
    b"Host: a\r\n b\r\n", b" folded\r\n", b"X" * 40_000, b"fffffffffffffffff\r\n", b"-5\r\n", b"0\r\n\r\n", b"\x80",
    b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n",
    b"X-Request-Id: \xff\x00\r\n", b"Authorization: Bearer \xe9\r\n", b"{" * 2000,
)  # fmt: skip


def _mutated(choice: random.Random) -> bytes:
    if choice.random() < 0.1:
        return choice.randbytes(choice.randrange(1, 3000))
    data = b"".join(choice.choices(GOOD, k=choice.choice((1, 1, 1, 2, 3))))
    for _ in range(choice.randrange(1, 5)):
        joints = [found.end() for found in re.finditer(rb"\r\n| |: ", data)]
        at = choice.choice(joints) if joints and choice.random() < 0.6 else choice.randrange(len(data))
        until = min(len(data), at + choice.choice((0, 0, 1, 2, 20)))
        piece = choice.choice(PIECES) if choice.random() < 0.8 else choice.randbytes(choice.randrange(1, 9))
        data = data[:at] + piece + data[until:]
    return data


def _exchange(served: Served, data: bytes, *, internal: bool, cut: int) -> bytes:
    """Send in two pieces, close our side, and return all that comes back until the server closes its own."""
    with served.connection(internal=internal) as connection:
        received = b""
        try:
            connection.sock.sendall(data[:cut])
            connection.sock.sendall(data[cut:])
            connection.sock.shutdown(socket.SHUT_WR)
            while piece := connection.sock.recv(65536):
                received += piece
        except ConnectionError:
            pass
        except OSError as error:  # it closed before all was sent
            if error.errno != errno.ENOTCONN:
                raise
        return received


def _statuses(received: bytes) -> list[int]:
    """Take the responses apart; bodies of HEAD and of cut answers are let pass."""
    return [int(code) for code in re.findall(rb"(?:^|\n|\}|\])HTTP/1\.[01] (\d{3}) [A-Z]", received)]


def test_whatever_is_sent_is_answered_as_documented_or_not_at_all(served: Served) -> None:
    choice = random.Random(SEED)  # noqa: S311 - to be alike in each run
    answered = 0
    for number in range(REQUESTS):
        data = _mutated(choice)
        received = _exchange(
            served, data, internal=choice.random() < 0.2, cut=choice.randrange(len(data) + 1)
        )
        case = f"seed {SEED}, request {number}: {data[:2000]!r} -> {received[:500]!r}"
        assert received == b"" or received.startswith(b"HTTP/1."), case
        statuses = _statuses(received)
        assert (statuses != []) == (received != b""), case
        assert set(statuses) <= DOCUMENTED | {100}, case
        assert 500 not in statuses, case
        assert not re.search(rb"Traceback|File \"|waitress|falcon", received), case
        answered += bool(statuses)
    assert answered > REQUESTS // 4


# --- Leaving -----------------------------------------------------------------------------------------------


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("path", ["/live", "/ready", "/metrics", "/status", "/openapi.json"])
def test_probe_clients_that_reset_at_any_moment_leave_nothing_above_their_usual_lines(
    served: Served, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for moment in ("half a request", "before the answer", "after the status line"):
        for _ in range(10):
            with served.connection() as connection:
                if moment == "half a request":
                    connection.sock.sendall(f"GET {path} HT".encode())
                else:
                    connection.send("GET", path)
                if moment == "after the status line":
                    assert connection.sock.recv(15) == b"HTTP/1.1 200 OK"
                _reset(connection.sock)
    assert served.get("/status").status == 200
    assert max((record.levelno for record in caplog.records), default=0) <= logging.INFO
    if path not in {"/status", "/openapi.json"}:
        ours = [
            record for record in caplog.records if record.name != "waitress"
        ]  # a node logs it from WARN on
        assert {record.levelno for record in ours if path in record.getMessage()} <= {logging.DEBUG}


def test_a_caller_that_leaves_while_it_waits_is_no_error_of_the_node(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with served.connection() as connection:
        connection.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == 1)
    served.metrics.wait_for(WAITERS, lambda taken: taken == 0)
    assert served.get("/status").status == 200
    assert max(record.levelno for record in caplog.records) <= logging.INFO


def test_many_clients_that_never_finish_their_requests_keep_nobody_else_waiting(served: Served) -> None:
    """Slow headers, slow bodies, silent connections and clients that do not read."""
    head = f"POST /configure HTTP/1.1\r\nHost: node\r\nAuthorization: {TOKEN}\r\nContent-Length: 1000\r\n"
    starts = (
        b"",
        b"GET /sta",
        head.encode(),
        head.encode() + b"\r\n{",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5",
    )
    slow: list[Connection] = []
    try:
        for number in range(100):
            sock = socket.create_connection(("127.0.0.1", served.ports.external), timeout=20)
            slow.append(Connection(sock))
            sock.sendall(starts[number % len(starts)])
        for _ in range(5):
            for connection in slow:
                if connection.sock.getpeername():
                    connection.sock.sendall(b"a")
            for path in ("/status", "/live", "/ready", "/metrics"):
                assert served.get(path).status == 200
    finally:
        for connection in slow:
            connection.sock.close()


def test_clients_that_send_and_never_read_do_not_hold_threads(served: Served) -> None:
    one = f"GET /openapi.json HTTP/1.1\r\nHost: node\r\nAuthorization: {TOKEN}\r\n\r\n".encode()
    with ThreadPoolExecutor(1) as pool:
        deaf = [socket.create_connection(("127.0.0.1", served.ports.external), timeout=20) for _ in range(40)]
        try:
            for sock in deaf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.sendall(one * 8)
            assert pool.submit(lambda: served.get("/status").status).result(20) == 200
            names = [thread.name for thread in threading.enumerate() if thread.name.startswith("http-")]
            assert len(names) == len(set(names))
        finally:
            for sock in deaf:
                sock.close()


def test_silent_connections_make_room_for_new_ones_and_never_for_those_that_are_answered(
    served: Served,
) -> None:
    with ExitStack() as stack:
        waiting = stack.enter_context(served.connection())
        waiting.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == 1)
        silent = [stack.enter_context(served.connection()) for _ in range(EXTERNAL_CONNECTIONS + 50)]
        for path in ("/status", "/ready"):
            assert served.get(path).status == 200
        assert silent[0].ended()
        served.supervisor.release(Configured(RUNNING))
        assert waiting.response().status == 200

"""The HTTP edge of a whole node under fire: many callers, slow ones, hostile ones, and the end in the middle."""

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import psutil
import psycopg
import pytest
from compute_node.http.app import EXTERNAL, INTERNAL
from compute_node.http.table import Scope
from compute_node.http.waiting import MAX_WAITERS
from compute_node.postgres.binaries import Binaries

from fix_node import Answer, MakeNode, Node, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CALLERS = 64
PROBES = ("/status", "/live", "/ready", "/metrics")
ANSWER_S = 60.0


def with_role(name: str) -> dict[str, Any]:
    return spec(cluster={"roles": [{"name": name}]})


@contextlib.contextmanager
def held(node: Node, role: str) -> Iterator[None]:
    """Keep everybody else who would create this role waiting."""
    connstr = f"postgresql://cloud_admin@127.0.0.1:{node.postgres_port}/postgres"
    with psycopg.connect(connstr) as connection:
        connection.execute(f'create role "{role}"'.encode())
        yield
        connection.rollback()


def waiting(node: Node) -> int:
    """How many requests wait, by the node's own count."""
    found = re.search(
        r"^compute_node_waiting_requests ([\d.]+)$", node.call("GET", "/metrics").body, re.MULTILINE
    )
    assert found is not None
    return int(float(found[1]))


def connect(node: Node, *, internal: bool = False) -> socket.socket:
    port = node.internal_port if internal else node.external_port
    return socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)


def head(node: Node, method: str, path: str, *lines: str) -> bytes:
    """Return the beginning of a request with a good token."""
    fields = ("Host: node", f"Authorization: Bearer {node.token()}", *lines)
    return "\r\n".join((f"{method} {path} HTTP/1.1", *fields, "", "")).encode()


def configure_request(node: Node, document: dict[str, Any]) -> bytes:
    body = json.dumps({"spec": document, "compute_ctl_config": {"jwks": {"keys": []}}}).encode()
    return (
        head(node, "POST", "/configure", "Content-Type: application/json", f"Content-Length: {len(body)}")
        + body
    )


def received(sock: socket.socket) -> bytes:
    """Read until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def split(answers: list[Future[Answer]], refused: int) -> tuple[list[Answer], set[Future[Answer]]]:
    """Wait until so many have been answered; return these answers, and who still waits."""
    done: set[Future[Answer]] = set()
    left = set(answers)
    while len(done) < refused:
        now, left = wait(left, timeout=ANSWER_S, return_when=FIRST_COMPLETED)
        assert now, f"only {len(done)} were answered"
        done |= now
    return [answer.result() for answer in done], left


# --- Many callers ------------------------------------------------------------------------------------------


def test_of_sixty_four_callers_sixteen_wait_and_no_probe_waits_behind_them(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    wanted = with_role("wanted")
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
        lock = stack.enter_context(contextlib.ExitStack())
        lock.enter_context(held(node, "wanted"))
        for start in (b"", b"GET /sta", head(node, "POST", "/configure", "Content-Length: 1000") + b"{") * 10:
            stack.enter_context(connect(node)).sendall(start)
        calls = [pool.submit(node.configure, wanted) for _ in range(CALLERS)]
        refused, left = split(calls, CALLERS - MAX_WAITERS)
        assert {answer.status for answer in refused} == {503}
        assert {answer.headers["Retry-After"] for answer in refused} == {"5"}
        wait_until(lambda: waiting(node) == MAX_WAITERS, "sixteen to wait", ANSWER_S)
        node.await_status("configuration")
        for path in PROBES:
            took = []
            for _ in range(10):
                began = time.monotonic()
                assert node.call("GET", path).status == (503 if path == "/ready" else 200)
                took.append(time.monotonic() - began)
            assert min(took) < 0.1, (path, took)
        assert node.call("POST", "/terminate").status == 503  # no place to wait, and nothing was asked
        assert node.status()["status"] == "configuration"
        lock.close()
        assert {answer.result(ANSWER_S).status for answer in left} == {200}
    assert node.log.count("to configuration-pending") == 1  # all sixteen joined one configuration
    assert node.query("select rolname from pg_roles where rolname = 'wanted'") == [("wanted",)]
    assert waiting(node) == 0
    assert node.stop() == 0, node.log


def test_a_caller_that_left_and_comes_again_joins_what_it_had_asked_for(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    wanted = with_role("wanted")
    with ThreadPoolExecutor(1) as pool:
        with held(node, "wanted"):
            for _ in range(3):
                with connect(node) as caller:
                    caller.sendall(configure_request(node, wanted))
                    wait_until(lambda: waiting(node) == 1, "the caller to wait", ANSWER_S)
                wait_until(lambda: waiting(node) == 0, "its place to be free", ANSWER_S)
            again = pool.submit(node.configure, wanted)
            wait_until(lambda: waiting(node) == 1, "the caller to wait", ANSWER_S)
            assert node.configure(with_role("other")).status == 412
        assert again.result(ANSWER_S).status == 200
    assert node.log.count("to configuration-pending") == 1
    assert node.stop() == 0, node.log


# --- Hostile clients ---------------------------------------------------------------------------------------


def test_whatever_clients_do_the_node_stays_healthy_and_idle(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    node.write_config(None)
    node.start().await_status("empty")
    assert node.process is not None
    for garbage in (
        bytes(range(256)) * 8,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"GET /status\r\n\r\n",
        b"GET http://[::1/status HTTP/1.1\r\n\r\n",
        b"GET /live HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST /configure HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /configure HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /configure HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 100_000,
        b"GET /status HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        head(node, "GET", "/status") * 20,
    ):
        for internal in (False, True):
            with connect(node, internal=internal) as sock:
                with contextlib.suppress(OSError):
                    sock.sendall(garbage)
                    sock.shutdown(socket.SHUT_WR)
                assert received(sock)[:7] in {b"", b"HTTP/1."}
    with contextlib.ExitStack() as stack:
        for number in range(60):
            sock = stack.enter_context(connect(node))
            if number % 3 == 0:  # half a request, and no more will come
                sock.sendall(b"POST /configure HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
                sock.shutdown(socket.SHUT_WR)
            elif number % 3 == 1:
                sock.sendall(b"GET /live HTTP/1.1\r\n")
            else:
                sock.sendall(head(node, "GET", "/metrics"))
                assert sock.recv(15) == b"HTTP/1.1 200 OK"
        process = psutil.Process(node.process.pid)
        used, window = sum(process.cpu_times()[:2]), 1.5
        quiet = stack.enter_context(connect(node))
        quiet.settimeout(window)
        with pytest.raises(TimeoutError):
            quiet.recv(1)
        used = sum(process.cpu_times()[:2]) - used
        assert used < window / 3, f"{used:.2f} s of CPU in {window} s: a busy loop"
        assert node.status()["status"] == "empty"
    assert node.call("GET", "/live", token=None).status == 200
    assert node.call("POST", "/terminate?mode=immediate").status == 200
    assert node.wait() == 0, node.log


def test_without_a_token_nothing_but_the_public_routes_opens_on_either_port(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    node.write_config(None)
    node.start().await_status("empty")
    for port, routes in ((node.external_port, EXTERNAL), (node.internal_port, INTERNAL)):
        public = {(route.method, route.path) for route in routes if route.scope is Scope.PUBLIC}
        public |= {("HEAD", path) for method, path in public if method == "GET"}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        for path in {route.path for route in (*EXTERNAL, *INTERNAL)}:
            for target in (path, f"{path}/"):
                for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                    connection.request(method, target)
                    response = connection.getresponse()
                    response.read()
                    opened = response.status not in {400, 401, 403, 404, 405}
                    if opened or method != "POST":  # which wants a body
                        assert opened == ((method, target) in public), (method, target, port)
        connection.close()
    assert node.stop() == 0, node.log


# --- The end in the middle ---------------------------------------------------------------------------------


def test_a_stop_during_slow_requests_answers_them_and_ends_in_order(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(psycopg.Error))  # the session ends with its server
        stack.enter_context(held(node, "wanted"))
        callers = [stack.enter_context(connect(node)) for _ in range(3)]
        for caller in callers:
            caller.sendall(configure_request(node, with_role("wanted")))
        wait_until(lambda: waiting(node) == len(callers), "the callers to wait", ANSWER_S)
        unfinished = stack.enter_context(connect(node))
        unfinished.sendall(head(node, "POST", "/configure", "Content-Length: 1000") + b"{")
        began = time.monotonic()
        assert node.stop() == 0, node.log
        assert time.monotonic() - began < 30  # the stop's budget is 25 s
        for caller in callers:
            answer = received(caller)
            assert re.match(rb"HTTP/1\.1 (412|500|503) ", answer), answer
            assert b'{"error":' in answer
        assert received(unfinished)[:7] in {b"", b"HTTP/1."}
    assert "descriptor" not in node.log

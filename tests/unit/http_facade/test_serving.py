"""The two real servers on loopback: limits, waiting, clients that misbehave, and the end."""

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from compute_node.actors.http_facade import channels, web
from compute_node.actors.http_facade.actor import HttpFacade
from compute_node.actors.http_facade.requests import JOINED
from compute_node.actors.http_facade.servers import (
    EXTERNAL_THREADS,
    INTERNAL_THREADS,
    WAITING_THREADS,
    WaitressServers,
)
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.metrics import Metrics
from compute_node.http.app import create_apps
from compute_node.http.table import LARGE_BODY, SMALL_BODY
from compute_node.http.waiting import MAX_MINOR, MAX_WAITERS
from compute_node.messages.lifecycle import Configure, Configured, GetReadiness, GetStatus, Readiness
from compute_node.messages.metrics import QUEUE_WARNINGS, REFUSED_WAITERS, WAITERS
from compute_node.messages.serving import (
    FREE_BODY,
    ServingFailed,
    ServingStarted,
    ServingStopped,
    StartServing,
    StopServing,
)
from waitress import wasyncore

from doubles.node import CONFIGURE, RUNNING, StubSupervisor, node
from doubles.scripted import Scripted, ThreadedBench
from doubles.served import TOKEN, WAIT_S, Connection, Served, settings
from doubles.tokens import FOREIGN, OWN

JSON = {"Content-Type": "application/json"}
TOO_LARGE = "failed to buffer the request body: length limit exceeded"


# --- Threads


def test_there_is_a_thread_for_every_waiting_request_and_some_more() -> None:
    assert WAITING_THREADS == MAX_WAITERS
    assert EXTERNAL_THREADS == MAX_WAITERS + 8
    assert INTERNAL_THREADS == MAX_MINOR + 4


def test_all_threads_that_serve_for_ever_start_with_the_servers(served: Served) -> None:
    def threads() -> list[str]:
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("http-"))

    at_start = threads()
    assert len(at_start) == EXTERNAL_THREADS + INTERNAL_THREADS
    served.get("/status")
    served.get("/live", internal=True)
    assert threads() == at_start


# --- Waiting requests


def test_the_seventeenth_waiting_request_is_refused_and_status_never_queues(served: Served) -> None:
    with ExitStack() as stack:
        waiting = [stack.enter_context(served.connection()) for _ in range(MAX_WAITERS)]
        for connection in waiting:
            connection.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == MAX_WAITERS)
        with served.connection() as one_too_many:
            one_too_many.configure()
            refused = one_too_many.response()
        assert refused.status == 503
        assert refused.headers["retry-after"] == "5"
        assert list(refused.json) == ["error"]
        assert served.metrics.read(REFUSED_WAITERS) == {(): 1.0}
        durations = []
        for path in ("/status", "/live", "/ready", "/metrics", "/status"):
            began = time.monotonic()
            assert served.get(path).status == 200
            durations.append(time.monotonic() - began)
        assert sorted(durations)[len(durations) // 2] < 0.1
        served.supervisor.wait_until_asked(MAX_WAITERS)
        served.supervisor.release(Configured(RUNNING))
        assert [connection.response().status for connection in waiting] == [200] * MAX_WAITERS


def test_a_client_that_disconnects_frees_its_place(served: Served) -> None:
    with served.connection() as connection:
        connection.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == 1)
    served.metrics.wait_for(WAITERS, lambda taken: taken == 0)


def test_a_client_that_resets_its_connection_frees_its_place(served: Served) -> None:
    with served.connection() as connection:
        connection.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == 1)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    served.metrics.wait_for(WAITERS, lambda taken: taken == 0)


def test_a_client_that_closes_its_sending_side_still_gets_a_quick_answer(served: Served) -> None:
    with served.connection() as connection:
        connection.send("GET", "/status")
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.response().status == 200
        assert connection.ended()


def test_a_half_closed_connection_costs_no_busy_loop(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []
    poll = wasyncore.poll2

    def counted(timeout: float, sockets: Any) -> None:
        turns.append(timeout)
        poll(timeout, sockets)

    monkeypatch.setattr(wasyncore, "poll2", counted)
    with served.connection() as connection:
        connection.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == 1)
        connection.sock.shutdown(socket.SHUT_WR)
        turns.clear()
        assert connection.response().status == 503
        assert connection.ended()
    assert len(turns) < 20


def test_no_wake_up_of_the_loop_is_lost_under_bursts_of_pipelined_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "LOOP_S", 1000)  # so that nothing but a wake-up helps
    served = Served()
    one = f"GET /status HTTP/1.1\r\nHost: node\r\nAuthorization: {TOKEN}\r\n\r\n".encode()

    def burst(seed: int) -> None:
        chosen = random.Random(seed)  # noqa: S311 - to be alike in each run
        with served.connection() as connection:
            for _ in range(20):
                count = chosen.randint(1, 4)
                cut = chosen.randrange(len(one))
                connection.sock.sendall((one * count)[:cut])
                connection.sock.sendall((one * count)[cut:])
                for _ in range(count):
                    assert connection.response().status == 200

    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(burst, seed) for seed in range(6)]:
                done.result()
    finally:
        served.stop(0)
        served.join()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_answer_of_any_size_arrives_whole(method: str) -> None:
    def app(size: int) -> Any:
        class Sized:
            def __call__(self, _environ: object, start: Any) -> Any:
                start("200 OK", [("Content-Length", str(size)), ("Content-Type", "text/plain")])
                return [b"x" * size] if method == "GET" else []

            def body_limit(self, _path: str, _authorization: str | None) -> int:
                return 100

        return Sized()

    for size in (0, 1, JOINED, JOINED + 1, 3_000_000):
        served = Served(apps=lambda size=size: (app(size), app(size)))  # type: ignore[misc] # bound at once
        try:
            with served.connection() as connection:
                for _ in range(2):
                    connection.send(method, "/status")
                    response = connection.response(bodiless=method == "HEAD")
                    assert response.headers["content-length"] == str(size)
                    assert len(response.body) == (size if method == "GET" else 0)
        finally:
            served.stop(0)
            served.join()


# --- Requests that are not read to their end


def test_headers_over_the_limit_are_431_in_the_form_of_every_error(served: Served) -> None:
    assert served.get("/status", headers={"X-Long": "a" * (web.MAX_HEADER - 1000)}).status == 200
    response = served.get("/status", headers={"X-Long": "a" * web.MAX_HEADER})
    assert response.status == 431
    assert response.json["error"].startswith("request header fields too large")
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(("path", "limit"), [("/configure", LARGE_BODY), ("/terminate", SMALL_BODY)])
def test_a_body_over_the_limit_is_refused_before_it_is_sent(served: Served, path: str, limit: int) -> None:
    with served.connection() as connection:
        connection.send("POST", path, headers={"Content-Length": str(limit + 1), "Expect": "100-continue"})
        response = connection.response()
    assert response.status == 413
    assert response.json["error"].startswith(TOO_LARGE)


def test_a_client_that_sends_its_large_body_all_the_same_sees_the_refusal(served: Served) -> None:
    for _ in range(3):
        with served.connection() as connection:
            connection.send("POST", "/configure", headers=JSON, body=b" " * (LARGE_BODY * 2))
            assert connection.response().status == 413
            assert connection.ended()


def _chunks(size: int, piece: int = 65536) -> Iterator[bytes]:
    for start in range(0, size, piece):
        part = b" " * min(piece, size - start)
        yield b"%x\r\n%s\r\n" % (len(part), part)


def _send_chunked(connection: Connection, path: str, body: bytes, padding: int) -> None:
    connection.send("POST", path, headers={**JSON, "Transfer-Encoding": "chunked"})
    try:
        connection.sock.sendall(b"%x\r\n%s\r\n" % (len(body), body))
        for chunk in _chunks(padding):
            connection.sock.sendall(chunk)
        connection.sock.sendall(b"0\r\n\r\n")
    except ConnectionError:  # refused before its end
        return


def test_a_chunked_body_is_limited_while_it_is_read(served: Served) -> None:
    served.supervisor.answers[Configure] = Configured(RUNNING)
    body = json.dumps(CONFIGURE).encode()
    for padding, status in (
        (LARGE_BODY - len(body), 200),
        (LARGE_BODY - len(body) + 1, 413),
        (LARGE_BODY * 2, 413),
    ):
        with served.connection() as connection:
            _send_chunked(connection, "/configure", body, padding)
            assert connection.response().status == status


def test_an_unknown_path_is_404_whatever_the_size_of_the_body(served: Served) -> None:
    with served.connection() as connection:
        connection.send("POST", "/nowhere", headers={"Content-Length": str(LARGE_BODY * 2)})
        response = connection.response()
    assert (response.status, response.body) == (404, b"")


def test_without_a_token_a_large_body_is_an_authorization_failure_first(served: Served) -> None:
    with served.connection() as connection:
        headers = {"Content-Length": str(LARGE_BODY * 2), "Authorization": ""}
        connection.send("POST", "/configure", headers=headers)
        assert connection.response().status == 400


UNAUTHORIZED = {"without a token": "", "with a token of a foreign key": f"Bearer {FOREIGN.sign(OWN)}"}


@pytest.mark.parametrize("who", UNAUTHORIZED)
@pytest.mark.parametrize("path", ["/configure", "/terminate", "/nowhere", "/metrics"])
@pytest.mark.parametrize("framing", ["chunked", "announced"])
def test_no_large_body_is_read_without_a_token(served: Served, who: str, path: str, framing: str) -> None:
    authorization = {"Authorization": UNAUTHORIZED[who]}
    with served.connection() as connection:
        if framing == "chunked":
            connection.send("POST", path, headers={**authorization, "Transfer-Encoding": "chunked"})
            for chunk in _chunks(FREE_BODY + 1024):
                connection.sock.sendall(chunk)
        else:
            size = str(FREE_BODY + 1)
            connection.send("POST", path, headers={**authorization, "Content-Length": size})
        response = connection.response()
        refused = 401 if authorization["Authorization"] else 400
        assert response.status == {"/nowhere": 404, "/metrics": 405}.get(path, refused)


def test_who_has_a_token_is_refused_in_the_words_of_the_route(served: Served) -> None:
    with served.connection() as connection:
        connection.send("GET", "/metrics", headers={"Content-Length": str(FREE_BODY + 1)})
        response = connection.response()
    assert (response.status, response.json["error"]) == (
        413,
        f"{TOO_LARGE} (at most {FREE_BODY} bytes are taken here)",
    )


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /status HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"GET http://[::1/status HTTP/1.1\r\n\r\n", 400),
        (
            b"POST /configure HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST /configure HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"GARBAGE\r\n\r\n", 400),
        (b"get /status HTTP/1.1\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /configure HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET /status HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"GET //status HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"BREW /status HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ],
)
def test_malformed_requests_are_answered_with_a_request_id_and_the_one_error_shape(
    served: Served, request_bytes: bytes, status: int
) -> None:
    with served.connection() as connection:
        connection.sock.sendall(request_bytes)
        response = connection.response()
    assert response.status == status
    assert response.headers["x-request-id"]
    assert "server" not in response.headers
    assert response.body == b"" or list(response.json) == ["error"]


def test_a_request_that_takes_too_long_to_arrive_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "REQUEST_S", 0.0)
    monkeypatch.setattr(web, "CLEANUP_S", 0)
    served = Served()
    try:
        with served.connection() as connection:
            connection.sock.sendall(b"GET /status HT")
            assert connection.ended()
    finally:
        served.stop(0)
        served.join()


def test_an_application_that_breaks_down_altogether_is_500_without_a_trace() -> None:
    class Broken:
        def __call__(self, _environ: object, _start: object) -> Any:
            msg = "hunter2"
            raise RuntimeError(msg)

        def body_limit(self, _path: str, _authorization: str | None) -> int:
            return 100

    served = Served(apps=lambda: (Broken(), Broken()))
    try:
        response = served.get("/status")
        assert (response.status, response.json) == (500, {"error": "internal error"})
    finally:
        served.stop(0)
        served.join()


# --- Queues


def test_requests_that_queue_for_a_thread_are_a_number_and_not_a_log_line(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    del served.supervisor.answers[GetReadiness]
    with ExitStack() as stack:
        probes = [stack.enter_context(served.connection(internal=True)) for _ in range(INTERNAL_THREADS + 2)]
        for probe in probes:
            probe.send("GET", "/live")
        served.metrics.wait_for(QUEUE_WARNINGS, lambda count: count >= 1, "internal")
        served.supervisor.answers[GetReadiness] = Readiness(ready=True, conditions=())
        served.supervisor.release(Readiness(ready=True, conditions=()))
        assert len([probe.response() for probe in probes]) == len(probes)
    assert "queue" not in capsys.readouterr().err


# --- The end


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S).close()
    except ConnectionError:
        return True
    return False


def test_a_drain_refuses_new_connections_and_lets_requests_under_way_end(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with served.connection() as connection, served.connection() as idle:
        idle.send("GET", "/status")
        assert idle.response().status == 200
        connection.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == 1)
        served.stop(WAIT_S)
        assert idle.ended()
        deadline = time.monotonic() + WAIT_S
        while not _refuses(served.ports.external):
            assert time.monotonic() < deadline
        served.supervisor.release(Configured(RUNNING))
        response = connection.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert connection.ended()
    served.join()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_request_that_outlasts_the_drain_is_cut_off(served: Served) -> None:
    with served.connection() as connection:
        connection.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == 1)
        began = time.monotonic()
        served.stop(0.05)
        served.join()
        assert time.monotonic() - began < 2
        assert connection.ended()


def test_a_second_stop_cuts_the_drain_short(served: Served) -> None:
    with served.connection() as connection:
        connection.configure()
        served.metrics.wait_for(WAITERS, lambda taken: taken == 1)
        served.stop(1000)
        served.stop(0)
        served.join()


def test_idle_servers_stop_at_once(served: Served) -> None:
    with served.connection() as connection:
        connection.send("GET", "/status")
        assert connection.response().status == 200
        began = time.monotonic()
        served.stop(1000)
        served.join()
        assert time.monotonic() - began < 1


def test_a_stop_that_comes_before_the_binding_ends_is_not_lost() -> None:
    real = WaitressServers(settings(), lambda: create_apps(node(StubSupervisor())), Metrics())
    real.stop(0)
    ports = real.bind(Cancellation())
    for server in ("external", "internal"):
        real.serve(server, Cancellation())
    assert _refuses(ports.external)
    assert _refuses(ports.internal)


def test_a_thread_that_answers_after_the_end_touches_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LAST_ANSWERS_S", 0)
    served = Served()
    del served.supervisor.answers[GetStatus]
    with served.connection() as connection:
        connection.send("GET", "/status")
        served.supervisor.wait_until_asked(1)
        served.stop(0)
        served.join()
    written = []
    monkeypatch.setattr("waitress.trigger.os.write", lambda *args: written.append(args))
    late = [thread for thread in threading.enumerate() if thread.name.startswith("http-")]
    served.supervisor.release(RUNNING)
    for thread in late:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert written == []


# --- Under the actor


def _facade(bench: ThreadedBench, **changes: Any) -> Any:
    stub = StubSupervisor()
    stub.answers[GetStatus] = RUNNING
    supervisor = bench.spawn("supervisor", Scripted(bench.recorder))
    real = WaitressServers(settings(**changes), lambda: create_apps(node(stub)), Metrics())
    return bench.spawn("http_facade", HttpFacade(real, supervisor))


@pytest.fixture
def bench() -> Iterator[ThreadedBench]:
    """The threaded runtime; it leaves no thread behind."""
    bench = ThreadedBench()
    yield bench
    assert bench.stop() == ()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("http-")]


def test_the_actor_binds_serves_and_closes(bench: ThreadedBench) -> None:
    facade = _facade(bench)
    facade.tell(StartServing())
    bench.wait(lambda: len(bench.recorder.entries) == 1)
    (started,) = bench.recorder.entries
    assert isinstance(started, ServingStarted)
    with socket.create_connection(("127.0.0.1", started.external_port), timeout=WAIT_S) as sock:
        connection = Connection(sock)
        connection.send("GET", "/status")
        assert connection.response().status == 200
    facade.tell(StopServing(1.0))
    bench.wait(lambda: bench.recorder.entries[-1] == ServingStopped())
    assert _refuses(started.external_port)
    assert _refuses(started.internal_port)


def test_a_taken_port_fails_the_start_and_leaves_nothing_bound(bench: ThreadedBench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
        probe.close()
        port = taken.getsockname()[1]
        facade = _facade(bench, external_http_port=free, internal_http_port=port)
        facade.tell(StartServing())
        bench.wait(lambda: len(bench.recorder.entries) == 1)
        (failed,) = bench.recorder.entries
        assert isinstance(failed, ServingFailed)
        assert failed.error == (
            f"cannot serve the internal HTTP API at 127.0.0.1:{port}: the port is taken by another process; "
            "stop that one, or choose another port with --internal-http-port"
        )
        assert _refuses(free)


def test_a_loop_that_breaks_is_a_failure(bench: ThreadedBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        msg = "no more descriptors"
        raise OSError(msg)

    facade = _facade(bench)
    monkeypatch.setattr(wasyncore, "poll2", broken)
    facade.tell(StartServing())
    bench.wait(lambda: len(bench.recorder.entries) == 3)
    errors = sorted(entry.error for entry in bench.recorder.entries if isinstance(entry, ServingFailed))
    assert errors == [
        "the external HTTP server ended by itself: OSError: no more descriptors",
        "the internal HTTP server ended by itself: OSError: no more descriptors",
    ]


def test_a_machine_without_a_thread_to_spare_fails_the_start(
    bench: ThreadedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == f"http-internal-{INTERNAL_THREADS}":
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    facade = _facade(bench)
    monkeypatch.setattr(threading.Thread, "start", limited)
    facade.tell(StartServing())
    bench.wait(lambda: len(bench.recorder.entries) == 1)
    assert bench.recorder.entries == [ServingFailed("RuntimeError: can't start new thread")]


def test_the_runtime_can_stop_a_serving_facade(bench: ThreadedBench) -> None:
    facade = _facade(bench)
    facade.tell(StartServing())
    bench.wait(lambda: len(bench.recorder.entries) == 1)

"""The observer against servers that answer as told: what each kind of trouble is called, and how long it takes."""

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from compute_node.actors.activity_monitor import session
from compute_node.actors.activity_monitor.observer import PostgresObserver
from compute_node.actors.activity_monitor.reach import Observation, Reach
from compute_node.actors.kit.jobs import Cancellation, CancelledError

LIMIT_S = 1.4
"""A look may take one second, and some for a busy machine."""


class Server:
    """Takes connections and gives each to `serve`, one after the other."""

    def __init__(self, serve: Callable[[socket.socket], None] | None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self._serve = serve
        self._thread = threading.Thread(target=self._run, daemon=True)
        if serve is not None:
            self._thread.start()

    def _run(self) -> None:
        assert self._serve is not None
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self._serve(connection)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        if self._serve is not None:
            self._thread.join(5)


def hang_up(_: socket.socket) -> None:
    """Close without a word."""


def refuse(code: str) -> Callable[[socket.socket], None]:
    """Answer a request for TLS with no, and every login with an error of that code, in a foreign language."""

    def serve(connection: socket.socket) -> None:
        while data := connection.recv(4096):
            if data == session.SSL_REQUEST:
                connection.sendall(b"N")
                continue
            body = f"SFATAL\0VFATAL\0C{code}\0Mder Server startet gerade\0\0".encode()
            connection.sendall(b"E" + struct.pack("!I", len(body) + 4) + body)
            return

    return serve


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None] | None], PostgresObserver]]:
    servers: list[Server] = []
    observers: list[PostgresObserver] = []

    def make(how: Callable[[socket.socket], None] | None) -> PostgresObserver:
        server = Server(how)
        servers.append(server)
        observers.append(
            PostgresObserver(f"postgresql://cloud_admin:canary@127.0.0.1:{server.port}/postgres")
        )
        return observers[-1]

    yield make
    for observer in observers:
        observer.close()
    for server in servers:
        server.close()


Serve = Callable[[Callable[[socket.socket], None] | None], PostgresObserver]


def look(
    observer: PostgresObserver, cancellation: Cancellation | None = None, *, probe: bool = True
) -> Observation:
    return observer.observe(1, experimental=False, probe=probe, cancellation=cancellation or Cancellation())


@pytest.mark.slow
def test_a_server_that_says_nothing_is_frozen_and_holds_a_look_for_a_second(serve: Serve) -> None:
    observer = serve(None)
    began = time.monotonic()

    observation = look(observer)

    assert observation.reach is Reach.FROZEN
    assert "not answered within 1 s" in observation.detail
    assert time.monotonic() - began < LIMIT_S


@pytest.mark.slow
def test_without_a_probe_a_login_that_hangs_is_only_slow(serve: Serve) -> None:
    assert look(serve(None), probe=False).reach is Reach.SLOW


@pytest.mark.slow
def test_a_process_that_was_held_up_does_not_blame_postgres(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HELD_UP_S", 0.9)

    assert look(serve(None)).reach is Reach.SLOW


def test_a_server_that_hangs_up_at_once_is_unreachable(serve: Serve) -> None:
    observation = look(serve(hang_up))

    assert observation.reach is Reach.UNREACHABLE
    assert observation.detail == "new connections are closed at once"


def test_nobody_at_the_port_is_unreachable(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    observer = PostgresObserver(f"postgresql://cloud_admin@localhost:{port}/postgres")
    try:
        observation = look(observer)
    finally:
        observer.close()

    assert observation.reach is Reach.UNREACHABLE
    assert f"no connection to port {port}" in observation.detail


@pytest.mark.parametrize(
    ("code", "reach"),
    [("57P03", Reach.RECOVERING), ("3D000", Reach.UNREACHABLE), ("28P01", Reach.UNREACHABLE)],
)
def test_a_refused_login_is_judged_by_its_code_in_any_language(serve: Serve, code: str, reach: Reach) -> None:
    observation = look(serve(refuse(code)))

    assert observation.reach is reach
    assert observation.detail.endswith("FATAL: der Server startet gerade")


def test_a_cancelled_look_ends_at_once_and_keeps_nothing(serve: Serve) -> None:
    observer = serve(None)
    cancellation = Cancellation()
    canceller = threading.Timer(0.1, cancellation.request)
    canceller.start()
    began = time.monotonic()

    with pytest.raises(CancelledError):
        look(observer, cancellation)

    canceller.join()
    assert time.monotonic() - began < 0.6
    assert observer._session is None


def test_passwords_are_in_no_detail(serve: Serve) -> None:
    details = [look(serve(how)).detail for how in (hang_up, refuse("28P01"), refuse("57P03"))]

    assert all(details)
    assert "canary" not in "".join(details)


def test_importing_the_actor_loads_nothing_heavy() -> None:
    script = (
        "import sys, compute_node.actors.activity_monitor.actor\n"
        "print(sorted({'asyncio', 'psycopg', 'ssl'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"

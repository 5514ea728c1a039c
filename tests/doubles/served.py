"""The real servers on loopback in front of a stub node, and clients that speak raw HTTP."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from compute_node.actors.http_facade.port import AppFactory
from compute_node.actors.http_facade.servers import WaitressServers
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.metrics import Metrics
from compute_node.http.app import create_apps
from compute_node.messages.lifecycle import GetReadiness, GetStatus, Readiness
from compute_node.messages.metrics import Family
from compute_node.messages.settings import NodeSettings
from compute_node.messages.spec import ComputeCtlConfig, KeySet
from typing_extensions import override

from doubles.node import CONFIGURE, RUNNING, StubSupervisor, node
from doubles.tokens import COMPUTE_ID, KEY, OWN

WAIT_S: Final = 20.0
"""Longer than any wait that ends."""
TOKEN: Final = f"Bearer {KEY.sign(OWN)}"


class WatchedMetrics(Metrics):
    """Numbers that a test can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    @override
    def set(self, family: Family, value: float, *labels: str) -> None:
        super().set(family, value, *labels)
        with self._changed:
            self._changed.notify_all()

    @override
    def add(self, family: Family, amount: float, *labels: str) -> None:
        super().add(family, amount, *labels)
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, family: Family, holds: Callable[[float], bool], *labels: str) -> None:
        with self._changed:
            found = self._changed.wait_for(lambda: holds(self.read(family).get(labels, 0.0)), WAIT_S)
        assert found, self.read(family)


def settings(**changes: Any) -> NodeSettings:
    """Settings with a key, on free ports of loopback."""
    defaults: dict[str, Any] = {
        "compute_id": COMPUTE_ID,
        "pgdata": "/nowhere",
        "connstr": "postgresql://cloud_admin@localhost/postgres",
        "postgres_bin": "/nowhere/postgres",
        "config": ComputeCtlConfig(KeySet((KEY.jwk,))),
        "external_http_port": 0,
        "internal_http_port": 0,
        "http_host": "127.0.0.1",
    }
    return NodeSettings(**{**defaults, **changes})


class Served:
    """Both servers at work on threads of their own, as the facade's jobs would run them."""

    def __init__(self, given: NodeSettings | None = None, apps: AppFactory | None = None) -> None:
        self.metrics = WatchedMetrics()
        self.supervisor = StubSupervisor()
        self.supervisor.answers[GetStatus] = RUNNING
        self.supervisor.answers[GetReadiness] = Readiness(ready=True, conditions=())
        made = node(self.supervisor, self.metrics)
        self.servers = WaitressServers(given or settings(), apps or (lambda: create_apps(made)), self.metrics)
        self.ports = self.servers.bind(Cancellation())
        self.failures: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._serve, args=(name,), name=f"test-{name}")
            for name in ("external", "internal")
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, name: str) -> None:
        try:
            self.servers.serve(name, Cancellation())
        except Exception as error:  # noqa: BLE001 - a test looks at it
            self.failures.append(error)

    def stop(self, drain_s: float) -> None:
        self.servers.stop(drain_s)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_S)
        assert not [thread for thread in self._threads if thread.is_alive()]

    @contextmanager
    def connection(self, *, internal: bool = False) -> "Iterator[Connection]":
        port = self.ports.internal if internal else self.ports.external
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
            yield Connection(sock)

    def get(
        self, path: str, *, internal: bool = False, headers: Mapping[str, str] | None = None
    ) -> "Response":
        with self.connection(internal=internal) as connection:
            connection.send("GET", path, headers=headers)
            return connection.response()


class Response:
    """A response as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(line.split(" ")[1])
        self.headers = {name.lower(): value for name, value in (text.split(": ", 1) for text in lines)}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One client's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        sent = {"Host": "node", "Authorization": TOKEN, **(headers or {})}
        if body:
            sent.setdefault("Content-Length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
        self.sock.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def configure(self) -> None:
        """Ask for a configuration; the stub keeps silent to it, so the request waits."""
        body = json.dumps(CONFIGURE).encode()
        self.send("POST", "/configure", headers={"Content-Type": "application/json"}, body=body)

    def response(self, *, bodiless: bool = False) -> Response:
        """Read one response; `bodiless` is one to HEAD. Raises AssertionError when the connection ends before it."""
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        response = Response(head, b"")
        length = 0 if bodiless else int(response.headers.get("content-length", "0"))
        while len(self._buffer) < length:
            self._receive()
        response.body, self._buffer = self._buffer[:length], self._buffer[length:]
        return response

    def ended(self) -> bool:
        """Wait until the server closes the connection; True when it had nothing more to say."""
        return self._buffer == b"" and self.sock.recv(4096) == b""

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        assert data, "the connection was closed before the response was complete"
        self._buffer += data

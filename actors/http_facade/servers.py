"""The real servers of the HttpFacade: sockets first, then the applications, then waitress on both."""

import logging
import socket
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from typing_extensions import override

from ...messages.failpoints import Failpoint
from ...messages.metrics import QUEUE_WARNINGS, Family
from ...messages.settings import NodeSettings
from ...postgres.loading import load_shared
from ..kit.jobs import Cancellation
from . import sockets
from .port import AppFactory, BindError, Ports, Servers
from .private import EXTERNAL, INTERNAL

if TYPE_CHECKING:
    from .web import WebServer

WAITING_THREADS: Final = 16
"""One for each request that may wait (`http/waiting.py`)."""
EXTERNAL_THREADS: Final = WAITING_THREADS + 8
INTERNAL_THREADS: Final = 8 + 4
"""One for each that may wait here, and some for the others."""
EXTERNAL_CONNECTIONS: Final = 256
INTERNAL_CONNECTIONS: Final = 64

log = logging.getLogger("compute_node.http_facade")


class CounterPort(Protocol):
    """Where queue warnings are counted."""

    def add(self, family: Family, amount: float, *labels: str) -> None:
        """Let one sample of a counter grow."""
        ...


class WaitressServers(Servers):
    """Binds by the settings and serves what `apps` makes. Ports may be 0: free ones are taken."""

    def __init__(self, settings: NodeSettings, apps: AppFactory, metrics: CounterPort) -> None:
        self._settings = settings
        self._apps = apps
        self._metrics = metrics
        self._lock = threading.Lock()
        self._servers: dict[str, WebServer] = {}
        self._drain_s: float | None = None

    @override
    def bind(self, cancellation: Cancellation) -> Ports:
        with ExitStack() as stack:
            log.info("Launching the external server")
            external = self._bind_external()
            _close_later(stack, external)
            log.info("Launching the internal server")
            internal = sockets.listen_on_loopback(INTERNAL, self._settings.internal_http_port)
            _close_later(stack, internal)
            cancellation.reach(Failpoint.HTTP_BOUND)
            self._make(external, internal)
            stack.pop_all()
        _announce(EXTERNAL, external)
        _announce(INTERNAL, internal)
        return Ports(external=external[0].getsockname()[1], internal=internal[0].getsockname()[1])

    @override
    def serve(self, server: str, cancellation: Cancellation) -> None:
        web = self._servers[server]
        cancellation.on_request(partial(web.stop, 0.0))
        cancellation.reach(Failpoint.HTTP_SERVING, cancellable=False)
        web.serve()

    @override
    def stop(self, drain_s: float) -> None:
        with self._lock:
            self._drain_s = drain_s if self._drain_s is None else min(drain_s, self._drain_s)
            servers = tuple(self._servers.values())
        for web in servers:
            web.stop(drain_s)

    @override
    def close(self, server: str) -> None:
        self._servers[server].close()

    def _bind_external(self) -> list[socket.socket]:
        settings = self._settings
        port = settings.external_http_port
        if not settings.open_api:
            return sockets.listen(EXTERNAL, settings.http_host, port)
        if settings.http_host is None:
            bound = sockets.listen_on_loopback(EXTERNAL, port)
        elif sockets.is_loopback(settings.http_host):
            bound = sockets.listen(EXTERNAL, settings.http_host, port)
        else:
            msg = (
                f"cannot serve the external HTTP API at {sockets.shown(settings.http_host, port)}: without keys "
                "the API of a --dev node is open, so it stays on loopback; give `compute_ctl_config.jwks` a key "
                "(`compute-node keygen` makes one), or leave the host out"
            )
            raise BindError(msg)
        log.warning(
            "the HTTP API is open: --dev with an empty key set asks nobody for a token (loopback only)"
        )
        return bound

    def _make(self, external: list[socket.socket], internal: list[socket.socket]) -> None:
        load_shared()
        from .web import WebServer

        external_app, internal_app = self._apps()
        made: dict[str, WebServer] = {}
        try:
            for name, app, bound, threads, connections in (
                (EXTERNAL, external_app, external, EXTERNAL_THREADS, EXTERNAL_CONNECTIONS),
                (INTERNAL, internal_app, internal, INTERNAL_THREADS, INTERNAL_CONNECTIONS),
            ):
                queued = partial(self._metrics.add, QUEUE_WARNINGS, 1, name)
                made[name] = WebServer(
                    name, app, bound, threads=threads, connections=connections, queued=queued
                )
        except BaseException:
            for web in made.values():
                web.close()
            raise
        with self._lock:
            self._servers = made
            drain_s = self._drain_s
        if drain_s is not None:
            for web in made.values():
                web.stop(drain_s)


def _close_later(stack: ExitStack, bound: list[socket.socket]) -> None:
    for sock in bound:
        stack.callback(sock.close)


def _announce(server: str, bound: list[socket.socket]) -> None:
    for sock in bound:
        address, port = sock.getsockname()[:2]
        log.info("compute_ctl %s HTTP server listening at %s", server, sockets.shown(address, port))

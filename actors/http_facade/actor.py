"""The HttpFacade: owns the lives of the two HTTP servers; requests pass it by (see `http/`)."""

import logging
from enum import Enum
from functools import partial
from typing import ClassVar, TypeAlias, assert_never

from typing_extensions import override

from ...messages.serving import ServingFailed, ServingStarted, ServingStopped, StartServing, StopServing
from ..kit.actor import Actor, Ref
from ..kit.jobs import Cancellation, describe
from .port import BindError, Servers
from .private import SERVERS, BindFailed, Bound, ServerEnded

HttpFacadeMessage: TypeAlias = StartServing | StopServing | Bound | BindFailed | ServerEnded
Outcome: TypeAlias = ServingStarted | ServingFailed | ServingStopped

log = logging.getLogger("compute_node.http_facade")


class _Phase(Enum):
    IDLE = "idle"
    BINDING = "binding"
    SERVING = "serving"
    STOPPING = "stopping"
    CLOSED = "closed"


class HttpFacade(Actor[HttpFacadeMessage]):
    """Binds, serves, drains and closes; `supervisor` hears how it went."""

    max_jobs: ClassVar[int] = len(SERVERS)

    def __init__(self, servers: Servers, supervisor: Ref[Outcome]) -> None:
        self._servers = servers
        self._supervisor = supervisor
        self._phase = _Phase.IDLE
        self._running: set[str] = set()

    @override
    def receive(self, message: HttpFacadeMessage) -> None:
        match message:
            case StartServing():
                self._start()
            case StopServing(drain_s):
                self._stop(drain_s)
            case Bound():
                self._bound(message)
            case BindFailed(error):
                self._bind_failed(error)
            case ServerEnded(server, error):
                self._ended(server, error)
            case _:
                assert_never(message)

    def _start(self) -> None:
        if self._phase is not _Phase.IDLE:
            log.warning("the HTTP servers are started once; a second start is ignored")
            return
        self._phase = _Phase.BINDING
        self.start_job("bind", self._bind, failed=_bind_failure)

    def _stop(self, drain_s: float) -> None:
        match self._phase:
            case _Phase.IDLE | _Phase.CLOSED:
                self._close()
            case _Phase.BINDING | _Phase.SERVING | _Phase.STOPPING:
                self._phase = _Phase.STOPPING
                self._servers.stop(drain_s)
            case _:
                assert_never(self._phase)

    def _bound(self, message: Bound) -> None:
        # A stop that came meanwhile is known to the servers: they close as soon as they are served.
        for server in SERVERS:
            self._running.add(server)
            self.start_job(
                f"serve {server}", partial(self._serve, server), failed=partial(self._serve_failed, server)
            )
        if self._phase is _Phase.BINDING:
            self._phase = _Phase.SERVING
            self._supervisor.tell(ServingStarted(message.external_port, message.internal_port))

    def _bind_failed(self, error: str) -> None:
        stopping = self._phase is _Phase.STOPPING
        self._phase = _Phase.CLOSED
        if stopping:
            self._close()
        else:
            self._supervisor.tell(ServingFailed(error))

    def _ended(self, server: str, error: str | None) -> None:
        self._running.discard(server)
        if self._phase is _Phase.SERVING:
            reason = error or "its loop ended"
            self._supervisor.tell(ServingFailed(f"the {server} HTTP server ended by itself: {reason}"))
        elif error is not None:
            log.warning("the %s HTTP server did not close in order: %s", server, error)
        if not self._running:
            stopping = self._phase is _Phase.STOPPING
            self._phase = _Phase.CLOSED
            if stopping:
                self._close()

    def _close(self) -> None:
        self._phase = _Phase.CLOSED
        self._supervisor.tell(ServingStopped())

    # --- Jobs

    def _bind(self, cancellation: Cancellation) -> Bound:
        ports = self._servers.bind(cancellation)
        return Bound(ports.external, ports.internal)

    def _serve(self, server: str, cancellation: Cancellation) -> ServerEnded:
        self._servers.serve(server, cancellation)
        return ServerEnded(server)

    def _serve_failed(self, server: str, error: Exception) -> ServerEnded:
        self._servers.close(server)  # a job that was cancelled in the queue has not served at all
        return ServerEnded(server, describe(error))


def _bind_failure(error: Exception) -> BindFailed:
    return BindFailed(str(error) if isinstance(error, BindError) else describe(error))

"""Servers that bind and serve nothing, for the HttpFacade under the simulated runtime."""

from compute_node.actors.http_facade.port import BindError, Ports, Servers
from compute_node.actors.http_facade.private import SERVERS
from compute_node.actors.kit.jobs import Blocked, Cancellation
from typing_extensions import override

PORTS = Ports(external=3080, internal=3081)


class FakeServers(Servers):
    """Serves until stopped. The binding takes as long as it is `held`; the other knobs are faults."""

    def __init__(self, *, taken: str | None = None, held: bool = False) -> None:
        self.taken = taken
        self.held = held
        self.crashes: dict[str, Exception] = {}
        self.ends_early: set[str] = set()
        self.bound = False
        self.serving: set[str] = set()
        self.closed: set[str] = set()
        self.drains: list[float] = []
        self.under_way = 0
        """Requests that keep a stopping server from closing."""

    @override
    def bind(self, cancellation: Cancellation) -> Ports:
        cancellation.check()
        if self.held:
            raise Blocked
        if self.taken is not None:
            raise BindError(self.taken)
        self.bound = True
        return PORTS

    @override
    def serve(self, server: str, cancellation: Cancellation) -> None:
        assert self.bound
        assert server not in self.closed
        self.serving.add(server)
        if server in self.crashes:
            self._close(server)
            raise self.crashes[server]
        if server not in self.ends_early and (not self.drains or self.under_way):
            raise Blocked
        self._close(server)

    @override
    def stop(self, drain_s: float) -> None:
        self.drains.append(drain_s)

    @override
    def close(self, server: str) -> None:
        self._close(server)

    @property
    def open(self) -> bool:
        """Whether anything is still bound."""
        return self.bound and self.closed != set(SERVERS)

    def _close(self, server: str) -> None:
        self.serving.discard(server)
        self.closed.add(server)

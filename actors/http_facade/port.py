"""What the HttpFacade's jobs do to the world, so that a double can stand in for sockets and servers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

from ..kit.jobs import Cancellation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment


class BindError(Exception):
    """A server could not be bound; the text names the port and says what to do."""


class Ports(msgspec.Struct, frozen=True):
    """The ports that were really bound."""

    external: int
    internal: int


class WebApp(Protocol):
    """A WSGI application that says how large a body it takes, and of whom."""

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse", /) -> "Iterable[bytes]":
        """Serve one request."""
        ...

    def body_limit(self, path: str, authorization: str | None) -> int:
        """Return how many bytes a body for this path may have, by that `Authorization` header."""
        ...


AppFactory: TypeAlias = Callable[[], tuple[WebApp, WebApp]]
"""Makes the external and the internal application; called late, because it imports heavy libraries."""


class Servers(Protocol):
    """The two servers. `bind` and `serve` may wait and belong in jobs; `stop` returns at once."""

    def bind(self, cancellation: Cancellation) -> Ports:
        """Bind both, so that connections are taken. Raises BindError; nothing stays bound then."""
        ...

    def serve(self, server: str, cancellation: Cancellation) -> None:
        """Serve requests of the `external` or `internal` server until it is stopped, then close it."""
        ...

    def stop(self, drain_s: float) -> None:
        """Let both end: no new connections, requests under way end for at most `drain_s` seconds.

        Said again, it can only shorten the time; said early, `serve` closes at once.
        """
        ...

    def close(self, server: str) -> None:
        """Close a server that is not, or no longer, served; the second time does nothing."""
        ...

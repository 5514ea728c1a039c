"""What the HttpFacade hears and says."""

from typing import Final

from .base import Message

REFUSAL_KEY: Final = "compute_node.refusal"
"""Key of the WSGI environment: a pair of status and reason, set by a server that did not read a request to
its end, so that the application answers it in its own form."""


FREE_BODY: Final = 64 * 1024
"""Bytes of a body that are read whoever sends it; for more there must be a token, and a route that takes it."""


class BrokenBodyError(Exception):
    """Raised by the iterator of a body that ends before its end: the client must see that there should be more."""


class StartServing(Message, frozen=True):
    """Bind both servers and serve."""


class StopServing(Message, frozen=True):
    """Refuse new connections, let requests under way end for at most `drain_s`, close."""

    drain_s: float


class ServingStarted(Message, frozen=True):
    """Both servers accept connections."""

    external_port: int
    internal_port: int


class ServingFailed(Message, frozen=True):
    """A server could not be bound, or ended by itself."""

    error: str


class ServingStopped(Message, frozen=True):
    """Both servers are closed."""

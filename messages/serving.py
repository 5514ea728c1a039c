"""What the HttpFacade hears and says."""

from .base import Message


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

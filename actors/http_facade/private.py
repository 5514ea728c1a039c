"""What the HttpFacade's jobs tell it."""

from typing import Final

from ...messages.base import Message

EXTERNAL: Final = "external"
INTERNAL: Final = "internal"
SERVERS: Final = (EXTERNAL, INTERNAL)


class Bound(Message, frozen=True):
    """Both servers are bound to these ports."""

    external_port: int
    internal_port: int


class BindFailed(Message, frozen=True):
    """Nothing is bound."""

    error: str


class ServerEnded(Message, frozen=True):
    """A server is closed; `error` is None when it was told to stop."""

    server: str
    error: str | None = None

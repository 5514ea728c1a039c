"""What the bridge's jobs tell it, and what it tells itself. `run` tells those of one start from another's."""

from ...messages.base import Message
from ...messages.vm import CgroupSeen
from .decisions import Summary
from .protocol import FromAgent, Offer, Unreadable


class Listening(Message, frozen=True):
    """Agents can connect."""

    address: str


class AgentOffered(Message, frozen=True):
    """Somebody has connected and says which versions it speaks."""

    connection: int
    address: str
    offer: Offer


class AgentSaid(Message, frozen=True):
    """A message has come."""

    connection: int
    said: FromAgent | Unreadable


class AgentGone(Message, frozen=True):
    """A connection is over."""

    connection: int
    why: str


class ServingEnded(Message, frozen=True):
    """Nobody listens any more; `error` is None when that was asked for."""

    run: int
    error: str | None = None


class CgroupFound(Message, frozen=True):
    """The memory is read there."""

    cgroup: CgroupSeen


class MemoryUsed(Message, frozen=True):
    """This much is in use."""

    summary: Summary


class WatchEnded(Message, frozen=True):
    """The memory is not watched any more; `error` is None when that was asked for."""

    run: int
    error: str | None = None


class Sized(Message, frozen=True):
    """The sizes are set for a machine of `total` bytes; `file_cache` is None where there is none."""

    work: int
    total: int
    file_cache: int | None


class SizingFailed(Message, frozen=True):
    """The sizes could not be set."""

    work: int
    error: str


class ServeAgain(Message, frozen=True):
    """The pause after a failure to listen is over."""

    run: int


class WatchAgain(Message, frozen=True):
    """The pause after a failure to read the memory is over."""

    run: int


class SettlingEnded(Message, frozen=True):
    """The agent of this connection may be asked for memory now, even if it has said nothing."""

    connection: int


class SetUpOverdue(Message, frozen=True):
    """The agent of this connection has waited long enough for its sizes."""

    connection: int


class PreparationEnded(Message, frozen=True):
    """Swap and quota are set, or why they are not."""

    operation: int
    error: str | None = None

"""How pageservers are asked for a lease, as the actor's job sees it; asking.py is the real one, tests have a fake."""

from typing import Protocol, TypeAlias

import msgspec

from ...messages.secret import Secret
from ...postgres.storage import Storage
from ..kit.jobs import Cancellation


class Wanted(msgspec.Struct, frozen=True):
    """What is to be held, and who is asked with which token."""

    storage: Storage
    lsn: str
    token: Secret | None = None


class Granted(msgspec.Struct, frozen=True, tag=True):
    """Everybody holds the LSN until then: milliseconds since the epoch, of whoever ends first."""

    valid_until_ms: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Somebody has removed, or may remove, what is older than the LSN."""

    error: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Somebody could not be asked, or gave no answer."""

    error: str


Answer: TypeAlias = Granted | Refused | Failed


class Pageservers(Protocol):
    """Called in jobs only."""

    def request(self, wanted: Wanted, cancellation: Cancellation) -> Answer:
        """Ask every server of every shard once. Ends within a second of a cancellation: raises CancelledError."""
        ...

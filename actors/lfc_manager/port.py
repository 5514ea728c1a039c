"""What the LfcManager needs of the outside: a cache, and somewhere to keep its state. Called in jobs."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import msgspec

from ..kit.jobs import Cancellation
from .places import Place


class Counts(msgspec.Struct, frozen=True):
    """How far a prewarm has come, in blocks; at its end `prewarmed` and `skipped` make the `total`."""

    total: int = 0
    prewarmed: int = 0
    skipped: int = 0
    life: str | None = None
    """Of the cache, at its end; see `Taken`."""


class Taken(msgspec.Struct, frozen=True):
    """The state of a cache; None when nothing is cached."""

    state: bytes | None
    life: str | None = None
    """Another one after each crash of a process of Postgres, which empties the cache; None when it cannot be told."""


Progress: TypeAlias = Callable[[Counts], None]


class StoreError(Exception):
    """The state was not read or written; `transient`: trying again may help."""

    def __init__(self, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


class CacheError(Exception):
    """The cache could not be asked or warmed; the text says what was being done."""


class NoModuleError(CacheError):
    """What is needed to ask or warm the cache is not installed; the text says what to install."""


class Store(Protocol):
    """Keeps states. Both methods end within a second of a cancellation, and raise CancelledError then."""

    def fetch(self, place: Place, cancellation: Cancellation) -> bytes | None:
        """Return what is kept there; None when there is nothing. Raises StoreError."""
        ...

    def put(self, place: Place, body: bytes, cancellation: Cancellation) -> None:
        """Replace what is kept there, whole or not at all. Raises StoreError."""
        ...


class Cache(Protocol):
    """A cache of the running Postgres. Both methods end within a second of a cancellation, in the server too."""

    def take(self, cancellation: Cancellation) -> Taken:
        """Return the state of what is cached. Raises CacheError, NoModuleError where only an operator can help."""
        ...

    def load(self, state: bytes, progress: Progress, cancellation: Cancellation) -> Counts:
        """Warm the cache from a state that `take` gave, here or elsewhere. Raises CacheError and StateError.

        A cache that was emptied meanwhile is a CacheError.
        """
        ...

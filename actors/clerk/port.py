"""What the Clerk needs of the outside: a Postgres that answers, and something that dumps."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from ...messages.clerk import DumpSchema, Query, QueryAnswer
from ..kit.jobs import Cancellation


class Dump(msgspec.Struct, frozen=True):
    """How a dump ended, its stream too; without an `error` it is whole. `missing`: there is no such database."""

    size: int = 0
    error: str | None = None
    missing: bool = False


class CatalogAccess(Protocol):
    """Called in jobs. Both end within a second of a cancellation, and raise CancelledError then."""

    def answer(self, query: Query, cancellation: Cancellation) -> QueryAnswer:
        """Carry out what was asked for, within the limit of its kind."""
        ...

    def dump(self, request: DumpSchema, begun: Callable[[], None], cancellation: Cancellation) -> Dump:
        """Dump into the stream of the request; `begun` is called when there is something in it.

        Ends with all that it started when nobody reads the stream any more.
        """
        ...

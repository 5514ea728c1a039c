"""A catalog without Postgres: it answers what a test says, holds on, or breaks, and dumps what it is given."""

from collections.abc import Callable

from compute_node.actors.clerk.port import CatalogAccess, Dump
from compute_node.actors.kit.jobs import Blocked, Cancellation
from compute_node.messages.clerk import Done, DumpSchema, Query, QueryAnswer
from compute_node.messages.stream import StreamClosedError
from typing_extensions import override


class FakeCatalog(CatalogAccess):
    """The faults: `held`, `broken`, `breaks_after` so many pieces of a dump."""

    def __init__(self) -> None:
        self.answers: dict[type[Query], QueryAnswer] = {}
        self.pieces: dict[str, tuple[bytes, ...]] = {}
        """The dumps there are, by database."""
        self.held = False
        """Jobs do not come to an end until this is False or they are cancelled."""
        self.broken: Exception | None = None
        self.breaks_after: int | None = None
        self.asked: list[Query] = []

    @override
    def answer(self, query: Query, cancellation: Cancellation) -> QueryAnswer:
        self._begin(cancellation)
        self.asked.append(query)
        return self.answers.get(type(query), Done())

    @override
    def dump(self, request: DumpSchema, begun: Callable[[], None], cancellation: Cancellation) -> Dump:
        self._begin(cancellation)
        if request.database not in self.pieces:
            return self._failed(request, Dump(error="database does not exist", missing=True))
        size = 0
        for number, piece in enumerate(self.pieces[request.database]):
            if number == self.breaks_after:
                return self._failed(request, Dump(size, "pg_dump was killed"))
            try:
                request.stream.write(piece, 0)
            except StreamClosedError:
                return Dump(size, "the client left")
            if not size:
                begun()
            size += len(piece)
        request.stream.end()
        return Dump(size)

    def _begin(self, cancellation: Cancellation) -> None:
        cancellation.check()
        if self.held:
            raise Blocked
        if self.broken is not None:
            raise self.broken

    @staticmethod
    def _failed(request: DumpSchema, dump: Dump) -> Dump:
        request.stream.fail(dump.error or "")
        return dump

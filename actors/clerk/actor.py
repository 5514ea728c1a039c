"""The Clerk: answers single requests about the catalog, each by a job, a few at a time.

Apart from the Configurator, so that neither a long dump nor a lock holds up the application of a spec.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias, assert_never

from typing_extensions import override

from ...messages.base import Message
from ...messages.clerk import (
    QUEUE_LIMIT_S,
    CheckWritability,
    ClerkRequest,
    CollectInsights,
    Done,
    DumpBegun,
    DumpSchema,
    InstallExtension,
    ListCatalog,
    NotDone,
    Overloaded,
    Query,
    QueryAnswer,
    SetGrants,
    Writable,
)
from ...messages.metrics import CATALOG_REQUESTS, DUMPED_BYTES
from ..kit.actor import Actor, Replier
from ..kit.jobs import Cancellation, CancelledError, describe
from .port import CatalogAccess, Dump

MAX_QUERIES: Final = 2
"""Connections at a time; who waits for a lock must not hold up all others."""
MAX_DUMPS: Final = 2
BROKEN_OFF: Final = "it was broken off because the node is ending"

log = logging.getLogger("compute_node.clerk")


class Answered(Message, frozen=True):
    """Tells the Clerk what its job has to say to whoever asked."""

    number: int
    answer: QueryAnswer


class DumpStarted(Message, frozen=True):
    """Tells the Clerk that a dump has its first bytes."""

    number: int


class DumpEnded(Message, frozen=True):
    """Tells the Clerk how a dump ended."""

    number: int
    size: int = 0
    error: str | None = None
    missing: bool = False


Heard: TypeAlias = ClerkRequest | Answered | DumpStarted | DumpEnded


class Clerk(Actor[Heard]):
    """Answers when a job has ended; a dump is answered when it has begun, and its stream says the rest."""

    max_jobs: ClassVar[int] = MAX_QUERIES + MAX_DUMPS

    def __init__(self, access: CatalogAccess) -> None:
        self._access = access
        self._waiting: dict[int, Replier[Any]] = {}
        self._dumps: dict[int, tuple[str, float]] = {}
        """Database and beginning of those that are under way."""
        self._count = 0

    @override
    def receive(self, message: Heard) -> None:
        match message:
            case CheckWritability() | ListCatalog() | CollectInsights() | InstallExtension() | SetGrants():
                self._query(message)
            case DumpSchema():
                self._dump(message)
            case Answered(number, answer):
                self._answered(number, answer)
            case DumpStarted(number):
                self._answer(number, DumpBegun())
            case DumpEnded():
                self._dump_ended(message)
            case _:
                assert_never(message)

    # --- Queries

    def _query(self, query: Query) -> None:
        number = self._keep(query)
        self.start_job(
            f"answer {type(query).__name__}",
            partial(_answer, self._access, number, query, self.clock.now() + QUEUE_LIMIT_S),
            failed=partial(_not_answered, number),
        )

    def _answered(self, number: int, answer: QueryAnswer) -> None:
        replier = self._waiting.get(number)
        if replier is None:
            return
        match replier.request, answer:
            case InstallExtension(database, extension, version), Done():
                log.info("extension %r has version %r in database %r", extension, version, database)
            case SetGrants(database, schema, _, role), Done():
                log.info(
                    "role %r has what it was granted on schema %r in database %r", role, schema, database
                )
            case _, Writable(disk_full=True):
                log.warning("Tenant disk is full")
        self._answer(number, answer)

    # --- Dumps

    def _dump(self, request: DumpSchema) -> None:
        if len(self._dumps) >= MAX_DUMPS:
            error = f"{MAX_DUMPS} dumps are under way already; try again later"
            self.metrics.add(CATALOG_REQUESTS, 1, DumpSchema.__name__, "refused")
            self.reply(request, Overloaded(error))
            return
        number = self._keep(request)
        self._dumps[number] = (request.database, self.clock.now())
        started: Callable[[], None] = partial(self.myself.tell, DumpStarted(number))
        self.start_job(
            "dump a schema",
            partial(_dump, self._access, number, request, started),
            failed=partial(_not_dumped, number, request),
        )

    def _dump_ended(self, outcome: DumpEnded) -> None:
        database, began_s = self._dumps.pop(outcome.number)
        took_ms = round((self.clock.now() - began_s) * 1000)
        self.metrics.add(DUMPED_BYTES, outcome.size)
        if outcome.number in self._waiting:
            error = outcome.error or "it was empty"
            self._answer(outcome.number, NotDone(error, missing=outcome.missing))
        elif outcome.error is None:
            log.info("the schema of database %r: %d bytes in %d ms", database, outcome.size, took_ms)
        else:
            log.error(
                "the dump of the schema of database %r ended after %d bytes, and is not whole: %s",
                database,
                outcome.size,
                outcome.error,
            )

    # --- Who waits

    def _keep(self, request: ClerkRequest) -> int:
        self._count += 1
        self._waiting[self._count] = self.defer(request)
        return self._count

    def _answer(self, number: int, answer: QueryAnswer | DumpBegun) -> None:
        replier = self._waiting.pop(number, None)
        if replier is None:
            return
        match answer:
            case Overloaded():
                result = "refused"
            case NotDone():
                result = "failed"
            case _:
                result = "done"
        self.metrics.add(CATALOG_REQUESTS, 1, type(replier.request).__name__, result)
        replier.answer(answer)


def _answer(
    access: CatalogAccess, number: int, query: Query, begin_by_s: float, cancellation: Cancellation
) -> Answered:
    if cancellation.now() > begin_by_s:
        error = f"it was not begun within {QUEUE_LIMIT_S:g} s, because others take long; try again later"
        return Answered(number, Overloaded(error))
    return Answered(number, access.answer(query, cancellation))


def _not_answered(number: int, error: Exception) -> Answered:
    return Answered(number, NotDone(_reason(error, "a request was not answered")))


def _dump(
    access: CatalogAccess,
    number: int,
    request: DumpSchema,
    started: Callable[[], None],
    cancellation: Cancellation,
) -> DumpEnded:
    dump = access.dump(request, started, cancellation)
    return _dumped(number, dump)


def _not_dumped(number: int, request: DumpSchema, error: Exception) -> DumpEnded:
    reason = _reason(error, "a dump failed")
    request.stream.fail(reason)
    return DumpEnded(number, error=reason)


def _dumped(number: int, dump: Dump) -> DumpEnded:
    return DumpEnded(number, dump.size, dump.error, dump.missing)


def _reason(error: Exception, what: str) -> str:
    if isinstance(error, CancelledError):
        return BROKEN_OFF
    log.error("%s in an unexpected way", what, exc_info=error)
    return describe(error)

"""What the Configurator needs of the outside: something that administers the running Postgres."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ...messages.spec import ComputeSpec
from ..kit.jobs import Cancellation
from . import operations as op
from .model import Catalog, DatabaseFacts
from .phases import Visit


class Order(msgspec.Struct, frozen=True):
    """What is to be applied, and how."""

    spec: ComputeSpec
    starting: bool
    privileged_role: str
    seen: frozenset[int] = frozenset()


class Report(msgspec.Struct, frozen=True):
    """How an application ended; `errors` is empty when the catalog is in the described state."""

    statements: int = 0
    """Operations that were carried out."""
    visited: int = 0
    """Databases that were connected to, besides the maintenance database."""
    seen: frozenset[int] = frozenset()
    """The databases that need no visit the next time, by oid."""
    errors: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True):
    """Something that could not be done, and why."""

    action: str
    reason: str

    def describe(self) -> str:
        """Put it into one line."""
        return f"cannot {self.action}: {self.reason}"


class Outcome(msgspec.Struct, frozen=True):
    """What became of a batch of operations."""

    done: int = 0
    failures: tuple[Failure, ...] = ()


class VisitOutcome(msgspec.Struct, frozen=True):
    """What became of a visit; `oid` is 0 when the database could not be looked into."""

    visit: Visit
    oid: int = 0
    done: int = 0
    failures: tuple[Failure, ...] = ()


DecideVisit = Callable[[Visit, DatabaseFacts], Sequence[op.Visiting]]


class AdministrationError(Exception):
    """The administration as a whole cannot go on; the text says what was being done and what to do."""


class Session(Protocol):
    """An open administration of one Postgres. Failures of single operations are values, not exceptions."""

    @property
    def administrator(self) -> str:
        """The superuser that connects."""
        ...

    @property
    def system_database(self) -> str:
        """The database of the maintenance connection."""
        ...

    async def snapshot(self, departing: frozenset[str]) -> Catalog:
        """Read the catalog, with the dependents of these roles. Raises AdministrationError."""
        ...

    async def execute(self, operations: Sequence[op.Maintaining]) -> Outcome:
        """Carry out the operations of one phase; one that fails does not stop the others.

        Raises AdministrationError when the connection is lost.
        """
        ...

    async def visit(self, visits: Sequence[Visit], decide: DecideVisit) -> tuple[VisitOutcome, ...]:
        """Look into databases, at most as many at a time as is allowed, and carry out what is decided."""
        ...


class Administration(Protocol):
    """Applies specs to the running Postgres."""

    def apply(self, order: Order, cancellation: Cancellation) -> Report:
        """Apply a spec, on the calling thread.

        Raises AdministrationError, and CancelledError within a second of the request.
        """
        ...

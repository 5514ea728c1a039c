"""What applying a spec needs of an open administration, and how it says what became of each step."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from . import operations as op
from .model import Catalog, DatabaseFacts
from .plans import Visit


class Failure(msgspec.Struct, frozen=True):
    """Something that could not be done, and why."""

    action: str
    reason: str
    spoils: tuple[str, ...] = ()
    """The objects that are left alone from then on."""
    renamed: tuple[str, ...] = ()
    """The objects whose names do not mean what was planned."""

    def describe(self) -> str:
        """Put it into one line."""
        return f"cannot {self.action}: {self.reason}"


def failure_of(operation: op.AnyOperation, reason: str) -> Failure:
    """Say that this could not be done."""
    return Failure(operation.describe(), reason, operation.spoils, operation.renamed)


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

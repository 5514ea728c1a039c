"""What the Configurator needs of the outside: something that administers the running Postgres."""

from typing import Protocol

import msgspec

from ...messages.planning import CatalogPlanned
from ...messages.spec import ComputeSpec
from ..kit.jobs import Cancellation
from .extensions import Extension


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
    subscribers: bool = True
    """Whether logical subscribers may work: none that the branch has inherited is left."""
    drifted: int = 0
    """Databases whose collation version is not this machine's."""


class MigrationReport(msgspec.Struct, frozen=True):
    """How far the migrations have come; with `failed` and `error` that one went wrong and those after it wait."""

    done: int
    known: int
    failed: int | None = None
    error: str = ""


class AdministrationError(Exception):
    """The administration as a whole cannot go on; the text says what was being done and what to do."""


class Administration(Protocol):
    """Applies specs to the running Postgres."""

    def load(self) -> None:
        """Load what applying takes, while there is time for it."""
        ...

    def apply(self, order: Order, cancellation: Cancellation) -> Report:
        """Apply a spec, on the calling thread.

        Raises AdministrationError, and CancelledError within a second of the request.
        """
        ...

    def plan(self, order: Order, cancellation: Cancellation) -> CatalogPlanned:
        """Say what `apply` would do, and change nothing; else as `apply`."""
        ...

    def checkpoint(self, limit_s: float, cancellation: Cancellation) -> None:
        """Write a checkpoint if it is worth it, in at most that many seconds. Raises AdministrationError."""
        ...

    def migrate(self, privileged_role: str, cancellation: Cancellation) -> MigrationReport:
        """Run the migrations that are due; the first one that fails is the last. Raises as `apply` does."""
        ...

    def installed_extensions(self, cancellation: Cancellation) -> tuple[Extension, ...]:
        """Return the extensions of all databases that can be looked into. Raises as `apply` does."""
        ...

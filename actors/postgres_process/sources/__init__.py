"""Where a PGDATA comes from: one module for each source, chosen by `--source`."""

from typing import Protocol

from ....messages.postgres import PgdataStages
from ....messages.settings import SourceName
from ....messages.spec import ComputeSpec
from ...kit.jobs import Cancellation


class SourceError(Exception):
    """A source could not deliver; the message says why and what to do. `passing`: another attempt may go better."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Source(Protocol):
    """Builds a data directory."""

    name: SourceName

    def build(
        self, target: str, spec: ComputeSpec, cancellation: Cancellation, *, sync: bool
    ) -> PgdataStages:
        """Make a complete data directory at `target`, which does not exist yet; with `sync` a durable one.

        What is half-made is removed by the caller. Raises SourceError and CancelledError, and leaves no child.
        """
        ...

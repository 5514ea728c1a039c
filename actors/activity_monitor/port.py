"""What the ActivityMonitor needs of the world: one look at Postgres."""

from typing import Protocol

from ..kit.jobs import Cancellation
from .reach import Observation


class Observer(Protocol):
    """Holds one connection from look to look. Called by one job at a time."""

    def observe(
        self, generation: int, *, experimental: bool, probe: bool, cancellation: Cancellation
    ) -> Observation:
        """Look at Postgres, in about a second at most; trouble with Postgres is an observation, no exception.

        A new `generation` is another server: the connection is made anew. `probe` also makes a new
        connection to the port. Raises CancelledError, and then holds no connection.
        """
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...

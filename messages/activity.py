"""What the ActivityMonitor hears and says."""

from .base import Message


class StartMonitoring(Message, frozen=True):
    """Postgres is running: watch it. `experimental` also counts sessions and active time."""

    experimental: bool


class StopMonitoring(Message, frozen=True):
    """A stop is planned: end in silence, counting no downtime."""


class ActivityObserved(Message, frozen=True):
    """Users were active, last at `at_s` (seconds since the epoch); it only ever grows.

    `reason` says what keeps the node awake, for people who read the journal.
    """

    at_s: float
    reason: str = ""

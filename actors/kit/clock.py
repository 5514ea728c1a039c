"""Time, as actors see it."""

import time
from typing import Protocol

from typing_extensions import override


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Return seconds on the monotonic clock; the only source of durations."""
        ...

    def wall(self) -> float:
        """Return seconds since the epoch; only ever displayed."""
        ...


class SystemClock(Clock):
    """The clocks of the machine."""

    @override
    def now(self) -> float:
        return time.monotonic()

    @override
    def wall(self) -> float:
        return time.time()

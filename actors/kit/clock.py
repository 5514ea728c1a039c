"""Time, as actors see it."""

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from typing_extensions import override

TICK_S: Final = 0.5
"""How often the runtime of production looks at its clock, whatever else happens."""
GAP_S: Final = 1.5
"""When nobody got to look for longer than this, the process stood still; a busy machine's delays are shorter."""


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


class AwakeClock(SystemClock):
    """The monotonic clock without the gaps in which this process did not run: stopped, frozen, starved.

    Deadlines so get a grace of as long as the gap, instead of all expiring at the thaw. Somebody must call
    `now` at least every TICK_S; the first caller after a gap finds it.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen = monotonic()
        self._frozen_s = 0.0

    @property
    def frozen_s(self) -> float:
        """How long the process has stood still so far, in all."""
        return self._frozen_s

    @override
    def now(self) -> float:
        with self._lock:  # read inside of it: what was seen last then never is newer than what is read
            seen = self._monotonic()
            if seen - self._seen > GAP_S:
                self._frozen_s += seen - self._seen - TICK_S
            self._seen = seen
            return seen - self._frozen_s

"""How large the file cache may be, when more memory is needed, and when less will do. Pure.

Source: the `protocols` reference, 8.5 to 8.8. Sizes are bytes, times are seconds of the monotonic clock.
"""

from collections.abc import Collection
from typing import Final

import msgspec

MIB: Final = 1 << 20

SYSTEM_BUFFER: Final = 100 * MIB
"""The kernel's share: what the agent grants, less this, is what the machine reports."""
MINIMUM_OVERHEAD: Final = 0.15
"""The share of the memory that anonymous memory must leave free."""
DOWNSCALE_BUFFER: Final = 100 * MIB
"""What must be left between the memory in use and the threshold after a downscale."""

POLL_S: Final = 0.1
SAMPLES: Final = 5
"""How many of the last samples an average is made of."""
FRESH_S: Final = 5.0
"""Older averages are no ground for a downscale, nor for a request."""
REQUEST_PAUSE_S: Final = 1.0
"""Between two requests for more memory, whoever they are sent to."""
SETTLING_S: Final = 1.0
"""How long an agent that has said nothing yet is spared requests: it may not have registered the connection."""

TELL_EVERY_S: Final = 1.0
TELL_STEP: Final = 16 * MIB
"""An average is told at least that often, and when it has changed by that much."""

LOG_EVERY: Final = 20
LOG_EVERY_S: Final = 15.0
LOG_STEP: Final = 128 * MIB
LOG_SHARE: Final = 8
"""Every 20 samples they are logged: after 15 s, or when one differs from the last by 128 MiB or an eighth."""


class FileCacheRule(msgspec.Struct, frozen=True):
    """How the file cache is sized. Raises ValueError for numbers that make no sense together."""

    fraction: float = 0.75
    """At most this share of the memory."""
    beside: int = 256 * MIB
    """What everything else needs; without more than this there is no cache."""
    spread: float = 0.1
    """How much more the cache takes than its size, as a share of it."""

    def __post_init__(self) -> None:
        """Refuse a cache that would take all of the memory, or more."""
        problem = None
        if not 0 < self.fraction < 1:
            problem = f"the fraction must be between 0 and 1, not {self.fraction:g}"
        elif self.spread < 0:
            problem = f"the spread must not be negative, as {self.spread:g} is"
        elif self.beside <= 0:
            problem = f"some memory must be left beside the cache, not {self.beside}"
        elif self.fraction * (1 + self.spread) >= 1:
            problem = (
                f"a fraction of {self.fraction:g} with a spread of {self.spread:g} takes all of the memory"
            )
        if problem is not None:
            raise ValueError(problem)

    def size(self, total: int) -> int:
        """Return the size for that much memory, in whole MiB; never more than the memory that is left for it."""
        if total <= self.beside:
            return 0
        size = min(int((total - self.beside) / (1 + self.spread)), int(total * self.fraction))
        return size // MIB * MIB


FILE_CACHE: Final = FileCacheRule()


def threshold(total: int) -> int:
    """Return how much anonymous memory there may be before more is asked for."""
    return int(total * (1 - MINIMUM_OVERHEAD))


def usable(granted: int) -> int:
    """Return what is left of a machine's memory once the kernel has taken its share."""
    return max(0, granted - SYSTEM_BUFFER)


# --- What is in use --------------------------------------------------------------------------------------


class Summary(msgspec.Struct, frozen=True):
    """The average of the last samples, at most SAMPLES of them; `count` 0: there was none yet."""

    at_s: float
    average: int = 0
    count: int = 0

    def is_fresh(self, now_s: float) -> bool:
        """Whether it still says something about now."""
        return now_s - self.at_s <= FRESH_S


def summarise(samples: Collection[int], at_s: float) -> Summary:
    """Average the last samples, at most SAMPLES of them, at the time of the last one."""
    count = len(samples)
    return Summary(at_s, sum(samples) // count if count else 0, count)


class Pressure(msgspec.Struct, frozen=True):
    """With so much in use more memory is asked for, though not before `from_s`."""

    threshold: int
    from_s: float = 0.0


def is_worth_telling(told: Summary | None, now: Summary, limit: int | None) -> bool:
    """Whether the bridge must hear of an average: there is pressure, or news, or it was long ago.

    `limit` is the threshold, where more can be asked for; a bridge that hears of each of ten samples a second would
    have no other journal.
    """
    return (
        told is None
        or now.count < SAMPLES
        or now.at_s - told.at_s >= TELL_EVERY_S
        or abs(now.average - told.average) >= TELL_STEP
        or (limit is not None and now.average >= limit)
    )


class Logged(msgspec.Struct, frozen=True):
    """What the log has of the samples: when it got some last, and the last of those."""

    at_s: float | None = None
    last: int = 0

    def take(self, samples: Collection[int], at_s: float) -> "Logged | None":
        """Judge the last LOG_EVERY samples, oldest first; return what is logged with them, None where they are not."""
        due = self.at_s is None or at_s - self.at_s > LOG_EVERY_S
        if due or any(_differs(sample, self.last) for sample in samples):
            *_, last = samples
            return Logged(at_s, last)
        return None


def _differs(sample: int, last: int) -> bool:
    difference = abs(sample - last)
    return difference >= LOG_STEP or (difference > 0 and difference * LOG_SHARE >= min(sample, last))


# --- What is decided -------------------------------------------------------------------------------------


class Denial(msgspec.Struct, frozen=True):
    """A downscale must not be, for now."""

    reason: str


class Stale(msgspec.Struct, frozen=True):
    """Whether a downscale may be cannot be told."""

    reason: str


def judge_downscale(target: int, memory: Summary, now_s: float) -> Denial | Stale | None:
    """Say why the machine must not shrink to `target` bytes (usable ones); None when it may."""
    if not memory.is_fresh(now_s):
        age = f"{now_s - memory.at_s:.1f} s"
        last = f"the last sample is {age} old" if memory.count else f"there has been no sample for {age}"
        return Stale(f"the memory in use is not known: {last} (limit {FRESH_S:g} s)")
    if memory.count <= 1:
        return Denial("haven't received enough cgroup memory stats yet")
    after = threshold(target)
    if after < memory.average + DOWNSCALE_BUFFER:
        return Denial(
            f"calculated memory threshold too low: {mib(after)} MiB (new threshold) < {mib(memory.average)} MiB "
            f"(current usage) + {mib(DOWNSCALE_BUFFER)} MiB (downscale buffer)"
        )
    return None


class Asking(msgspec.Struct, frozen=True):
    """When more memory was asked for last, and since when there is an agent to be asked."""

    connected_s: float
    has_spoken: bool
    asked_s: float | None


def should_ask(memory: Summary, limit: int, asking: Asking, now_s: float) -> bool:
    """Whether to ask the agent for more memory now."""
    return (
        memory.count > 0
        and memory.is_fresh(now_s)
        and memory.average >= limit
        and (asking.asked_s is None or now_s - asking.asked_s >= REQUEST_PAUSE_S)
        and (asking.has_spoken or now_s - asking.connected_s >= SETTLING_S)
    )


def mib(size: int) -> str:
    """Write bytes as MiB, a decimal fraction without trailing zeros."""
    return repr(size / MIB).removesuffix(".0")

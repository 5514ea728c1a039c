"""How long Postgres was down, by the monotonic clock. Pure.

The time between two looks counts as down when the second of them finds Postgres down, so the total is the
sum over all outages of «last seen down» minus «last seen up».
"""

from typing import Final

import msgspec

MS: Final = 1000.0


class Downtime(msgspec.Struct, frozen=True):
    """The account; times in seconds on the monotonic clock."""

    up_s: float
    """When Postgres was last seen up, or when watching began."""
    counted_s: float
    """Up to where time is in the account."""
    current_ms: float = 0.0
    total_ms: float = 0.0


def begin(now_s: float, total_ms: float = 0.0) -> Downtime:
    """Start watching: what was before this moment is nobody's downtime."""
    return Downtime(up_s=now_s, counted_s=now_s, total_ms=total_ms)


def seen_up(account: Downtime, now_s: float) -> Downtime:
    """Postgres is up: no outage is under way."""
    now_s = max(now_s, account.counted_s)
    return Downtime(up_s=now_s, counted_s=now_s, total_ms=account.total_ms)


def seen_down(account: Downtime, now_s: float) -> Downtime:
    """Postgres is down: the time since the last look was downtime."""
    now_s = max(now_s, account.counted_s)
    return Downtime(
        up_s=account.up_s,
        counted_s=now_s,
        current_ms=(now_s - account.up_s) * MS,
        total_ms=account.total_ms + (now_s - account.counted_s) * MS,
    )

"""What counts as activity: what Postgres shows of its sessions and workers -> when users were last active.

Pure. docs/activity.md has the table for people.
"""

from typing import Final

import msgspec

IDLE: Final = "idle"
NOT_YET_A_SESSION: Final = frozenset({"starting"})
"""States of a client that has not logged in (Postgres 18 shows them); a refused login is no activity."""


class Sessions(msgspec.Struct, frozen=True):
    """Client backends that are alike: `own` are those of the user of `-C`, never the monitor itself."""

    own: bool
    state: str | None
    count: int
    changed_at_s: float | None
    """The latest change of state, in seconds since the epoch."""


class Totals(msgspec.Struct, frozen=True):
    """Counters over all databases but the three system ones."""

    sessions: int
    active_ms: float


class Readings(msgspec.Struct, frozen=True):
    """What one look at Postgres showed; `totals` only in the experimental mode."""

    sessions: tuple[Sessions, ...] = ()
    walsenders: int = 0
    """Without those of walproposer."""
    subscriptions: int = 0
    """Those with a running worker."""
    autovacuum_workers: int = 0
    totals: Totals | None = None
    server_began_s: float | None = None
    """When the processes of this server were started (epoch): anew after each crash of one of them."""


class Activity(msgspec.Struct, frozen=True):
    """Users were active at `at_s` (seconds since the epoch), by `reason`."""

    at_s: float
    reason: str


class Memory(msgspec.Struct, frozen=True):
    """What later looks are compared with."""

    last: Activity | None = None
    totals: Totals | None = None
    future_s: float | None = None
    """The latest idle time that was ahead of our clock; it counted once, as the moment it was seen."""


def remember(memory: Memory, readings: Readings, now_s: float) -> Memory:
    """Take one look into account; `last` differs afterwards exactly when activity was seen, and only grows."""
    seen = activity(memory, readings, now_s)
    if seen is not None and memory.last is not None and seen.at_s <= memory.last.at_s:
        seen = None
    future = _latest_idle(readings)
    return Memory(
        last=memory.last if seen is None else seen,
        totals=readings.totals,
        future_s=future if future is not None and future > now_s else memory.future_s,
    )


def activity(memory: Memory, readings: Readings, now_s: float) -> Activity | None:
    """Go through the five checks in order; the first that finds activity says when it was."""
    if memory.totals is not None and readings.totals is not None and memory.totals != readings.totals:
        return Activity(now_s, "sessions came or were active since the last look")
    for sessions in _of_users(readings):
        if sessions.state != IDLE:
            return Activity(now_s, f"a session is {sessions.state}")
    idle = _idle_since(memory, readings, now_s)
    if idle is not None and (memory.last is None or idle > memory.last.at_s):
        return Activity(idle, "a session became idle")
    for count, what in (
        (readings.walsenders, "a replication connection"),
        (readings.subscriptions, "a logical subscription"),
        (readings.autovacuum_workers, "an autovacuum worker"),
    ):
        if count > 0:
            return Activity(now_s, what)
    return None


def _of_users(readings: Readings) -> tuple[Sessions, ...]:
    return tuple(
        sessions
        for sessions in readings.sessions
        if not sessions.own
        and sessions.count > 0
        and sessions.state is not None
        and sessions.state not in NOT_YET_A_SESSION
    )


def _latest_idle(readings: Readings) -> float | None:
    return max(
        (s.changed_at_s for s in _of_users(readings) if s.state == IDLE and s.changed_at_s is not None),
        default=None,
    )


def _idle_since(memory: Memory, readings: Readings, now_s: float) -> float | None:
    """Return when the last session became idle, by our clock.

    A clock that was set back leaves idle times in the future: each counts as now once, not at every look.
    """
    latest = _latest_idle(readings)
    if latest is None or latest <= now_s:
        return latest
    return now_s if memory.future_s is None or latest > memory.future_s else None

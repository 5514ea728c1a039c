"""Is the disk full? What the file systems of PGDATA and of its log show, and what Postgres says; pure but for `look`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

MB: Final = 1 << 20
FULL_BYTES: Final = 16 * MB
"""With less left, Postgres cannot add a segment to its write-ahead log, and ends when it must."""
ROOM_BYTES: Final = 32 * MB
"""What must be free again before the disk counts as usable: a recovery needs room of its own."""
HOLD_S: Final = 10.0
"""How long the word of Postgres counts: a quota, or a file that was too large, shows in no number."""

PHRASES: Final = ("No space left on device", "Disk quota exceeded", "Check free disk space")
REMEDY: Final = "free some space or enlarge the volume"


class Area(msgspec.Struct, frozen=True):
    """One file system that Postgres writes to, and the bytes that it may still take of it."""

    name: str
    path: str
    free: int


class Fullness(msgspec.Struct, frozen=True):
    """What is known: `detail` says what is full, None that nothing is; `said_s` when Postgres last said so."""

    detail: str | None = None
    said_s: float | None = None


def look(pgdata: str) -> tuple[Area, ...]:
    """Ask the file systems of PGDATA and, where that is another one, of `pg_wal`. Raises OSError."""
    found: dict[int, Area] = {}
    for name, path in (("pgdata", pgdata), ("pg_wal", f"{pgdata}/pg_wal")):
        where = Path(path).resolve()
        while not where.exists():
            where = where.parent
        device = where.stat().st_dev
        if device not in found:
            status = os.statvfs(where)
            found[device] = Area(name, str(where), status.f_bavail * status.f_frsize)
    return tuple(found.values())


def judge(before: Fullness, areas: Iterable[Area], now_s: float) -> Fullness:
    """Take a look in. A disk that was full needs more room than one that becomes it."""
    needed = FULL_BYTES if before.detail is None else ROOM_BYTES
    full = [area for area in areas if area.free < needed]
    said_s = before.said_s
    if said_s is not None and now_s - said_s > HOLD_S:
        said_s = None
    if full:
        return Fullness(f"{describe(full)}: {REMEDY}", said_s)
    return Fullness(None if said_s is None else f"Postgres was refused space: {REMEDY}", said_s)


def describe(areas: Iterable[Area]) -> str:
    """Say how much is left where."""
    return ", ".join(f"{area.path} has {area.free // MB} MB left" for area in areas)


def is_about_space(text: str) -> bool:
    """Whether a message tells of a full disk."""
    return any(phrase in text for phrase in PHRASES)


def blamed(text: str, areas: Iterable[Area]) -> str:
    """Add to an error that tells of a full disk what is known of the disk, and what to do."""
    if not is_about_space(text):
        return text
    short = [area for area in areas if area.free < ROOM_BYTES]
    where = f" ({describe(short)})" if short else ""
    return f"{text}; the disk is full{where}: {REMEDY}, then start the node again"

"""Shared memory that a killed Postgres left under /dev/shm.

Postgres itself removes it at the next start in the same folder, which may never come. Which segments are
whose is told by who has them mapped, and by the control segment of a postmaster (dsm.c), which lists all of
its cluster; so either all of them go or, without that one, none.
"""

import contextlib
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_FOLDER: Final = "/dev/shm"  # noqa: S108 - the system's place for it
_SEGMENT: Final = re.compile(r"(/dev/shm/PostgreSQL\.\d+)$", re.MULTILINE)
_HEADER: Final = struct.Struct("=III4x")
"""Magic number, items in use, items possible: alike in 14 to 18."""
_ITEM: Final = struct.Struct("=II32x")
"""Handle and count of references."""
_MAGIC: Final = 0x9A503D32


def mapped_by(pids: Iterable[int]) -> frozenset[str]:
    """Return the segments of Postgres that these processes have mapped."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.update(_SEGMENT.findall(Path(f"/proc/{pid}/maps").read_text(errors="replace")))
    return frozenset(found)


def listed_in(data: bytes) -> tuple[int, ...] | None:
    """Return the handles of the segments that a control segment lists; None when it is none."""
    if len(data) < _HEADER.size or (header := _HEADER.unpack_from(data))[0] != _MAGIC:
        return None
    fitting = min(header[1], (len(data) - _HEADER.size) // _ITEM.size)
    items = (_ITEM.unpack_from(data, _HEADER.size + number * _ITEM.size) for number in range(fitting))
    return tuple(handle for handle, references in items if references > 0)


def remove_unused(segments: Iterable[str]) -> None:
    """Remove all segments of a dead cluster, given its control segment among some of them.

    Those that somebody has mapped stay. Without the control segment nothing is removed.
    """
    left: set[str] = set()
    for segment in segments:
        with contextlib.suppress(OSError):
            handles = listed_in(Path(segment).read_bytes())
            if handles is not None:
                left |= {segment, *(f"{_FOLDER}/PostgreSQL.{handle}" for handle in handles)}
    if left:
        left -= mapped_by(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    for segment in left:
        with contextlib.suppress(OSError):
            Path(segment).unlink()

"""Shared memory that a killed Postgres left: under /dev/shm, and one small System V segment.

Postgres itself removes it at the next start in the same folder, which may never come. Which segments are
whose is told by who has them mapped, and by the control segment of a postmaster (dsm.c), which lists all of
its cluster; so either all of those under /dev/shm go or, without that one, none.
"""

import contextlib
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_FOLDER: Final = "/dev/shm"  # noqa: S108 - the system's place for it
_SEGMENT: Final = re.compile(r"(/dev/shm/PostgreSQL\.\d+)$", re.MULTILINE)
_SYSTEM_V: Final = re.compile(r" (\d+) +(/SYSV[0-9a-f]{8}) \(deleted\)$", re.MULTILINE)
"""The number of a mapped file is, for these, that of the segment; the name is its key."""
_SYSTEM_V_TABLE: Final = "/proc/sysvipc/shm"
_REMOVE: Final = 0  # IPC_RMID
_HEADER: Final = struct.Struct("=III4x")
"""Magic number, items in use, items possible: alike in 14 to 18."""
_ITEM: Final = struct.Struct("=II32x")
"""Handle and count of references."""
_MAGIC: Final = 0x9A503D32


def mapped_by(pids: Iterable[int]) -> frozenset[str]:
    """Return the segments of Postgres that these processes have mapped, by path or as `<key>:<number>`."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            found.update(_SEGMENT.findall(maps))
            found.update(f"{key}:{number}" for number, key in _SYSTEM_V.findall(maps))
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

    Those that somebody has mapped stay. Without the control segment none under /dev/shm is removed.
    """
    segments = frozenset(segments)
    for segment in segments & _unused_system_v():
        _remove_system_v(int(segment.partition(":")[2]))
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


def _unused_system_v() -> set[str]:
    """Return the System V segments that nobody has mapped, named as `mapped_by` does."""
    try:
        rows = Path(_SYSTEM_V_TABLE).read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return set()
    found = set()
    for row in rows:
        key, number, _, _, _, _, attached, *_ = map(int, row.split())
        if attached == 0:
            found.add(f"/SYSV{key & 0xFFFFFFFF:08x}:{number}")
    return found


def _remove_system_v(number: int) -> None:
    import ctypes  # rarely needed

    ctypes.CDLL(None).shmctl(number, _REMOVE, None)  # where it is not permitted, the segment stays

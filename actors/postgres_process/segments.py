"""Shared memory that a killed Postgres left: under /dev/shm, and one small System V segment.

Postgres itself removes it at the next start in the same folder, which may never come. As Postgres does
(PGSharedMemoryCreate of sysv_shmem.c), whose it is is read in the System V segment: its header names the data
directory by device and inode, and the control segment (dsm.c), which lists all others of the cluster.
"""

import contextlib
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

_FOLDER: Final = "/dev/shm"  # noqa: S108 - the system's place for it
_SEGMENT: Final = re.compile(r"(/dev/shm/PostgreSQL\.\d+)$", re.MULTILINE)
_SYSTEM_V_TABLE: Final = "/proc/sysvipc/shm"
_LOOKS: Final = 50
_PAUSE_S: Final = 0.01
_REMOVE: Final = 0  # IPC_RMID
_READ_ONLY: Final = 0o10000  # SHM_RDONLY

_PGSHMEM: Final = struct.Struct("=iiQQI4xQQQ")
"""PGShmemHeader of 64-bit systems, alike in 14 to 18: magic number, creator, size, free offset, handle of the
control segment, index, device and inode of the data directory."""
_PGSHMEM_MAGIC: Final = 679834894

_CONTROL: Final = struct.Struct("=III4x")
"""Magic number, items in use, items possible: alike in 14 to 18."""
_ITEM: Final = struct.Struct("=II32x")
"""Handle and count of references."""
_CONTROL_MAGIC: Final = 0x9A503D32


class Owner(msgspec.Struct, frozen=True):
    """What a System V segment of Postgres tells: its data directory, and the handle of the control segment."""

    device: int
    inode: int
    control: int


def owner_in(data: bytes) -> Owner | None:
    """Read the header of a System V segment; None when it is none of Postgres."""
    if len(data) < _PGSHMEM.size:
        return None
    magic, _, _, _, control, _, device, inode = _PGSHMEM.unpack_from(data)
    return Owner(device, inode, control) if magic == _PGSHMEM_MAGIC else None


def listed_in(data: bytes) -> tuple[int, ...] | None:
    """Return the handles of the segments that a control segment lists; None when it is none."""
    if len(data) < _CONTROL.size or (header := _CONTROL.unpack_from(data))[0] != _CONTROL_MAGIC:
        return None
    fitting = min(header[1], (len(data) - _CONTROL.size) // _ITEM.size)
    items = (_ITEM.unpack_from(data, _CONTROL.size + number * _ITEM.size) for number in range(fitting))
    return tuple(handle for handle, references in items if references > 0)


def held_by(pids: Iterable[int]) -> frozenset[str]:
    """Return the segments under /dev/shm that these processes have open or mapped.

    A server that is being started has made its control segment before its header tells of it.
    """
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it is gone, or not ours to look at
            found.update(_SEGMENT.findall(Path(f"/proc/{pid}/maps").read_text(errors="replace")))
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.update(_SEGMENT.findall(str(descriptor.readlink())))
    return frozenset(found)


def of_servers(pids: Iterable[int]) -> Callable[[], None]:
    """Look at what these processes, which are to be killed, have under /dev/shm; return what removes it."""
    return partial(remove, held_by(pids))


def remove(segments: Iterable[str]) -> None:
    """Remove segments under /dev/shm whose processes are all gone."""
    for segment in segments:
        with contextlib.suppress(OSError):
            Path(segment).unlink()


def remove_of(folders: Iterable[str]) -> None:
    """Remove what dead clusters in these data directories left; a segment that somebody has attached stays.

    A process that has just ended may count as attached for a moment: while somebody looks at its memory in /proc.
    """
    wanted = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            status = Path(folder).stat()
            wanted.add((status.st_dev, status.st_ino))
    if not wanted:
        return
    for segment in _left():
        owner = owner_in(_head_of(segment.number))
        if owner is not None and (owner.device, owner.inode) in wanted and _is_free(segment):
            _remove_dynamic(owner.control)
            _remove_system_v(segment.number)


def _remove_dynamic(control: int) -> None:
    """Remove the segments that the control segment lists, then itself: broken off, it can be done again."""
    path = Path(_FOLDER, f"PostgreSQL.{control}")
    with contextlib.suppress(OSError):
        remove(f"{_FOLDER}/PostgreSQL.{handle}" for handle in listed_in(path.read_bytes()) or ())
        path.unlink()


class _Row(msgspec.Struct, frozen=True):
    number: int
    size: int
    creator: int
    attached: int


def _rows() -> Iterator[_Row]:
    try:
        lines = Path(_SYSTEM_V_TABLE).read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        _, number, _, size, creator, _, attached, *_ = map(int, line.split())
        yield _Row(number, size, creator, attached)


def _left() -> tuple[_Row, ...]:
    """Return the System V segments that may hold a header and that nobody has attached, or whose creator is gone."""
    return tuple(
        row
        for row in _rows()
        if row.size >= _PGSHMEM.size and (row.attached == 0 or not Path(f"/proc/{row.creator}").exists())
    )


def _is_free(segment: _Row) -> bool:
    """Whether nobody has the segment attached, soon."""
    pause = threading.Event()
    for _ in range(_LOOKS):
        if all(row.attached == 0 for row in _rows() if row.number == segment.number):
            return True
        pause.wait(_PAUSE_S)
    return False


def _head_of(number: int) -> bytes:
    """Read the first bytes of a segment; none when it is gone or not ours to read."""
    import ctypes  # rarely needed

    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmdt.argtypes = [ctypes.c_void_p]
    address = libc.shmat(number, None, _READ_ONLY)
    if address == ctypes.c_void_p(-1).value:
        return b""
    try:
        return ctypes.string_at(address, _PGSHMEM.size)
    finally:
        libc.shmdt(address)


def _remove_system_v(number: int) -> None:
    import ctypes  # rarely needed

    ctypes.CDLL(None).shmctl(number, _REMOVE, None)  # where it is not permitted, the segment stays

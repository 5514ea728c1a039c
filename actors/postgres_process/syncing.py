"""Making a whole new folder durable by one system call: a thousand files, each with its own flush, take longer."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

REPORTS_ERRORS_SINCE: Final = (5, 8)
"""The first Linux whose syncfs fails when something could not be written."""
OTHERS_DIRTY: Final = 128 << 20
"""Bytes that wait to be written; syncfs waits for those of others, too, and beyond this it is not used."""


class FileSystemSync:
    """One sync of the file system that a descriptor lies on; opened before the first write that it is to cover."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def sync(self) -> None:
        """Return when everything is on the disk. Raises OSError when something written since could not be."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(self._descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the new cluster could not be written to the disk: {os.strerror(number)}")


@contextlib.contextmanager
def of_all(folder: str) -> Iterator[FileSystemSync | None]:
    """Give the sync of the file system that this folder lies on; None where each file is to be synced instead."""
    if not is_wise(os.uname().release, _memory()):
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield FileSystemSync(descriptor)
    finally:
        os.close(descriptor)


def is_wise(release: str, meminfo: str) -> bool:
    """Judge by the kernel's release and /proc/meminfo whether one sync of all is safe and quick."""
    version = re.match(r"(\d+)\.(\d+)", release)
    if version is None or (int(version[1]), int(version[2])) < REPORTS_ERRORS_SINCE:
        return False
    waiting = re.findall(r"^(?:Dirty|Writeback): *(\d+) kB$", meminfo, re.MULTILINE)
    return bool(waiting) and sum(map(int, waiting)) * 1024 <= OTHERS_DIRTY


def _memory() -> str:
    try:
        return Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return ""

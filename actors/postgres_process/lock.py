"""The lock on PGDATA: at most one node works on a folder, for its whole life."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from ...messages.lifecycle import EXIT_FAILED, EXIT_LOCKED
from ..kit.jobs import Cancellation
from .folder import Paths
from .port import PgdataRefusedError

PATIENCE_S: Final = 3.0
"""How long the holder before may still take to end."""
_PAUSE_S: Final = 0.05


class FolderLock:
    """An exclusive lock, given back by the system when this process ends, however it ends.

    It lies on `<pgdata>.lock`, which stays behind; in a mount point on the folder itself, so that nothing
    needs to be written beside it.
    """

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether we have it."""
        return self._descriptor is not None

    def take(self, paths: Paths, compute_id: str, cancellation: Cancellation) -> None:
        """Take it, waiting a little for another holder. Raises PgdataRefusedError."""
        if self.held:
            return
        path = paths.pgdata if paths.is_mount else f"{paths.pgdata}.lock"
        flags = os.O_RDONLY if paths.is_mount else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except OSError as error:
            msg = (
                f"the lock {path} cannot be opened ({error.strerror}): this user must be able to write to "
                f"{Path(path).parent}"
            )
            raise PgdataRefusedError(msg, EXIT_FAILED) from error
        try:
            _lock(descriptor, path, cancellation, self._patience_s)
            if not paths.is_mount:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {compute_id}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Give it back; for whoever makes more than one node in a process."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, path: str, cancellation: Cancellation, patience_s: float) -> None:
    waited_s = 0.0
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if waited_s >= patience_s:
            holder = ""
            with contextlib.suppress(OSError):
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            known = f" (process and compute id: {holder})" if holder else ""
            msg = (
                f"another node holds the lock {path}{known}, and did not give it back within {patience_s:g} s: "
                "stop that node, or give another folder by -D"
            )
            raise PgdataRefusedError(msg, EXIT_LOCKED)
        cancellation.wait(_PAUSE_S)
        waited_s += _PAUSE_S

"""Postgres processes that work in a folder of ours and have no supervisor any more.

A process counts when its executable is a Postgres program and its working directory is the folder; what a
lock file says is not enough to signal anybody.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ..kit.jobs import Cancellation
from . import segments
from .port import PostgresError

PROGRAMS: Final = frozenset({"postgres", "initdb", "pg_basebackup"})
LADDER: Final = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 3.0))
"""Which signal, and how many seconds it may take to work."""
_PAUSE_S: Final = 0.01

log = logging.getLogger("compute_node.postgres_process")


def working_in(folders: Iterable[str]) -> tuple[int, ...]:
    """Return the ids of the Postgres processes whose working directory is one of these folders."""
    wanted = {identity for folder in folders if (identity := _identity(folder)) is not None}
    if not wanted:
        return ()
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - names, not paths
    return tuple(pid for pid in pids if _works_in(pid, wanted))


def end(
    folders: Iterable[str],
    cancellation: Cancellation,
    *,
    ladder: tuple[tuple[signal.Signals, float], ...] = LADDER,
) -> int:
    """End the Postgres processes that work in these folders; returns how many there were.

    What dead ones left there in shared memory is removed.
    Raises PostgresError when one survives, and CancelledError.
    """
    folders = tuple(folders)
    found = working_in(folders)
    count = len(found)
    for number, patience_s in ladder:
        if not found:
            break
        log.warning("sending %s to Postgres processes that work in %s: %s", number.name, folders[0], found)
        _signal(found, folders, number)
        waited_s = 0.0
        while (found := working_in(folders)) and waited_s < patience_s:
            cancellation.wait(_PAUSE_S)
            waited_s += _PAUSE_S
            if number is signal.SIGKILL:  # those that were started meanwhile, too
                _signal(found, folders, number)
    if found:
        msg = f"Postgres processes work in {folders[0]} and cannot be ended: {found}; end them and try again"
        raise PostgresError(msg)
    segments.remove_of(folders)
    return count


def is_alive(pid: int) -> bool:
    """Whether there is such a process, a zombie not counted."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _signal(pids: Iterable[int], folders: tuple[str, ...], number: signal.Signals) -> None:
    """Signal each, through a descriptor that cannot come to mean a later process of that number."""
    wanted = {identity for folder in folders if (identity := _identity(folder)) is not None}
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if _works_in(pid, wanted):
                signal.pidfd_send_signal(descriptor, number)
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)  # one that stands still cannot end
        except ProcessLookupError:
            continue
        except PermissionError as error:
            msg = f"process {pid} is a Postgres in {folders[0]} that this user may not end: end it first"
            raise PostgresError(msg) from error
        finally:
            os.close(descriptor)


def _works_in(pid: int, wanted: set[tuple[int, int]]) -> bool:
    if _identity(f"/proc/{pid}/cwd") not in wanted:
        return False
    with contextlib.suppress(OSError):
        program = os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - the text of the link is what is wanted
        return Path(program.removesuffix(" (deleted)")).name in PROGRAMS
    return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - follows the link of /proc, which leads nowhere by its text
    except OSError:
        return None
    return status.st_dev, status.st_ino

"""Stopping a postmaster when the actors that should do it cannot any more, and leaving when nothing else ends."""

import contextlib
import faulthandler
import logging
import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .signals import open_pidfd

RUNGS: Final = ((signal.SIGINT, 0.6), (signal.SIGQUIT, 0.25), (signal.SIGKILL, 0.15))
"""Which signal, and which share of the time it may take to work."""

TIDY_S: Final = 1.0
"""How long the PostgresProcess, if it still can, gets for removing what was made for the run."""

_START_TIME_FIELD: Final = 21
"""Field 22 of /proc/<pid>/stat, counted from 0: ticks since boot; tells a process from a later namesake."""

_NOWHERE: Final = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

log = logging.getLogger("compute_node.last_resort")


@contextlib.contextmanager
def leaving_within(seconds: float) -> Iterator[None]:
    """End the process with exit code 1 when what is done here takes longer; nothing can hold that up."""
    leave_after(seconds)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)


def leave_after(seconds: float) -> None:
    """End the process hard, with exit code 1, in that time, unless `leaving_within` ends before.

    The thread that does it needs neither Python nor a lock; where there is no thread to be had, SIGALRM kills.
    """
    try:
        # What the threads are doing is not told here: a blocked standard error would hold it up.
        faulthandler.dump_traceback_later(seconds, exit=True, file=_NOWHERE)
    except RuntimeError:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def start_time(pid: int) -> int | None:
    """Return when a process started (ticks since boot); None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return int(fields[_START_TIME_FIELD - 2])


class PostmasterRecord:
    """Which postmaster is running, for the main thread; written by the launcher, of any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._tidied = threading.Event()

    def started(self, pid: int) -> None:
        """Remember a postmaster by pid and start time."""
        began = start_time(pid)
        with self._lock:
            self._identity = None if began is None else (pid, began)
            self._tidied.clear()

    def ended(self) -> None:
        """Forget it: it has been waited for."""
        with self._lock:
            self._identity = None

    def tidied(self) -> None:
        """Note that nothing of its run is left."""
        self._tidied.set()

    def stop(self, budget_s: float) -> bool:
        """Stop it if it still runs: fast, immediate, kill. Returns whether there was one to stop.

        Whoever sees it end, if anybody can still, gets a moment to clean up after it.
        """
        with self._lock:
            identity = self._identity
        if identity is None:
            return False
        pid, began = identity
        descriptor = open_pidfd(pid)
        if descriptor is None:
            return False
        try:
            if start_time(pid) != began:
                return False
            for number, share in RUNGS:
                patience_s = budget_s * share
                log.warning(
                    "last resort: sending %s to postmaster %d, which has %.1f s to end",
                    *(number.name, pid, patience_s),
                )
                signal.pidfd_send_signal(descriptor, number)
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)  # one that stands still cannot stop
                if select.select([descriptor], [], [], patience_s)[0]:
                    break
        except ProcessLookupError:
            log.info("last resort: postmaster %d ended meanwhile", pid)
        finally:
            os.close(descriptor)
        self._tidied.wait(TIDY_S)
        return True

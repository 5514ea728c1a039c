"""Signals as data: handlers only note the number in a pipe, the main thread reads it."""

import contextlib
import os
import select
import signal
from typing import Final

STOPPING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
HANDLED: Final = (*sorted(STOPPING), signal.SIGHUP)

_WAKE: Final = b"\0"


class StoppedError(Exception):
    """The process was asked to end before there was a node; the message names the signal."""


class SignalPipe:
    """Where signals and other threads wake the main thread. One per process, made in the main thread."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def install(self) -> None:
        """From here on the handled signals are data; until here the system's default counts.

        What whoever started us has blocked or ignored is undone: an ignored SIGCHLD loses exit codes.
        """
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, _noted)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*HANDLED, signal.SIGCHLD))

    def uninstall(self) -> None:
        """Give the signals back to the system's default."""
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)

    def wake(self) -> None:
        """Make `wait` return; from any thread, never blocks."""
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._writer, _WAKE)

    def wait(self, timeout_s: float | None = None) -> tuple[signal.Signals, ...]:
        """Wait for a signal or a wake-up; return the signals that came, in order."""
        select.select([self._reader], [], [], timeout_s)
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._reader, 4096)
        return tuple(signal.Signals(number) for number in data if number != 0)


def _noted(_number: int, _frame: object) -> None:
    """Do nothing: the wake-up descriptor has carried the number already."""


def describe_exit(code: int) -> str:
    """Put what `Popen.returncode` says into words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def open_pidfd(pid: int) -> int | None:
    """Open a descriptor that becomes readable when the process ends; None when it is gone already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None

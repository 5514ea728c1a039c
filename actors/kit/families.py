"""A helper program with all that it starts: told from everybody else's by a mark, and ended together."""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from .output import read

MARK: Final = "COMPUTE_NODE_HELPER"
"""The variable that tells a helper and all that it starts from everybody else's processes."""
_AFTER_KILL_S: Final = 2.0

Leftovers: TypeAlias = Callable[[Sequence[int]], Callable[[], None]]
"""Sees what processes hold that outlives them, and returns what removes it."""


class Family:
    """A process in a session of its own, with the mark in its environment, and what it has started."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        mark: str,
        now: Callable[[], float],
        leftovers: Leftovers | None = None,
    ) -> None:
        self.process: Final = process
        self._marked = f"{MARK}={mark}".encode()
        self._now = now
        self._leftovers = leftovers

    def has_exited(self) -> bool:
        """Tell whether it has ended by itself, and leave it to be waited for: its number stays its own."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> bytes:
        """Kill its group, and what has left that but is marked; return the rest of its output once all are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP)  # none of them makes more meanwhile
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
        members = [pid for pid in pids if self._has(pid)]
        clean_up = None if self._leftovers is None else self._leftovers(members)
        with contextlib.ExitStack() as descriptors:
            alive = select.poll()
            count = 0
            for pid in members:
                with contextlib.suppress(OSError):  # it is gone
                    descriptor = os.pidfd_open(pid)
                    descriptors.callback(os.close, descriptor)
                    if self._has(pid):
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        alive.register(descriptor, select.POLLIN)
                        count += 1
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            _, rest = read(self.process, None, _AFTER_KILL_S, self._now)
            deadline = self._now() + _AFTER_KILL_S  # some may have closed the output long ago
            while count and (left_s := deadline - self._now()) > 0:
                for descriptor, _ in alive.poll(left_s * 1000):
                    alive.unregister(descriptor)
                    count -= 1
        if clean_up is not None:
            clean_up()
        return rest

    def _has(self, pid: int) -> bool:
        try:
            if os.getpgid(pid) == self.process.pid:
                return True
            return self._marked in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it is gone, or not ours to look at
            return False

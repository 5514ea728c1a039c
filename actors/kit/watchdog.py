"""Noticing that an actor hangs: by its pulse, not by what it says of itself."""

import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Final

HUNG_S: Final = 15.0
"""How long one handler may take, not counting time in which the process stood still.

Far beyond what a starved machine or a slow fork does to a handler that is to take milliseconds, and well
before whoever probes `/live` loses patience with the node as a whole.
"""


class Watchdog:
    """Compares pulses from look to look. A pulse is odd while a handler runs and changes with each."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def hung(self, pulses: Mapping[str, int], now_s: float, limit_s: float) -> tuple[str, ...]:
        """Return those whose handler has been running for longer than the limit."""
        for name, pulse in pulses.items():
            if self._seen.get(name, (None, 0.0))[0] != pulse:
                self._seen[name] = (pulse, now_s)
        return tuple(
            name for name, pulse in pulses.items() if pulse % 2 and now_s - self._seen[name][1] > limit_s
        )


def stacks() -> tuple[str, ...]:
    """Return what every thread is doing: its name and, below, its stack."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return tuple(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - there is no other way
    )

"""The pace at which blocks are read again, so that users keep the disk to themselves most of the time. Pure."""

from typing import Final

import msgspec

SMALLEST: Final = 16
LARGEST: Final = 2048
FIRST: Final = 64
QUICK_S: Final = 0.03
SLOW_S: Final = 0.1
"""A batch takes between these, so that a cancellation is heard and a look at the users comes often."""
BUSY_PAUSE: Final = 4.0
"""While users work, a pause is so many times as long as the batch before: they have the disk for 80 % of the time."""
BUSY_SLOW_S: Final = 0.01
BUSY_MIN_PAUSE_S: Final = 0.01
MAX_PAUSE_S: Final = 2.0


class Pace(msgspec.Struct, frozen=True):
    """How many blocks to read next, and how long to wait before."""

    blocks: int = FIRST
    pause_s: float = 0.0

    def after(self, took_s: float, *, busy: bool) -> "Pace":
        """Return the pace after a batch that took so long; `busy`: sessions of users are at work."""
        quick_s, slow_s = (BUSY_SLOW_S / 4, BUSY_SLOW_S) if busy else (QUICK_S, SLOW_S)
        blocks = self.blocks
        if took_s > slow_s:
            blocks = max(SMALLEST, blocks // 2)
        elif took_s < quick_s:
            blocks = min(LARGEST, blocks * 2)
        if not busy:
            return Pace(blocks)
        return Pace(blocks, min(MAX_PAUSE_S, max(BUSY_MIN_PAUSE_S, BUSY_PAUSE * took_s)))

"""How far a source is: in the metrics, now and then in the log, and on a terminal all the time."""

import logging
from collections.abc import Callable
from typing import Final

from ....messages.metrics import BASEBACKUP_RECEIVED
from ...kit.metrics import Metrics

LOG_EVERY_S: Final = 10.0
BAR_EVERY_S: Final = 0.1
BAR: Final = logging.getLogger("compute_node.progress")
"""Shown in one line of a terminal, which the next record replaces; nowhere else (process/logs.py)."""
WIDTH: Final = 24

log = logging.getLogger("compute_node.postgres_process")


class Progress:
    """Hears how many bytes have come. `now` are seconds of the kit's clock; `what` is named in the log."""

    def __init__(self, what: str, now: Callable[[], float], metrics: Metrics | None) -> None:
        self._what = what
        self._now = now
        self._metrics = metrics
        self._began_s = self._said_s = now()
        self._shown_s = 0.0

    def __call__(self, received: int, unpacked: int | None = None, total: int | None = None) -> None:
        """Take the sizes so far, in bytes.

        `unpacked` is what has been made of it, where that differs; `total` is what `received` will be, where that is known.
        """
        if self._metrics is not None:
            self._metrics.set(BASEBACKUP_RECEIVED, received)
        now_s = self._now()
        if now_s >= self._said_s + LOG_EVERY_S:
            self._said_s = now_s
            log.info("%s: %s", self._what, amount(received, unpacked, now_s - self._began_s, total))
        if now_s >= self._shown_s + BAR_EVERY_S and BAR.isEnabledFor(logging.INFO):
            self._shown_s = now_s
            sizes = amount(received, unpacked, now_s - self._began_s, total)
            BAR.info("%s %s %s", self._what, bar(received, total, now_s), sizes)


def amount(received: int, unpacked: int | None, elapsed_s: float, total: int | None = None) -> str:
    """Say how much has come, what it is unpacked, and how fast it comes."""
    of_all = "" if total is None else f" of {total / 1e6:.1f}"
    as_files = "" if unpacked is None else f", {unpacked / 1e6:.1f} MB unpacked"
    speed = received / 1e6 / elapsed_s if elapsed_s > 0 else 0.0
    return f"{received / 1e6:.1f}{of_all} MB received{as_files}, {speed:.1f} MB/s"


def bar(received: int, total: int | None, now_s: float) -> str:
    """Draw a bar; where the end is not known, a mark that moves to and fro."""
    if total:
        filled = min(WIDTH, round(WIDTH * received / total))
        return f"[{'=' * filled}{' ' * (WIDTH - filled)}]"
    span = WIDTH - 3
    step = round(now_s / BAR_EVERY_S) % (2 * span)
    at = min(step, 2 * span - step)
    return f"[{' ' * at}<=>{' ' * (span - at)}]"

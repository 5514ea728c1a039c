"""Is Postgres ready? Its own status line says so, for as long as the child lives."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ...postgres import pidfile
from ..kit.jobs import Cancellation
from .port import PostgresError

POLL_S: Final = 0.003
"""An upper bound on the latency it costs; reading the file takes microseconds."""

log = logging.getLogger("compute_node.postgres_process")


def is_ready(text: str, pid: int) -> bool:
    """Judge the text of `postmaster.pid`, whatever there is of it: whether it calls this process ready."""
    seen = pidfile.parse(text)
    return seen.pid == pid and seen.status is not None and seen.status.accepts_connections


def wait(
    pgdata: str,
    pid: int,
    has_exited: Callable[[], bool],
    limit_s: float | None,
    cancellation: Cancellation,
) -> bool:
    """Wait for the status line; False when the child ended first.

    Raises PostgresError after `limit_s` seconds (None: no limit), and CancelledError.
    """
    path = Path(pgdata, "postmaster.pid")
    began = cancellation.now()
    while not has_exited():
        try:
            if is_ready(path.read_text(encoding="utf-8", errors="replace"), pid):
                return True
        except OSError:
            pass  # not there yet; whether it ever comes is what the child and the limit tell
        if limit_s is not None and cancellation.now() - began > limit_s:
            msg = f"timed out while waiting for Postgres to start: it was not ready within {limit_s:g} s"
            raise PostgresError(msg)
        cancellation.wait(POLL_S)
    return False

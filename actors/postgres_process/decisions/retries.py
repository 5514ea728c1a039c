"""How often and when a new PGDATA is tried again: pure. The numbers are the counterpart's (`startup-and-spec` 4.6)."""

from typing import Final

RETRIES: Final = 10
"""After the first attempt."""
FIRST_PAUSE_S: Final = 0.5
FACTOR: Final = 1.5
DEADLINE_S: Final = 600.0
"""No attempt begins later than this after the first one; ours."""


def pause_s(attempt: int, elapsed_s: float) -> float | None:
    """Return how long to wait after that attempt (counted from 1) has failed; None: it was the last."""
    pause = FIRST_PAUSE_S * FACTOR ** (attempt - 1)
    return pause if attempt <= RETRIES and elapsed_s + pause <= DEADLINE_S else None

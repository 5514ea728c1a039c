"""Long runs: `make soak`, not `make test`."""

import os
from time import monotonic
from typing import Final

import pytest

from fix_matrix import seed as matrix_seed

MINUTES: Final = float(os.environ.get("SOAK_MINUTES", "0"))
SEED: Final = int(os.environ.get("SOAK_SEED", "0"))
"""0: drawn anew, and printed."""
MAX_MORE_MEMORY: Final = 32 << 20
"""Bytes that a process may come to take beyond what it took after a while."""

soak_marks: Final = [
    pytest.mark.skipif(MINUTES == 0, reason="the soak is a run of its own: make soak"),
    pytest.mark.slow,
    pytest.mark.timeout(MINUTES * 60 + 600),
]


def drawn_seed() -> int:
    """Return what a run is drawn from, and say how to run it again."""
    chosen = SEED or matrix_seed() * 1_000_000 + int(monotonic() * 1_000) % 1_000_000
    print(f"SOAK_SEED={chosen}")  # noqa: T201 - shown with the outcome
    return chosen

"""The simulation over many seeds, with a bound on its memory: `make soak`."""

import gc
from time import monotonic
from typing import Final

import psutil

from fix_soak import MAX_MORE_MEMORY, MINUTES, drawn_seed, soak_marks
from simulation.lives import check

WARM_UP: Final = 500
"""Seeds after which growth is judged."""

pytestmark = soak_marks


def test_many_simulated_lives_stay_small_and_well() -> None:
    first = drawn_seed() * 10
    process, usual, number = psutil.Process(), 0, 0
    end = monotonic() + MINUTES * 60
    while monotonic() < end:
        check(first + number)
        number += 1
        if number % 100 == 0:
            gc.collect()
            memory = process.memory_info().rss
            usual = usual or (memory if number >= WARM_UP else 0)
            assert not usual or memory <= usual + MAX_MORE_MEMORY, (memory, usual)
    print(f"\n{number} seeds from {first}; {process.memory_info().rss >> 20} MB")  # noqa: T201

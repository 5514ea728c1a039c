"""A pace that leaves users their disk, and lets a cancellation be heard."""

import pytest
from compute_node.actors.lfc_manager.pace import (
    BUSY_MIN_PAUSE_S,
    BUSY_PAUSE,
    FIRST,
    LARGEST,
    MAX_PAUSE_S,
    SMALLEST,
    Pace,
)


def test_while_nobody_works_batches_grow_to_the_largest_and_nothing_pauses() -> None:
    pace = Pace()
    for _ in range(10):
        pace = pace.after(0.001, busy=False)
        assert pace.pause_s == 0
    assert pace.blocks == LARGEST


def test_what_is_slow_comes_in_smaller_batches_so_that_a_cancellation_is_heard() -> None:
    pace = Pace(LARGEST)
    for _ in range(10):
        pace = pace.after(1.0, busy=False)
    assert pace.blocks == SMALLEST


@pytest.mark.parametrize("took_s", [0.0, 0.001, 0.02, 0.3, 5.0])
def test_while_users_work_most_of_the_time_is_theirs(took_s: float) -> None:
    pace = Pace(FIRST).after(took_s, busy=True)
    assert pace.pause_s == max(BUSY_MIN_PAUSE_S, min(MAX_PAUSE_S, BUSY_PAUSE * took_s))
    assert pace.after(took_s, busy=False).pause_s == 0, "and no longer than they do"


def test_while_users_work_batches_stay_short() -> None:
    pace = Pace(LARGEST)
    for _ in range(10):
        pace = pace.after(pace.blocks * 0.0001, busy=True)
    assert pace.blocks * 0.0001 <= 0.02

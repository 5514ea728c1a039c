"""When a new PGDATA is tried again."""

import pytest
from compute_node.actors.postgres_process.decisions.retries import DEADLINE_S, RETRIES, pause_s


def test_ten_retries_with_pauses_that_grow_by_half_make_about_a_minute() -> None:
    pauses = [pause_s(attempt, 0.0) for attempt in range(1, RETRIES + 1)]
    assert pauses[:3] == [0.5, 0.75, 1.125]
    assert sum(pause or 0.0 for pause in pauses) == pytest.approx(56.7, abs=0.1)
    assert None not in pauses
    assert pause_s(RETRIES + 1, 0.0) is None


def test_no_attempt_begins_after_the_deadline() -> None:
    assert pause_s(1, DEADLINE_S - 0.5) == 0.5
    assert pause_s(1, DEADLINE_S - 0.4) is None

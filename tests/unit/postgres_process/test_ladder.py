"""When each rung of the stop ladder is due."""

from itertools import pairwise

import pytest
from compute_node.actors.postgres_process.decisions.ladder import LADDER, next_rung, rungs
from compute_node.messages.postgres import StopRung
from hypothesis import given
from hypothesis import strategies as st


@given(st.floats(0.2, 10_000), st.sampled_from(LADDER))
def test_rungs_follow_each_other_at_once_and_within_the_budget(budget_s: float, first: StopRung) -> None:
    plan = rungs(budget_s, first)
    assert [rung for rung, _ in plan] == list(LADDER[LADDER.index(first) :])
    assert plan[0] == (first, 0.0)
    times = [due_s for _, due_s in plan]
    assert all(earlier < later for earlier, later in pairwise(times))
    assert times[-1] < budget_s


@given(st.floats(0.2, 10_000))
def test_the_fast_shutdown_gets_most_of_the_budget(budget_s: float) -> None:
    assert dict(rungs(budget_s))[StopRung.IMMEDIATE] >= 0.5 * budget_s


@given(st.floats(60, 10_000))
def test_an_immediate_shutdown_has_longer_than_postgres_waits_for_its_own_children(budget_s: float) -> None:
    due = dict(rungs(budget_s))
    assert due[StopRung.KILL] - due[StopRung.IMMEDIATE] > 5.0


@pytest.mark.parametrize("budget_s", [-5.0, 0.0, 0.01])
def test_a_budget_that_is_spent_still_gives_each_rung_a_moment(budget_s: float) -> None:
    times = [due_s for _, due_s in rungs(budget_s)]
    assert times == sorted(set(times))
    assert times[-1] < 0.2


def test_each_rung_leads_to_the_next_and_the_last_to_none() -> None:
    steps = [StopRung.NOT_RUNNING]
    while (rung := next_rung(steps[-1])) is not None:
        steps.append(rung)
    assert steps == list(StopRung)

"""The downtime account: each event of the table, and what its numbers always mean."""

import pytest
from compute_node.actors.activity_monitor.downtime import Downtime, begin, seen_down, seen_up
from hypothesis import given
from hypothesis import strategies as st


def test_what_was_before_the_watching_began_is_no_downtime() -> None:
    account = seen_down(begin(100.0), 100.5)

    assert (account.current_ms, account.total_ms) == (500, 500)


def test_a_good_look_ends_the_outage_and_keeps_the_total() -> None:
    account = seen_up(seen_down(begin(100.0), 100.5), 101.0)

    assert (account.current_ms, account.total_ms) == (0, 500)


def test_a_bad_look_counts_from_the_last_good_one() -> None:
    account = seen_down(seen_down(seen_up(begin(100.0), 105.0), 105.5), 106.5)

    assert (account.current_ms, account.total_ms) == (1500, 1500)


def test_several_outages_add_up() -> None:
    account = begin(0.0)
    for now in (1.0, 2.0, 3.0):
        account = seen_up(seen_down(account, now), now + 0.5)

    assert account.total_ms == pytest.approx(1000 + 500 + 500)


def test_watching_anew_keeps_the_total_and_drops_the_outage_under_way() -> None:
    account = seen_down(begin(0.0), 4.0)

    assert begin(50.0, account.total_ms) == Downtime(50.0, 50.0, current_ms=0, total_ms=4000)


def test_a_clock_that_would_go_back_counts_nothing() -> None:
    account = seen_down(seen_down(begin(10.0), 12.0), 11.0)

    assert (account.current_ms, account.total_ms) == (2000, 2000)


@given(st.lists(st.tuples(st.booleans(), st.floats(min_value=0, max_value=100)), max_size=40))
def test_the_total_is_the_sum_of_all_outages_and_never_shrinks(looks: list[tuple[bool, float]]) -> None:
    now = 1000.0
    account = begin(now)
    outages: list[float] = [0.0]
    last_up = now
    for up, pause in looks:
        now += pause
        before = account.total_ms
        if up:
            account = seen_up(account, now)
            last_up = now
            outages.append(0.0)
            assert account.current_ms == 0
        else:
            account = seen_down(account, now)
            outages[-1] = (now - last_up) * 1000
            assert account.current_ms == pytest.approx(outages[-1])
        assert account.total_ms >= before
        assert account.total_ms == pytest.approx(sum(outages))

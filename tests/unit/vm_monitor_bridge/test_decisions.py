"""The numbers of autoscaling: tables of the reference, and what holds for every number."""

from collections import deque

import pytest
from compute_node.actors.vm_monitor_bridge.decisions import (
    FILE_CACHE,
    FRESH_S,
    LOG_EVERY,
    MIB,
    SAMPLES,
    Asking,
    Denial,
    FileCacheRule,
    Logged,
    Stale,
    Summary,
    is_worth_telling,
    judge_downscale,
    mib,
    should_ask,
    summarise,
    threshold,
    usable,
)
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.integers(0, 2**64 - 1)
GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("total", "size"),
    [
        (0, 0),
        (255 * MIB, 0),
        (256 * MIB, 0),
        (256 * MIB + 1, 0),
        (258 * MIB, 1 * MIB),
        (512 * MIB, 232 * MIB),
        (1024 * MIB, 698 * MIB),
        (1463 * MIB, 1097 * MIB),
        (4096 * MIB, 3072 * MIB),
        (4097 * MIB, 3072 * MIB),
    ],
)
def test_the_file_cache_has_the_size_of_the_reference(total: int, size: int) -> None:
    assert FILE_CACHE.size(total) == size


@given(SIZES, SIZES)
def test_the_file_cache_grows_with_the_memory_and_leaves_room(one: int, other: int) -> None:
    smaller, larger = sorted((one, other))
    size = FILE_CACHE.size(larger)

    assert 0 <= FILE_CACHE.size(smaller) <= size
    assert size % MIB == 0
    assert size <= larger * 0.75
    assert size == 0 or size + 256 * MIB <= larger


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"fraction": 0.0}, "fraction must be between"),
        ({"fraction": 1.0}, "fraction must be between"),
        ({"spread": -0.1}, "spread must not be negative"),
        ({"beside": 0}, "must be left beside"),
        ({"fraction": 0.95}, "takes all of the memory"),
        ({"fraction": 0.5, "spread": 1.0}, "takes all of the memory"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        FileCacheRule(**rule)  # type: ignore[arg-type] # wrong on purpose


def test_a_rule_may_go_as_far_as_it_makes_sense() -> None:
    assert FileCacheRule(fraction=0.9, beside=1, spread=0.0).size(100 * MIB) == 90 * MIB
    assert FileCacheRule(fraction=0.6).size(GIB) == 614 * MIB


@pytest.mark.parametrize(("total", "limit"), [(0, 0), (100, 85), (1000 * MIB, 850 * MIB), (7, 5)])
def test_the_threshold_is_85_per_cent(total: int, limit: int) -> None:
    assert threshold(total) == limit


@given(SIZES, SIZES)
def test_the_threshold_grows_with_the_memory_and_stays_below_it(one: int, other: int) -> None:
    smaller, larger = sorted((one, other))

    assert 0 <= threshold(smaller) <= threshold(larger) <= larger


@pytest.mark.parametrize(("granted", "rest"), [(0, 0), (100 * MIB - 1, 0), (100 * MIB, 0), (GIB, 924 * MIB)])
def test_the_kernel_keeps_its_share_of_what_is_granted(granted: int, rest: int) -> None:
    assert usable(granted) == rest


# --- Memory in use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "average", "count"),
    [((), 0, 0), ((7,), 7, 1), ((1, 2), 1, 2), ((1, 2, 3, 4, 5), 3, 5), ((1000, 1, 1, 1, 1, 1), 1, 5)],
)
def test_the_average_is_of_the_last_five_samples(samples: tuple[int, ...], average: int, count: int) -> None:
    assert summarise(deque(samples, maxlen=SAMPLES), 9.0) == Summary(9.0, average, count)


@given(st.lists(SIZES, min_size=1))
def test_an_average_lies_between_the_least_and_the_most_of_its_samples(samples: list[int]) -> None:
    last = samples[-SAMPLES:]
    assert min(last) <= summarise(last, 0.0).average <= max(last)


TOLD = Summary(10.0, 100 * MIB, 5)


@pytest.mark.parametrize(
    ("told", "now", "limit", "worth"),
    [
        (None, Summary(10.0, 0, 5), None, True),
        (TOLD, Summary(10.1, 100 * MIB, 5), 200 * MIB, False),
        (TOLD, Summary(10.1, 100 * MIB, 4), 200 * MIB, True),
        (TOLD, Summary(10.9, 100 * MIB, 5), None, False),
        (TOLD, Summary(11.0, 100 * MIB, 5), None, True),
        (TOLD, Summary(10.1, 116 * MIB, 5), 200 * MIB, True),
        (TOLD, Summary(10.1, 84 * MIB, 5), 200 * MIB, True),
        (TOLD, Summary(10.1, 116 * MIB - 1, 5), 200 * MIB, False),
        (TOLD, Summary(10.1, 100 * MIB, 5), 100 * MIB, True),
    ],
)
def test_an_average_is_told_when_it_is_news_or_pressure(
    told: Summary | None, now: Summary, limit: int | None, *, worth: bool
) -> None:
    assert is_worth_telling(told, now, limit) is worth


def logged(*samples: int) -> list[tuple[int, ...]]:
    """What is logged of these samples, of which there are ten a second."""
    state, found = Logged(), []
    for end in range(LOG_EVERY, len(samples) + 1, LOG_EVERY):
        history = samples[end - LOG_EVERY : end]
        if (taken := state.take(history, end / 10)) is not None:
            state = taken
            found.append(history)
    return found


def test_history_is_logged_by_twenties_when_something_changed_or_after_a_while() -> None:
    calm = [GIB] * LOG_EVERY

    assert logged(*calm) == [tuple(calm)]
    assert len(logged(*calm * 7)) == 1, "two seconds each: less than fifteen after the first"
    assert len(logged(*calm * 9)) == 2
    assert len(logged(*calm, *calm[:-1], GIB + 128 * MIB)) == 2
    assert len(logged(*calm, *calm[:-1], GIB + 128 * MIB - 1)) == 1
    assert len(logged(*[800] * LOG_EVERY, *[899] * LOG_EVERY)) == 1
    assert len(logged(*[800] * LOG_EVERY, *[900] * LOG_EVERY)) == 2
    assert len(logged(*[0] * 2 * LOG_EVERY)) == 1, "nothing is no change from nothing"
    assert len(logged(*[0] * LOG_EVERY, *[1] * LOG_EVERY)) == 2
    assert len(logged(*[4 * GIB] * LOG_EVERY, *[4 * GIB + 128 * MIB] * LOG_EVERY)) == 2
    assert Logged(0.0, GIB).take(calm, 15.0) is None
    assert Logged(0.0, GIB).take(calm, 15.01) == Logged(15.01, GIB)


# --- Decisions -------------------------------------------------------------------------------------------


def test_a_downscale_needs_fresh_memory_data() -> None:
    memory = Summary(100.0, 0, 5)

    assert judge_downscale(GIB, memory, 100.0 + FRESH_S) is None
    assert judge_downscale(GIB, memory, 100.0 + FRESH_S + 0.5) == Stale(
        "the memory in use is not known: the last sample is 5.5 s old (limit 5 s)"
    )
    assert judge_downscale(GIB, Summary(100.0), 107.0) == Stale(
        "the memory in use is not known: there has been no sample for 7.0 s (limit 5 s)"
    )


@pytest.mark.parametrize("count", [0, 1])
def test_a_downscale_needs_more_than_one_sample(count: int) -> None:
    assert judge_downscale(GIB, Summary(0.0, 0, count), 0.0) == Denial(
        "haven't received enough cgroup memory stats yet"
    )


def test_a_downscale_leaves_a_margin_above_the_memory_in_use() -> None:
    after = threshold(GIB)

    assert judge_downscale(GIB, Summary(0.0, after - 100 * MIB, 2), 0.0) is None
    assert isinstance(judge_downscale(GIB, Summary(0.0, after - 100 * MIB + 1, 2), 0.0), Denial)
    assert judge_downscale(1000 * MIB, Summary(0.0, 800 * MIB, 2), 0.0) == Denial(
        "calculated memory threshold too low: 850 MiB (new threshold) < 800 MiB (current usage) "
        "+ 100 MiB (downscale buffer)"
    )


@given(SIZES, SIZES, SIZES)
def test_what_is_refused_to_a_larger_machine_is_refused_to_a_smaller_one(
    one: int, other: int, used: int
) -> None:
    smaller, larger = sorted((one, other))
    memory = Summary(0.0, used, 5)

    if judge_downscale(larger, memory, 0.0) is not None:
        assert judge_downscale(smaller, memory, 0.0) is not None


SPOKEN = Asking(connected_s=0.0, has_spoken=True, asked_s=None)


@pytest.mark.parametrize(
    ("memory", "asking", "now_s", "asks"),
    [
        (Summary(9.0, 850, 1), SPOKEN, 9.0, True),
        (Summary(9.0, 849, 5), SPOKEN, 9.0, False),
        (Summary(9.0, 850, 0), SPOKEN, 9.0, False),
        (Summary(3.0, 850, 5), SPOKEN, 9.0, False),
        (Summary(9.0, 850, 5), Asking(0.0, True, 8.1), 9.0, False),
        (Summary(9.0, 850, 5), Asking(0.0, True, 8.0), 9.0, True),
        (Summary(9.0, 850, 5), Asking(8.5, False, None), 9.0, False),
        (Summary(9.0, 850, 5), Asking(8.0, False, None), 9.0, True),
    ],
)
def test_more_is_asked_for_under_fresh_pressure_once_a_second_of_an_agent_that_is_there(
    memory: Summary, asking: Asking, now_s: float, *, asks: bool
) -> None:
    assert should_ask(memory, 850, asking, now_s) is asks


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (MIB, "1"), (MIB + MIB // 2, "1.5"), (870 * MIB + 4 * MIB // 10, "870.3999996185303")],
)
def test_sizes_are_written_as_fractions_of_a_mebibyte(size: int, text: str) -> None:
    assert mib(size) == text

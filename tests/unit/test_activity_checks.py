"""What counts as activity: the table of docs/activity.md, row by row, and what holds for any sequence of looks."""

import pytest
from compute_node.actors.activity_monitor.checks import (
    Activity,
    Memory,
    Readings,
    Sessions,
    Totals,
    remember,
)
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_000_000.0
EARLIER = NOW - 60


def sessions(state: str | None, at: float | None = EARLIER, *, own: bool = False, count: int = 1) -> Sessions:
    return Sessions(own=own, state=state, count=count, changed_at_s=at)


def seen(readings: Readings, memory: Memory | None = None) -> float | None:
    last = remember(memory or Memory(), readings, NOW).last
    return None if last is None else last.at_s


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        (Readings(), None),
        (Readings(sessions=(sessions("active"),)), NOW),
        (Readings(sessions=(sessions("idle in transaction"),)), NOW),
        (Readings(sessions=(sessions("idle in transaction (aborted)"),)), NOW),
        (Readings(sessions=(sessions("fastpath function call"),)), NOW),
        (Readings(sessions=(sessions("disabled"),)), NOW),
        (Readings(sessions=(sessions("a state of a later version"),)), NOW),
        (Readings(sessions=(sessions("idle"),)), EARLIER),
        (Readings(sessions=(sessions("idle"), sessions("active"))), NOW),
        (Readings(sessions=(sessions("idle", None),)), None),
        (Readings(sessions=(sessions(None, NOW),)), None),
        (Readings(sessions=(sessions("starting"),)), None),
        (Readings(sessions=(sessions("active", own=True),)), None),
        (Readings(sessions=(sessions("idle", own=True),)), None),
        (Readings(sessions=(sessions("active", count=0),)), None),
        (Readings(walsenders=1), NOW),
        (Readings(subscriptions=1), NOW),
        (Readings(autovacuum_workers=1), NOW),
        (Readings(totals=Totals(5, 12.5)), None),
    ],
)
def test_each_kind_of_row_counts_as_the_table_says(readings: Readings, expected: float | None) -> None:
    assert seen(readings) == expected


@pytest.mark.parametrize("totals", [Totals(6, 1.0), Totals(5, 1.5), Totals(4, 0.0)])
def test_counters_that_moved_since_the_last_look_are_activity(totals: Totals) -> None:
    assert seen(Readings(totals=totals), Memory(totals=Totals(5, 1.0))) == NOW


def test_counters_that_stand_still_are_no_activity() -> None:
    assert seen(Readings(totals=Totals(5, 1.0)), Memory(totals=Totals(5, 1.0))) is None


def test_the_first_look_at_counters_only_remembers_them() -> None:
    memory = remember(Memory(), Readings(totals=Totals(5, 1.0)), NOW)

    assert memory == Memory(totals=Totals(5, 1.0))


def test_counters_are_forgotten_while_they_are_not_read() -> None:
    memory = remember(Memory(totals=Totals(5, 1.0)), Readings(), NOW)

    assert seen(Readings(totals=Totals(9, 1.0)), memory) is None


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        (
            Readings(
                sessions=(sessions("active"),),
                walsenders=1,
                subscriptions=1,
                autovacuum_workers=1,
                totals=Totals(2, 0),
            ),
            "sessions came or were active since the last look",
        ),
        (
            Readings(
                sessions=(sessions("idle"), sessions("active")),
                walsenders=1,
                subscriptions=1,
                autovacuum_workers=1,
            ),
            "a session is active",
        ),
        (Readings(sessions=(sessions("idle"),), walsenders=1), "a session became idle"),
        (Readings(walsenders=1, subscriptions=1, autovacuum_workers=1), "a replication connection"),
        (Readings(subscriptions=1, autovacuum_workers=1), "a logical subscription"),
        (Readings(autovacuum_workers=1), "an autovacuum worker"),
    ],
)
def test_the_first_check_that_finds_activity_names_the_reason(readings: Readings, reason: str) -> None:
    last = remember(Memory(totals=Totals(1, 0)), readings, NOW).last

    assert last is not None
    assert last.reason == reason


def test_the_latest_of_several_idle_sessions_counts() -> None:
    readings = Readings(sessions=(sessions("idle", EARLIER - 100), sessions("idle", EARLIER)))

    assert seen(readings) == EARLIER


def test_an_idle_time_that_is_not_later_lets_the_other_checks_speak() -> None:
    memory = Memory(last=Activity(EARLIER, "before"))

    assert seen(Readings(sessions=(sessions("idle", EARLIER),), walsenders=1), memory) == NOW


def test_an_idle_time_before_the_last_activity_changes_nothing() -> None:
    memory = Memory(last=Activity(EARLIER, "before"))

    assert remember(memory, Readings(sessions=(sessions("idle", EARLIER - 1),)), NOW).last == memory.last


def test_an_idle_time_in_the_future_counts_as_now_and_only_once() -> None:
    readings = Readings(sessions=(sessions("idle", NOW + 3600),))

    memory = remember(Memory(), readings, NOW)
    later = remember(memory, readings, NOW + 1)

    assert memory.last is not None
    assert memory.last.at_s == NOW
    assert later.last == memory.last


def test_a_session_that_was_used_again_under_a_clock_set_back_counts_again() -> None:
    memory = remember(Memory(), Readings(sessions=(sessions("idle", NOW + 3600),)), NOW)

    later = remember(memory, Readings(sessions=(sessions("idle", NOW + 3601),)), NOW + 1)

    assert later.last is not None
    assert later.last.at_s == NOW + 1


def test_a_clock_set_back_does_not_move_the_last_activity_back() -> None:
    memory = Memory(last=Activity(NOW + 3600, "before"))

    assert seen(Readings(sessions=(sessions("active"),)), memory) == NOW + 3600


times = st.floats(min_value=0, max_value=2e9)
readings_of_any_kind = st.builds(
    Readings,
    sessions=st.lists(
        st.builds(
            Sessions,
            own=st.booleans(),
            state=st.sampled_from(["idle", "active", "idle in transaction", "starting", None]),
            count=st.integers(0, 3),
            changed_at_s=st.none() | times,
        ),
        max_size=4,
    ).map(tuple),
    walsenders=st.integers(0, 2),
    subscriptions=st.integers(0, 2),
    autovacuum_workers=st.integers(0, 2),
    totals=st.none() | st.builds(Totals, sessions=st.integers(0, 3), active_ms=times),
)


@given(st.lists(st.tuples(readings_of_any_kind, times), max_size=12))
def test_the_last_activity_never_moves_back_and_is_never_ahead_of_the_clock_that_saw_it(
    looks: list[tuple[Readings, float]],
) -> None:
    memory = Memory()
    latest_clock = 0.0
    for readings, now in looks:
        before, memory = memory, remember(memory, readings, now)
        latest_clock = max(latest_clock, now)
        if before.last is not None:
            assert memory.last is not None
            assert memory.last == before.last or memory.last.at_s > before.last.at_s
        if memory.last is not None:
            assert memory.last.at_s <= latest_clock


@given(readings_of_any_kind, times)
def test_own_sessions_never_matter(readings: Readings, now: float) -> None:
    with_own = Readings(
        sessions=(*readings.sessions, sessions("active", now, own=True), sessions("idle", now, own=True)),
        walsenders=readings.walsenders,
        subscriptions=readings.subscriptions,
        autovacuum_workers=readings.autovacuum_workers,
        totals=readings.totals,
    )

    assert remember(Memory(), with_own, now) == remember(Memory(), readings, now)

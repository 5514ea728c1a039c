"""From what a probe and a look brought to one word, and from one word to what is known."""

import pytest
from compute_node.actors.activity_monitor.checks import Readings
from compute_node.actors.activity_monitor.reach import (
    CONDITIONS,
    DOWN,
    PATIENCE_S,
    Answer,
    Health,
    Observation,
    Probe,
    Reach,
    has_crashed,
    judge,
    learn,
)

UP = Health(Reach.UP, "", 100.0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer.CHECKED, Reach.UP),
        (Answer.ALIVE, Reach.UP),
        (Answer.SILENT, Reach.SLOW),
        (Answer.NOT_NOW, Reach.RECOVERING),
        (Answer.FAILED, Reach.UNREACHABLE),
    ],
)
@pytest.mark.parametrize("probe", [Probe.NOT_MADE, Probe.ANSWERED])
def test_the_look_decides_when_the_probe_met_no_trouble(
    probe: Probe, answer: Answer, expected: Reach
) -> None:
    assert judge(probe, answer, held_up=False) is expected


@pytest.mark.parametrize("answer", Answer)
def test_a_silent_port_is_frozen_whatever_old_connections_say(answer: Answer) -> None:
    assert judge(Probe.SILENT, answer, held_up=False) is Reach.FROZEN


@pytest.mark.parametrize("answer", Answer)
def test_a_refusing_port_is_unreachable_whatever_old_connections_say(answer: Answer) -> None:
    assert judge(Probe.REFUSED, answer, held_up=False) is Reach.UNREACHABLE


@pytest.mark.parametrize("answer", Answer)
def test_a_process_that_was_held_up_itself_never_calls_postgres_frozen(answer: Answer) -> None:
    assert judge(Probe.SILENT, answer, held_up=True) is not Reach.FROZEN


def test_every_reach_that_is_down_raises_its_own_condition() -> None:
    assert set(CONDITIONS) == DOWN
    assert len(set(CONDITIONS.values())) == len(DOWN)


@pytest.mark.parametrize("reach", [reach for reach in Reach if reach is not Reach.SLOW])
def test_a_clear_observation_replaces_what_was_known(reach: Reach) -> None:
    assert learn(UP, Observation(reach, "why"), 101.0) == Health(reach, "why", 101.0)


@pytest.mark.parametrize("reach", [reach for reach in Reach if reach is not Reach.SLOW])
def test_a_timeout_of_ours_keeps_what_was_known(reach: Reach) -> None:
    health = Health(reach, "", 100.0)

    assert learn(health, Observation(Reach.SLOW), 100.0 + PATIENCE_S) == health


def test_logins_that_hang_for_long_are_a_freeze() -> None:
    health = learn(UP, Observation(Reach.SLOW), 100.1 + PATIENCE_S)

    assert health.reach is Reach.FROZEN
    assert learn(health, Observation(Reach.SLOW), 500.0).reach is Reach.FROZEN
    assert learn(health, Observation(Reach.UP), 501.0).reach is Reach.UP


def up(server_began_s: float | None) -> Observation:
    return Observation(Reach.UP, "", Readings(server_began_s=server_began_s))


def test_processes_started_anew_are_a_recovery_for_one_look() -> None:
    first = learn(UP, up(1.0), 101.0)
    assert first == Health(Reach.UP, "", 101.0, 1.0)
    assert not has_crashed(UP, first)

    second = learn(first, up(2.0), 102.0)
    assert second.reach is Reach.RECOVERING
    assert has_crashed(first, second)

    third = learn(second, up(2.0), 103.0)
    assert third == Health(Reach.UP, "", 103.0, 2.0)
    assert not has_crashed(second, third)


def test_a_recovery_that_was_seen_anyway_is_over_with_the_first_good_look_and_counted() -> None:
    seen = learn(Health(Reach.UP, "", 100.0, 1.0), Observation(Reach.RECOVERING), 101.0)
    after = learn(seen, up(2.0), 102.0)
    assert after.reach is Reach.UP
    assert has_crashed(seen, after)


def test_a_look_that_shows_nothing_of_the_server_is_no_crash() -> None:
    health = Health(Reach.UP, "", 100.0, 1.0)
    assert learn(health, up(None), 101.0) == Health(Reach.UP, "", 101.0, 1.0)
    assert learn(health, Observation(Reach.UP), 101.0) == Health(Reach.UP, "", 101.0, 1.0)

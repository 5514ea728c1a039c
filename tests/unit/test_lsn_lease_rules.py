"""What the LsnLease decides at each message; how it goes on over time is simulation/test_lsn_lease.py."""

import logging
from typing import Final

import pytest
from compute_node.actors.kit.effects import Log, Remind, Tell
from compute_node.actors.lsn_lease.port import Failed, Granted, Refused, Wanted
from compute_node.actors.lsn_lease.rules import (
    Ask,
    BreakOff,
    LeaseAnswered,
    LeaseDue,
    LeaseState,
    Show,
    decide,
    pause_s,
    renewal_s,
)
from compute_node.messages.lease import KeepLease, LeaseRefused, ReleaseLease
from compute_node.messages.secret import Secret
from compute_node.messages.spec import StaticMode
from compute_node.postgres.storage import storage_of

from doubles.specs import a_spec

SPEC: Final = a_spec(
    mode=StaticMode("0/169ad58"),
    tenant_id="ab" * 16,
    timeline_id="cd" * 16,
    pageserver_connstring=Secret("postgresql://ps"),
    storage_auth_token=Secret("token"),
)
WANTED: Final = Wanted(storage_of(SPEC), "0/169AD58", Secret("token"))
NOW_S: Final = 100.0
WALL_S: Final = 1_000_000.0
HELD: Final = LeaseState(WANTED, 7, failures=2, valid_until_s=WALL_S + 30, clock_s=WALL_S - NOW_S)


def test_what_the_spec_says_is_asked_for_with_a_number_of_its_own() -> None:
    assert decide(LeaseState(), KeepLease(SPEC), NOW_S, WALL_S) == (
        LeaseState(WANTED, 1),
        (Ask(1, WANTED), Show(None, 0.0)),
    )
    assert decide(HELD, KeepLease(SPEC), NOW_S, WALL_S) == (HELD, ())
    assert decide(HELD, ReleaseLease(), NOW_S, WALL_S) == (LeaseState(None, 8), (BreakOff(), Show(None, 0.0)))


def test_a_spec_without_storage_is_a_warning() -> None:
    state, effects = decide(LeaseState(), KeepLease(a_spec(mode=StaticMode("0/1"))), NOW_S, WALL_S)
    assert (state, effects) == (
        LeaseState(),
        (Log(logging.WARNING, "no LSN lease is asked for: pageserver connstr should be provided"),),
    )


def test_a_grant_is_shown_and_renewed() -> None:
    after = LeaseState(WANTED, 7, valid_until_s=WALL_S + 60, clock_s=WALL_S - NOW_S)
    answer = LeaseAnswered(7, Granted(round((WALL_S + 60) * 1000)))
    assert decide(HELD, answer, NOW_S, WALL_S) == (
        after,
        (
            Show("granted", WALL_S + 60),
            Log(logging.INFO, "Request succeeded, sleeping for 30 seconds"),
            Remind(30.0, LeaseDue(7)),
        ),
    )


def test_a_refusal_is_told_and_nothing_is_held() -> None:
    text = "Permanent error: lease could not be obtained, LSN is behind the GC cutoff (gone)"
    assert decide(HELD, LeaseAnswered(7, Refused("gone")), NOW_S, WALL_S) == (
        LeaseState(
            WANTED, 7, failures=2, valid_until_s=0.0, clock_s=HELD.clock_s, refusal=LeaseRefused(text)
        ),
        (
            Show("refused", 0.0),
            Log(logging.WARNING, f"Exited with error: {text}"),
            Tell(LeaseRefused(text)),
        ),
    )


def test_after_a_failure_what_is_held_is_held_and_asked_for_again_later() -> None:
    assert decide(HELD, LeaseAnswered(7, Failed("away")), NOW_S, WALL_S) == (
        LeaseState(WANTED, 7, failures=3, valid_until_s=WALL_S + 30, clock_s=HELD.clock_s),
        (
            Show("failed", WALL_S + 30),
            Log(logging.WARNING, "LSN lease request failed, trying again in 1.1 s: away"),
            Remind(1.125, LeaseDue(7)),
        ),
    )
    assert decide(HELD, LeaseDue(7), NOW_S, WALL_S) == (HELD, (Ask(7, WANTED),))


@pytest.mark.parametrize(
    "message", [LeaseDue(6), LeaseAnswered(6, Refused("")), LeaseAnswered(8, Failed(""))]
)
@pytest.mark.parametrize("state", [HELD, LeaseState(None, 7)])
def test_what_was_meant_for_an_earlier_lease_means_nothing(
    message: LeaseDue | LeaseAnswered, state: LeaseState
) -> None:
    assert decide(state, message, NOW_S, WALL_S) == (state, ())


def test_nothing_is_meant_for_a_lease_that_was_released() -> None:
    for message in (LeaseDue(7), LeaseAnswered(7, Failed(""))):
        assert decide(LeaseState(None, 7), message, NOW_S, WALL_S) == (LeaseState(None, 7), ())


def test_a_renewal_comes_at_half_time_and_never_too_soon_or_too_late() -> None:
    cases = (
        ((60.0,), 30.0),
        ((60.0, 40.0), 20.0),
        ((60.0, -40.0), 30.0),
        ((60.0, 0.0), 30.0),
        ((60.0, 0.5), 1.0),
        ((1.0,), 1.0),
        ((-1.0,), 1.0),
        ((1e9,), 300.0),
    )
    for validities, after_s in cases:
        assert renewal_s(*validities) == after_s


def test_pauses_grow_by_half_and_end_at_a_minute() -> None:
    assert [pause_s(failures) for failures in (0, 1, 2, 11, 12, 10**6)] == [
        *(0.5, 0.75, 1.125),
        pytest.approx(0.5 * 1.5**11),
        *(60.0, 60.0),
    ]

"""The transition table: complete, and what the references and decisions say of it."""

import pytest
from compute_node.actors.supervisor.lifecycle import TRANSITIONS, Event, Refused, diagram, outcome
from compute_node.messages.lifecycle import Status

ALL_PAIRS = [(status, event) for status in Status for event in Event]
TERMINATIONS = (Event.TERMINATE_FAST, Event.TERMINATE_IMMEDIATE)


def test_every_status_says_what_every_event_does() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert all(set(row) == set(Event) for row in TRANSITIONS.values())


EXPECTED = {
    (Status.EMPTY, Event.SPEC_TAKEN): Status.CONFIGURATION_PENDING,
    (Status.EMPTY, Event.START_BEGAN): Status.INIT,
    (Status.CONFIGURATION_PENDING, Event.START_BEGAN): Status.INIT,
    (Status.CONFIGURATION_PENDING, Event.RECONFIGURATION_BEGAN): Status.CONFIGURATION,
    (Status.CONFIGURATION_PENDING, Event.START_FAILED): Status.FAILED,
    (Status.CONFIGURATION_PENDING, Event.POSTGRES_LOST): Status.FAILED,
    (Status.INIT, Event.SPEC_APPLIED): Status.RUNNING,
    (Status.INIT, Event.START_FAILED): Status.FAILED,
    (Status.INIT, Event.POSTGRES_LOST): Status.FAILED,
    (Status.RUNNING, Event.SPEC_TAKEN): Status.CONFIGURATION_PENDING,
    (Status.RUNNING, Event.POSTGRES_LOST): Status.FAILED,
    (Status.RUNNING, Event.REFRESH_ASKED): Status.REFRESH_CONFIGURATION_PENDING,
    (Status.CONFIGURATION, Event.SPEC_APPLIED): Status.RUNNING,
    (Status.CONFIGURATION, Event.RECONFIGURATION_FAILED): Status.RUNNING,
    (Status.CONFIGURATION, Event.POSTGRES_LOST): Status.FAILED,
    (Status.TERMINATION_PENDING_FAST, Event.TERMINATE_IMMEDIATE): Status.TERMINATION_PENDING_IMMEDIATE,
    (Status.TERMINATION_PENDING_FAST, Event.STOPPED): Status.TERMINATED,
    (Status.TERMINATION_PENDING_FAST, Event.STOPPED_BROKEN): Status.FAILED,
    (Status.TERMINATION_PENDING_IMMEDIATE, Event.STOPPED): Status.TERMINATED,
    (Status.TERMINATION_PENDING_IMMEDIATE, Event.STOPPED_BROKEN): Status.FAILED,
    (Status.REFRESH_CONFIGURATION_PENDING, Event.REFRESH_ASKED): Status.REFRESH_CONFIGURATION_PENDING,
    (Status.REFRESH_CONFIGURATION_PENDING, Event.REFRESH_BEGAN): Status.REFRESH_CONFIGURATION,
    (Status.REFRESH_CONFIGURATION_PENDING, Event.POSTGRES_LOST): Status.FAILED,
    (Status.REFRESH_CONFIGURATION, Event.REFRESH_ENDED): Status.RUNNING,
    (Status.REFRESH_CONFIGURATION, Event.REFRESH_FAILED): Status.REFRESH_CONFIGURATION_PENDING,
    (Status.REFRESH_CONFIGURATION, Event.POSTGRES_LOST): Status.FAILED,
} | {
    (status, event): pending
    for status in (
        Status.EMPTY,
        Status.INIT,
        Status.CONFIGURATION_PENDING,
        Status.RUNNING,
        Status.FAILED,
        Status.REFRESH_CONFIGURATION_PENDING,
    )
    for event, pending in (
        (Event.TERMINATE_FAST, Status.TERMINATION_PENDING_FAST),
        (Event.TERMINATE_IMMEDIATE, Status.TERMINATION_PENDING_IMMEDIATE),
    )
}
"""Written down a second time, by hand, from `http-api` section 5 and the settled questions."""


@pytest.mark.parametrize(("status", "event"), ALL_PAIRS, ids=lambda value: value.name)
def test_a_pair_leads_where_it_should_and_every_other_pair_changes_nothing(
    status: Status, event: Event
) -> None:
    after = outcome(status, event)
    if (status, event) in EXPECTED:
        assert after is EXPECTED[status, event]
    else:
        assert isinstance(after, Refused)


@pytest.mark.parametrize("status", Status, ids=lambda value: value.name)
def test_a_termination_is_never_refused(status: Status) -> None:
    assert all(outcome(status, event) is not Refused.WRONG_STATUS for event in TERMINATIONS)


@pytest.mark.parametrize("status", Status, ids=lambda value: value.name)
def test_a_spec_is_taken_in_empty_and_running_only(status: Status) -> None:
    taken = outcome(status, Event.SPEC_TAKEN) is Status.CONFIGURATION_PENDING
    assert taken == (status in {Status.EMPTY, Status.RUNNING})


def test_nothing_leaves_terminated() -> None:
    assert all(isinstance(after, Refused) for after in TRANSITIONS[Status.TERMINATED].values())


def test_every_status_can_be_reached_from_the_first_one() -> None:
    reached, frontier = {Status.EMPTY}, [Status.EMPTY]
    while frontier:
        found = {after for after in TRANSITIONS[frontier.pop()].values() if isinstance(after, Status)}
        frontier += found - reached
        reached |= found
    assert reached == set(Status)


def test_the_diagram_has_an_arrow_for_each_pair_of_statuses() -> None:
    drawn = diagram()
    for (status, _), after in EXPECTED.items():
        if after is not status:
            assert f"    {status.value} --> {after.value}: " in drawn

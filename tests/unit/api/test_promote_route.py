"""`POST /promote`: the form of older control planes and the JSON of newer ones, each in its own words."""

from typing import Any

import pytest
from compute_node.messages.lfc import GetPrewarm, PrewarmState, PrewarmStatus
from compute_node.messages.promotion import Promote, Promoted, PromoteFailed, PromoteOutcome, PromoteRefused
from compute_node.messages.spec import spec_decoder

from doubles.node import SPEC, Client, StubSupervisor

LSN = "0/28F10D8"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
FORM_BODY = b"safekeepers=sk1%3A5454%2Csk2%3A5454&wal_flush_lsn=0%2F28F10D8"
DONE = Promoted(12, 31, 90)


@pytest.fixture(autouse=True)
def prewarmed(supervisor: StubSupervisor) -> None:
    supervisor.answers[GetPrewarm] = PrewarmState(PrewarmStatus.COMPLETED)


def by_spec(client: Client, **changes: Any) -> Any:
    return client("POST", "/promote", document={"spec": SPEC, "wal_flush_lsn": LSN} | changes)


def by_form(client: Client, body: bytes = FORM_BODY) -> Any:
    return client("POST", "/promote", headers=FORM, body=body)


def test_a_form_asks_for_safekeepers_alone_and_is_answered_with_a_word(
    client: Client, supervisor: StubSupervisor
) -> None:
    supervisor.answers[Promote] = Promoted(12, 31)
    result = by_form(client)
    assert (result.status_code, result.text) == (200, '{"status":"completed"}')
    assert supervisor.asked[-1][0] == Promote(
        LSN, safekeepers="sk1:5454,sk2:5454", prewarm=PrewarmStatus.COMPLETED
    )


def test_a_spec_is_passed_on_and_answered_with_the_times(client: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[Promote] = DONE
    result = by_spec(client)
    assert result.status_code == 200
    assert result.text == (
        '{"status":"completed","lsn_wait_time_ms":12,"pg_promote_time_ms":31,"reconfigure_time_ms":90}'
    )
    asked = supervisor.asked[-1][0]
    assert isinstance(asked, Promote)
    assert (asked.wal_flush_lsn, asked.safekeepers) == (LSN, None)
    assert asked.spec == spec_decoder.decode(b'{"format_version":1.0,"suspend_timeout_seconds":-1,"cluster":'
                                             b'{"roles":[],"databases":[]}}')  # fmt: skip


def test_without_storage_the_position_may_be_left_out(client: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[Promote] = DONE
    assert by_spec(client, wal_flush_lsn=None).status_code == 200
    assert client("POST", "/promote", document={"spec": SPEC}).status_code == 200
    asked = supervisor.asked[-1][0]
    assert isinstance(asked, Promote)
    assert asked.wal_flush_lsn is None


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (PromoteRefused("not now"), 412),
        (PromoteRefused("not so", bad_request=True), 400),
        (PromoteFailed("it did not"), 500),
    ],
    ids=["refused", "bad", "failed"],
)
def test_each_way_to_fail_has_its_status_and_each_caller_its_shape(
    client: Client, supervisor: StubSupervisor, outcome: PromoteOutcome, status: int
) -> None:
    supervisor.answers[Promote] = outcome
    error = outcome.error if not isinstance(outcome, Promoted) else ""
    form, spec = by_form(client), by_spec(client)
    assert (form.status_code, form.json) == (status, {"error": error})
    shown = {"status": "failed", "error": error} if status == 500 else {"error": error}
    assert (spec.status_code, spec.json) == (status, shown)


@pytest.mark.parametrize(
    "body",
    [
        b"safekeepers=a",
        b"wal_flush_lsn=0/1",
        b"",
        b"safekeepers=a&wal_flush_lsn=x",
        b"safekeepers=a&safekeepers=b&wal_flush_lsn=0/1",
        b"safekeepers=%ff&wal_flush_lsn=0/1",
    ],
)
def test_a_form_of_the_wrong_shape_is_refused(
    client: Client, supervisor: StubSupervisor, body: bytes
) -> None:
    result = by_form(client, body)
    assert result.status_code == 422
    assert result.json["error"].startswith("failed to deserialize form body: ")
    assert not [asked for asked, _ in supervisor.asked if isinstance(asked, Promote)]


@pytest.mark.parametrize("changes", [{"wal_flush_lsn": "x"}, {"wal_flush_lsn": 7}, {"spec": None}])
def test_json_of_the_wrong_shape_is_refused(
    client: Client, supervisor: StubSupervisor, changes: dict[str, Any]
) -> None:
    assert by_spec(client, **changes).status_code == 422
    assert not [asked for asked, _ in supervisor.asked if isinstance(asked, Promote)]

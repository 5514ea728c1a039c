"""`/lfc/prewarm` and `/lfc/offload` as a client sees them."""

import pytest
from compute_node.http.app import create_external_app
from compute_node.messages.lfc import (
    CancelPrewarm,
    GetOffload,
    GetPrewarm,
    LfcAccepted,
    LfcRefusal,
    LfcRefused,
    Offload,
    OffloadState,
    OffloadStatus,
    Prewarm,
    PrewarmState,
    PrewarmStatus,
)
from compute_node.messages.lifecycle import GetStatus, Status
from msgspec.structs import replace

from doubles.node import RUNNING, Client, StubSupervisor, node


@pytest.fixture
def manager() -> StubSupervisor:
    return StubSupervisor()


@pytest.fixture
def client(manager: StubSupervisor) -> Client:
    return Client(create_external_app(node(manager)))


def test_the_states_are_shown_as_they_are(client: Client, manager: StubSupervisor) -> None:
    manager.answers = {GetPrewarm: PrewarmState(), GetOffload: OffloadState(OffloadStatus.FAILED, error="no")}
    assert client("GET", "/lfc/prewarm").json == {
        "status": "not_prewarmed",
        "total": 0,
        "prewarmed": 0,
        "skipped": 0,
    }
    assert client("GET", "/lfc/offload").json == {"status": "failed", "error": "no"}
    manager.answers[GetPrewarm] = PrewarmState(PrewarmStatus.PREWARMING, total=10, prewarmed=4, skipped=1)
    assert client("GET", "/lfc/prewarm").json == {
        "status": "prewarming",
        "total": 10,
        "prewarmed": 4,
        "skipped": 1,
    }


@pytest.mark.parametrize(
    ("method", "target", "request_"),
    [
        ("POST", "/lfc/prewarm", Prewarm()),
        ("POST", "/lfc/prewarm?from_endpoint=ep-1", Prewarm("ep-1")),
        ("DELETE", "/lfc/prewarm", CancelPrewarm()),
        ("POST", "/lfc/offload", Offload()),
        ("POST", "/lfc/offload?force=true", Offload(force=True)),
        ("POST", "/lfc/offload?force=false", Offload()),
    ],
)
def test_what_is_asked_for_is_answered_202_with_nothing_once_it_has_begun(
    client: Client,
    manager: StubSupervisor,
    method: str,
    target: str,
    request_: Prewarm | Offload | CancelPrewarm,
) -> None:
    manager.answers[type(request_)] = LfcAccepted()
    answer = client(method, target)
    assert (answer.status_code, answer.content) == (202, b"")
    assert manager.asked[-1][0] == request_


@pytest.mark.parametrize("target", ["/lfc/prewarm?", "/lfc/prewarm?x=1", "/lfc/offload?force=perhaps"])
def test_a_bad_query_is_400(client: Client, target: str) -> None:
    assert client("POST", target).status_code == 400


@pytest.mark.parametrize(
    ("target", "why", "status"),
    [
        ("/lfc/prewarm", LfcRefusal.BUSY, 429),
        ("/lfc/offload", LfcRefusal.BUSY, 429),
        ("/lfc/offload", LfcRefusal.UNSAFE, 409),
    ],
)
def test_a_refusal_says_why(
    client: Client, manager: StubSupervisor, target: str, why: LfcRefusal, status: int
) -> None:
    manager.answers = {kind: LfcRefused(why, "because") for kind in (Prewarm, Offload)}
    answer = client("POST", target)
    assert (answer.status_code, answer.json) == (status, {"error": "because"})


@pytest.mark.parametrize("target", ["/lfc/prewarm", "/lfc/offload"])
def test_without_a_running_postgres_it_is_412_with_the_status(
    client: Client, manager: StubSupervisor, target: str
) -> None:
    manager.answers = {kind: LfcRefused(LfcRefusal.NOT_RUNNING, "no") for kind in (Prewarm, Offload)}
    manager.answers[GetStatus] = replace(RUNNING, status=Status.EMPTY)
    answer = client("POST", target)
    assert (answer.status_code, answer.json) == (412, {"error": "invalid compute status: empty"})


@pytest.mark.parametrize(
    ("method", "target"),
    [(m, t) for t in ("/lfc/prewarm", "/lfc/offload") for m in ("GET", "POST")]
    + [("DELETE", "/lfc/prewarm")],
)
def test_none_of_it_opens_without_a_token(client: Client, method: str, target: str) -> None:
    assert client(method, target, token="").status_code == 400

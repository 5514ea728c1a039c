"""The control plane: what each answer means, what is tried again, what ends a request, and what is counted."""

import json
import threading
from collections.abc import Iterator
from time import monotonic

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.messages.secret import Secret
from compute_node.postgres.web import Response
from compute_node.process import control_plane as module
from compute_node.process.configuration import ConfigurationError
from compute_node.process.control_plane import Blame, ControlPlane, Failed, Fetched, fetch, judge

from doubles import control_plane as doubles

SPEC = {"format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": {"roles": [], "databases": []}}
CONFIG: dict[str, object] = {"jwks": {"keys": []}}


def document(**changes: object) -> bytes:
    return json.dumps({"status": "attached", "spec": SPEC, "compute_ctl_config": CONFIG} | changes).encode()


@pytest.fixture
def double() -> Iterator[doubles.ControlPlane]:
    """A control plane that has a spec and wants a token."""
    with doubles.control_plane() as double:
        double.spec, double.token = SPEC, "canary"
        yield double


def plane(double: doubles.ControlPlane, compute_id: str = "node-1") -> ControlPlane:
    return ControlPlane(double.url, compute_id, Secret("canary"))


def fetched(double: doubles.ControlPlane) -> tuple[Fetched | str, list[str]]:
    """Ask once, as a start does; return the config or the error, and what was counted."""
    counted: list[str] = []
    try:
        return fetch(plane(double), Cancellation(), counted.append), counted
    except ConfigurationError as error:
        return str(error), counted


# --- What an answer means -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "blame"),
    [
        (503, "control plane is temporarily unavailable", Blame.PASSING),
        (502, "control plane request failed with 502", Blame.PASSING),
        (404, "unexpected control plane response status code: 404 Not Found", Blame.FINAL),
        (401, "unexpected control plane response status code: 401 Unauthorized", Blame.FINAL),
        (302, "unexpected control plane response status code: 302 Found", Blame.FINAL),
        (599, "unexpected control plane response status code: 599 <unknown status code>", Blame.FINAL),
    ],
)
def test_what_is_tried_again_and_what_is_final(status: int, error: str, blame: Blame) -> None:
    assert judge(Response(status, document())) == Failed(error, blame)


@pytest.mark.parametrize("body", [b"", b"{", document(status="gone"), document(spec={"cluster": 1}), b"\xff"])
def test_a_body_that_is_not_understood_is_tried_again(body: bytes) -> None:
    outcome = judge(Response(200, body))
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("could not deserialize control plane response: ")
    assert outcome.blame is Blame.PASSING


def test_attached_without_a_spec_is_final() -> None:
    outcome = judge(Response(200, document(spec=None)))
    assert outcome == Failed("compute is attached, but spec is empty", Blame.FINAL)


def test_empty_means_a_node_that_waits_and_a_spec_in_it_is_used_nevertheless() -> None:
    waits, used = judge(Response(200, document(status="empty", spec=None))), judge(Response(200, document()))
    assert isinstance(waits, Fetched)
    assert isinstance(used, Fetched)
    assert (waits.config.spec, used.config.spec is None) == (None, False)


# --- Asking -------------------------------------------------------------------------------------------------


def test_the_path_names_the_node_and_the_token_goes_along(double: doubles.ControlPlane) -> None:
    result, counted = fetched(double)
    assert isinstance(result, Fetched)
    assert double.asked == [("/prefix/compute/api/v2/computes/node-1/spec", "Bearer canary")]
    assert counted == ["200 OK"]


def test_an_id_that_no_url_could_hold_is_escaped(double: doubles.ControlPlane) -> None:
    fetch(plane(double, "a b/ü"), Cancellation())
    assert double.asked[0][0] == "/prefix/compute/api/v2/computes/a%20b/%C3%BC/spec"


def test_a_control_plane_that_comes_back_in_time_is_no_failure(
    double: doubles.ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    double.refusals.extend([503, 502])
    result, counted = fetched(double)
    assert isinstance(result, Fetched)
    assert counted == ["503 Service Unavailable", "502 Bad Gateway", "200 OK"]
    assert "attempt 2 to get config failed with: control plane request failed with 502" in caplog.messages


def test_three_failures_are_enough(double: doubles.ControlPlane) -> None:
    double.refusals.extend([503] * 4)
    error, counted = fetched(double)
    assert error == f"{module.EXHAUSTED}: control plane is temporarily unavailable"
    assert counted == ["503 Service Unavailable"] * 3


def test_a_refusal_is_not_asked_for_again(double: doubles.ControlPlane) -> None:
    double.token = "another"
    error, counted = fetched(double)
    assert error == "unexpected control plane response status code: 401 Unauthorized"
    assert counted == ["401 Unauthorized"]


def test_nobody_there_is_counted_as_unknown_and_never_tells_the_token(
    double: doubles.ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = ControlPlane("http://127.0.0.1:1", "node", Secret("canary"))
    counted: list[str] = []
    with pytest.raises(ConfigurationError, match="could not perform request to control plane") as error_info:
        fetch(nobody, Cancellation(), counted.append)
    assert counted == ["unknown"] * 3
    assert "canary" not in str(error_info.value) + caplog.text


def test_an_address_that_is_no_url_is_said_once() -> None:
    counted: list[str] = []
    with pytest.raises(ConfigurationError, match=r"give it as http://host:port or https://host:port$"):
        fetch(ControlPlane("control-plane:3000", "node", Secret("canary")), Cancellation(), counted.append)
    assert counted == ["unknown"]


def test_a_connection_that_breaks_off_is_tried_again(double: doubles.ControlPlane) -> None:
    double.cut_at = 20
    error, counted = fetched(double)
    assert isinstance(error, str)
    assert "it ended after 20 of" in error
    assert counted == ["unknown"] * 3


def test_a_server_that_keeps_the_connection_open_is_not_waited_for(double: doubles.ControlPlane) -> None:
    double.keeps_open = True
    assert isinstance(fetched(double)[0], Fetched)


def test_a_request_under_way_ends_within_a_second_of_a_cancellation(double: doubles.ControlPlane) -> None:
    double.deaf = True
    cancellation = Cancellation()
    ended: list[float] = []

    def ask() -> None:
        with pytest.raises(CancelledError):
            fetch(plane(double), cancellation)
        ended.append(monotonic())

    thread = threading.Thread(target=ask)
    thread.start()
    assert double.waiting.wait(20)
    asked_s = monotonic()
    cancellation.request()
    thread.join(20)
    assert ended
    assert ended[0] - asked_s < 1.0

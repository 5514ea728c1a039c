"""A node that asks a control plane for its config: at the start, at a hangup, and when that does not work."""

import signal
from collections.abc import Iterator

import pytest
from compute_node.postgres.binaries import Binaries

from doubles.control_plane import ControlPlane, control_plane
from fix_node import COMPUTE_ID, MakeNode, Node, setting, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    """A control plane that nobody has asked yet."""
    with control_plane() as plane:
        yield plane


@pytest.fixture
def node(make_node: MakeNode, binaries15: Binaries, plane: ControlPlane) -> Node:
    """A node of that control plane, which is not started yet."""
    node = make_node(binaries15)
    node.control_plane, plane.config = plane.url, node.own_config()
    return node


def requests(node: Node) -> dict[str, float]:
    """Return the samples of the control plane's metric by `http_status`."""
    lines = node.call("GET", "/metrics", token=None).body.splitlines()
    samples = [line for line in lines if line.startswith("compute_ctl_cplane_requests_total{")]
    assert all('rpc="GetConfig"' in sample for sample in samples)
    return {sample.split('http_status="')[1].split('"')[0]: float(sample.split()[-1]) for sample in samples}


def test_a_node_gets_its_spec_from_the_control_plane_and_again_at_a_hangup(
    node: Node, plane: ControlPlane
) -> None:
    plane.spec = spec()
    plane.refusals.append(503)
    node.start().await_status("running")
    assert requests(node) == {"503 Service Unavailable": 1, "200 OK": 1}
    assert {path for path, _ in plane.asked} == {f"/prefix/compute/api/v2/computes/{COMPUTE_ID}/spec"}
    plane.spec = spec(cluster={"settings": [*spec()["cluster"]["settings"], setting("work_mem", "7MB")]})
    node.send_signal(signal.SIGHUP)
    wait_until(lambda: node.query("show work_mem") == [("7MB",)], "the new spec is in force", 60)
    plane.refusals.append(404)
    node.send_signal(signal.SIGHUP)
    node.heard("configuration of the control plane was not applied")
    assert requests(node) == {"503 Service Unavailable": 1, "200 OK": 2, "404 Not Found": 1}
    assert node.stop() == 0, node.log


def test_postgres_can_have_the_spec_fetched_again_until_there_is_none_any_more(
    node: Node, plane: ControlPlane
) -> None:
    plane.spec = spec()
    node.start().await_status("running")
    plane.spec = spec(cluster={"settings": [*spec()["cluster"]["settings"], setting("work_mem", "9MB")]})
    assert refresh(node) == 200
    wait_until(lambda: node.query("show work_mem") == [("9MB",)], "the new spec is in force", 60)
    node.await_status("running")
    node.heard("Changing compute status from refresh-configuration to running")
    assert node.metric("pg_cctl_pagestream_request_errors_total") == 1
    plane.spec = None
    assert refresh(node) == 200
    assert node.wait() == 1
    node.heard("asked for again, and there was none")
    assert not (node.pgdata / "postmaster.pid").exists()


def refresh(node: Node) -> int:
    return node.call("POST", "/refresh_configuration", token=None, internal=True).status


def test_a_node_that_is_not_attached_waits_for_its_spec(node: Node, plane: ControlPlane) -> None:
    node.start().await_status("empty")
    assert requests(node) == {"200 OK": 1}
    assert node.stop() == 0, node.log


def test_a_node_that_the_control_plane_does_not_know_ends_at_once_and_says_why(
    node: Node, plane: ControlPlane
) -> None:
    plane.refusals.append(404)
    node.start()
    assert node.wait() == 1
    node.heard(f"getting config from control plane: {plane.url}/compute/api/v2/computes")
    node.heard("cannot get response from control plane: unexpected control plane response")
    node.heard("neither spec nor confirmation that compute is in the Empty state was received")
    assert not node.pgdata.exists()


def test_a_signal_ends_a_node_whose_control_plane_does_not_answer(node: Node, plane: ControlPlane) -> None:
    plane.deaf = True
    node.start()
    assert plane.waiting.wait(60)
    node.send_signal(signal.SIGHUP)
    node.send_signal(signal.SIGTERM)
    assert node.wait(20) == 0
    node.heard("received SIGTERM")

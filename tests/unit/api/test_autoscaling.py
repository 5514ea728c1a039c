"""`GET /autoscaling`: from the bridge's memory, and what is said where there is no bridge."""

from dataclasses import replace

from compute_node.http.app import create_external_app
from compute_node.messages.vm import Autoscaling, Decided, GetAutoscaling, MonitorPhase

from doubles.node import Client, StubSupervisor, node


def test_what_the_bridge_knows_is_shown_to_whoever_has_a_token(
    client: Client, supervisor: StubSupervisor
) -> None:
    supervisor.answers[GetAutoscaling] = Autoscaling(
        enabled=True,
        phase=MonitorPhase.SERVING,
        threshold_bytes=850,
        decisions=(Decided("2026-11-23T09:00:00.000Z", "downscale_denied", "too much is in use"),),
    )
    result = client("GET", "/autoscaling")

    assert result.status_code == 200
    assert (result.json["phase"], result.json["threshold_bytes"]) == ("serving", 850)
    assert result.json["decisions"][0]["reason"] == "too much is in use"
    assert client("GET", "/autoscaling", headers={"Authorization": ""}).status_code == 400


def test_a_node_without_autoscaling_says_so_without_asking(
    supervisor: StubSupervisor,
) -> None:
    without = replace(node(supervisor), vm_monitor_bridge=None)
    result = Client(create_external_app(without))("GET", "/autoscaling")

    assert (result.status_code, result.json["enabled"], result.json["phase"]) == (200, False, "off")
    assert supervisor.asked == []

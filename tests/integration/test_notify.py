"""A node below a service manager that waits to be told (Type=notify)."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from compute_node.postgres.binaries import Binaries

from doubles.service_manager import ServiceManager
from fix_node import MakeNode, Node, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WAIT_S = 60.0


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceManager]:
    made = ServiceManager(f"@compute-node-{tmp_path.name}-{os.getpid()}")
    monkeypatch.setenv("NOTIFY_SOCKET", made.address)
    yield made
    made.close()


def assert_only_the_node_spoke(manager: ServiceManager, node: Node) -> None:
    assert node.process is not None
    assert {told.pid for told in manager.listen()} == {node.process.pid}


def test_a_life_is_told_step_by_step_and_by_the_node_alone(
    make_node: MakeNode, binaries15: Binaries, manager: ServiceManager
) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.start()
    wait_until(lambda: manager.has("EXTEND_TIMEOUT_USEC"), "more time is asked for", WAIT_S)
    wait_until(lambda: manager.has("READY"), "ready", WAIT_S)
    assert node.status()["status"] == "running", "not before"
    assert "NOTIFY_SOCKET" not in psutil.Process(node.postmaster()).environ()

    for reload, content in enumerate(("{", node.config.read_text()), start=1):
        node.config.write_text(content)
        node.send_signal(signal.SIGHUP)
        wait_until(lambda reload=reload: manager.has("RELOADING", times=reload), "a reload", WAIT_S)  # type: ignore[misc] # the default
        wait_until(lambda reload=reload: manager.has("READY", times=1 + reload), "its end", WAIT_S)  # type: ignore[misc] # the default
    node.heard("the configuration file was not applied")
    wait_until(lambda: "compute node configured" in node.log, "a line in the log", WAIT_S)

    assert node.stop() == 0, node.log
    assert manager.has("STOPPING")
    told = [set(each.values) - {"STATUS", "EXTEND_TIMEOUT_USEC", "MONOTONIC_USEC"} for each in manager.told]
    assert [names for names in told if names] == [
        {"READY"},
        {"RELOADING"},
        {"READY"},
        {"RELOADING"},
        {"READY"},
        {"STOPPING"},
    ]
    assert_only_the_node_spoke(manager, node)


def test_a_node_without_a_spec_is_ready_when_its_control_plane_serves(
    make_node: MakeNode, binaries15: Binaries, manager: ServiceManager
) -> None:
    node = make_node(binaries15)
    node.write_config(None)
    node.start()
    wait_until(lambda: manager.has("READY"), "ready", WAIT_S)
    assert node.status()["status"] == "empty"
    assert node.stop() == 0, node.log
    assert_only_the_node_spoke(manager, node)


def test_a_start_that_fails_is_never_called_ready(
    make_node: MakeNode, binaries15: Binaries, manager: ServiceManager
) -> None:
    node = make_node(binaries15, "--dev")
    node.write_config(
        spec(cluster={"settings": [{"name": "work_mem", "value": "much", "vartype": "string"}]})
    )
    node.start()
    assert node.wait() == 1
    assert manager.has("STOPPING")
    assert not manager.has("READY")
    assert any("work_mem" in told.values.get("STATUS", "") for told in manager.told)

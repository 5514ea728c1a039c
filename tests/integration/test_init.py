"""Whole nodes under the tiny init: as PID 1 of a namespace, and as a child subreaper."""

import signal
import subprocess
import sys

import psutil
import pytest
from compute_node.postgres.binaries import Binaries

from fix_node import ROOT, MakeNode, Node
from fix_postgres import wait_until
from fix_process_tree import NAMESPACE, namespaces_are_permitted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SUBREAPER = ("env", "COMPUTE_NODE_INIT=1")


def run_below(prefix: tuple[str, ...], node: Node) -> tuple[psutil.Process, psutil.Process]:
    """Start the node, wait until it runs, and return its init and its supervisor."""
    if prefix == NAMESPACE:
        namespaces_are_permitted()
    node.command = [*prefix, sys.executable, str(ROOT / "run.py")]
    node.run()
    assert node.process is not None
    init = psutil.Process(node.process.pid)
    if prefix == NAMESPACE:
        (init,) = init.children()
    (supervisor,) = init.children()
    return init, supervisor


def cluster_state(node: Node) -> str:
    return subprocess.run(
        [node.binaries.sibling("pg_controldata"), node.pgdata],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C"},
    ).stdout


ORPHAN = """
import os
if os.fork():
    os._exit(0)
while os.getppid() != 1:
    pass
os._exit(2)
"""


def reaped(node: Node) -> float:
    lines = node.call("GET", "/metrics", token=None).body.splitlines()
    return next(
        float(line.split()[1]) for line in lines if line.startswith("compute_node_orphans_reaped_total ")
    )


def test_a_node_as_process_1_reaps_forwards_and_ends_in_order(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    init, _ = run_below(NAMESPACE, node)
    assert "run.py" in " ".join(init.cmdline()), "we stay process 1 and never become Postgres"
    assert node.postmaster() != 1

    enter = ["nsenter", "--target", str(init.pid), "--pid", "--mount"]
    subprocess.run([*enter, sys.executable, "-c", ORPHAN], check=True, timeout=60)
    wait_until(lambda: reaped(node) == 1, "the orphan was reaped", 60)
    assert node.query("select 1") == [(1,)]

    node.config.write_text("{")
    init.send_signal(signal.SIGHUP)
    node.heard("the configuration file was not applied")

    init.terminate()
    assert node.wait() == 0, node.log
    assert node.log.count("received SIGTERM") == 1
    assert node.log.count("received fast shutdown request") == 1
    assert "terminating any other active server processes" not in node.log
    assert "init:" not in node.log, "nothing was left to end"
    assert "shut down" in cluster_state(node)


@pytest.mark.parametrize("prefix", [NAMESPACE, SUBREAPER], ids=["pid namespace", "subreaper"])
def test_the_postgres_of_a_killed_supervisor_is_shut_down_by_the_init(
    make_node: MakeNode, binaries15: Binaries, prefix: tuple[str, ...]
) -> None:
    node = make_node(binaries15)
    _, supervisor = run_below(prefix, node)
    supervisor.kill()
    assert node.wait() == 128 + signal.SIGKILL, node.log
    node.heard("sending SIGINT")
    assert "shut down" in cluster_state(node)
    node.command = [sys.executable, str(ROOT / "run.py")]
    node.run()  # and clears away what only a supervisor knows of
    assert "automatic recovery" not in node.log
    assert node.stop() == 0, node.log

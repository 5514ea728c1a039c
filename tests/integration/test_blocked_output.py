"""A node whose standard error and output nobody reads: it goes on, loses lines, and counts them."""

import os
import subprocess
import sys

import pytest
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, Node, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BLOCKED = """
import contextlib, os, sys
reader, writer = os.pipe()
os.set_inheritable(reader, True)
os.set_blocking(writer, False)
with contextlib.suppress(BlockingIOError):
    while True:
        os.write(writer, bytes(4096))
os.set_blocking(writer, True)
os.dup2(writer, 1)
os.dup2(writer, 2)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs a Python program with a full pipe as its output, whose reader it is itself, and never reads."""

MEGABYTES = 100 if os.environ.get("MATRIX") == "all" else 10
"""The flood that Postgres logs; the whole one with `make matrix`."""
FLOOD = f"do $$ begin for i in 1..{MEGABYTES * 1000} loop raise log '%', repeat('x', 1000); end loop; end $$"


def dropped(node: Node) -> float:
    text = node.call("GET", "/metrics", token=None).body
    name = "compute_node_log_lines_dropped_total"
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_a_node_whose_output_is_blocked_serves_counts_what_is_lost_and_stops_in_order(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    node.command = [sys.executable, "-c", BLOCKED, *node.command[1:]]
    node.run()
    assert node.log == "", "nothing comes out"
    node.query(FLOOD)
    wait_until(lambda: dropped(node) > 0, "lines were lost", 60)
    assert node.status()["status"] == "running"
    assert node.configure(spec(cluster={"roles": [{"name": "app"}]})).status == 200
    answer = node.call("POST", "/terminate?mode=immediate")
    assert (answer.status, answer.body) == (200, {"lsn": None})
    assert node.wait() == 0
    state = subprocess.run(
        [binaries15.sibling("pg_controldata"), node.pgdata],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C"},
    )
    assert "shut down" in state.stdout

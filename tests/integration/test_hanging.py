"""A node in which something hangs for ever: it is noticed, Postgres is stopped, and the process is gone in time."""

import re
import signal
import sys

import psutil
import pytest
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, Node, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PROGRAM = """
import threading
from compute_node.actors.activity_monitor.actor import ActivityMonitor
from compute_node.actors.kit import threaded
from compute_node.actors.postgres_process.server import Server
from compute_node.actors.supervisor.actor import Supervisor
from compute_node.process import node

def hang(*_):
    threading.Event().wait()

threaded.HUNG_S = 3.0
{planted}
from compute_node.run import main
main()
"""
"""The program of a node with a fault in it."""


def plant(node: Node, fault: str) -> Node:
    node.command = [sys.executable, "-c", PROGRAM.format(planted=fault)]
    return node


def test_a_supervisor_that_hangs_is_not_live_and_the_main_thread_stops_postgres(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    fault = "Supervisor._dump_journal = hang; ActivityMonitor._look = lambda _: 1 / 0"
    node = plant(make_node(binaries15, "--dev"), fault)
    node.write_config(spec())
    node.start()
    node.heard("died of an exception")
    postmaster = psutil.Process(node.postmaster())
    shown: list[int] = []

    def ended() -> bool:
        try:
            shown.append(node.call("GET", "/live", token=None).status)
        except OSError:
            return node.ended()
        return False

    wait_until(ended, "it ends by itself", 60)
    assert 503 in shown, "before it is given up"
    assert node.wait() == 1
    assert not postmaster.is_running()
    node.heard("supervisor is given up: it hangs")
    node.heard("in hang")
    node.heard("last resort: sending SIGINT")
    node.log_path.unlink()  # its tracebacks were wanted


def test_a_stop_that_hangs_leaves_the_last_resort_what_is_left_of_its_time(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    fault = "Server.signal = lambda *_: None; Server.kill = lambda _, job: job.wait(60)"
    node = make_node(binaries15, "--stop-timeout", "4")
    command = node.command
    plant(node, fault).run()
    assert node.stop() == 1
    node.heard("Postgres was not reported stopped within the stop budget")
    (given_s,) = re.findall(
        r"last resort: sending SIGINT to postmaster \d+, which has ([0-9.]+) s to end", node.log
    )
    assert float(given_s) < 4 * 0.6, "of the whole time it would have got more than half"
    node.heard("database system is shut down")

    node.command = command
    assert node.run().stop() == 0, "it removes what the first one could not"


def test_an_actor_that_never_ends_costs_the_exit_code_and_no_time(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = plant(make_node(binaries15), "ActivityMonitor._stop = hang").run()
    assert node.stop() == 1
    node.heard("threads that did not end: activity_monitor")
    node.heard("database system is shut down")


def test_a_main_thread_that_cannot_end_is_ended_hard(make_node: MakeNode, binaries15: Binaries) -> None:
    """Its last resort hangs, too: nothing in Python is left to do it."""
    fault = "node.LAST_WORDS_S = 1.0; node.PostmasterRecord.stop = hang"
    node = plant(make_node(binaries15, "--stop-timeout", "2"), fault).run()
    assert node.stop() == 1
    node.heard("database system is shut down")


def test_a_main_thread_that_dies_stops_postgres(make_node: MakeNode, binaries15: Binaries) -> None:
    fault = "node._News.tell = lambda *_: 1 / 0"
    node = plant(make_node(binaries15), fault).run()
    assert node.stop(signal.SIGHUP) == 1, "the signal wakes it"
    node.heard("database system is shut down")
    node.heard("the main thread failed; the node is stopped")
    node.log_path.unlink()

"""A node whose Postgres, or which itself, stands still or loses a process; and the same stop asked for many times."""

import os
import re
import shlex
import signal
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from compute_node.http.waiting import MAX_WAITERS as PLACES
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, Node, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NOTICED_S = 20.0
"""Much longer than it takes to notice anything; how fast it is noticed is measured in test_activity_monitor.py."""


def conditions(node: Node) -> list[str]:
    return [report["condition"] for report in node.call("GET", "/ready", token=None).body["conditions"]]


def metric(node: Node, name: str) -> float:
    text = node.call("GET", "/metrics", token=None).body
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0)


def await_looks(node: Node) -> None:
    """Wait until the monitor has looked at Postgres twice."""
    looks = 'compute_node_messages_total{actor="activity_monitor",message="Observed"}'
    wait_until(lambda: metric(node, looks) >= 2, "the monitor has looked", NOTICED_S)
    assert conditions(node) == []


def answer_times(ask: Callable[[], Any], count: int = 9) -> list[float]:
    times = []
    for _ in range(count):
        began = time.monotonic()
        ask()
        times.append(time.monotonic() - began)
    return times


def test_a_frozen_postgres_makes_the_node_unready_and_nothing_slower_until_it_thaws(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    postmaster = node.postmaster()
    wait_until(lambda: conditions(node) == [], "ready")
    os.kill(postmaster, signal.SIGSTOP)
    wait_until(lambda: conditions(node) == ["postgres_frozen"], "it is seen", NOTICED_S)
    assert statistics.median(answer_times(node.status)) < 0.1
    assert node.status()["status"] == "running"
    os.kill(postmaster, signal.SIGCONT)
    wait_until(lambda: conditions(node) == [], "ready again", NOTICED_S)

    os.kill(postmaster, signal.SIGSTOP)
    answer = node.call("POST", "/terminate?mode=immediate")
    assert (answer.status, answer.body) == (200, {"lsn": None})
    assert node.wait() == 0, node.log
    node.heard("database system is shut down")


def test_a_killed_backend_is_shown_as_recovery_and_costs_neither_postmaster_nor_status(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    postmaster = node.postmaster()
    await_looks(node)
    before = own_sessions(node)
    seen: list[list[str]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            seen.append(conditions(node))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with psycopg.connect(
            host="127.0.0.1", port=node.postgres_port, user="cloud_admin", dbname="postgres"
        ) as session:
            os.kill(session.info.backend_pid, signal.SIGKILL)
            session.close()
        wait_until(lambda: ["recovering"] in seen, "the recovery is shown", NOTICED_S)
        wait_until(lambda: conditions(node) == [], "ready again", NOTICED_S)
    finally:
        over.set()
        watcher.join()
    assert {tuple(shown) for shown in seen} <= {(), ("recovering",), ("postgres_unreachable",)}
    assert node.postmaster() == postmaster
    assert node.status()["status"] == "running"
    assert metric(node, "compute_node_postgres_crash_restarts_total") == 1
    assert own_sessions(node).isdisjoint(before), "made anew"
    assert node.stop() == 0, node.log


def own_sessions(node: Node) -> set[int]:
    rows = node.query("select pid from pg_stat_activity where application_name like 'compute\\_ctl:%'")
    return {pid for (pid,) in rows}


# --- The node itself stands still --------------------------------------------------------------------------

HELD_BACK = """#!/bin/sh
case " $* " in
  *" -C "*|*" --"*|*" -V "*) ;;
  *) touch {folder}/held; while [ -e {folder}/hold ]; do sleep 0.02; done ;;
esac
exec {postgres} "$@"
"""
"""A Postgres that does not come up for as long as a file is there."""
FREEZE_S = 8.0
LIMIT_S = 7.0


def hold_back(node: Node) -> Path:
    """Let the node run a Postgres whose start waits until the file that is returned is removed."""
    real = Path(node.binaries.postgres)
    programs = node.folder / "bin"
    programs.mkdir()
    for program in real.parent.iterdir():
        if program.name != "postgres":
            (programs / program.name).symlink_to(program)
    folder = shlex.quote(str(node.folder))
    script = HELD_BACK.format(folder=folder, postgres=shlex.quote(str(real)))
    (programs / "postgres").write_text(script)
    (programs / "postgres").chmod(0o755)
    node.folder.chmod(0o777)
    node.flags += ["-b", str(programs / "postgres")]
    hold = node.folder / "hold"
    hold.touch()
    return hold


def test_a_freeze_of_the_node_itself_expires_neither_its_start_nor_its_stop(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    starting = make_node(binaries15, "--start-timeout", f"{LIMIT_S:g}")
    hold = hold_back(starting)
    stopping = make_node(binaries15, "--stop-timeout", f"{LIMIT_S:g}").run()
    starting.write_config(spec())
    starting.start()
    wait_until((starting.folder / "held").exists, "Postgres is being started", 30)
    with psycopg.connect(
        host="127.0.0.1", port=stopping.postgres_port, user="cloud_admin", dbname="postgres"
    ) as session:
        backend = session.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # a fast shutdown waits for it
        stopping.send_signal(signal.SIGTERM)
        wait_until(lambda: "received fast shutdown request" in stopping.log, "the stop is under way", 30)

        nodes = (starting, stopping)
        for node in nodes:
            node.send_signal(signal.SIGSTOP)
        thaw_s = time.monotonic() + FREEZE_S
        wait_until(lambda: time.monotonic() >= thaw_s, "time passes", 2 * FREEZE_S)
        for node in nodes:
            node.send_signal(signal.SIGCONT)

        assert starting.status()["status"] == "init", "the limit of its start has not passed for it"
        hold.unlink()
        assert stopping.status()["status"] == "termination_pending_fast"
        os.kill(backend, signal.SIGCONT)
        session.close()
    assert stopping.wait() == 0, stopping.log
    assert "asking for an immediate shutdown" not in stopping.log
    starting.await_status("running")
    assert starting.stop() == 0, starting.log


# --- Stops -------------------------------------------------------------------------------------------------


def test_many_terminations_at_once_are_one_stop_with_equal_answers(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    with (
        ThreadPoolExecutor(50) as callers,
        psycopg.connect(
            host="127.0.0.1", port=node.postgres_port, user="cloud_admin", dbname="postgres"
        ) as session,
    ):
        backend = session.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # the stop waits for it, until all have called
        calls = [callers.submit(node.call, "POST", "/terminate?mode=fast") for _ in range(50)]
        try:
            wait_until(lambda: sum(call.done() for call in calls) == 50 - PLACES, "all have called", 15)
        finally:
            os.kill(backend, signal.SIGCONT)
        answers = [call.result() for call in calls]
        session.close()
    waited = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 503]
    assert (len(waited), len(refused)) == (PLACES, 50 - PLACES)
    assert all(answer.body == {"lsn": None} for answer in waited)
    assert all(answer.headers["retry-after"] for answer in refused)
    again = node.call("POST", "/terminate?mode=fast")
    assert (again.status, again.body) == (201, {"lsn": None}), "the outcome can still be read"
    assert node.wait() == 0
    assert node.log.count("received fast shutdown request") == 1


def test_a_checkpoint_comes_before_a_fast_termination_while_postgres_still_serves(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    await_looks(node)
    node.query("create table t as select n, repeat('x', 500) x from generate_series(1, 40000) n")
    assert node.call("POST", "/terminate?mode=fast").status == 200
    said = node.log[node.log.index("termination-pending-fast") :]
    assert said.index("checkpoint starting: immediate force wait") < said.index(
        "received fast shutdown request"
    )
    node.send_signal(signal.SIGTERM)
    assert node.wait() == 0


def test_a_planned_stop_is_no_downtime_and_no_error(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15).run()
    await_looks(node)
    assert node.call("POST", "/terminate?mode=fast").status == 200
    assert metric(node, "compute_pg_downtime_ms_total") == 0
    assert metric(node, "compute_pg_current_downtime_ms") == 0
    node.send_signal(signal.SIGTERM)
    assert node.wait() == 0
    after = node.log[node.log.index("termination-pending-fast") :].splitlines()
    bad = [line for line in after if re.search(r'"level":"(ERROR|WARN)"|(FATAL|ERROR|PANIC):', line)]
    assert all("terminating connection due to administrator command" in line for line in bad), bad


def test_a_postgres_that_listens_to_nothing_is_climbed_over_within_the_budget(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--stop-timeout", "4").run()
    with psycopg.connect(
        host="127.0.0.1", port=node.postgres_port, user="cloud_admin", dbname="postgres"
    ) as session:
        os.kill(session.info.backend_pid, signal.SIGSTOP)
        postmaster = psutil.Process(node.postmaster())
        assert node.stop() == 1, node.log
        session.close()
    assert not postmaster.is_running()
    rungs = [text for text in ("asking for an immediate shutdown", "killing it") if text in node.log]
    assert rungs == ["asking for an immediate shutdown", "killing it"], node.log

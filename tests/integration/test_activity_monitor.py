"""The ActivityMonitor and its observer on real Postgres."""

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from compute_node.actors.activity_monitor.actor import ActivityMonitor, MonitorMessage
from compute_node.actors.activity_monitor.checks import Memory, Readings, remember
from compute_node.actors.activity_monitor.observer import APPLICATION_NAME, PostgresObserver
from compute_node.actors.activity_monitor.reach import Observation, Reach
from compute_node.actors.kit.actor import Ref
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.activity import ActivityObserved, StartMonitoring, StopMonitoring
from compute_node.messages.lifecycle import Condition, ConditionCleared, ConditionRaised
from compute_node.messages.metrics import CURRENT_DOWNTIME, DOWNTIME_TOTAL
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import params

from doubles.scripted import Scripted, ThreadedBench
from doubles.specs import settings
from fix_postgres import Cluster, MakeCluster, wait_until

FROZEN_WITHIN_S = 3.0
USER = "alice"
LONG_QUERY = b"SELECT pg_catalog.pg_sleep(60)"


class Looker:
    """An observer that the test looks through, at a generation of its own."""

    def __init__(self, connstr: str) -> None:
        self.observer = PostgresObserver(connstr)

    def look(self, *, experimental: bool = False, probe: bool = True) -> Observation:
        return self.observer.observe(1, experimental=experimental, probe=probe, cancellation=Cancellation())

    def read(self) -> Readings:
        observation = self.look()
        assert observation.reach is Reach.UP, observation
        assert observation.readings is not None
        return observation.readings

    def last_active(self) -> float | None:
        """When users were last active, by one look alone."""
        last = remember(Memory(), self.read(), time.time()).last
        return None if last is None else last.at_s


@pytest.fixture
def looker_at() -> Iterator[Callable[[str], Looker]]:
    with contextlib.ExitStack() as stack:

        def make(connstr: str) -> Looker:
            looker = Looker(connstr)
            stack.callback(looker.observer.close)
            return looker

        yield make


@pytest.fixture
def running(cluster: MakeCluster, binaries: Binaries) -> Cluster:
    """A running cluster with an ordinary role and a database of users."""
    made = cluster(binaries)
    made.query(f"CREATE ROLE {USER} LOGIN")
    made.query("CREATE DATABASE app")
    return made


@pytest.fixture
def looker(running: Cluster, looker_at: Callable[[str], Looker]) -> Looker:
    return looker_at(running.connstr)


def session(cluster: Cluster, user: str = USER, name: str = "app", **more: Any) -> psycopg.Connection[Any]:
    keywords: dict[str, Any] = params(cluster.target, application_name=name)
    del keywords["options"]
    return psycopg.connect(**{**keywords, "user": user, **more})


def monitor_pid(cluster: Cluster) -> int | None:
    rows = cluster.query("SELECT application_name, pid FROM pg_stat_activity", dbname="app")
    return next((int(pid) for name, pid in rows if name == APPLICATION_NAME), None)


# --- What is activity


def test_a_running_query_is_activity_now(running: Cluster, looker: Looker) -> None:
    with contextlib.closing(session(running)) as user:
        user.pgconn.send_query(LONG_QUERY)
        wait_until(lambda: "active" in {s.state for s in looker.read().sessions if not s.own}, "it runs")

        last = looker.last_active()

    assert last == pytest.approx(time.time(), abs=5)


def test_an_open_transaction_is_activity_now(running: Cluster, looker: Looker) -> None:
    with session(running) as user:
        user.execute("SELECT 1")
        states = {s.state for s in looker.read().sessions if not s.own}

    assert states == {"idle in transaction"}


@pytest.mark.parametrize("level", ["server", "database", "role"])
def test_an_idle_session_was_active_when_it_became_idle_in_any_time_zone(
    running: Cluster, looker: Looker, level: str
) -> None:
    running.query(
        {
            "server": "ALTER SYSTEM SET timezone = 'Asia/Kathmandu'",
            "database": "ALTER DATABASE postgres SET timezone = 'Asia/Kathmandu'",
            "role": "ALTER ROLE cloud_admin SET timezone = 'Asia/Kathmandu'",
        }[level]
    )
    running.query("SELECT pg_reload_conf()")
    wait_until(lambda: running.query("SHOW timezone") == [("Asia/Kathmandu",)], "the zone is set")
    with session(running, autocommit=True) as user:
        user.execute("SELECT 1")

        def expected() -> float:
            rows = running.query("SELECT usename, extract(epoch FROM state_change) FROM pg_stat_activity")
            return next(float(changed_at) for user, changed_at in rows if user == USER)

        last = looker.last_active()

        assert last == expected()
        assert last == pytest.approx(time.time(), abs=20)


def test_the_monitor_and_the_user_of_the_url_are_no_activity(running: Cluster, looker: Looker) -> None:
    assert looker.read().sessions == ()
    assert looker.read().sessions == ()
    with session(running, user="cloud_admin") as admin:
        admin.execute("SELECT 1")

        assert looker.last_active() is None
        assert [(s.own, s.state) for s in looker.read().sessions] == [(True, "idle in transaction")]


def test_a_replication_connection_is_activity_unless_it_is_walproposers(
    running: Cluster, looker: Looker
) -> None:
    with session(running, user="cloud_admin", name="walproposer", replication="true"):
        assert looker.read().walsenders == 0
        with session(running, user="cloud_admin", name="standby", replication="true"):
            assert looker.read().walsenders == 1
            assert looker.last_active() == pytest.approx(time.time(), abs=5)


def test_a_receiver_of_wal_is_activity(running: Cluster, looker: Looker) -> None:
    receiver = subprocess.Popen(
        [
            *(running.binaries.sibling("pg_receivewal"), "-D", running.folder, "--no-loop"),
            *("-h", "127.0.0.1", "-p", str(running.port), "-U", "cloud_admin"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: looker.read().walsenders == 1, "the receiver is seen")
    finally:
        receiver.send_signal(signal.SIGINT)
        receiver.wait(10)


def test_a_logical_subscription_is_activity(
    cluster: MakeCluster, binaries: Binaries, looker_at: Callable[[str], Looker]
) -> None:
    made = cluster(binaries, conf="wal_level = logical")
    made.query("CREATE DATABASE app")
    made.query("CREATE PUBLICATION pub FOR ALL TABLES")
    made.query("SELECT pg_create_logical_replication_slot('sub', 'pgoutput')")
    looker = looker_at(made.connstr)
    assert looker.read().subscriptions == 0

    made.query(
        f"CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port={made.port} user=cloud_admin dbname=postgres'"
        " PUBLICATION pub WITH (create_slot = false, slot_name = 'sub')",
        dbname="app",
    )

    wait_until(lambda: looker.read().subscriptions == 1, "the worker is seen")


def test_the_experimental_mode_sees_sessions_that_are_over(running: Cluster, looker: Looker) -> None:
    memory = Memory()

    def moved() -> bool:
        nonlocal memory
        observation = looker.look(experimental=True)
        assert observation.readings is not None
        assert observation.readings.totals is not None
        before, memory = memory, remember(memory, observation.readings, time.time())
        return before.totals is not None and memory.totals != before.totals

    wait_until(lambda: not moved() and not moved() and not moved(), "all is quiet")
    quiet = memory.last
    with session(running, dbname="app", autocommit=True) as user:
        user.execute("SELECT pg_sleep(0.02)")

    wait_until(moved, "the short session is seen")
    assert memory.last is not None
    assert memory.last != quiet
    assert looker.read().totals is None


# --- Its connection


def test_one_connection_of_its_name_serves_all_looks_until_it_is_closed(
    running: Cluster, looker: Looker
) -> None:
    looker.look()
    first = monitor_pid(running)
    for _ in range(3):
        looker.look()

    assert first is not None
    assert monitor_pid(running) == first
    looker.observer.close()
    wait_until(lambda: monitor_pid(running) is None, "the backend has ended")


def test_a_new_generation_gets_a_new_connection(running: Cluster, looker: Looker) -> None:
    looker.look()
    first = monitor_pid(running)
    looker.observer.observe(2, experimental=False, probe=False, cancellation=Cancellation())

    wait_until(lambda: monitor_pid(running) not in {first, None}, "another connection")


def test_a_connection_that_was_ended_is_replaced_within_the_same_look(
    running: Cluster, looker: Looker
) -> None:
    looker.look()
    first = monitor_pid(running)
    running.query(f"SELECT pg_terminate_backend({first}, 5000)")

    assert looker.look().reach is Reach.UP
    assert monitor_pid(running) not in {first, None}


def test_parameters_that_users_set_do_not_disturb_it(running: Cluster, looker: Looker) -> None:
    running.query("CREATE SCHEMA evil")
    running.query("CREATE VIEW evil.pg_stat_activity AS SELECT 1 / 0 AS pid")
    for setting in (
        "statement_timeout = 1",
        "search_path = evil, pg_catalog",
        "default_transaction_read_only = on",
        "jit_above_cost = 0",
    ):
        running.query(f"ALTER ROLE cloud_admin SET {setting}")
        running.query(f"ALTER DATABASE postgres SET {setting}")
    running.query(f"ALTER ROLE cloud_admin SET role = {USER}")
    running.query("ALTER DATABASE postgres SET idle_session_timeout = 1")
    with session(running, dbname="app") as user:
        user.execute("SELECT 1")
        looker.look()
        first = monitor_pid(running)

        assert {s.state for s in looker.read().sessions if not s.own} == {"idle in transaction"}
        assert monitor_pid(running) == first


def test_a_statement_timeout_of_the_url_is_not_taken_for_an_outage(
    running: Cluster, looker_at: Callable[[str], Looker]
) -> None:
    looker = looker_at(running.connstr + "?options=-c%20statement_timeout%3D1")

    assert {looker.look().reach for _ in range(10)} == {Reach.UP}


def test_it_works_over_the_unix_socket(running: Cluster, looker_at: Callable[[str], Looker]) -> None:
    looker = looker_at(f"postgresql://cloud_admin@/postgres?host={running.folder}&port={running.port}")

    assert msgspec.structs.replace(looker.read(), server_began_s=None) == Readings()


# --- Trouble


def test_a_server_that_is_gone_is_unreachable(running: Cluster, looker: Looker) -> None:
    looker.look()
    running.stop()

    observation = looker.look()

    assert observation.reach is Reach.UNREACHABLE
    assert "Connect" in observation.detail


def test_a_database_that_is_missing_is_unreachable_and_named(running: Cluster, looker: Looker) -> None:
    running.query("DROP DATABASE postgres", dbname="app")

    observation = looker.look()

    assert observation.reach is Reach.UNREACHABLE
    assert 'database "postgres" does not exist' in observation.detail


def test_a_server_that_refuses_logins_for_now_is_recovering(running: Cluster, looker: Looker) -> None:
    with session(running, autocommit=True) as user:
        os.kill(running.pid, signal.SIGTERM)  # a smart shutdown: it waits for the session
        wait_until(lambda: looker_of(running).reach is Reach.RECOVERING, "57P03")
        user.execute("SELECT 1")


def looker_of(cluster: Cluster) -> Observation:
    looker = Looker(cluster.connstr)
    try:
        return looker.look()
    finally:
        looker.observer.close()


def test_a_frozen_backend_holds_no_look_for_long_and_is_left_behind(running: Cluster, looker: Looker) -> None:
    looker.look()
    first = monitor_pid(running)
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    try:
        began = time.monotonic()
        observation = looker.look()
        took = time.monotonic() - began

        assert observation.reach is Reach.SLOW
        assert took < 1.4
        assert looker.look().reach is Reach.UP
    finally:
        os.kill(first, signal.SIGCONT)


def test_old_connections_still_show_activity_while_the_postmaster_is_frozen(
    running: Cluster, looker: Looker
) -> None:
    with session(running) as user:
        user.execute("SELECT 1")
        looker.look()
        os.kill(running.pid, signal.SIGSTOP)
        try:
            observation = looker.look()
        finally:
            os.kill(running.pid, signal.SIGCONT)

    assert observation.reach is Reach.FROZEN
    assert observation.readings is not None
    assert [s.state for s in observation.readings.sessions] == ["idle in transaction"]


def test_looks_and_probes_leave_no_line_in_the_log(running: Cluster, looker: Looker) -> None:
    before = running.log
    for _ in range(5):
        assert looker.look().reach is Reach.UP

    running.query("SELECT 1")
    assert running.log == before


def test_probes_leave_no_line_in_the_log_of_a_server_with_tls(
    cluster: MakeCluster, binaries: Binaries, looker_at: Callable[[str], Looker]
) -> None:
    made = cluster(binaries, start=False)
    key, certificate = made.pgdata / "server.key", made.pgdata / "server.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    for path in (key, certificate):
        path.chmod(0o600)
        if made.account is not None:
            os.chown(path, made.account.uid, made.account.gid)
    made.append_conf("ssl = on")
    made.start()
    before = made.log
    looker = looker_at(made.connstr)

    for _ in range(5):
        assert looker.look().reach is Reach.UP

    wait_until(lambda: len(backends_of(made.pid)) <= 1, "the probes' backends have ended")
    assert made.log == before


def backends_of(postmaster: int) -> list[str]:
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    titles = []
    for child in children:
        with contextlib.suppress(OSError):
            titles.append(Path(f"/proc/{child}/cmdline").read_text())
    return [
        title for title in titles if "cloud_admin" in title or "startup" in title or "initializing" in title
    ]


# --- The actor


class Watch:
    """The actor on threads, with somebody who hears what it says."""

    def __init__(self, cluster: Cluster) -> None:
        self.bench = ThreadedBench(watcher="supervisor")
        supervisor = self.bench.spawn("supervisor", Scripted(self.bench.recorder))
        self.observer = PostgresObserver(cluster.connstr)
        monitor = ActivityMonitor(settings(connstr=cluster.connstr), supervisor, self.observer)
        self.monitor: Ref[MonitorMessage] = self.bench.spawn("activity_monitor", monitor)

    def raised(self, condition: Condition) -> Callable[[], bool]:
        return lambda: any(
            isinstance(message, ConditionRaised) and message.condition is condition for message in self.heard
        )

    def cleared(self, condition: Condition) -> Callable[[], bool]:
        return lambda: ConditionCleared(condition) in self.heard

    @property
    def heard(self) -> tuple[Any, ...]:
        return tuple(self.bench.recorder.entries)

    def downtime(self) -> tuple[float, float]:
        """Of this outage and of all, in milliseconds."""
        read = self.bench.metrics.read
        return read(CURRENT_DOWNTIME)[()], read(DOWNTIME_TOTAL)[()]

    def end(self) -> None:
        self.monitor.tell(StopMonitoring())
        wait_until(lambda: self.observer._session is None, "the connection is closed")
        assert self.bench.stop() == ()
        assert self.bench.abandoned == []


@pytest.fixture
def watch(running: Cluster) -> Iterator[Watch]:
    watch = Watch(running)
    watch.monitor.tell(StartMonitoring(experimental=False))
    wait_until(lambda: monitor_pid(running), "the monitor is connected")
    yield watch
    watch.end()


@pytest.mark.slow
def test_a_frozen_postmaster_is_told_in_three_seconds_and_its_thaw_too(
    running: Cluster, watch: Watch
) -> None:
    os.kill(running.pid, signal.SIGSTOP)
    try:
        watch_began = time.monotonic()
        watch.bench.wait(watch.raised(Condition.POSTGRES_FROZEN))
        took = time.monotonic() - watch_began
    finally:
        os.kill(running.pid, signal.SIGCONT)
    watch_began = time.monotonic()
    watch.bench.wait(watch.cleared(Condition.POSTGRES_FROZEN))

    assert took < FROZEN_WITHIN_S
    assert time.monotonic() - watch_began < FROZEN_WITHIN_S
    assert watch.downtime()[0] == 0
    assert watch.downtime()[1] > 0


@pytest.mark.slow
def test_dropping_the_database_is_downtime_until_it_is_there_again(
    running: Cluster, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    before = watch.downtime()
    running.query("DROP DATABASE postgres WITH (FORCE)", dbname="app")
    wait_until(lambda: min(watch.downtime()) > 0, "downtime is counted")
    watch.bench.wait(watch.raised(Condition.POSTGRES_UNREACHABLE))

    running.query("CREATE DATABASE postgres", dbname="app")
    wait_until(lambda: watch.downtime()[0] == 0, "the outage is over")
    watch.bench.wait(watch.cleared(Condition.POSTGRES_UNREACHABLE))

    assert sum(before) == 0
    assert watch.downtime()[1] > 0
    assert "downtime_info" in caplog.text


@pytest.mark.slow
def test_a_killed_backend_is_followed_by_a_new_connection(running: Cluster, watch: Watch) -> None:
    first = monitor_pid(running)
    assert first is not None
    os.kill(first, signal.SIGKILL)

    def replaced() -> bool:
        with contextlib.suppress(psycopg.OperationalError):  # the server starts its crash recovery
            return monitor_pid(running) not in {first, None}
        return False

    wait_until(replaced, "another connection")
    wait_until(lambda: watch.downtime()[0] == 0, "it is up")


@pytest.mark.slow
def test_a_planned_stop_is_neither_counted_nor_logged(
    running: Cluster, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.monitor.tell(StopMonitoring())
    running.stop()
    wait_until(lambda: watch.observer._session is None, "the connection is closed")

    assert watch.downtime() == (0, 0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert not any(isinstance(message, ConditionRaised) for message in watch.heard)


@pytest.mark.slow
def test_a_server_started_again_is_watched_again(running: Cluster, watch: Watch) -> None:
    watch.monitor.tell(StopMonitoring())
    running.stop()
    running.start()
    watch.monitor.tell(StartMonitoring(experimental=False))
    with session(running) as user:
        user.execute("SELECT 1")

        watch.bench.wait(lambda: any(isinstance(message, ActivityObserved) for message in watch.heard))

    assert watch.downtime() == (0, 0)

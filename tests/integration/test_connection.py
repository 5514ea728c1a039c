"""How everybody connects: options that hold, time limits, cancellation within a second, no thread."""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import psycopg
import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.messages.secret import Secret
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.connection import QUIET_OPTIONS, connect
from compute_node.postgres.coroutines import run_async
from compute_node.postgres.target import Target
from psycopg.pq import TransactionStatus

from fix_postgres import Cluster, MakeCluster, Ports, wait_until


def in_thread(work: Callable[[], object]) -> "Future[object]":
    """Run this on a thread of its own, as the kit does."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed on to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def fetch(target: Target, sql: bytes, *extra_options: str) -> list[tuple[object, ...]]:
    async def work() -> list[tuple[object, ...]]:
        connection = await connect(target, application_name="test", extra_options=extra_options)
        async with connection:
            return await (await connection.execute(sql)).fetchall()

    return run_async(work, Cancellation())


SETTINGS = b"""SELECT current_user, current_setting('default_transaction_read_only'), current_setting('search_path'),
    current_setting('statement_timeout'), current_setting('pgaudit.log'), current_setting('application_name')"""


def test_settings_of_roles_and_databases_do_not_reach_our_sessions(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    made = cluster(binaries)
    made.query("ALTER DATABASE postgres SET search_path = elsewhere")
    made.query("ALTER DATABASE postgres SET default_transaction_read_only = on")
    made.query("ALTER ROLE cloud_admin SET statement_timeout = 1")
    assert fetch(made.target, SETTINGS) == [("cloud_admin", "off", "public", "0", "none", "test")]


def test_options_of_the_url_override_ours_and_those_of_the_caller_override_both(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    made = cluster(binaries15)
    target = Target(
        "localhost",
        made.port,
        "cloud_admin",
        "postgres",
        options="-c statement_timeout=7s -c lock_timeout=8s",
    )
    sql = b"SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('x.y')"
    assert fetch(target, sql, "lock_timeout=9s", "x.y=a b\\c\td") == [("7s", "9s", "a b\\c\td")]


def test_the_role_of_the_session_is_the_user_of_the_url_whatever_its_name(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    made = cluster(binaries15)
    made.query("""CREATE ROLE "Rôle \\ with'""quotes" SUPERUSER LOGIN""")
    target = Target("localhost", made.port, "Rôle \\ with'\"quotes", "postgres")
    assert fetch(target, b"SELECT current_role") == [("Rôle \\ with'\"quotes",)]


def test_quiet_statements_leave_no_trace_in_the_log(binaries: Binaries, cluster: MakeCluster) -> None:
    made = cluster(
        binaries, conf="log_statement = all\nlog_min_duration_statement = 0\nlog_min_error_statement = debug5"
    )
    with pytest.raises(psycopg.errors.UndefinedColumn):
        fetch(made.target, b"SELECT 'canary-4711', no_such_column", *QUIET_OPTIONS)
    seen = b"SELECT 'canary-4711', state, query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    assert fetch(made.target, seen, *QUIET_OPTIONS) == [("canary-4711", "disabled", "")]
    with pytest.raises(psycopg.errors.UndefinedColumn):
        fetch(made.target, b"SELECT 'heard-4711', no_such_column")
    made.stop()
    assert "no_such_column" in made.log
    assert "heard-4711" in made.log
    assert "canary-4711" not in made.log


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "db.test"])
def test_connecting_starts_no_thread_whatever_the_host(
    host: str, binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cluster(binaries15)
    look_up = socket.getaddrinfo

    def known(name: str, *args: Any, **options: Any) -> Any:
        return look_up("127.0.0.1" if name == "db.test" else name, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)
    target = msgspec.structs.replace(made.target, host=host)

    async def work() -> int:
        connection = await connect(target, application_name="test")
        async with connection:
            return threading.active_count()

    before = threading.active_count()
    assert run_async(work, Cancellation()) == before


def test_a_host_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    target = Target("no-such-host.invalid", 5432, "cloud_admin", "postgres")
    with pytest.raises(psycopg.OperationalError, match=r"the host 'no-such-host.invalid' .* cannot be found"):
        fetch(target, b"SELECT 1")


def test_a_server_that_listens_on_one_address_family_only_is_reached(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    made = cluster(binaries15, conf="listen_addresses = '::1'")
    assert fetch(made.target, b"SELECT 1") == [(1,)]


def test_when_nothing_listens_the_error_says_so_once(free_port: Ports) -> None:
    target = Target("localhost", free_port(), "cloud_admin", "postgres")
    with pytest.raises(psycopg.OperationalError, match="refused") as caught:
        fetch(target, b"SELECT 1")
    assert "Multiple connection attempts" not in str(caught.value)


def test_the_error_comes_from_the_address_that_answers(binaries15: Binaries, cluster: MakeCluster) -> None:
    made = cluster(binaries15, conf="listen_addresses = '127.0.0.1'")
    target = Target("localhost", made.port, "nobody_here", "postgres", Secret("canary-4711"))
    with pytest.raises(psycopg.OperationalError, match="nobody_here") as caught:
        fetch(target, b"SELECT 1")
    assert "canary-4711" not in str(caught.value)


def test_the_error_of_the_only_address_that_answers_hides_behind_no_other(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    made = cluster(binaries15, conf="listen_addresses = '::1'")
    with pytest.raises(psycopg.OperationalError, match="nobody_here"):
        fetch(Target("localhost", made.port, "nobody_here", "postgres"), b"SELECT 1")


@pytest.mark.slow
def test_a_frozen_server_costs_no_more_than_the_limit(free_port: Ports) -> None:
    async def work() -> None:
        await connect(
            Target("localhost", port, "cloud_admin", "postgres"), application_name="x", timeout_s=0.3
        )

    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        began = time.monotonic()
        with pytest.raises(psycopg.errors.ConnectionTimeout, match=r"within 0\.3 s"):
            run_async(work, Cancellation())
        assert time.monotonic() - began < 1


def statements(made: Cluster) -> list[tuple[object, ...]]:
    return made.query(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sleeper' AND state = 'active'"
    )


def test_a_cancelled_job_ends_its_statement_in_the_server(binaries15: Binaries, cluster: MakeCluster) -> None:
    made, cancellation = cluster(binaries15), Cancellation()

    async def work() -> None:
        connection = await connect(made.target, application_name="sleeper")
        async with connection:
            await connection.execute("SELECT pg_sleep(100)")

    outcome = in_thread(lambda: run_async(work, cancellation))
    wait_until(lambda: statements(made), "the statement runs")
    began = time.monotonic()
    cancellation.request()
    with pytest.raises(CancelledError):
        outcome.result(5)
    assert time.monotonic() - began < 1
    wait_until(lambda: not statements(made), "the statement is cancelled")


@pytest.mark.slow
def test_a_cancelled_job_ends_within_a_second_on_a_frozen_server(
    binaries15: Binaries, cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="psycopg")
    made, cancellation = cluster(binaries15), Cancellation()
    running = threading.Event()
    frozen: list[int] = []

    async def work() -> None:
        connection = await connect(made.target, application_name="sleeper")
        async with connection:
            query = asyncio.ensure_future(connection.execute("SELECT pg_sleep(100)"))
            while connection.info.transaction_status is not TransactionStatus.ACTIVE:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0)
            for pid in (connection.info.backend_pid, made.pid):
                os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)
            running.set()
            await query

    outcome = in_thread(lambda: run_async(work, cancellation))
    try:
        assert running.wait(5)
        began = time.monotonic()
        cancellation.request()
        with pytest.raises(CancelledError):
            outcome.result(5)
        assert time.monotonic() - began < 1
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

"""The URL of -C and the keywords and options made from it."""

import gc
import socket
import threading

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.messages.secret import Secret
from compute_node.postgres.connection import connect
from compute_node.postgres.coroutines import run_async
from compute_node.postgres.target import Target, params, parse_connstr, startup_options
from hypothesis import given
from hypothesis import strategies as st

USUAL = "postgresql://cloud_admin@localhost:55432/postgres"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (USUAL, Target("localhost", 55432, "cloud_admin", "postgres")),
        ("postgres://u@h/d", Target("h", 5432, "u", "d")),
        ("POSTGRESQL://u@h/d", Target("h", 5432, "u", "d")),
        ("postgresql://h", Target("h", 5432, "cloud_admin", "postgres")),
        ("postgresql://u:p%40ss@h:1/d", Target("h", 1, "u", "d", Secret("p@ss"))),
        ("postgresql://u:a@b@h/d", Target("h", 5432, "u", "d", Secret("a@b"))),
        ("postgresql://u:@h/d", Target("h", 5432, "u", "d", Secret(""))),
        ("postgresql://a%20b:x@h/d%2Fe", Target("h", 5432, "a b", "d/e", Secret("x"))),
        ("postgresql://u@[::1]:5433/d", Target("::1", 5433, "u", "d")),
        ("postgresql://u@%2Fvar%2FRun:5433/d", Target("/var/Run", 5433, "u", "d")),
        (
            "postgresql:///d?host=/tmp/S&port=7&user=me&password=p",
            Target("/tmp/S", 7, "me", "d", Secret("p")),
        ),
        ("postgresql://h?dbname=d2", Target("h", 5432, "cloud_admin", "d2")),
        (
            "postgresql://u@h/d?options=-c%20a%3Db&sslmode=disable&application_name=x&connect_timeout=3",
            Target("h", 5432, "u", "d", options="-c a=b"),
        ),
        ("postgresql://u@h/d?options=-c a=1+2", Target("h", 5432, "u", "d", options="-c a=1+2")),
    ],
)
def test_a_url_is_read(url: str, target: Target) -> None:
    assert parse_connstr(url) == target


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "cannot parse connstr as a URL"),
        ("host=localhost port=5432", "cannot parse connstr as a URL: give it as postgresql://"),
        ("localhost:5432/postgres", "cannot parse connstr as a URL"),
        ("postgresql:u@h", "cannot parse connstr as a URL"),
        ("postgresql://[::1/d", "cannot parse connstr as a URL"),
        ("postgresql://u@h/d\n", "cannot parse connstr as a URL: it contains control characters"),
        ("mysql://u@h/d", "cannot build postgres config from connstr: its scheme"),
        ("postgresql://u:canary#4711@h/d", "cannot build postgres config from connstr: a `#`"),
        ("postgresql://u:canary/4711@h/d", "port must be a number"),
        ("postgresql:///d", "names no host"),
        ("postgresql://u@a,b/d", "several hosts"),
        ("postgresql://u@h:0/d", "from 1 to 65535"),
        ("postgresql://u@h:65536/d", "from 1 to 65535"),
        ("postgresql://u@h:٣/d", "from 1 to 65535"),
        ("postgresql://u@h:x/d", "from 1 to 65535"),
        ("postgresql://u%00x@h/d", "NUL"),
        ("postgresql://u:canary%00@h/d", "NUL"),
        ("postgresql://u:canary%ff@h/d", "not UTF-8"),
        (f"postgresql://{'u' * 64}@h/d", "its user: a name has at most 63 bytes"),
        (f"postgresql://u@h/{'d' * 64}", "its database: a name has at most 63 bytes"),
        ("postgresql://u@h/d?sslmode=verify-full", "no TLS"),
        ("postgresql://u@h/d?sslcert=x", "'sslcert' is not known"),
        ("postgresql://u@h/d?canary", "no value"),
    ],
)
def test_what_is_no_url_of_a_postgres_is_refused_without_repeating_it(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^cannot ") as caught:
        parse_connstr(url)
    assert reason in str(caught.value)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for url in (text, f"postgresql://{text}"):
        try:
            assert parse_connstr(url).host
        except ValueError as error:
            assert str(error).startswith("cannot ")  # noqa: PT017 - either outcome is fine


def test_a_target_does_not_show_its_password() -> None:
    assert "canary" not in repr(parse_connstr("postgresql://u:canary@h/d"))


def test_localhost_comes_with_its_addresses() -> None:
    keywords = params(parse_connstr(USUAL), application_name="compute_ctl:apply_config")
    assert keywords == {
        "host": "localhost,localhost",
        "hostaddr": "127.0.0.1,::1",
        "port": "55432",
        "user": "cloud_admin",
        "dbname": "postgres",
        "options": "-c role=cloud_admin -c default_transaction_read_only=off -c search_path=public"
        " -c statement_timeout=0 -c pgaudit.log=none",
        "application_name": "compute_ctl:apply_config",
        "client_encoding": "UTF8",
        "sslmode": "disable",
        "gssencmode": "disable",
        "connect_timeout": "5",
    }


def test_another_database_and_a_password_are_handed_on() -> None:
    target = parse_connstr("postgresql://u:p@h/d")
    keywords = params(target, application_name="x", dbname="other", connect_timeout_s=0.1)
    assert (keywords["dbname"], keywords["password"], keywords["host"]) == ("other", "p", "h")
    assert "hostaddr" not in keywords
    assert keywords["connect_timeout"] == "2", "libpq's floor"


def test_options_of_the_url_follow_ours_and_those_of_the_caller_come_last() -> None:
    target = Target("h", 1, "a b\\c", "d", options="-c x=1")
    options = startup_options(target, ("y=2 3",))
    assert options.startswith("-c role=a\\ b\\\\c -c default_transaction_read_only=off ")
    assert options.endswith(" -c pgaudit.log=none -c x=1 -c y=2\\ 3")


def test_a_coroutine_is_run_to_its_value() -> None:
    async def work() -> int:
        return 7

    assert run_async(work, Cancellation()) == 7


def test_an_error_of_a_coroutine_is_raised() -> None:
    async def work() -> None:
        raise KeyError("x")  # noqa: EM101 - the shortest error

    with pytest.raises(KeyError):
        run_async(work, Cancellation())


def test_a_job_that_is_cancelled_before_it_starts_never_starts() -> None:
    cancellation = Cancellation()
    cancellation.request()
    started = []

    async def work() -> None:
        started.append(1)

    with pytest.raises(CancelledError):
        run_async(work, cancellation)
    assert not started


def test_a_cancellation_from_another_thread_ends_the_coroutine_and_runs_its_clean_up() -> None:
    import asyncio

    cancellation, cleaned = Cancellation(), []

    async def work() -> None:
        try:
            threading.Thread(target=cancellation.request).start()
            await asyncio.Event().wait()
        finally:
            cleaned.append(1)

    with pytest.raises(CancelledError):
        run_async(work, cancellation)
    assert cleaned


@pytest.mark.slow
def test_a_coroutine_that_clings_to_its_life_is_cut_off() -> None:
    import asyncio

    cancellation = Cancellation()

    async def work() -> None:
        cancellation.request()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()

    with pytest.raises(CancelledError):
        run_async(work, cancellation)


def test_an_error_caused_by_the_cancellation_counts_as_the_cancellation() -> None:
    import asyncio

    cancellation = Cancellation()

    async def work() -> None:
        cancellation.request()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("the connection is closed") from None  # noqa: EM101, TRY003 - as psycopg does

    with pytest.raises(CancelledError):
        run_async(work, cancellation)


def test_a_cancellation_after_the_end_is_harmless() -> None:
    cancellation = Cancellation()

    async def work() -> int:
        return 7

    assert run_async(work, cancellation) == 7
    cancellation.request()


def test_a_login_that_is_broken_off_closes_its_socket_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = parse_connstr(f"postgresql://cloud_admin@127.0.0.1:{server.getsockname()[1]}/postgres")
        cancellation = Cancellation()
        errors: list[BaseException] = []

        def log_in() -> None:
            try:
                run_async(lambda: connect(target, application_name="test", timeout_s=30), cancellation)
            except CancelledError as error:
                errors.append(error)

        gc.disable()  # the collector would close it, some time
        try:
            thread = threading.Thread(target=log_in)
            thread.start()
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(10)
                assert accepted.recv(1024), "the startup packet"
                cancellation.request()
                thread.join(10)
                assert accepted.recv(1024) == b"", "closed, although its error is still held"
        finally:
            gc.enable()
        assert len(errors) == 1

"""The caches of real servers: what is saved is back after a restart, and nobody else notices."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.lfc_manager import buffers, caches
from compute_node.actors.lfc_manager.blocks import Buffers, Relation, decode, encode
from compute_node.actors.lfc_manager.caches import PostgresCache
from compute_node.actors.lfc_manager.packing import StateError
from compute_node.actors.lfc_manager.port import CacheError, Counts, NoModuleError
from compute_node.postgres.accounts import Account
from compute_node.postgres.asking import ask
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import params

from doubles.specs import settings
from fix_postgres import Cluster, MakeCluster, run_as, wait_until

CONF = "shared_buffers = 128MB"
"""A table that is larger than a quarter of it would pass through a few buffers only."""
ODD = 'odd "name"'
HOSTILE = """\
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.pg_prewarm(regclass, text, text, int8, int8) RETURNS int8 LANGUAGE plpgsql
    AS 'BEGIN RAISE ''hostile''; END';
CREATE FUNCTION hostile.sum(int8) RETURNS int8 LANGUAGE plpgsql AS 'BEGIN RAISE ''hostile''; END';
CREATE FUNCTION hostile.stop() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''hostile''; END';
CREATE EVENT TRIGGER stop ON ddl_command_start EXECUTE FUNCTION hostile.stop();
ALTER ROLE cloud_admin SET search_path = hostile, pg_catalog, public
"""


PLANTED = """\
SET ROLE owner; CREATE SCHEMA neon;
SET ROLE owner; CREATE FUNCTION neon.get_local_cache_state(max_chunks integer DEFAULT NULL) RETURNS bytea
    LANGUAGE plpgsql AS 'BEGIN ALTER ROLE owner SUPERUSER; RETURN NULL; END';
SET ROLE owner; CREATE FUNCTION neon.prewarm_local_cache(state bytea, n_workers integer DEFAULT 1) RETURNS void
    LANGUAGE plpgsql AS 'BEGIN ALTER ROLE owner SUPERUSER; END';
SET ROLE owner; CREATE FUNCTION neon.get_prewarm_info() RETURNS record LANGUAGE sql AS 'SELECT 1, 1, 0, 0'
"""


def cache_of(cluster: Cluster) -> PostgresCache:
    return PostgresCache(settings(connstr=cluster.connstr))


def take(cluster: Cluster) -> bytes:
    state = cache_of(cluster).take(Cancellation()).state
    assert state is not None
    return state


def life(cluster: Cluster) -> str:
    name = cache_of(cluster).take(Cancellation()).life
    assert name is not None
    return name


def crash(cluster: Cluster) -> None:
    """Kill a process of Postgres, and return when the postmaster has started the others anew."""
    before = life(cluster)
    ((pid,),) = cluster.query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'")
    os.kill(pid, signal.SIGKILL)

    def has_recovered() -> bool:
        with contextlib.suppress(CacheError, AssertionError):
            return life(cluster) != before
        return False

    wait_until(has_recovered, "it has recovered", 30)


def load(
    cluster: Cluster,
    state: bytes,
    cancellation: Cancellation | None = None,
    progress: Callable[[Counts], None] = lambda _: None,
) -> Counts:
    return cache_of(cluster).load(state, progress, cancellation or Cancellation())


def several(cluster: Cluster, statements: str, dbname: str | None = None) -> None:
    for statement in statements.split(";\n"):
        cluster.query(statement, dbname=dbname)


FILL = """\
CREATE TABLE {0} AS SELECT n, repeat('x', 380) AS x FROM generate_series(1, 40000) AS n;
CREATE INDEX ON {0} (n);
SELECT count(*) FROM {0}
"""


SMALL = "CREATE TABLE {} AS SELECT repeat('x', 900) FROM generate_series(1, 4000)"


def fill(cluster: Cluster, dbname: str | None = None, table: str = "t") -> None:
    """Make a table of some 16 MB, with an index, and read it."""
    several(cluster, FILL.format(table), dbname)


def blocks(state: bytes, *names: str) -> dict[tuple[str, str], int]:
    """Return how many blocks of the main forks are cached, by database and relation."""
    return {
        (relation.database, relation.name): relation.blocks
        for relation in decode(state).relations
        if relation.fork == 0 and (not names or relation.name in names)
    }


def restart(cluster: Cluster) -> None:
    cluster.query("CHECKPOINT")
    cluster.stop()
    cluster.start()


@pytest.mark.slow
def test_after_a_restart_the_blocks_of_all_databases_are_back_and_nothing_is_left_in_any_catalog(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries, conf=CONF)
    postgres.query(f'CREATE DATABASE "{ODD.replace(chr(34), chr(34) * 2)}"')
    fill(postgres)
    fill(postgres, ODD, '"Ünder ""quotes"""')
    for dbname in ("postgres", ODD):
        several(postgres, HOSTILE, dbname)
    functions = "SELECT count(*), max(oid) FROM pg_catalog.pg_proc"
    before = [postgres.query(functions, dbname=dbname) for dbname in ("postgres", ODD)]
    state = take(postgres)
    saved = blocks(state, "t", "t_n_idx", 'Ünder "quotes"')
    assert saved["postgres", "t"] > 2_000
    assert saved[ODD, 'Ünder "quotes"'] > 2_000
    assert any(relation.database == "" for relation in decode(state).relations), "what all databases share"
    assert len(state) < 20_000

    restart(postgres)
    cold = blocks(take(postgres), "t", 'Ünder "quotes"')
    assert sum(cold.values()) == 0
    told: list[Counts] = []
    counts = load(postgres, state, progress=told.append)
    assert counts.prewarmed + counts.skipped == counts.total == decode(state).total
    assert counts.skipped <= counts.total // 100
    assert told[0] == Counts(counts.total)
    assert told == sorted(told, key=lambda one: one.prewarmed)
    back = blocks(take(postgres))
    assert all(back.get(name, 0) >= 0.95 * count for name, count in saved.items()), (saved, back)
    assert [postgres.query(functions, dbname=dbname) for dbname in ("postgres", ODD)] == before
    assert "hostile" not in postgres.log


@pytest.mark.slow
def test_what_is_gone_cut_rewritten_or_locked_is_skipped_and_the_rest_is_read(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "TELL_S", 0.0)
    told: list[Counts] = []
    postgres = cluster(binaries15, conf=CONF)
    postgres.query("CREATE DATABASE gone")
    for table in ("dropped", "cut", "rewritten", "locked", "kept"):
        postgres.query(SMALL.format(table))
    postgres.query(SMALL.format("dropped"), dbname="gone")
    state = take(postgres)
    saved = blocks(state, "dropped", "cut", "rewritten", "locked", "kept")
    assert len(saved) == 6
    postgres.query("DROP DATABASE gone")
    postgres.query("DROP TABLE dropped")
    postgres.query("DELETE FROM cut WHERE ctid >= '(100,0)'")
    postgres.query("VACUUM cut")
    postgres.query("VACUUM FULL rewritten")
    restart(postgres)
    keywords: dict[str, Any] = params(postgres.target, application_name="locker")
    with psycopg.connect(**keywords) as locker:
        locker.execute("LOCK TABLE locked")
        counts = load(postgres, state, progress=told.append)
    assert any(one.skipped > 0 and one.prewarmed < counts.prewarmed for one in told), (
        "both are told meanwhile"
    )
    assert all(one.prewarmed + one.skipped <= one.total for one in told)
    back = blocks(take(postgres), *(name for _, name in saved))
    assert back.pop(("postgres", "kept")) == saved["postgres", "kept"]
    assert 90 <= back.pop(("postgres", "cut")) <= 101
    assert sum(back.values()) < 20, back
    lost = sum(count for name, count in saved.items() if name[1] not in {"kept", "cut"})
    assert lost <= counts.skipped < counts.total
    assert counts.prewarmed + counts.skipped == counts.total


@pytest.mark.parametrize("begins", [b"SELECT pg_catalog.pg_is_in", b"SELECT pg_catalog.sum"])
def test_a_database_that_is_dropped_during_a_prewarm_is_skipped(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, begins: bytes
) -> None:
    postgres = cluster(binaries15, conf=CONF)
    postgres.query("CREATE DATABASE doomed")
    for dbname in ("postgres", "doomed"):
        postgres.query(SMALL.format("t"), dbname=dbname)
    state = take(postgres)
    saved = blocks(state, "t")
    with dropping(postgres, begins, monkeypatch):
        counts = load(postgres, state)
    assert counts.prewarmed + counts.skipped == counts.total
    assert counts.prewarmed >= saved["postgres", "t"]
    assert counts.skipped >= saved["doomed", "t"]


def test_a_database_that_is_dropped_during_an_offload_is_left_out(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries15, conf=CONF)
    postgres.query("CREATE DATABASE doomed")
    for dbname in ("postgres", "doomed"):
        postgres.query(SMALL.format("t"), dbname=dbname)
    with dropping(postgres, b"SELECT w.n, s.", monkeypatch):
        assert {database for database, _ in blocks(take(postgres), "t")} == {"postgres"}


@contextlib.contextmanager
def dropping(cluster: Cluster, begins: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Drop the database `doomed` when our session in it is about to say what begins so."""
    dropped = threading.Event()

    async def met(connection: Any, statement: bytes, *args: Any) -> Any:
        if connection.info.dbname == "doomed" and statement.startswith(begins) and not dropped.is_set():
            dropped.set()
            await asyncio.to_thread(cluster.query, "DROP DATABASE doomed WITH (FORCE)")
        return await ask(connection, statement, *args)

    monkeypatch.setattr(buffers, "ask", met)
    yield
    assert dropped.is_set()


def test_a_session_that_somebody_ends_is_no_relation_that_is_gone(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries15)
    postgres.query(SMALL.format("t"))
    state = take(postgres)
    monkeypatch.setattr(
        buffers, "READ", "SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid()), $1 /* {} */"
    )
    with pytest.raises(CacheError, match="loading LFC state into postgres: terminating connection"):
        load(postgres, state)


def test_names_that_are_not_utf_8_are_left_out_and_the_rest_is_saved(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15, conf=CONF)
    postgres.query(
        "CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    keywords: dict[str, Any] = params(postgres.target, application_name="test", dbname="bytes")
    keywords["client_encoding"] = "SQL_ASCII"
    with psycopg.connect(autocommit=True, **keywords) as connection:
        for name in (b"t", "t\u00fcr".encode(), b"caf\xe9"):
            connection.execute(SMALL.encode().replace(b"{}", b'"' + name + b'"'))
        connection.execute(b'CREATE DATABASE "caf\xe9"')
    state = take(postgres)
    assert set(blocks(state, "t", "t\u00fcr")) == {("bytes", "t"), ("bytes", "t\u00fcr")}
    assert {database for database, _ in blocks(state)} <= {"", "postgres", "bytes"}
    assert load(postgres, state).prewarmed >= sum(blocks(state, "t", "t\u00fcr").values())


@pytest.mark.slow
def test_no_more_is_read_than_there_is_room_for(binaries15: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries15, conf=CONF)
    fill(postgres)
    state = take(postgres)
    postgres.append_conf("shared_buffers = 4MB")
    restart(postgres)
    counts = load(postgres, state)
    assert counts.prewarmed == 512
    assert counts.skipped == counts.total - 512


@pytest.mark.slow
def test_a_standby_is_warmed_by_its_primarys_state_where_the_extension_came_with_the_copy(
    binaries15: Binaries, cluster: MakeCluster, account: Account | None, caplog: pytest.LogCaptureFixture
) -> None:
    primary, standby = cluster(binaries15, conf=CONF), cluster(binaries15, start=False)
    primary.query("CREATE DATABASE without")
    primary.query("CREATE SCHEMA elsewhere")
    primary.query("CREATE EXTENSION pg_prewarm SCHEMA elsewhere")
    primary.query("CREATE EXTENSION pg_buffercache")
    fill(primary)
    fill(primary, "without")
    state = take(primary)
    primary.query("CHECKPOINT")
    primary.stop()
    run_as(account, "rm", "-r", standby.pgdata)
    run_as(account, "cp", "-a", "--reflink=auto", primary.pgdata, standby.pgdata)
    run_as(account, "touch", standby.pgdata / "standby.signal")
    standby.append_conf(f"port = {standby.port}\nunix_socket_directories = '{standby.folder}'")
    standby.start()
    wait_until(lambda: standby.query("SELECT pg_is_in_recovery()") == [(True,)], "it is a standby")
    counts = load(standby, state)
    saved, back = blocks(state), blocks(take(standby))
    assert back["postgres", "t"] >= 0.95 * saved["postgres", "t"]
    assert back["postgres", "t_n_idx"] >= 0.95 * saved["postgres", "t_n_idx"]
    assert back.get(("without", "t"), 0) < 10
    assert counts.skipped >= saved["without", "t"]
    assert (
        "for 1 databases: 'without' (a standby has the extension pg_prewarm only from its primary"
        in caplog.text
    )
    alone = encode(Buffers(tuple(one for one in decode(state).relations if one.database == "without")))
    with pytest.raises(NoModuleError, match="CREATE EXTENSION pg_prewarm there, in the database 'without'"):
        load(standby, alone)
    elsewhere = settings(connstr=standby.connstr.removesuffix("postgres") + "without")
    with pytest.raises(
        NoModuleError, match="CREATE EXTENSION pg_buffercache there, in the database 'without'"
    ):
        PostgresCache(elsewhere).take(Cancellation())


@pytest.mark.slow
def test_a_crash_gives_the_cache_another_life_and_a_load_that_it_meets_is_no_complete_one(
    binaries: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries, conf=CONF)
    postgres.query(SMALL.format("t"))
    state = take(postgres)
    assert load(postgres, state).life == life(postgres) == life(postgres)
    postgres.query("CHECKPOINT")  # a recovery reads what it replays
    before = life(postgres)
    loaded = buffers.load

    async def met(*args: Any) -> Counts:
        """Between the last database and the end, when no session of ours is at work."""
        counts = await loaded(*args)
        await asyncio.to_thread(crash, postgres)
        return counts

    monkeypatch.setattr(buffers, "load", met)
    with pytest.raises(CacheError, match="loading LFC state into postgres: "):
        load(postgres, state)
    assert life(postgres) != before
    assert sum(blocks(take(postgres), "t").values()) < 10, "nothing is left"


def test_functions_that_a_user_calls_those_of_the_extension_are_not_called(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    """Whoever owns the database can make a schema `neon`; what we call there runs as the superuser."""
    postgres = cluster(binaries15)
    postgres.query("CREATE ROLE owner")
    postgres.query("ALTER DATABASE postgres OWNER TO owner")
    several(postgres, PLANTED)
    state = take(postgres)
    assert decode(state).relations
    load(postgres, state)
    assert postgres.query("SELECT rolsuper FROM pg_roles WHERE rolname = 'owner'") == [(False,)]


def test_a_user_whose_statements_are_short_is_at_work_and_the_node_itself_is_not(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15)

    def is_busy() -> bool:
        keywords: dict[str, Any] = params(postgres.target, application_name="compute_ctl:apply_config")
        with psycopg.connect(autocommit=True, **keywords) as looking:
            ((busy,),) = looking.execute(buffers.BUSY).fetchall()
            return bool(busy)

    keywords: dict[str, Any] = params(postgres.target, application_name="compute_ctl:compute_monitor")
    with psycopg.connect(autocommit=True, **keywords) as monitor:
        monitor.execute("SELECT 1")
        assert not is_busy()
        assert not is_busy(), "nor has whoever looks just now"
    keywords["application_name"] = "user"
    with psycopg.connect(autocommit=True, **keywords) as user:
        wait_until(lambda: user.execute("SELECT 1").rowcount and is_busy(), "a moment ago it was at work")
        wait_until(lambda: not is_busy(), "it has gone quiet")


@contextlib.contextmanager
def at_work(cluster: Cluster) -> Iterator[None]:
    """Let a session of a user be at work meanwhile."""

    def work() -> None:
        keywords: dict[str, Any] = params(cluster.target, application_name="user")
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(autocommit=True, **keywords) as connection,
        ):
            connection.execute("SELECT pg_sleep(300)")

    thread = threading.Thread(target=work)
    thread.start()
    at_work_now = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'user' AND state = 'active'"
    wait_until(lambda: cluster.query(at_work_now), "the user is at work")
    try:
        yield
    finally:
        cluster.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'user'"
        )
        thread.join()


@pytest.mark.slow
def test_while_users_work_a_prewarm_pauses_and_it_is_cancelled_within_a_second_the_sql_included(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries15, conf=CONF)
    fill(postgres)
    state = take(postgres)
    restart(postgres)
    monkeypatch.setattr(buffers, "TELL_S", 0.0)
    monkeypatch.setattr("compute_node.actors.lfc_manager.pace.BUSY_MIN_PAUSE_S", 1.0)
    cancellation = Cancellation()
    cancelled_s = 0.0
    ours = "FROM pg_stat_activity WHERE application_name = 'compute_ctl:apply_config'"
    priorities: set[int] = set()

    def once_it_has_begun(counts: Counts) -> None:
        nonlocal cancelled_s
        if counts.prewarmed and not cancelled_s:
            readers = postgres.query(f"SELECT pid {ours}")
            priorities.update(os.getpriority(os.PRIO_PROCESS, pid) for (pid,) in readers)
            cancelled_s = time.monotonic()
            threading.Timer(0.1, cancellation.request).start()

    with at_work(postgres), pytest.raises(CancelledError):
        load(postgres, state, cancellation, once_it_has_begun)
    assert time.monotonic() - cancelled_s < 6, "a second is the promise, and the machine may be slow"
    assert 10 in priorities, "users go first where they wait for a processor"
    wait_until(lambda: not postgres.query(f"SELECT 1 {ours}"), "no session of ours is left")
    assert sum(blocks(take(postgres), "t").values()) < decode(state).total / 2, "it had pauses"


def test_a_cancellation_ends_a_statement_that_waits_in_the_server(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries15)
    monkeypatch.setattr(buffers, "LIST", "SELECT pg_catalog.pg_sleep(50) /* {} */")
    monkeypatch.setattr(buffers, "MAKE_LISTER", b"SELECT 'pg_temp.x('")
    cancellation = Cancellation()
    sleeps = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    failure: list[BaseException] = []

    def taken() -> None:
        try:
            cache_of(postgres).take(cancellation)
        except CancelledError as error:
            failure.append(error)

    thread = threading.Thread(target=taken)
    thread.start()
    wait_until(lambda: postgres.query(sleeps) or not thread.is_alive(), "the statement runs")
    cancellation.request()
    thread.join(20)
    assert failure
    wait_until(lambda: not postgres.query(sleeps), "it has ended in the server, too")


def test_what_takes_too_long_is_broken_off_in_the_server_too(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries15)
    postgres.query(SMALL.format("t"))
    state = take(postgres)
    hurried = PostgresCache(settings(connstr=postgres.connstr), take_s=0.5, load_s=0.5)
    monkeypatch.setattr(buffers, "LIST", "SELECT pg_catalog.pg_sleep(50) /* {} */")
    monkeypatch.setattr(buffers, "READ", "SELECT pg_catalog.pg_sleep(50 + pg_catalog.length($1)) /* {} */")
    with pytest.raises(CacheError, match=r"querying LFC state: it took longer than 0\.5 s"):
        hurried.take(Cancellation())
    with pytest.raises(CacheError, match=r"loading LFC state into postgres: it took longer than 0\.5 s"):
        hurried.load(state, lambda _: None, Cancellation())
    sleeps = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_until(lambda: not postgres.query(sleeps), "both statements have ended")


def test_a_state_of_another_kind_is_refused_before_anything_is_read(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    with pytest.raises(StateError, match="not of the shared buffers of a plain Postgres"):
        load(cluster(binaries15), b"\xfc\xfc\xfc\xfc" + bytes(12))


def test_without_the_modules_or_without_postgres_it_says_so(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries15)
    for name in ("MAKE_LISTER", "MAKE_READER"):
        monkeypatch.setattr(buffers, name, getattr(buffers, name).replace(b"$libdir/", b"$libdir/no_"))
    with pytest.raises(CacheError, match=r"module pg_buffercache is not there: install PostgreSQL's contrib"):
        take(postgres)
    state = encode(Buffers((Relation("postgres", "s", "t", 0, 1, 1, "0+1"),)))
    with pytest.raises(CacheError, match=r"module pg_prewarm is not there: install PostgreSQL's contrib"):
        load(postgres, state)
    monkeypatch.setattr(caches, "HAS_NEON", b"SELECT 1/0")
    with pytest.raises(CacheError, match="querying LFC state: division by zero"):
        take(postgres)
    with pytest.raises(CacheError, match="loading LFC state into postgres: division by zero"):
        load(postgres, state)
    postgres.stop()
    with pytest.raises(CacheError, match=r"connecting to postgres: .*refused"):
        take(postgres)

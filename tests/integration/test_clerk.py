"""The Clerk's access to a real Postgres: what is asked, granted, installed and dumped."""

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from compute_node.actors.clerk.catalog import CLIENT_LEFT, PostgresCatalog
from compute_node.actors.clerk.port import Dump
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.messages.clerk import (
    CheckWritability,
    CollectInsights,
    DatabaseEntry,
    Done,
    DumpSchema,
    Insights,
    InstallExtension,
    ListCatalog,
    Listed,
    NotDone,
    Privilege,
    Query,
    QueryAnswer,
    RoleEntry,
    SetGrants,
    Writable,
)
from compute_node.messages.secret import Secret
from compute_node.messages.stream import ByteStream, StreamBrokenError
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import params
from psycopg import sql

from doubles import canaries
from doubles.specs import settings
from fix_postgres import Cluster, MakeCluster, owned_folder, wait_until

pytestmark = pytest.mark.slow

WAIT_S = 30.0
NAMES = ['  "; DROP DATABASE %s $x$ \\ \t', "options=-cjit=off", "\N{PILE OF POO}" * 15 + "abc"]
HEALTH_CHECK = (
    "CREATE TABLE public.health_check (id serial PRIMARY KEY, updated_at timestamptz DEFAULT now())"
)
SABOTAGE = (
    "SET role = 'nobody_special'",
    "SET default_transaction_read_only = on",
    "SET search_path = hostile",
    "SET statement_timeout = 1",
    "SET lock_timeout = 1",
)
"""What people set for a database, and must not matter to us."""


def access(postgres: Cluster, **changes: Any) -> PostgresCatalog:
    fields = {"connstr": postgres.connstr, "postgres_bin": postgres.binaries.postgres} | changes
    return PostgresCatalog(settings(**fields), postgres.binaries, postgres.account, None)


def ask(postgres: Cluster, query: Query, cancellation: Cancellation | None = None) -> QueryAnswer:
    return access(postgres).answer(query, cancellation or Cancellation())


def session(postgres: Cluster, dbname: str = "postgres") -> "psycopg.Connection[Any]":
    keywords: dict[str, Any] = params(postgres.target, application_name="test", dbname=dbname)
    return psycopg.connect(autocommit=True, **keywords)


def dump(
    postgres: Cluster,
    database: str,
    *,
    catalog: PostgresCatalog | None = None,
    cancellation: Cancellation | None = None,
) -> tuple[Dump, bytes, int]:
    """Dump to the end; returns the outcome, the bytes, and how often a beginning was told."""
    request = DumpSchema(database, ByteStream())
    begun: list[None] = []
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, request.stream)
        outcome = (catalog or access(postgres)).dump(
            request, lambda: begun.append(None), cancellation or Cancellation()
        )
        return outcome, reading.result(WAIT_S), len(begun)


def read(stream: ByteStream) -> bytes:
    """Read to the end, or to where it breaks off."""
    data = b""
    try:
        while piece := stream.read(WAIT_S):
            data += piece
    except StreamBrokenError:
        pass
    return data


# --- /check_writability


def test_a_write_works_whatever_people_have_set_up_and_says_why_when_it_does_not(
    cluster: MakeCluster, binaries: Binaries
) -> None:
    postgres = cluster(binaries)
    missing = ask(postgres, CheckWritability())
    assert isinstance(missing, NotDone)
    assert "SQLSTATE 42P01" in missing.error
    with session(postgres) as connection:
        connection.execute("CREATE ROLE nobody_special")
        connection.execute(HEALTH_CHECK)
        connection.execute("CREATE SCHEMA hostile")
        connection.execute("CREATE TABLE hostile.health_check (id int, updated_at int)")
        for setting in SABOTAGE:
            connection.execute(sql.SQL("ALTER DATABASE postgres " + setting))
    for _ in range(2):
        assert ask(postgres, CheckWritability()) == Writable()
    with session(postgres) as connection:
        rows = connection.execute("SELECT id, updated_at > now() - interval '1 min' FROM public.health_check")
        assert rows.fetchall() == [(1, True)]
        connection.execute("SET role = cloud_admin")
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER TABLE public.health_check OWNER TO nobody_special")
    refused = ask(postgres, CheckWritability())
    assert isinstance(refused, NotDone)
    assert 'belongs to the role "nobody_special"' in refused.error


def test_a_write_that_cannot_go_on_ends_at_its_limit_and_at_a_cancellation(
    cluster: MakeCluster, binaries15: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries15)
    postgres.query(HEALTH_CHECK)
    with session(postgres) as other, other.transaction():
        other.execute("LOCK TABLE public.health_check")
        monkeypatch.setattr(CheckWritability, "limit_s", 0.3)
        late = ask(postgres, CheckWritability())
        assert late == NotDone("it took longer than 0.3 s, and was broken off")
        monkeypatch.setattr(CheckWritability, "limit_s", WAIT_S)
        cancellation = Cancellation()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, postgres, CheckWritability(), cancellation)
            wait_until(lambda: waits_for_a_lock(postgres), "it waits", WAIT_S)
            cancellation.request()
            with pytest.raises(CancelledError):
                waiting.result(WAIT_S)
        wait_until(lambda: not waits_for_a_lock(postgres), "it ends in the server, too", WAIT_S)


def waits_for_a_lock(postgres: Cluster) -> bool:
    return bool(postgres.query("SELECT 1 FROM pg_locks WHERE NOT granted"))


def test_no_postgres_is_a_reason_and_not_an_exception(cluster: MakeCluster, binaries15: Binaries) -> None:
    postgres = cluster(binaries15, start=False)
    for query in (
        CheckWritability(),
        ListCatalog(),
        CollectInsights(),
        InstallExtension("postgres", "citext", "1.6"),
        SetGrants("postgres", "public", (Privilege.USAGE,), "x"),
    ):
        answer = ask(postgres, query)
        assert isinstance(answer, NotDone)
        assert answer.error.startswith("Failed to connect to the database: ")
        assert "\n" not in answer.error
    outcome, data, begun = dump(postgres, "postgres")
    assert (data, begun, outcome.missing) == (b"", 0, False)
    assert outcome.error is not None
    assert outcome.error.startswith("failed to execute pg_dump: it ended with 1: pg_dump: error: connection")


# --- /dbs_and_roles, /insights


def test_roles_and_databases_are_listed_as_they_are_and_what_cannot_be_is_named(
    cluster: MakeCluster, binaries: Binaries
) -> None:
    postgres = cluster(binaries)
    with session(postgres) as connection:
        connection.execute("SET password_encryption = 'scram-sha-256'")
        connection.execute("CREATE ROLE alice LOGIN PASSWORD 'x'")
        connection.execute('CREATE ROLE "o\'d\td"')
        for statement in (
            "CREATE DATABASE closed OWNER alice",
            "UPDATE pg_database SET datallowconn = false WHERE datname = 'closed'",
            "CREATE DATABASE half OWNER alice",
            "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'",
            "CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'",
        ):
            connection.execute(sql.SQL(statement))
        ((verifier,),) = connection.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = 'alice'"
        ).fetchall()
    with session(postgres, "bytes") as connection:
        connection.pgconn.exec_(b"SET client_encoding = 'SQL_ASCII'")
        connection.pgconn.exec_(b'CREATE ROLE "caf\xe9"')
    listed = ask(postgres, ListCatalog(with_passwords=True))
    assert isinstance(listed, Listed)
    roles = {role.name: role for role in listed.listing.roles}
    assert roles["alice"] == RoleEntry("alice", Secret(verifier))
    assert roles["o'd\td"] == RoleEntry("o'd\td")
    assert "pg_monitor" in roles
    databases = {entry.name: entry for entry in listed.listing.databases}
    assert databases["closed"] == DatabaseEntry("closed", "alice", restrict_conn=True, invalid=False)
    assert databases["half"] == DatabaseEntry("half", "alice", restrict_conn=False, invalid=True)
    assert databases["template0"].restrict_conn
    assert listed.listing.errors == (
        "the role 'caf\\xe9' cannot be shown: a name that belongs to it is not UTF-8",
    )
    hidden = ask(postgres, ListCatalog())
    assert isinstance(hidden, Listed)
    assert {role.encrypted_password for role in hidden.listing.roles} == {None}


def test_insights_are_those_of_the_extension_and_of_nothing_that_is_called_like_it(
    cluster: MakeCluster, binaries: Binaries
) -> None:
    postgres = cluster(binaries, conf="shared_preload_libraries = 'pg_stat_statements'")
    postgres.query("CREATE ROLE alice SUPERUSER LOGIN")
    postgres.query("CREATE VIEW public.pg_stat_statements AS SELECT 1/0 AS userid")
    assert rows_of(ask(postgres, CollectInsights())) == []
    postgres.query("CREATE SCHEMA stats")
    postgres.query("CREATE EXTENSION pg_stat_statements SCHEMA stats")
    alice: dict[str, Any] = params(postgres.target, application_name="test") | {
        "user": "alice",
        "options": "",
    }
    with psycopg.connect(autocommit=True, **alice) as connection:
        for number in range(120):
            connection.execute(sql.SQL("SELECT 1" + ", 1" * number))
        connection.execute('SELECT \'quo"te\\\' AS "odd\tname"')
    rows = rows_of(ask(postgres, CollectInsights()))
    assert len(rows) == 100
    means = [row["mean_exec_time"] + row["mean_plan_time"] for row in rows]
    assert means == sorted(means, reverse=True)
    (ours,) = postgres.query("SELECT oid FROM pg_authid WHERE rolname = 'cloud_admin'")
    assert ours[0] not in {row["userid"] for row in rows}


def test_insights_without_the_library_are_none(cluster: MakeCluster, binaries15: Binaries) -> None:
    postgres = cluster(binaries15)
    postgres.query("CREATE EXTENSION pg_stat_statements")
    assert rows_of(ask(postgres, CollectInsights())) == []


def rows_of(answer: QueryAnswer) -> list[Any]:
    assert isinstance(answer, Insights), answer
    return [msgspec.json.decode(row) for row in answer.statements.rows]


# --- /extensions, /grants


def test_an_extension_is_installed_updated_and_left_alone(cluster: MakeCluster, binaries: Binaries) -> None:
    postgres = cluster(binaries)
    versions = [
        version
        for (version,) in postgres.query(
            "SELECT version FROM pg_available_extension_versions WHERE name = 'pg_trgm' ORDER BY version"
        )
    ]
    old, new = versions[0], versions[-1]
    with session(postgres) as connection:
        connection.execute(
            "CREATE FUNCTION veto() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$no$$; END'"
        )
        connection.execute("CREATE EVENT TRIGGER veto ON ddl_command_start EXECUTE FUNCTION veto()")
    for version in (old, old, new, new):
        assert ask(postgres, InstallExtension("postgres", "pg_trgm", version)) == Done()
        installed = (
            "SELECT extversion, extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'pg_trgm'"
        )
        assert postgres.query(installed) == [(version, "public")]
    assert ask(postgres, InstallExtension("postgres", "plpgsql", "1.0")) == Done()
    assert (
        ask(
            postgres,
            InstallExtension(
                "template1",
                "adminpack" if binaries.major < 17 else "pg_surgery",
                "2.1" if binaries.major < 17 else "1.0",
            ),
        )
        == Done()
    )
    for database, extension, version, said in (
        (
            "postgres",
            'no"such',
            "1.0",
            'Failed to execute query: CREATE EXTENSION IF NOT EXISTS "no""such" WITH SCHEMA public',
        ),
        ("postgres", "pg_trgm", "0'0", 'Failed to execute query: ALTER EXTENSION "pg_trgm" UPDATE TO "0\'0"'),
        ("nowhere", "pg_trgm", new, "Failed to connect to the database: "),
    ):
        answer = ask(postgres, InstallExtension(database, extension, version))
        assert isinstance(answer, NotDone)
        assert answer.error.startswith(said)


def test_grants_are_made_once_and_need_no_write_when_they_are_there(
    cluster: MakeCluster, binaries: Binaries
) -> None:
    postgres = cluster(binaries)
    role, schema, database = "o\"dd'", "sch\\ema $1", "d %s b"
    for statement in ("CREATE ROLE {role}", "CREATE DATABASE {database}"):
        with session(postgres) as connection:
            connection.execute(
                sql.SQL(statement).format(role=sql.Identifier(role), database=sql.Identifier(database))
            )
    with session(postgres, database) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    wish = SetGrants(database, schema, (Privilege.USAGE, Privilege.CREATE, Privilege.USAGE), role)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: ask(postgres, wish), range(4))) == {Done()}
    with session(postgres, database) as connection:
        held = connection.execute(
            "SELECT has_schema_privilege(%s, %s, 'CREATE'), has_schema_privilege(%s, %s, 'USAGE')",
            [role, schema, role, schema],
        )
        assert held.fetchall() == [(True, True)]
    postgres.stop()
    (postgres.pgdata / "standby.signal").touch()
    os.chown(
        postgres.pgdata / "standby.signal",
        *((postgres.account.uid, postgres.account.gid) if postgres.account else (-1, -1)),
    )
    postgres.start()
    assert ask(postgres, wish) == Done()
    refused = ask(postgres, SetGrants(database, "public", (Privilege.CREATE,), role))
    assert isinstance(refused, NotDone)
    assert "SQLSTATE 25006" in refused.error
    write = ask(postgres, CheckWritability())
    assert isinstance(write, NotDone)


# --- /database_schema


def test_databases_with_odd_names_and_sabotaged_settings_are_dumped(
    cluster: MakeCluster, binaries15: Binaries
) -> None:
    postgres = cluster(binaries15)
    with session(postgres) as connection:
        connection.execute("CREATE ROLE nobody_special")
    for number, name in enumerate(NAMES):
        with session(postgres) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
            for setting in SABOTAGE:
                connection.execute(
                    sql.SQL("ALTER DATABASE {} ").format(sql.Identifier(name)) + sql.SQL(setting)
                )
        with session(postgres, name) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(sql.SQL(f"CREATE TABLE public.mark_{number} ()"))
    for number, name in enumerate(NAMES):
        outcome, data, begun = dump(postgres, name)
        assert outcome == Dump(len(data))
        assert begun == 1
        assert f"CREATE TABLE public.mark_{number} (".encode() in data
        assert data.rstrip().endswith(b"complete") or b"dump complete" in data[-300:]
    for name in (
        "nowhere",
        "",
        NAMES[-1] + "d",  # Postgres would cut it, and find the other
        "postgres\0",
        "dbname=postgres",
        f"postgresql://localhost:{postgres.port}/postgres",
    ):
        assert dump(postgres, name) == (Dump(error="database does not exist", missing=True), b"", 0), name


def test_a_dump_goes_only_as_fast_as_it_is_read_and_ends_when_nobody_reads(
    cluster: MakeCluster, binaries15: Binaries
) -> None:
    postgres = cluster(binaries15)
    large(postgres)
    for end in ("the client leaves", "pg_dump is killed", "the node stops"):
        request, cancellation = DumpSchema("postgres", ByteStream()), Cancellation()
        begun = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(access(postgres).dump, request, begun.set, cancellation)
            assert begun.wait(WAIT_S)
            assert request.stream.read(WAIT_S)
            (pid,) = dumps_of(os.getpid())
            match end:
                case "the client leaves":
                    request.stream.close()
                    said = CLIENT_LEFT
                case "pg_dump is killed":
                    os.kill(pid, signal.SIGKILL)
                    read(request.stream)
                    said = "failed to execute pg_dump: it ended with -9: it said nothing"
                case _:
                    cancellation.request()
                    with pytest.raises(CancelledError):
                        running.result(WAIT_S)
                    continue
            outcome = running.result(WAIT_S)
            assert outcome.error == said
            assert outcome.size < SIZE
        assert not Path(f"/proc/{pid}").exists()
        wait_until(lambda: not postgres.query(DUMPS), "no session of a dump is left", WAIT_S)


DUMPS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'compute_ctl:dump_schema'"
SIZE = 32 << 20


def large(postgres: Cluster) -> None:
    """Let a dump have 32 MiB."""
    postgres.query(
        "DO $do$ BEGIN FOR i IN 1..16 LOOP EXECUTE format('CREATE FUNCTION large_%s() RETURNS text LANGUAGE plpgsql AS %L',"
        " i, 'BEGIN RETURN NULL; END /*' || repeat('x', 2 << 20) || '*/'); END LOOP; END $do$"
    )


def dumps_of(parent: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(parent).children() if child.name() == "pg_dump"]


def test_a_password_goes_to_pg_dump_in_a_file_that_nobody_else_can_read(
    scratch: Path, account: Account | None, binaries15: Binaries
) -> None:
    """Neither in its arguments nor in its environment; what it starts is gone with it."""
    folder = owned_folder(scratch, account)
    folder.chmod(0o755)
    script = folder / "pg_dump"
    script.write_text('#!/bin/sh\nstat -Lc "%a %U" "$PGPASSFILE"; cat "$PGPASSFILE"; env; echo "$@"\n')
    script.chmod(0o755)
    password = f"{canaries.canary('dump')}:\\"
    catalog = PostgresCatalog(
        settings(connstr=f"postgresql://u:{password.replace(chr(92), '%5C').replace(':', '%3A')}@h:5/d"),
        msgspec.structs.replace(binaries15, postgres=str(folder / "postgres")),
        account,
        None,
    )
    request = DumpSchema("odd=na me", ByteStream())
    outcome = catalog.dump(request, lambda: None, Cancellation())
    assert outcome.error is None
    said = read(request.stream).decode().splitlines()
    owner = "root" if account is None else account.name
    assert said[0] in {f"600 {owner}", f"600 {os.environ.get('USER', owner)}"}
    assert said[1] == f"*:*:*:*:{canaries.canary('dump')}\\:\\\\"
    rest = "\n".join(said[2:])
    assert canaries.leak(rest) is None
    assert "PGDATABASE=odd=na me" in rest
    assert "PGOPTIONS=-c role=u " in rest
    assert said[-1] == "--schema-only --no-password --lock-wait-timeout=10s"
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("script", "size", "error"),
    [
        ("echo begin; echo word >&2; exit 3", 6, r"^failed to execute pg_dump: it ended with 3: word$"),
        ("echo begin; kill -9 $$", 6, r"^failed to execute pg_dump: it ended with -9: it said nothing$"),
        (
            "head -c 300000 /dev/zero >&2; echo begin; exit 1",
            6,
            r"^failed to execute pg_dump: it ended with 1: ",
        ),
        ("echo begin; sleep 60 & sleep 60", 6, r"had not ended after 0\.5 s and was killed"),
    ],
)
def test_a_pg_dump_that_fails_says_how(
    tmp_path: Path,
    binaries15: Binaries,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    size: int,
    error: str,
) -> None:
    monkeypatch.setattr(DumpSchema, "limit_s", 0.5 if "sleep" in script else WAIT_S)
    program = tmp_path / "pg_dump"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    binaries = msgspec.structs.replace(binaries15, postgres=str(tmp_path / "postgres"))
    request = DumpSchema("x", ByteStream())
    outcome = PostgresCatalog(settings(), binaries, None, None).dump(request, lambda: None, Cancellation())
    assert outcome.size == size
    with pytest.raises(StreamBrokenError, match=error):
        request.stream.read(0)

"""Specs applied to real Postgres."""

import asyncio
import contextlib
import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
import pytest
from compute_node.actors.configurator import conversation, executor
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.port import AdministrationError, Order, Report
from compute_node.actors.configurator.session import Outcome
from compute_node.actors.configurator.sql import statements
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.messages.base import encode
from compute_node.messages.secret import Secret
from compute_node.messages.spec import (
    Cluster,
    ComputeSpec,
    Database,
    DeltaOp,
    GenericOption,
    Role,
    spec_decoder,
)
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import params
from psycopg import sql

from doubles.specs import ODD_NAMES, a_spec
from fix_postgres import Cluster as RealPostgres
from fix_postgres import MakeCluster, Ports, wait_until

STARTS = pytest.mark.slow
"""Starts a Postgres of its own."""
pytestmark = STARTS


def role(name: str, password: str | None = None, **changes: Any) -> Role:
    return Role(name, Secret(password), **changes) if password else Role(name, **changes)


def spec(
    roles: Sequence[Role] = (), databases: Sequence[Database] = (), *delta: DeltaOp, **changes: Any
) -> ComputeSpec:
    return a_spec(cluster=Cluster(tuple(roles), tuple(databases)), delta_operations=tuple(delta), **changes)


def run(
    postgres: RealPostgres,
    wanted: ComputeSpec,
    seen: frozenset[int] = frozenset(),
    *,
    starting: bool = True,
    privileged_role: str = "neon_superuser",
    connstr: str | None = None,
    cancellation: Cancellation | None = None,
) -> Report:
    order = Order(wanted, starting, privileged_role, seen)
    return executor.apply(connstr or postgres.connstr, order, cancellation or Cancellation())


def applied(postgres: RealPostgres, wanted: ComputeSpec, **how: Any) -> Report:
    report = run(postgres, wanted, **how)
    assert report.errors == ()
    return report


def changes_nothing(postgres: RealPostgres, wanted: ComputeSpec, report: Report) -> None:
    """Apply it again: with what was seen no database is visited, without it they are and need nothing."""
    again = applied(postgres, wanted, seen=report.seen, starting=False)
    assert (again.statements, again.visited) == (0, 0)
    assert applied(postgres, wanted).statements == 0


def names(postgres: RealPostgres, query: str, dbname: str | None = None) -> set[str]:
    return {row[0] for row in postgres.query(query, dbname=dbname)}


def roles_of(postgres: RealPostgres) -> set[str]:
    return names(postgres, "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")


def databases_of(postgres: RealPostgres) -> dict[str, str]:
    return dict(
        postgres.query(
            "SELECT datname, pg_get_userbyid(datdba) FROM pg_database WHERE datname !~ '^(postgres|template.)$'"
        )
    )


@contextmanager
def session(
    postgres: RealPostgres, dbname: str = "postgres", **keywords: Any
) -> Iterator[psycopg.Connection[Any]]:
    """A session of a user, autocommitting."""
    settings: dict[str, Any] = params(postgres.target, application_name="user", dbname=dbname)
    settings |= {"options": ""} | keywords
    with psycopg.connect(autocommit=True, **settings) as connection:
        yield connection


# --- Names -----------------------------------------------------------------------------------------------


def test_odd_names_are_created_owned_renamed_and_dropped(binaries: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries)
    roles = [Role(name) for name in ODD_NAMES]
    databases = [Database(name, owner) for name, owner in zip(ODD_NAMES, reversed(ODD_NAMES), strict=True)]
    created = spec(roles, databases)
    changes_nothing(postgres, created, applied(postgres, created))
    assert set(ODD_NAMES) <= roles_of(postgres)
    assert databases_of(postgres) == {database.name: database.owner for database in databases}

    new = {name: f"{name[:28]} \N{SNOWMAN}2" for name in ODD_NAMES if len(name) < 30}
    renamed = spec(
        [Role(new.get(name, name)) for name in ODD_NAMES],
        [Database(new.get(d.name, d.name), new.get(d.owner, d.owner)) for d in databases],
        *(DeltaOp("rename_role", old, name) for old, name in new.items()),
        *(DeltaOp("rename_db", old, name) for old, name in new.items()),
    )
    changes_nothing(postgres, renamed, applied(postgres, renamed, starting=False))
    assert databases_of(postgres) == {database.name: database.owner for database in renamed.cluster.databases}
    assert {wish.name for wish in renamed.cluster.roles} <= roles_of(postgres)
    assert new.keys().isdisjoint(roles_of(postgres))

    dropped = spec(
        (),
        (),
        *(DeltaOp("delete_db", database.name) for database in renamed.cluster.databases),
        *(DeltaOp("delete_role", wish.name) for wish in renamed.cluster.roles),
        DeltaOp("delete_db", "never there"),
    )
    changes_nothing(postgres, dropped, applied(postgres, dropped, starting=False))
    assert databases_of(postgres) == {}
    assert roles_of(postgres) == {"cloud_admin", "neon_superuser"}


@pytest.mark.parametrize("name", ["nul\0inside", "a" * 64, "\N{SNOWMAN}" * 22, ""])
def test_a_name_that_postgres_would_cut_or_misread_never_gets_there(name: str) -> None:
    good = encode(spec([Role("NAME")], [Database("d", "NAME")]))
    with pytest.raises(msgspec.ValidationError, match="name"):
        spec_decoder.decode(good.replace(b'"NAME"', msgspec.json.encode(name)))


# --- Once and again --------------------------------------------------------------------------------------


def test_the_second_application_says_nothing_and_looks_into_no_database(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries, conf="log_connections = on")
    wanted = spec([role("a", "0" * 32), Role("b", None), Role("c")], [Database("x", "a"), Database("y", "b")])
    first = applied(postgres, wanted)
    assert first.visited == 2
    before = postgres.log.count("connection authorized")
    again = applied(postgres, wanted, seen=first.seen, starting=False)
    assert (again.statements, again.visited) == (0, 0)
    assert postgres.log.count("connection authorized") == before + 1
    assert applied(postgres, wanted).statements == 0


def test_connections_say_whether_it_is_the_start_or_a_reconfiguration(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15, conf="log_disconnections = on\nlog_line_prefix = '<%a %d> '")
    applied(postgres, spec([Role("a")], [Database("x", "a")]))
    applied(postgres, spec([Role("a")], [Database("x", "a")]), starting=False)
    wait_until(lambda: postgres.log.count("disconnection") >= 4, "all sessions have ended")
    ended = {line.split(">")[0] for line in postgres.log.splitlines() if "disconnection" in line}
    assert ended >= {
        "<compute_ctl:apply_config postgres",
        "<compute_ctl:apply_config x",
        "<compute_ctl:reconfigure postgres",
        "<compute_ctl:reconfigure x",
    }


def test_what_a_new_node_looks_like(binaries: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries)
    postgres.query("CREATE ROLE web_access")
    applied(postgres, spec([Role("a")], [Database("x", "a")]))
    assert postgres.query(
        "SELECT rolinherit, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication, rolcanlogin, rolsuper"
        " FROM pg_roles WHERE rolname = 'a'"
    ) == [(True, True, True, True, True, True, False)]
    assert postgres.query(
        "SELECT pg_has_role('a', 'neon_superuser', 'member'), has_database_privilege('neon_superuser', 'x', 'CREATE')"
    ) == [(True, True)]
    assert postgres.query("SELECT 1 FROM pg_namespace WHERE nspname = 'neon'") == [(1,)]
    postgres.query("CREATE TABLE made_later (i int)", dbname="x")
    assert postgres.query(
        "SELECT has_table_privilege('neon_superuser', 'made_later', 'INSERT WITH GRANT OPTION'),"
        " has_schema_privilege('web_access', 'public', 'CREATE')",
        dbname="x",
    ) == [(True, True)]


def test_the_schema_public_goes_from_the_administrator_to_the_owner(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    wanted = spec([Role("a")], [Database("x", "a")])
    applied(postgres, wanted)
    postgres.query("ALTER SCHEMA public OWNER TO cloud_admin", dbname="x")
    assert applied(postgres, wanted).statements == 1
    assert postgres.query(
        "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'public'", dbname="x"
    ) == [("a",)]


def test_a_grant_that_was_cut_off_is_made_up_for_and_a_revoked_one_is_not(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15)
    postgres.query("CREATE ROLE a")
    postgres.query("CREATE DATABASE x OWNER a")
    wanted = spec([Role("a")], [Database("x", "a")])
    granted = "SELECT has_database_privilege('neon_superuser', 'x', 'CREATE')"
    applied(postgres, wanted)
    assert postgres.query(granted) == [(True,)]
    postgres.query("REVOKE ALL ON DATABASE x FROM neon_superuser")
    assert applied(postgres, wanted).statements == 0
    assert postgres.query(granted) == [(False,)]


def test_the_privileged_role_may_have_another_name(binaries: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries)
    applied(postgres, spec([Role("a")], [Database("x", "a")]), privileged_role="boss")
    assert roles_of(postgres) == {"cloud_admin", "boss", "a"}
    assert postgres.query(
        "SELECT rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolconnlimit,"
        " rolbypassrls FROM pg_roles WHERE rolname = 'boss'"
    ) == [(False, True, True, True, False, True, -1, True)]
    assert postgres.query(
        "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = 'boss'::regrole ORDER BY 1"
    ) == [("pg_read_all_data",), ("pg_write_all_data",)]
    assert "boss" in str(postgres.query("SELECT defaclacl FROM pg_default_acl", dbname="x"))


# --- Passwords -------------------------------------------------------------------------------------------


def verifier(postgres: RealPostgres, password: str) -> str:
    """What a client makes of a password, so that no server sees it."""
    with session(postgres) as connection:
        encrypted = connection.pgconn.encrypt_password(password.encode(), b"any", b"scram-sha-256")
    return encrypted.decode()


def digest(name: str, password: str) -> str:
    return hashlib.md5((password + name).encode(), usedforsecurity=False).hexdigest()


def can_log_in(postgres: RealPostgres, user: str, password: str) -> bool:
    try:
        with session(postgres, user=user, password=password):
            return True
    except psycopg.OperationalError as error:
        if "password authentication failed" not in str(error):
            raise
        return False


@pytest.fixture
def with_passwords(binaries: Binaries, cluster: MakeCluster) -> RealPostgres:
    """A Postgres that asks everybody but the administrator for a password."""
    postgres = cluster(binaries, start=False)
    (postgres.pgdata / "pg_hba.conf").write_text("host all cloud_admin all trust\nhost all all all md5\n")
    return postgres.start()


def test_md5_and_scram_passwords_log_in_also_after_a_renaming(with_passwords: RealPostgres) -> None:
    postgres = with_passwords
    stored = verifier(postgres, "s3cret")
    wanted = spec([role("m", digest("m", "open")), role("s", stored)])
    changes_nothing(postgres, wanted, applied(postgres, wanted))
    assert can_log_in(postgres, "m", "open")
    assert can_log_in(postgres, "s", "s3cret")
    assert not can_log_in(postgres, "m", "wrong")
    renamed = spec(
        [role("m2", digest("m2", "open")), role("s2", stored)],
        (),
        DeltaOp("rename_role", "m", "m2"),
        DeltaOp("rename_role", "s", "s2"),
    )
    changes_nothing(postgres, renamed, applied(postgres, renamed))
    assert can_log_in(postgres, "m2", "open")
    assert can_log_in(postgres, "s2", "s3cret")
    switched = spec([role("m2", stored), role("s2", digest("s2", "open"))])
    changes_nothing(postgres, switched, applied(postgres, switched))
    assert can_log_in(postgres, "m2", "s3cret")
    assert can_log_in(postgres, "s2", "open")


def test_an_absent_password_keeps_and_null_removes(with_passwords: RealPostgres) -> None:
    postgres = with_passwords
    applied(postgres, spec([role("a", digest("a", "pw"))]))
    assert applied(postgres, spec([Role("a")])).statements == 0
    assert can_log_in(postgres, "a", "pw")
    removed = spec([Role("a", None)])
    assert applied(postgres, removed).statements == 1
    assert not can_log_in(postgres, "a", "pw")
    changes_nothing(postgres, removed, run(postgres, removed))


def test_no_password_reaches_the_server_log_or_a_view_of_activity(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(
        binaries,
        conf="log_statement = all\nlog_min_duration_statement = 0\nlog_duration = on\nlog_error_verbosity = verbose\n"
        "shared_preload_libraries = pg_stat_statements\npg_stat_statements.track_utility = on",
    )
    postgres.query("CREATE EXTENSION pg_stat_statements")
    canaries = ["c0ffee" + "0" * 26, "decade" + "1" * 26, "facade" + "2" * 26]
    applied(postgres, spec([role("a", canaries[0]), role("b", canaries[0])]))
    looked: list[str] = []
    with session(postgres) as user, session(postgres) as watcher:
        user.execute("BEGIN")
        user.execute("ALTER ROLE a CONNECTION LIMIT 5")  # and so ours waits, to be looked at
        bad = (GenericOption("CONNECTION LIMIT", "integer", "-7"),)
        wanted = spec([role("a", canaries[1]), role("wrong", canaries[2], options=bad)])
        reports: list[Report] = []
        ours = threading.Thread(target=lambda: reports.append(run(postgres, wanted)))
        ours.start()

        def waits() -> bool:
            waiting = watcher.execute(
                "SELECT query FROM pg_stat_activity WHERE application_name LIKE 'compute_ctl%' AND pid IN"
                " (SELECT pid FROM pg_locks WHERE NOT granted)"
            ).fetchall()
            looked.extend(query for (query,) in waiting)
            return bool(waiting)

        wait_until(waits, "the password change waits for the user's transaction")
        user.execute("COMMIT")
        ours.join(20)
    (report,) = reports
    assert 'cannot create role "wrong": invalid connection limit: -7' in report.errors[0]
    statistics = postgres.query("SELECT query FROM pg_stat_statements")
    for canary in canaries:
        assert canary not in postgres.log
        assert canary not in str(statistics)
        assert canary not in str(looked)
        assert canary not in str(report)
    assert postgres.query("SELECT rolpassword FROM pg_authid WHERE rolname = 'a'") == [("md5" + canaries[1],)]


# --- Databases -------------------------------------------------------------------------------------------


def test_an_invalid_database_is_dropped_and_made_anew_if_it_is_listed(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    for name in ("listed", "forgotten"):
        postgres.query(f"CREATE DATABASE {name}")
        postgres.query(
            "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'NAME'".replace("NAME", name)
        )
    wanted = spec([Role("a")], [Database("listed", "a")])
    changes_nothing(postgres, wanted, applied(postgres, wanted))
    assert databases_of(postgres) == {"listed": "a"}


def test_a_database_made_with_another_collation_version_is_told_and_counted(
    binaries: Binaries, cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    postgres = cluster(binaries)
    wanted = spec([], [Database("old", "cloud_admin"), Database("fine", "cloud_admin")])
    assert applied(postgres, wanted).drifted == 0
    if binaries.major < 15:
        return  # it does not remember the version
    postgres.query("UPDATE pg_database SET datcollversion = '0.7' WHERE datname = 'old'")
    assert applied(postgres, wanted).drifted == 1
    (told,) = [record.getMessage() for record in caplog.records if "collation" in record.getMessage()]
    assert 'database "old" was made with version 0.7 of its collation, and this machine has none' in told


def test_a_template_with_a_session_is_dropped(binaries15: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries15)
    postgres.query("CREATE DATABASE t IS_TEMPLATE true")
    with session(postgres, "t"):
        applied(postgres, spec((), (), DeltaOp("delete_db", "t")))
    assert databases_of(postgres) == {}


def test_options_of_a_database_and_of_a_role_are_clauses(binaries: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries)
    options = (
        GenericOption("LC_COLLATE", "string", "C"),
        GenericOption("LC_CTYPE", "string", "C"),
        GenericOption("TEMPLATE", "enum", "template0"),
    )
    limited = (GenericOption("CONNECTION LIMIT", "integer", "3"), GenericOption("NOSUPERUSER", "bool"))
    wanted = spec([role("a", options=limited)], [Database("x", "a", options)])
    changes_nothing(postgres, wanted, applied(postgres, wanted))
    assert postgres.query("SELECT datcollate FROM pg_database WHERE datname = 'x'") == [("C",)]
    assert postgres.query("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'a'") == [(3,)]


def test_many_databases_are_created_on_several_connections(binaries: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries, conf="log_connections = on")
    owners = [Role(f"r{number}") for number in range(12)]
    wanted = spec(owners, [Database(f"d{number}", f"r{number}") for number in range(12)])
    changes_nothing(postgres, wanted, applied(postgres, wanted))
    assert databases_of(postgres) == {f"d{number}": f"r{number}" for number in range(12)}


def test_all_connections_but_the_reserved_ones_may_be_taken(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(
        binaries15, conf="max_connections = 8\nsuperuser_reserved_connections = 3\nmax_wal_senders = 0"
    )
    postgres.query("CREATE ROLE u LOGIN")
    wanted = spec([Role("a")], [Database(f"d{number}", "a") for number in range(5)])
    with contextlib.ExitStack() as users:
        for _ in range(5):
            users.enter_context(session(postgres, user="u"))
        with pytest.raises(psycopg.OperationalError), session(postgres, user="u"):
            pass
        report = applied(postgres, wanted)
    assert report.visited == 5
    assert applied(postgres, wanted).statements == 0


# --- Departing roles -------------------------------------------------------------------------------------


def a_departing_role(postgres: RealPostgres) -> ComputeSpec:
    """Role `gone` owns and was granted things everywhere; the spec that drops it."""
    applied(
        postgres,
        spec([Role("gone"), Role("boss"), Role("other")], [Database("x", "boss"), Database("y", "boss")]),
    )
    postgres.query("CREATE DATABASE unlisted OWNER gone")
    postgres.query("GRANT ALL ON DATABASE x, y TO gone WITH GRANT OPTION")
    postgres.query("GRANT pg_monitor TO gone WITH ADMIN OPTION")
    for name in ("x", "y", "unlisted", "postgres"):
        with session(postgres, name) as admin:
            for statement in (
                "CREATE SCHEMA s",
                "CREATE TABLE s.granted (i int, j int)",
                "CREATE SEQUENCE public.seq",
                "CREATE TABLE s.not_granted ()",
                "CREATE TABLE public.granted_in_part (i int)",
                "GRANT SELECT ON public.granted_in_part TO boss WITH GRANT OPTION",
                "CREATE TYPE s.pair AS (a int, b int)",
                'CREATE FUNCTION s."f g"(s.pair, int[], OUT text) LANGUAGE sql AS $$SELECT NULL::text$$',
                'GRANT ALL ON FUNCTION s."f g" TO boss WITH GRANT OPTION',
                "CREATE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                "GRANT ALL ON SCHEMA s, public TO boss WITH GRANT OPTION",
                "GRANT ALL ON s.granted, public.seq TO boss WITH GRANT OPTION",
                "GRANT ALL ON FUNCTION s.f() TO boss WITH GRANT OPTION",
                "GRANT ALL ON s.granted TO gone WITH GRANT OPTION",
                "SET ROLE boss",
                "GRANT ALL ON s.granted, public.seq TO gone WITH GRANT OPTION",
                "GRANT UPDATE (j) ON s.granted TO gone",
                "GRANT ALL ON FUNCTION s.f() TO gone",
                'GRANT ALL ON FUNCTION s."f g" TO gone',
                "GRANT SELECT ON public.granted_in_part TO gone",
                "GRANT ALL ON SCHEMA s, public TO gone WITH GRANT OPTION",
                "SET ROLE gone",
                "GRANT SELECT ON s.granted TO other",
                "CREATE TABLE s.kept AS SELECT 42 AS answer",
                "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO other",
                "RESET ROLE",
                'CREATE DOMAIN s."odd.type" AS int',
                "SELECT lo_create(4711)",
                "CREATE EXTENSION postgres_fdw WITH SCHEMA s",
                "CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw",
                "CREATE USER MAPPING FOR gone SERVER elsewhere",
                *_with_grant_option("boss"),
                "SET ROLE boss",
                *_with_grant_option("gone"),
                "SET ROLE gone",
                'GRANT USAGE ON TYPE s."odd.type" TO other',
            ):
                admin.execute(statement)
    return _dropping_gone(postgres)


def _with_grant_option(role: str) -> list[str]:
    """Privileges on what is neither a relation nor a routine."""
    things = (
        'USAGE ON TYPE s."odd.type"',
        "USAGE ON LANGUAGE plpgsql",
        "SELECT ON LARGE OBJECT 4711",
        "USAGE ON FOREIGN DATA WRAPPER postgres_fdw",
        "USAGE ON FOREIGN SERVER elsewhere",
    )
    return [f"GRANT {thing} TO {role} WITH GRANT OPTION" for thing in things]


def _dropping_gone(postgres: RealPostgres) -> ComputeSpec:
    shared = ["CONNECT ON DATABASE x", "CREATE ON TABLESPACE pg_default"]
    if postgres.binaries.major >= 15:
        shared += ["SET ON PARAMETER work_mem", "SET ON PARAMETER any_extension.its_setting"]
    with session(postgres) as admin:
        for thing in shared:
            admin.execute(f"GRANT {thing} TO other WITH GRANT OPTION".encode())
        admin.execute("SET ROLE other")
        for thing in shared:
            admin.execute(f"GRANT {thing} TO gone".encode())
    return spec(
        [Role("boss")], [Database("x", "boss"), Database("y", "boss")], DeltaOp("delete_role", "gone")
    )


def test_a_role_that_owns_and_was_granted_things_everywhere_is_dropped_and_nothing_it_made_is_lost(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    wanted = a_departing_role(postgres)
    changes_nothing(postgres, wanted, applied(postgres, wanted))
    assert "gone" not in roles_of(postgres)
    assert databases_of(postgres)["unlisted"] == "cloud_admin"
    for name, owner in (
        ("x", "boss"),
        ("y", "boss"),
        ("unlisted", "cloud_admin"),
        ("postgres", "cloud_admin"),
    ):
        assert postgres.query("SELECT answer FROM s.kept", dbname=name) == [(42,)]
        assert postgres.query(
            "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'kept'", dbname=name
        ) == [(owner,)]


def test_a_role_is_dropped_also_where_the_schema_public_is_gone(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    wanted = a_departing_role(postgres)
    postgres.query("DROP SCHEMA public CASCADE", dbname="x")
    changes_nothing(postgres, wanted, applied(postgres, wanted))
    assert "gone" not in roles_of(postgres)


def test_a_role_that_holds_nothing_but_databases_is_dropped_without_a_visit(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    first = applied(postgres, spec([Role("a"), Role("b")], [Database("x", "a")]))
    postgres.query("CREATE DATABASE unlisted OWNER b")
    dropped = spec([Role("a")], [Database("x", "a")], DeltaOp("delete_role", "b"))
    report = applied(postgres, dropped, seen=first.seen)
    assert (report.statements, report.visited) == (2, 0)
    assert databases_of(postgres) == {"x": "a", "unlisted": "cloud_admin"}


def test_the_tables_of_a_departing_role_survive_when_they_cannot_be_reassigned(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = cluster(binaries15)
    wanted = a_departing_role(postgres)

    def unassignable(operation: op.AnyOperation) -> tuple[sql.Composed, ...]:
        if isinstance(operation, op.ReassignOwned):
            operation = msgspec.structs.replace(operation, owner="nobody at all")
        return statements(operation)

    with monkeypatch.context() as patched:
        patched.setattr(f"{conversation.__name__}.statements", unassignable)
        report = run(postgres, wanted)
    assert 'role "nobody at all" does not exist' in report.errors[0]
    for name in ("postgres", "x"):
        assert postgres.query("SELECT answer FROM s.kept", dbname=name) == [(42,)]
    changes_nothing(postgres, wanted, applied(postgres, wanted))


# --- What users do ---------------------------------------------------------------------------------------


HARMLESS = (
    "-c session_preload_libraries= -c local_preload_libraries= -c idle_session_timeout=0 -c role=cloud_admin"
    " -c statement_timeout=0 -c lock_timeout=0"
)


def test_settings_and_objects_that_users_made_do_not_sabotage_the_application(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    applied(postgres, spec([Role("a"), Role("b")], [Database("x", "a")]))
    shadows = (
        "FUNCTION hostile.current_database() RETURNS name",
        "FUNCTION hostile.now() RETURNS timestamptz",
        "FUNCTION hostile.aclexplode(aclitem[]) RETURNS int",
        "FUNCTION hostile.same(name, text) RETURNS bool",
    )
    for name in ("x", "postgres"):
        with session(postgres, name) as user:
            user.execute("CREATE SCHEMA hostile")
            for shadow in shadows:
                user.execute(f"CREATE {shadow} LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'".encode())
            user.execute(
                "CREATE OPERATOR hostile.= (LEFTARG = name, RIGHTARG = text, FUNCTION = hostile.same)"
            )
            user.execute("CREATE TABLE hostile.pg_database ()")
    with session(postgres, options=HARMLESS) as admin:
        admin.execute("DROP TABLE public.health_check")
        for where in ("DATABASE x", "DATABASE postgres", "ROLE cloud_admin"):
            for setting in (
                "role = 'b'",
                "default_transaction_read_only = on",
                "search_path = hostile, pg_catalog",
                "statement_timeout = 1",
                "lock_timeout = 1",
                "idle_in_transaction_session_timeout = 1",
                "idle_session_timeout = 1",
                "default_transaction_isolation = serializable",
                "default_transaction_deferrable = on",
                "standard_conforming_strings = off",
                "session_preload_libraries = 'missing'",
                "local_preload_libraries = 'missing'",
                *(["transaction_timeout = 1"] if binaries.major >= 17 and where == "DATABASE x" else []),
            ):
                admin.execute(f"ALTER {where} SET {setting}".encode())
        unlimited = f"{HARMLESS} -c transaction_timeout=0" if binaries.major >= 17 else HARMLESS
        with session(postgres, "x", options=unlimited) as other:
            other.execute("SET default_transaction_read_only = off")
            other.execute("ALTER SCHEMA public OWNER TO cloud_admin")
        wanted = spec(
            [role("c", "1" * 32)], [Database("x", "c"), Database("z", "c")], DeltaOp("delete_role", "a")
        )
        changes_nothing(postgres, wanted, applied(postgres, wanted))
        for where in ("DATABASE x", "DATABASE postgres", "ROLE cloud_admin"):
            admin.execute(f"ALTER {where} RESET ALL".encode())
    assert databases_of(postgres) == {"x": "c", "z": "c"}
    assert postgres.query("SELECT id FROM public.health_check") == [(1,)]


def test_event_triggers_of_users_stay_out_of_it(binaries: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries)
    applied(postgres, spec([Role("a")], [Database("x", "a")]))
    for name in ("x", "postgres"):
        for statement in (
            "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not allowed'; END$$",
            "CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE FUNCTION no()",
        ):
            postgres.query(statement, dbname=name)
        with session(postgres, name) as user, pytest.raises(psycopg.Error, match="not allowed"):
            user.execute("CREATE TABLE t ()")
    with session(postgres, options="-c session_replication_role=replica") as admin:
        admin.execute("DROP SCHEMA neon")
        admin.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO a")
    wanted = spec([Role("b")], [Database("x", "b"), Database("y", "b")], DeltaOp("delete_role", "a"))
    postgres.query(
        "SET session_replication_role = replica; ALTER SCHEMA public OWNER TO cloud_admin", dbname="x"
    )
    if binaries.major >= 17:  # before, nobody can switch those off that fire in replicas, too
        for name in ("x", "postgres"):
            postgres.query("ALTER EVENT TRIGGER no ENABLE ALWAYS", dbname=name)
    changes_nothing(postgres, wanted, applied(postgres, wanted))


def test_a_lock_that_nobody_gives_back_is_waited_for_within_limits_and_named(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tuple(o for o in executor.MAINTENANCE_OPTIONS if "lock_timeout" not in o)
    monkeypatch.setattr(executor, "MAINTENANCE_OPTIONS", (*short, "lock_timeout=100ms"))
    postgres = cluster(binaries15)
    applied(postgres, spec([Role("a"), Role("b")]))
    with session(postgres) as user:
        user.execute("BEGIN")
        user.execute("ALTER ROLE a CONNECTION LIMIT 5")
        report = run(postgres, spec([role("a", "1" * 32), role("b", "2" * 32)]))
    assert report.errors == (
        (
            'create and alter roles: cannot set the password of role "a": canceling statement due to lock timeout'
            " (SQLSTATE 55P03); another session holds a lock that is needed: end it (see pg_locks), then try again"
        ),
    )
    assert postgres.query("SELECT rolpassword FROM pg_authid WHERE rolname = 'b'") == [("md5" + "2" * 32,)]


def test_a_lock_that_is_given_back_in_time_costs_nothing_but_time(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tuple(o for o in executor.MAINTENANCE_OPTIONS if "lock_timeout" not in o)
    monkeypatch.setattr(executor, "MAINTENANCE_OPTIONS", (*short, "lock_timeout=200ms"))
    postgres = cluster(binaries15)
    applied(postgres, spec([Role("a")]))
    with session(postgres) as user:
        user.execute("BEGIN")
        user.execute("ALTER ROLE a CONNECTION LIMIT 5")
        reports: list[Report] = []
        ours = threading.Thread(target=lambda: reports.append(run(postgres, spec([role("a", "1" * 32)]))))
        ours.start()
        wait_until(lambda: "due to lock timeout" in postgres.log, "the first attempt has failed")
        user.execute("COMMIT")
        ours.join(20)
    assert [(report.errors, report.statements) for report in reports] == [((), 1)]
    assert postgres.query("SELECT rolpassword FROM pg_authid WHERE rolname = 'a'") == [("md5" + "1" * 32,)]


# --- Broken off ------------------------------------------------------------------------------------------


def test_a_cancelled_application_ends_within_a_second_and_leaves_no_session(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    applied(postgres, spec([Role("a")]))
    cancellation = Cancellation()
    ended: list[tuple[float, Exception]] = []

    def work() -> None:
        try:
            run(postgres, spec([role("a", "1" * 32), Role("never")]), cancellation=cancellation)
        except CancelledError as error:
            ended.append((time.monotonic(), error))

    with session(postgres) as user:
        user.execute("BEGIN")
        user.execute("ALTER ROLE a CONNECTION LIMIT 5")
        ours = threading.Thread(target=work)
        ours.start()
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        wait_until(lambda: postgres.query(waiting), "our statement waits")
        asked = time.monotonic()
        cancellation.request()
        ours.join(10)
        assert [type(error) for _, error in ended] == [CancelledError]
        assert ended[0][0] - asked < 1
        sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'compute_ctl%'"
        wait_until(lambda: not postgres.query(sessions), "the session has ended", 1.0)
    assert "never" not in roles_of(postgres)


def test_an_application_that_takes_too_long_is_broken_off(
    binaries15: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "APPLY_LIMIT_S", 0.3)
    postgres = cluster(binaries15)
    applied(postgres, spec([Role("a")]))
    with session(postgres) as user:
        user.execute("BEGIN")
        user.execute("ALTER ROLE a CONNECTION LIMIT 5")
        with pytest.raises(AdministrationError, match=r"broken off after 0\.3 s"):
            run(postgres, spec([role("a", "1" * 32)]))


class CutError(Exception):
    pass


def test_cut_between_any_two_statements_and_applied_again_it_reaches_the_same_catalog(
    binaries: Binaries, cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cut has its own names in one cluster; the whole is compared with one that was not cut."""
    postgres = cluster(binaries)
    normal = conversation.carry_out
    left = 0

    async def cutting(
        connection: conversation.Connection, operations: Sequence[op.AnyOperation], cancellation: Cancellation
    ) -> Outcome:
        nonlocal left
        if left < len(operations):
            await normal(connection, operations[:left], cancellation)
            left = 0
            raise CutError
        left -= len(operations)
        return await normal(connection, operations, cancellation)

    def before_and_after(p: str) -> tuple[ComputeSpec, ComputeSpec]:
        return (
            spec(
                [role(f"{p}a", "1" * 32), role(f"{p}old", "2" * 32), Role(f"{p}gone")],
                [Database(f"{p}x", f"{p}gone"), Database(f"{p}y", f"{p}gone"), Database(f"{p}z", f"{p}a")],
            ),
            spec(
                [role(f"{p}a", "3" * 32), role(f"{p}new", "4" * 32), Role(f"{p}fresh")],
                [Database(f"{p}x", f"{p}a"), Database(f"{p}y2", f"{p}fresh"), Database(f"{p}w", f"{p}fresh")],
                DeltaOp("rename_role", f"{p}old", f"{p}new"),
                DeltaOp("delete_db", f"{p}z"),
                DeltaOp("rename_db", f"{p}y", f"{p}y2"),
                DeltaOp("delete_role", f"{p}gone"),
            ),
        )

    def catalog(p: str) -> tuple[str, ...]:
        roles = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'PREFIX%' ORDER BY 1"
        databases = (
            "SELECT datname, pg_get_userbyid(datdba), datacl FROM pg_database"
            " WHERE datname LIKE 'PREFIX%' ORDER BY 1"
        )
        defaults = "SELECT defaclobjtype, defaclacl FROM pg_default_acl ORDER BY 1"
        found = [postgres.query(query.replace("PREFIX", p)) for query in (roles, databases)]
        found += [postgres.query(defaults, dbname=f"{p}{name}") for name in ("x", "y2", "w")]
        return tuple(str(rows).replace(p, "") for rows in found)

    def prepared(p: str) -> ComputeSpec:
        before, after = before_and_after(p)
        applied(postgres, before)
        for name in ("x", "y"):
            postgres.query(f"CREATE TABLE t (); ALTER TABLE t OWNER TO {p}gone", dbname=f"{p}{name}")
        return after

    total = applied(postgres, prepared("whole_")).statements
    expected = catalog("whole_")
    monkeypatch.setattr(executor, "CREATING_CONNECTIONS", 1)
    for cut in range(0, total, 4 if binaries.major == 15 else 7):
        wanted = prepared(f"c{cut}_")
        with monkeypatch.context() as patched:
            patched.setattr(conversation, "carry_out", cutting)
            left = cut
            with pytest.raises(CutError):
                run(postgres, wanted)
        changes_nothing(postgres, wanted, applied(postgres, wanted))
        assert catalog(f"c{cut}_") == expected, f"cut after {cut} of {total}"


KILLED = """
import sys
from compute_node.actors.configurator import executor
from compute_node.actors.configurator.port import Order
from compute_node.actors.configurator.sql import statements
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.spec import spec_decoder
print("ready", flush=True)
executor.apply(sys.argv[1], Order(spec_decoder.decode(sys.stdin.buffer.read()), True, "neon_superuser"), Cancellation())
"""


def test_killed_in_the_middle_its_session_ends_and_the_next_application_completes_it(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    wanted = spec(
        [Role(f"r{number}") for number in range(300)],
        [Database(f"d{number}", f"r{number}") for number in range(8)],
    )
    ours = subprocess.Popen(
        [sys.executable, "-c", KILLED, postgres.connstr], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with ours:
        assert ours.stdin is not None
        ours.stdin.write(encode(wanted))
        ours.stdin.close()
        wait_until(lambda: "r20" in roles_of(postgres), "the application is under way")
        ours.send_signal(signal.SIGKILL)
    sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'compute_ctl%'"
    wait_until(lambda: not postgres.query(sessions), "the session has ended")
    changes_nothing(postgres, wanted, applied(postgres, wanted))
    assert len(databases_of(postgres)) == 8


# --- Connecting ------------------------------------------------------------------------------------------


def test_the_sessions_are_what_they_are_meant_to_be(binaries15: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries15)
    asked = ("neon.forward_ddl", "search_path", "lock_timeout", "log_statement", "role", "application_name")

    async def look() -> list[str]:
        opened = executor.PostgresSession(
            postgres.target, Order(spec(), False, "neon_superuser"), Cancellation()
        )
        try:
            await opened.snapshot(frozenset())
            questions = [(b"SELECT current_setting($1)", (name.encode(),)) for name in asked]
            answers = await conversation.ask(opened._maintenance[0], questions)
            return [(row[0] or b"").decode() for (row,) in answers]
        finally:
            opened.close()

    assert asyncio.run(look()) == ["false", "", "10s", "none", "cloud_admin", "compute_ctl:reconfigure"]


def test_a_missing_superuser_is_made_by_the_one_of_old_clusters(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    postgres.query("CREATE ROLE zenith_admin SUPERUSER LOGIN")
    connstr = f"postgresql://new_admin@localhost:{postgres.port}/postgres"
    report = applied(postgres, spec([Role("a")], [Database("x", "a")]), connstr=connstr)
    assert report.visited == 1
    assert postgres.query(
        "SELECT rolsuper, pg_has_role('new_admin', 'zenith_admin', 'member') FROM pg_roles WHERE rolname = 'new_admin'"
    ) == [(True, True)]
    assert applied(postgres, spec([Role("a")], [Database("x", "a")]), connstr=connstr).statements == 0


def test_a_refused_login_is_told_as_it_is(binaries15: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries15)
    connstr = f"postgresql://stranger:canary@localhost:{postgres.port}/postgres"
    with pytest.raises(AdministrationError, match='role "stranger" does not exist') as caught:
        run(postgres, spec(), connstr=connstr)
    assert "canary" not in str(caught.value)
    assert "stranger" not in roles_of(postgres)


def test_nobody_listening_is_told_with_the_place(free_port: Ports) -> None:
    port = free_port()
    order = Order(spec(), True, "neon_superuser")
    with pytest.raises(
        AdministrationError, match=f"cannot read the catalog of the Postgres at localhost, port {port}"
    ):
        executor.apply(f"postgresql://cloud_admin@localhost:{port}/postgres", order, Cancellation())


def test_a_role_among_the_options_of_the_url_is_found_out(binaries15: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries15)
    postgres.query("CREATE ROLE b")
    connstr = postgres.connstr + "?options=-c%20role%3Db"
    with pytest.raises(AdministrationError):
        run(postgres, spec([Role("a")]), connstr=connstr)
    assert "a" not in roles_of(postgres)


def test_a_server_that_goes_away_is_an_error_that_says_when(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15)
    applied(postgres, spec([Role("a")]))
    errors: list[AdministrationError] = []

    def work() -> None:
        try:
            run(postgres, spec([role("a", "1" * 32)]))
        except AdministrationError as error:
            errors.append(error)

    with session(postgres) as user:
        user.execute("BEGIN")
        user.execute("ALTER ROLE a CONNECTION LIMIT 5")
        ours = threading.Thread(target=work)
        ours.start()
        wait_until(lambda: postgres.query("SELECT 1 FROM pg_locks WHERE NOT granted"), "our statement waits")
        postgres.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        ours.join(10)
    (error,) = errors
    assert str(error).startswith("create and alter roles: the connection to Postgres was lost")


def test_a_cluster_in_sql_ascii_with_names_that_are_not_text_is_administered(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15)
    postgres.query("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    with session(postgres, "ascii", client_encoding="SQL_ASCII") as user:
        user.execute(b'CREATE ROLE "caf\xe9"')
        user.execute(b'CREATE DATABASE "caf\xe9"')
    wanted = spec([Role("b")], [Database("ascii", "b"), Database("x", "b")])
    changes_nothing(postgres, wanted, applied(postgres, wanted))
    assert postgres.query("SELECT datdba::regrole::text FROM pg_database WHERE datname = 'ascii'") == [("b",)]

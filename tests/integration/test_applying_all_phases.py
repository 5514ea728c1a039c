"""The phases of an application that go beyond roles, databases and grants, on real Postgres."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from compute_node.actors.configurator import executor
from compute_node.actors.configurator.port import Order, Report
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Audit, Cluster, ComputeSpec, Database, DeltaOp, GenericOption, Role
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import params

from doubles.specs import a_spec
from fix_postgres import Cluster as RealPostgres
from fix_postgres import MakeCluster, absent, copy_with_extensions, owned_folder, run_as, wait_until

pytestmark = pytest.mark.slow
"""Starts a Postgres of its own."""

TIMELINE = "a1" * 16
LOGICAL = "wal_level = logical\nmax_logical_replication_workers = 8\nmax_worker_processes = 16\n"


def preloading(*libraries: str) -> tuple[GenericOption, ...]:
    return (GenericOption("shared_preload_libraries", "string", ",".join(libraries)),)


def spec(*databases: str, settings: tuple[GenericOption, ...] = (), **changes: Any) -> ComputeSpec:
    listed = tuple(Database(name, "a") for name in databases)
    return a_spec(cluster=Cluster((Role("a"),), listed, settings=settings), **changes)


def run(postgres: RealPostgres, wanted: ComputeSpec, *, starting: bool = True) -> Report:
    return executor.apply(postgres.connstr, Order(wanted, starting, "neon_superuser"), Cancellation())


def applied(postgres: RealPostgres, wanted: ComputeSpec, **how: Any) -> Report:
    """Apply it, and see that there is nothing to do a second time."""
    report = run(postgres, wanted, **how)
    assert report.errors == ()
    again = run(postgres, wanted, **how)
    assert (again.statements, again.errors) == (0, ())
    return report


@contextmanager
def session(
    postgres: RealPostgres, dbname: str = "postgres", user: str = "cloud_admin"
) -> Iterator[psycopg.Connection[Any]]:
    """A session of somebody, autocommitting, without options of ours."""
    settings: dict[str, Any] = params(postgres.target, application_name="user", dbname=dbname)
    with psycopg.connect(autocommit=True, **(settings | {"options": "", "user": user})) as connection:
        yield connection


def extensions(postgres: RealPostgres) -> dict[str, str]:
    return dict(
        postgres.query(
            "SELECT extname, extnamespace::regnamespace::text FROM pg_extension WHERE extname <> 'plpgsql'"
        )
    )


# --- Extensions, tables ----------------------------------------------------------------------------------


def test_the_extension_of_statement_statistics_and_the_availability_check_are_made_in_public(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries, conf="shared_preload_libraries = pg_stat_statements")
    applied(postgres, spec("x", settings=preloading("pg_stat_statements")))
    assert extensions(postgres) == {"pg_stat_statements": "public"}
    assert postgres.query("SELECT id, updated_at <= now() FROM public.health_check") == [(1, True)]
    for table in ("health_check", "pg_stat_statements"):
        assert postgres.query(f"SELECT to_regclass('public.{table}')", dbname="x") == [(None,)]


def test_a_health_check_in_another_schema_is_not_taken_for_ours(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15)
    postgres.query("CREATE SCHEMA s CREATE TABLE health_check (i int)")
    applied(postgres, spec())
    assert postgres.query("SELECT id FROM public.health_check") == [(1,)]


# --- Subscriptions ---------------------------------------------------------------------------------------


def subscribe(publisher: RealPostgres, subscriber: RealPostgres, dbname: str, slot: str) -> None:
    """Let a database follow the table `t` of the publisher's."""
    subscriber.query("CREATE TABLE IF NOT EXISTS t (i int PRIMARY KEY)", dbname=dbname)
    connection = f"host=localhost port={publisher.port} dbname=postgres user=cloud_admin"
    subscriber.query(f"CREATE SUBSCRIPTION {slot} CONNECTION '{connection}' PUBLICATION p", dbname=dbname)


def publishing(cluster: MakeCluster, binaries: Binaries) -> RealPostgres:
    publisher = cluster(binaries, conf=LOGICAL)
    publisher.query("CREATE TABLE t (i int PRIMARY KEY)")
    publisher.query("CREATE PUBLICATION p FOR TABLE t")
    return publisher


def follows(postgres: RealPostgres, dbname: str, row: int) -> bool:
    return (row,) in postgres.query("SELECT i FROM t", dbname=dbname)


def slots(publisher: RealPostgres) -> set[str]:
    return {name for (name,) in publisher.query("SELECT slot_name FROM pg_replication_slots")}


def subscriptions(postgres: RealPostgres) -> set[str]:
    return {name for (name,) in postgres.query("SELECT subname FROM pg_subscription")}


def marked(postgres: RealPostgres) -> list[tuple[Any, ...]]:
    return postgres.query("SELECT id, timeline_id, left_over FROM neon.drop_subscriptions_done")


def branch_of(postgres: RealPostgres, cluster: MakeCluster) -> RealPostgres:
    """Copy a cluster that is stopped; the copy's subscribers are held, as Neon's extension holds them.

    Those that work go on with what the original's were at: a copying of tables is finished by one of the two.
    """
    made = cluster(postgres.binaries, start=False)
    port_and_place = f"port = {made.port}\nunix_socket_directories = '{made.folder}'"
    shutil.rmtree(made.pgdata)
    run_as(made.account, "cp", "-a", "--reflink=auto", postgres.pgdata, made.pgdata)
    made.append_conf(f"{port_and_place}\nmax_logical_replication_workers = 0\n")
    return made.start()


def let_subscribers_work(branch: RealPostgres) -> None:
    branch.stop()
    branch.append_conf(LOGICAL)
    branch.start()


def test_databases_with_live_subscriptions_and_live_slots_are_deleted_and_the_other_side_is_left_alone(
    binaries17: Binaries, cluster: MakeCluster
) -> None:
    publisher, subscriber = publishing(cluster, binaries17), cluster(binaries17, conf=LOGICAL)
    applied(subscriber, spec("doomed", "kept"))
    for name in ("doomed", "kept"):
        subscribe(publisher, subscriber, name, f"to_{name}")
    publisher.query("INSERT INTO t VALUES (1)")
    for name in ("doomed", "kept"):
        wait_until(lambda name=name: follows(subscriber, name, 1), f"{name} follows", 30)  # type: ignore[misc] # bound in time
    applied(subscriber, spec("kept", delta_operations=(DeltaOp("delete_db", "doomed"),)), starting=False)
    assert subscriptions(subscriber) == {"to_kept"}
    assert slots(publisher) == {"to_doomed", "to_kept"}
    publisher.query("INSERT INTO t VALUES (2)")
    wait_until(lambda: follows(subscriber, "kept", 2), "the other one follows still", 30)


def test_a_database_that_is_being_read_through_a_logical_slot_is_deleted(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    publisher, subscriber = cluster(binaries15, conf=LOGICAL), cluster(binaries15, conf=LOGICAL)
    applied(publisher, spec("read"))
    for postgres, dbname in ((publisher, "read"), (subscriber, "postgres")):
        postgres.query("CREATE TABLE t (i int PRIMARY KEY)", dbname=dbname)
    publisher.query("CREATE PUBLICATION p FOR TABLE t", dbname="read")
    connection = f"host=localhost port={publisher.port} dbname=read user=cloud_admin"
    subscriber.query(f"CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p")
    reading = "SELECT 1 FROM pg_replication_slots WHERE active AND slot_name = 's'"
    wait_until(lambda: publisher.query(reading), "the slot is in use", 30)
    with pytest.raises(psycopg.Error, match="used by an active logical replication slot"):
        publisher.query("DROP DATABASE read WITH (FORCE)")
    applied(publisher, spec(delta_operations=(DeltaOp("delete_db", "read"),)), starting=False)
    assert slots(publisher) == set()
    subscriber.query("ALTER SUBSCRIPTION s DISABLE")


def test_a_subscription_whose_tables_are_still_being_copied_leaves_the_slots_of_the_copying_alone(
    binaries17: Binaries, cluster: MakeCluster
) -> None:
    publisher, subscriber = publishing(cluster, binaries17), cluster(binaries17, conf=LOGICAL)
    publisher.query("INSERT INTO t VALUES (1)")
    applied(subscriber, spec("doomed"))
    with session(subscriber, "doomed") as user:
        for statement in (
            "CREATE TABLE t (i int PRIMARY KEY)",
            (
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
                " $$BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END$$"
            ),
            "CREATE TRIGGER wait BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION wait()",
            "ALTER TABLE t ENABLE ALWAYS TRIGGER wait",
            "SELECT pg_advisory_lock(1)",
        ):
            user.execute(statement)
        subscribe(publisher, subscriber, "doomed", "s")
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: subscriber.query(waits), "the copying is under way", 30)
        before = slots(publisher)
        assert len(before) == 2
        applied(subscriber, spec(delta_operations=(DeltaOp("delete_db", "doomed"),)), starting=False)
    assert slots(publisher) == before
    assert subscriptions(subscriber) == set()


def test_a_branch_drops_what_it_inherited_once_and_so_does_a_branch_of_the_branch(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    publisher, parent = publishing(cluster, binaries15), cluster(binaries15, conf=LOGICAL)
    names = [f"d{number}" for number in range(5)]
    wanted = spec(*names[:4], drop_subscriptions_before_start=True, timeline_id=TIMELINE)
    applied(parent, spec(*names))
    for name in names:
        subscribe(publisher, parent, name, f"to_{name}")
    publisher.query("INSERT INTO t VALUES (1)")
    for name in names:
        wait_until(lambda name=name: follows(parent, name, 1), f"{name} follows", 30)  # type: ignore[misc] # bound in time
    parent.stop()
    before = slots(publisher)

    branch = branch_of(parent, cluster)
    applied(branch, wanted)
    assert subscriptions(branch) == set()
    assert marked(branch) == [(1, TIMELINE, [])]
    assert slots(publisher) == before
    let_subscribers_work(branch)
    parent.start()
    publisher.query("INSERT INTO t VALUES (2)")
    for name in names:
        wait_until(lambda name=name: follows(parent, name, 2), f"{name} of the parent follows", 30)  # type: ignore[misc] # bound in time
    assert not any(follows(branch, name, 2) for name in names)

    subscribe(publisher, branch, "d0", "made_by_a_user")
    for starting in (True, False):
        assert run(branch, wanted, starting=starting).errors == ()
    assert subscriptions(branch) == {"made_by_a_user"}
    branch.stop()

    twig = branch_of(branch, cluster)
    applied(twig, msgspec.structs.replace(wanted, timeline_id="b2" * 16))
    assert subscriptions(twig) == set()
    assert marked(twig) == [(1, "b2" * 16, [])]


def test_the_mark_of_compute_ctl_is_understood_and_continued(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15)
    applied(postgres, spec("x"))
    postgres.query("CREATE TABLE neon.drop_subscriptions_done (id serial primary key, timeline_id text)")
    with session(postgres) as admin:
        admin.execute("INSERT INTO neon.drop_subscriptions_done VALUES (1, %s)", (TIMELINE,))
    postgres.query(
        "CREATE SUBSCRIPTION mine CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)", dbname="x"
    )
    wanted = spec("x", drop_subscriptions_before_start=True, timeline_id=TIMELINE)
    assert run(postgres, wanted).statements == 0
    applied(postgres, msgspec.structs.replace(wanted, timeline_id="b2" * 16))
    assert (subscriptions(postgres), marked(postgres)) == (set(), [(1, "b2" * 16, [])])


def test_inherited_subscriptions_of_a_closed_database_wait_until_it_opens(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries)
    applied(postgres, spec("x", "y"))
    for name in ("x", "y"):
        postgres.query(
            f"CREATE SUBSCRIPTION of_{name} CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)",
            dbname=name,
        )
    postgres.query("ALTER DATABASE y ALLOW_CONNECTIONS false")
    wanted = spec("x", drop_subscriptions_before_start=True, timeline_id=TIMELINE)
    applied(postgres, wanted)
    assert subscriptions(postgres) == {"of_y"}
    postgres.query("ALTER DATABASE y ALLOW_CONNECTIONS true")
    applied(postgres, wanted)
    assert (subscriptions(postgres), marked(postgres)) == (set(), [(1, TIMELINE, [])])


# --- The audit -------------------------------------------------------------------------------------------


@pytest.fixture
def audited(binaries15: Binaries, cluster: MakeCluster) -> RealPostgres:
    """A Postgres with the real pgaudit, which logs everything."""
    if not Path(str(binaries15.library_folder), "pgaudit.so").exists():
        absent("pgaudit (package postgresql-15-pgaudit)")
    return cluster(
        binaries15,
        conf="shared_preload_libraries = 'pgaudit'\npgaudit.log = 'all'\npgaudit.log_parameter = on\n"
        "log_min_messages = warning",
    )


def test_users_are_audited_in_their_databases_and_the_node_nowhere(audited: RealPostgres) -> None:
    secret = "md5" + "4" * 32
    wanted = a_spec(
        cluster=Cluster((Role("a", Secret(secret)),), (Database("x", "a"),)), audit_log_level=Audit.BASE
    )
    applied(audited, wanted)
    assert extensions(audited) == {"pgaudit": "public"}
    assert "AUDIT:" not in audited.log
    with session(audited, "x", user="a") as user:
        user.execute("CREATE SCHEMA of_a_user")
    with session(audited, user="a") as user:
        user.execute("SELECT 'in the database of the node'")
    assert "CREATE SCHEMA of_a_user" in audited.log
    assert "in the database of the node" not in audited.log
    changed = a_spec(
        cluster=Cluster((Role("a", Secret("md5" + "5" * 32)), Role("b")), (Database("x", "b"),)),
        delta_operations=(DeltaOp("rename_role", "nobody", "b"),),
        audit_log_level=Audit.BASE,
    )
    applied(audited, changed, starting=False)
    assert secret not in audited.log
    assert "5" * 32 not in audited.log
    assert audited.log.count("AUDIT:") == 1


# --- A Neon-flavoured Postgres ---------------------------------------------------------------------------


@pytest.fixture
def flavoured(binaries: Binaries, scratch: Path, account: Account | None) -> Iterator[Binaries]:
    """A Postgres that has extensions named neon, pgaudit, pgauditlogtofile to offer; they do nothing."""
    offered: dict[str, str] = {}
    for name, relocatable in (("neon", "false"), ("pgaudit", "true"), ("pgauditlogtofile", "true")):
        control = f"comment = 'a double'\ndefault_version = '1.1'\nrelocatable = {relocatable}\n"
        function = f"CREATE FUNCTION {name}_version() RETURNS text LANGUAGE sql AS 'SELECT ''1.0''';"
        offered |= {
            f"{name}.control": control,
            f"{name}--1.0.sql": function,
            f"{name}--1.0--1.1.sql": f"COMMENT ON FUNCTION {name}_version() IS 'new';",
        }
    folder = owned_folder(scratch, account)
    yield copy_with_extensions(binaries, account, folder, offered)
    shutil.rmtree(folder)


def test_the_extension_neon_is_created_in_its_schema_and_an_old_one_is_moved_and_updated(
    binaries: Binaries, flavoured: Binaries, cluster: MakeCluster
) -> None:
    state = "SELECT extversion, extnamespace::regnamespace::text, extrelocatable FROM pg_extension WHERE extname = 'neon'"
    postgres = cluster(binaries, start=False)
    postgres.binaries = flavoured
    postgres.start()
    applied(postgres, spec("x", audit_log_level=Audit.FULL))
    assert postgres.query(state) == [("1.1", "neon", True)]
    assert extensions(postgres)["pgauditlogtofile"] == "public"
    postgres.query("DROP EXTENSION neon")
    postgres.query("CREATE EXTENSION neon WITH SCHEMA public VERSION '1.0'")
    applied(postgres, spec("x"), starting=False)
    assert postgres.query(state) == [("1.1", "neon", True)]


def test_a_plain_postgres_has_the_schema_neon_and_no_such_extension(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15)
    applied(postgres, spec())
    assert extensions(postgres) == {}
    assert postgres.query("SELECT 1 FROM pg_namespace WHERE nspname = 'neon'") == [(1,)]

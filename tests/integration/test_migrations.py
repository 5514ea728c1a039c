"""The migrations on real Postgres: what each does, what they leave behind when they fail, what they do not obey."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from compute_node.actors.configurator import migrating
from compute_node.actors.configurator.migrations import MIGRATIONS
from compute_node.actors.configurator.port import AdministrationError, MigrationReport
from compute_node.actors.kit.failpoints import Failpoints
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.messages.failpoints import Arming, Failpoint, parse_actions
from compute_node.messages.metrics import FAILED_MIGRATIONS
from compute_node.postgres.binaries import Binaries

from fix_node import START_S, MakeNode, Node, spec
from fix_postgres import Cluster, MakeCluster, wait_until

pytestmark = pytest.mark.slow

ROLE = "neon_superuser"
LAST = len(MIGRATIONS)
DONE = "SELECT id FROM neon_migration.migration_id WHERE key = 0"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'compute_ctl:migrations'"


def armed(actions: str) -> Cancellation:
    failpoints = Failpoints()
    failpoints.configure([Arming(Failpoint.MIGRATION, parse_actions(actions))])
    return Cancellation(failpoints=failpoints)


def run(postgres: Cluster, cancellation: Cancellation | None = None) -> MigrationReport:
    return migrating.migrate(postgres.connstr, ROLE, cancellation or Cancellation())


def done(postgres: Cluster | Node) -> int:
    number: int = postgres.query(DONE)[0][0]
    return number


def holds(postgres: Cluster, question: str) -> bool:
    ((truth,),) = postgres.query(question.format(role=ROLE))
    assert truth in {True, False}
    return bool(truth)


@pytest.fixture
def postgres(binaries: Binaries, cluster: MakeCluster) -> Cluster:
    """A cluster with the privileged role, and roles of both kinds around it; of each version in turn."""
    return populated(cluster(binaries))


@pytest.fixture
def plain(binaries15: Binaries, cluster: MakeCluster) -> Cluster:
    """The same, of one version."""
    return populated(cluster(binaries15))


def populated(made: Cluster) -> Cluster:
    for statement in (
        f"CREATE ROLE {ROLE} CREATEDB CREATEROLE NOLOGIN",
        f"CREATE ROLE member NOINHERIT BYPASSRLS IN ROLE {ROLE}",
        'CREATE ROLE "of a ""member""" NOINHERIT IN ROLE member',
        "CREATE ROLE \"$migration$ 'stranger'\" NOINHERIT BYPASSRLS",
        "CREATE ROLE root SUPERUSER NOINHERIT BYPASSRLS",
    ):
        made.query(statement)
    return made


HAS_ADMIN = """
    SELECT EXISTS (SELECT FROM pg_auth_members WHERE roleid = '{granted}'::regrole
                   AND member = '{{role}}'::regrole AND admin_option)
"""
EFFECTS = {
    1: "SELECT rolbypassrls FROM pg_roles WHERE rolname = '{role}'",
    2: """
        SELECT bool_and(CASE WHEN pg_has_role(oid, '{role}', 'member') THEN rolinherit
                        ELSE rolname LIKE 'pg\\_%' OR NOT rolbypassrls END) FROM pg_roles
    """,
    3: "SELECT pg_has_role('{role}', 'pg_create_subscription', 'member')",
    4: HAS_ADMIN.format(granted="pg_monitor"),
    10: """
        SELECT has_function_privilege('{role}', 'pg_catalog.pg_export_snapshot()', 'execute')
           AND has_function_privilege('{role}', 'pg_catalog.pg_log_standby_snapshot()', 'execute')
    """,
    11: "SELECT has_function_privilege('{role}', 'pg_catalog.pg_show_replication_origin_status()', 'execute')",
    12: HAS_ADMIN.format(granted="pg_signal_backend"),
}
"""What each brings about; those that are skipped bring about nothing."""
SINCE_16 = {3, 10}
SAME_TRANSACTION = """
    SELECT (SELECT xmin FROM pg_authid WHERE rolname = '{role}')::text
         = (SELECT xmin FROM neon_migration.migration_id)::text
"""
"""Of the first migration and its count."""
SEIZE = """
    CREATE FUNCTION public.seize() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN ALTER ROLE member SUPERUSER; RETURN null; END'
"""
REFUSE = """
    CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql
    AS 'BEGIN RAISE EXCEPTION $$no$$; END'
"""


def test_each_migration_is_done_whole_with_its_count_or_not_at_all(
    postgres: Cluster, binaries: Binaries
) -> None:
    effects = {n: ask for n, ask in EFFECTS.items() if binaries.major >= 16 or n not in SINCE_16}
    for number in range(1, LAST + 1):
        report = run(postgres, armed(f"return({number})"))
        assert (report.done, report.failed, report.error) == (number - 1, number, str(number))
        assert done(postgres) == number - 1
        assert [n for n, ask in effects.items() if holds(postgres, ask)] == [n for n in effects if n < number]
        assert number != 2 or holds(postgres, SAME_TRANSACTION)
    report = run(postgres)
    assert (report, done(postgres)) == (MigrationReport(LAST, LAST), LAST)
    assert all(holds(postgres, ask) for ask in effects.values())
    rows = postgres.query("SELECT rolname, rolinherit, rolbypassrls FROM pg_roles WHERE rolname !~ '^pg_'")
    assert {name: (inherits, bypasses) for name, inherits, bypasses in rows} == {
        "cloud_admin": (True, True),
        ROLE: (True, True),
        "member": (True, True),
        'of a "member"': (True, False),
        "$migration$ 'stranger'": (False, False),
        "root": (True, True),
    }


def test_what_is_done_is_not_done_again_and_what_is_not_known_here_is_left_alone(plain: Cluster) -> None:
    run(plain)
    plain.query(f"ALTER ROLE {ROLE} NOBYPASSRLS")
    assert run(plain) == MigrationReport(LAST, LAST)
    assert not holds(plain, EFFECTS[1])
    plain.query("UPDATE neon_migration.migration_id SET id = 99")
    assert run(plain) == MigrationReport(99, LAST)
    assert done(plain) == 99


def test_the_count_is_kept_from_everybody_else(plain: Cluster) -> None:
    run(plain)
    plain.query("GRANT ALL ON SCHEMA neon_migration TO PUBLIC")
    plain.query('ALTER SCHEMA neon_migration OWNER TO "member"')
    run(plain)
    ((owner, for_all),) = plain.query(
        "SELECT nspowner::regrole::text, bool_or(a.grantee = 0) FROM pg_namespace, aclexplode(nspacl) a"
        " WHERE nspname = 'neon_migration' GROUP BY 1"
    )
    assert (owner, for_all) == ("cloud_admin", False)


def test_a_table_of_somebody_elses_is_not_written_to(plain: Cluster) -> None:
    """Its triggers would run with the rights of a superuser."""
    for statement in (
        "CREATE SCHEMA neon_migration",
        "CREATE TABLE neon_migration.migration_id (key int PRIMARY KEY, id bigint NOT NULL DEFAULT 0)",
        SEIZE,
        "CREATE TRIGGER seize BEFORE INSERT ON neon_migration.migration_id EXECUTE FUNCTION public.seize()",
        "ALTER TABLE neon_migration.migration_id ENABLE ALWAYS TRIGGER seize",
        "ALTER TABLE neon_migration.migration_id OWNER TO member",
    ):
        plain.query(statement)
    with pytest.raises(AdministrationError, match='migration_id belongs to role "member": drop it'):
        run(plain)
    assert plain.query("SELECT rolsuper FROM pg_roles WHERE rolname = 'member'") == [(False,)]


def test_nothing_that_users_set_up_gets_in_between(postgres: Cluster) -> None:
    for statement in (
        "ALTER DATABASE postgres SET search_path = hostile, pg_catalog",
        "ALTER DATABASE postgres SET default_transaction_read_only = on",
        "ALTER ROLE cloud_admin SET statement_timeout = 1",
        "ALTER ROLE cloud_admin SET role = 'member'",
        "CREATE SCHEMA hostile",
        "CREATE FUNCTION hostile.pg_has_role(oid, text, text) RETURNS bool LANGUAGE sql AS 'SELECT true'",
        REFUSE,
        "CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION public.refuse()",
    ):
        postgres.query(statement)
    assert run(postgres) == MigrationReport(LAST, LAST)


def test_a_migration_that_postgres_refuses_is_named_and_the_next_run_goes_on_there(
    plain: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    plain.query("DROP EXTENSION plpgsql")
    report = run(plain)
    assert (report.done, report.failed, done(plain)) == (1, 2, 1)
    assert "plpgsql" in report.error
    assert f"Failed to run migration id=2: {report.error}" in caplog.text
    assert "\n" not in report.error
    plain.query("CREATE EXTENSION plpgsql")
    assert run(plain) == MigrationReport(LAST, LAST)


# --- Beside others ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def holding(postgres: Cluster, statement: str) -> Iterator[psycopg.Connection[Any]]:
    """Hold the locks of a statement until the session ends or rolls it back."""
    with psycopg.connect(
        host="localhost", port=postgres.port, user="cloud_admin", dbname="postgres"
    ) as session:
        session.execute(statement.encode())
        yield session
        session.rollback()


def test_what_another_session_disturbs_is_tried_again_but_not_for_ever(
    plain: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "OPTIONS", ("search_path=", "lock_timeout=50ms"))
    with holding(plain, "ALTER ROLE member VALID UNTIL 'infinity'") as session:
        report = run(plain)
        assert (report.failed, "lock timeout" in report.error) == (2, True)
        failed = plain.log.count("due to lock timeout")
        assert failed == migrating.ATTEMPTS

        def let_go() -> None:
            wait_until(lambda: plain.log.count("due to lock timeout") > failed, "an attempt has failed")
            session.rollback()

        monkeypatch.setattr(migrating, "ATTEMPTS", 1000)  # so that it does not matter how soon it is let go
        thread = threading.Thread(target=let_go)
        thread.start()
        report = run(plain)
        thread.join()
    assert report == MigrationReport(LAST, LAST)


def test_broken_off_it_ends_here_and_in_the_server_and_nothing_of_the_migration_stays(plain: Cluster) -> None:
    cancellation = Cancellation()

    def break_off() -> None:
        waiting = f"{SESSIONS} AND wait_event_type = 'Lock'"
        wait_until(lambda: plain.query(waiting) == [(1,)], "a migration waits for a lock")
        cancellation.request()

    with holding(plain, "ALTER ROLE member VALID UNTIL 'infinity'"):
        thread = threading.Thread(target=break_off)
        thread.start()
        with pytest.raises(CancelledError):
            run(plain, cancellation)
        thread.join()
        wait_until(lambda: plain.query(SESSIONS) == [(0,)], "its session is gone")
    assert done(plain) == 1
    assert run(plain) == MigrationReport(LAST, LAST)


# --- In a node -------------------------------------------------------------------------------------------


def failures(node: Node) -> list[str]:
    metrics = node.call("GET", "/metrics", token=None).body.splitlines()
    return [line for line in metrics if line.startswith(FAILED_MIGRATIONS.name)]


def test_a_failed_migration_is_counted_and_the_next_start_goes_on_there(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--dev")
    node.write_config(spec())
    node.start(failpoints={Failpoint.MIGRATION: "return(5)"}).await_status("running")
    wait_until(lambda: failures(node), "the failure is counted", START_S)
    wait_until(lambda: "[NEON_EXT_STAT]" in node.log, "the installed extensions are counted", START_S)
    counted = (
        'compute_installed_extensions{extension_name="plpgsql",owned_by_superuser="1",version="1.0"} 2.0'
    )
    assert counted in node.call("GET", "/metrics", token=None).body
    assert failures(node) == ['compute_ctl_db_migration_failed_total{migration_id="5"} 1.0']
    assert done(node) == 4
    assert (node.status()["status"], node.status()["error"]) == ("running", None)
    told = "Failed to run migrations: migration 5 failed; 4 of 12 are done"
    wait_until(lambda: told in node.log, "the log says so", START_S)
    assert node.stop() == 0, node.log
    node.run()
    node.await_migrations()
    assert "Running migration id=4:" not in node.log[node.log_begins_at :]
    assert failures(node) == []
    assert node.stop() == 0, node.log
    node.run(spec(skip_pg_catalog_updates=True))
    wait_until(lambda: "[NEON_EXT_STAT]" in node.log[node.log_begins_at :], "the upkeep has begun", START_S)
    assert "migration id=" not in node.log[node.log_begins_at :]


def test_a_migration_that_does_not_end_is_in_nobodys_way_and_broken_off_by_a_stop(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--dev")
    node.write_config(spec())
    node.start(failpoints={Failpoint.MIGRATION: "pause"}).await_status("running")
    node.await_failpoint(Failpoint.MIGRATION)
    assert node.configure(spec(cluster={"roles": [{"name": "later"}]})).status == 200
    assert node.call("POST", "/terminate?mode=fast").status == 200
    assert node.wait() == 0, node.log
    said = node.log
    assert "the migrations were broken off" in said
    assert "ailed to run migration" not in said
    node.run()
    node.await_migrations()
    assert done(node) == LAST

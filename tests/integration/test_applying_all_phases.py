"""The phases of an application that go beyond roles, databases and grants, on real Postgres."""

from typing import Any

import pytest
from compute_node.actors.configurator import executor
from compute_node.actors.configurator.port import Order, Report
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.spec import Cluster, ComputeSpec, Database, GenericOption, Role
from compute_node.postgres.binaries import Binaries

from doubles.specs import a_spec
from fix_postgres import Cluster as RealPostgres
from fix_postgres import MakeCluster

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

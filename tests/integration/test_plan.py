"""A plan over real Postgres: it says exactly what an application then does, and changes nothing itself."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from compute_node.actors.configurator import executor
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.port import AdministrationError, Order
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.planning import CatalogPlanned
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Cluster, ComputeSpec, Database, DeltaOp, GenericOption, Role
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.connection import run_async

from doubles.specs import a_spec
from fix_postgres import Cluster as RealPostgres
from fix_postgres import MakeCluster

pytestmark = pytest.mark.slow

DIGEST = "0123456789abcdef" * 2
APPLYING = "applying the spec: "


def order(spec: ComputeSpec, seen: frozenset[int] = frozenset()) -> Order:
    return Order(spec, starting=False, privileged_role="neon_superuser", seen=seen)


def planned(postgres: RealPostgres, wanted: Order) -> CatalogPlanned:
    return executor.rehearse(postgres.connstr, wanted, Cancellation())


def next_xid(postgres: RealPostgres) -> int:
    """Return what only a transaction that writes something makes greater, in any database."""
    ((xid,),) = postgres.query("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8")
    return int(xid)


FIRST = a_spec(
    cluster=Cluster(
        (Role("keeper"), Role("leaver"), Role("old name"), Role("web_access")),
        (
            Database("kept", "keeper"),
            Database("moved", "leaver"),
            Database("gone", "leaver"),
            Database("x", "old name"),
        ),
    )
)
SECOND = a_spec(
    cluster=Cluster(
        (Role("keeper", Secret(DIGEST)), Role("new name"), Role("added", Secret(DIGEST)), Role("pg_not_so")),
        (
            Database("kept", "keeper"),
            Database('mo"ved', "keeper"),
            Database("x", "new name"),
            Database("fresh", "added"),
            Database("copied", "added", (GenericOption("TEMPLATE", "string", "template0"),)),
        ),
    ),
    delta_operations=(
        DeltaOp("rename_role", "old name", "new name"),
        DeltaOp("delete_role", "leaver"),
        DeltaOp("rename_db", "moved", 'mo"ved'),
        DeltaOp("delete_db", "gone"),
    ),
)  # fmt: skip


def grow_a_life(postgres: RealPostgres) -> None:
    """Let the role that is to leave own and hold things, by grants of a role that is renamed, too."""
    postgres.query('GRANT "old name" TO leaver')
    for dbname in ("kept", "moved"):
        postgres.query('GRANT CREATE ON SCHEMA public TO leaver, "old name"', dbname=dbname)
        postgres.query("CREATE SCHEMA s CREATE TABLE t (n int)", dbname=dbname)
        postgres.query("ALTER TABLE s.t OWNER TO leaver", dbname=dbname)
        postgres.query("CREATE TABLE u (n int)", dbname=dbname)
        postgres.query('GRANT SELECT ON u TO "old name" WITH GRANT OPTION', dbname=dbname)
        postgres.query('SET ROLE "old name"; GRANT SELECT ON u TO leaver', dbname=dbname)


def test_a_plan_says_what_an_application_does_and_changes_nothing(
    binaries: Binaries, cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    postgres = cluster(binaries, conf="autovacuum = off")
    postgres.query('CREATE ROLE "old name" LOGIN')
    seen = executor.apply(postgres.connstr, order(FIRST), Cancellation()).seen
    grow_a_life(postgres)
    before = next_xid(postgres)

    plan = planned(postgres, order(SECOND, seen))
    assert next_xid(postgres) == before
    assert [refusal.part for refusal in plan.refused] == ['role "pg_not_so"']
    assert DIGEST not in repr(plan)

    caplog.set_level(logging.DEBUG, "compute_node.actors.configurator")
    caplog.clear()
    report = executor.apply(postgres.connstr, order(SECOND, seen), Cancellation())
    debug = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    done = [line.removeprefix(APPLYING) for line in debug if line.startswith(APPLYING)]
    assert len(report.errors) == 1
    assert sorted(operation.action for operation in plan.operations) == sorted(done)
    assert report.statements == len(plan.operations)
    assert len({operation.phase for operation in plan.operations}) >= 6
    assert {operation.database for operation in plan.operations} >= {
        None,
        "kept",
        'mo"ved',
        "fresh",
        "copied",
    }

    before = next_xid(postgres)
    again = planned(postgres, order(SECOND, report.seen))
    assert (again.operations, again.refused) == ((), plan.refused)
    assert planned(postgres, order(SECOND)).operations == ()
    assert next_xid(postgres) == before


def test_a_plan_cannot_write_even_if_it_tried(binaries15: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries15)
    session = executor.PostgresSession(postgres.target, order(FIRST), Cancellation(), read_only=True)

    async def try_to_write() -> Sequence[Any]:
        await session.snapshot(frozenset())
        outcome = await session.execute([op.CreatePrivilegedRole("sneaked_in")])
        return outcome.failures

    try:
        (failure,) = run_async(partial(try_to_write), Cancellation())
    finally:
        session.close()
    assert "read-only transaction" in failure.reason
    assert postgres.query("SELECT 1 FROM pg_roles WHERE rolname = 'sneaked_in'") == []


def test_a_plan_does_not_make_the_superuser_that_is_missing(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries15)
    postgres.query("CREATE ROLE zenith_admin SUPERUSER LOGIN")
    connstr = postgres.connstr.replace("cloud_admin:", "missing:")
    with pytest.raises(AdministrationError, match="missing"):
        executor.rehearse(connstr, order(FIRST), Cancellation())
    assert postgres.query("SELECT 1 FROM pg_roles WHERE rolname = 'missing'") == []

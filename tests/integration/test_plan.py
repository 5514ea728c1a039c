"""A plan over real Postgres: it says exactly what an application then does, and changes nothing itself."""

import json
import logging
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from compute_node.actors.configurator import executor
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.port import AdministrationError, Order
from compute_node.actors.kit.jobs import Cancellation
from compute_node.cli.compute_node import main
from compute_node.messages.planning import CatalogPlanned
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Cluster, ComputeSpec, Database, DeltaOp, GenericOption, Role
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.coroutines import run_async

from doubles import canaries
from doubles.specs import a_spec
from fix_node import START_S, MakeNode, Node, setting, spec
from fix_postgres import Cluster as RealPostgres
from fix_postgres import MakeCluster, wait_until

pytestmark = pytest.mark.slow

DIGEST = "0123456789abcdef" * 2
STATEMENTS = "compute_node_applied_statements_total"
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
    assert "read-only" not in postgres.log, "nobody even tried"


# --- A whole node ------------------------------------------------------------------------------------------


def conf_of(node: Node) -> dict[str, bytes]:
    """What a plan must leave alone: the configuration files, and the names beside them."""
    names = sorted(path.name for path in [*node.pgdata.iterdir(), *node.pgdata.parent.iterdir()])
    files = {path.name: path.read_bytes() for path in node.pgdata.glob("*.conf")}
    return files | {"names": "\n".join(names).encode()}


def state_of(node: Node) -> tuple[Any, ...]:
    ((xid,),) = node.query("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8")
    loaded = node.query("SELECT pg_conf_load_time()")
    left = sorted(path.name for path in Path(tempfile.gettempdir()).iterdir())
    return xid, loaded, conf_of(node), node.status()["status"], left


def started(make_node: MakeNode, binaries: Binaries, document: dict[str, Any]) -> Node:
    """Start a node and return when nothing goes on in its background, which would write, too."""
    node = make_node(binaries).run(document)
    wait_until(
        lambda: "migrations: " in node.log and "[NEON_EXT_STAT] {" in node.log,
        "the upkeep of the start is over",
        START_S,
    )
    return node


def with_settings(*settings: dict[str, str], **cluster: Any) -> dict[str, Any]:
    """A spec with these settings, and quiet: nothing writes by itself."""
    quiet = setting("autovacuum", "off", "bool")
    return spec(cluster=cluster | {"settings": [quiet, *settings]})


def body(document: dict[str, Any]) -> dict[str, Any]:
    return {"spec": document, "compute_ctl_config": {"jwks": {"keys": []}}}


def settings_of(plan: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    return {entry["name"]: (entry["change"], entry["needs_restart"]) for entry in plan["settings"]}


def on_the_command_line(node: Node, document: dict[str, Any]) -> tuple[int, str]:
    """Return exit status and output of `compute-node plan`."""
    token = {"COMPUTE_NODE_TOKEN": node.token()}
    asked = CliRunner().invoke(main, ["plan", "--url", node.url, "-"], input=json.dumps(document), env=token)
    node.secrecy.look("the output of compute-node plan", asked.output)
    return asked.exit_code, asked.stdout


BEFORE = with_settings(
    setting("shared_buffers", "16MB"),
    setting("max_connections", "40", "integer"),
    setting("work_mem", "4MB"),
    setting("log_statement", "ddl"),
    roles=[{"name": "owner"}],
    databases=[{"name": "shop", "owner": "owner"}],
)
AFTER = with_settings(
    setting("shared_buffers", "16384kB"),
    setting("max_connections", "41", "integer"),
    setting("work_mem", "8MB"),
    setting("application_name", "someone", "string"),
    *canaries.settings(),
    roles=[{"name": "owner"}, {"name": "reader", "encrypted_password": DIGEST}],
    databases=[{"name": "shop", "owner": "reader"}, {"name": "archive", "owner": "owner"}],
)


@pytest.mark.timeout(180)
def test_a_plan_of_a_node_is_what_configure_does_and_leaves_files_and_catalog_alone(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = started(make_node, binaries15, BEFORE)
    before = state_of(node)

    answer = node.call("POST", "/plan", body(AFTER))
    assert answer.status == 200, answer.body
    plan = answer.body
    assert settings_of(plan) == {
        "application_name": ("added", False),
        "log_statement": ("removed", False),
        "max_connections": ("changed", True),
        "work_mem": ("changed", False),
    } | {entry["name"]: ("added", False) for entry in canaries.settings()}
    assert (plan["refused"], plan["changes"]) == ([], True)
    assert {operation["database"] for operation in plan["operations"]} == {None, "archive"}
    assert 'make role "reader" the owner of database "shop"' in {o["action"] for o in plan["operations"]}

    refused = node.call("POST", "/plan", body(with_settings(setting("work_mem", "much")))).body
    assert [entry["part"] for entry in refused["refused"]] == ["settings"]
    assert "work_mem" in refused["refused"][0]["reason"]
    assert state_of(node) == before
    code, shown = on_the_command_line(node, AFTER)
    assert (code, shown.splitlines()[-1]) == (
        3,
        f"{4 + len(canaries.settings())} settings (1 at the next start), {len(plan['operations'])} SQL operations",
    )
    assert state_of(node) == before

    statements = node.metric(STATEMENTS)
    configured = node.configure(AFTER)
    assert configured.status == 200, configured.body
    assert configured.headers["x-pending-restart"] == "max_connections"
    assert node.metric(STATEMENTS) - statements == len(plan["operations"])

    before = state_of(node)
    again = node.call("POST", "/plan", body(AFTER)).body
    assert (again["changes"], again["settings"], again["operations"]) == (False, [], [])
    assert on_the_command_line(node, AFTER) == (0, "no changes\n")
    back = node.call("POST", "/plan", body(BEFORE)).body
    assert settings_of(back)["max_connections"] == ("changed", False), "40 is still in force"
    assert state_of(node) == before


@pytest.mark.timeout(180)
def test_drift_names_what_was_changed_behind_the_nodes_back(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = started(make_node, binaries15, BEFORE)
    drift = node.call("GET", "/drift").body
    assert (drift["drifted"], drift["settings"], drift["operations"]) == (False, [], [])

    node.query("CREATE ROLE intruder LOGIN")
    node.query("ALTER DATABASE shop OWNER TO intruder")
    node.query("ALTER ROLE canary_md5 PASSWORD NULL")
    node.query(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM neon_superuser", dbname="shop"
    )
    node.query("ALTER SYSTEM SET work_mem = '64MB'")
    with (node.pgdata / "postgresql.conf").open("a") as conf:
        conf.write("log_statement = 'none'\n")
    before = state_of(node)
    drift = node.call("GET", "/drift").body
    assert drift["drifted"]
    assert drift["settings"] == [
        {"name": "log_statement", "cause": "postgresql.conf", "described": "ddl", "actual": "none"},
        {"name": "work_mem", "cause": "ALTER SYSTEM", "described": "4MB", "actual": "64MB"},
    ]
    assert {(entry["object"], entry["action"]) for entry in drift["operations"]} == {
        ('role "canary_md5"', 'set the password of role "canary_md5"'),
        ('database "shop"', 'make role "owner" the owner of database "shop"'),
        (
            'database "shop"',
            'grant all on future tables in schema public to role "neon_superuser" in database "shop"',
        ),
    }
    assert state_of(node) == before

    node.query("ALTER SYSTEM RESET work_mem")
    assert node.configure(BEFORE).status == 200
    assert node.call("GET", "/drift").body["drifted"] is False


def test_a_node_that_waits_for_its_spec_makes_no_plan(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(None)
    node.start().await_status("empty")
    for answer in (node.call("POST", "/plan", body(BEFORE)), node.call("GET", "/drift")):
        assert (answer.status, answer.body) == (412, {"error": "invalid compute status: empty"})

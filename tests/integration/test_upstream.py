"""Replicas of a running primary: copied by pg_basebackup, following it, and what is refused. Two real servers."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from compute_node.actors.postgres_process import promoting
from compute_node.actors.postgres_process.orphans import is_alive
from compute_node.messages.metrics import BASEBACKUP_RECEIVED
from compute_node.messages.postgres import (
    CheckConfiguration,
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    PgdataFailed,
    PgdataInspected,
    PgdataKind,
    PgdataPrepared,
    PgdataRefused,
    PreparePgdata,
)
from compute_node.messages.promotion import PostgresPromoted, PostgresPromotionFailed, PromotePostgres
from compute_node.messages.secret import Secret
from compute_node.messages.settings import SourceName
from compute_node.messages.spec import ComputeSpec, StaticMode
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import parse_connstr

from doubles import canaries
from doubles.relay import Relay
from fix_node import MakeNode
from fix_node import spec as a_spec
from fix_postgres import Cluster, MakeCluster, Ports, wait_until
from fix_process import MakeProcess, Process, fast_spec

PASSWORD = canaries.canary("upstream")


def make_primary(cluster: MakeCluster, binaries: Binaries) -> Cluster:
    """Make a primary that lets replicas in by password, with more workers than a small node would ask for."""
    made = cluster(binaries, conf="max_worker_processes = 12", start=False)
    hba = made.pgdata / "pg_hba.conf"
    hba.write_text(f"host replication follower 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
    made.start()
    made.query(f"CREATE ROLE follower REPLICATION LOGIN PASSWORD '{PASSWORD}'")
    made.query("CREATE TABLE t AS SELECT 1 AS a")
    made.query("ALTER SYSTEM SET work_mem = '5MB'")
    if binaries.major >= 15:  # every session begins with a warning then
        made.query("UPDATE pg_database SET datcollversion = 'of another libc'")
    return made


@pytest.fixture
def primary(cluster: MakeCluster, binaries15: Binaries) -> Cluster:
    return make_primary(cluster, binaries15)


@pytest.fixture
def any_primary(cluster: MakeCluster, binaries: Binaries) -> Cluster:
    """One of each Postgres in turn."""
    return make_primary(cluster, binaries)


def conninfo(primary: Cluster, **changes: str) -> Secret:
    fields = {"host": "127.0.0.1", "port": str(primary.port), "user": "follower", "password": PASSWORD}
    return Secret(" ".join(f"{name}='{value}'" for name, value in (fields | changes).items()))


def replica(primary: Cluster, **changes: Any) -> ComputeSpec:
    fields: dict[str, Any] = {"mode": "Replica", "upstream_conninfo": conninfo(primary)}
    return fast_spec(**(fields | changes))


def test_a_replica_is_copied_follows_its_primary_and_is_copied_anew_by_the_next_start(
    make_process: MakeProcess, any_primary: Cluster, binaries: Binaries
) -> None:
    primary = any_primary
    process = make_process(binaries, source=SourceName.UPSTREAM)
    spec = replica(primary, upstream_slot_name="of_the_replica")
    assert process.inspect() == PgdataInspected(PgdataKind.ABSENT)
    checked = process.check(spec)
    assert isinstance(checked, ConfigurationAccepted), checked
    assert any("primary_conninfo" in warning for warning in checked.warnings), "the canary settings have one"
    prepared = process.prepare(spec)
    assert isinstance(prepared, PgdataPrepared), prepared
    process.launch(spec)

    assert process.query("SELECT a, pg_is_in_recovery() FROM t") == [(1, True)]
    primary.query("INSERT INTO t VALUES (2)")
    wait_until(lambda: process.query("SELECT count(*) FROM t") == [(2,)], "the replica follows", 30)
    assert primary.query("SELECT application_name, slot_name FROM pg_stat_replication r JOIN pg_replication_slots s "
                         "ON s.active_pid = r.pid") == [("compute-1", "of_the_replica")]  # fmt: skip
    assert process.query("SELECT name, setting FROM pg_settings WHERE name IN ('max_worker_processes', "
                         "'max_connections', 'work_mem') ORDER BY name") == [
        ("max_connections", "40"), ("max_worker_processes", "12"), ("work_mem", "4096")]  # fmt: skip
    process.stop()

    again = make_process(binaries, source=SourceName.UPSTREAM)
    process.abandon()
    assert again.inspect() == PgdataInspected(PgdataKind.OURS_COPY)
    assert not again.prepare(spec).kept
    again.launch(spec)
    assert again.query("SELECT count(*) FROM t") == [(2,)]


def test_a_promoted_replica_writes_is_no_copy_any_more_and_is_kept_by_the_next_start(
    make_process: MakeProcess, any_primary: Cluster, binaries: Binaries
) -> None:
    primary = any_primary
    process = make_process(binaries, source=SourceName.UPSTREAM)
    spec = replica(primary)
    process.start(spec)
    primary.query("INSERT INTO t VALUES (2)")
    wait_until(lambda: process.query("SELECT count(*) FROM t") == [(2,)], "the replica follows", 30)
    ((end,),) = primary.query("SELECT pg_current_wal_flush_lsn()::text")
    primary.stop()
    refused = process.check(fast_spec())
    assert isinstance(refused, ConfigurationRefused)
    assert "POST /promote" in refused.error, "a configuration alone makes no primary of it"

    new = fast_spec(upstream_conninfo=conninfo(primary))
    accepted = process.tell(
        CheckConfiguration(9, new, promoting=True), ConfigurationAccepted, ConfigurationRefused
    )
    assert isinstance(accepted, ConfigurationAccepted), accepted
    promoted = process.tell(PromotePostgres(9, spec, end), PostgresPromoted, PostgresPromotionFailed)
    assert isinstance(promoted, PostgresPromoted), promoted
    process.query("INSERT INTO t VALUES (3)")
    again = process.tell(PromotePostgres(10, spec, end), PostgresPromoted, PostgresPromotionFailed)
    assert isinstance(again, PostgresPromoted), "what is a primary already passes"
    assert isinstance(process.install(new), ConfigurationInstalled)
    assert process.query("SHOW primary_conninfo") == [
        ("host=127.0.0.1 user=replica password=" + canaries.canary("conninfo"),)
    ]
    process.stop()

    process.abandon()
    kept = make_process(binaries, source=SourceName.UPSTREAM)
    assert kept.inspect() == PgdataInspected(PgdataKind.OURS_COMPLETE)
    refused = kept.check(spec)
    assert isinstance(refused, ConfigurationRefused)
    assert "it was promoted" in refused.error
    assert kept.prepare(new).kept
    kept.launch(new)
    assert kept.query("SELECT count(*), pg_is_in_recovery() FROM t") == [(3, False)]


def test_a_replica_that_does_not_catch_up_is_not_promoted(
    make_process: MakeProcess, primary: Cluster, binaries15: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promoting, "CATCH_UP_S", 0.2)
    process = make_process(binaries15, source=SourceName.UPSTREAM)
    spec = replica(primary)
    process.start(spec)
    failed = process.tell(PromotePostgres(9, spec, "F/0"), PostgresPromoted, PostgresPromotionFailed)
    assert isinstance(failed, PostgresPromotionFailed)
    assert failed.error.startswith("didn't catch up with primary in 20 retries: it has replayed 0/")
    assert process.query("SELECT pg_is_in_recovery()") == [(True,)]


def test_a_node_that_follows_is_promoted_over_http_and_comes_back_as_a_primary(
    make_node: MakeNode, primary: Cluster, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--source", "upstream", "--dev")
    fields = {"upstream_conninfo": conninfo(primary).reveal()}
    node.run(a_spec(mode="Replica", **fields))
    node.look_for_secrets()
    primary.query("INSERT INTO t VALUES (2)")
    ((end,),) = primary.query("SELECT pg_current_wal_flush_lsn()::text")
    wait_until(lambda: node.query("SELECT count(*) FROM t") == [(2,)], "the node follows", 30)
    primary.stop()

    wrong = node.call("POST", "/promote", {"spec": a_spec(mode="Replica"), "wal_flush_lsn": end})
    assert (wrong.status, wrong.body["error"]) == (400, "the spec of the new primary has the mode replica")
    new = a_spec(cluster={"roles": [{"name": "alice"}]}, **fields)
    request = {"spec": new, "wal_flush_lsn": end}
    promoted = node.call("POST", "/promote", request)
    assert promoted.status == 200, promoted.body
    assert promoted.body["status"] == "completed"
    assert set(promoted.body) >= {"lsn_wait_time_ms", "pg_promote_time_ms", "reconfigure_time_ms"}
    assert node.call("POST", "/promote", request).body == promoted.body
    assert node.query("SELECT count(*) FROM pg_roles WHERE rolname = 'alice'") == [(1,)]
    assert node.stop() == 0

    node.run(new)
    assert node.query("SELECT count(*), pg_is_in_recovery() FROM t") == [(2, False)]
    assert node.stop() == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a primary": ({"mode": "Primary"}, "makes replicas of a running primary"),
    "a static node": ({"mode": StaticMode("0/1")}, "makes replicas of a running primary"),
    "no conninfo": ({"upstream_conninfo": None}, "upstream_conninfo should be provided"),
    "a conninfo that is none": ({"upstream_conninfo": Secret("postgresql://[")}, "give it as libpq reads it"),
}


def test_what_no_copy_can_be_is_refused_by_name_before_anything_is_made(
    make_process: MakeProcess, primary: Cluster, binaries15: Binaries
) -> None:
    process = make_process(binaries15, source=SourceName.UPSTREAM)
    process.inspect()
    for changes, text_of_it in REFUSED.values():
        refused = process.check(replica(primary, **changes))
        assert isinstance(refused, ConfigurationRefused)
        assert text_of_it in refused.error
    assert not process.pgdata.exists()


def test_what_does_not_heal_fails_at_once_and_names_the_reason(
    make_process: MakeProcess, primary: Cluster, binaries15: Binaries
) -> None:
    process = make_process(binaries15, source=SourceName.UPSTREAM)
    process.inspect()
    failed = process.prepare(replica(primary, upstream_conninfo=conninfo(primary, password="wrong")))
    assert isinstance(failed, PgdataFailed)
    assert "password authentication failed" in failed.error
    assert "attempts" not in failed.error
    assert not Path(f"{process.pgdata}.building").exists()


def test_an_upstream_of_another_major_is_refused_by_name(
    make_process: MakeProcess, cluster: MakeCluster, binaries15: Binaries, binaries17: Binaries
) -> None:
    newer = make_primary(cluster, binaries17)
    process = make_process(binaries15, source=SourceName.UPSTREAM)
    process.inspect()
    failed = process.prepare(replica(newer))
    assert isinstance(failed, PgdataFailed)
    assert (
        "it is PostgreSQL 17, and the programs given are of 15: give those of 17 by --pgbin" in failed.error
    )


def test_a_folder_that_holds_data_of_its_own_is_not_replaced_by_a_copy(
    make_process: MakeProcess, binaries15: Binaries
) -> None:
    process = make_process(binaries15, made=True, source=SourceName.INITDB)
    process.abandon()
    other = make_process(binaries15, source=SourceName.UPSTREAM)
    refused = other.inspect()
    assert isinstance(refused, PgdataRefused)
    assert "--source initdb" in refused.error
    assert (process.pgdata / "PG_VERSION").exists()


# --- In the middle of a copy

STALL_AT: Final = 1 << 20
"""Bytes of one connection: more than a question takes, and less than a cluster has."""


@pytest.fixture
def line(primary: Cluster) -> Iterator[Relay]:
    """The way to the primary, on which a copy comes to a stand."""
    with Relay(primary.port, stall_at=STALL_AT) as made:
        yield made


def copying(folder: Path) -> list[psutil.Process]:
    """Return every pg_basebackup that works there, the one that receives the log last."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "pg_basebackup" and process.cwd().startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.ppid() in {one.pid for one in found})


def alive(process: psutil.Process) -> bool:
    return is_alive(process.pid)


def in_the_middle(process: Process, primary: Cluster, line: Relay, **changes: Any) -> list[psutil.Process]:
    """Begin a copy and wait until it stands still, with both its programs there; return them."""
    process.inspect()
    spec = replica(primary, upstream_conninfo=conninfo(primary, port=str(line.port)), **changes)
    process.ref.tell(PreparePgdata(process.operation, spec))
    assert line.stalled.wait(30)
    wait_until(lambda: len(copying(process.pgdata.parent)) == 2, "both programs run", 30)
    return copying(process.pgdata.parent)


@pytest.mark.parametrize("victim", [0, 1], ids=["pg_basebackup", "its receiver of the log"])
def test_a_copy_whose_program_a_stranger_kills_is_made_again(
    make_process: MakeProcess, primary: Cluster, line: Relay, binaries15: Binaries, victim: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    process = make_process(binaries15, source=SourceName.UPSTREAM)
    programs = in_the_middle(process, primary, line)
    programs[victim].kill()
    wait_until(lambda: not alive(programs[victim]), "it is dead", 30)
    if victim == 0:
        wait_until(lambda: "pg_basebackup ended with -9" in caplog.text, "it is told", 30)
    line.flow()
    prepared = process.wait_for(PgdataPrepared, PgdataFailed)
    assert isinstance(prepared, PgdataPrepared), prepared
    assert "pg_basebackup ended with" in caplog.text
    assert not any(map(alive, programs)), "nobody of the first is left"
    process.launch(replica(primary))
    assert process.query("SELECT a, pg_is_in_recovery() FROM t") == [(1, True)]


def test_a_primary_that_dies_in_the_middle_is_waited_for(
    make_process: MakeProcess, primary: Cluster, line: Relay, binaries15: Binaries,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    process = make_process(binaries15, source=SourceName.UPSTREAM)
    in_the_middle(process, primary, line, upstream_slot_name="of_the_replica")
    primary.stop(signal.SIGKILL)
    line.flow()
    wait_until(lambda: "it cannot be reached" in caplog.text, "another attempt finds it gone", 30)
    primary.start()
    prepared = process.wait_for(PgdataPrepared, PgdataFailed)
    assert isinstance(prepared, PgdataPrepared), prepared
    process.launch(replica(primary, upstream_slot_name="of_the_replica"))
    assert process.query("SELECT a, pg_is_in_recovery() FROM t") == [(1, True)]
    process.stop()
    slots = "SELECT slot_name::text, active FROM pg_replication_slots"
    wait_until(lambda: primary.query(slots) == [("of_the_replica", False)], "the slot stays, and only it", 30)


def test_what_a_node_that_was_killed_in_the_middle_has_left_is_ended_and_cleared_away_by_the_next_start(
    make_node: MakeNode, primary: Cluster, line: Relay, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--source", "upstream", "--dev")
    node.write_config(
        a_spec(mode="Replica", upstream_conninfo=conninfo(primary, port=str(line.port)).reveal())
    )
    node.start()
    assert line.stalled.wait(60)
    assert node.process is not None
    node.process.kill()
    node.wait()
    left = copying(node.folder)
    assert left, "the programs go on without the node"
    assert not node.pgdata.exists()
    line.flow()

    node.start().await_status("running")
    assert node.query("SELECT a, pg_is_in_recovery() FROM t") == [(1, True)]
    assert not any(map(alive, left))
    assert {path.name for path in node.folder.iterdir() if path.name.startswith("pgdata")} == {
        "pgdata",
        "pgdata.lock",
    }
    assert primary.query("SELECT count(*) FROM pg_replication_slots") == [(0,)], "none was asked for"
    assert node.metric(BASEBACKUP_RECEIVED.name) > STALL_AT
    assert node.stop() == 0, node.log


# --- Replicas of replicas


def test_a_replica_of_a_replica_follows_it_others_as_it_is_told_and_a_middle_that_becomes_a_primary(
    make_process: MakeProcess,
    any_primary: Cluster,
    binaries: Binaries,
    postgres_folder: Path,
    free_port: Ports,
) -> None:
    primary = any_primary
    middle = make_process(binaries, source=SourceName.UPSTREAM)
    spec = replica(primary)
    middle.start(spec)
    port = parse_connstr(middle.settings.connstr.reveal()).port
    leaf = make_process(
        binaries,
        source=SourceName.UPSTREAM,
        pgdata=str(postgres_folder / "leaf"),
        connstr=f"postgresql://cloud_admin@localhost:{free_port()}/postgres",
        compute_id="leaf",
    )
    to_middle = replica(
        primary, upstream_conninfo=conninfo(primary, port=str(port)), upstream_slot_name="of_the_leaf"
    )
    leaf.start(to_middle)
    assert leaf.query("SELECT a, pg_is_in_recovery() FROM t") == [(1, True)]
    followers = "SELECT application_name FROM pg_stat_replication"
    wait_until(lambda: middle.query(followers) == [("leaf",)], "the leaf follows the middle", 30)

    to_primary = replica(primary, upstream_slot_name="second")
    assert isinstance(leaf.install(to_primary), ConfigurationInstalled)
    slots = "SELECT slot_name::text, active FROM pg_replication_slots"
    wait_until(lambda: primary.query(slots) == [("second", True)], "the leaf follows the primary itself", 30)
    refused = leaf.install(replica(primary, upstream_conninfo=conninfo(primary, password="wrong")))
    assert isinstance(refused, ConfigurationInstallFailed)
    assert "cannot be followed: it cannot be reached" in refused.error
    assert "password authentication failed" in refused.error
    assert leaf.query("SHOW primary_slot_name") == [("second",)], "what was in force stays so"
    assert isinstance(leaf.install(to_middle), ConfigurationInstalled), "its slot is there already"
    wait_until(lambda: middle.query(followers) == [("leaf",)], "the leaf follows the middle again", 30)
    primary.query("INSERT INTO t VALUES (2)")
    wait_until(lambda: leaf.query("SELECT count(*) FROM t") == [(2,)], "it follows through the middle", 30)
    primary.stop()
    promoted = middle.tell(PromotePostgres(9, spec, None), PostgresPromoted, PostgresPromotionFailed)
    assert isinstance(promoted, PostgresPromoted), promoted
    middle.query("INSERT INTO t VALUES (3)")
    wait_until(lambda: leaf.query("SELECT count(*) FROM t") == [(3,)], "it follows the new primary", 30)
    assert leaf.query("SELECT pg_is_in_recovery()") == [(True,)]

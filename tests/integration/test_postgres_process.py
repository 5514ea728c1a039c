"""The PostgresProcess with real folders and real Postgres."""

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.programs import Starter
from compute_node.actors.postgres_process import orphans, readiness, syncing
from compute_node.actors.postgres_process.folder import seal
from compute_node.actors.postgres_process.lock import FolderLock
from compute_node.actors.postgres_process.node import Node
from compute_node.actors.postgres_process.pgdata import MARKER, TEMPORARY, TOKEN, Seal
from compute_node.actors.postgres_process.sources import SourceError
from compute_node.actors.postgres_process.sources.initdb import InitdbSource
from compute_node.actors.postgres_process.syncing import FileSystemSync
from compute_node.messages.lifecycle import EXIT_FAILED, Condition, ConditionCleared, ConditionRaised
from compute_node.messages.postgres import (
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    PgdataFailed,
    PgdataInspected,
    PgdataKind,
    PgdataPrepared,
    PgdataRefused,
    PostgresExited,
    PostgresReady,
    PostgresStartFailed,
    PostgresStopped,
    PreparePgdata,
    SettleConfiguration,
    StartPostgres,
    StopPostgres,
    StopRung,
)
from compute_node.messages.secret import Secret
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.conf import OVERRIDE_FILE
from compute_node.process import logs as process_logs

from fix_postgres import Ports, Templates, as_account, owned_folder, run_as, wait_until
from fix_process import MakeProcess, Process, fast_spec, in_thread, snapshot, text

pytestmark = pytest.mark.slow


# --- Starting and stopping -------------------------------------------------------------------------------


def test_a_first_start_makes_a_cluster_and_a_stop_leaves_it(
    binaries: Binaries, make_process: MakeProcess, account: Account | None
) -> None:
    process = make_process(binaries)
    assert process.inspect() == PgdataInspected(PgdataKind.ABSENT)
    assert isinstance(process.check(fast_spec()), ConfigurationAccepted)
    assert process.prepare().kept is False
    ready = process.launch()
    assert isinstance(ready, PostgresReady)
    assert process.sink.alive == [ready.pid]
    assert process.query("SELECT current_user, current_setting('server_version_num')::int / 10000") == [
        ("cloud_admin", binaries.major)
    ]
    assert process.query("SHOW server_encoding") == [("UTF8",)]
    assert "host\tall\t\tall\t\tall\t\tmd5" in (process.pgdata / "pg_hba.conf").read_text().splitlines()
    assert process.pgdata.stat().st_mode & 0o777 == 0o700
    if account is not None:
        assert process.pgdata.stat().st_uid == account.uid
    assert process.stop().rung is StopRung.FAST
    assert process.sink.alive == []
    names = {path.name for path in process.pgdata.parent.iterdir()}
    assert names == {"pgdata", "pgdata.lock"}
    assert not (process.pgdata / "pg_dynshmem").is_symlink()


@pytest.mark.parametrize("at_once", [True, False], ids=["by one sync", "file by file"])
def test_all_of_a_new_cluster_is_durable_before_it_bears_its_marker(
    binaries15: Binaries,
    make_process: MakeProcess,
    monkeypatch: pytest.MonkeyPatch,
    at_once: bool,  # noqa: FBT001 - both
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.removeprefix(TEMPORARY))
        fsync(descriptor)

    def all_noted(_: FileSystemSync) -> None:
        synced.extend(path.name for path in (process.pgdata.parent / "pgdata.building" / "data").iterdir())

    process = make_process(binaries15)
    process.inspect()
    monkeypatch.setattr(syncing, "is_wise", lambda *_: at_once)
    monkeypatch.setattr(FileSystemSync, "sync", all_noted)
    monkeypatch.setattr(os, "fsync", noted)
    assert process.prepare().kept is False
    before = synced[: synced.index(MARKER)]
    assert {"postgresql.conf", "pg_hba.conf", OVERRIDE_FILE, TOKEN} <= set(before)
    assert ("PG_VERSION" in before) is at_once, "else initdb syncs it"
    assert synced[-2:] == ["data", "pgdata.building"], "the name of the marker, and that of the cluster"


def test_a_restart_keeps_the_data_and_fresh_rebuilds_it(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries)
    first.start()
    first.query("CREATE TABLE kept AS SELECT 42 AS answer")
    first.stop()
    first.abandon()

    second = make_process(binaries)
    assert second.inspect() == PgdataInspected(PgdataKind.OURS_COMPLETE)
    assert second.prepare().kept is True
    assert isinstance(second.launch(), PostgresReady)
    assert second.query("SELECT answer FROM kept") == [(42,)]
    second.stop()
    second.abandon()

    third = make_process(binaries, fresh=True)
    assert third.inspect() == PgdataInspected(PgdataKind.OURS_COMPLETE)
    assert third.prepare().kept is False
    assert (third.pgdata / MARKER).exists(), "the old one is there until the new one takes its place"
    assert isinstance(third.launch(), PostgresReady)
    assert third.query("SELECT to_regclass('kept')") == [(None,)]
    assert third.heard(ConditionRaised) == []


def test_a_refused_or_cancelled_rebuild_leaves_the_old_data(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries15, made=True, fresh=True)
    before = snapshot(process.pgdata)
    process.inspect()
    process.prepare()
    assert Path(f"{process.pgdata}.building/data/{MARKER}").exists()
    assert process.stop().rung is StopRung.NOT_RUNNING
    assert snapshot(process.pgdata) == before
    assert {path.name for path in process.pgdata.parent.iterdir()} == {"pgdata", "pgdata.lock"}


def test_two_nodes_live_side_by_side_each_with_its_own_shared_memory(
    binaries15: Binaries,
    make_process: MakeProcess,
    postgres_folder: Path,
    free_port: Ports,
    account: Account | None,
) -> None:
    conf = fast_spec(text("dynamic_shared_memory_type", "mmap"), text("min_dynamic_shared_memory", "4MB"))
    parallel = (
        *("max_parallel_workers_per_gather = 2", "parallel_setup_cost = 0"),
        *("parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0"),
    )
    first = make_process(binaries15, made=True)
    port = free_port()
    second = make_process(
        binaries15,
        made=True,
        compute_id="compute-2",
        pgdata=str(owned_folder(postgres_folder, account) / "pgdata"),
        connstr=f"postgresql://cloud_admin@localhost:{port}/postgres",
    )
    first.start(conf)
    link = (first.pgdata / "pg_dynshmem").readlink()
    segments = {path.name for path in link.iterdir()}
    assert segments
    second.start(conf)
    assert (second.pgdata / "pg_dynshmem").readlink() != link
    assert {path.name for path in link.iterdir()} >= segments, "the start of one took segments of the other"
    for process in (first, second):
        process.query("CREATE TABLE t AS SELECT generate_series(1, 20000) AS n")
        with process.connect() as session:
            for setting in parallel:
                session.execute(f"SET {setting}".encode())
            plan = session.execute("EXPLAIN SELECT sum(n) FROM t").fetchall()
            assert "Workers Planned" in str(plan)
            assert session.execute("SELECT sum(n)::int FROM t").fetchone() == (200010000,)
    second.stop()
    assert {path.name for path in link.iterdir()} >= segments
    first.query("SELECT count(*) FROM t")
    first.stop()
    assert not link.exists()


def test_an_idle_session_does_not_hold_up_the_stop(binaries: Binaries, make_process: MakeProcess) -> None:
    process = make_process(binaries, made=True)
    process.start()
    with process.connect() as session:
        session.execute("SELECT 1")
        assert process.stop(15.0).rung is StopRung.FAST
        session.close()
    assert process.server._postgres.pump.last_messages[-1].endswith("database system is shut down")


def test_a_postmaster_that_stands_still_is_let_go_on_and_stops_in_order(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries, made=True)
    ready = process.start()
    os.kill(ready.pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(ready.pid).status() == psutil.STATUS_STOPPED, "it stands still")
    assert process.stop(20.0).rung is StopRung.FAST
    assert process.server._postgres.pump.last_messages[-1].endswith("database system is shut down")


def test_a_deaf_postgres_is_killed_within_the_budget_with_all_its_children(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries, made=True)
    ready = process.start()
    children = psutil.Process(ready.pid).children()
    with process.connect() as session:
        os.kill(session.info.backend_pid, signal.SIGSTOP)  # fast waits for it, immediate for 5 s
        clock = process.runtime.clock
        began = clock.now()
        assert process.stop(3.0).rung is StopRung.KILL
        assert clock.now() - began < 3.0
        session.close()
    assert not psutil.pid_exists(ready.pid)
    wait_until(lambda: not any(orphans.is_alive(child.pid) for child in children), "its children are gone")


def test_a_stop_while_initdb_runs_ends_it_at_once_and_leaves_nothing(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries15)
    process.inspect()
    process.ref.tell(PreparePgdata(1, fast_spec()))
    building = Path(f"{process.pgdata}.building")
    wait_until((building / "data" / "PG_VERSION").exists, "initdb is under way")
    began = process.runtime.clock.now()
    assert process.stop(10.0).rung is StopRung.NOT_RUNNING
    assert process.runtime.clock.now() - began < 1.5
    assert {path.name for path in process.pgdata.parent.iterdir()} == {"pgdata.lock"}
    assert process.heard(PgdataPrepared) == []
    assert process.heard(PgdataFailed) == []


def test_a_stop_while_postgres_starts_ends_it(binaries15: Binaries, make_process: MakeProcess) -> None:
    process = make_process(binaries15, made=True)
    process.inspect()
    process.prepare()
    process.ref.tell(StartPostgres(1, fast_spec()))
    process.ref.tell(StopPostgres(10.0))
    process.wait_for(PostgresStopped)
    assert process.sink.alive == []
    assert process.heard(PostgresReady) == []


# --- Ends that nobody asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "how", "state"),
    [
        (signal.SIGINT, "exit code 0", "shut down in order"),
        (signal.SIGQUIT, "exit code 0", "unclean"),
        (signal.SIGKILL, "killed by SIGKILL", "unclean"),
    ],
    ids=["fast", "immediate", "kill"],
)
def test_an_end_that_nobody_asked_for_is_told_whatever_its_code(
    number: signal.Signals, how: str, state: str, binaries15: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries15, made=True)
    ready = process.start()
    os.kill(ready.pid, number)
    exited = process.wait_for(PostgresExited)
    assert how in exited.description
    assert f"its cluster is {state}" in exited.description
    assert "ready to accept connections" in exited.description, "its last words"
    assert process.stop().rung is StopRung.NOT_RUNNING


def test_after_a_crash_recovery_is_a_condition_until_postgres_is_ready(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries, made=True)
    pid = first.start().pid
    first.query("CREATE TABLE survivor AS SELECT 1 AS n")
    os.kill(pid, signal.SIGKILL)
    first.wait_for(PostgresExited)
    first.stop()
    first.abandon()
    second = make_process(binaries)
    second.start()
    assert [
        (type(told), told.condition) for told in second.recorder.entries if hasattr(told, "condition")
    ] == [
        (ConditionRaised, Condition.RECOVERING),
        (ConditionCleared, Condition.RECOVERING),
    ]
    assert second.query("SELECT n FROM survivor") == [(1,)]


def test_a_postgres_that_is_not_ready_in_time_is_gone_before_the_start_fails(
    binaries15: Binaries, make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "is_ready", lambda *_: False)
    process = make_process(binaries15, made=True, start_timeout_s=0.0)
    process.inspect()
    process.prepare()
    failed = process.launch()
    assert isinstance(failed, PostgresStartFailed)
    assert "timed out while waiting for Postgres to start" in failed.error
    assert process.sink.alive == []
    process.stop()


def test_a_postgres_that_cannot_start_says_why_in_the_error(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries15, made=True)
    process.inspect()
    process.prepare()
    (process.pgdata / "global" / "pg_control").unlink()
    failed = process.launch()
    assert isinstance(failed, PostgresStartFailed)
    assert "could not find the database system" in failed.error
    assert "exit code 2" in failed.error
    process.stop()


def test_a_core_dump_of_the_run_is_shown_in_the_log(
    binaries15: Binaries, make_process: MakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    process = make_process(binaries15, made=True)
    (process.pgdata / "core.old").touch()
    os.utime(process.pgdata / "core.old", (1, 1))
    process.start()
    (process.pgdata / "core.123").write_bytes(b"not really")
    process.stop()
    found = [record.getMessage() for record in caplog.records if "core dump" in record.getMessage()]
    assert f"core dump found: {process.pgdata}/core.123, collecting backtrace" in found[0]
    assert not any("core.old" in line for line in found)
    assert len(found) == 2


# --- Whose folder ----------------------------------------------------------------------------------------


def foreign_files(process: Process, account: Account | None, templates: Templates) -> None:
    process.pgdata.mkdir()
    (process.pgdata / "letter.txt").write_text("dear")
    (process.pgdata / "link").symlink_to("/etc/hostname")


def foreign_cluster(process: Process, account: Account | None, templates: Templates) -> None:
    run_as(account, "cp", "-a", templates.get(process.server._node.binaries), process.pgdata)


def copied_cluster(process: Process, account: Account | None, templates: Templates) -> None:
    foreign_cluster(process, account, templates)
    elsewhere = Seal(compute_id="compute-1", path="/somewhere/else", major=15, source="initdb")
    for name in (TOKEN, MARKER):
        seal(str(process.pgdata), name, elsewhere, account)


@pytest.mark.parametrize("made_by", [foreign_files, foreign_cluster, copied_cluster])
@pytest.mark.parametrize("changes", [{}, {"fresh": True}], ids=["", "fresh"])
def test_a_foreign_folder_is_refused_and_byte_identical_afterwards(
    made_by: Callable[[Process, Account | None, Templates], None],
    changes: dict[str, bool],
    binaries15: Binaries,
    make_process: MakeProcess,
    account: Account | None,
    templates: Templates,
) -> None:
    process = make_process(binaries15, **changes)
    made_by(process, account, templates)
    before = snapshot(process.pgdata)
    refused = process.inspect()
    assert isinstance(refused, PgdataRefused)
    assert refused.exit_code == 1
    assert "--set-aside-pgdata" in refused.error
    process.stop()
    assert snapshot(process.pgdata) == before


def test_a_foreign_folder_is_set_aside_when_asked_and_only_once_the_new_one_is_complete(
    binaries15: Binaries, make_process: MakeProcess, account: Account | None, templates: Templates
) -> None:
    process = make_process(binaries15, set_aside_pgdata=True)
    foreign_files(process, account, templates)
    before = snapshot(process.pgdata)
    assert process.inspect() == PgdataInspected(PgdataKind.FOREIGN)
    process.prepare()
    assert snapshot(process.pgdata) == before
    assert isinstance(process.launch(), PostgresReady)
    assert snapshot(Path(f"{process.pgdata}.aside-1")) == before
    process.stop()


def test_a_moved_folder_is_refused_until_it_is_claimed(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries15, made=True)
    first.start()
    first.query("CREATE TABLE moved AS SELECT 1 AS n")
    first.stop()
    first.abandon()
    here = str(first.pgdata.with_name("here"))
    first.pgdata.rename(here)
    refused = make_process(binaries15, pgdata=here)
    assert "--claim-pgdata" in refused.inspect().error
    refused.stop()
    refused.abandon()
    claimed = make_process(binaries15, pgdata=here, claim_pgdata=True)
    claimed.start()
    assert claimed.query("SELECT n FROM moved") == [(1,)]
    claimed.stop()
    claimed.abandon()
    again = make_process(binaries15, pgdata=here)
    assert again.inspect() == PgdataInspected(PgdataKind.OURS_COMPLETE)


def test_a_live_postgres_of_somebody_else_is_not_set_aside_under_its_feet(
    binaries15: Binaries, make_process: MakeProcess, cluster: Any
) -> None:
    theirs = cluster(binaries15)
    process = make_process(binaries15, pgdata=str(theirs.pgdata), set_aside_pgdata=True)
    refused = process.inspect()
    assert isinstance(refused, PgdataRefused)
    assert str(theirs.pid) in refused.error
    assert theirs.query("SELECT 1") == [(1,)]
    process.stop()


def test_the_folder_of_a_running_node_is_locked_and_the_second_node_touches_nothing(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries15, made=True)
    first.start()
    second = make_process(binaries15)
    second.server._claim.lock = FolderLock(patience_s=0.1)
    refused = second.inspect()
    assert isinstance(refused, PgdataRefused)
    assert refused.exit_code == 75
    assert first.query("SELECT 1") == [(1,)]
    second.stop()


WITHOUT_NAME = """
import encodings.ascii, os, sys  # the former: the user may not be able to read Python's library
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.postgres_process.server import Server
from compute_node.postgres.binaries import inspect
sys.path.insert(0, sys.argv[3])
from doubles.specs import a_spec, settings
from fix_process import Sink
node = settings(pgdata=sys.argv[1], postgres_bin=sys.argv[2])
server = Server(node, inspect(sys.argv[2]), None, Sink())
os.setgroups([])
os.setgid(int(sys.argv[4]))
os.setuid(int(sys.argv[4]))
server.inspect(Cancellation())
server.prepare(a_spec(), 0, Cancellation())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
def test_a_user_id_without_a_name_is_explained_before_initdb_fails(
    binaries15: Binaries, postgres_folder: Path
) -> None:
    nameless = 54321
    os.chown(postgres_folder, nameless, nameless)
    tests = str(Path(__file__).resolve().parent.parent)
    arguments = [str(postgres_folder / "pgdata"), binaries15.postgres, tests, str(nameless)]
    command = [sys.executable, "-c", WITHOUT_NAME, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"the user id {nameless} of this process has no entry in /etc/passwd" in done.stderr
    assert {path.name for path in postgres_folder.iterdir()} == {"pgdata.lock"}


def test_a_full_disk_is_told_before_anything_is_made(
    binaries15: Binaries, make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute_node.actors.postgres_process.claim.SPACE_NEEDED", 1 << 60)
    process = make_process(binaries15)
    process.inspect()
    failed = process.prepare()
    assert isinstance(failed, PgdataFailed)
    assert "MB left, and a new cluster needs" in failed.error
    assert {path.name for path in process.pgdata.parent.iterdir()} == {"pgdata.lock"}


def test_another_major_is_refused_before_anything_is_written(
    binaries15: Binaries, binaries17: Binaries, make_process: MakeProcess
) -> None:
    made = make_process(binaries15, made=True)
    before = snapshot(made.pgdata)
    process = make_process(binaries17)
    refused = process.inspect()
    assert isinstance(refused, PgdataRefused)
    assert "made by PostgreSQL 15, and the programs given are of 17" in refused.error
    assert "--pgbin" in refused.error
    assert snapshot(made.pgdata) == before


def test_wrong_owner_and_mode_of_our_own_folder_are_repaired(
    binaries15: Binaries, make_process: MakeProcess, account: Account | None
) -> None:
    process = make_process(binaries15, made=True)
    process.pgdata.chmod(0o777)
    if account is not None:
        for path in (process.pgdata, process.pgdata / "base", process.pgdata / "PG_VERSION"):
            os.chown(path, 0, 0)
    process.start()
    assert process.pgdata.stat().st_mode & 0o777 == 0o700
    if account is not None:
        assert (process.pgdata / "PG_VERSION").stat().st_uid == account.uid


def test_a_missing_or_closed_parent_is_named(
    binaries15: Binaries, make_process: MakeProcess, postgres_folder: Path, account: Account | None
) -> None:
    missing = make_process(binaries15, pgdata=str(postgres_folder / "no" / "pgdata"))
    error = missing.inspect().error
    assert f"its parent {postgres_folder}/no does not exist: make it first (mkdir -p" in error
    if account is not None:
        closed = postgres_folder / "closed"
        closed.mkdir(mode=0o700)
        os.chown(closed, 0, 0)
        refused = make_process(binaries15, pgdata=str(closed / "pgdata")).inspect()
        assert f"cannot enter {closed}" in refused.error
        assert account.name in refused.error


def test_an_interrupted_replacement_is_finished_at_the_next_start(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries15, made=True, fresh=True)
    process.inspect()
    process.prepare()
    process.abandon()
    process.pgdata.rename(f"{process.pgdata}.old")  # the first of the two renames
    again = make_process(binaries15)
    assert again.inspect() == PgdataInspected(PgdataKind.OURS_COMPLETE)
    assert {path.name for path in again.pgdata.parent.iterdir()} == {"pgdata", "pgdata.lock"}
    again.prepare()
    assert isinstance(again.launch(), PostgresReady)


def test_a_mount_point_is_filled_kept_rebuilt_and_never_renamed(
    mount_point: Path, binaries15: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries15)
    assert first.inspect() == PgdataInspected(PgdataKind.EMPTY)
    first.prepare()
    assert (mount_point / ".building" / "data" / MARKER).exists()
    assert isinstance(first.launch(), PostgresReady)
    first.query("CREATE TABLE kept AS SELECT 1 AS n")
    first.stop()
    first.abandon()
    second = make_process(binaries15)
    second.start()
    assert second.query("SELECT n FROM kept") == [(1,)]
    second.stop()
    second.abandon()
    third = make_process(binaries15, fresh=True)
    third.start()
    assert third.query("SELECT to_regclass('kept')") == [(None,)]
    third.stop()
    third.abandon()
    assert not {".building", ".old", ".placing"} & {path.name for path in mount_point.iterdir()}


def test_a_volume_that_vanishes_while_it_runs_is_told_and_nothing_is_written_in_its_place(
    mount_point: Path, binaries15: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries15)
    process.start()
    subprocess.run(["/bin/umount", "--lazy", mount_point], check=True)
    try:
        assert list(mount_point.iterdir()) == []
        refused = process.check(fast_spec(text("work_mem", "5MB")))
        assert isinstance(refused, ConfigurationAccepted), "a check writes nothing and needs nothing of it"
        failed = process.install(fast_spec(text("work_mem", "5MB")))
        assert isinstance(failed, ConfigurationInstallFailed)
        assert "No such file" in failed.error
        assert str(mount_point / OVERRIDE_FILE) in failed.error
        process.stop()
        assert list(mount_point.iterdir()) == []
    finally:  # what the fixture undoes
        subprocess.run(["/bin/mount", "-t", "tmpfs", "tmpfs", mount_point], check=True)


@pytest.mark.parametrize("look", ["lstat", "iterdir"])
def test_a_folder_that_cannot_be_read_is_unknown_and_never_taken_for_empty(
    look: str, binaries15: Binaries, make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = make_process(binaries15, made=True, fresh=True)
    before = snapshot(process.pgdata)
    normal = getattr(Path, look)

    def broken(path: Path) -> Any:
        if path == process.pgdata:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return normal(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, look, broken)
        refused = process.inspect()
    assert refused == PgdataRefused(
        f"PGDATA cannot be looked at: {process.pgdata}: Input/output error", EXIT_FAILED
    )
    assert snapshot(process.pgdata) == before
    assert {path.name for path in process.pgdata.parent.iterdir()} == {"pgdata", "pgdata.lock"}


def test_links_that_lead_out_of_a_folder_of_ours_are_not_followed_when_it_is_rebuilt(
    binaries15: Binaries, make_process: MakeProcess, account: Account | None, postgres_folder: Path
) -> None:
    process = make_process(binaries15, made=True, fresh=True)
    outside = postgres_folder / "outside"
    outside.mkdir()
    (process.pgdata / "pg_wal").rename(outside / "wal")
    (process.pgdata / "pg_wal").symlink_to(outside / "wal")
    (outside / "space").mkdir()
    (outside / "space" / "canary").write_text("precious")
    (process.pgdata / "pg_tblspc" / "16400").symlink_to(outside / "space")
    (process.pgdata / "base" / "link").symlink_to(outside)
    before = snapshot(outside)
    process.start()
    assert not (process.pgdata / "pg_wal").is_symlink()
    assert snapshot(outside) == before


def test_a_cancelled_first_start_leaves_a_mount_point_empty(
    mount_point: Path, binaries15: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries15)
    process.inspect()
    process.prepare()
    process.stop()
    assert list(mount_point.iterdir()) == []


# --- Orphans ---------------------------------------------------------------------------------------------


def test_a_postmaster_whose_supervisor_was_killed_is_ended_and_the_data_kept(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries, made=True)
    orphan = first.start().pid
    first.query("CREATE TABLE kept AS SELECT 1 AS n")
    postmaster = first.server._postgres.postmaster
    assert postmaster is not None
    first.abandon()
    reaper = in_thread(postmaster._process.wait)
    second = make_process(binaries)
    ready = second.start()
    reaper.join(5)
    assert not psutil.pid_exists(orphan)
    assert ready.pid != orphan
    assert second.heard(ConditionRaised) == [], "the orphan was shut down in order"
    assert second.query("SELECT n FROM kept") == [(1,)]


def test_a_busy_backend_that_outlived_its_postmaster_does_not_block_the_next_start(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries15, made=True)
    pid = first.start().pid
    session = first.connect()
    backend = session.info.backend_pid

    def busy() -> None:
        with contextlib.suppress(Exception):
            session.execute("SELECT count(*) FROM generate_series(1, 1000000000)")

    thread = in_thread(busy)
    wait_until(
        lambda: (
            first.query(
                "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%gene%_series%'"
            )
            == [(1,), (1,)]
        ),
        "the backend is busy, and so is the one that looks",
    )
    os.kill(backend, signal.SIGSTOP)  # it notices nothing until it is killed
    os.kill(pid, signal.SIGKILL)
    first.wait_for(PostgresExited)
    first.stop()
    wait_until(lambda: not orphans.is_alive(backend), "the backend is gone")  # it has left the folder before
    thread.join(10)
    session.close()
    first.abandon()
    second = make_process(binaries15)
    second.start()


def test_a_lock_file_that_names_a_stranger_does_not_stop_the_start_and_the_stranger_lives_on(
    binaries15: Binaries, make_process: MakeProcess, account: Account | None
) -> None:
    process = make_process(binaries15, made=True)
    with subprocess.Popen(["/bin/sleep", "60"], **as_account(account)) as stranger:
        try:
            lock = process.pgdata / "postmaster.pid"
            lock.write_text(f"{stranger.pid}\n{process.pgdata}\n1\n{1}\n\nlocalhost\n")
            if account is not None:
                os.chown(lock, account.uid, account.gid)
            process.start()
            assert stranger.poll() is None
            process.stop()
            assert stranger.poll() is None
        finally:
            stranger.kill()


KILLED_START = """
import sys, threading
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.postgres_process.server import Server
from compute_node.messages.secret import Secret
from compute_node.messages.settings import NodeSettings, SourceName
from compute_node.messages.spec import ComputeCtlConfig, KeySet
from compute_node.postgres.accounts import resolve_account
from compute_node.postgres.binaries import inspect
sys.path.insert(0, sys.argv[3])
from fix_process import Sink, fast_spec
binaries = inspect(sys.argv[2])
settings = NodeSettings(
    compute_id="compute-1", pgdata=sys.argv[1], connstr=Secret(sys.argv[4]), postgres_bin=sys.argv[2],
    config=ComputeCtlConfig(jwks=KeySet(keys=())), source=SourceName.INITDB,
)
server = Server(settings, binaries, resolve_account(), Sink())
server.inspect(Cancellation())
server.prepare(fast_spec(), 0, Cancellation())
print("prepared", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("moment", ["PG_VERSION", "global/pg_control", "base/5", MARKER])
@pytest.mark.parametrize("victim", ["supervisor", "initdb"])
def test_a_kill_in_the_middle_of_initdb_is_made_good_by_the_next_start(
    victim: str, moment: str, binaries15: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries15)
    built = Path(f"{process.pgdata}.building/data")
    tests, connstr = str(Path(__file__).resolve().parent.parent), [process.settings.connstr.reveal()]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_START, process.settings.pgdata, binaries15.postgres, tests, *connstr],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as supervisor:
        wait_until(
            lambda: (built / moment).exists() or supervisor.poll() is not None, f"{moment} is there", 30
        )
        initdbs = [child for child in psutil.Process(supervisor.pid).children() if child.name() == "initdb"]
        if victim == "initdb" and initdbs:
            initdbs[0].kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervisor.wait(5)
        supervisor.kill()
    assert process.inspect() == PgdataInspected(PgdataKind.ABSENT)
    assert process.prepare().kept is False
    assert isinstance(process.launch(), PostgresReady)
    assert process.query("SELECT count(*) > 0 FROM pg_class") == [(True,)]
    names = {path.name for path in process.pgdata.parent.iterdir()}
    assert names == {"pgdata", "pgdata.lock"}


def test_an_unknown_locale_is_named(
    binaries: Binaries, account: Account | None, postgres_folder: Path
) -> None:
    source = InitdbSource(binaries, Starter(account), "cloud_admin", dict(os.environ), locale="xx_YY.UTF-8")
    with pytest.raises(SourceError, match=r"does not know the locale xx_YY.UTF-8"):
        source.build(str(postgres_folder / "data"), fast_spec(), Cancellation(), sync=True)


# --- Configurations --------------------------------------------------------------------------------------

REFUSED = {
    "an unknown setting": (text("no_such_setting", "1"), "no_such_setting"),
    "a value out of range": (text("max_connections", "0"), "max_connections"),
    "a value of the wrong type": (text("work_mem", "lots"), "work_mem"),
    "a library that is not there": (text("shared_preload_libraries", "nope"), "'nope'"),
    "another port": (text("port", "1"), "`port`"),
    "a combination": (text("wal_level", "minimal"), "`wal_level`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_setting_is_named_and_pgdata_is_untouched(
    case: str, binaries: Binaries, make_process: MakeProcess
) -> None:
    setting, name = REFUSED[case]
    process = make_process(binaries, made=True)
    process.inspect()
    before = snapshot(process.pgdata)
    refused = process.check(fast_spec(setting))
    assert isinstance(refused, ConfigurationRefused)
    assert name in refused.error
    assert snapshot(process.pgdata) == before


def test_a_line_of_the_own_text_that_postgres_refuses_is_told_by_its_number(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries, made=True)
    process.inspect()
    refused = process.check(fast_spec(conf="work_mem = 4MB\nthis is = = nonsense\n"))
    assert "line 2 of cluster.postgresql_conf" in refused.error
    refused = process.check(fast_spec(conf="work_mem = 4MB\n\nno_such_thing = 1"))
    assert "`no_such_thing`, line 3 of cluster.postgresql_conf" in refused.error


def test_alter_system_overrides_the_spec_but_for_the_port_and_is_told(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries15, made=True)
    first.start()
    first.query("ALTER SYSTEM SET port = 1")
    first.query("ALTER SYSTEM SET work_mem = '9MB'")
    first.stop()
    first.abandon()
    second = make_process(binaries15)
    second.inspect()
    accepted = second.check(fast_spec(text("work_mem", "5MB")))
    assert isinstance(accepted, ConfigurationAccepted)
    assert any("`work_mem`" in warning for warning in accepted.warnings)
    assert isinstance(second.prepare(), PgdataPrepared)
    assert isinstance(second.launch(), PostgresReady), "the port of -C wins"
    second.stop()


def test_what_alter_system_left_that_keeps_postgres_from_starting_is_taken_out_and_the_rest_stays(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries, made=True)
    first.start()
    first.query("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'")
    first.query("ALTER SYSTEM SET work_mem = '9MB'")
    first.query("ALTER SYSTEM SET listen_addresses = '192.0.2.1'")
    accepted = first.check(fast_spec(text("work_mem", "5MB")))
    assert isinstance(accepted, ConfigurationAccepted), "a running node can be configured all the same"
    assert any("`shared_preload_libraries`" in w and "next start" in w for w in accepted.warnings)
    first.stop()
    first.abandon()
    auto_conf = first.pgdata / "postgresql.auto.conf"
    with auto_conf.open("a") as file:
        file.write("max_connections = 'a lot'\nthis is nonsense\n")
    before = auto_conf.read_bytes()

    second = make_process(binaries)
    second.inspect()
    accepted = second.check(fast_spec(text("work_mem", "5MB")))
    assert isinstance(accepted, ConfigurationAccepted), accepted
    assert auto_conf.read_bytes() == before, "a check changes nothing"
    told = [warning for warning in accepted.warnings if "would not start" in warning]
    named = ("`shared_preload_libraries`", "`listen_addresses`", "`max_connections`", "`not a setting`")
    assert [any(name in warning for warning in told) for name in named] == [True] * 4
    assert len(told) == 4
    assert any("`work_mem` to '9MB', which overrides '5MB'" in warning for warning in accepted.warnings)
    assert isinstance(second.prepare(), PgdataPrepared)
    assert isinstance(second.launch(), PostgresReady)
    assert second.query("SHOW work_mem") == [("9MB",)]
    assert second.query("SHOW shared_preload_libraries") == [("",)]
    assert (second.pgdata / "postgresql.auto.conf.refused").read_bytes() == before
    second.query("ALTER SYSTEM SET work_mem = '8MB'")
    second.stop()


def test_a_spec_that_is_refused_by_itself_is_refused_and_alter_system_left_alone(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    first = make_process(binaries15, made=True)
    (first.pgdata / "postgresql.auto.conf").write_text("shared_preload_libraries = 'nope'\n")
    first.inspect()
    refused = first.check(fast_spec(text("work_mem", "much")))
    assert isinstance(refused, ConfigurationRefused)
    assert "work_mem" in refused.error


def test_a_reload_is_taken_and_verified_and_what_needs_a_restart_is_reported(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries, made=True)
    process.start()
    assert process.install(fast_spec(text("work_mem", "5MB"))) == ConfigurationInstalled(1 + 2, ())
    assert process.query("SHOW work_mem") == [("5MB",)]
    with process.connect() as session:
        before = session.execute("SHOW log_line_prefix").fetchone()
        done = process.install(fast_spec(text("log_line_prefix", "%m new "), text("max_connections", "20")))
        assert done.pending_restart == ("max_connections",)
        assert session.execute("SHOW log_line_prefix").fetchone() != before
    assert process.query("SHOW log_line_prefix") == [("%m new ",)]
    assert process.query("SHOW max_connections") == [("30",)]
    assert process.install(fast_spec()).pending_restart == ()


def test_a_refused_setting_leaves_the_running_configuration_alone(
    binaries: Binaries, make_process: MakeProcess
) -> None:
    process = make_process(binaries, made=True)
    process.start(fast_spec(text("work_mem", "5MB")))
    conf = (process.pgdata / "postgresql.conf").read_bytes()
    for setting, name in (
        (text("no_such_setting", "1"), "`no_such_setting`"),
        (text("work_mem", "lots"), "`work_mem`"),
    ):
        failed = process.install(fast_spec(text("maintenance_work_mem", "9MB"), setting))
        assert isinstance(failed, ConfigurationInstallFailed)
        assert name in failed.error
        assert "of cluster.settings" in failed.error
        assert "the one before is in force" in failed.error
        assert (process.pgdata / "postgresql.conf").read_bytes() == conf
    assert process.query("SELECT pg_reload_conf()") == [(True,)]
    assert process.query("SHOW work_mem") == [("5MB",)]
    assert process.query("SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL") == [(0,)]
    assert process.query("SHOW maintenance_work_mem") == [("64MB",)]


SIZE_LIMIT = "SELECT current_setting('neon.max_cluster_size', true)"
HELD = "SELECT current_setting('neon.disable_logical_replication_subscribers')"


def shown(process: Process, query: str, value: str | None) -> None:
    """Wait until new sessions see this value."""
    wait_until(lambda: process.query(query)[0][0] in {value, value or ""}, f"{query} is {value}")


def test_the_size_limit_is_lifted_and_subscribers_are_held_only_while_a_spec_is_applied(
    binaries15: Binaries, make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "has_neon", True)
    branch: dict[str, Any] = {"drop_subscriptions_before_start": True, "timeline_id": "a" * 32}
    first = fast_spec(**branch)
    process = make_process(binaries15, made=True)
    process.start(first)
    shown(process, SIZE_LIMIT, "-1")
    shown(process, HELD, "true")
    process.ref.tell(SettleConfiguration(first, subscribers=False))
    shown(process, SIZE_LIMIT, None)
    shown(process, HELD, "true")
    process.ref.tell(SettleConfiguration(first, subscribers=True))
    shown(process, HELD, "false")

    second = fast_spec(text("work_mem", "5MB"), **branch)
    assert isinstance(process.install(second), ConfigurationInstalled)
    shown(process, SIZE_LIMIT, "-1")
    shown(process, HELD, "false")  # nothing that this branch has inherited is left
    process.ref.tell(SettleConfiguration(second, subscribers=True))
    shown(process, SIZE_LIMIT, None)
    refused = process.install(fast_spec(text("work_mem", "lots"), **branch))
    assert isinstance(refused, ConfigurationInstallFailed)
    shown(process, SIZE_LIMIT, None)

    other = fast_spec(**(branch | {"timeline_id": "b" * 32}))
    assert isinstance(process.install(other), ConfigurationInstalled)
    shown(process, HELD, "true")


def test_a_plain_postgres_has_no_limit_to_be_lifted_and_settling_changes_nothing(
    binaries15: Binaries, make_process: MakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "postgres")
    spec = fast_spec()
    process = make_process(binaries15, made=True)
    process.start(spec)
    process.ref.tell(SettleConfiguration(spec, subscribers=True))
    assert isinstance(process.install(fast_spec(text("work_mem", "5MB"))), ConfigurationInstalled)
    assert (process.pgdata / OVERRIDE_FILE).read_bytes() == b""
    process.stop()
    told = [record.getMessage() for record in caplog.records if "received SIGHUP" in record.getMessage()]
    assert len(told) == 1


def test_an_installation_into_a_stopped_postmaster_is_taken_back(
    binaries15: Binaries, make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = make_process(binaries15, made=True)
    pid = process.start().pid
    conf = (process.pgdata / "postgresql.conf").read_bytes()
    os.kill(pid, signal.SIGSTOP)
    try:
        failed = process.install(fast_spec(text("work_mem", "5MB")))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert isinstance(failed, ConfigurationInstallFailed)
    assert (process.pgdata / "postgresql.conf").read_bytes() == conf


# --- What Postgres sees, and what is heard of it ---------------------------------------------------------


def test_postgres_inherits_neither_our_secrets_nor_our_descriptors(
    binaries15: Binaries, make_process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEON_CONTROL_PLANE_TOKEN", "canary")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/canary")
    process = make_process(binaries15, made=True)
    leak = os.open("/dev/null", os.O_RDONLY)
    ready = process.start(fast_spec(storage_auth_token=Secret("storage-token")))
    os.close(leak)
    environment = dict(
        entry.partition("=")[::2]
        for entry in Path(f"/proc/{ready.pid}/environ").read_text().split("\0")
        if entry
    )
    assert "canary" not in str(environment)
    assert "storage-token" not in str(environment), (
        "of no use to a local cluster, and SQL users could read it"
    )
    links = [str(link.readlink()) for link in Path(f"/proc/{ready.pid}/fd").iterdir()]
    assert links.count("/dev/null") == 1, "stdin alone"
    assert not any("pgdata.lock" in link for link in links)
    assert os.getsid(ready.pid) == ready.pid
    assert "storage-token" not in " ".join(psutil.Process(ready.pid).cmdline())


class FullPipe:
    """A standard error that nobody reads, full from the beginning."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._writer, bytes(65_536))
        os.set_blocking(self._writer, True)

    def fileno(self) -> int:
        return self._writer

    def close(self) -> None:
        os.close(self._reader)
        with contextlib.suppress(OSError):
            os.close(self._writer)


@pytest.mark.timeout(180)
def test_a_flood_of_logs_into_a_blocked_output_slows_nobody_and_the_stop_works(
    binaries15: Binaries, make_process: MakeProcess
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    pipe = FullPipe()
    writer = process_logs.configure("human", "info", pipe)
    try:
        process = make_process(binaries15, made=True)
        process.start()
        flood = "DO $$BEGIN FOR i IN 1..20000 LOOP RAISE LOG '%', repeat('x', 500); END LOOP; END$$"
        began = process.runtime.clock.now()
        process.query(flood)
        assert process.runtime.clock.now() - began < 60  # blocked, it would never end
        assert process.stop(60.0).rung is StopRung.FAST
        assert process.server._postgres.pump.last_messages[-1].endswith("database system is shut down")
        assert writer.dropped > 0
    finally:
        pipe.close()
        writer.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def test_what_postgres_says_is_logged_as_whole_messages(
    binaries: Binaries, make_process: MakeProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "postgres")
    process = make_process(binaries, made=True)
    process.start()
    process.query("DO $$BEGIN RAISE LOG E'first\\nsecond'; END$$")
    process.stop()
    said = [record.getMessage() for record in caplog.records if record.name == "postgres"]
    assert all(line.startswith("PG:") for line in said)
    (line,) = (line for line in said if "LOG:  first" in line)
    assert line.endswith("LOG:  first\u200b\tsecond")


def test_a_second_stop_with_hurry_shortens_the_first(binaries15: Binaries, make_process: MakeProcess) -> None:
    process = make_process(binaries15, made=True)
    pid = process.start().pid
    backend = process.connect()
    os.kill(backend.info.backend_pid, signal.SIGSTOP)  # a fast shutdown waits for it
    process.ref.tell(StopPostgres(60.0))
    wait_until(
        lambda: "fast shutdown request" in "".join(process.server._postgres.pump.last_messages), "it stops"
    )
    process.ref.tell(StopPostgres(30.0, hurry=True))
    process.ref.tell(StopPostgres(30.0, hurry=True))
    assert process.wait_for(PostgresStopped).rung is StopRung.KILL
    assert not psutil.pid_exists(pid)
    backend.close()

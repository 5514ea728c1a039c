"""A node on a small file system that fills up: while it is made, started, in use, and stopped."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from compute_node.messages.failpoints import Failpoint
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, Node, spec
from fix_postgres import run_as, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

DISK_MB = 160
NOTICED_S = 30.0


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filling = folder / "filling"

    @property
    def free(self) -> int:
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all but so many bytes; what is left because Postgres took some meanwhile is taken, too."""
        with self._filling.open("ab") as file:
            while (more := self.free - leave) > 0:
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)

    def clear(self) -> None:
        """Give it all back."""
        self._filling.unlink()


@pytest.fixture
def disk(scratch: Path, account: Account | None) -> Iterator[Disk]:
    folder = scratch / "disk"
    folder.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode != 0:
        folder.rmdir()
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    yield Disk(folder)
    subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def on(disk: Disk, node: Node) -> Node:
    node.flags += ["-D", str(disk.folder / "pgdata")]
    return node


def shown(node: Node) -> dict[str, str]:
    reports = node.call("GET", "/ready", token=None).body["conditions"]
    return {report["condition"]: report["detail"] for report in reports}


def test_a_disk_that_fills_up_is_a_condition_until_there_is_room_and_a_failed_stop_otherwise(
    disk: Disk, make_node: MakeNode, binaries15: Binaries
) -> None:
    node = on(disk, make_node(binaries15)).run()
    wait_until(lambda: shown(node) == {}, "ready")
    node.query("create table t (n int, x text)")
    disk.fill()
    with pytest.raises(psycopg.errors.DiskFull):
        node.query("insert into t select n, repeat('x', 500) from generate_series(1, 200000) n")
    wait_until(lambda: "disk_full" in shown(node), "the condition", NOTICED_S)
    assert "MB left: free some space" in shown(node)["disk_full"]
    assert node.status()["status"] == "running"
    metrics = node.call("GET", "/metrics", token=None).body
    assert 'compute_node_condition{condition="disk_full"} 1.0' in metrics
    assert 'compute_node_disk_free_bytes{area="pgdata"}' in metrics

    disk.clear()
    wait_until(lambda: shown(node) == {}, "ready again", NOTICED_S)
    node.query("insert into t values (1, 'y')")

    disk.fill()
    answer = node.call("POST", "/terminate?mode=immediate")
    assert (answer.status, answer.body) == (200, {"lsn": None})
    assert node.wait() == 1, "the shutdown checkpoint could not be written"
    node.heard("Postgres did not stop in order")
    node.heard("the disk is full")

    disk.clear()
    node.start().await_status("running")
    assert node.query("select count(*) from t where x = 'y'") == [(1,)]
    assert node.stop() == 0, node.log


def test_a_disk_that_fills_up_while_postgres_starts_is_the_reason_of_the_failure(
    disk: Disk, make_node: MakeNode, binaries15: Binaries
) -> None:
    node = on(disk, make_node(binaries15)).run()
    node.query("create table t as select repeat('x', 500) from generate_series(1, 1000)")
    node.query("create table u as select repeat('x', 500) from generate_series(1, 10000)")
    node.query("drop table u")  # until it is dropped again, the recovery needs room for it
    os.kill(int((disk.folder / "pgdata" / "postmaster.pid").read_text().split("\n", 1)[0]), 9)
    assert node.wait() == 1
    disk.fill()
    node.start().await_status("failed")
    error = node.status()["error"]
    assert "the disk is full" in error, error
    assert f"{disk.folder}/pgdata" in error
    assert "MB left" in error
    assert "free some space or enlarge the volume, then start the node again" in error
    attempts = re.findall(r'"message":"PG:[^"]*LOG:  starting PostgreSQL', node.log)
    assert len(attempts) <= 2, "the one that was killed, and at most one more"
    assert node.call("POST", "/terminate").status == 200
    assert node.wait() == 1

    disk.clear()
    node.start().await_status("running")
    assert node.query("select count(*) from t") == [(1000,)]
    assert node.stop() == 0, node.log


def test_a_disk_that_fills_up_while_the_cluster_is_made_is_the_reason_of_the_failure(
    disk: Disk, make_node: MakeNode, binaries15: Binaries
) -> None:
    node = on(disk, make_node(binaries15, "--dev"))
    node.write_config(spec())
    node.start(failpoints={Failpoint.PREPARE_TOKEN: "pause"})
    node.await_failpoint(Failpoint.PREPARE_TOKEN)
    disk.fill(leave=20 << 20)
    node.set_failpoint(Failpoint.PREPARE_TOKEN, "off")
    assert node.wait() == 1
    node.heard("the disk is full")
    assert {path.name for path in disk.folder.iterdir()} == {"filling", "pgdata.lock"}, "nothing half-made"

    node.start()
    assert node.wait() == 1
    node.heard("MB left, and a new cluster needs")


def test_a_log_on_a_full_disk_of_its_own_is_seen_and_is_the_reason_when_postgres_dies_of_it(
    disk: Disk, make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    node.query("create table t (n int, x text)")
    assert node.stop() == 0, node.log
    wal = node.pgdata / "pg_wal"
    shutil.copytree(wal, disk.folder / "wal")
    shutil.rmtree(wal)
    wal.symlink_to(disk.folder / "wal")
    run_as(None, "chown", "-Rh", f"--reference={node.pgdata}", wal, disk.folder / "wal")
    node.start().await_status("running")
    assert 'compute_node_disk_free_bytes{area="pg_wal"}' in node.call("GET", "/metrics", token=None).body

    disk.fill()
    wait_until(lambda: "disk_full" in shown(node), "the condition", NOTICED_S)
    assert f"{disk.folder}/wal has 0 MB left" in shown(node)["disk_full"]
    with contextlib.suppress(psycopg.Error):
        node.query("insert into t select n, repeat('x', 500) from generate_series(1, 100000) n")
    node.await_status("failed")
    error = node.status()["error"]
    assert "Postgres ended although nobody asked it to" in error
    assert f"the disk is full ({disk.folder}/wal has 0 MB left): free some space" in error
    assert node.wait() == 1

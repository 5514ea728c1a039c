"""A whole node with AUTOSCALING and an agent, in a real cgroup where there is one; the file cache on real Postgres."""

import contextlib
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.vm_monitor_bridge.cgroup import CgroupMemory
from compute_node.actors.vm_monitor_bridge.decisions import MIB, threshold, usable
from compute_node.actors.vm_monitor_bridge.file_cache import NeonFileCache
from compute_node.actors.vm_monitor_bridge.port import VmError
from compute_node.actors.vm_monitor_bridge.private import CgroupFound, MemoryUsed
from compute_node.messages.base import Message
from compute_node.messages.secret import Secret
from compute_node.messages.vm import CgroupSeen
from compute_node.postgres import cgroup
from compute_node.postgres.binaries import Binaries

from doubles.autoscaler import Agent, CallError
from fix_node import MakeNode, spec
from fix_postgres import Cluster, MakeCluster, Ports, wait_until
from integration.test_connection import in_thread

GIB = 1024 * MIB
WAIT_S = 60.0


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup with the memory controller, made for this test."""
    own = cgroup.group_of()
    if own is None:
        pytest.skip("there are no cgroups with a memory controller here")
    path = Path(own.path, f"compute-node-{uuid.uuid4().hex[:8]}")
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        if not (path / "memory.stat").exists():
            pytest.skip("the memory controller is off in groups made here")
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()


def processes(group: Path) -> set[int]:
    return set(map(int, (group / "cgroup.procs").read_text().split()))


def test_a_node_speaks_with_its_agent_and_postgres_runs_in_its_cgroup(
    make_node: MakeNode, binaries15: Binaries, free_port: Ports, group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOSCALING", "")
    port = free_port()
    node = make_node(binaries15)
    node.run(spec(), "--vm-monitor-addr", f"127.0.0.1:{port}", "--cgroup", group.name)
    postmaster = node.postmaster()
    assert postmaster in processes(group), node.log
    ((backend,),) = node.query("select pg_backend_pid()")
    assert backend
    assert len(processes(group)) > 3, "the children of the postmaster are there, too"
    wait_until(lambda: node.call("GET", "/autoscaling").body["phase"] == "waiting", "it listens", WAIT_S)

    with Agent(port) as agent:
        assert agent.offered == {"version": 1}
        agent.check_health()

        def knows_enough() -> bool:
            memory = node.call("GET", "/autoscaling").body["memory"]
            return memory is not None and memory["samples"] > 1

        wait_until(knows_enough, "there are samples", WAIT_S)
        agent.upscale(64 * GIB)
        approved, status = agent.downscale(8 * GIB)
        assert approved
        assert status.endswith("this Postgres has no file cache")
        approved, status = agent.downscale(150 * MIB)
        assert not approved
        assert "calculated memory threshold too low" in status
        shown = node.call("GET", "/autoscaling").body
        assert (shown["phase"], shown["manages"]) == ("serving", ["cgroup"])
        assert shown["cgroup"]["path"] == str(group)
        assert 0 < shown["memory"]["bytes"] < 8 * GIB
        assert shown["threshold_bytes"] == threshold(usable(8 * GIB))
        decided = [decision["decision"] for decision in shown["decisions"]]
        assert decided == ["sizes_set", "upscale_confirmed", "downscale_approved", "downscale_denied"]
        metrics = node.call("GET", "/metrics", token=None).body
        assert "compute_node_autoscaling_connected 1.0" in metrics
        assert 'compute_node_autoscaling_decisions_total{decision="downscale_denied"} 1.0' in metrics
        assert node.call("GET", "/autoscaling", token=None).status == 400
        assert node.stop() == 0, node.log
        assert agent.await_close() == 1001
    assert processes(group) == set()


HOG = """
import sys
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
print("held", flush=True)
sys.stdin.read()
"""
LIMIT_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}


def test_the_memory_and_the_limit_of_a_real_group_are_read(group: Path) -> None:
    version = 1 if (group / LIMIT_FILES[1]).exists() else 2
    held, limit = 64 * MIB, 512 * MIB
    (group / LIMIT_FILES[version]).write_text(str(limit))
    heard: list[Message] = []
    cancellation = Cancellation()
    with subprocess.Popen(
        ["/bin/sh", "-c", 'read _ && exec "$@"', "sh", sys.executable, "-c", HOG, str(held)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as hog:
        assert hog.stdin is not None
        assert hog.stdout is not None
        (group / "cgroup.procs").write_text(str(hog.pid))
        watching = in_thread(lambda: CgroupMemory().watch(hog.pid, heard.append, cancellation))
        wait_until(lambda: len(heard) > 1, "it is watched", WAIT_S)
        found, first = heard[:2]
        assert isinstance(found, CgroupFound)
        assert found.cgroup == CgroupSeen(str(group), version, limit)
        assert isinstance(first, MemoryUsed)
        assert first.summary.average < held, "what is counted is of this group alone"
        hog.stdin.write(b"go\n")
        hog.stdin.flush()
        assert hog.stdout.readline() == b"held\n"
        wait_until(lambda: used(heard) >= held, "what is held is seen", WAIT_S)
        assert CgroupMemory().total(hog.pid) == limit
        cancellation.request()
        with pytest.raises(CancelledError):
            watching.result(WAIT_S)
        hog.stdin.close()
        hog.wait(WAIT_S)


def used(heard: list[Message]) -> int:
    return next(one.summary.average for one in reversed(heard) if isinstance(one, MemoryUsed))


ONLY_VERSION_2 = 'umount -a -t cgroup,cgroup2 && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
"""In a mount namespace of its own: the machine of a modern distribution, perhaps without the memory controller."""


@pytest.fixture
def group2() -> Iterator[Path]:
    """A cgroup of version 2, made for this test in whatever this machine has mounted or can mount."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount cgroups")
    namespace = ["unshare", "--mount", "/bin/sh", "-c", ONLY_VERSION_2, "sh"]
    name = f"compute-node-{uuid.uuid4().hex[:8]}"
    made = subprocess.run([*namespace, "mkdir", f"/sys/fs/cgroup/{name}"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no cgroup of version 2 can be made here: {made.stderr.decode().strip()}")
    yield Path("/sys/fs/cgroup", name)
    subprocess.run([*namespace, "rmdir", f"/sys/fs/cgroup/{name}"], check=True)


def test_postgres_runs_in_its_cgroup_of_version_2_and_memory_that_is_not_known_is_no_zero(
    group2: Path, make_node: MakeNode, binaries15: Binaries, free_port: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOSCALING", "")
    port = free_port()
    node = make_node(binaries15)
    node.command = ["unshare", "--mount", "/bin/sh", "-c", ONLY_VERSION_2, "sh", *node.command]
    node.run(spec(), "--vm-monitor-addr", f"127.0.0.1:{port}", "--cgroup", group2.name)
    postmaster = node.postmaster()
    places = []
    for pid in (postmaster, *(child.pid for child in psutil.Process(postmaster).children())):
        with contextlib.suppress(OSError):  # it was one that does not stay
            places += [
                line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line[:3] == "0::"
            ]
    assert len(places) > 3
    assert set(places) == {f"0::/{group2.name}"}, node.log

    def looked() -> object:
        shown = node.call("GET", "/autoscaling").body
        return shown["phase"] == "waiting" and (shown["error"] or shown["memory"])

    wait_until(looked, "it listens, and has looked at the memory", WAIT_S)
    with Agent(port) as agent:
        agent.check_health()
        if node.call("GET", "/autoscaling").body["memory"] is None:
            try:
                approved, status = agent.downscale(64 * GIB)
            except CallError as error:
                approved, status = False, str(error)
            assert not approved, "although nothing is known of the memory in use"
            assert "enough cgroup memory stats" in status or "is not known" in status
        assert node.stop() == 0, node.log


@pytest.mark.skipif(Path("/neonvm").exists(), reason="the programs of the machine would do what they are for")
def test_a_start_fails_whose_disk_quota_cannot_be_set_and_not_for_a_swap_program_that_is_gone(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--dev", "--resize-swap-on-bind", "--set-disk-quota-for-fs", "/mnt/some")
    node.write_config(spec(swap_size_bytes=GIB, disk_quota_bytes=GIB + 1))
    assert node.start().wait() == 1, node.log
    node.heard("swap stays as it is: /neonvm/bin/resize-swap is gone, as it is after its first run")
    failed = (
        "failed to set disk quota: could not run `/usr/bin/sudo /neonvm/bin/set-disk-quota 1048576 /mnt/some`"
    )
    node.heard(f"could not start the compute node: {failed}")
    assert "starting PostgreSQL" not in node.log


# --- The file cache --------------------------------------------------------------------------------------


def cache(cluster: Cluster, *, dsn: bool = False) -> NeonFileCache:
    """The file cache with settings of the same kind (MB, reload) in the place of those of Neon's extension."""
    connstr = f"host=localhost port={cluster.port} user=cloud_admin sslmode=disable application_name=x"
    return NeonFileCache(
        Secret(connstr if dsn else cluster.connstr), limit="wal_keep_size", maximum="max_wal_size"
    )


def resize(of: NeonFileCache, size: int) -> int | None:
    found = in_thread(lambda: of.resize(size, Cancellation())).result(WAIT_S)
    assert found is None or isinstance(found, int)
    return found


def test_the_size_is_set_by_alter_system_and_in_force_when_it_is_told_and_never_above_the_maximum(
    cluster: MakeCluster, binaries15: Binaries
) -> None:
    made = cluster(binaries15, conf="max_wal_size = 1GB")

    assert resize(cache(made), 232 * MIB) == 232 * MIB
    assert made.query("show wal_keep_size") == [("232MB",)]
    assert "wal_keep_size = '232'" in (made.pgdata / "postgresql.auto.conf").read_text()
    assert resize(cache(made, dsn=True), 5 * GIB) == 1024 * MIB
    assert made.query("show wal_keep_size") == [("1GB",)]
    assert resize(cache(made), 0) == 0
    assert made.query("show wal_keep_size") == [("0",)]
    loads = made.log.count("received SIGHUP")
    assert resize(cache(made), 0) == 0
    assert made.log.count("received SIGHUP") == loads, "what is so already is left alone"


def test_a_postgres_without_the_settings_has_no_file_cache(
    cluster: MakeCluster, binaries15: Binaries
) -> None:
    placeholders = "neon.file_cache_size_limit = '64MB'\nneon.max_file_cache_size = '1GB'"
    made = cluster(binaries15, conf=placeholders)

    assert resize(NeonFileCache(Secret(made.connstr)), GIB) is None
    assert "ALTER" not in made.log


def test_what_is_in_the_way_of_a_size_is_told(cluster: MakeCluster, binaries15: Binaries) -> None:
    made = cluster(binaries15, start=False)
    with pytest.raises(VmError, match="the file cache could not be resized: connection"):
        resize(cache(made), GIB)
    made.start("-c", "wal_keep_size=16MB")
    with pytest.raises(
        VmError, match=r"wal_keep_size was set to 64 MB by ALTER SYSTEM and is still .* overrides it"
    ):
        resize(cache(made), 64 * MIB)
    with pytest.raises(
        VmError, match=re.escape("--filecache-connstr: cannot build postgres config from connstr")
    ):
        resize(NeonFileCache(Secret("host=localhost sslmode=require")), GIB)


def test_a_size_that_was_written_and_not_loaded_does_not_come_back_later(
    cluster: MakeCluster, binaries15: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cluster(binaries15)
    file_cache = cache(made)
    assert resize(file_cache, 0) == 0
    conf = made.pgdata / "postgresql.conf"
    right = conf.read_text()
    conf.write_text(f"{right}\nwrong on purpose\n")
    monkeypatch.setattr("compute_node.actors.vm_monitor_bridge.file_cache.RELOAD_S", 0.2)
    with pytest.raises(VmError, match=r"is still .* after a reload"):
        resize(file_cache, 64 * MIB)
    conf.write_text(right)
    assert resize(file_cache, 0) == 0, "which is in force, and not what is written"

    assert "wal_keep_size = '0'" in (made.pgdata / "postgresql.auto.conf").read_text()


def test_a_first_reading_that_fails_is_made_good_by_a_second_connection(
    cluster: MakeCluster, binaries15: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cluster(binaries15)
    file_cache = cache(made)
    right, calls = file_cache._read_once, []

    async def once_wrong(target: object) -> object:
        calls.append(target)
        if len(calls) == 1:
            import psycopg

            msg = "the connection was lost"
            raise psycopg.OperationalError(msg)
        return await right(target)  # type: ignore[arg-type] # it is passed on as it came

    monkeypatch.setattr(file_cache, "_read_once", once_wrong)

    assert resize(file_cache, 64 * MIB) == 64 * MIB
    assert len(calls) == 2

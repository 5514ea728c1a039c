"""The fixtures themselves: they start real clusters, and their check sees what is left."""

import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from compute_node.postgres.binaries import Binaries

import fix_postgres
from fix_postgres import SHM, MakeCluster, Ports, _shared_memory_left, nothing_is_left
from fix_process_tree import namespaces_are_permitted


def test_a_cluster_of_each_major_starts_answers_and_stops(binaries: Binaries, cluster: MakeCluster) -> None:
    made = cluster(binaries)
    assert made.query("SELECT current_user, current_setting('server_version_num')::int / 10000") == [
        ("cloud_admin", binaries.major)
    ]


def test_two_clusters_of_one_major_stand_side_by_side(binaries15: Binaries, cluster: MakeCluster) -> None:
    first, second = cluster(binaries15), cluster(binaries15)
    first.query("CREATE ROLE only_here")
    assert second.query("SELECT 1 FROM pg_roles WHERE rolname = 'only_here'") == []


@contextmanager
def looking(scratch: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the check up, and let it look when the block ends."""
    monkeypatch.setattr(fix_postgres, "CLEAN_TIMEOUT_S", 0.2)
    steps: Iterator[None] = nothing_is_left.__wrapped__(scratch, ports, monkeypatch)  # type: ignore[attr-defined] # pytest's own
    next(steps)
    yield
    next(steps, None)


Leave = Callable[[Path, Ports], Callable[[], object]]


def a_process(scratch: Path, ports: Ports) -> Callable[[], object]:
    process = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    return process.wait


def an_orphan_in_the_folder(scratch: Path, ports: Ports) -> Callable[[], object]:
    inside = Path(tempfile.mkdtemp())
    subprocess.run(["/bin/sh", "-c", "setsid sleep 60 >/dev/null 2>&1 &"], cwd=inside, env={}, check=True)
    return inside.rmdir


def a_listener(scratch: Path, ports: Ports) -> Callable[[], object]:
    server = socket.create_server(("127.0.0.1", ports()))
    return server.close


def a_folder(scratch: Path, ports: Ports) -> Callable[[], object]:
    return Path(tempfile.mkdtemp()).rmdir


def shared_memory(scratch: Path, ports: Ports) -> Callable[[], object]:
    left = SHM / f"compute-node-test-{os.getpid()}"
    left.write_bytes(b"")
    return left.unlink


@pytest.mark.slow
@pytest.mark.parametrize(
    "leave",
    [a_process, an_orphan_in_the_folder, a_listener, a_folder, shared_memory],
    ids=lambda f: f.__name__,
)
def test_the_check_sees_what_is_left(
    leave: Leave, scratch: Path, free_port: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_up: Callable[[], object] = lambda: None  # noqa: E731 - replaced at once
    try:
        with (
            pytest.raises(pytest.fail.Exception, match="left behind"),
            looking(scratch, free_port, monkeypatch),
        ):
            clean_up = leave(scratch, free_port)
    finally:
        clean_up()


def test_shared_memory_of_a_living_postgres_is_not_called_left(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    before = {path.name for path in SHM.iterdir()}
    made = cluster(binaries15)
    maps = Path(f"/proc/{made.pid}/maps").read_text()
    used = {Path(path).name for path in re.findall(rf"{SHM}/PostgreSQL\.\d+", maps)}
    assert used - before, "Postgres uses /dev/shm"
    assert used.isdisjoint(_shared_memory_left(before)), "others beside us may leave theirs"
    made.stop(signal.SIGTERM)


def test_shared_memory_is_our_own_where_that_is_permitted() -> None:
    namespaces_are_permitted()
    assert SHM.stat().st_dev != Path(f"/proc/{os.getppid()}/root/dev/shm").stat().st_dev

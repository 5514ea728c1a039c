"""A PostgresProcess with its real port, and a Supervisor that only records what it is told."""

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
import psycopg
import pytest
from compute_node.actors.kit.actor import Ref
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.actors.postgres_process.actor import PostgresProcess
from compute_node.actors.postgres_process.folder import seal
from compute_node.actors.postgres_process.pgdata import MARKER, TOKEN
from compute_node.actors.postgres_process.server import Server
from compute_node.messages.base import Message, redacted
from compute_node.messages.lifecycle import ActorFailed
from compute_node.messages.postgres import (
    CheckConfiguration,
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    InspectPgdata,
    InstallConfiguration,
    PgdataFailed,
    PgdataInspected,
    PgdataPrepared,
    PgdataRefused,
    PostgresReady,
    PostgresStartFailed,
    PostgresStopped,
    PreparePgdata,
    StartPostgres,
    StopPostgres,
)
from compute_node.messages.secret import Secret
from compute_node.messages.settings import NodeSettings
from compute_node.messages.spec import Cluster, ComputeSpec, GenericOption
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import params, parse_connstr
from typing_extensions import override

from doubles import canaries
from doubles.scripted import Recorder, Scripted
from doubles.specs import a_spec, settings
from fix_postgres import Ports, Templates, run_as
from fix_secrets import Secrecy

M = TypeVar("M", bound=Message)

WAIT_S = 40.0
FAST: tuple[GenericOption, ...] = (
    GenericOption("fsync", "bool", "off"),
    GenericOption("shared_buffers", "string", "16MB"),
    GenericOption("max_connections", "integer", "30"),
)


def fast_spec(*more: GenericOption, conf: str | None = None, **changes: Any) -> ComputeSpec:
    """A spec whose Postgres is small and quick; `more` are settings that come after. With canary secrets."""
    secrets = {"storage_auth_token": Secret(canaries.canary("storage"))}
    held = tuple(GenericOption(**entry) for entry in canaries.settings())
    cluster = Cluster(roles=(), databases=(), settings=(*FAST, *held, *more), postgresql_conf=conf)
    return a_spec(cluster=cluster, **(secrets | changes))


def text(name: str, value: str) -> GenericOption:
    """A setting of type string."""
    return GenericOption(name, "string", value)


class Sink:
    """Records which postmaster lives."""

    def __init__(self) -> None:
        self.alive: list[int] = []

    def started(self, pid: int) -> None:
        self.alive.append(pid)

    def ended(self) -> None:
        self.alive.pop()

    def tidied(self) -> None:
        pass


class RecordingSupervisor(Scripted):
    """Also takes ActorFailed."""

    @override
    def receive(self, message: Message) -> None:
        super().receive(message)


class Process:
    """One PostgresProcess on threads."""

    def __init__(
        self, node: NodeSettings, binaries: Binaries, account: Account | None, secrecy: Secrecy
    ) -> None:
        self.settings = node
        self.secrecy = secrecy
        self.recorder = Recorder()
        self.sink = Sink()
        self.runtime = ThreadedRuntime(watcher="supervisor", abandoned=self.recorder.add)
        supervisor = self.runtime.spawn("supervisor", RecordingSupervisor(self.recorder))
        self.server = Server(node, binaries, account, self.sink)
        self.actor = PostgresProcess(node, supervisor, self.server)
        self.ref: Ref[Any] = self.runtime.spawn("postgres", self.actor)
        self._operation = 0
        self._abandoned = False

    # --- Talking to it

    def wait_for(self, *kinds: type[Message], after: int = 0) -> Any:
        """Wait for the first message of one of these kinds that was told after that many others."""
        found: list[Any] = []

        def there() -> bool:
            entries = self.recorder.entries
            failed = [entry for entry in entries if isinstance(entry, ActorFailed)]
            assert not failed, failed
            found[:] = [entry for entry in entries[after:] if isinstance(entry, kinds)]
            return bool(found)

        with self.recorder.changed:
            assert self.recorder.changed.wait_for(there, WAIT_S), (kinds, self.recorder.entries)
        return found[0]

    def tell(self, message: Message, *outcomes: type[Message]) -> Any:
        """Send a command and return its outcome."""
        before = len(self.recorder.entries)
        self.ref.tell(message)
        return self.wait_for(*outcomes, after=before)

    @property
    def operation(self) -> int:
        self._operation += 1
        return self._operation

    def inspect(self) -> Any:
        return self.tell(InspectPgdata(), PgdataInspected, PgdataRefused)

    def check(self, spec: ComputeSpec) -> Any:
        return self.tell(
            CheckConfiguration(self.operation, spec), ConfigurationAccepted, ConfigurationRefused
        )

    def prepare(self, spec: ComputeSpec | None = None) -> Any:
        return self.tell(PreparePgdata(self.operation, spec or fast_spec()), PgdataPrepared, PgdataFailed)

    def launch(self, spec: ComputeSpec | None = None) -> Any:
        return self.tell(
            StartPostgres(self.operation, spec or fast_spec()), PostgresReady, PostgresStartFailed
        )

    def install(self, spec: ComputeSpec) -> Any:
        return self.tell(
            InstallConfiguration(self.operation, spec), ConfigurationInstalled, ConfigurationInstallFailed
        )

    def stop(self, budget_s: float = 20.0) -> PostgresStopped:
        stopped = self.tell(StopPostgres(budget_s), PostgresStopped)
        assert isinstance(stopped, PostgresStopped)
        return stopped

    def start(self, spec: ComputeSpec | None = None) -> PostgresReady:
        """Do all steps of a start."""
        inspected = self.inspect()
        assert isinstance(inspected, PgdataInspected), inspected
        prepared = self.prepare(spec)
        assert isinstance(prepared, PgdataPrepared), prepared
        ready = self.launch(spec)
        assert isinstance(ready, PostgresReady), ready
        return ready

    def heard(self, kind: type[M]) -> list[M]:
        return [entry for entry in tuple(self.recorder.entries) if isinstance(entry, kind)]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement as the superuser."""
        with self.connect() as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def connect(self) -> "psycopg.Connection[Any]":
        keywords: dict[str, Any] = params(
            parse_connstr(self.settings.connstr.reveal()), application_name="test"
        )
        return psycopg.connect(autocommit=True, **keywords)

    @property
    def pgdata(self) -> Path:
        return Path(self.settings.pgdata)

    def abandon(self) -> None:
        """Forget it without a stop, as a SIGKILL of the supervisor would: only its lock is given back."""
        self._abandoned = True
        left = self.runtime.stop(5)
        assert left == (), left
        self.server.release()

    def look_for_secrets(self) -> None:
        """Search what it told, its journal, its processes and its files; its log is listened to all the while."""
        for entry in tuple(self.recorder.entries):
            self.secrecy.look("a message", redacted(entry))
        self.secrecy.look("the journal", redacted(self.runtime.journal.read()))
        if self.sink.alive:
            with contextlib.suppress(psutil.Error):
                postmaster = psutil.Process(self.sink.alive[-1])
                self.secrecy.look_at_processes([postmaster, *postmaster.children(recursive=True)])
        self.secrecy.look_at_pgdata(self.pgdata)

    def close(self) -> None:
        """End whatever there is."""
        self.look_for_secrets()
        if not self._abandoned and self.actor.phase.value not in {"idle", "gone"}:
            with contextlib.suppress(AssertionError):
                self.stop(5.0)
        self.abandon()


class MakeProcess(Protocol):
    """Makes a PostgresProcess over `<folder>/pgdata`; the keywords are fields of NodeSettings.

    With `made` the folder is a complete one of this node already, without the time that initdb takes.
    """

    def __call__(self, binaries: Binaries, *, made: bool = False, **changes: Any) -> Process: ...


@pytest.fixture
def make_process(
    postgres_folder: Path, free_port: Ports, account: Account | None, templates: Templates
) -> Iterator[MakeProcess]:
    """Call it for a PostgresProcess, as often as needed; all are stopped after the test."""
    all_made: list[Process] = []
    secrecy = Secrecy()
    port = free_port()

    def make(binaries: Binaries, *, made: bool = False, **changes: Any) -> Process:
        fields = {
            "pgdata": str(postgres_folder / "pgdata"),
            "connstr": f"postgresql://cloud_admin:{canaries.canary('connstr')}@localhost:{port}/postgres",
            "postgres_bin": binaries.postgres,
        }
        process = Process(settings(**(fields | changes)), binaries, account, secrecy)
        if made:
            run_as(account, "cp", "-a", "--reflink=auto", templates.get(binaries), process.pgdata)
            for name in (TOKEN, MARKER):
                seal(str(process.pgdata), name, process.server._node.seal, account)
        all_made.append(process)
        return process

    with secrecy.listening():
        yield make
        for process in reversed(all_made):
            process.close()
    secrecy.judge()


@pytest.fixture
def mount_point(postgres_folder: Path) -> Iterator[Path]:
    """A small file system of its own; needs root."""
    pgdata = postgres_folder / "pgdata"
    pgdata.mkdir()
    done = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", pgdata], capture_output=True, check=False
    )
    if done.returncode != 0:
        pgdata.rmdir()
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    yield pgdata
    subprocess.run(["/bin/umount", pgdata], check=True)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Start work on a thread."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that can be told of a tree: names, modes, owners, times, contents."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_ino,
            content,
        )
    return found


__all__ = [
    "Cancellation",
    "MakeProcess",
    "Process",
    "fast_spec",
    "make_process",
    "mount_point",
    "snapshot",
    "text",
]


def a_false_postgres(folder: Path) -> str:
    """A program of that name that does what `sh` does."""
    program = folder / "postgres"
    program.write_bytes(Path("/bin/sh").resolve().read_bytes())
    program.chmod(0o755)
    return str(program)

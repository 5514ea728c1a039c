"""The machine under a simulated node: what is still there when the node's process is gone.

The folder is a real one, in memory where the system has such a place, and the port that works on it is the real
one. Made up are the processes, the programs and their time. Every change of the disk is a place where the node's
process may be killed; what it was doing then is left as it stood, and a next life finds it.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from compute_node.actors.activity_monitor.reach import Observation, Reach
from compute_node.actors.configurator.extensions import Extension
from compute_node.actors.configurator.port import (
    Administration,
    AdministrationError,
    MigrationReport,
    Order,
    Report,
)
from compute_node.actors.kit.failpoints import Interruptible
from compute_node.actors.kit.jobs import Blocked, Cancellation
from compute_node.actors.kit.simulated import SimulatedFailpoints, SimulatedRuntime
from compute_node.actors.lfc_manager.port import CacheError
from compute_node.actors.postgres_process import (
    claim,
    configuration,
    fields,
    folder,
    making,
    orphans,
    run_folders,
    running,
    server,
    syncing,
)
from compute_node.actors.postgres_process.control import _HEAD, ClusterState
from compute_node.actors.postgres_process.disk import Area
from compute_node.actors.postgres_process.pgdata import MARKER, STANDBY_SIGNAL, TOKEN, Seal
from compute_node.actors.postgres_process.port import Launch, PgdataRefusedError, PostgresError
from compute_node.actors.postgres_process.sources import Source, SourceError
from compute_node.messages.failpoints import Failpoint, FailpointError
from compute_node.messages.planning import CatalogPlanned, SettingsCompared
from compute_node.messages.postgres import PgdataKind, PgdataStages, StopRung
from compute_node.messages.settings import NodeSettings, SourceName
from compute_node.messages.spec import ComputeSpec
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.conf import ConfContext, ConfText, Listening, render
from compute_node.process.last_resort import RUNGS
from typing_extensions import override

from doubles.administration import FakeAdministration
from doubles.lfc import FakeCache, FakeStore
from doubles.observer import FakeObserver
from doubles.postgres_server import Faults, disk_of
from doubles.storage import SYNC, Storage

REFUSED_SETTING: Final = "no_such_setting"
"""Postgres refuses a configuration with this in it."""
CLUSTER: Final = ("PG_VERSION", "base/1", "global/pg_control")
"""The files of a cluster, in the order in which initdb writes them."""
MAJOR: Final = 15
SHARED_MEMORY: Final = "/dev/shm"


class Died(Blocked):
    """The node's process was killed while it did this."""


class MachineFailpoints(SimulatedFailpoints):
    """Kills the node's process at a named step, or lets the step fail, once."""

    def __init__(self, machine: "Machine") -> None:
        super().__init__(machine.clock)
        self._machine = machine
        self.dies_at: Failpoint | None = None
        self.fails_at: Failpoint | None = None
        self.failed: set[Failpoint] = set()

    @override
    def is_armed(self, failpoint: Failpoint) -> bool:
        return failpoint in {self.dies_at, self.fails_at}

    @override
    def act(self, failpoint: Failpoint, job: Interruptible) -> None:
        if failpoint is self.dies_at:
            self._machine.died = True
            raise Died
        self.fails_at = None
        self.failed.add(failpoint)
        msg = f"planted at {failpoint.value}"
        raise FailpointError(msg)


@dataclass(eq=False)
class Process:
    """A process of Postgres; `inode` is the folder it works in, `life` the node's life that began it."""

    pid: int
    program: str
    inode: tuple[int, int]
    life: int
    alive: bool = True
    leads: bool = False
    """It is a postmaster, not a backend that outlived one."""
    asked: bool = False
    """Somebody has told it to end."""
    ready_at: float = 0.0
    ends_at: float | None = None
    ending_as: str = ""
    clean: bool = False
    """It shuts the cluster down in order."""


@dataclass
class Hardships(Faults):
    """What else may go wrong around a whole node."""

    backend_survives: bool = False
    """When the postmaster dies unasked, a backend goes on."""
    tidy_takes_s: float = 0.0
    kill_takes_s: float = 0.0
    orphan_takes_s: float = 0.0
    """What an orphan that was told to end still needs."""


class Machine:
    """One folder, its processes, and what is in its clusters. Only one at a time can be open."""

    def __init__(
        self,
        runtime: SimulatedRuntime,
        kind: PgdataKind,
        *,
        mount: bool = False,
        source: SourceName = SourceName.INITDB,
    ) -> None:
        self.runtime = runtime
        self.clock = runtime.clock
        self.random = runtime.random
        self.source = source
        self.storage = Storage(self) if source is SourceName.PAGESERVER else None
        self.faults = Hardships()
        self.life = 0
        self.died = False
        self.doomed_in: int | None = None
        """The node's process is killed at its so-manieth change of the disk or the catalog."""
        self.doomed_at_rename: int | None = None
        """Or right before its so-manieth rename of a folder."""
        self.processes: list[Process] = []
        self.postmaster: Process | None = None
        """The one that this life started."""
        self.launched = 0
        self.signals: list[tuple[float, StopRung]] = []
        self.recorded: int | None = None
        """What the main thread knows for its last resort."""
        self.orphans_met = 0
        self.lost_unasked = False
        """In this life Postgres ended although nobody had told it to."""
        self.violations: list[str] = []
        self.clusters: dict[int, FakeAdministration] = {}
        self.served: int | None = None
        """The cluster that was served last."""
        self.fresh = False
        """This life may replace it, by one that it makes."""
        self.may_serve: set[int] = set()
        """Which clusters may be served from now on, once one was."""
        self.broken: dict[str, str] = {}
        self.held = False
        self.connection_lost = False
        self.recovers = False
        """A process of Postgres has crashed, and it lets nobody in yet."""
        self.operations_left: int | None = None
        self.applied: list[ComputeSpec] = []
        """What was applied without an error, over all lives."""
        self.mount = mount
        self.root = Path(tempfile.mkdtemp(prefix="compute-node-", dir=_memory()))
        self.pgdata = str(self.root / "pgdata")
        (self.root / "shm").mkdir()
        self._patches = contextlib.ExitStack()
        self._patch()
        self._since: dict[str, float] = {}
        self.kind = kind
        self.foreign: dict[str, bytes] = {}
        self._furnish(kind)

    def close(self) -> None:
        """Give everything back."""
        self._patches.close()
        shutil.rmtree(self.root)

    # --- The disk

    def _furnish(self, kind: PgdataKind) -> None:
        """Put into the place of PGDATA what is to be found there."""
        pgdata = Path(self.pgdata)
        if kind is not PgdataKind.ABSENT or self.mount:
            pgdata.mkdir(mode=0o700)
        if kind is PgdataKind.OURS_COMPLETE:
            self.served = self.write_cluster(pgdata)
        elif kind is PgdataKind.OURS_INCOMPLETE:
            (pgdata / "PG_VERSION").write_text(f"{MAJOR}\n")
        elif kind is PgdataKind.FOREIGN:
            self.write_cluster(pgdata)
            (pgdata / "letters").write_text("dear")
            self.foreign = _content(pgdata)
        if kind in {PgdataKind.OURS_COMPLETE, PgdataKind.OURS_INCOMPLETE}:
            self._seal(pgdata, TOKEN)
        if kind is PgdataKind.OURS_COMPLETE:
            self._seal(pgdata, MARKER)

    def _seal(self, path: Path, name: str) -> None:
        folder.seal(str(path), name, Seal("compute-1", self.pgdata, MAJOR, self.source.value), None)

    def write_cluster(self, path: Path, step: Callable[[], None] = lambda: None) -> int:
        """Make a folder with a cluster, a new one unless it comes from a storage; return its number."""
        number = len(self.clusters) + 1
        if self.storage is not None and self.served is not None:
            number = self.served  # the branch has one, and what is in it lies in the storage
        else:
            self.clusters[number] = FakeAdministration()
        if self.fresh:
            self.may_serve.add(number)
        for name in CLUSTER:
            step()
            file = path / name
            file.parent.mkdir(exist_ok=True, parents=True)
            text = _HEAD.pack(number, 0, 0, ClusterState.SHUT_DOWN) if "control" in name else b"15\n"
            file.write_bytes(text)
        step()
        return number

    def change(self, path: str | None = None) -> None:
        """Be told that the node's process changes something, the disk unless `path` is None; it may be killed."""
        if self.died:
            raise Died
        if self.doomed_in is not None:
            self.doomed_in -= 1
            if self.doomed_in <= 0:
                self.died = True
                raise Died
        if path is not None:
            self._pass_time()
            for process in self.processes:
                if process.alive and process.life < self.life:
                    self.violations.append(f"{path} is changed under the living {process.program}")

    def change_by_rename(self, path: str) -> None:
        """Be told of the changes that put a cluster in its place: it may be killed before each."""
        if self.doomed_at_rename is not None:
            self.doomed_at_rename -= 1
            if self.doomed_at_rename == 0:
                self.doomed_in = 0
        self.change(path)

    def set_state(self, state: ClusterState, process: Process) -> None:
        """Write the state of the cluster that this process serves, wherever its folder is by now."""
        for path in (self.pgdata, f"{self.pgdata}.old", f"{self.pgdata}/.old"):
            if _identity(path) == process.inode:
                control = Path(path, "global/pg_control")
                number = _HEAD.unpack(control.read_bytes())[0]
                control.write_bytes(_HEAD.pack(number, 0, 0, state))

    def cluster_at(self, path: str) -> int | None:
        """Return the number of the whole cluster in a folder; None when there is none."""
        if not all(Path(path, name).exists() for name in CLUSTER):
            return None
        number: int = _HEAD.unpack(Path(path, "global/pg_control").read_bytes())[0]
        return number

    def foreign_is_whole(self) -> bool:
        """Whether what was not ours is still there, byte for byte, in its place or set aside."""
        places = [Path(self.pgdata), *sorted(self.root.glob("pgdata.aside-*"))]
        return not self.foreign or any(_content(place) == self.foreign for place in places)

    @property
    def is_ours(self) -> bool:
        """Whether there is a folder of ours by now."""
        return Path(self.pgdata, TOKEN).exists()

    @property
    def left(self) -> list[str]:
        """What should not be there after an orderly end."""
        self._pass_time()
        found = [process.program for process in self.processes if process.alive]
        building = Path(self.pgdata, ".building") if self.mount else Path(self.pgdata + ".building")
        private = (self.root / "sockets", self.root / "sockets-sync")
        found += [path.name for path in (building, *private) if path.exists()]
        return found + [f"shared memory {path.name}" for path in (self.root / "shm").iterdir()]

    # --- Processes

    def begin(self, program: str, path: str) -> Process:
        identity = _identity(path)
        assert identity is not None, path
        pid = 10_000_000 + len(self.processes)  # larger than any real one
        process = Process(pid, program, identity, self.life)
        self.processes.append(process)
        return process

    def spawn(self, pgdata: str) -> Process:
        """Start a postmaster. What must not be is written down: in a job an exception would be taken as a fault."""
        self.change(pgdata)
        self._pass_time()
        process = self.begin("postgres", pgdata)
        if any(p.alive and p.inode == process.inode for p in self.processes if p is not process):
            self.violations.append("a postmaster was started beside another process of its folder")
        if self.postmaster is not None:
            self.violations.append("a second postmaster was started in one life")
        cluster = self.cluster_at(pgdata)
        if cluster is None or not Path(pgdata, MARKER).exists():
            self.violations.append("a folder was served that is not complete, or has no marker")
        if self.served is not None and cluster not in {self.served, *self.may_serve}:
            self.violations.append("another cluster is served than the one before")
        if self.storage is not None and any(p.alive and p.program == SYNC for p in self.processes):
            self.violations.append("Postgres is started while something still syncs the safekeepers")
        if REFUSED_SETTING in Path(pgdata, "postgresql.conf").read_text():
            self.violations.append("Postgres was started with a configuration that it refuses")
        self.served = cluster
        self.may_serve.clear()
        self.launched += 1
        self.postmaster, process.leads = process, True
        process.ready_at = self.clock.now() + self.faults.ready_after_s
        if self.faults.exits_after_s is not None:
            self.end(process, self.faults.exits_after_s, f"exit code {self.faults.exit_code}")
        self.set_state(ClusterState.IN_PRODUCTION, process)
        if self.storage is not None and not Path(pgdata, STANDBY_SIGNAL).exists():
            self.storage.write()
        self._wake(self.faults.ready_after_s)
        return process

    def end(self, process: Process, delay_s: float, how: str, *, clean: bool = False) -> None:
        """Let a process end so much later, unless it ends sooner."""
        at = self.clock.now() + delay_s
        if process.ends_at is None or at < process.ends_at:
            process.ends_at, process.ending_as, process.clean = at, how, clean
            self._wake(delay_s)
        self._pass_time()

    def tell_to_end(self, process: Process, rung: StopRung) -> None:
        """Send a process the signal of a rung."""
        process.asked = True
        if process.alive and rung not in self.faults.ignores:
            takes_s = 0.0 if rung is StopRung.KILL else self.faults.stop_takes_s
            self.end(process, takes_s, f"{rung.value} shutdown", clean=rung is StopRung.FAST)

    def crash(self, how: str = "killed by SIGSEGV") -> None:
        """End the postmaster of this life although nobody asked."""
        process = self.postmaster
        if process is None or not process.alive:
            return
        if self.faults.backend_survives:
            self.processes.append(Process(process.pid + 5_000_000, "postgres", process.inode, process.life))
        self.end(process, 0.0, how)

    def kill_all(self) -> None:
        """End everything at once, as the end of a container does."""
        for process in self.processes:
            if process.alive:
                process.asked = True
                self.end(process, 0.0, "killed by SIGKILL")

    def next_life(self) -> None:
        """Let the node's process be gone; its children are nobody's now."""
        self.life += 1
        self.died, self.doomed_in, self.doomed_at_rename = False, None, None
        self.postmaster, self.recorded, self.launched = None, None, 0
        self.lost_unasked = self.recovers = False
        if self.storage is not None:
            self.storage.next_life()
        self.signals.clear()
        self._since.clear()

    def working_in(self, folders: Iterable[str]) -> tuple[int, ...]:
        """Stand in for `orphans.working_in`."""
        self._pass_time()
        wanted = {_identity(path) for path in folders} - {None}
        return tuple(p.pid for p in self.processes if p.alive and p.inode in wanted)

    def end_orphans(
        self,
        folders: Iterable[str],
        cancellation: Cancellation,
        *,
        ladder: tuple[tuple[Any, float], ...] = orphans.LADDER,
    ) -> int:
        """Stand in for `orphans.end`: the same ladder, in made-up time."""
        if self.died:
            raise Died
        folders = tuple(folders)
        if self.faults.kill_takes_s and ladder is running.KILL:
            self.take("kill", self.faults.kill_takes_s)
        found = set(self.working_in(folders))
        until_kill_s = sum(patience_s for _, patience_s in ladder[:-1])
        for process in self.processes:
            if process.pid in found:
                self.orphans_met += process.life < self.life
                process.asked = True
                self.end(process, min(self.faults.orphan_takes_s, until_kill_s), "told to end")
        if self.working_in(folders):
            cancellation.check()
            raise Blocked
        return len(found)

    def last_resort(self, budget_s: float) -> bool:
        """Stand in for the main thread's last resort; the actors' threads go on meanwhile."""
        process = self.postmaster
        if self.recorded is None or process is None or process.pid != self.recorded or not process.alive:
            return False
        rungs = (StopRung.FAST, StopRung.IMMEDIATE, StopRung.KILL)
        for rung, (_, share) in zip(rungs, RUNGS, strict=True):
            if self._lives(process):
                self.tell_to_end(process, rung)
                due = self.clock.now() + budget_s * share
                while self._lives(process) and self.clock.now() < due:
                    self.runtime.advance(0.5)
        return True

    # --- Time

    def take(self, what: str, seconds: float, cancellation: Cancellation | None = None) -> None:
        """Let a job take that long, from its first attempt on."""
        if self.died:
            raise Died
        first = what not in self._since
        began = self._since.setdefault(what, self.clock.now())
        if cancellation is not None and cancellation.requested:
            del self._since[what]
            cancellation.check()
        if self.clock.now() < began + seconds:
            if first:
                self._wake(seconds)
            raise Blocked
        del self._since[what]

    def forget(self, what: str) -> None:
        """Let what took its time be over."""
        self._since.pop(what, None)

    def check_alive(self) -> None:
        """Be told that the node's process does something that changes nothing here. Raises Died."""
        if self.died:
            raise Died

    def _lives(self, process: Process) -> bool:
        self._pass_time()
        return process.alive

    def pass_time(self) -> None:
        """Let those processes end whose time has come."""
        self._pass_time()

    def _wake(self, delay_s: float) -> None:
        self.runtime.later(delay_s, lambda: None)

    def _pass_time(self) -> None:
        now = self.clock.now()
        for process in self.processes:
            if process.alive and process.ends_at is not None and now >= process.ends_at:
                process.alive = False
                if process.clean:
                    self.set_state(ClusterState.SHUT_DOWN, process)
                if process is self.postmaster and not process.asked:
                    self.lost_unasked = True

    # --- What is put in the place of the real thing

    def _patch(self) -> None:
        shm = str(self.root / "shm")
        doubles: list[tuple[Any, str, object]] = [
            (folder, "Path", type("SimulatedPath", (_SimulatedPath,), {"machine": self})),
            (folder, "remove_tree", self._remove_tree),
            (folder, "write_file", partial(self._write_file, folder.write_file)),
            (folder, "make_durable", lambda _: None),
            (claim, "make_durable", lambda _: None),
            (folder, "is_mount", lambda path: self.mount and path == self.pgdata),
            (claim, "orphans", SimpleNamespace(working_in=self.working_in, end=self.end_orphans)),
            (claim, "require_parent", lambda *_: None),
            (claim, "require_space", lambda _: None),
            (claim, "remove_left_behind", partial(run_folders.remove_left_behind, shared_memory=shm)),
            (configuration, "render", _render),
            (configuration, "reload", SimpleNamespace(install=self._install)),
            (making, "InitdbSource", lambda *_: _Initdb(self)),
            (running, "orphans", SimpleNamespace(end=self.end_orphans)),
            (
                running,
                "launcher",
                SimpleNamespace(launch=self._launch, describe_code=str, has_failed=self._has_failed),
            ),
            (running, "readiness", SimpleNamespace(wait=self._await_ready)),
            (running, "link_shared_memory", partial(run_folders.link_shared_memory, shared_memory=shm)),
            (run_folders, "socket_folder", lambda *_: str(self.root / "sockets")),
            (syncing, "is_wise", lambda *_: False),
        ]
        if self.storage is not None:
            doubles += self.storage.patches()
        for where, name, double in doubles:
            assert not isinstance(vars(where)[name], (SimpleNamespace, partial)), "one machine at a time"
            self._patches.enter_context(mock.patch.object(where, name, double))

    def _has_failed(self, _: object, **__: object) -> bool:
        return self.faults.stop_fails

    def _remove_tree(self, path: object) -> None:
        self.change(str(path))
        shutil.rmtree(str(path))

    def _write_file(self, write: Callable[..., None], path: str, content: bytes, **options: Any) -> None:
        self.change(path)
        write(path, content, **options)
        self.change(path)

    def _launch(self, _: Binaries, pgdata: str, **__: Any) -> "FakePostmaster":
        return FakePostmaster(self, self.spawn(pgdata))

    def _await_ready(
        self,
        _: str,
        pid: int,
        has_exited: Callable[[], bool],
        limit_s: float | None,
        cancellation: Cancellation,
    ) -> bool:
        if self.died:
            raise Died
        self._pass_time()
        cancellation.check()
        process = self.postmaster
        assert process is not None
        began = self._since.setdefault("ready", self.clock.now())
        if not process.alive:
            return False
        if not self.faults.never_ready and self.clock.now() >= process.ready_at:
            return True
        if limit_s is not None:
            if self.clock.now() > began + limit_s:
                msg = "timed out while waiting for Postgres to start"
                raise PostgresError(msg)
            if "limit" not in self._since:
                self._since["limit"] = began
                self._wake(limit_s + 0.1)
        raise Blocked

    def _install(
        self, conf: ConfText, pgdata: str, _: object, *, cancellation: Cancellation, **__: Any
    ) -> tuple[str, ...]:
        self.take("install", self.faults.install_takes_s, cancellation)
        if REFUSED_SETTING in conf.text:
            self.violations.append("a configuration was installed that Postgres refuses")
        if self.faults.install_refused is not None:
            raise PostgresError(self.faults.install_refused)
        if self.postmaster is None or not self.postmaster.alive:
            msg = "the connection was refused"
            raise PostgresError(msg)
        folder.write_file(f"{pgdata}/postgresql.conf", conf.text.encode())
        return self.faults.pending_restart


class FakePostmaster:
    """The handle that the launcher returns."""

    def __init__(self, machine: Machine, process: Process) -> None:
        self._machine = machine
        self._process = process
        self.pid = process.pid
        self.exited = SimpleNamespace(is_set=lambda: not process.alive)

    def send(self, rung: StopRung) -> None:
        if not self._machine.died:
            self._machine.signals.append((self._machine.clock.now(), rung))
            self._machine.tell_to_end(self._process, rung)

    def reload(self) -> None:
        pass

    def wait(self, cancellation: Cancellation) -> str:
        if self._machine.died:
            raise Died
        self._machine.pass_time()
        cancellation.check()
        if self._process.alive:
            raise Blocked
        return self._process.ending_as


class _Initdb(Source):
    """Makes a cluster, file by file; a child that a killed node leaves behind goes on for a while."""

    name = SourceName.INITDB

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @override
    def build(
        self, target: str, spec: ComputeSpec, cancellation: Cancellation, *, sync: bool
    ) -> PgdataStages:
        machine = self._machine
        machine.take("initdb", machine.faults.initdb_takes_s, cancellation)
        if machine.faults.initdb_fails is not None:
            raise SourceError(machine.faults.initdb_fails)
        if machine.faults.passing_failures:
            machine.faults.passing_failures -= 1
            msg = "the connection was cut"
            raise SourceError(msg, passing=True)
        process = machine.begin("initdb", str(Path(target).parent))
        machine.write_cluster(Path(target), lambda: machine.change(target))  # when it dies here, initdb lives
        process.alive = False
        return PgdataStages()


def _render(spec: ComputeSpec, _: ConfContext) -> ConfText:
    return render(spec, ConfContext(3081, "neon_superuser", Listening(55432, "/nowhere")))


class SimulatedServer(server.Server):
    """The real port on a machine's folder. What it overrides needs real programs."""

    def __init__(self, machine: Machine, settings: NodeSettings) -> None:
        self.machine = machine
        super().__init__(settings, Binaries("/nowhere/bin/postgres", MAJOR, "15.0"), None, self)
        self._postgres.pump = _Pump(machine)  # type: ignore[assignment] # what the port uses of it

    # --- The sink of the last resort

    def started(self, pid: int) -> None:
        self.machine.recorded = pid

    def ended(self) -> None:
        self.machine.recorded = None

    def tidied(self) -> None:
        pass

    # --- The port

    @override
    def inspect(self, cancellation: Cancellation) -> PgdataKind:
        cancellation.check()
        if self.machine.died:
            raise Died
        if self.machine.faults.folder_refused is not None:
            msg = "the folder is not to be used"
            raise PgdataRefusedError(msg, self.machine.faults.folder_refused)
        return super().inspect(cancellation)

    @override
    def check(
        self, spec: ComputeSpec, cancellation: Cancellation, *, promoting: bool = False
    ) -> tuple[str, ...]:
        self.machine.take("check", 0.0, cancellation)
        if self.machine.faults.conf_refused is not None:
            raise PostgresError(self.machine.faults.conf_refused)
        if self.machine.storage is not None:
            self._preflight.require_source(spec, promoting=promoting)
            problem = None if promoting else fields.mode_problem(spec, self._configuration.in_force)
            if problem is not None:
                raise PostgresError(problem)
        if REFUSED_SETTING in self._configuration.render(spec).text:
            msg = f"unrecognized configuration parameter {REFUSED_SETTING}"
            raise PostgresError(msg)
        return ("a warning",)

    @override
    def compare(self, spec: ComputeSpec, cancellation: Cancellation) -> SettingsCompared:
        self.machine.take("compare", self.machine.faults.compare_takes_s, cancellation)
        if self.machine.postmaster is None or not self.machine.postmaster.alive:
            msg = "Postgres cannot be asked for its settings"
            raise PostgresError(msg)
        return SettingsCompared(refused=self.machine.faults.conf_refused)

    @override
    def warm(self, cancellation: Cancellation) -> None:
        self.machine.take("warm", self.machine.faults.warm_takes_s, cancellation)
        if self.machine.faults.warm_fails is not None:
            raise PostgresError(self.machine.faults.warm_fails)

    @override
    def launch(self, spec: ComputeSpec, cancellation: Cancellation) -> Launch:
        machine = self.machine
        machine.take("launch", machine.faults.launch_takes_s, cancellation)
        if machine.faults.launch_fails is not None:
            raise PostgresError(machine.faults.launch_fails)
        return super().launch(spec, cancellation)

    @override
    def tidy(self, cancellation: Cancellation) -> None:
        self.machine.take("tidy", self.machine.faults.tidy_takes_s)
        super().tidy(cancellation)
        if self.machine.postmaster is not None and self.machine.postmaster.alive:
            self.machine.violations.append("cleaned up under a living postmaster")
        if self.machine.faults.tidy_fails is not None:
            raise PostgresError(self.machine.faults.tidy_fails)

    @override
    def look_at_disk(self) -> tuple[Area, ...]:
        return disk_of(self.machine.faults)

    @override
    def report_cores(self, cancellation: Cancellation) -> None:
        self.machine.take("cores", self.machine.faults.cores_take_s, cancellation)


class _Pump:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.last_messages: tuple[str, ...] = ()
        self.ended = SimpleNamespace(wait=lambda _: True)

    def open(self, _: float) -> int:
        return os.open(os.devnull, os.O_WRONLY)

    def run(self, _: Callable[[], None], cancellation: Cancellation) -> None:
        postmaster = self._machine.postmaster
        if not cancellation.requested and (postmaster is None or postmaster.alive):
            raise Blocked


class MachineAdministration(Administration):
    """Applies specs to the cluster that is served, if one is."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @override
    def load(self) -> None:
        pass

    @override
    def apply(self, order: Order, cancellation: Cancellation) -> Report:
        machine = self._machine
        cluster = self._cluster(cancellation)
        cluster.broken, cluster.operations_left = machine.broken, machine.operations_left
        cluster.before_each = machine.change
        report = cluster.apply(order, cancellation)
        if not report.errors:
            machine.applied.append(order.spec)
        return report

    @override
    def plan(self, order: Order, cancellation: Cancellation) -> CatalogPlanned:
        return self._cluster(cancellation).plan(order, cancellation)

    def _cluster(self, cancellation: Cancellation) -> FakeAdministration:
        machine = self._machine
        if machine.died:
            raise Died
        cancellation.check()
        machine.pass_time()
        lost, machine.connection_lost = machine.connection_lost, False
        if lost or machine.postmaster is None or not machine.postmaster.alive or machine.served is None:
            msg = "the connection was lost"
            raise AdministrationError(msg)
        if machine.held:
            raise Blocked
        return machine.clusters[machine.served]

    @override
    def checkpoint(self, limit_s: float, cancellation: Cancellation) -> None:
        self._cluster(cancellation)

    @override
    def migrate(self, privileged_role: str, cancellation: Cancellation) -> MigrationReport:
        cluster = self._cluster(cancellation)
        cancellation.reach(Failpoint.MIGRATION)
        self._machine.change()
        return cluster.migrate(privileged_role, cancellation)

    @override
    def installed_extensions(self, cancellation: Cancellation) -> tuple[Extension, ...]:
        return self._cluster(cancellation).installed_extensions(cancellation)


class MachineCache(FakeCache):
    """The cache of the Postgres that runs; a new one is cold. Users fill it when `warm` is called."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self._of: int | None = None
        self.at_once = 3

    @override
    def _meet(self, cancellation: Cancellation) -> None:
        machine = self._machine
        if machine.died:
            raise Died
        cancellation.check()
        machine.pass_time()
        if machine.postmaster is None or not machine.postmaster.alive:
            msg = "connecting to postgres: nobody listens"
            raise CacheError(msg)
        if machine.recovers:
            msg = "connecting to postgres: the database system is in recovery mode"
            raise CacheError(msg)
        if self._of != machine.postmaster.pid:
            self._of, self.pages, self.incomplete = machine.postmaster.pid, {0}, False
        super()._meet(cancellation)

    def warm(self) -> None:
        """Let users read something, of which there may be so much that all else goes."""
        random = self._machine.random
        self.pages = set(random.choice([(), self.pages])) | {random.randrange(20) for _ in range(5)}


class MachineStore(FakeStore):
    """A store that outlives the node's process."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self.violations = machine.violations

    @override
    def _meet(self, cancellation: Cancellation) -> None:
        if self._machine.died:
            raise Died
        super()._meet(cancellation)


class MachineObserver(FakeObserver):
    """Sees whether there is a Postgres at all."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.clock)
        self._machine = machine

    @override
    def observe(self, generation: int, **options: Any) -> Observation:
        if self._machine.died:
            raise Died
        self._machine.pass_time()
        wanted, postmaster = self.reach, self._machine.postmaster
        if postmaster is None or not postmaster.alive:
            self.reach = Reach.UNREACHABLE
        try:
            return super().observe(generation, **options)
        finally:
            self.reach = wanted


class _SimulatedPath(PosixPath):
    """A path whose changes of the disk the machine hears of."""

    machine: Machine

    @override
    def rename(self, target: Any) -> Any:
        self.machine.change_by_rename(str(self))
        return super().rename(target)

    @override
    def replace(self, target: Any) -> Any:
        self.machine.change(str(self))
        return super().replace(target)

    @override
    def unlink(self, missing_ok: bool = False) -> None:
        self.machine.change(str(self))
        super().unlink(missing_ok)

    @override
    def rmdir(self) -> None:
        self.machine.change(str(self))
        super().rmdir()

    @override
    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        self.machine.change(str(self))
        super().mkdir(mode, parents, exist_ok)


def _memory() -> str | None:
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _content(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
    }

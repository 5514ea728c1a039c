"""A Postgres that lives in memory: a port of the PostgresProcess whose faults are switches.

Its jobs never wait: what is not over yet raises Blocked and is tried again. Time comes from the clock of
the simulation. `left` says what a stop would have left behind.
"""

import errno
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from compute_node.actors.kit.clock import Clock
from compute_node.actors.kit.jobs import Blocked, Cancellation, CancelledError
from compute_node.actors.postgres_process.disk import Area
from compute_node.actors.postgres_process.port import (
    Exit,
    Launch,
    PassingError,
    PgdataRefusedError,
    Port,
    PostgresError,
    Preparation,
    Promotion,
)
from compute_node.messages.planning import SettingsCompared
from compute_node.messages.postgres import PgdataKind, StopRung
from compute_node.messages.spec import ComputeSpec
from typing_extensions import override


@dataclass
class Faults:
    """What goes wrong; times are seconds of the simulated clock."""

    folder_refused: int | None = None
    """With this exit code."""
    conf_refused: str | None = None
    compare_takes_s: float = 0.0
    agreed_lsn: int | None = 7
    """What a quorum of safekeepers says; None: they do not agree."""
    quorum_takes_s: float = 0.0
    synced_lsn: int = 9
    sync_takes_s: float = 0.0
    syncs_that_fail: int = 0
    """So many of the next ones."""
    initdb_fails: str | None = None
    initdb_takes_s: float = 0.0
    passing_failures: int = 0
    """So many attempts to make PGDATA fail in a way that may pass."""
    warm_fails: str | None = None
    warm_takes_s: float = 0.0
    launch_fails: str | None = None
    launch_takes_s: float = 0.0
    ready_after_s: float = 0.0
    never_ready: bool = False
    recovering: bool = False
    exits_after_s: float | None = None
    """By itself, counted from the launch."""
    exit_code: int = 0
    ignores: frozenset[StopRung] = frozenset()
    stop_takes_s: float = 0.0
    """Counted from the first signal that is not ignored."""
    install_refused: str | None = None
    install_takes_s: float = 0.0
    settle_takes_s: float = 0.0
    promote_refused: str | None = None
    promote_takes_s: float = 0.0
    pending_restart: tuple[str, ...] = ()
    tidy_fails: str | None = None
    cores_take_s: float = 0.0
    stop_fails: bool = False
    """A fast stop ends with a code that is not 0."""
    disk_free: int | None = 1 << 40
    """None: the file system does not say."""
    space_refused: bool = False
    """Postgres says once that the disk is full."""


def disk_of(faults: Faults) -> tuple[Area, ...]:
    """What the file system of that world shows."""
    if faults.disk_free is None:
        raise OSError(errno.EIO, "Input/output error")
    return (Area("pgdata", "/pgdata", faults.disk_free),)


@dataclass
class FakeServer(Port):
    """The folder and the process, in memory."""

    clock: Clock
    faults: Faults = field(default_factory=Faults)
    kind: PgdataKind = PgdataKind.ABSENT

    building: bool = False
    placed: bool = False
    alive: bool = False
    launched: int = 0
    run_files: bool = False
    """The folders for sockets and shared memory."""
    signals: list[tuple[float, StopRung]] = field(default_factory=list)
    settled: list[tuple[ComputeSpec, bool]] = field(default_factory=list)
    start_lsns: list[int] = field(default_factory=list)
    """From where each folder was made."""
    promoted: list[tuple[ComputeSpec, str | None]] = field(default_factory=list)
    installed: list[ComputeSpec] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    cores_reported: int = 0
    _since: dict[str, float] = field(default_factory=dict)
    _ends_at: float | None = None
    _ending_as: str = ""

    @property
    def left(self) -> list[str]:
        """What should not be there after a stop."""
        found = {"postmaster": self.alive, "half-made folder": self.building, "run files": self.run_files}
        return [name for name, there in found.items() if there]

    # --- The port

    @override
    def inspect(self, cancellation: Cancellation) -> PgdataKind:
        cancellation.check()
        if self.faults.folder_refused is not None:
            msg = "the folder is foreign"
            raise PgdataRefusedError(msg, self.faults.folder_refused)
        return self.kind

    @override
    def check(
        self, spec: ComputeSpec, cancellation: Cancellation, *, promoting: bool = False
    ) -> tuple[str, ...]:
        cancellation.check()
        if self.faults.conf_refused is not None:
            raise PostgresError(self.faults.conf_refused)
        return ("a warning",)

    @override
    def compare(self, spec: ComputeSpec, cancellation: Cancellation) -> SettingsCompared:
        self._take("compare", self.faults.compare_takes_s, cancellation)
        if not self.alive:
            msg = "Postgres cannot be asked for its settings"
            raise PostgresError(msg)
        return SettingsCompared(refused=self.faults.conf_refused)

    @override
    def check_safekeepers(self, spec: ComputeSpec, cancellation: Cancellation) -> int | None:
        self._take("quorum", self.faults.quorum_takes_s, cancellation)
        return self.faults.agreed_lsn

    @override
    def sync_safekeepers(self, spec: ComputeSpec, limit_s: float, cancellation: Cancellation) -> int:
        assert not self.alive, "the safekeepers are synced beside a living postmaster"
        self.building = not self.launched
        try:
            self._take("sync", self.faults.sync_takes_s, cancellation, limit_s)
        except (CancelledError, PostgresError):
            self.building = False
            raise
        self.building = False
        if self.faults.syncs_that_fail:
            self.faults.syncs_that_fail -= 1
            msg = "no quorum"
            raise PostgresError(msg)
        return self.faults.synced_lsn

    @override
    def prepare(self, spec: ComputeSpec, start_lsn: int, cancellation: Cancellation) -> Preparation:
        if self.kind is PgdataKind.OURS_COMPLETE:
            return Preparation(kept=True)
        if "initdb" not in self._since:
            self.start_lsns.append(start_lsn)
        self.building = True
        try:
            self._take("initdb", self.faults.initdb_takes_s, cancellation)
        except CancelledError:
            self.building = False
            raise
        if self.faults.initdb_fails is not None:
            self.building = False
            raise PostgresError(self.faults.initdb_fails)
        if self.faults.passing_failures:
            self.faults.passing_failures -= 1
            self.building = False
            msg = "the connection was cut"
            raise PassingError(msg)
        return Preparation(kept=False)

    @override
    def warm(self, cancellation: Cancellation) -> None:
        self._take("warm", self.faults.warm_takes_s, cancellation)
        if self.faults.warm_fails is not None:
            raise PostgresError(self.faults.warm_fails)

    @override
    def pump_logs(self, no_space: Callable[[], None], cancellation: Cancellation) -> None:
        if self.faults.space_refused:
            self.faults.space_refused = False
            no_space()
        if cancellation.requested or (self.launched and not self.alive):
            return
        raise Blocked

    @override
    def launch(self, spec: ComputeSpec, cancellation: Cancellation) -> Launch:
        self._take("launch", self.faults.launch_takes_s, cancellation)
        if self.faults.launch_fails is not None:
            raise PostgresError(self.faults.launch_fails)
        assert not self.alive, "a second postmaster over the same folder"
        self.building, self.placed, self.alive, self.run_files = False, True, True, True
        self.launched += 1
        if self.faults.exits_after_s is not None:
            self._ends_at = self.clock.now() + self.faults.exits_after_s
            self._ending_as = f"exit code {self.faults.exit_code}"
        return Launch(pid=4711, recovering=self.faults.recovering)

    @override
    def await_ready(self, limit_s: float | None, cancellation: Cancellation) -> bool:
        self._pass_time()
        cancellation.check()
        began = self._since.setdefault("ready", self.clock.now())
        if not self.alive:
            return False
        if not self.faults.never_ready and self.clock.now() >= began + self.faults.ready_after_s:
            return True
        if limit_s is not None and self.clock.now() > began + limit_s:
            msg = "timed out while waiting for Postgres to start"
            raise PostgresError(msg)
        raise Blocked

    @override
    def await_exit(self, cancellation: Cancellation) -> Exit:
        self._pass_time()
        cancellation.check()
        if self.alive:
            raise Blocked
        return Exit(self._ending_as, self.faults.stop_fails)

    @override
    def install(self, spec: ComputeSpec, cancellation: Cancellation) -> tuple[str, ...]:
        self._take("install", self.faults.install_takes_s, cancellation)
        if self.faults.install_refused is not None:
            raise PostgresError(self.faults.install_refused)
        self.installed.append(spec)
        return self.faults.pending_restart

    @override
    def promote(self, spec: ComputeSpec, wal_flush_lsn: str | None, cancellation: Cancellation) -> Promotion:
        self._take("promote", self.faults.promote_takes_s, cancellation)
        if self.faults.promote_refused is not None:
            raise PostgresError(self.faults.promote_refused)
        self.promoted.append((spec, wal_flush_lsn))
        return Promotion(7, 9)

    @override
    def settle(self, spec: ComputeSpec, cancellation: Cancellation, *, subscribers: bool) -> None:
        self._take("settle", self.faults.settle_takes_s, cancellation)
        self.settled.append((spec, subscribers))

    @override
    def signal(self, rung: StopRung) -> None:
        self.signals.append((self.clock.now(), rung))
        if self.alive and rung not in self.faults.ignores:
            end = self.clock.now() + self.faults.stop_takes_s
            if self._ends_at is None or end < self._ends_at:
                self._ends_at, self._ending_as = end, f"{rung.value} shutdown"

    @override
    def kill(self, cancellation: Cancellation) -> None:
        self.signals.append((self.clock.now(), StopRung.KILL))
        if StopRung.KILL not in self.faults.ignores:
            self._die("killed by SIGKILL")

    @override
    def tidy(self, cancellation: Cancellation) -> None:
        assert not self.alive, "cleaning up under a living postmaster"
        self.begun.append("tidy")
        self.building = self.run_files = False
        if self.faults.tidy_fails is not None:
            raise PostgresError(self.faults.tidy_fails)

    @override
    def look_at_disk(self) -> tuple[Area, ...]:
        return disk_of(self.faults)

    @override
    def report_cores(self, cancellation: Cancellation) -> None:
        self._take("cores", self.faults.cores_take_s, cancellation)
        self.cores_reported += 1

    # --- For tests

    def crash(self, how: str = "killed by SIGSEGV") -> None:
        """End the postmaster although nobody asked."""
        self._die(how)

    # --- Its own

    def _take(self, what: str, seconds: float, cancellation: Cancellation, limit_s: float = math.inf) -> None:
        if what not in self._since:
            self.begun.append(what)
        began = self._since.setdefault(what, self.clock.now())
        try:
            cancellation.check()
        except CancelledError:
            del self._since[what]
            raise
        if self.clock.now() < began + min(seconds, limit_s):
            raise Blocked
        del self._since[what]
        if seconds > limit_s:
            msg = f"it had not ended after {limit_s:g} s"
            raise PostgresError(msg)

    def _pass_time(self) -> None:
        if self._ends_at is not None and self.clock.now() >= self._ends_at:
            self._die(self._ending_as)

    def _die(self, how: str) -> None:
        if self.alive:
            self.alive, self._ending_as = False, how
        self._ends_at = None

"""Neon's storage around a simulated node: safekeepers, base backups, leases, and a Postgres that is promoted.

It outlives the node's lives and knows how much of the log is committed, so that it sees what must never be: a primary
that begins behind that, a read-only node that syncs, an attempt that begins in the remains of the one before. Made up
are the programs and the wire; who decides about replies and LSNs is the real code.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from compute_node.actors import postgres_process
from compute_node.actors.kit.jobs import Blocked, Cancellation
from compute_node.actors.lsn_lease.port import Answer, Failed, Granted, Pageservers, Refused, Wanted
from compute_node.actors.postgres_process import promoting, run_folders, safekeepers
from compute_node.actors.postgres_process.pgdata import STANDBY_SIGNAL
from compute_node.actors.postgres_process.port import PostgresError
from compute_node.actors.postgres_process.safekeepers import Agreed, Position, Reply, Silent, Unknown
from compute_node.actors.postgres_process.sources import Source, SourceError, pageserver
from compute_node.actors.postgres_process.sources.pageserver import start_lsn
from compute_node.messages.postgres import PgdataStages
from compute_node.messages.secret import Secret
from compute_node.messages.settings import SourceName
from compute_node.messages.spec import ComputeSpec, Mode, StaticMode
from compute_node.postgres.lsn import parse_lsn, show_lsn
from typing_extensions import override

if TYPE_CHECKING:
    from doubles.machine import Machine, Process

KEEPERS: Final = ("sk1:5454", "sk2:5454", "sk3:5454")
QUORUM: Final = 2
PINNED: Final = 0x10
"""Where Static nodes are."""
SYNC: Final = "postgres --sync-safekeepers"


@dataclass
class StorageFaults:
    """What goes wrong with it; the rest is among the hardships of the machine."""

    silent: frozenset[int] = frozenset()
    """These safekeepers give no answer."""
    lease_fails: bool = False
    lease_held: bool = False
    """Requests for leases are not answered."""
    collected: bool = False
    """What Static nodes read may be gone: their leases are refused."""
    promote_fails: str | None = None

    @property
    def lets_hold(self) -> bool:
        """Whether leases are granted."""
        return not (self.lease_fails or self.lease_held or self.collected)


@dataclass
class Storage:
    """All that a node's branch has, over all its lives."""

    machine: "Machine"
    faults: StorageFaults = field(default_factory=StorageFaults)
    ends: list[Position | None] = field(default_factory=lambda: [None] * len(KEEPERS))
    """What each safekeeper has; None: nothing was ever written there."""
    lease_s: float = 600.0
    held_until_s: float = 0.0
    """By the clock of the pageservers."""
    well_since_s: float = 0.0
    """Since when leases are granted again; 0: they always were in this life."""
    clock_was_wrong: bool = False
    """That of the node."""
    leases: list[tuple[float, Wanted]] = field(default_factory=list)
    caught_up: str | None = None
    """The position that was waited for last."""
    primary: int | None = None
    """The process that was promoted."""
    writes: int | None = None
    """The process that was seen to write after it was promoted."""
    happened: Counter[str] = field(default_factory=Counter)
    """How often the world was really like that."""
    _syncing: "Process | None" = None

    def next_life(self) -> None:
        """Forget what only one process of the node knows."""
        self._syncing, self.caught_up, self.primary, self.writes = None, None, None, None
        self.well_since_s = 0.0

    def mend(self) -> None:
        """Let nothing go wrong any more."""
        was_well, self.faults = self.faults.lets_hold, StorageFaults()
        if not was_well:
            self.well_since_s = self.machine.clock.now()

    # --- Safekeepers

    @property
    def committed(self) -> int:
        """Where the log ends that a quorum has: what a primary must not begin behind."""
        flushed = sorted((0 if end is None else end.flush_lsn for end in self.ends), reverse=True)
        return flushed[QUORUM - 1]

    def write(self) -> None:
        """Let the primary write: a quorum has it, and others perhaps, and who knows of that is another question."""
        random, end = self.machine.random, max(self.committed, PINNED) + 8
        for number in random.sample(range(len(KEEPERS)), random.choice([QUORUM, len(KEEPERS)])):
            self.ends[number] = Position(end, random.choice([end, end - 8]))

    def rest(self) -> None:
        """Let all of them know all, as they do after an end in order."""
        end = max((one.flush_lsn for one in self.ends if one is not None), default=0)
        if end:
            self.ends = [Position(end, end)] * len(KEEPERS)

    def check(self, spec: ComputeSpec, cancellation: Cancellation) -> int | None:
        """Stand in for the quick check: replies come in any order, and the real judge decides."""
        machine = self.machine
        self._must_be_primary(spec)
        machine.take("quorum", machine.faults.quorum_takes_s, cancellation)
        replies: dict[str, Reply] = {}
        for number in machine.random.sample(range(len(KEEPERS)), len(KEEPERS)):
            replies[KEEPERS[number]] = self._reply(number)
            verdict = safekeepers.judge(len(KEEPERS), replies)
            if verdict is not None:
                self.happened["agreed" if isinstance(verdict, Agreed) else "disagreed"] += 1
                return verdict.lsn if isinstance(verdict, Agreed) else None
        msg = "no verdict, although all have answered"
        raise AssertionError(msg)

    def _reply(self, number: int) -> Reply:
        end = self.ends[number]
        return Silent("no answer") if number in self.faults.silent else Unknown() if end is None else end

    def sync(self, where: str, spec: ComputeSpec, limit_s: float, cancellation: Cancellation) -> int:
        """Stand in for the program: it comes to an end once a quorum answers, unless it is killed."""
        machine, faults = self.machine, self.machine.faults
        self._must_be_primary(spec)
        if machine.postmaster is not None and machine.postmaster.alive:
            machine.violations.append("the safekeepers are synced beside a living postmaster")
        if self._syncing is None:
            self._syncing = machine.begin(SYNC, where)
        cancellation.on_request(lambda: self._kill_sync(where))  # the job itself is not tried again then
        try:
            has_quorum = len(KEEPERS) - len(self.faults.silent) >= QUORUM
            needs_s = faults.sync_takes_s if has_quorum else math.inf
            machine.take("sync", min(needs_s, limit_s), cancellation)
            if faults.syncs_that_fail or needs_s > limit_s:
                faults.syncs_that_fail = max(0, faults.syncs_that_fail - 1)
                msg = "no quorum"
                raise PostgresError(msg)  # noqa: TRY301 - the process has ended, too
        except PostgresError:
            self.happened["not synced"] += 1
            self._syncing.alive, self._syncing = False, None
            raise
        self._syncing.alive, self._syncing = False, None
        self.happened["synced"] += 1
        self.rest()
        return self.committed

    def _kill_sync(self, where: str) -> None:
        if self._syncing is not None and not self.machine.died:
            self._syncing.alive, self._syncing = False, None
            self.machine.forget("sync")
            if where != self.machine.pgdata:
                run_folders.remove_private(where, None)

    def _must_be_primary(self, spec: ComputeSpec) -> None:
        if spec.compute_mode is not Mode.PRIMARY:
            self.machine.violations.append("a read-only node asks or syncs the safekeepers")

    # --- Leases

    def hold(self, wanted: Wanted, cancellation: Cancellation) -> Answer:
        """Stand in for the pageservers."""
        machine = self.machine
        machine.check_alive()
        cancellation.check()
        if self.faults.lease_held:
            raise Blocked
        now = machine.clock.now()
        self.leases.append((now, wanted))
        if parse_lsn(wanted.lsn) != PINNED:
            machine.violations.append("a lease is asked for at another LSN than that of the mode")
        self.happened["granted" if self.faults.lets_hold else "refused"] += 1
        if self.faults.collected:
            return Refused("shard 0000")
        if self.faults.lease_fails:
            return Failed("shard 0000: no connection")
        self.held_until_s = now + self.lease_s
        true_wall_s = machine.clock.wall() - machine.clock.wall_is_off_by_s
        return Granted(round((true_wall_s + self.lease_s) * 1000))

    # --- Promotion: in the place of the module of that name

    def _alive(self, cancellation: Cancellation) -> "Process":
        machine = self.machine
        machine.check_alive()
        machine.pass_time()
        cancellation.check()
        if machine.postmaster is None or not machine.postmaster.alive:
            msg = "the connection was lost"
            raise PostgresError(msg)
        return machine.postmaster

    def catch_up(self, _: object, wal_flush_lsn: str | None, cancellation: Cancellation) -> bool:
        """Wait until the standby has replayed that."""
        postmaster = self._alive(cancellation)
        self.machine.take("promote", self.machine.faults.promote_takes_s, cancellation)
        self.caught_up = wal_flush_lsn
        return self.primary != postmaster.pid

    def promote(self, _: object, cancellation: Cancellation) -> None:
        """Make a primary of it."""
        postmaster = self._alive(cancellation)
        if self.faults.promote_fails is not None:
            raise PostgresError(self.faults.promote_fails)
        if self.primary == postmaster.pid:
            self.machine.violations.append("a primary is promoted")
        if self.caught_up is None:
            self.machine.violations.append("a standby is promoted that has not caught up")
        self.happened["promoted"] += 1
        self.primary = postmaster.pid
        self.write()

    def see_that_it_writes(self, _: object, cancellation: Cancellation) -> None:
        """Try a write."""
        postmaster = self._alive(cancellation)
        if self.primary != postmaster.pid:
            msg = "still read-only"
            raise PostgresError(msg)
        self.writes = postmaster.pid

    # --- Where it is put in the place of the real thing

    def patches(self) -> list[tuple[Any, str, object]]:
        """Say what is to be replaced: module, name, double."""
        names = ("catch_up", "promote", "see_that_it_writes")
        assert all(hasattr(promoting, name) for name in names)
        return [
            (postgres_process, "promoting", SimpleNamespace(**{name: getattr(self, name) for name in names})),
            (safekeepers, "agreed", lambda spec, _, cancellation: self.check(spec, cancellation)),
            (safekeepers, "sync", lambda _, *asked: self.sync(*asked)),
            (
                pageserver,
                "PageserverSource",
                lambda _, __, synced, ___: SimulatedBackup(self.machine, synced),
            ),
            (run_folders, "remove_private", partial(self._remove_private, run_folders.remove_private)),
        ]

    def _remove_private(self, remove: Callable[[str, None], None], path: str, account: None) -> None:
        """Leave the folder of a sync that goes on, in this life or as what a killed one has left."""
        if self._syncing is None or not path.endswith("-sync"):
            remove(path, account)


class StoragePageservers(Pageservers):
    """The lease's port."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @override
    def request(self, wanted: Wanted, cancellation: Cancellation) -> Answer:
        return self._storage.hold(wanted, cancellation)


class SimulatedBackup(Source):
    """Makes the folder of the branch's one cluster anew, file by file."""

    name = SourceName.PAGESERVER

    def __init__(self, machine: "Machine", synced: int) -> None:
        self._machine = machine
        self._synced = synced

    @override
    def build(
        self, target: str, spec: ComputeSpec, cancellation: Cancellation, *, sync: bool
    ) -> PgdataStages:
        machine = self._machine
        machine.take("initdb", machine.faults.initdb_takes_s, cancellation)
        if Path(target).exists():
            machine.violations.append("an attempt begins in the remains of the one before")
        storage = self._look_at(spec)
        if machine.faults.initdb_fails is not None:
            raise SourceError(machine.faults.initdb_fails)
        if machine.faults.passing_failures:
            machine.faults.passing_failures -= 1
            storage.happened["retry"] += 1
            Path(target).mkdir()
            Path(target, "PG_VERSION").write_text("half")
            msg = "failed to get basebackup: the connection was cut"
            raise SourceError(msg, passing=True)
        machine.write_cluster(Path(target), lambda: machine.change(target))
        storage.happened["backup"] += 1
        if spec.compute_mode is not Mode.PRIMARY:
            Path(target, STANDBY_SIGNAL).touch()
        return PgdataStages()

    def _look_at(self, spec: ComputeSpec) -> Storage:
        machine, lsn = self._machine, start_lsn(spec, self._synced)
        assert machine.storage is not None
        if spec.compute_mode is Mode.PRIMARY and lsn < machine.storage.committed:
            ends = f"{show_lsn(lsn)}, committed is {show_lsn(machine.storage.committed)}"
            machine.violations.append(f"a primary begins behind what is committed: {ends}")
        if isinstance(spec.mode, StaticMode) and lsn != PINNED:
            machine.violations.append("a static node begins at another LSN than its own")
        return machine.storage


def stored_fields(mode: str | StaticMode) -> dict[str, Any]:
    """What a spec of a node of this branch has."""
    return {
        "mode": mode,
        "tenant_id": "1" * 32,
        "timeline_id": "2" * 32,
        "pageserver_connstring": Secret("postgresql://ps1"),
        "safekeeper_connstrings": KEEPERS,
    }

"""A whole node under the simulated runtime: every actor is the real one, the world around them is made up.

A `World` is a function of its seed: who goes next, what fails, what people ask and when, and when the node's
process is killed, after which another life begins on the same machine. After each step the invariants are
checked (invariants.py); on a failure `trace` tells what happened, and the same seed does it again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from compute_node.actors.activity_monitor.actor import ActivityMonitor
from compute_node.actors.activity_monitor.checks import Readings
from compute_node.actors.activity_monitor.reach import Reach
from compute_node.actors.configurator.actor import Configurator
from compute_node.actors.http_facade.actor import HttpFacade
from compute_node.actors.http_facade.private import SERVERS
from compute_node.actors.kit.actor import Actor, Pending
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.kit.turn import Moment
from compute_node.actors.lfc_manager.actor import LfcManager
from compute_node.actors.lfc_manager.port import StoreError
from compute_node.actors.lsn_lease.actor import LsnLease
from compute_node.actors.postgres_process.actor import PostgresProcess
from compute_node.actors.supervisor.actor import Supervisor
from compute_node.actors.supervisor.effects import CONFIGURATOR, HTTP, LEASE, LFC, MONITOR, POSTGRES, VM
from compute_node.actors.supervisor.state import Step
from compute_node.actors.vm_monitor_bridge.actor import VmMonitorBridge
from compute_node.messages.base import Message, Request
from compute_node.messages.catalog import ApplyFailed, SpecApplied
from compute_node.messages.failpoints import Failpoint
from compute_node.messages.lfc import (
    CancelPrewarm,
    GetOffload,
    GetPrewarm,
    Offload,
    Prewarm,
    PrewarmStatus,
)
from compute_node.messages.lifecycle import (
    EXIT_FAILED,
    AwaitExit,
    Boot,
    Configure,
    ExitReport,
    GetReadiness,
    GetStatus,
    RefreshConfiguration,
    RereadConfiguration,
    ShutdownMode,
    SignalReceived,
    Status,
    StatusChanged,
    Terminate,
)
from compute_node.messages.planning import CompareSettings, GetSpec, PlanSpec
from compute_node.messages.postgres import (
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    PgdataFailed,
    PgdataKind,
    PgdataPrepared,
    PostgresReady,
    PostgresStartFailed,
    StopRung,
)
from compute_node.messages.promotion import Promote
from compute_node.messages.secret import Secret
from compute_node.messages.settings import NodeSettings, SourceName
from compute_node.messages.spec import Cluster, ComputeSpec, GenericOption, Mode, StaticMode
from compute_node.postgres.lsn import show_lsn
from compute_node.process import node
from typing_extensions import override

from doubles.invariants import Invariants
from doubles.lfc import body_of
from doubles.machine import (
    REFUSED_SETTING,
    Hardships,
    Machine,
    MachineAdministration,
    MachineCache,
    MachineFailpoints,
    MachineObserver,
    MachineStore,
    SimulatedServer,
)
from doubles.servers import FakeServers
from doubles.specs import a_spec, settings, with_role
from doubles.storage import KEEPERS, PINNED, Storage, StoragePageservers, stored_fields
from doubles.vm import FakeAgents, FakeFileCache, FakeMachine, FakeMemory

REFUSED: Final = a_spec(
    cluster=Cluster(roles=(), databases=(), settings=(GenericOption(REFUSED_SETTING, "string", "on"),))
)
STORED: Final = 2
"""The remainder, by 3, of the seeds whose node lives on Neon's storage."""
MAX_STEPS: Final = 6_000
"""In one life."""
PATIENCE_S: Final = 90.0
"""How long a quiet world may take to come right: longer than anything that ends by itself."""
STAYS_S: Final = 3.0
"""How long it is watched after that."""
MAY_FAIL: Final = [step for step in Failpoint if step not in {Failpoint.OBSERVE, Failpoint.EXIT_SEEN}]
"""At the others an error is the death of the actor, as it should be."""
HOUR_S: Final = 3_600.0
LSN: Final = "0/28F10D8"
MODES: Final[tuple[str | StaticMode, ...]] = ("Primary", "Replica", StaticMode(show_lsn(PINNED)))
"""Of a node on Neon's storage."""


class Bug(Message, frozen=True):
    """A message that no actor understands: each dies of it."""


class _Listener(Actor[StatusChanged]):
    def __init__(self, heard: Callable[[StatusChanged], None]) -> None:
        self._heard = heard

    @override
    def receive(self, message: StatusChanged) -> None:
        self._heard(message)


@dataclass
class Waiting:
    """A request that somebody made, and its answer to be."""

    request: Request[Any]
    pending: Pending[Any]
    asked_active_s: float
    of: str = "supervisor"


class World:
    """One node and everybody around it, over all its lives. To be closed."""

    wall_clock_jumps_by_s = 0.0
    """Back and forth, at each step."""

    def __init__(
        self,
        seed: int,
        *,
        drawn: bool = False,
        kind: PgdataKind = PgdataKind.ABSENT,
        mount: bool = False,
        source: SourceName = SourceName.INITDB,
    ) -> None:
        """With `drawn` the machine, the source and the command line come from the seed too; else they are plain."""
        self.seed = seed
        self.drawn = drawn
        self.runtime = SimulatedRuntime(seed)
        self.random = self.runtime.random
        self.clock = self.runtime.clock
        kinds = [one for one in PgdataKind if one is not PgdataKind.OURS_COPY] if drawn else [kind]
        if drawn and seed % 3 == STORED:
            source = SourceName.PAGESERVER
        self.machine = Machine(
            self.runtime,
            self.random.choice(kinds),
            mount=self.random.random() < 0.25 if drawn else mount,
            source=source,
        )
        self.storage = self.machine.storage
        self.mode: str | StaticMode = "Primary"
        """Of the node's specs, where there is a storage; drawn anew in each life."""
        self.servers = FakeServers()
        self.store = MachineStore(self.machine)
        if drawn and self.random.random() < 0.5:
            self.store.kept["compute-1"] = body_of(range(10))
        self.cache = MachineCache(self.machine)
        self.observer = MachineObserver(self.machine)
        self.observer.readings = Readings(server_began_s=self.clock.now())
        self.reread: ComputeSpec | None = None
        self.lives = 0
        self.ends: list[ExitReport | None] = []
        """How each life ended; None: it was killed."""
        self.reached: set[Any] = set()
        """Every status that was reached."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the machine back."""
        if self.lives:
            self.server.release()
        self.machine.close()

    # --- A life

    def boot(self, spec: ComputeSpec | None, **changes: Any) -> "World":
        """Begin a life: start every actor and the node. The keywords are fields of NodeSettings."""
        if self.lives:
            self.runtime = SimulatedRuntime(self.seed, continuing=self.runtime)
            self.machine.runtime = self.runtime
            self.machine.next_life()
        self.lives += 1
        self.changes: list[StatusChanged] = []
        self.waiting: list[Waiting] = []
        self.planted: set[str] = set()
        """Which actors have a reason to die."""
        self.stop_asked_s: float | None = None
        """When the node was first told to end, in active seconds."""
        self.settings = self._settings(changes)
        self.machine.fresh = self.settings.fresh
        self.servers = FakeServers(taken=self.servers.taken)
        runtime = self.runtime
        self.failpoints = runtime.failpoints = MachineFailpoints(self.machine)
        self.ref = runtime.ref("supervisor")
        self.supervisor = Supervisor(
            self.settings,
            {name: runtime.ref(name) for name in (POSTGRES, CONFIGURATOR, MONITOR, LFC, LEASE, HTTP, VM)},
            read_spec=lambda _cancellation, _count: self.reread,
            listeners=(runtime.ref("listener"),),
            began=Moment(self.clock.now(), self.clock.wall()),
        )
        self.server = SimulatedServer(self.machine, self.settings)
        administration = MachineAdministration(self.machine)
        self.manager = LfcManager(self.settings, self.ref, self.cache, self.store)
        self.actors: dict[str, Actor[Any]] = {
            "listener": _Listener(self._changed),
            "supervisor": self.supervisor,
            POSTGRES: PostgresProcess(self.settings, self.ref, self.server),
            CONFIGURATOR: Configurator(self.settings, self.ref, administration),
            MONITOR: ActivityMonitor(self.settings, self.ref, self.observer),
            LFC: self.manager,
            HTTP: HttpFacade(self.servers, self.ref),
        }
        if self.settings.manages_vm:
            self.agents = FakeAgents()
            self.vm_memory = FakeMemory(self.clock)
            self.file_cache = FakeFileCache(self.clock, runtime.later)
            self.vm = FakeMachine()
            self.actors[VM] = VmMonitorBridge(
                self.ref,
                watches_cgroup=True,
                agents=self.agents,
                memory=self.vm_memory,
                file_cache=self.file_cache,
                machine=self.vm,
            )
        if self.storage is not None:
            self.actors[LEASE] = LsnLease(self.ref, StoragePageservers(self.storage))
        self.invariants = Invariants(self)
        runtime.after_step = self._after_step
        for name, actor in self.actors.items():
            runtime.spawn(name, actor)
        self.exit: Pending[ExitReport] = self.ref.request(AwaitExit())
        self.ref.tell(Boot(spec))
        return self

    def _settings(self, changes: dict[str, Any]) -> NodeSettings:
        fields: dict[str, Any] = {
            "pgdata": self.machine.pgdata,
            "config_path": "/some/config.json",
            "lfc_store": "/lfc",
            "source": self.machine.source,
        }
        if self.drawn:
            fields["lfc_offload_on_stop"] = self.random.random() < 0.3
            fields["dev"] = self.random.random() < 0.3
            fields["fresh"] = self.random.random() < 0.5
            fields["set_aside_pgdata"] = self.random.random() < 0.1
        return settings(**(fields | changes))

    def _after_step(self) -> None:
        self.invariants.check()
        self.wall_clock_jumps_by_s *= -1
        self.clock.wall_is_off_by_s += self.wall_clock_jumps_by_s

    def _changed(self, change: StatusChanged) -> None:
        self.changes.append(change)
        self.reached.add(change.new)
        try:
            self.invariants.status_changed(change)
        except AssertionError as error:  # here it would only be the death of the listener
            self.machine.violations.append(str(error))

    @property
    def active_s(self) -> float:
        """The time that the node had to itself: without what it stood still although there was work."""
        return self.clock.now() - self.runtime.stalled_s

    @property
    def over(self) -> bool:
        """Whether the main thread would go on to its end now."""
        return self.exit.done or bool(self.runtime.abandoned)

    def crash(self) -> None:
        """Kill the node's process: its actors are gone, its children are not."""
        self.invariants.killed()
        self.server.release()
        self.ends.append(None)
        self.runtime.after_step = lambda: None

    def finish(self, *, launch_ends_between: bool = False) -> ExitReport:
        """End the process as the main thread does, and check that nobody and nothing is left.

        `launch_ends_between`: a launch under way comes to its end after the last resort has looked.
        """
        self._launch_ends_between = launch_ends_between
        self.invariants.over()
        node.end(self._last_resort, self._stop_actors, self.settings.stop_timeout_s)
        self.server.release()
        if self.runtime.abandoned:
            report = ExitReport(EXIT_FAILED, f"{self.runtime.abandoned[0]} and nobody was left to handle it")
        else:
            assert self.runtime.cell("supervisor").dead == "it was stopped", "nobody was told of its death"
            report = self.exit.get(0)
        self.ends.append(report)
        self.invariants.ended(report)
        return report

    def _last_resort(self, budget_s: float) -> bool:
        self._go_on_meanwhile()
        had_to = self.machine.last_resort(budget_s)
        self.invariants.last_resort(had_to=had_to)
        return had_to

    def _go_on_meanwhile(self) -> None:
        """Let the threads of actors and jobs do some more while the main thread does something."""
        self.runtime.after_step = lambda: None
        for _ in range(self.random.randrange(12) if self.drawn else 0):
            self.runtime.step()

    def _stop_actors(self, _: float) -> tuple[str, ...]:
        self._go_on_meanwhile()
        if self._launch_ends_between:
            self.runtime.advance(self.machine.faults.launch_takes_s)
        return self.runtime.stop()

    # --- What people do

    def ask(self, request: Request[Any], of: str = "supervisor") -> Waiting:
        """Ask the Supervisor, or another, something whose answer may take long."""
        pending: Pending[Any] = self.runtime.ref(of).request(request)
        waiting = Waiting(request, pending, self.active_s, of)
        self.waiting.append(waiting)
        return waiting

    def configure(self, spec: ComputeSpec) -> Waiting:
        return self.ask(Configure(spec))

    def plan(self) -> None:
        """Ask for what a plan is made of."""
        spec = self.some_spec()
        self.ask(CompareSettings(spec), POSTGRES)
        self.ask(PlanSpec(spec, everywhere=self.random.random() < 0.5), CONFIGURATOR)

    def terminate(self, mode: ShutdownMode | None = None) -> Waiting:
        self._stop_was_asked()
        return self.ask(Terminate(mode or self.random.choice(list(ShutdownMode))))

    def signal(self) -> None:
        self._stop_was_asked()
        self.ref.tell(SignalReceived("SIGTERM"))

    def end_somehow(self) -> None:
        """Tell the node to end, sometimes when that is hard."""
        faults = self.machine.faults
        match self.random.randrange(8):
            case 0:
                faults.stop_takes_s = 100.0
            case 1:
                faults.ignores = frozenset({StopRung.FAST, StopRung.IMMEDIATE})
            case 2:
                faults.tidy_takes_s = 1_000.0
            case 3:
                self.machine.held = True
                self.configure(with_role("c") if self.storage is None else self.stored_spec())
                self.soon(lambda: self.ask(GetStatus()))
                self.soon(self.signal)
                self._stop_was_asked()
                return
            case _:
                pass
        if self.random.random() < 0.5:
            self.signal()
        else:
            self.terminate()

    def soon(self, action: Callable[[], object]) -> None:
        """Do this in a moment, if the process is the same then."""
        life = self.lives

        def act() -> None:
            if self.lives == life and not self.over:
                action()

        self.runtime.later(self.random.choice([0.1, 1.0]), act)

    def _stop_was_asked(self) -> None:
        if self.stop_asked_s is None:
            self.stop_asked_s = self.active_s

    def stored_spec(self, **changes: Any) -> ComputeSpec:
        """A spec of a node of the storage, in the mode of this life."""
        return with_role(self.random.choice("ab"), **(stored_fields(self.mode) | changes))

    def some_spec(self) -> ComputeSpec:
        if self.storage is not None:
            moved: dict[str, Any] = {"pageserver_connstring": Secret("postgresql://ps2")}
            another: dict[str, Any] = {"mode": self.random.choice(MODES)}
            return self.stored_spec(**self.random.choice([{}, {}, {}, moved, moved, another]))
        return self.random.choice(
            [
                a_spec(),
                with_role("a"),
                with_role("b"),
                with_role("a", autoprewarm=True, offload_lfc_interval_seconds=2),
                with_role("b", autoprewarm=True, offload_lfc_interval_seconds=1),
                with_role("a", mode="Replica"),
                REFUSED,
            ]
        )

    def act(self) -> None:
        """Let somebody do something, drawn from the seed."""
        actions: list[tuple[int, Callable[[], object]]] = [
            (8, lambda: self.configure(self.some_spec())),
            (4, self.reread_configuration),
            (
                4 if self.supervisor.state.attempt is None else 12,
                lambda: self.ask(self.random.choice([GetStatus(), GetReadiness(), GetSpec()])),
            ),
            (3, self.refresh),
            (4, self.plan),
            (4, self.use_the_cache),
            (6, self.break_something),
            (4, self.mend),
            (2, self.terminate),
            (2, self.signal),
            (2 if self.supervisor.state.attempt is None else 12, self.say_something_late),
            (1, self.machine.crash),
            (2, self.crash_a_backend),
            (2, self.set_the_wall_clock),
            (1, self.plant_a_bug),
        ]
        if self.storage is not None:
            state = self.supervisor.state
            is_replica = state.spec is not None and state.spec.compute_mode is Mode.REPLICA
            up = state.status is Status.RUNNING
            actions += [
                (1, self.storage.write) if self.is_writing else (60 if up and is_replica else 3, self.promote)
            ]
            actions += [(8, self.refresh)] if up else []
        weights = [weight for weight, _ in actions]
        _, action = self.random.choices(actions, weights)[0]
        action()

    @property
    def is_writing(self) -> bool:
        """Whether Postgres runs as a primary of the storage."""
        postmaster = self.machine.postmaster
        if self.storage is None or postmaster is None or not postmaster.alive:
            return False
        return self.mode == "Primary" or self.storage.primary == postmaster.pid

    def promote(self) -> None:
        """Ask for a promotion, sometimes more than once; some of those who ask leave before they are answered."""
        prewarm = self.random.choice([PrewarmStatus.COMPLETED, PrewarmStatus.COMPLETED, None])
        by_spec = Promote(LSN, self.stored_spec(mode="Primary"), prewarm=prewarm)
        by_form = Promote(LSN, safekeepers=",".join(KEEPERS), prewarm=prewarm)
        request = self.random.choice([by_spec, by_form])
        for _ in range(self.random.choice([1, 1, 2])):
            if self.random.random() < 0.4:
                self.ref.request(request)  # nobody ever reads the answer
            else:
                self.ask(request)
        if self.random.random() < 0.3:
            self.soon(lambda: self.ask(self.random.choice([by_spec, by_form])))

    def reread_configuration(self) -> None:
        self.reread = self.some_spec()
        self.ask(RereadConfiguration())

    def use_the_cache(self) -> None:
        """Read something, or ask for what concerns the cache; never by force."""
        requests: list[Request[Any]] = [
            Prewarm(),
            Prewarm("another"),
            CancelPrewarm(),
            Offload(),
            GetPrewarm(),
            GetOffload(),
        ]
        self.cache.warm()
        for _ in range(self.random.choice([1, 1, 4])):
            self.ask(self.random.choice(requests), LFC)

    def refresh(self) -> None:
        """Let Postgres suspect that its spec is outdated."""
        self.reread = self.some_spec()
        self.ask(RefreshConfiguration())

    def say_something_late(self) -> None:
        """Let the outcome of an operation that is not under way come again."""
        attempt = self.supervisor.state.attempt
        number = self.supervisor.state.operation - 1
        steps = [step for step in Step if step is not Step.ABORTING]
        awaited = self.random.choice(steps) if attempt is None or attempt.step not in steps else attempt.step
        outcomes: dict[Step, tuple[Message, ...]] = {
            Step.CHECKING: (ConfigurationAccepted(number), ConfigurationRefused(number, "late")),
            Step.PREPARING: (
                PgdataPrepared(number, kept=False, took_ms=1),
                PgdataFailed(number, "late"),
            ),
            Step.STARTING: (PostgresReady(number, 1, 1), PostgresStartFailed(number, "late")),
            Step.INSTALLING: (ConfigurationInstalled(number), ConfigurationInstallFailed(number, "late")),
            Step.APPLYING: (SpecApplied(number, 1, 1), ApplyFailed(number, "late")),
        }
        self.ref.tell(self.random.choice(outcomes[awaited]))

    def set_the_wall_clock(self) -> None:
        self.clock.wall_is_off_by_s += self.random.choice([-HOUR_S, HOUR_S])

    def plant_a_bug(self, actor: str | None = None) -> None:
        """Let an actor, a drawn one by default, come upon a message of which it dies."""
        name = actor or self.random.choice([name for name in self.actors if name != "listener"])
        self.planted.add(name)
        self.runtime.ref(name).tell(Bug())

    def break_something(self) -> None:
        """Turn one switch of the world the wrong way."""
        machine, faults, choice = self.machine, self.machine.faults, self.random.choice
        ways: list[tuple[object, str, object]] = [
            (faults, "conf_refused", "setting foo: no"),
            (faults, "install_refused", "Postgres did not take it"),
            (faults, "install_takes_s", choice([1.0, 7.0])),
            (faults, "ignores", frozenset({choice([StopRung.FAST, StopRung.IMMEDIATE])})),
            (faults, "stop_takes_s", choice([1.0, 7.0, 100.0])),
            (faults, "compare_takes_s", choice([1.0, 600.0])),
            (faults, "tidy_takes_s", choice([2.0, 1_000.0])),
            (faults, "cores_take_s", 60.0),
            (machine, "held", True),
            (machine, "broken", {choice(['role "a"', 'database "b"']): "no"}),
            (machine, "operations_left", self.random.randrange(3)),
            (self.observer, "reach", choice([Reach.FROZEN, Reach.UNREACHABLE, Reach.RECOVERING])),
            (self.observer, "takes_s", choice([1.0, 100.0])),
            (self.failpoints, "fails_at", choice(MAY_FAIL)),
            (self.store, "failure", StoreError("no", transient=choice([True, False]))),
            (self.store, "held", True),
            (self.cache, "held", True),
            (self.cache, "fails_after", 1),
            (self.servers, "under_way", 1),
            (self.servers, "ends_early", {choice(SERVERS)}),
        ]
        if self.storage is not None:
            ways += 2 * self._ways_of_the_storage(self.storage)
        where, name, wrong = choice(ways)
        setattr(where, name, wrong)

    def _ways_of_the_storage(self, storage: Storage) -> list[tuple[object, str, object]]:
        faults, choice = self.machine.faults, self.random.choice
        silent = frozenset(self.random.sample(range(len(KEEPERS)), choice([1, 2])))
        return [
            (storage.faults, "silent", silent),
            (storage.faults, "lease_fails", True),
            (storage.faults, "lease_held", True),
            (storage.faults, "collected", True),
            (storage.faults, "promote_fails", "pg_promote: it did not"),
            (faults, "promote_takes_s", choice([1.0, 30.0])),
            (faults, "sync_takes_s", choice([1.0, 100.0])),
            (faults, "syncs_that_fail", choice([1, 7])),
        ]

    def crash_a_backend(self) -> None:
        """Let Postgres lose all its sessions and its cache, and recover in place."""
        self.machine.connection_lost = self.machine.recovers = True
        self.observer.reach = Reach.RECOVERING
        self.observer.readings = Readings(server_began_s=self.clock.now())
        status = self.manager.state.prewarm.status
        self.cache.crash({0}, was_warmed=status is not PrewarmStatus.NOT_PREWARMED)
        life = self.lives

        def recovered() -> None:
            if self.lives == life:
                self.machine.recovers = False
            if self.observer.reach is Reach.RECOVERING:
                self.observer.reach = Reach.UP

        self.runtime.later(self.random.choice([0.5, 3.0]), recovered)
        if self.random.random() < 0.5:
            self.soon(lambda: self.ask(Offload(), LFC))

    def mend(self) -> None:
        """Turn all switches back."""
        self.machine.faults.__dict__.update(Hardships().__dict__)
        self.machine.broken = {}
        self.machine.held = False
        self.machine.connection_lost = self.machine.recovers = False
        self.machine.operations_left = None
        self.observer.reach = Reach.UP
        self.observer.takes_s = 0.0
        self.failpoints.fails_at = None
        self.store.failure, self.store.held = None, False
        self.cache.held, self.cache.fails_after = False, None
        if self.reread is REFUSED:
            self.reread = a_spec()
        self.servers.under_way = 0
        self.servers.ends_early = set()
        self.servers.taken = None
        self.servers.held = False
        if self.storage is not None:
            self.storage.mend()
            if self.supervisor.state.spec is not None:
                self.reread = self.stored_spec(mode=self.supervisor.state.spec.mode)
        if self.machine.postmaster is not None:
            self.machine.postmaster.ready_at = min(self.machine.postmaster.ready_at, self.clock.now())

    def random_start_faults(self) -> None:
        """Decide before the boot how hard the start will be."""
        faults, chance = self.machine.faults, self.random.random
        if chance() < 0.5:
            return
        faults.initdb_takes_s = self.random.choice([0.0, 2.0])
        faults.ready_after_s = self.random.choice([0.0, 3.0, 30.0])
        faults.launch_takes_s = self.random.choice([0.0, 1.0])
        faults.orphan_takes_s = self.random.choice([0.0, 5.0, 100.0])
        faults.backend_survives = chance() < 0.3
        faults.never_ready = chance() < 0.1
        faults.conf_refused = "setting foo: no" if chance() < 0.1 else None
        faults.initdb_fails = "no space" if chance() < 0.1 else None
        faults.launch_fails = "no such file" if chance() < 0.1 else None
        faults.warm_takes_s, faults.warm_fails = 300 * faults.initdb_takes_s, faults.launch_fails
        faults.folder_refused = self.random.choice([1, 75]) if chance() < 0.05 else None
        faults.exits_after_s = 4.0 if chance() < 0.1 else None
        self.servers.taken = "port 3080 is taken" if chance() < 0.1 else None
        self.servers.held = chance() < 0.1
        self.observer.takes_s = self.random.choice([0.0, 100.0])

        if self.storage is not None:
            self._random_faults_of_the_storage(self.storage)

    def _random_faults_of_the_storage(self, storage: Storage) -> None:
        faults, choice = self.machine.faults, self.random.choice
        faults.quorum_takes_s = choice([0.0, 1.0])
        faults.sync_takes_s = choice([0.0, 5.0])
        faults.syncs_that_fail = choice([0, 0, 2, 7])
        faults.passing_failures = choice([0, 1, 3, 20])
        storage.faults.silent = choice([frozenset(), frozenset(), frozenset({1}), frozenset({0, 2})])
        storage.lease_s = choice([4.0, 4.0, 600.0])
        storage.faults.lease_fails, storage.faults.collected = choice([0, 0, 1]) > 0, choice([0, 0, 1]) > 0

    # --- Whole lives

    def live_all(self) -> None:
        """Live one life after the other; the last is one without faults, in which all must come right."""
        for _ in range(self.random.choice([1, 1, 2, 3])):
            self.random_start_faults()
            if self.storage is not None:
                self.mode = self.random.choice([*MODES, "Primary"])
            self.boot(self.some_spec() if self.random.random() < 0.7 else None)
            self.live()
            self._between_lives()
        self.mend()
        self.mode = "Primary"
        last = with_role("a") if self.storage is None else self.stored_spec()
        self.boot(last, fresh=False, set_aside_pgdata=False)
        self.rest()
        self.invariants.healed()
        self.break_something()
        self.watch(self.random.choice([1.0, 5.0, 20.0]))
        self.mend()
        self.rest()
        self.invariants.came_right()
        self.signal()
        self.live_on(acts=0, killed_with=0.0)

    def _between_lives(self) -> None:
        if self.storage is not None and self.random.random() < 0.6:
            self.storage.rest()
            if self.random.random() < 0.5:
                self.storage.write()  # the last that the primary did: one of them may lag behind
        if self.random.random() < 0.3:
            self.machine.kill_all()
        elif self.random.random() < 0.3:
            self.clock.move_to(self.clock.now() + self.random.choice([0.1, 10.0]))

    def live(self) -> ExitReport | None:
        """Live one life of a drawn kind; None when it was killed."""
        killed_with = 0.0
        match self.random.randrange(8):
            case 0:
                self.machine.doomed_in = self.random.randrange(1, 60)
            case 1:
                self.failpoints.dies_at = self.random.choice(list(Failpoint))
            case 2 | 3:
                self.machine.doomed_at_rename = self.random.choice([1, 2, 2, 2, 3])
            case 4:
                killed_with = 0.03
            case _:
                pass
        return self.live_on(
            acts=self.random.randrange(8),
            killed_with=killed_with,
            killed_when_up_with=0.1 if self.random.random() < (0.2 if self.storage is None else 0.4) else 0.0,
            patient=self.random.random() < 0.3,
        )

    def live_on(
        self,
        *,
        acts: int,
        killed_with: float = 0.0,
        killed_when_up_with: float = 0.0,
        patient: bool = False,
    ) -> ExitReport | None:
        """Let people act now and then, and end the node if nobody has.

        A patient world mends everything first and looks whether the node comes right by itself.
        """
        pace = self.random.choice([0.03, 0.15, 0.5])
        if self.storage is not None and acts and self.random.random() < 0.6:
            if self.random.random() < 0.7:
                self.mend()
            self.rest()  # promotions, leases and moved pageservers are the affair of a node that is up
            self.watch(self.random.choice([0.0, 8.0]))
        for _ in range(MAX_STEPS):
            is_up = self.machine.postmaster is not None and self.machine.postmaster.alive
            chance = killed_with + (killed_when_up_with if is_up else 0.0)
            if self.machine.died or self.random.random() < chance:
                self.crash()
                return None
            if self.over:
                return self.finish()
            if acts and self.random.random() < pace:
                acts -= 1
                self.act()
            elif not acts and patient:
                patient = False
                self.mend()
                self.rest()
                self.invariants.came_right()
                continue
            elif not acts and self.stop_asked_s is None:
                self.end_somehow()
            if not self.runtime.step() and self.stop_asked_s is not None:
                break
        message = f"the node does not end: {self.supervisor.state.phase}, {self.supervisor.state.status}"
        raise AssertionError(message)

    def watch(self, seconds: float) -> None:
        """Let that much time pass, as long as the process lives."""
        end = self.active_s + seconds
        while not (self.over or self.machine.died) and self.active_s < end and self.runtime.step():
            pass

    def rest(self) -> None:
        """Let time pass until all has come right, and a little longer; at most PATIENCE_S, while the process lives."""
        end, was_right = self.active_s + PATIENCE_S, False
        for _ in range(MAX_STEPS):
            if self.invariants.is_right is not was_right:
                was_right = not was_right
                end = self.active_s + (STAYS_S if was_right else PATIENCE_S)
            if self.over or self.machine.died or self.active_s >= end or not self.runtime.step():
                return
        message = f"{MAX_STEPS} steps are not enough to come to rest"
        raise AssertionError(message)

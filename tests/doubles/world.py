"""A whole node under the simulated runtime: every actor is the real one, the world around them is made up.

A `World` is a function of its seed: who goes next, what fails, what people ask and when. After each step its
invariants are checked; on a failure `trace` tells what happened, and the same seed does it again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compute_node.actors.activity_monitor.actor import ActivityMonitor
from compute_node.actors.activity_monitor.reach import Reach
from compute_node.actors.configurator.actor import Configurator
from compute_node.actors.http_facade.actor import HttpFacade
from compute_node.actors.kit.actor import Actor, Pending
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.postgres_process.actor import PostgresProcess
from compute_node.actors.supervisor.actor import Supervisor
from compute_node.actors.supervisor.effects import CONFIGURATOR, HTTP, MONITOR, POSTGRES
from compute_node.actors.supervisor.lifecycle import TRANSITIONS
from compute_node.actors.supervisor.state import Phase, readiness
from compute_node.actors.supervisor.turn import Moment
from compute_node.messages.lifecycle import (
    AwaitExit,
    Boot,
    Configure,
    ExitReport,
    GetStatus,
    RereadConfiguration,
    ShutdownMode,
    SignalReceived,
    Status,
    StatusChanged,
    Terminate,
)
from compute_node.messages.metrics import UP
from compute_node.messages.postgres import PgdataKind, StopRung
from compute_node.messages.spec import ComputeSpec
from typing_extensions import override

from doubles.administration import FakeAdministration
from doubles.observer import FakeObserver
from doubles.postgres_server import FakeServer, Faults
from doubles.servers import FakeServers
from doubles.specs import a_spec, settings, with_role

LONGEST_LIFE_S = 3_600.0
"""Simulated seconds after which a node that was told to end must have ended."""


class _Listener(Actor[StatusChanged]):
    def __init__(self, heard: Callable[[StatusChanged], None]) -> None:
        self._heard = heard

    @override
    def receive(self, message: StatusChanged) -> None:
        self._heard(message)


@dataclass
class Waiting:
    """A request that somebody made, and its answer to be."""

    what: str
    pending: Pending[Any]


class World:
    """One node and everybody around it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.runtime = SimulatedRuntime(seed)
        self.random = self.runtime.random
        self.server = FakeServer(self.runtime.clock, kind=self.random.choice(list(PgdataKind)))
        self.administration = FakeAdministration()
        self.observer = FakeObserver(self.runtime.clock)
        self.servers = FakeServers()
        self.reread: ComputeSpec | None = None
        self.changes: list[StatusChanged] = []
        self.waiting: list[Waiting] = []
        self.ordered_to_end = False
        self.supervisor = Supervisor(
            settings(dev=self.random.random() < 0.5, config_path="/some/config.json"),
            {name: self.runtime.ref(name) for name in (POSTGRES, CONFIGURATOR, MONITOR, HTTP)},
            read_spec=lambda: self.reread,
            listeners=(self.runtime.ref("listener"),),
            began=Moment(self.runtime.clock.now(), self.runtime.clock.wall()),
        )
        self.ref = self.runtime.ref("supervisor")
        self._settings = settings()
        self._actors: dict[str, Actor[Any]] = {
            "listener": _Listener(self.changes.append),
            "supervisor": self.supervisor,
            POSTGRES: PostgresProcess(self._settings, self.ref, self.server),
            CONFIGURATOR: Configurator(self._settings, self.ref, self.administration),
            MONITOR: ActivityMonitor(self._settings, self.ref, self.observer),
            HTTP: HttpFacade(self.servers, self.ref),
        }
        self.runtime.after_step = self.check

    # --- A life

    def boot(self, spec: ComputeSpec | None) -> "World":
        """Start every actor and the node."""
        for name, actor in self._actors.items():
            self.runtime.spawn(name, actor)
        self.exit: Pending[ExitReport] = self.ref.request(AwaitExit())
        self.ref.tell(Boot(spec))
        return self

    def ask(self, what: str, request: Any) -> Waiting:
        """Ask the Supervisor something whose answer may take long."""
        waiting = Waiting(what, self.ref.request(request))
        self.waiting.append(waiting)
        return waiting

    def act(self) -> None:
        """Let somebody do something, drawn from the seed."""
        actions: list[tuple[int, Callable[[], object]]] = [
            (5, lambda: self.ask("configure", Configure(self.some_spec()))),
            (2, lambda: self.ask("reread", RereadConfiguration())),
            (3, lambda: self.ask("status", GetStatus())),
            (2, self.break_something),
            (2, self.mend),
            (1, self.terminate),
            (1, self.signal),
        ]
        weights = [weight for weight, _ in actions]
        _, action = self.random.choices(actions, weights)[0]
        action()

    def terminate(self) -> Waiting:
        self.ordered_to_end = True
        return self.ask("terminate", Terminate(self.random.choice(list(ShutdownMode))))

    def signal(self) -> None:
        self.ordered_to_end = True
        self.ref.tell(SignalReceived("SIGTERM"))

    def some_spec(self) -> ComputeSpec:
        return self.random.choice([a_spec(), with_role("a"), with_role("b"), with_role("a", mode="Replica")])

    def break_something(self) -> None:
        """Turn one switch of the world the wrong way."""
        faults, choice = self.server.faults, self.random.randrange(9)
        match choice:
            case 0:
                faults.conf_refused = "setting foo: no"
            case 1:
                faults.install_refused = "Postgres did not take it"
            case 2:
                self.administration.broken["a"] = "no"
            case 3:
                self.administration.held = True
            case 4:
                self.observer.reach = self.random.choice([Reach.FROZEN, Reach.UNREACHABLE, Reach.RECOVERING])
            case 5:
                faults.ignores = frozenset(self.random.sample([StopRung.FAST, StopRung.IMMEDIATE], 1))
            case 6:
                faults.install_takes_s = faults.stop_takes_s = self.random.choice([0.0, 1.0, 7.0])
            case 7 if self.server.alive:
                self.server.crash()
            case _:
                self.administration.operations_left = self.random.randrange(3)

    def mend(self) -> None:
        """Turn all switches back."""
        self.server.faults = Faults()
        self.administration.broken.clear()
        self.administration.held = False
        self.administration.operations_left = None
        self.observer.reach = Reach.UP

    def random_start_faults(self) -> None:
        """Decide before the boot how hard the start will be."""
        faults = self.server.faults
        if self.random.random() < 0.5:
            return
        faults.initdb_takes_s = self.random.choice([0.0, 2.0])
        faults.ready_after_s = self.random.choice([0.0, 3.0])
        faults.never_ready = self.random.random() < 0.1
        faults.recovering = self.random.random() < 0.2
        faults.conf_refused = "setting foo: no" if self.random.random() < 0.1 else None
        faults.initdb_fails = "no space" if self.random.random() < 0.1 else None
        faults.launch_fails = "no such file" if self.random.random() < 0.1 else None
        faults.folder_refused = self.random.choice([1, 75]) if self.random.random() < 0.1 else None
        faults.exits_after_s = 4.0 if self.random.random() < 0.1 else None
        self.servers.taken = "port 3080 is taken" if self.random.random() < 0.1 else None

    def live(self, *, acts: int, steps: int = 4_000) -> ExitReport:
        """Let people act now and then; end the node if nobody has; return how it ended."""
        self.reread = self.some_spec()
        left = acts
        for _ in range(steps):
            if self.exit.done:
                break
            if left and self.random.random() < 0.15:
                left -= 1
                self.act()
            elif not left and not self.ordered_to_end:
                self.signal()
            self.runtime.step()
        assert self.exit.done, (
            f"the node has not ended after {steps} steps in phase {self.supervisor.state.phase}"
        )
        self.finish()
        return self.exit.get(0)

    def finish(self) -> None:
        """Stop the actors as the main thread does, and check that nobody and nothing is left."""
        self.runtime.settle()
        unanswered = [waiting.what for waiting in self.waiting if not waiting.pending.done]
        assert not unanswered, f"nobody answered {unanswered}"
        for name in reversed(self._actors):
            self.runtime.cell(name).stop()
        self.runtime.settle()
        assert not self.runtime.abandoned, self.runtime.abandoned

    # --- What always holds

    def check(self) -> None:
        """Check the invariants; after every step."""
        state = self.supervisor.state
        ups = self.runtime.metrics.read(UP)
        assert list(ups.values()) == [1.0], ups
        assert {labels[1] for labels in ups} == {state.status.text}
        for change in self.changes:
            assert change.old is None or change.new in TRANSITIONS[change.old].values(), change
        statuses = [change.new for change in self.changes]
        assert len(statuses) == len([s for i, s in enumerate(statuses) if i == 0 or s is not statuses[i - 1]])
        if state.status is Status.FAILED and state.phase is not Phase.OVER:
            assert not self.server.alive, "failed means that Postgres is not, or no longer, there"
        if readiness(state).ready:
            assert state.status is Status.RUNNING
            assert state.postgres_up
        assert self.server.launched <= 1, "one postmaster in one life"
        if state.status is Status.TERMINATED:
            assert self.server.left == [], "terminated with something left"

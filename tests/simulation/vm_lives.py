"""Lives of a VmMonitorBridge under made-up time: agents, pressure and trouble in any order, alone and in a node."""

from collections.abc import Callable
from typing import Any, Final

from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.supervisor.effects import VM
from compute_node.actors.vm_monitor_bridge.actor import VmMessage, VmMonitorBridge
from compute_node.actors.vm_monitor_bridge.decisions import (
    DOWNSCALE_BUFFER,
    FRESH_S,
    MIB,
    REQUEST_PAUSE_S,
    threshold,
    usable,
)
from compute_node.actors.vm_monitor_bridge.protocol import (
    DownscaleRequest,
    DownscaleResult,
    Failure,
    FromAgent,
    HealthAnswer,
    HealthCheck,
    NotUnderstood,
    Resources,
    ToAgent,
    Unreadable,
    UpscaleConfirmation,
    UpscaleNotification,
    UpscaleRequest,
    _Granted,
    _Target,
)
from compute_node.messages.base import Message
from compute_node.messages.lifecycle import ActorFailed, Status
from compute_node.messages.settings import NodeSettings
from compute_node.messages.spec import ComputeSpec
from compute_node.messages.vm import (
    Autoscaling,
    GetAutoscaling,
    MonitorPhase,
    StartVmMonitor,
    StopVmMonitor,
)
from msgspec.structs import replace
from typing_extensions import override

from doubles.vm import GIB, FakeAgents, FakeFileCache, FakeMachine, FakeMemory, Peer
from doubles.world import Waiting, World
from simulation.lives import FoundError, silence

DEEDS: Final = 150
"""In one life of a bridge."""
FILE: Final = "test_vm_monitor_bridge.py"


def grown(number: int, size: int) -> FromAgent:
    return UpscaleNotification(id=number, content=_Granted(Resources(1.0, size)))


def shrink(number: int, size: int) -> FromAgent:
    return DownscaleRequest(id=number, content=_Target(Resources(1.0, size)))


class Listener(Actor[Message]):
    """Stands for the Supervisor."""

    def __init__(self) -> None:
        self.heard: list[Message] = []

    @override
    def receive(self, message: Message) -> None:
        self.heard.append(message)


class Stage:
    """A bridge and the world around it."""

    def __init__(self, seed: int = 0, *, watches_cgroup: bool = True) -> None:
        self.runtime = SimulatedRuntime(seed)
        self.clock = self.runtime.clock
        self.listener = Listener()
        supervisor: Ref[Any] = self.runtime.spawn("supervisor", self.listener)
        self.agents = FakeAgents()
        self.memory = FakeMemory(self.clock)
        self.cache = FakeFileCache(self.clock, self.runtime.later)
        self.machine = FakeMachine()
        self.actor = VmMonitorBridge(
            supervisor,
            watches_cgroup=watches_cgroup,
            agents=self.agents,
            memory=self.memory,
            file_cache=self.cache,
            machine=self.machine,
        )
        self.bridge: Ref[VmMessage] = self.runtime.spawn("vm_monitor_bridge", self.actor)

    def start(self, *, resizes: bool = True) -> "Stage":
        self.bridge.tell(StartVmMonitor(4711, resizes))
        self.runtime.settle()
        return self

    def stop(self) -> None:
        self.bridge.tell(StopVmMonitor())
        self.runtime.settle()

    def connect(self, **versions: int) -> Peer:
        peer = self.agents.connect(**versions)
        self.runtime.settle()
        return peer

    def say(self, peer: Peer, said: FromAgent | Unreadable) -> list[ToAgent]:
        """Send a message; returns what came back at once."""
        before = len(peer.received)
        self.agents.say(peer, said)
        self.runtime.settle()
        return peer.received[before:]

    def use(self, used: int, *, count: int = 5) -> None:
        self.memory.use(used, count=count)
        self.runtime.settle()

    def shown(self) -> Autoscaling:
        return self.runtime.ask(self.bridge, GetAutoscaling())

    @property
    def decisions(self) -> list[str]:
        return [decided.decision for decided in self.shown().decisions]


class Chaos:
    """Does one thing after another, drawn from a seed, and checks the promises at each step."""

    def __init__(self, seed: int) -> None:
        self.stage = Stage(seed)
        self.random = self.stage.runtime.random
        self.sizes = [0, 100 * MIB, 512 * MIB, GIB, 2 * GIB, 4 * GIB, 16 * GIB]
        self.silent: list[Peer] = []
        """Those that have connected and offered nothing yet."""
        self.asked: dict[int, dict[int, FromAgent | Unreadable]] = {}
        """What each connection has asked and was not answered yet, by its number."""
        self.asked_for_more_s: float | None = None
        self.seen: dict[int, int] = {}
        """How much of what each peer got was looked at."""
        self.served: int | None = None
        self.stage.runtime.after_step = self.check

    # --- Promises

    def check(self) -> None:
        stage = self.stage
        state = stage.actor.state
        died = [message for message in stage.listener.heard if isinstance(message, ActorFailed)]
        assert not died, died[0].error
        assert len(stage.runtime._jobs) <= VmMonitorBridge.max_jobs
        for peer in stage.agents.peers:
            for message in peer.received[self.seen.get(peer.number, 0) :]:
                self.received(peer, message)
            self.seen[peer.number] = len(peer.received)
        served = None if state.agent is None else state.agent.connection
        waiting = {task.connection for task in state.queue if task.connection}
        assert waiting <= {served}, "work for an agent that is gone is still to be done"
        before, self.served = self.served, served
        assert before is None or served is None or before <= served, (
            "an older connection has replaced a newer one"
        )
        if not any(stage.runtime._mailboxes.values()):
            open_ones = [
                peer.number for peer in stage.agents.peers if peer.is_open() and peer not in self.silent
            ]
            assert len(open_ones) <= 1, "two agents at once"
            assert served is None or served in open_ones

    def received(self, peer: Peer, message: ToAgent) -> None:
        now = self.stage.clock.now()
        match message:
            case UpscaleRequest():
                last = self.asked_for_more_s
                assert last is None or now - last >= REQUEST_PAUSE_S, "an upscale storm"
                self.asked_for_more_s = now
            case DownscaleResult(ok=True, id=number):
                self.approved(self.answered(peer, number))
            case (
                DownscaleResult(id=number)
                | UpscaleConfirmation(number)
                | Failure(id=number)
                | HealthAnswer(number)
                | NotUnderstood(id=number)
            ):
                self.answered(peer, number)

    def approved(self, request: FromAgent | Unreadable) -> None:
        assert isinstance(request, DownscaleRequest)
        memory = self.stage.actor.state.memory
        assert self.stage.clock.now() - memory.at_s <= FRESH_S, "a downscale is approved against old data"
        assert memory.count > 1, "a downscale is approved after a single sample"
        after = threshold(usable(request.content.target.mem))
        assert after >= memory.average + DOWNSCALE_BUFFER, "a downscale is approved against fresh data"

    def answered(self, peer: Peer, number: int) -> FromAgent | Unreadable:
        assert number in self.asked[peer.number], "it was answered twice, or never asked"
        return self.asked[peer.number].pop(number)

    # --- Deeds

    def act(self) -> None:
        deeds: list[tuple[int, Callable[[], object]]] = [
            (2, self.start),
            (1, self.stage.stop),
            (3, self.connect),
            (1, self.offer_late),
            (12, self.ask),
            (12, self.sample),
            (2, self.trouble),
            (2, self.leave),
            (6, self.pass_time),
            (20, self.stage.runtime.step),
        ]
        _, deed = self.random.choices(deeds, [weight for weight, _ in deeds])[0]
        deed()

    def start(self) -> None:
        self.stage.bridge.tell(StartVmMonitor(self.random.randrange(100), self.random.random() < 0.8))

    def connect(self) -> None:
        if self.stage.agents.heard is None:
            return
        peer = self.stage.agents.arrive()
        self.asked[peer.number] = {}
        self.silent.append(peer)
        if self.random.random() < 0.8:
            self.offer(peer)

    def offer(self, peer: Peer) -> None:
        self.silent.remove(peer)
        highest = self.random.choice([1, 1, 1, 3])
        self.stage.agents.offer(peer, lowest=self.random.choice([1, highest]), highest=highest)

    def offer_late(self) -> None:
        waiting = [peer for peer in self.silent if peer.is_open()]
        if waiting and self.stage.agents.heard is not None:
            self.offer(self.random.choice(waiting))

    def ask(self) -> None:
        speaking = [peer for peer in self.stage.agents.peers if peer not in self.silent]
        if not speaking or self.stage.agents.heard is None:
            return
        peer = self.random.choice(speaking[-2:])
        number = 2 + 2 * self.random.randrange(10**6)
        if not peer.is_open() or number in self.asked[peer.number]:
            return
        said: FromAgent | Unreadable = self.random.choice(
            [
                HealthCheck(id=number),
                grown(number, self.random.choice(self.sizes)),
                shrink(number, self.random.choice(self.sizes)),
                shrink(number, self.random.choice(self.sizes)),
                Unreadable("odd", number),
            ]
        )
        self.asked[peer.number][number] = said
        self.stage.agents.say(peer, said)

    def sample(self) -> None:
        self.stage.memory.use(self.random.choice(self.sizes), count=self.random.randrange(6))

    def trouble(self) -> None:
        stage, choice = self.stage, self.random.choice
        ways: list[tuple[object, str, object]] = [
            (stage.cache, "broken", choice([None, None, "no"])),
            (stage.cache, "takes_s", choice([0.0, 0.5, 3.0, 10.0])),
            (stage.cache, "size", choice([None, 128 * MIB])),
            (stage.memory, "unreadable", choice([True, False, False])),
            (stage.memory, "machine", choice(self.sizes[1:])),
            (stage.memory, "limit", choice([None, GIB])),
            (stage.agents, "taken", choice([True, False, False])),
            (stage.agents, "broken", choice([None, None, "out of descriptors"])),
        ]
        where, name, value = choice(ways)
        setattr(where, name, value)

    def leave(self) -> None:
        if self.stage.agents.peers:
            self.stage.agents.leave(self.random.choice(self.stage.agents.peers[-3:]))

    def pass_time(self) -> None:
        self.stage.runtime.advance(self.random.choice([0.05, 0.3, 1.0, 6.0]))

    # --- The end

    def run(self) -> None:
        stage = self.stage.start()
        for _ in range(DEEDS):
            self.act()
        stage.cache.broken, stage.cache.takes_s = None, 0.0
        stage.memory.unreadable, stage.agents.taken, stage.agents.broken = False, False, None
        stage.runtime.advance(120)
        for peer in stage.agents.peers:
            assert not peer.is_open() or not self.asked[peer.number], "a request was never answered"
        stage.start()
        stage.runtime.advance(120)
        peer = stage.connect()
        self.asked[peer.number] = {2: HealthCheck(id=2)}
        assert stage.say(peer, HealthCheck(id=2))[:1] == [HealthAnswer(2)]
        assert stage.shown().phase is MonitorPhase.SERVING
        stage.stop()
        stage.runtime.advance(60)
        assert stage.runtime._jobs == []
        assert stage.runtime.stop() == ()


def check_bridge(seed: int) -> None:
    """Live a life of a bridge. Raises FoundError."""
    chaos = Chaos(seed)
    try:
        with silence():
            chaos.run()
    except AssertionError as error:
        raise FoundError(seed, error, chaos.stage.runtime.trace, FILE) from error


# --- In a whole node -------------------------------------------------------------------------------------


SCALED: dict[str, Any] = {"autoscaling": True, "resize_swap": True}


class ScaledWorld(World):
    """A node whose machine is managed, and an agent that comes now and then."""

    @override
    def _settings(self, changes: dict[str, Any]) -> NodeSettings:
        return super()._settings(SCALED | changes)

    @override
    def boot(self, spec: ComputeSpec | None, **changes: Any) -> "ScaledWorld":
        self._was_launched = False
        super().boot(None if spec is None else replace(spec, swap_size_bytes=GIB), **changes)
        self.vm.held = self.drawn and not changes and self.random.random() < 0.2
        return self

    @override
    def configure(self, spec: ComputeSpec) -> Waiting:
        return super().configure(replace(spec, swap_size_bytes=GIB))

    @override
    def some_spec(self) -> ComputeSpec:
        return replace(super().some_spec(), swap_size_bytes=GIB)

    @override
    def act(self) -> None:
        self.vm.held = self.random.random() < 0.1
        self.vm.broken = "failed to resize swap: no" if self.random.random() < 0.1 else None
        if self.agents.heard is None:
            super().act()
            return
        peer = self.agents.connect()
        self.agents.say(peer, HealthCheck(id=2))
        self.agents.say(peer, shrink(4, 2 * GIB))
        self.vm_memory.use(self.random.choice([MIB, 4 * GIB]))
        super().act()

    @override
    def mend(self) -> None:
        super().mend()
        if self.lives:
            self.vm.held, self.vm.broken = False, None

    @override
    def _after_step(self) -> None:
        super()._after_step()
        if self.machine.died:
            return
        if self.machine.postmaster is not None and not self._was_launched:
            self._was_launched = True
            assert self.vm.swap, "Postgres was started before its machine was ready"
        bridge = self.actors[VM]
        assert isinstance(bridge, VmMonitorBridge)
        if self.runtime._mailboxes[VM] or self.runtime.cell(VM).dead is not None:
            return
        match self.supervisor.state.status:
            case Status.RUNNING:
                assert bridge.state.on, "nobody watches the memory of a running Postgres"
            case Status.FAILED | Status.TERMINATED:
                assert not bridge.state.on, "the memory is watched without Postgres"


def check_scaled(seed: int) -> None:
    """Live all the lives of a node whose machine is managed. Raises FoundError."""
    with silence(), ScaledWorld(seed, drawn=True) as world:
        try:
            world.live_all()
        except AssertionError as error:
            raise FoundError(seed, error, world.runtime.trace, FILE) from error

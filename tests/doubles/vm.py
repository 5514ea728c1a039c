"""What is around the VmMonitorBridge in the simulated runtime: agents, memory, a file cache, a machine."""

from collections.abc import Callable
from dataclasses import dataclass, field

from compute_node.actors.kit.clock import Clock
from compute_node.actors.kit.jobs import Blocked, Cancellation
from compute_node.actors.vm_monitor_bridge.decisions import MIB, Pressure, Summary
from compute_node.actors.vm_monitor_bridge.port import Agents, FileCache, Heard, Machine, Memory, VmError
from compute_node.actors.vm_monitor_bridge.private import (
    AgentGone,
    AgentOffered,
    AgentSaid,
    CgroupFound,
    Listening,
    MemoryUsed,
)
from compute_node.actors.vm_monitor_bridge.protocol import FromAgent, Offer, ToAgent, Unreadable
from compute_node.messages.vm import CgroupSeen
from typing_extensions import override

GIB = 1024 * MIB
GROUP = CgroupSeen("/sys/fs/cgroup/neon-postgres", 2, None)


@dataclass
class Peer:
    """One connection, as the agent sees it."""

    number: int
    received: list[ToAgent] = field(default_factory=list)
    closed: tuple[int, str] | None = None
    """How we said goodbye."""
    left: bool = False

    def is_open(self) -> bool:
        """Whether neither side has ended it."""
        return self.closed is None and not self.left


class FakeAgents(Agents):
    """Listens at once; what peers do is said by the test."""

    def __init__(self) -> None:
        self.taken = False
        """Nobody can listen there."""
        self.broken: str | None = None
        """Ends the server that listens."""
        self.peers: list[Peer] = []
        self.heard: Heard | None = None
        self.servings = 0

    @override
    def serve(self, heard: Heard, cancellation: Cancellation) -> None:
        if self.heard is None:
            if self.taken:
                msg = "the address is taken"
                raise VmError(msg)
            self.heard = heard
            self.servings += 1
            heard(Listening("0.0.0.0:10301"))
        if self.broken is not None:
            error, self.broken = self.broken, None
            self._end()
            raise VmError(error)
        cancellation.on_request(self._end)
        raise Blocked

    def _end(self) -> None:
        heard, self.heard = self.heard, None
        for peer in self.peers:
            if not peer.left and heard is not None:
                self._leave(peer, heard, "the server has ended")

    @override
    def send(self, connection: int, message: ToAgent) -> None:
        peer = self.peers[connection - 1]
        if not peer.left and peer.closed is None:
            peer.received.append(message)

    @override
    def close(self, connection: int, code: int, reason: str) -> None:
        peer = self.peers[connection - 1]
        if peer.closed is None:
            peer.closed = (code, reason)

    # --- What peers do

    def connect(self, *, lowest: int = 1, highest: int = 1) -> Peer:
        peer = self.arrive()
        self.offer(peer, lowest=lowest, highest=highest)
        return peer

    def arrive(self) -> Peer:
        """Connect, and say nothing yet."""
        peer = Peer(len(self.peers) + 1)
        self.peers.append(peer)
        return peer

    def offer(self, peer: Peer, *, lowest: int = 1, highest: int = 1) -> None:
        assert self.heard is not None, "nobody listens"
        self.heard(AgentOffered(peer.number, f"10.0.0.{peer.number % 250}:40000", Offer(lowest, highest)))

    def say(self, peer: Peer, said: FromAgent | Unreadable) -> None:
        assert self.heard is not None, "nobody listens"
        if not peer.left:
            self.heard(AgentSaid(peer.number, said))

    def leave(self, peer: Peer) -> None:
        if self.heard is not None and not peer.left:
            self._leave(peer, self.heard, "it left")

    @staticmethod
    def _leave(peer: Peer, heard: Heard, why: str) -> None:
        peer.left = True
        heard(AgentGone(peer.number, why))


class FakeMemory(Memory):
    """Knows what the test says is used; samples come when the test says so."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.heard: Heard | None = None
        self.machine = 4 * GIB
        self.limit: int | None = None
        """Of the cgroup."""
        self.unreadable = False
        self.pressure: Pressure | None = None

    @override
    def watch(self, postmaster: int, heard: Heard, cancellation: Cancellation) -> None:
        if self.unreadable:
            self.heard = None
            msg = "memory.stat cannot be read"
            raise VmError(msg)
        if self.heard is None:
            self.heard = heard
            heard(CgroupFound(GROUP))
        cancellation.on_request(self._end)
        raise Blocked

    def _end(self) -> None:
        self.heard = None

    @override
    def expect(self, pressure: Pressure | None) -> None:
        self.pressure = pressure

    @property
    def expected(self) -> int | None:
        return None if self.pressure is None else self.pressure.threshold

    @override
    def total(self, postmaster: int, granted: int | None = None) -> int:
        total = self.machine if granted is None else granted
        return total if self.limit is None else min(total, self.limit)

    def use(self, used: int, *, count: int = 5) -> None:
        """Tell of an average, as of now."""
        if self.heard is not None:
            self.heard(MemoryUsed(Summary(self._clock.now(), used, count)))


class FakeFileCache(FileCache):
    """Takes `takes_s`; `size` is None where the extension is not there."""

    def __init__(self, clock: Clock, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._clock = clock
        self._later = later
        self.size: int | None = 128 * MIB
        self.largest = 100 * GIB
        self.takes_s = 0.0
        self.broken: str | None = None
        self.resized: list[int] = []
        self._began_s: float | None = None

    @override
    def resize(self, size: int, cancellation: Cancellation) -> int | None:
        if self._began_s is None:
            self._began_s = self._clock.now()
            self._later(self.takes_s, lambda: None)
        if self._clock.now() < self._began_s + self.takes_s:
            cancellation.on_request(self._forget)
            raise Blocked
        self._began_s = None
        if self.broken is not None:
            raise VmError(self.broken)
        if self.size is not None:
            self.size = min(size, self.largest)
            self.resized.append(self.size)
        return self.size

    def _forget(self) -> None:
        self._began_s = None


class FakeMachine(Machine):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.swap: list[int] = []
        self.quota: list[int] = []
        self.held = False
        self.broken: str | None = None

    @override
    def resize_swap(self, size: int, cancellation: Cancellation) -> None:
        self._do(cancellation)
        self.swap.append(size)

    @override
    def set_disk_quota(self, size: int, cancellation: Cancellation) -> None:
        self._do(cancellation)
        self.quota.append(size)

    def _do(self, cancellation: Cancellation) -> None:
        cancellation.check()
        if self.held:
            raise Blocked
        if self.broken is not None:
            raise VmError(self.broken)

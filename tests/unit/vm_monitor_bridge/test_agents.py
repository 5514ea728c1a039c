"""The bridge and its agents over real websockets, agents in good order and bad peers; memory and cache are made up."""

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.actors.vm_monitor_bridge import websocket
from compute_node.actors.vm_monitor_bridge.actor import VmMonitorBridge
from compute_node.actors.vm_monitor_bridge.agents import WebsocketAgents
from compute_node.actors.vm_monitor_bridge.decisions import FILE_CACHE, MIB, Summary, usable
from compute_node.actors.vm_monitor_bridge.port import FileCache, Heard, Memory
from compute_node.actors.vm_monitor_bridge.private import CgroupFound, MemoryUsed
from compute_node.messages.base import Message
from compute_node.messages.metrics import AUTOSCALING_MESSAGES
from compute_node.messages.settings import Address
from compute_node.messages.vm import (
    Autoscaling,
    CgroupSeen,
    GetAutoscaling,
    MonitorPhase,
    StartVmMonitor,
    StopVmMonitor,
)
from typing_extensions import override

from doubles.autoscaler import Agent, CallError, RawPeer, descriptors
from doubles.vm import GIB, FakeMachine
from fix_postgres import wait_until

WAIT_S = 30.0


class Silent(Actor[Message]):
    @override
    def receive(self, message: Message) -> None:
        pass


class StillMemory(Memory):
    """Tells of what the test says is used."""

    def __init__(self) -> None:
        self.heard: Heard | None = None
        self.watching = threading.Event()

    @override
    def watch(self, postmaster: int, heard: Heard, cancellation: Cancellation) -> None:
        heard(CgroupFound(CgroupSeen("/sys/fs/cgroup/x", 2, None)))
        self.heard = heard
        self.watching.set()
        cancellation.wait(3600)

    @override
    def expect(self, threshold: int | None) -> None:
        pass

    @override
    def total(self, postmaster: int) -> int:
        return 4 * GIB


class InstantCache(FileCache):
    """Has whatever size is wished."""

    def __init__(self) -> None:
        self.size = 0
        self.hold = threading.Event()
        self.hold.set()

    @override
    def resize(self, size: int, cancellation: Cancellation) -> int | None:
        cancellation.on_request(self.hold.set)
        self.hold.wait(WAIT_S)
        self.size = size
        return size


class Bridge:
    """A bridge on threads, with a real server."""

    def __init__(self, address: Address | None = None) -> None:
        self.runtime = ThreadedRuntime(
            watcher="supervisor", abandoned=lambda failure: pytest.fail(str(failure))
        )
        supervisor: Ref[Any] = self.runtime.spawn("supervisor", Silent())
        self.memory = StillMemory()
        self.cache = InstantCache()
        self.ref: Ref[Any] = self.runtime.spawn(
            "vm_monitor_bridge",
            VmMonitorBridge(
                supervisor,
                watches_cgroup=True,
                agents=WebsocketAgents(address or Address("127.0.0.1", 0)),
                memory=self.memory,
                file_cache=self.cache,
                machine=FakeMachine(),
            ),
        )

    def start(self) -> "Bridge":
        self.ref.tell(StartVmMonitor(1, resizes_file_cache=True))
        assert self.memory.watching.wait(WAIT_S)
        wait_until(lambda: self.shown.address or self.shown.error, "it listens", WAIT_S)
        return self

    def stop(self) -> None:
        self.ref.tell(StopVmMonitor())
        wait_until(lambda: self.shown.phase is MonitorPhase.OFF, "it is off", WAIT_S)

    @property
    def shown(self) -> Autoscaling:
        return self.ref.ask(GetAutoscaling(), WAIT_S)

    @property
    def port(self) -> int:
        address = self.shown.address
        assert address is not None, self.shown.error
        return int(address.rpartition(":")[2])

    def use(self, used: int) -> None:
        """Tell of an average, as of now, and wait until the bridge knows it."""
        assert self.memory.heard is not None
        self.memory.heard(MemoryUsed(Summary(self.runtime.clock.now(), used, 5)))
        wait_until(lambda: self.seen() == used, "the average is known", WAIT_S)

    def seen(self) -> int | None:
        memory = self.shown.memory
        return None if memory is None else memory.bytes

    def await_phase(self, phase: MonitorPhase) -> None:
        wait_until(lambda: self.shown.phase is phase, f"phase {phase.value}", WAIT_S)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge().start()
    yield made
    assert made.runtime.stop(WAIT_S) == ()


def test_an_agent_negotiates_scales_up_and_down_and_is_asked_for_more(bridge: Bridge) -> None:
    with Agent(bridge.port) as agent:
        assert agent.offered == {"version": 1}
        bridge.await_phase(MonitorPhase.SERVING)
        assert bridge.cache.size == FILE_CACHE.size(4 * GIB)
        agent.check_health()
        agent.upscale(8 * GIB)
        assert bridge.cache.size == FILE_CACHE.size(usable(8 * GIB))
        bridge.use(GIB)
        assert agent.downscale(GIB)[0] is False
        assert agent.downscale(4 * GIB)[0] is True
        assert bridge.cache.size == FILE_CACHE.size(usable(4 * GIB))
        bridge.use(4 * GIB)
        assert agent.await_wish() == 3
        agent.check_health()
        shown = bridge.shown
        assert shown.agent is not None
        assert shown.agent.address.startswith("127.0.0.1:")
        assert shown.agent.messages == 5
        kinds = [(message.direction, message.type, message.id) for message in shown.messages]
        assert kinds[:3] == [("out", "Chosen", None), ("in", "HealthCheck", 2), ("out", "HealthCheck", 2)]
    bridge.await_phase(MonitorPhase.WAITING)


def test_an_agent_that_offers_only_newer_versions_is_told_why_and_the_bridge_lives_on(bridge: Bridge) -> None:
    with Agent(bridge.port, lowest=2, highest=9) as newer:
        assert newer.offered == {
            "error": "Received protocol version range 2 to 9 which does not overlap with v1.0"
        }
        assert newer.await_close() == 1002
    with Agent(bridge.port) as agent:
        agent.check_health()


def test_one_bad_message_is_answered_with_its_number_and_the_connection_stays(bridge: Bridge) -> None:
    with Agent(bridge.port) as agent:
        agent.say('{"content":{},"type":"Unheard","id":70}')
        with pytest.raises(CallError, match="Unheard"):
            agent.await_answer(70)
        agent.say("garbage")
        with pytest.raises(CallError, match="malformed"):
            agent.await_answer(0)
        agent.say(b"\x00\x01 binary frames are ignored")
        agent.check_health()


def test_health_checks_are_answered_while_a_sizing_hangs(bridge: Bridge) -> None:
    with Agent(bridge.port) as agent:
        bridge.await_phase(MonitorPhase.SERVING)
        bridge.cache.hold.clear()
        agent.say('{"content":{"granted":{"cpu":1,"mem":8589934592}},"type":"UpscaleNotification","id":500}')
        agent.check_health()
        agent.check_health()
        bridge.cache.hold.set()
        assert agent.await_answer(500)["type"] == "UpscaleConfirmation"


def test_the_newest_agent_takes_over_and_a_stranger_takes_nobodys_place(bridge: Bridge) -> None:
    port = bridge.port
    with Agent(port) as first:
        with RawPeer(port) as stranger:
            stranger.upgrade()
            stranger.say(b"no version here")
            assert stranger.is_closed_by_the_other_side()
        with RawPeer(port) as lost:
            assert lost.upgrade("/elsewhere").startswith(b"HTTP/1.1 404")
        first.check_health()
        with Agent(port) as second:
            assert first.await_close() == 1001
            second.check_health()
    assert bridge.shown.connections == 2


@pytest.mark.parametrize(
    "offer",
    [b"", b"garbage", b"[]", b'{"min":2,"max":1}', b'{"min":1,"max":256}', b'{"version":1}', b"[" * 30_000],
    ids=lambda offer: offer[:10].decode() or "nothing",
)
def test_a_malformed_offer_ends_the_connection_without_an_answer(offer: bytes, bridge: Bridge) -> None:
    with RawPeer(bridge.port) as peer:
        assert b" 101 " in peer.upgrade()
        peer.say(offer)
        assert peer.is_closed_by_the_other_side()
    assert bridge.shown.connections == 0


def test_who_says_nothing_is_dropped_in_time(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "HANDSHAKE_S", 0.2)
    bridge.stop()
    port = bridge.start().port
    with RawPeer(port) as mute, RawPeer(port) as shy, RawPeer(port) as binary:
        shy.upgrade()
        binary.upgrade()
        binary.say(b'{"min":1,"max":1}', opcode=2)
        for peer in (mute, shy, binary):
            assert peer.is_closed_by_the_other_side()
    assert bridge.shown.connections == 0


def test_a_huge_message_ends_the_connection_before_it_is_read(bridge: Bridge) -> None:
    with Agent(bridge.port) as agent:
        agent.check_health()
        agent.say(json.dumps({"content": {"error": "x" * 200_000}, "type": "InternalError", "id": 3}))
        assert agent.await_close() == 1009
    bridge.await_phase(MonitorPhase.WAITING)


def test_a_half_open_connection_is_found_by_a_ping(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_S", 0.2)
    bridge.stop()
    with RawPeer(bridge.start().port) as half_open:
        half_open.offer()
        bridge.await_phase(MonitorPhase.SERVING)
        assert half_open.is_closed_by_the_other_side()
        bridge.await_phase(MonitorPhase.WAITING)


@pytest.mark.blocking_handlers  # so many connections and messages are busy with the one interpreter
def test_a_flood_ends_the_connection_before_it_is_heard(bridge: Bridge) -> None:
    with RawPeer(bridge.port) as flood:
        flood.offer()
        bridge.await_phase(MonitorPhase.SERVING)
        flood.say_all([f'{{"type":"HealthCheck","id":{number}}}'.encode() for number in range(2, 4_000, 2)])
        assert flood.is_closed_by_the_other_side()
    bridge.await_phase(MonitorPhase.WAITING)
    heard = bridge.runtime.metrics.read(AUTOSCALING_MESSAGES)[("in", "HealthCheck")]
    assert heard < 1_000, "two thousand were sent"


@pytest.mark.blocking_handlers  # as above
def test_a_storm_of_reconnects_leaves_one_connection_no_thread_and_no_descriptor(bridge: Bridge) -> None:
    port = bridge.port
    with RawPeer(port) as warm:
        warm.offer()
        bridge.await_phase(MonitorPhase.SERVING)
    bridge.await_phase(MonitorPhase.WAITING)
    threads, opened = threading.active_count(), descriptors()

    with contextlib.ExitStack() as stack:
        peers = []
        for number in range(200):
            peer = stack.enter_context(RawPeer(port))
            peer.offer()
            assert threading.active_count() == threads, "a connection made a thread"
            if number % 3 == 0:
                peer.reset()
            else:
                peers.append(peer)
        last = stack.enter_context(Agent(port))
        last.check_health()
        for peer in peers:
            assert peer.is_closed_by_the_other_side()
            peer.socket.close()
        wait_until(lambda: descriptors() <= opened + 6, "what the storm had opened is closed", WAIT_S)
        assert bridge.shown.phase is MonitorPhase.SERVING
        last.check_health()
    bridge.await_phase(MonitorPhase.WAITING)
    wait_until(lambda: descriptors() <= opened, "no descriptor is left", WAIT_S)
    assert threading.active_count() == threads


@pytest.mark.blocking_handlers  # as above
def test_strangers_beyond_the_limit_push_out_one_another_and_never_the_agent(bridge: Bridge) -> None:
    port = bridge.port
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(Agent(port))
        strangers = [stack.enter_context(RawPeer(port)) for _ in range(3 * websocket.MAX_CONNECTIONS)]
        for stranger in strangers[: 2 * websocket.MAX_CONNECTIONS]:
            assert stranger.is_closed_by_the_other_side()
        agent.check_health()
        assert b" 101 " in strangers[-1].upgrade()
    assert bridge.shown.connections == 1


def test_the_stop_says_goodbye_and_closes_the_port_and_waits_for_nobody(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "HANDSHAKE_S", 600.0)  # what else would end those who do not answer
    monkeypatch.setattr(websocket, "PING_S", 600.0)
    bridge.stop()
    port = bridge.start().port
    with Agent(port) as agent, RawPeer(port) as mute, RawPeer(port) as half_open:
        half_open.upgrade()
        agent.check_health()
        bridge.stop()
        assert agent.await_close() == 1001
        assert mute.is_closed_by_the_other_side()
        assert half_open.is_closed_by_the_other_side()
    with pytest.raises(OSError, match="refused"):
        RawPeer(port)


def test_an_address_that_is_taken_is_told_with_what_to_do() -> None:
    taken = Bridge().start()
    second = Bridge(Address("127.0.0.1", taken.port)).start()

    assert second.shown.phase is MonitorPhase.UNREACHABLE
    error = second.shown.error
    assert error is not None
    assert f"127.0.0.1:{taken.port} cannot be listened at: Address already in use" in error
    assert "--vm-monitor-addr" in error


def test_garbage_of_every_kind_is_survived(bridge: Bridge) -> None:
    port = bridge.port
    for noise in (b"", b"\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", b"A" * 100_000):
        with RawPeer(port) as peer:
            try:
                peer.socket.sendall(noise)
                peer.socket.shutdown(1)
            except OSError:
                continue
            assert peer.is_closed_by_the_other_side()
    with RawPeer(port) as peer:
        peer.offer()
        for frame in ((b"\xff\xfe", 1), (b"x", 3), (b"", 9)):
            try:
                peer.say(frame[0], opcode=frame[1])
            except OSError:
                break
        assert peer.is_closed_by_the_other_side()
    with Agent(port) as agent:
        agent.check_health()
    assert bridge.cache.size % MIB == 0

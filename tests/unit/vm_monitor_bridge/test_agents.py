"""The bridge and its agents over real websockets, agents in good order and bad peers; memory and cache are made up."""

import contextlib
import functools
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from errno import ECONNABORTED, EMFILE
from pathlib import Path
from typing import Any

import pytest
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.actors.vm_monitor_bridge import protocol, websocket
from compute_node.actors.vm_monitor_bridge.actor import VmMonitorBridge
from compute_node.actors.vm_monitor_bridge.agents import WebsocketAgents
from compute_node.actors.vm_monitor_bridge.decisions import FILE_CACHE, MIB, Pressure, Summary, usable
from compute_node.actors.vm_monitor_bridge.port import FileCache, Heard, Memory
from compute_node.actors.vm_monitor_bridge.private import (
    AgentGone,
    AgentOffered,
    CgroupFound,
    Listening,
    MemoryUsed,
)
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

from doubles.autoscaler import Agent, CallError, Habits, LivingAgent, RawPeer, descriptors
from doubles.vm import GIB, FakeMachine
from fix_postgres import Ports, wait_until

WAIT_S = 30.0
THREADS = 4
"""Of a connection: one reads, one writes, and the library's two."""
MOST_THREADS = 2 * websocket.MAX_CONNECTIONS * THREADS
"""At most half of them; the others may be on their last step."""


def connection_threads() -> list[str]:
    """Name the threads of connections, and those that the library has here for an `Agent`."""
    marks = ("agent-", "(recv_events)", "(keepalive)")
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if any(mark in name for mark in marks)]


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
    def expect(self, pressure: Pressure | None) -> None:
        pass

    @override
    def total(self, postmaster: int, granted: int | None = None) -> int:
        return 4 * GIB if granted is None else granted


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


IP = shutil.which("ip") or ""
VANISHING = """
import socket, sys
from doubles.autoscaler import Agent
with Agent(int(sys.argv[2]), host=sys.argv[1]) as agent:
    agent.check_health()
    print("served", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def cable(pid: int) -> Iterator[str]:
    """Connect the network namespace of a process with this one, until it is pulled; yields our address."""
    name, place = f"cable{os.getpid()}", f"169.254.{1 + os.getpid() % 253}"
    inside = ("nsenter", f"--net=/proc/{pid}/ns/net")
    plug = [IP, "link", "add", name, "type", "veth", "peer", "name", "cable", "netns", str(pid)]
    made = subprocess.run(plug, capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no network can be made here: {made.stderr.decode().strip()}")
    try:
        for where, link, address in (((), name, f"{place}.1/30"), (inside, "cable", f"{place}.2/30")):
            subprocess.run([*where, IP, "address", "add", address, "dev", link], check=True)
            subprocess.run([*where, IP, "link", "set", link, "up"], check=True)
        yield f"{place}.1"
    finally:
        subprocess.run([IP, "link", "delete", name], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.skipif(os.geteuid() != 0 or IP == "", reason="needs root, and `ip`, for a network")
def test_a_peer_whose_cable_is_pulled_is_found_by_a_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_S", 0.2)
    wait_for_line = [
        "unshare",
        "--net",
        "/bin/sh",
        "-c",
        'echo; read address port && exec "$@" $address $port',
        "sh",
    ]
    with subprocess.Popen(
        [*wait_for_line, sys.executable, "-c", VANISHING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdout.readline()
        with cable(agent.pid) as address:
            bridge = Bridge(Address(address, 0)).start()
            agent.stdin.write(f"{address} {bridge.port}\n".encode())
            agent.stdin.flush()
            assert agent.stdout.readline() == b"served\n"
            bridge.await_phase(MonitorPhase.SERVING)
        bridge.await_phase(MonitorPhase.WAITING)
        agent.kill()


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
    wait_until(lambda: connection_threads() == [], "its threads have ended", WAIT_S)
    opened = descriptors()

    with contextlib.ExitStack() as stack:
        peers = []
        for number in range(200):
            peer = stack.enter_context(RawPeer(port))
            with contextlib.suppress(OSError):  # among so many it may be pushed out before it is heard
                peer.offer()
            assert len(connection_threads()) <= MOST_THREADS
            if number % 3 == 0:
                peer.reset()
            else:
                peers.append(peer)
        last = stack.enter_context(Agent(port))
        last.check_health()
        for peer in peers:
            assert peer.is_closed_by_the_other_side()
            peer.socket.close()
        wait_until(lambda: descriptors() <= opened + 8, "one connection is open, with both ends here", WAIT_S)
        wait_until(lambda: len(connection_threads()) <= THREADS + 1, "no more than its threads", WAIT_S)
        assert bridge.shown.phase is MonitorPhase.SERVING
        last.check_health()
    bridge.await_phase(MonitorPhase.WAITING)
    wait_until(lambda: descriptors() <= opened, "no descriptor is left", WAIT_S)
    wait_until(lambda: connection_threads() == [], "no thread is left", WAIT_S)


@pytest.mark.blocking_handlers  # as above
def test_a_storm_of_strangers_makes_no_storm_of_threads(bridge: Bridge) -> None:
    port = bridge.port
    most = 0
    with contextlib.ExitStack() as stack:
        for number in range(150):
            stranger = stack.enter_context(RawPeer(port))
            if number % 2:
                with contextlib.suppress(OSError):  # it was pushed out by then
                    stranger.upgrade()
            most = max(most, len(connection_threads()))
        assert most <= MOST_THREADS
        with Agent(port) as agent:
            agent.check_health()
    wait_until(lambda: connection_threads() == [], "no thread is left", WAIT_S)


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


PATIENT = Habits(health_s=0.02, reply_s=WAIT_S, dead_s=WAIT_S, pause_s=0.02)


def await_connections(agent: LivingAgent, count: int) -> None:
    wait_until(lambda: agent.connections == count, "it has come back", WAIT_S)


def await_health(agent: LivingAgent) -> None:
    seen = agent.healthy
    wait_until(lambda: agent.healthy >= seen + 3, "health checks are answered", WAIT_S)


@pytest.mark.blocking_handlers  # as above
def test_an_agent_that_lives_as_neons_is_served_again_after_each_end() -> None:
    port = Ports()()
    bridge = Bridge(Address("127.0.0.1", port)).start()
    with LivingAgent(port, PATIENT) as agent:
        for count in (1, 2, 3):
            await_connections(agent, count)
            assert agent.upscale(8 * GIB)["type"] == "UpscaleConfirmation"
            await_health(agent)
            bridge.stop()
            bridge.start()
        await_connections(agent, 4)
        assert agent.late == []


@pytest.mark.blocking_handlers  # so many messages are busy with the one interpreter
def test_a_call_that_takes_too_long_can_be_repeated_and_health_checks_go_on_beside_it(
    bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    def confirmed() -> object:
        with contextlib.suppress(CallError):
            return agent.upscale(8 * GIB)["type"] == "UpscaleConfirmation"
        return None

    with LivingAgent(bridge.port, replace(PATIENT, reply_s=1.0)) as agent:
        bridge.await_phase(MonitorPhase.SERVING)
        bridge.cache.hold.clear()
        with pytest.raises(CallError, match="no answer in time"):
            agent.upscale(8 * GIB)
        await_health(agent)
        bridge.cache.hold.set()
        wait_until(
            lambda: "nobody has asked for it" in caplog.text, "the late answer is complained of", WAIT_S
        )
        wait_until(confirmed, "it is repeated, as the real one does", WAIT_S)
        assert agent.connections == 1


def test_a_replaced_agent_that_does_not_say_goodbye_is_not_waited_for(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "PING_S", 600.0)  # what else would end it
    monkeypatch.setattr(websocket, "CLOSE_S", 600.0)
    bridge.stop()
    port = bridge.start().port
    with RawPeer(port) as mute:
        mute.offer()
        bridge.await_phase(MonitorPhase.SERVING)
        with Agent(port) as agent:
            agent.check_health()
            bridge.await_phase(MonitorPhase.SERVING)
            assert bridge.shown.connections == 2
            mute.socket.close()


def test_a_replaced_agent_that_does_not_say_goodbye_is_cut_off(bridge: Bridge) -> None:
    port = bridge.port
    with RawPeer(port) as mute:
        mute.offer()
        bridge.await_phase(MonitorPhase.SERVING)
        with Agent(port) as agent:
            assert mute.is_closed_by_the_other_side()
            agent.check_health()


def test_the_stop_says_goodbye_and_closes_the_port_and_waits_for_nobody(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("HANDSHAKE_S", "PING_S", "END_S"):  # what else would end those who do not answer
        monkeypatch.setattr(websocket, limit, 600.0)
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


def test_a_connection_that_cannot_be_accepted_is_not_the_end(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = bridge.port
    right, failures = socket.socket.accept, [EMFILE, ECONNABORTED]

    def failing(door: socket.socket) -> object:
        if failures:
            raise OSError(failures.pop(), "not now")
        return right(door)

    monkeypatch.setattr(websocket, "ACCEPT_PAUSE_S", 0.01)
    monkeypatch.setattr(socket.socket, "accept", failing)
    for _ in range(3):  # the first one may have been accepted by who was there before
        with Agent(port) as agent:
            agent.check_health()
    assert failures == []
    assert len([text for text in caplog.messages if "no connection can be accepted" in text]) == 1


def test_a_machine_without_a_thread_to_spare_is_told_and_tried_again(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = bridge.port
    right, failures = threading.Thread.start, [1]

    def failing(thread: threading.Thread) -> None:
        if failures and isinstance(vars(thread)["_target"], functools.partial):  # one for a connection
            failures.pop()
            msg = "can't start new thread"
            raise RuntimeError(msg)
        right(thread)

    with Agent(port) as agent:
        agent.check_health()
        monkeypatch.setattr(threading.Thread, "start", failing)
        with RawPeer(port) as stranger:
            assert stranger.is_closed_by_the_other_side()
        assert agent.await_close() == 1001
    told = "the machine has no thread to spare for a connection: can't start new thread"
    wait_until(lambda: told in caplog.text, "it is told", WAIT_S)
    wait_until(lambda: bridge.shown.address, "it listens again", WAIT_S)
    with Agent(bridge.port) as agent:
        agent.check_health()


def test_a_connection_that_gets_no_thread_to_write_is_told_of_and_nobody_else_notices(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port, right, failures = bridge.port, threading.Thread.start, [1]

    def failing(thread: threading.Thread) -> None:
        if failures and getattr(vars(thread)["_target"], "__name__", None) == "_send":
            failures.pop()
            msg = "can't start new thread"
            raise RuntimeError(msg)
        right(thread)

    with Agent(port) as agent:
        agent.check_health()
        with RawPeer(port) as unlucky:
            monkeypatch.setattr(threading.Thread, "start", failing)
            with contextlib.suppress(OSError):  # it may be closed by then
                unlucky.offer()
            assert unlucky.is_closed_by_the_other_side()
        assert failures == []
        wait_until(lambda: "cannot be served: " in caplog.text, "it is told", WAIT_S)
        agent.check_health()
    assert bridge.shown.connections == 1


class Served:
    """The server without the bridge: what was heard, and what is sent is up to the test."""

    def __init__(self) -> None:
        self.agents = WebsocketAgents(Address("127.0.0.1", 0))
        self.heard: list[Message] = []
        self.cancellation = Cancellation()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        wait_until(lambda: self.heard, "it listens", WAIT_S)

    def _run(self) -> None:
        with contextlib.suppress(CancelledError):
            self.agents.serve(self.heard.append, self.cancellation)

    @property
    def port(self) -> int:
        (listening,) = (message for message in self.heard if isinstance(message, Listening))
        return int(listening.address.rpartition(":")[2])

    def await_offers(self, count: int) -> list[int]:
        def offers() -> list[int]:
            return [message.connection for message in self.heard if isinstance(message, AgentOffered)]

        wait_until(lambda: len(offers()) == count, "they have offered", WAIT_S)
        return offers()

    def is_gone(self, connection: int) -> bool:
        return any(isinstance(one, AgentGone) and one.connection == connection for one in self.heard)

    def end(self) -> None:
        self.cancellation.request()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.end()


def test_who_does_not_read_is_cut_off_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(websocket, "SEND_S", 0.3)
    served: Served = request.getfixturevalue("served")
    with RawPeer(served.port) as deaf, RawPeer(served.port) as other:
        deaf.offer()
        (first,) = served.await_offers(1)
        for _ in range(websocket.MAX_UNSENT // 2):
            served.agents.send(first, protocol.NotUnderstood("x" * 300_000, 2))
        other.offer()
        _, second = served.await_offers(2)
        served.agents.send(second, protocol.HealthAnswer(4))
        assert other.hears() == b'{"type":"HealthCheck","id":4}'
        wait_until(lambda: served.is_gone(first), "it is cut off", WAIT_S)
        assert not served.is_gone(second)


def test_no_more_than_so_much_waits_for_who_does_not_read(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(websocket, "SEND_S", 600.0)
    served: Served = request.getfixturevalue("served")
    with RawPeer(served.port) as deaf:
        deaf.offer()
        (first,) = served.await_offers(1)
        service = served.agents._service
        assert service is not None
        peer = service._agents[first]
        for number in range(20 * websocket.MAX_UNSENT):
            served.agents.send(first, protocol.NotUnderstood("x" * 30_000, number))
            assert peer.outgoing.qsize() <= websocket.MAX_UNSENT
        assert not peer.is_served, "strangers may push it out"


def test_what_was_said_before_a_goodbye_comes_before_it(served: Served) -> None:
    with RawPeer(served.port) as peer:
        peer.offer()
        (first,) = served.await_offers(1)
        for number in range(2, 42, 2):
            served.agents.send(first, protocol.HealthAnswer(number))
        served.agents.close(first, 1002, "x" * 500)
        served.agents.send(first, protocol.HealthAnswer(99))
        for number in range(2, 42, 2):
            assert peer.hears() == f'{{"type":"HealthCheck","id":{number}}}'.encode()
        goodbye = peer.hears()
        assert goodbye[:2] == (1002).to_bytes(2, "big")
        assert len(goodbye) <= 125, "what a close frame holds"
        assert peer.is_closed_by_the_other_side()
    wait_until(lambda: served.is_gone(first), "it is gone", WAIT_S)


def test_a_server_that_ends_leaves_no_thread_and_no_descriptor_whoever_was_there() -> None:
    opened = descriptors()
    served = Served()
    port = served.port
    with RawPeer(port) as mute, RawPeer(port) as half_open, RawPeer(port) as deaf, RawPeer(port) as agent:
        half_open.upgrade()
        deaf.offer()
        agent.offer()
        first, _ = served.await_offers(2)
        for _ in range(websocket.MAX_UNSENT):
            served.agents.send(first, protocol.NotUnderstood("x" * 300_000, 2))
        served.end()
        wait_until(lambda: connection_threads() == [], "no thread is left", WAIT_S)
        for peer in (mute, half_open, agent):
            assert peer.is_closed_by_the_other_side()
    gc.collect()  # the library's server forgets the poll that it waits in
    assert descriptors() <= opened


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

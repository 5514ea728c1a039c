"""The VmMonitorBridge under made-up time: one agent after the other, pressure, trouble; then anything in any order."""

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.vm_monitor_bridge import protocol, state
from compute_node.actors.vm_monitor_bridge.actor import VmMessage, VmMonitorBridge
from compute_node.actors.vm_monitor_bridge.decisions import (
    DOWNSCALE_BUFFER,
    FILE_CACHE,
    FRESH_S,
    MIB,
    REQUEST_PAUSE_S,
    SETTLING_S,
    threshold,
    usable,
)
from compute_node.actors.vm_monitor_bridge.protocol import (
    Chosen,
    DownscaleRequest,
    DownscaleResult,
    Failure,
    FromAgent,
    HealthAnswer,
    HealthCheck,
    NotUnderstood,
    NoVersion,
    Resources,
    ToAgent,
    Unreadable,
    UpscaleConfirmation,
    UpscaleNotification,
    UpscaleRequest,
    _Granted,
    _Target,
)
from compute_node.actors.vm_monitor_bridge.state import MAX_UNREADABLE, SET_UP_S
from compute_node.messages.base import Message
from compute_node.messages.lifecycle import ActorFailed, ShutdownMode, Status, Terminated
from compute_node.messages.metrics import (
    AUTOSCALING_BYTES,
    AUTOSCALING_CONNECTED,
    AUTOSCALING_DECISIONS,
    AUTOSCALING_MESSAGES,
)
from compute_node.messages.settings import NodeSettings
from compute_node.messages.spec import ComputeSpec
from compute_node.messages.vm import (
    Autoscaling,
    GetAutoscaling,
    MonitorPhase,
    PrepareVm,
    StartVmMonitor,
    StopVmMonitor,
    VmPreparationFailed,
    VmPrepared,
)
from msgspec.structs import replace
from typing_extensions import override

from doubles.specs import a_spec
from doubles.vm import GIB, GROUP, FakeAgents, FakeFileCache, FakeMachine, FakeMemory, Peer
from doubles.world import World
from simulation.lives import silence

LOGGER = "compute_node.vm_monitor_bridge"


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


@pytest.fixture
def stage() -> Stage:
    return Stage().start()


def test_an_agent_gets_the_version_and_the_sizes_are_those_of_the_machine(stage: Stage) -> None:
    stage.use(GIB)
    peer = stage.connect()

    assert peer.received == [Chosen(1)]
    assert stage.cache.resized == [3072 * MIB]
    assert stage.memory.expected == threshold(4 * GIB)
    shown = stage.shown()
    assert shown.phase is MonitorPhase.SERVING
    assert shown.agent is not None
    assert shown.agent.address == "10.0.0.1:40000"
    assert (shown.total_bytes, shown.threshold_bytes, shown.file_cache_bytes) == (
        4 * GIB,
        threshold(4 * GIB),
        3072 * MIB,
    )
    assert shown.cgroup == GROUP
    assert shown.memory is not None
    assert shown.memory.bytes == GIB
    assert shown.manages == ("cgroup", "file_cache")
    assert [(message.direction, message.type) for message in shown.messages] == [("out", "Chosen")]
    assert stage.decisions == ["sizes_set"]
    assert stage.runtime.metrics.read(AUTOSCALING_CONNECTED)[()] == 1
    assert stage.runtime.metrics.read(AUTOSCALING_BYTES) == {
        ("memory",): GIB,
        ("total",): 4 * GIB,
        ("threshold",): threshold(4 * GIB),
        ("file_cache",): 3072 * MIB,
    }


def test_an_agent_that_offers_only_newer_versions_is_told_and_sent_away(stage: Stage) -> None:
    served = stage.connect()
    newer = stage.connect(lowest=2, highest=7)

    assert newer.received == [
        NoVersion("Received protocol version range 2 to 7 which does not overlap with v1.0")
    ]
    assert newer.closed is not None
    assert served.closed is None, "who cannot speak takes nobody's place"
    assert stage.say(served, HealthCheck(id=2)) == [HealthAnswer(2)]


def test_health_checks_are_answered_with_their_number(stage: Stage) -> None:
    peer = stage.connect()

    assert [stage.say(peer, HealthCheck(id=number)) for number in (2, 4, 6)] == [
        [HealthAnswer(2)],
        [HealthAnswer(4)],
        [HealthAnswer(6)],
    ]


def test_health_checks_are_answered_while_postgres_lets_a_sizing_wait(stage: Stage) -> None:
    peer = stage.connect()
    stage.cache.takes_s = 3.0

    assert stage.say(peer, grown(2, 8 * GIB)) == []
    assert stage.say(peer, HealthCheck(id=4)) == [HealthAnswer(4)]
    stage.runtime.advance(3.1)
    assert peer.received[-1] == UpscaleConfirmation(2)


def test_an_upscale_is_followed(stage: Stage) -> None:
    peer = stage.connect()

    assert stage.say(peer, grown(2, 8 * GIB)) == [UpscaleConfirmation(2)]
    assert stage.cache.size == FILE_CACHE.size(usable(8 * GIB))
    assert stage.memory.expected == threshold(usable(8 * GIB))
    assert stage.decisions == ["sizes_set", "upscale_confirmed"]


def test_an_upscale_that_fails_is_told_with_its_causes_and_changes_no_threshold(stage: Stage) -> None:
    peer = stage.connect()
    stage.cache.broken = "Postgres has not done it: it is frozen"

    assert stage.say(peer, grown(2, 8 * GIB)) == [
        Failure("failed to handle upscale: Postgres has not done it: it is frozen", 2)
    ]
    assert stage.memory.expected == threshold(4 * GIB)
    assert peer.is_open()
    stage.cache.broken = None
    assert stage.say(peer, grown(4, 8 * GIB)) == [UpscaleConfirmation(4)]


def test_a_downscale_is_approved_where_little_is_in_use(stage: Stage) -> None:
    stage.use(200 * MIB)
    peer = stage.connect()

    assert stage.say(peer, shrink(2, 1124 * MIB)) == [
        DownscaleResult(
            ok=True,
            status="set file cache size to 698 MiB; set cgroup memory threshold from 3481.5999994277954 MiB "
            "to 870.3999996185303 MiB, of new total 1024 MiB",
            id=2,
        )
    ]
    assert stage.cache.size == 698 * MIB
    assert stage.memory.expected == threshold(GIB)


def test_a_downscale_is_denied_where_much_is_in_use_and_changes_nothing(stage: Stage) -> None:
    stage.use(800 * MIB)
    peer = stage.connect()
    size = stage.cache.size

    (answer,) = stage.say(peer, shrink(2, 1124 * MIB))
    assert isinstance(answer, DownscaleResult)
    assert not answer.ok
    assert "800 MiB (current usage) + 100 MiB" in answer.status
    assert stage.cache.size == size
    assert stage.decisions[-1] == "downscale_denied"


def test_a_downscale_against_old_memory_data_fails_and_one_against_a_single_sample_is_denied(
    stage: Stage,
) -> None:
    stage.runtime.advance(3)
    peer = stage.connect()
    assert stage.say(peer, shrink(2, GIB)) == [
        DownscaleResult(ok=False, status="haven't received enough cgroup memory stats yet", id=2)
    ]
    stage.use(MIB, count=1)
    (answer,) = stage.say(peer, shrink(4, GIB))
    assert isinstance(answer, DownscaleResult)
    assert not answer.ok
    stage.use(MIB, count=2)
    stage.runtime.advance(FRESH_S + 0.1)
    (answer,) = stage.say(peer, shrink(6, GIB))
    assert isinstance(answer, Failure)
    assert answer.error.startswith("failed to downscale: the memory in use is not known")
    assert stage.cache.resized == [3072 * MIB]


def test_a_cgroup_that_cannot_be_read_is_no_zero_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()
    stage.memory.unreadable = True
    stage.start()
    peer = stage.connect()
    stage.runtime.advance(10)

    (answer,) = stage.say(peer, shrink(2, GIB))
    assert isinstance(answer, Failure)
    assert "memory.stat cannot be read" in str(stage.shown().error)
    assert len([text for text in caplog.messages if "memory.stat cannot be read" in text]) == 1

    stage.memory.unreadable = False
    stage.runtime.advance(30)
    stage.use(MIB)
    assert stage.shown().error is None
    (answer,) = stage.say(peer, shrink(4, 2 * GIB))
    assert isinstance(answer, DownscaleResult)
    assert answer.ok


def test_pressure_is_told_once_a_second_with_odd_numbers_from_three_on(stage: Stage) -> None:
    peer = stage.connect()
    stage.say(peer, HealthCheck(id=2))
    for _ in range(30):
        stage.use(threshold(4 * GIB))
        stage.runtime.advance(0.1)

    asked = [message for message in peer.received if isinstance(message, UpscaleRequest)]
    assert asked == [UpscaleRequest(3), UpscaleRequest(5), UpscaleRequest(7)]
    assert stage.decisions.count("upscale_requested") == 3


def test_a_single_sample_above_the_threshold_is_pressure_and_one_below_is_none(stage: Stage) -> None:
    peer = stage.connect()
    stage.say(peer, HealthCheck(id=2))

    stage.use(threshold(4 * GIB) - 1, count=1)
    assert not any(isinstance(message, UpscaleRequest) for message in peer.received)
    stage.use(threshold(4 * GIB), count=1)
    assert peer.received[-1] == UpscaleRequest(3)


def test_an_agent_that_has_said_nothing_yet_is_asked_after_a_moment(stage: Stage) -> None:
    peer = stage.connect()
    stage.use(4 * GIB)
    assert peer.received == [Chosen(1)]

    stage.runtime.advance(SETTLING_S)
    assert peer.received == [Chosen(1), UpscaleRequest(3)]


def test_an_agent_that_speaks_is_asked_at_once(stage: Stage) -> None:
    peer = stage.connect()
    stage.use(4 * GIB)

    assert stage.say(peer, HealthCheck(id=2)) == [HealthAnswer(2), UpscaleRequest(3)]


def test_reconnects_make_no_more_requests(stage: Stage) -> None:
    stage.use(4 * GIB)
    peers = []
    for _ in range(50):
        peers.append(stage.connect())
        stage.say(peers[-1], HealthCheck(id=2))
        stage.use(4 * GIB)
        stage.runtime.advance(0.05)

    asked = sum(isinstance(message, UpscaleRequest) for peer in peers for message in peer.received)
    assert 2 <= asked <= 3


def test_the_newest_agent_takes_the_place_of_the_one_before(stage: Stage) -> None:
    first = stage.connect()
    second = stage.connect()

    assert first.closed is not None
    assert "newer connection" in first.closed[1]
    assert second.is_open()
    assert stage.say(first, HealthCheck(id=2)) == []
    assert stage.say(second, HealthCheck(id=2)) == [HealthAnswer(2)]
    stage.agents.leave(first)
    stage.runtime.settle()
    assert stage.shown().phase is MonitorPhase.SERVING
    assert stage.shown().connections == 2


def test_a_late_offer_of_an_older_connection_takes_nobodys_place(stage: Stage) -> None:
    older = stage.agents.arrive()
    newer = stage.connect()
    stage.agents.offer(older)
    stage.runtime.settle()

    assert older.closed == (state.GOING_AWAY, "a newer connection is served")
    assert newer.is_open()
    assert stage.say(newer, HealthCheck(id=2)) == [HealthAnswer(2)]
    assert stage.shown().connections == 1


def test_what_an_agent_that_is_gone_has_asked_is_answered_to_nobody(stage: Stage) -> None:
    stage.use(MIB)
    first = stage.connect()
    stage.cache.takes_s = 1.0
    stage.say(first, shrink(2, 2 * GIB))
    stage.say(first, grown(4, 3 * GIB))
    second = stage.connect()
    stage.runtime.advance(5)

    assert first.received == [Chosen(1)]
    assert second.received == [Chosen(1)]
    anew = FILE_CACHE.size(4 * GIB)
    assert stage.cache.resized == [anew, FILE_CACHE.size(usable(2 * GIB)), anew], (
        "nothing else is done for it"
    )
    assert stage.shown().phase is MonitorPhase.SERVING


def test_one_bad_message_is_answered_and_many_in_a_row_end_the_connection(stage: Stage) -> None:
    peer = stage.connect()

    assert stage.say(peer, Unreadable("what?", 6)) == [NotUnderstood("what?", 6)]
    assert stage.say(peer, HealthCheck(id=8)) == [HealthAnswer(8)]
    for _ in range(MAX_UNREADABLE - 1):
        stage.say(peer, Unreadable("what?", 0))
    assert peer.is_open()
    stage.say(peer, Unreadable("what?", 0))
    assert peer.closed is not None
    assert stage.shown().phase is MonitorPhase.WAITING


def test_what_the_agent_did_not_understand_or_could_not_do_is_logged_and_not_answered(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    peer = stage.connect()

    assert stage.say(peer, protocol.InvalidMessage(id=3, content=protocol._Error("odd"))) == []
    assert stage.say(peer, protocol.InternalError(id=5, content=protocol._Error("sorry"))) == []
    assert "the agent did not understand message 3: odd" in caplog.text
    assert "the agent could not do what message 5 asks for: sorry" in caplog.text


def test_a_peer_that_asks_for_too_much_is_refused_and_still_answered_each_time(stage: Stage) -> None:
    peer = stage.connect()
    stage.cache.takes_s = 1.0
    numbers = range(2, 42, 2)
    for number in numbers:
        stage.say(peer, grown(number, 8 * GIB))
    assert (
        sum(isinstance(message, Failure) for message in peer.received) == len(numbers) - 1 - state.MAX_QUEUE
    )
    stage.runtime.advance(30)

    answered = [message.id for message in peer.received if isinstance(message, Failure | UpscaleConfirmation)]
    assert sorted(answered) == list(numbers)


def test_a_set_up_that_fails_drops_the_agent_which_may_try_again(stage: Stage) -> None:
    stage.cache.broken = "no connection to Postgres"
    peer = stage.connect()

    assert peer.closed is not None
    assert peer.closed[0] == state.INTERNAL_ERROR
    assert "no connection to Postgres" in peer.closed[1]
    assert stage.memory.expected is None
    stage.cache.broken = None
    assert stage.connect().closed is None
    assert stage.shown().phase is MonitorPhase.SERVING


def test_a_set_up_that_takes_too_long_drops_the_agent(stage: Stage) -> None:
    stage.cache.takes_s = 60.0
    peer = stage.connect()
    assert stage.shown().phase is MonitorPhase.SETTING_UP
    stage.runtime.advance(SET_UP_S + 0.1)

    assert peer.closed is not None
    assert stage.shown().phase is MonitorPhase.WAITING


# --- What is managed -------------------------------------------------------------------------------------


def test_a_postgres_without_a_file_cache_is_watched_all_the_same(stage: Stage) -> None:
    stage.cache.size = None
    stage.use(MIB)
    peer = stage.connect()

    (answer,) = stage.say(peer, shrink(2, 1124 * MIB))
    assert isinstance(answer, DownscaleResult)
    assert answer.ok
    assert answer.status.endswith("of new total 1024 MiB; this Postgres has no file cache")
    assert stage.say(peer, grown(4, 8 * GIB)) == [UpscaleConfirmation(4)]
    assert stage.shown().manages == ("cgroup",)
    assert stage.shown().file_cache_bytes is None
    assert stage.memory.expected == threshold(usable(8 * GIB))


def test_the_file_cache_is_left_alone_where_the_spec_says_so() -> None:
    stage = Stage().start(resizes=False)
    stage.use(MIB)
    peer = stage.connect()

    (answer,) = stage.say(peer, shrink(2, 1124 * MIB))
    assert isinstance(answer, DownscaleResult)
    assert "is left alone, as the spec says" in answer.status
    assert stage.cache.resized == []
    assert stage.shown().manages == ("cgroup",)


def test_without_a_cgroup_only_the_file_cache_is_managed() -> None:
    stage = Stage(watches_cgroup=False).start()
    peer = stage.connect()

    assert stage.memory.heard is None
    assert stage.say(peer, shrink(2, 1124 * MIB)) == [
        DownscaleResult(ok=True, status="set file cache size to 698 MiB", id=2)
    ]


def test_a_bridge_that_manages_nothing_says_so() -> None:
    stage = Stage(watches_cgroup=False).start(resizes=False)
    peer = stage.connect()

    assert stage.say(peer, shrink(2, GIB)) == [
        DownscaleResult(ok=True, status="monitor is not managing cgroup or file cache", id=2)
    ]
    assert stage.say(peer, grown(4, GIB)) == [UpscaleConfirmation(4)]


# --- Beginning and end -----------------------------------------------------------------------------------


def test_nothing_goes_on_before_the_start_and_after_the_stop() -> None:
    stage = Stage()
    stage.runtime.advance(60)
    assert stage.agents.heard is None
    assert stage.shown() == Autoscaling(enabled=True, manages=("cgroup",))

    stage.start()
    peer = stage.connect()
    stage.stop()

    assert peer.closed is not None
    assert peer.closed[0] == state.GOING_AWAY
    assert (stage.agents.heard, stage.memory.heard) == (None, None)
    assert stage.runtime._jobs == []
    assert stage.shown().phase is MonitorPhase.OFF
    assert stage.memory.expected is None
    assert stage.runtime.metrics.read(AUTOSCALING_BYTES) == {}
    assert stage.runtime.metrics.read(AUTOSCALING_CONNECTED)[()] == 0


def test_a_stop_breaks_a_sizing_off_and_a_start_begins_anew(stage: Stage) -> None:
    stage.cache.takes_s = 60.0
    stage.connect()
    stage.bridge.tell(StopVmMonitor())
    stage.bridge.tell(StartVmMonitor(4712, resizes_file_cache=True))
    stage.runtime.settle()
    stage.cache.takes_s = 0.0

    assert stage.agents.servings == 2
    peer = stage.connect()
    assert stage.shown().phase is MonitorPhase.SERVING
    assert stage.say(peer, HealthCheck(id=2)) == [HealthAnswer(2)]


def test_an_address_that_is_taken_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.agents.taken = True
    stage.start()
    stage.runtime.advance(100)

    assert stage.shown().phase is MonitorPhase.UNREACHABLE
    assert stage.shown().error == "the address is taken"
    assert len([text for text in caplog.messages if "the address is taken" in text]) == 1

    stage.agents.taken = False
    stage.runtime.advance(31)
    assert stage.shown().phase is MonitorPhase.WAITING
    assert stage.shown().error is None


def test_a_server_that_breaks_is_begun_again(stage: Stage) -> None:
    peer = stage.connect()
    stage.agents.broken = "too many open files"
    stage.runtime.settle()
    assert peer.left
    assert stage.shown().phase is MonitorPhase.UNREACHABLE

    stage.runtime.advance(2)
    assert stage.agents.servings == 2
    assert stage.connect().received == [Chosen(1)]


# --- Before Postgres starts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "swap", "quota"),
    [(PrepareVm(1, 5, None), [5], []), (PrepareVm(1, None, 7), [], [7]), (PrepareVm(1, 0, 0), [0], [0])],
)
def test_the_machine_is_made_ready_before_postgres_starts(
    wanted: PrepareVm, swap: list[int], quota: list[int]
) -> None:
    stage = Stage()
    stage.bridge.tell(wanted)
    stage.runtime.settle()

    assert stage.listener.heard == [VmPrepared(1)]
    assert (stage.machine.swap, stage.machine.quota) == (swap, quota)


def test_a_machine_that_cannot_be_made_ready_is_told() -> None:
    stage = Stage()
    stage.machine.broken = "failed to resize swap: no"
    stage.bridge.tell(PrepareVm(1, 5, 7))
    stage.runtime.settle()

    assert stage.listener.heard == [VmPreparationFailed(1, "failed to resize swap: no")]


def test_a_stop_breaks_the_preparation_off_and_nobody_hears_of_it() -> None:
    stage = Stage()
    stage.machine.held = True
    stage.bridge.tell(PrepareVm(1, 5, 7))
    stage.runtime.settle()
    stage.stop()

    assert stage.listener.heard == []
    assert stage.runtime._jobs == []


# --- Anything in any order -------------------------------------------------------------------------------


class Chaos:
    """Does one thing after another, drawn from a seed, and checks the promises at each step."""

    def __init__(self, seed: int) -> None:
        self.stage = Stage(seed)
        self.choose = random.Random(seed + 1)  # noqa: S311 - a seeded choice is what is wanted
        self.sizes = [0, 100 * MIB, 512 * MIB, GIB, 2 * GIB, 4 * GIB, 16 * GIB]
        self.asked: dict[int, list[int]] = {}
        """The numbers of the requests of each connection, in order."""
        self.sent_s: list[float] = []
        self.seen: dict[int, int] = {}
        """How much of what each peer got was looked at."""
        self.sampled: dict[str, float] = {}
        self.stage.runtime.after_step = self.check

    # --- Promises

    def check(self) -> None:
        stage = self.stage
        assert not any(isinstance(message, ActorFailed) for message in stage.listener.heard)
        assert len(stage.runtime._jobs) <= VmMonitorBridge.max_jobs
        for peer in stage.agents.peers:
            for message in peer.received[self.seen.get(peer.number, 0) :]:
                self.received(peer, message)
            self.seen[peer.number] = len(peer.received)
        open_ones = [peer for peer in stage.agents.peers if peer.closed is None and not peer.left]
        served = stage.actor.state.agent
        if not any(stage.runtime._mailboxes.values()):
            assert len(open_ones) <= 1, "two agents at once"
            assert served is None or any(peer.number == served.connection for peer in open_ones)

    def received(self, peer: Peer, message: ToAgent) -> None:
        now = self.stage.clock.now()
        memory = self.stage.actor.state.memory
        if isinstance(message, UpscaleRequest):
            assert all(now - at >= REQUEST_PAUSE_S for at in self.sent_s[-1:]), "an upscale storm"
            self.sent_s.append(now)
        elif isinstance(message, DownscaleResult):
            if message.ok:
                assert self.judged_s(peer, message.id) - memory.at_s <= FRESH_S, "approved against old data"
            self.answered(peer, message.id)
        elif isinstance(message, UpscaleConfirmation | Failure | HealthAnswer | NotUnderstood):
            self.answered(peer, message.id)

    def judged_s(self, peer: Peer, number: int) -> float:
        """When the sizing of an approved downscale was begun; it may have taken its time since."""
        return min(self.stage.clock.now(), self.begun_s.get((peer.number, number), float("inf")))

    def answered(self, peer: Peer, number: int) -> None:
        assert number in self.asked[peer.number], "it was answered twice, or never asked"
        self.asked[peer.number].remove(number)

    # --- Deeds

    def act(self) -> None:
        self.choose.choices(
            (
                self.start,
                self.stage.stop,
                self.connect,
                self.ask,
                self.sample,
                self.trouble,
                self.leave,
                self.pass_time,
                self.step,
            ),
            (2, 1, 3, 12, 12, 2, 2, 6, 20),
        )[0]()
        self.note_sizing()

    begun_s: dict[tuple[int, int], float]

    def note_sizing(self) -> None:
        task = self.stage.actor.state.sizing
        if task is not None:
            self.begun_s.setdefault((task.connection, task.id), self.stage.clock.now())

    def start(self) -> None:
        self.stage.bridge.tell(StartVmMonitor(self.choose.randrange(100), self.choose.random() < 0.8))

    def connect(self) -> None:
        if self.stage.agents.heard is not None:
            highest = self.choose.choice([1, 1, 1, 3])
            peer = self.stage.agents.connect(lowest=self.choose.choice([1, highest]), highest=highest)
            self.asked[peer.number] = []

    def ask(self) -> None:
        if not self.stage.agents.peers or self.stage.agents.heard is None:
            return
        peer = self.choose.choice(self.stage.agents.peers[-2:])
        if peer.left or peer.closed is not None:
            return
        number = 2 + 2 * self.choose.randrange(10**6)
        if number in self.asked[peer.number]:
            return
        said: FromAgent | Unreadable = self.choose.choice(
            [
                HealthCheck(id=number),
                grown(number, self.choose.choice(self.sizes)),
                shrink(number, self.choose.choice(self.sizes)),
                shrink(number, self.choose.choice(self.sizes)),
                Unreadable("odd", number),
            ]
        )
        self.asked[peer.number].append(number)
        self.stage.agents.say(peer, said)

    def sample(self) -> None:
        self.stage.memory.use(self.choose.choice(self.sizes), count=self.choose.randrange(6))

    def trouble(self) -> None:
        stage, choice = self.stage, self.choose.choice
        ways: list[tuple[object, str, object]] = [
            (stage.cache, "broken", choice([None, None, "no"])),
            (stage.cache, "takes_s", choice([0.0, 0.5, 3.0, 10.0])),
            (stage.cache, "size", choice([None, 128 * MIB])),
            (stage.memory, "unreadable", choice([True, False, False])),
            (stage.memory, "machine", choice(self.sizes[1:])),
            (stage.agents, "taken", choice([True, False, False])),
            (stage.agents, "broken", choice([None, None, "out of descriptors"])),
        ]
        where, name, value = choice(ways)
        setattr(where, name, value)

    def leave(self) -> None:
        if self.stage.agents.peers:
            self.stage.agents.leave(self.choose.choice(self.stage.agents.peers[-3:]))

    def pass_time(self) -> None:
        self.stage.runtime.advance(self.choose.choice([0.05, 0.3, 1.0, 6.0]))

    def step(self) -> None:
        self.stage.runtime.step()

    # --- The end

    def run(self, deeds: int) -> None:
        self.begun_s = {}
        self.stage.start()
        for _ in range(deeds):
            self.act()
        stage = self.stage
        stage.cache.broken, stage.cache.takes_s = None, 0.0
        stage.memory.unreadable, stage.agents.taken, stage.agents.broken = False, False, None
        self.stage.start()
        stage.runtime.advance(120)
        for peer in stage.agents.peers:
            if peer.closed is None and not peer.left:
                assert self.asked[peer.number] == [], "a request was never answered"
        peer = self.stage.connect()
        self.asked[peer.number] = [2]
        assert self.stage.say(peer, HealthCheck(id=2))[:1] == [HealthAnswer(2)]
        assert stage.shown().phase is MonitorPhase.SERVING
        stage.stop()
        stage.runtime.advance(60)
        assert stage.runtime._jobs == []
        assert stage.runtime.stop() == ()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_request_is_answered_once_and_nothing_is_granted_blindly(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, LOGGER)
    Chaos(seed).run(150)


def test_what_is_said_is_counted(stage: Stage) -> None:
    peer = stage.connect()
    stage.say(peer, HealthCheck(id=2))
    stage.say(peer, Unreadable("odd", 4))

    assert stage.runtime.metrics.read(AUTOSCALING_MESSAGES) == {
        ("out", "Chosen"): 1,
        ("in", "HealthCheck"): 1,
        ("out", "HealthCheck"): 1,
        ("in", "Unreadable"): 1,
        ("out", "InvalidMessage"): 1,
    }
    assert stage.runtime.metrics.read(AUTOSCALING_DECISIONS) == {("sizes_set",): 1}


def test_what_is_in_use_is_never_more_than_the_threshold_of_an_approved_size(stage: Stage) -> None:
    peer = stage.connect()
    for used in range(0, 4 * GIB, 300 * MIB):
        stage.use(used)
        (answer,) = stage.say(peer, shrink(2 + used // MIB * 2, 3 * GIB))[:1]
        assert isinstance(answer, DownscaleResult)
        assert answer.ok is (used + DOWNSCALE_BUFFER <= threshold(usable(3 * GIB)))


# --- In a whole node -------------------------------------------------------------------------------------

SCALED: dict[str, Any] = {"autoscaling": True, "resize_swap": True}


class ScaledWorld(World):
    """A node whose machine is managed, and an agent that comes now and then."""

    @override
    def _settings(self, changes: dict[str, Any]) -> NodeSettings:
        return super()._settings(SCALED | changes)

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


@pytest.fixture
def world() -> Iterator[World]:
    with World(0) as world:
        yield world


def test_a_node_waits_for_its_swap_serves_an_agent_and_says_goodbye_when_postgres_is_gone(
    world: World,
) -> None:
    world.boot(a_spec(swap_size_bytes=5), **SCALED)
    world.vm.held = True
    world.runtime.settle()
    assert [change.new for change in world.changes] == [Status.INIT]
    assert world.machine.launched == 0
    world.vm.held = False
    world.runtime.settle()
    assert [change.new for change in world.changes] == [Status.INIT, Status.RUNNING]
    assert world.vm.swap == [5]

    peer = world.agents.connect()
    world.runtime.settle()
    assert peer.received == [Chosen(1)]
    world.machine.faults.stop_takes_s = 3.0
    world.terminate(ShutdownMode.IMMEDIATE)
    world.runtime.advance(2.0)
    assert peer.is_open()
    world.runtime.advance(2.0)
    assert peer.closed is not None
    world.runtime.advance(5.0)
    assert world.exit.get(0).code == 0


def test_a_termination_while_swap_is_resized_cancels_the_start(world: World) -> None:
    world.boot(a_spec(swap_size_bytes=5), **SCALED)
    world.vm.held = True
    world.runtime.settle()
    waiting = world.terminate(ShutdownMode.IMMEDIATE)
    world.runtime.advance(1.0)

    assert isinstance(waiting.pending.get(0), Terminated)
    assert world.vm.swap == []
    assert world.machine.launched == 0


def test_a_swap_that_cannot_be_resized_fails_the_start_with_its_reason(world: World) -> None:
    world.boot(a_spec(swap_size_bytes=5), **SCALED)
    world.vm.broken = "failed to resize swap: process exited with 3"
    world.runtime.settle()

    assert world.supervisor.state.status is Status.FAILED
    assert world.supervisor.state.error == "failed to resize swap: process exited with 3"
    assert world.machine.launched == 0


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_a_node_with_an_agent_it_ends_in_order(seed: int) -> None:
    with silence(), ScaledWorld(seed, drawn=True) as world:
        world.live_all()

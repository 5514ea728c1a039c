"""The VmMonitorBridge under made-up time: one agent after the other, pressure, trouble; then anything in any order."""

import os
from collections.abc import Callable, Iterator

import pytest
from compute_node.actors.vm_monitor_bridge import effects, protocol, sizing
from compute_node.actors.vm_monitor_bridge.decisions import (
    DOWNSCALE_BUFFER,
    FILE_CACHE,
    FRESH_S,
    MIB,
    REQUEST_PAUSE_S,
    SETTLING_S,
    Pressure,
    Summary,
    threshold,
    usable,
)
from compute_node.actors.vm_monitor_bridge.private import CgroupFound, MemoryUsed, Sized
from compute_node.actors.vm_monitor_bridge.protocol import (
    Chosen,
    DownscaleResult,
    Failure,
    HealthAnswer,
    HealthCheck,
    NotUnderstood,
    NoVersion,
    Unreadable,
    UpscaleConfirmation,
    UpscaleRequest,
)
from compute_node.actors.vm_monitor_bridge.serving import MAX_UNREADABLE, SET_UP_S
from compute_node.messages.lifecycle import ShutdownMode, Status, Terminated
from compute_node.messages.metrics import (
    AUTOSCALING_BYTES,
    AUTOSCALING_CONNECTED,
    AUTOSCALING_DECISIONS,
    AUTOSCALING_MESSAGES,
)
from compute_node.messages.vm import (
    Autoscaling,
    MonitorPhase,
    PrepareVm,
    StartVmMonitor,
    StopVmMonitor,
    VmPreparationFailed,
    VmPrepared,
)

from doubles.specs import a_spec
from doubles.vm import GIB, GROUP
from simulation.vm_lives import ScaledWorld, Stage, check_bridge, check_scaled, grown, shrink

LOGGER = "compute_node.vm_monitor_bridge"


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


def test_what_is_granted_beyond_the_limit_of_the_cgroup_does_not_count(stage: Stage) -> None:
    stage.memory.limit = 2 * GIB
    peer = stage.connect()

    assert stage.say(peer, grown(2, 8 * GIB)) == [UpscaleConfirmation(2)]
    assert stage.cache.size == FILE_CACHE.size(2 * GIB)
    assert stage.memory.expected == threshold(2 * GIB)
    reason = stage.shown().decisions[-1].reason
    assert reason.endswith("of new total 2048 MiB, which is the limit of the cgroup")
    stage.memory.limit = None
    assert stage.say(peer, grown(4, 8 * GIB)) == [UpscaleConfirmation(4)]
    assert stage.memory.expected == threshold(usable(8 * GIB))


def test_an_upscale_that_fails_is_told_with_its_causes_and_changes_no_threshold(stage: Stage) -> None:
    peer = stage.connect()
    stage.cache.broken = "Postgres has not done it: it is frozen"

    assert stage.say(peer, grown(2, 8 * GIB)) == [
        Failure("failed to handle upscale: Postgres has not done it: it is frozen", 2)
    ]
    assert stage.memory.expected == threshold(4 * GIB)
    assert peer.is_open()
    stage.cache.broken = None
    assert stage.shown().file_cache_bytes is None
    assert stage.say(peer, grown(4, 8 * GIB)) == [UpscaleConfirmation(4)]
    assert stage.shown().file_cache_bytes == FILE_CACHE.size(usable(8 * GIB))


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


@pytest.mark.parametrize("in_time", [True, False], ids=["fresh", "old by then"])
def test_a_downscale_is_not_approved_when_more_is_in_use_by_the_time_it_is_done(
    *, in_time: bool, stage: Stage
) -> None:
    stage.use(200 * MIB)
    peer = stage.connect()
    stage.cache.takes_s = 3.0 if in_time else FRESH_S + 1
    assert stage.say(peer, shrink(2, 1124 * MIB)) == []
    stage.runtime.advance(2.0)
    if in_time:
        stage.use(800 * MIB)
    stage.runtime.advance(stage.cache.takes_s)
    answer = peer.received[-1]
    if in_time:
        assert isinstance(answer, DownscaleResult)
        assert not answer.ok
    else:
        assert isinstance(answer, Failure)
    assert stage.memory.expected == threshold(4 * GIB), "as before"
    stage.runtime.advance(stage.cache.takes_s)
    assert stage.cache.resized[-2:] == [698 * MIB, 3072 * MIB], "the size of before is set again"
    assert stage.decisions[-1] == "sizes_restored"
    assert stage.say(peer, HealthCheck(id=4)) == [HealthAnswer(4)]


def test_sizes_that_cannot_be_restored_are_told_and_an_end_forgets_them(stage: Stage) -> None:
    stage.use(200 * MIB)
    peer = stage.connect()
    stage.cache.takes_s = 3.0
    stage.say(peer, shrink(2, 1124 * MIB))
    stage.use(800 * MIB)
    stage.runtime.advance(3.0)
    assert stage.cache.size == 698 * MIB
    assert stage.shown().file_cache_bytes == 698 * MIB, "which is so until it is restored"
    stage.cache.broken = "no connection to Postgres"
    stage.runtime.advance(3.0)
    assert stage.decisions[-1] == "restore_failed"
    assert stage.shown().file_cache_bytes is None, "a change that failed may have been made in part"
    assert peer.is_open()

    stage.cache.broken = None
    stage.say(peer, shrink(4, 2 * GIB))
    stage.use(3 * GIB)
    stage.runtime.advance(3.0)
    stage.stop()
    assert stage.actor.state.queue == ()


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
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len([text for text in errors if "memory.stat cannot be read" in text]) == 1

    stage.memory.unreadable = False
    stage.runtime.advance(30)
    stage.use(MIB)
    assert stage.shown().error is None
    (answer,) = stage.say(peer, shrink(4, 2 * GIB))
    assert isinstance(answer, DownscaleResult)
    assert answer.ok


def test_memory_that_cannot_be_read_any_more_is_not_shown_as_if_it_were_known(stage: Stage) -> None:
    stage.use(200 * MIB)
    peer = stage.connect()
    stage.memory.unreadable = True
    stage.runtime.settle()

    (answer,) = stage.say(peer, shrink(2, 2 * GIB))
    assert isinstance(answer, DownscaleResult)
    assert not answer.ok
    assert answer.status.endswith("memory.stat cannot be read"), "the reason behind it is told, too"
    shown = stage.shown()
    assert (shown.memory, shown.cgroup) == (None, None)
    assert ("memory",) not in stage.runtime.metrics.read(AUTOSCALING_BYTES)


def test_a_downscale_without_any_sample_is_not_told_of_an_old_one() -> None:
    stage = Stage()
    stage.memory.unreadable = True
    stage.start()
    peer = stage.connect()
    stage.runtime.advance(FRESH_S + 1)

    (answer,) = stage.say(peer, shrink(2, GIB))
    assert answer == Failure(
        "failed to downscale: the memory in use is not known: there has been no sample for 6.0 s (limit 5 s): "
        "memory.stat cannot be read",
        2,
    )


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


def test_pressure_is_looked_for_only_when_an_agent_can_be_asked(stage: Stage) -> None:
    seen = [stage.memory.pressure]
    peer = stage.connect()
    stage.say(peer, HealthCheck(id=2))
    seen.append(stage.memory.pressure)
    stage.use(4 * GIB)
    assert peer.received[-1] == UpscaleRequest(3)
    seen.append(stage.memory.pressure)
    stage.agents.leave(peer)
    stage.runtime.settle()
    seen.append(stage.memory.pressure)

    limit = threshold(4 * GIB)
    assert seen == [None, Pressure(limit), Pressure(limit, stage.clock.now() + REQUEST_PAUSE_S), None]


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

    assert older.closed == (effects.GOING_AWAY, "a newer connection is served")
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
        sum(isinstance(message, Failure) for message in peer.received) == len(numbers) - 1 - sizing.MAX_QUEUE
    )
    stage.runtime.advance(30)

    answered = [message.id for message in peer.received if isinstance(message, Failure | UpscaleConfirmation)]
    assert sorted(answered) == list(numbers)


def test_a_set_up_that_fails_drops_the_agent_which_may_try_again(stage: Stage) -> None:
    stage.cache.broken = "no connection to Postgres"
    peer = stage.connect()

    assert peer.closed is not None
    assert peer.closed[0] == effects.INTERNAL_ERROR
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
    assert peer.closed[0] == effects.GOING_AWAY
    assert (stage.agents.heard, stage.memory.heard) == (None, None)
    assert stage.runtime._jobs == []
    assert stage.shown().phase is MonitorPhase.OFF
    assert stage.memory.expected is None
    assert stage.runtime.metrics.read(AUTOSCALING_BYTES) == {}
    assert stage.runtime.metrics.read(AUTOSCALING_CONNECTED)[()] == 0


def test_what_the_watch_says_when_it_is_over_is_not_shown(stage: Stage) -> None:
    stage.use(GIB)
    stage.stop()
    stage.bridge.tell(CgroupFound(GROUP))  # it was under way already
    stage.bridge.tell(MemoryUsed(Summary(stage.clock.now(), GIB, 5)))
    stage.runtime.settle()

    assert stage.shown() == Autoscaling(enabled=True, manages=("cgroup",))


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


def test_sizes_that_were_set_for_the_postgres_before_are_not_those_of_the_next(stage: Stage) -> None:
    peer = stage.connect()
    sizes = Sized(stage.actor.state.works + 1, 99 * GIB, 70 * GIB)
    stage.cache.takes_s = 60.0
    stage.say(peer, grown(2, 99 * GIB))
    stage.bridge.tell(StartVmMonitor(4712, resizes_file_cache=True))
    stage.bridge.tell(sizes)  # the outcome was under way already
    stage.runtime.settle()

    assert stage.shown().total_bytes is None
    assert stage.memory.expected is None


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


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_request_is_answered_once_and_nothing_is_granted_blindly(seed: int) -> None:
    check_bridge(seed)


@pytest.mark.skipif("SIMULATION_SEED" not in os.environ, reason="replays one seed, given by SIMULATION_SEED")
@pytest.mark.parametrize("check", [check_bridge, check_scaled])
def test_replay_of_one_seed(check: Callable[[int], None]) -> None:
    check(int(os.environ["SIMULATION_SEED"]))


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


@pytest.fixture
def world() -> Iterator[ScaledWorld]:
    with ScaledWorld(0) as world:
        yield world


def test_a_node_waits_for_its_swap_serves_an_agent_and_says_goodbye_when_postgres_is_gone(
    world: ScaledWorld,
) -> None:
    world.boot(a_spec())
    world.vm.held = True
    world.runtime.settle()
    assert [change.new for change in world.changes] == [Status.INIT]
    assert world.machine.launched == 0
    world.vm.held = False
    world.runtime.settle()
    assert [change.new for change in world.changes] == [Status.INIT, Status.RUNNING]
    assert world.vm.swap == [GIB]

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


def test_a_termination_while_swap_is_resized_cancels_the_start(world: ScaledWorld) -> None:
    world.boot(a_spec())
    world.vm.held = True
    world.runtime.settle()
    waiting = world.terminate(ShutdownMode.IMMEDIATE)
    world.runtime.advance(1.0)

    assert isinstance(waiting.pending.get(0), Terminated)
    assert world.vm.swap == []
    assert world.machine.launched == 0


def test_a_swap_that_cannot_be_resized_fails_the_start_with_its_reason(world: ScaledWorld) -> None:
    world.boot(a_spec())
    world.vm.broken = "failed to resize swap: process exited with 3"
    world.runtime.settle()

    assert world.supervisor.state.status is Status.FAILED
    assert world.supervisor.state.error == "failed to resize swap: process exited with 3"
    assert world.machine.launched == 0


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_a_node_with_an_agent_it_ends_in_order(seed: int) -> None:
    check_scaled(seed)

"""Actors that hang, and threads that are gone: noticed, told, and written into the log."""

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from compute_node.actors.kit import threaded
from compute_node.actors.kit.watchdog import Watchdog, stacks
from compute_node.messages.base import ActorUnavailableError, Message
from compute_node.messages.lifecycle import ActorFailed
from compute_node.messages.metrics import ACTOR_FAILURES
from hypothesis import given
from hypothesis import strategies as st

from doubles.scripted import WAIT_S, Note, Other, Question, Scripted, SimulatedBench, ThreadedBench, Watcher
from fix_postgres import wait_until

LIMIT_S = 15.0


def test_a_handler_is_taken_for_hung_when_its_pulse_stands_still_beyond_the_limit() -> None:
    watchdog = Watchdog()
    assert watchdog.hung({"a": 1}, 100.0, LIMIT_S) == ()
    assert watchdog.hung({"a": 1}, 100.0 + LIMIT_S, LIMIT_S) == ()
    assert watchdog.hung({"a": 1}, 100.1 + LIMIT_S, LIMIT_S) == ("a",)
    assert watchdog.hung({"a": 3}, 100.2 + LIMIT_S, LIMIT_S) == (), "another message"


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100)), max_size=30))
def test_an_actor_at_rest_never_hangs_and_a_quick_one_neither(looks: list[tuple[int, float]]) -> None:
    watchdog = Watchdog()
    now_s, pulse, began_s = 0.0, 0, 0.0
    for steps, pause_s in looks:
        now_s += pause_s
        if steps:
            pulse, began_s = pulse + steps, now_s
        hung = watchdog.hung({"a": pulse}, now_s, LIMIT_S)
        assert bool(hung) == (pulse % 2 == 1 and now_s - began_s > LIMIT_S)


def test_a_pulse_is_odd_at_work_and_never_the_same_again() -> None:
    bench = SimulatedBench(seed=1)
    pulses: list[int] = []

    def look(*_: object) -> None:
        pulses.append(bench.runtime.cell("actor").pulse)

    ref = bench.spawn("actor", Scripted(bench.recorder, {Note: look}, on_start=look))
    for _ in range(2):
        ref.tell(Note("look"))
    bench.runtime.run()
    assert pulses == [1, 3, 5]
    assert bench.runtime.cell("actor").pulse == 6


def test_stacks_name_each_thread_and_where_it_is() -> None:
    (mine,) = (stack for stack in stacks() if stack.startswith("thread MainThread:"))
    assert "test_stacks_name_each_thread_and_where_it_is" in mine


# --- On threads --------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ThreadedBench]:
    """A runtime that gives an actor up after a moment."""
    monkeypatch.setattr(threaded, "HUNG_S", 0.6)
    bench = ThreadedBench()
    bench.spawn("watcher", Watcher(bench.recorder))
    yield bench
    assert bench.stop() == ()


def failures(bench: ThreadedBench) -> dict[str, str]:
    return {e.actor: e.error for e in tuple(bench.recorder.entries) if isinstance(e, ActorFailed)}


@pytest.mark.blocking_handlers
def test_two_actors_that_wait_for_each_other_are_both_given_up_with_their_stacks(
    impatient: ThreadedBench, caplog: pytest.LogCaptureFixture
) -> None:
    locks = {"left": threading.Lock(), "right": threading.Lock()}
    both_hold = threading.Barrier(2)

    def take_both(actor: Scripted, _: Other) -> None:
        mine = actor.myself.name
        locks[mine].acquire()
        both_hold.wait(WAIT_S)
        locks["right" if mine == "left" else "left"].acquire()

    for name in locks:
        impatient.spawn(name, Scripted(impatient.recorder, {Other: take_both})).tell(Other())
    impatient.wait(lambda: set(failures(impatient)) == {"left", "right"})
    assert "it hangs: it has been at work on Other" in failures(impatient)["left"]
    assert impatient.metrics.read(ACTOR_FAILURES) == {("left",): 1, ("right",): 1}
    wait_until(lambda: hanging(caplog) == {"thread left", "thread right"}, "their stacks are in the log")
    assert impatient.abandoned == []
    with pytest.raises(ActorUnavailableError, match="it hangs"):
        impatient.ref("left").ask(Question(), 1.0)
    for lock in locks.values():
        lock.release()


def hanging(caplog: pytest.LogCaptureFixture) -> set[str]:
    """Return the threads that the log shows in `take_both`."""
    return {text.split(":")[0] for text in tuple(caplog.messages) if ", in take_both\n" in text}


@pytest.mark.blocking_handlers
def test_a_watcher_that_hangs_is_told_to_whoever_owns_the_runtime_and_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threaded, "HUNG_S", 0.6)
    bench = ThreadedBench(watcher="boss")
    go_on = threading.Event()

    def hang(_: Scripted, __: Message) -> None:
        assert go_on.wait(WAIT_S)

    for name in ("another", "boss"):
        bench.spawn(name, Scripted(bench.recorder, {Other: hang})).tell(Other())
    bench.wait(lambda: len(bench.abandoned) == 2)
    assert [failure.actor for failure in bench.abandoned] == ["boss", "another"]
    go_on.set()
    assert bench.stop() == ()


@pytest.mark.blocking_handlers
def test_whoever_waits_for_an_actor_that_hangs_learns_it(impatient: ThreadedBench) -> None:
    go_on = threading.Event()
    script: dict[Any, Any] = {
        Question: lambda actor, question: actor.defer(question),
        Other: lambda _, __: go_on.wait(WAIT_S),
    }
    ref = impatient.spawn("actor", Scripted(impatient.recorder, script))
    pending = ref.request(Question())
    ref.tell(Other())
    with pytest.raises(ActorUnavailableError, match="it hangs"):
        pending.get(WAIT_S)
    go_on.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("thread", ["actor", "actor-job-1"])
def test_a_thread_that_is_gone_is_the_death_of_its_actor(threads: ThreadedBench, thread: str) -> None:
    """It is killed between two messages, where no `except` of ours stands, as a fault in native code would."""
    ref = threads.spawn("actor", Scripted(threads.recorder, {Note: lambda actor, _: _run_nothing(actor)}))
    (victim,) = (one for one in threading.enumerate() if one.name == thread)
    assert victim.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim.ident), ctypes.py_object(SystemExit))

    def is_told() -> bool:
        ref.tell(Note("wake up"))  # again and again: other threads may take all the jobs
        return "actor" in failures(threads)

    threads.wait(is_told)
    assert f"its thread {thread} has ended" in failures(threads)["actor"]


def _run_nothing(actor: Scripted) -> None:
    for _ in range(actor.max_jobs):
        actor.start_job("nothing", lambda _: None)


def test_a_thread_of_timers_that_fails_is_told_to_whoever_owns_the_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = ThreadedBench()

    def fail() -> None:
        msg = "planted"
        raise ValueError(msg)

    monkeypatch.setattr(bench.runtime._timers, "_every_tick", fail)
    bench.wait(lambda: bool(bench.abandoned))
    assert bench.abandoned == [ActorFailed("timers", "ValueError: planted")]
    assert bench.stop() == ()

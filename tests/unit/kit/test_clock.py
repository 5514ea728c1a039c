"""The clock that leaves out the time in which the process stood still."""

import asyncio
import threading

import pytest
from compute_node.actors.kit.clock import GAP_S, TICK_S, AwakeClock
from compute_node.actors.kit.jobs import Cancellation, Job
from compute_node.messages.base import Message
from compute_node.postgres.coroutines import run_async
from hypothesis import given
from hypothesis import strategies as st

from doubles.scripted import Note, Scripted, ThreadedBench


class Machine:
    """A monotonic clock that a test moves; a machine that has just booted begins near zero."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


STARTS = st.sampled_from([0.0, 0.001, 1e9])


@given(STARTS, st.lists(st.floats(0, GAP_S - 0.01), max_size=50))
def test_time_that_is_looked_at_often_enough_is_the_machines(start_s: float, steps: list[float]) -> None:
    machine = Machine(start_s)
    clock = AwakeClock(machine)
    for step_s in steps:
        machine.now_s += step_s
        assert clock.now() == machine.now_s
    assert clock.frozen_s == 0


@given(STARTS, st.lists(st.floats(0, 10_000), max_size=50))
def test_it_never_goes_back_and_a_gap_costs_no_more_than_a_tick(start_s: float, steps: list[float]) -> None:
    machine = Machine(start_s)
    clock = AwakeClock(machine)
    before = clock.now()
    for step_s in steps:
        machine.now_s += step_s
        now = clock.now()
        assert 0 <= now - before <= GAP_S + 1e-6
        assert abs(now + clock.frozen_s - machine.now_s) < 1e-6
        before = now


def test_a_freeze_counts_as_one_tick_for_whoever_looks_first_and_for_all_after() -> None:
    machine = Machine()
    clock = AwakeClock(machine)
    deadline = clock.now() + 3.0
    machine.now_s += 3600.0
    assert clock.now() == pytest.approx(TICK_S)
    assert clock.now() < deadline
    machine.now_s += 1.0
    assert clock.now() == pytest.approx(TICK_S + 1.0)


def test_the_runtime_looks_at_its_clock_although_nothing_happens(threads: ThreadedBench) -> None:
    """Otherwise a quiet node would take every pause for a freeze."""
    clock = threads.runtime.clock
    assert isinstance(clock, AwakeClock)
    looked = threading.Semaphore(0)
    machine = clock._monotonic

    def watched() -> float:
        looked.release()
        return machine()

    clock._monotonic = watched
    with threads.runtime._timers._changed:
        threads.runtime._timers._changed.notify()  # it may be in the middle of a tick
    for _ in range(4):
        assert looked.acquire(timeout=20)
    assert clock.frozen_s == 0


def test_timers_are_put_off_by_a_freeze(threads: ThreadedBench) -> None:
    clock = threads.runtime.clock
    assert isinstance(clock, AwakeClock)
    machine = clock._monotonic
    actor = Scripted(threads.recorder, on_start=lambda actor: _remind(actor, 60.0, "later"))
    threads.spawn("actor", actor)
    clock._monotonic = lambda: machine() + 3600.0  # an hour passes in which nobody looks
    threads.spawn("other", Scripted(threads.recorder, on_start=lambda actor: _remind(actor, 0.6, "soon")))
    threads.wait(lambda: "soon" in threads.recorder.texts)
    assert threads.recorder.texts == ["soon"]
    assert clock.frozen_s > 3000


def _remind(actor: Scripted, delay_s: float, text: str) -> None:
    actor.timers.after(delay_s, Note(text))


def test_a_job_counts_its_time_by_the_clock_of_its_actor() -> None:
    machine = Machine()
    clock = AwakeClock(machine)

    def work(cancellation: Cancellation) -> Message | None:
        machine.now_s += 100.0
        return Note(f"{cancellation.now():g}")

    assert Job("work", work, None, clock).run() == Note(f"{TICK_S:g}")


def test_time_limits_of_coroutines_are_counted_by_the_clock_of_the_job() -> None:
    machine = Machine()

    async def work() -> float:
        machine.now_s += 5000.0
        return asyncio.get_running_loop().time()

    assert run_async(work, Cancellation(AwakeClock(machine))) == pytest.approx(TICK_S)

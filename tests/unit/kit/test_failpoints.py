"""What happens to a job at an armed step, on threads and in the simulation."""

import subprocess
import sys
import time
from functools import partial
from typing import Any

import pytest
from compute_node.actors.kit.failpoints import Failpoints
from compute_node.actors.kit.jobs import Cancellation, CancelledError, Job, describe
from compute_node.messages.base import Message
from compute_node.messages.failpoints import Failpoint, FailpointError, parse_environment
from compute_node.messages.lifecycle import ActorFailed

from doubles.scripted import Bench, Note, Other, Scripted, SimulatedBench, ThreadedBench

HERE = Failpoint.OBSERVE


class Steps:
    """An actor whose job is at one step, then done; what became of each job is recorded."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.jobs: list[Job] = []
        self.ref = bench.spawn("actor", Scripted(bench.recorder, {Note: self._begin}))

    def _begin(self, actor: Scripted, _: Message) -> None:
        failed = lambda error: Other(describe(error))  # noqa: E731 - one line
        self.jobs.append(actor.start_job("steps", self._work, failed=failed))

    def _work(self, cancellation: Cancellation) -> Message:
        cancellation.reach(HERE)
        return Other("done")

    def outcomes(self) -> list[str]:
        return [entry.text for entry in tuple(self.bench.recorder.entries) if isinstance(entry, Other)]

    def _is_over(self, number: int) -> bool:
        return len(self.outcomes()) == number

    def run(self, *expected: str) -> None:
        """Run a job for each expected outcome, one after another."""
        for number in range(1, len(expected) + 1):
            self.ref.tell(Note("go"))
            self.bench.wait(partial(self._is_over, number))
        assert self.outcomes() == list(expected)


def arm(bench: Bench, actions: str) -> None:
    failpoints: Failpoints = bench.runtime.failpoints  # type: ignore[attr-defined] # both kinds have it
    failpoints.configure(parse_environment(f"{HERE.value}={actions}"))


def test_nothing_happens_at_a_step_that_is_not_armed(bench: Bench) -> None:
    steps = Steps(bench)
    steps.run("done")
    arm(bench, "return(no)")
    arm(bench, "off")
    bench.recorder.entries.clear()
    steps.run("done")


def test_a_job_can_tell_whether_its_step_is_armed(bench: Bench) -> None:
    def look(cancellation: Cancellation) -> Message:
        return Other(f"{cancellation.is_armed(HERE)} {cancellation.is_armed(Failpoint.LAUNCHED)}")

    ref = bench.spawn(
        "actor", Scripted(bench.recorder, {Note: lambda actor, _: actor.start_job("look", look)})
    )
    arm(bench, "pause")
    ref.tell(Note("go"))
    bench.wait(lambda: Other("True False") in bench.recorder.entries)


def test_return_is_a_failure_like_any_other_as_often_as_was_said(bench: Bench) -> None:
    arm(bench, "2*return(no luck)->1*return")
    Steps(bench).run(
        "FailpointError: no luck", "FailpointError: no luck", "FailpointError: failpoint observe", "done"
    )


def test_panic_is_the_death_of_the_actor(bench: Bench) -> None:
    arm(bench, "panic(enough)")
    Steps(bench).ref.tell(Note("go"))
    bench.wait(lambda: any(isinstance(entry, ActorFailed) for entry in bench.recorder.entries))
    (died,) = [entry for entry in bench.recorder.entries if isinstance(entry, ActorFailed)]
    assert (died.actor, died.error) == ("actor", "job 'steps': Panic: enough")


def test_a_pause_lasts_until_the_failpoint_is_given_other_actions(bench: Bench) -> None:
    arm(bench, "1*pause")
    steps = Steps(bench)
    steps.ref.tell(Note("go"))
    pauses(bench, steps)
    arm(bench, "print(going on)")
    bench.wait(lambda: steps.outcomes() == ["done"])


def test_a_pause_ends_with_its_job(bench: Bench) -> None:
    arm(bench, "pause")
    steps = Steps(bench)
    steps.ref.tell(Note("go"))
    pauses(bench, steps)
    steps.jobs[0].cancel()
    bench.wait(lambda: steps.outcomes() == ["CancelledError: cancelled"])


def pauses(bench: Bench, steps: Steps) -> None:
    """Wait until the job is at its step, and see that it does not go on."""
    bench.wait(lambda: bool(steps.jobs))
    if isinstance(bench, SimulatedBench):
        bench.runtime.settle()
    assert steps.outcomes() == []


def test_sleep_takes_its_time(bench: Bench) -> None:
    arm(bench, "sleep(50)")
    before = bench.clock.now()
    Steps(bench).run("done")
    assert bench.clock.now() - before > 0.0499


def test_a_sleeping_job_hears_that_it_is_to_end(threads: ThreadedBench) -> None:
    arm(threads, "sleep(600000)")
    steps = Steps(threads)
    steps.ref.tell(Note("go"))
    threads.wait(lambda: bool(steps.jobs))
    steps.jobs[0].cancel()
    threads.wait(lambda: steps.outcomes() == ["CancelledError: cancelled"])


def armed(actions: str) -> Failpoints:
    failpoints = Failpoints()
    failpoints.configure(parse_environment(f"{HERE.value}={actions}"))
    return failpoints


@pytest.mark.parametrize("actions", ["off", "sleep(600000)", "pause"])
def test_a_step_that_cannot_be_broken_off_goes_on_when_its_job_is_to_end(actions: str) -> None:
    cancellation = Cancellation(failpoints=armed(actions))
    cancellation.request()
    cancellation.reach(HERE, cancellable=False)
    with pytest.raises(CancelledError):
        cancellation.reach(HERE)


def test_a_failure_is_a_failure_there_too() -> None:
    with pytest.raises(FailpointError):
        Cancellation(failpoints=armed("return")).reach(HERE, cancellable=False)


def test_exit_ends_the_process_at_once() -> None:
    program = (
        "from compute_node.actors.kit.failpoints import Failpoints\n"
        "from compute_node.actors.kit.jobs import Cancellation\n"
        "from compute_node.messages.failpoints import Failpoint, parse_environment\n"
        "failpoints = Failpoints()\n"
        "failpoints.configure(parse_environment('observe=exit(7)'))\n"
        "Cancellation(failpoints=failpoints).reach(Failpoint.OBSERVE)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 7


def test_a_step_that_is_not_armed_costs_next_to_nothing() -> None:
    cancellation: Any = Cancellation(failpoints=Failpoints())
    began = time.thread_time()
    for _ in range(10_000):
        cancellation.reach(HERE)
    assert (time.thread_time() - began) / 10_000 < 50e-6, "seconds each; about 0.5 µs is usual"

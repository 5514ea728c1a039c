import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.jobs import Blocked, Cancellation, CancelledError, Job
from compute_node.messages.base import Message
from compute_node.messages.lifecycle import ActorFailed
from typing_extensions import override

from doubles.scripted import (
    WAIT_S,
    Bench,
    JoblessScripted,
    Note,
    Other,
    Scripted,
    SimulatedBench,
    SingleJobScripted,
    ThreadedBench,
)


class Gate:
    """Something a job waits for: on threads it blocks the thread, in the simulation it raises Blocked."""

    def __init__(self, bench: Bench) -> None:
        self._simulated = isinstance(bench, SimulatedBench)
        self._open = threading.Event()
        self.entered = threading.Event()

    def pass_through(self, cancellation: Cancellation | None = None) -> None:
        self.entered.set()
        if self._simulated:
            if not self._open.is_set():
                raise Blocked
        elif cancellation is None:
            assert self._open.wait(WAIT_S)
        else:
            cancellation.on_request(self._open.set)
            assert self._open.wait(WAIT_S)
            cancellation.check()

    def pass_through_if_wanted(self, cancellation: Cancellation) -> None:
        """As a whole job, with nothing to say."""
        self.pass_through(cancellation)

    def open(self) -> None:
        self._open.set()


def run(name: str, work: Callable[[Cancellation], Message | None], **options: Any) -> Callable[..., None]:
    def action(actor: Scripted, _: Message) -> None:
        actor.start_job(name, work, **options)

    return action


def failed(bench: Bench) -> list[ActorFailed]:
    return [entry for entry in tuple(bench.recorder.entries) if isinstance(entry, ActorFailed)]


def test_the_outcome_of_a_job_is_a_message_to_its_own_actor(bench: Bench) -> None:
    script = {Note: run("work", lambda _: Other("done"))}
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: Other("done") in bench.recorder.entries)


def test_a_job_may_have_nothing_to_say(bench: Bench) -> None:
    script = {Note: run("work", lambda _: bench.recorder.add("worked"))}
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: "worked" in bench.recorder.entries)
    assert failed(bench) == []


def test_a_failure_that_is_handled_is_a_message_like_any_other(bench: Bench) -> None:
    def work(_: Cancellation) -> Message | None:
        msg = "no such file"
        raise OSError(msg)

    script = {Note: run("work", work, failed=lambda error: Other(str(error)))}
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: Other("no such file") in bench.recorder.entries)
    assert failed(bench) == []


def test_the_handler_of_failures_is_not_asked_about_the_end_of_the_process(bench: Bench) -> None:
    def work(_: Cancellation) -> Message | None:
        raise SystemExit(3)

    script = {Note: run("work", work, failed=lambda error: Other(str(error)))}
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: len(failed(bench)) == 1)
    assert failed(bench)[0].error == "job 'work': SystemExit: 3"


def test_a_job_that_is_cancelled_before_it_starts_does_not_work(bench: Bench) -> None:
    def begin(actor: Scripted, _: Note) -> None:
        actor.start_job("first", gate.pass_through_if_wanted)
        quiet = actor.start_job("second", lambda _: bench.recorder.add("worked"))
        loud = actor.start_job("third", lambda _: bench.recorder.add("worked"), failed=say)
        quiet.cancel()
        loud.cancel()

    def say(error: Exception) -> Message:
        assert isinstance(error, CancelledError)
        return Other("cancelled")

    gate = Gate(bench)
    bench.spawn("actor", SingleJobScripted(bench.recorder, {Note: begin})).tell(Note("go"))
    bench.wait(lambda: Note("go") in bench.recorder.entries)
    gate.open()
    bench.wait(lambda: Other("cancelled") in bench.recorder.entries)
    assert "worked" not in bench.recorder.entries
    assert failed(bench) == []


def test_a_job_that_is_cancelled_while_it_waits_ends_and_says_so(bench: Bench) -> None:
    jobs: list[Job] = []
    gate = Gate(bench)

    def begin(actor: Scripted, _: Note) -> None:
        jobs.append(actor.start_job("work", work, failed=lambda error: Other(type(error).__name__)))

    def work(cancellation: Cancellation) -> Message | None:
        bench.recorder.add("at work")
        gate.pass_through(cancellation)
        return Other("done")

    bench.spawn("actor", Scripted(bench.recorder, {Note: begin})).tell(Note("go"))
    bench.wait(lambda: "at work" in bench.recorder.entries)
    jobs[0].cancel()
    jobs[0].cancel()
    bench.wait(lambda: Other("CancelledError") in bench.recorder.entries)
    assert Other("done") not in bench.recorder.entries


def test_a_wait_ends_as_soon_as_the_job_is_cancelled() -> None:
    cancellation = Cancellation()
    outcome: list[str] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            cancellation.wait(3600)
        except CancelledError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(WAIT_S)
    cancellation.request()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert outcome == ["cancelled"]


def test_a_wait_that_nobody_ends_just_ends() -> None:
    cancellation = Cancellation()
    cancellation.wait(0.001)
    cancellation.check()
    assert not cancellation.requested


def test_callbacks_of_a_cancellation_run_once_each_in_order() -> None:
    calls: list[int] = []
    cancellation = Cancellation()
    cancellation.on_request(lambda: calls.append(1))
    cancellation.on_request(lambda: calls.append(2))
    cancellation.request()
    cancellation.request()
    assert calls == [1, 2]
    cancellation.on_request(lambda: calls.append(3))
    assert calls == [1, 2, 3]
    with pytest.raises(CancelledError):
        cancellation.check()


def test_a_callback_that_raises_is_logged_and_keeps_none_of_the_others_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[int] = []

    def broken() -> None:
        msg = "no such process"
        raise OSError(msg)

    cancellation = Cancellation()
    cancellation.on_request(broken)
    cancellation.on_request(lambda: calls.append(2))
    cancellation.request()
    assert calls == [2]
    assert "no such process" in caplog.text


def test_a_job_that_has_ended_is_out_of_reach_of_its_cancellation(bench: Bench) -> None:
    """Its process may be gone, and the number may be another process's by now."""
    jobs: list[Job] = []
    kills: list[str] = []

    def work(cancellation: Cancellation) -> Message | None:
        cancellation.on_request(lambda: kills.append("killed a stranger"))
        return Other("done")

    script = {Note: lambda actor, _: jobs.append(actor.start_job("work", work))}
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    ref.tell(Note("go"))
    bench.wait(lambda: Other("done") in bench.recorder.entries)
    jobs[0].cancel()
    assert kills == []


def test_a_cancellation_reaches_a_callback_or_the_callback_runs_at_once() -> None:
    for _ in range(200):
        cancellation = Cancellation()
        called = threading.Event()
        gate = threading.Barrier(2)

        def register(
            gate: threading.Barrier = gate,
            cancellation: Cancellation = cancellation,
            called: threading.Event = called,
        ) -> None:
            gate.wait(WAIT_S)
            cancellation.on_request(called.set)

        thread = threading.Thread(target=register)
        thread.start()
        gate.wait(WAIT_S)
        cancellation.request()
        thread.join()
        assert called.is_set()


def test_at_most_so_many_jobs_run_as_the_actor_has_threads(bench: Bench) -> None:
    gate = Gate(bench)
    began: set[int] = set()

    def begin(actor: Scripted, _: Note) -> None:
        for number in range(5):
            actor.start_job(f"job {number}", partial(work, number))

    def work(number: int, _: Cancellation) -> Message | None:
        if number not in began:
            began.add(number)
            bench.recorder.add(number)
        gate.pass_through()
        return Other(str(number))

    bench.spawn("actor", Scripted(bench.recorder, {Note: begin})).tell(Note("go"))
    bench.wait(lambda: {0, 1} <= began)
    if isinstance(bench, SimulatedBench):
        bench.runtime.settle()
    assert began == {0, 1}
    gate.open()
    bench.wait(lambda: len([entry for entry in bench.recorder.entries if isinstance(entry, Other)]) == 5)


def test_jobs_on_one_thread_end_in_the_order_they_began(bench: Bench) -> None:
    def outcome(number: int, _: Cancellation) -> Message | None:
        return Other(str(number))

    def begin(actor: Scripted, _: Note) -> None:
        for number in range(50):
            actor.start_job(f"job {number}", partial(outcome, number))

    bench.spawn("actor", SingleJobScripted(bench.recorder, {Note: begin})).tell(Note("go"))
    bench.wait(lambda: Other("49") in bench.recorder.entries)
    outcomes = [entry.text for entry in bench.recorder.entries if isinstance(entry, Other)]
    assert outcomes == [str(number) for number in range(50)]


def test_a_job_without_a_thread_is_a_mistake_that_shows(bench: Bench) -> None:
    script = {Note: run("work", lambda _: None)}
    bench.spawn("actor", JoblessScripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: len(failed(bench)) == 1)
    assert "has no threads for jobs" in failed(bench)[0].error


def test_the_outcome_of_a_job_whose_actor_died_is_lost_in_silence(bench: Bench) -> None:
    gate = Gate(bench)

    def begin(actor: Scripted, _: Note) -> None:
        def work(_: Cancellation) -> Message | None:
            gate.pass_through()
            return Other("done")

        actor.start_job("work", work)
        msg = "bad luck"
        raise ValueError(msg)

    bench.spawn("actor", Scripted(bench.recorder, {Note: begin})).tell(Note("go"))
    bench.wait(lambda: len(failed(bench)) == 1)
    gate.open()
    assert bench.stop() == ()
    assert Other("done") not in bench.recorder.entries
    assert len(failed(bench)) == 1


def test_the_death_of_an_actor_cancels_its_jobs(bench: Bench) -> None:
    gate = Gate(bench)
    ended = threading.Event()

    def work(cancellation: Cancellation) -> Message | None:
        bench.recorder.add("at work")
        try:
            gate.pass_through(cancellation)
        except CancelledError:
            ended.set()
            raise
        return None

    def die(_: Scripted, __: Other) -> None:
        raise ValueError

    ref = bench.spawn("actor", Scripted(bench.recorder, {Note: run("work", work), Other: die}))
    ref.tell(Note("go"))
    bench.wait(lambda: "at work" in bench.recorder.entries)
    ref.tell(Other())
    bench.wait(lambda: len(failed(bench)) == 1)
    if isinstance(bench, ThreadedBench):
        assert ended.wait(WAIT_S)
    else:
        bench.wait(lambda: len(bench.runtime._jobs) == 0)  # type: ignore[attr-defined] # a simulation


def test_all_threads_exist_at_boot_and_none_is_made_later(threads: ThreadedBench) -> None:
    def many_jobs(actor: Scripted, _: Note) -> None:
        for number in range(20):
            actor.start_job(f"job {number}", lambda _: threads.recorder.add(threading.get_ident()))

    before = set(threading.enumerate())
    ref: Ref[Message] = threads.spawn("actor", Scripted(threads.recorder, {Note: many_jobs}))
    made = set(threading.enumerate()) - before
    assert sorted(thread.name for thread in made) == ["actor", "actor-job-1", "actor-job-2"]
    for _ in range(5):
        ref.tell(Note("go"))
    threads.wait(lambda: len([entry for entry in threads.recorder.entries if isinstance(entry, int)]) == 100)
    assert set(threading.enumerate()) - before == made
    assert {entry for entry in threads.recorder.entries if isinstance(entry, int)} <= {
        thread.ident for thread in made
    }


def test_a_thread_for_jobs_outlives_whatever_its_job_raises(threads: ThreadedBench) -> None:
    def blocked(_: Cancellation) -> Message | None:
        raise Blocked

    script = {Note: run("work", blocked)}
    threads.spawn("actor", SingleJobScripted(threads.recorder, script)).tell(Note("go"))
    threads.wait(lambda: len(failed(threads)) == 1)
    assert failed(threads)[0].error.startswith("job 'work': Blocked")
    assert "actor-job-1" in {thread.name for thread in threading.enumerate()}


def test_one_actors_long_jobs_leave_the_others_threads_alone(threads: ThreadedBench) -> None:
    gate = Gate(threads)

    class Busy(Actor[Message]):
        max_jobs = 1

        @override
        def receive(self, message: Message) -> None:
            self.start_job("long", gate.pass_through_if_wanted)

    threads.spawn("busy", Busy()).tell(Note("go"))
    assert gate.entered.wait(WAIT_S)
    script = {Note: run("short", lambda _: Other("done"))}
    threads.spawn("actor", Scripted(threads.recorder, script)).tell(Note("go"))
    threads.wait(lambda: Other("done") in threads.recorder.entries)


def test_a_job_that_has_ended_is_not_asked_to_end_when_its_actor_stops(bench: Bench) -> None:
    begun: list[Job] = []
    script = {Note: lambda actor, _: begun.append(actor.start_job("work", lambda _: Other("done")))}
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: Other("done") in bench.recorder.entries)
    bench.stop()
    assert not begun[0].cancellation.requested


def test_a_job_knows_the_time_of_its_actor(bench: Bench) -> None:
    seen: list[float] = []

    def look(cancellation: Cancellation) -> Message:
        seen.append(cancellation.now())
        return Other("done")

    script = {Note: run("look", look)}
    before = bench.clock.now()
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: Other("done") in bench.recorder.entries)
    assert before <= seen[0] <= bench.clock.now()


def test_an_exception_without_words_is_told_by_its_kind(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Cancellation) -> Message:
        raise LookupError

    bench.spawn("actor", Scripted(bench.recorder, {Note: run("search", fail)})).tell(Note("go"))
    bench.wait(lambda: len(failed(bench)) == 1)
    assert failed(bench)[0].error == "job 'search': LookupError"
    assert "actor: the job 'search' failed in a way that nobody handles" in caplog.text

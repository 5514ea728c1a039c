import threading
from collections.abc import Callable
from typing import Any

import pytest
from compute_node.actors.kit.actor import Pending, Replier
from compute_node.actors.kit.cell import ActorStartError
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.messages.base import ActorUnavailableError, AskError, Message
from compute_node.messages.lifecycle import ActorFailed
from compute_node.messages.metrics import ACTOR_FAILURES

from doubles.scripted import (
    WAIT_S,
    Answer,
    Bench,
    Note,
    Other,
    Question,
    Scripted,
    SimulatedBench,
    ThreadedBench,
)

DEADLY = [
    ValueError("bad luck"),
    SystemExit(3),
    KeyboardInterrupt(),
    MemoryError(),
    RecursionError("too deep"),
]


def raising(error: BaseException) -> Callable[..., Any]:
    def action(*_: object) -> None:
        raise error

    return action


def failures(bench: Bench) -> list[ActorFailed]:
    return [entry for entry in tuple(bench.recorder.entries) if isinstance(entry, ActorFailed)]


@pytest.mark.parametrize("error", DEADLY, ids=lambda error: type(error).__name__)
def test_an_exception_in_a_handler_is_told_to_the_watcher_and_harms_no_other(
    bench: Bench, error: BaseException
) -> None:
    other = bench.spawn("other", Scripted(bench.recorder))
    ref = bench.spawn("actor", Scripted(bench.recorder, {Note: raising(error)}))
    ref.tell(Note("die"))
    bench.wait(lambda: len(failures(bench)) == 1)
    assert failures(bench)[0].actor == "actor"
    assert type(error).__name__ in failures(bench)[0].error
    assert bench.metrics.read(ACTOR_FAILURES) == {("actor",): 1.0}
    other.tell(Other("lives"))
    bench.wait(lambda: Other("lives") in bench.recorder.entries)


@pytest.mark.parametrize("error", DEADLY, ids=lambda error: type(error).__name__)
def test_an_exception_in_a_job_that_nobody_handles_is_the_death_of_the_actor(
    bench: Bench, error: BaseException
) -> None:
    other = bench.spawn("other", Scripted(bench.recorder))
    script = {Note: lambda actor, _: actor.start_job("doomed", raising(error))}
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    ref.tell(Note("go"))
    bench.wait(lambda: len(failures(bench)) == 1)
    assert failures(bench)[0].error.startswith(f"job 'doomed': {type(error).__name__}")
    other.tell(Other("lives"))
    bench.wait(lambda: Other("lives") in bench.recorder.entries)


def test_an_exception_of_the_function_that_handles_a_jobs_failure_is_the_death_of_the_actor(
    bench: Bench,
) -> None:
    script = {
        Note: lambda actor, _: actor.start_job(
            "doomed", raising(ValueError("first")), failed=raising(KeyError("second"))
        )
    }
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: len(failures(bench)) == 1)
    assert failures(bench)[0].error == "job 'doomed': KeyError: 'second'"


@pytest.mark.parametrize("error", DEADLY, ids=lambda error: type(error).__name__)
def test_an_exception_at_the_start_raises_where_the_actor_is_spawned(
    bench: Bench, error: BaseException
) -> None:
    with pytest.raises(ActorStartError, match=f"the actor unborn did not start: .*{type(error).__name__}"):
        bench.spawn("unborn", Scripted(bench.recorder, on_start=raising(error)))
    bench.wait(lambda: len(failures(bench)) == 1)
    assert bench.ref("unborn").request(Question()).done


def test_a_name_is_given_once(bench: Bench) -> None:
    bench.spawn("actor", Scripted(bench.recorder))
    with pytest.raises(ActorStartError, match="already an actor named actor"):
        bench.spawn("actor", Scripted(bench.recorder))


@pytest.mark.blocking_handlers
def test_an_actor_that_does_not_start_in_time_is_refused(
    threads: ThreadedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute_node.actors.kit.threaded.START_TIMEOUT_S", 0.0)
    go_on = threading.Event()
    try:
        with pytest.raises(ActorStartError, match="it took longer than 0 s"):
            threads.spawn("slow", Scripted(threads.recorder, on_start=lambda _: raise_unless(go_on)))
        assert threads.ref("slow").request(Question()).done
    finally:
        go_on.set()


def raise_unless(event: threading.Event) -> None:
    assert event.wait(WAIT_S)


@pytest.mark.parametrize("what", ["-job-2", ""], ids=["a thread for jobs", "its own thread"])
def test_a_machine_without_threads_to_spare_refuses_the_start_and_stops_at_once(
    threads: ThreadedBench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    start = threading.Thread.start
    doomed = f"actor{what}" if what else "_actor_loop"

    def start_or_refuse(thread: threading.Thread) -> None:
        if doomed in thread.name or doomed in str(getattr(thread, "_target", "")):
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
    with pytest.raises(ActorStartError, match="can't start new thread"):
        threads.spawn("actor", Scripted(threads.recorder))
    monkeypatch.undo()
    assert threads.stop() == ()


def test_a_dead_actor_refuses_requests_at_once_and_swallows_the_rest(bench: Bench) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder, {Note: raising(ValueError("bad luck"))}))
    ref.tell(Note("die"))
    bench.wait(lambda: len(failures(bench)) == 1)
    pending = ref.request(Question())
    assert pending.done
    with pytest.raises(ActorUnavailableError, match="actor: it died of ValueError: bad luck"):
        pending.get(0)
    ref.tell(Note("nobody hears"))
    assert len(failures(bench)) == 1


def test_the_asker_of_the_request_that_kills_learns_of_it(bench: Bench) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder, {Question: raising(ValueError("bad luck"))}))
    with pytest.raises(ActorUnavailableError, match="actor failed: ValueError: bad luck"):
        bench.result(ref.request(Question()))


def test_all_who_wait_learn_of_the_death(bench: Bench) -> None:
    kept: list[Replier[Answer]] = []
    script = {
        Question: lambda actor, question: kept.append(actor.defer(question)),
        Note: raising(ValueError("bad luck")),
    }
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    waiting = [ref.request(Question(str(number))) for number in range(5)]
    ref.tell(Note("die"))
    behind = [ref.request(Question(str(number))) for number in range(5)]
    for pending in waiting + behind:
        with pytest.raises(ActorUnavailableError, match="it died of ValueError: bad luck"):
            bench.result(pending)


def test_a_callback_that_raises_at_the_death_keeps_no_asker_waiting(bench: Bench) -> None:
    kept: list[Replier[Answer]] = []

    def begin(actor: Scripted, _: Other) -> None:
        def work(cancellation: Cancellation) -> Message | None:
            cancellation.on_request(raising(OSError("no such process")))
            bench.recorder.add("at work")
            hold(cancellation)
            return None

        actor.start_job("work", work)

    release = threading.Event()

    def hold(_: Cancellation) -> None:
        if isinstance(bench, SimulatedBench):
            from compute_node.actors.kit.jobs import Blocked

            raise Blocked
        assert release.wait(WAIT_S)

    script = {
        Other: begin,
        Question: lambda actor, question: kept.append(actor.defer(question)),
        Note: raising(ValueError("bad luck")),
    }
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    ref.tell(Other())
    bench.wait(lambda: "at work" in bench.recorder.entries)
    pending = ref.request(Question())
    ref.tell(Note("die"))
    try:
        with pytest.raises(ActorUnavailableError, match="bad luck"):
            bench.result(pending)
        bench.wait(lambda: len(failures(bench)) == 1)
    finally:
        release.set()


def test_an_answer_that_is_given_before_the_exception_still_counts(bench: Bench) -> None:
    def reply_and_die(actor: Scripted, question: Question) -> None:
        actor.reply(question, Answer("yes"))
        raise ValueError

    ref = bench.spawn("actor", Scripted(bench.recorder, {Question: reply_and_die}))
    assert bench.result(ref.request(Question())) == Answer("yes")
    bench.wait(lambda: len(failures(bench)) == 1)


@pytest.mark.parametrize("kind", [ThreadedBench, lambda **of: SimulatedBench(1, **of)])
def test_the_death_of_the_watcher_is_told_to_whoever_owns_the_runtime(kind: Callable[..., Bench]) -> None:
    bench = kind(watcher="doomed")
    bench.spawn("doomed", Scripted(bench.recorder, {ActorFailed: raising(KeyError("watcher"))}))
    bench.spawn("actor", Scripted(bench.recorder, {Note: raising(ValueError("bad luck"))})).tell(Note("die"))
    bench.wait(lambda: len(bench.abandoned) == 1)
    assert bench.abandoned == [ActorFailed("doomed", "KeyError: 'watcher'")]
    bench.spawn("second", Scripted(bench.recorder, {Note: raising(ValueError("worse"))})).tell(Note("die"))
    bench.wait(lambda: len(bench.abandoned) == 2)
    assert bench.abandoned[1] == ActorFailed("second", "ValueError: worse")
    assert bench.stop() == ()


def test_without_a_watcher_a_death_is_told_to_whoever_owns_the_runtime() -> None:
    bench = ThreadedBench()
    bench.spawn("actor", Scripted(bench.recorder, {Note: raising(ValueError("bad luck"))})).tell(Note("die"))
    bench.wait(lambda: len(bench.abandoned) == 1)
    assert bench.abandoned == [ActorFailed("actor", "ValueError: bad luck")]
    assert bench.stop() == ()


def test_an_owner_that_fails_to_hear_of_a_death_does_not_end_the_thread() -> None:
    runtime = ThreadedRuntime(watcher="nobody", abandoned=raising(OSError("the owner is broken")))
    bench = ThreadedBench()
    ref = runtime.spawn("actor", Scripted(bench.recorder, {Note: raising(ValueError("bad luck"))}))
    ref.tell(Note("die"))
    with pytest.raises(ActorUnavailableError, match="bad luck"):
        ref.ask(Question(), WAIT_S)
    assert "actor" in {thread.name for thread in threading.enumerate()}
    assert runtime.stop(WAIT_S) == ()
    assert bench.stop() == ()


def test_nobody_waits_for_ever_for_an_actor_that_dies_or_stops_meanwhile() -> None:
    for round_number in range(40):
        bench = ThreadedBench()
        script: dict[Any, Any] = {
            Question: lambda actor, question: actor.reply(question, Answer("")),
            Note: raising(ValueError("bad luck")),
        }
        ref = bench.spawn("actor", Scripted(bench.recorder, script))
        gate = threading.Barrier(4)
        outcomes: list[str] = []

        def ask_many(ref: Any = ref, gate: threading.Barrier = gate, outcomes: list[str] = outcomes) -> None:
            gate.wait(WAIT_S)
            for _ in range(50):
                pending: Pending[Answer] = ref.request(Question())
                try:
                    pending.get(5)
                except ActorUnavailableError:
                    outcomes.append("unavailable")
                except AskError as error:
                    outcomes.append(str(error))

        askers = [threading.Thread(target=ask_many) for _ in range(3)]
        for asker in askers:
            asker.start()
        gate.wait(WAIT_S)
        if round_number % 2:
            ref.tell(Note("die"))
        assert bench.stop() == ()
        for asker in askers:
            asker.join(WAIT_S)
            assert not asker.is_alive()
        assert set(outcomes) <= {"unavailable"}

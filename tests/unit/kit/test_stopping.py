import threading
from functools import partial
from typing import Any

import pytest
from compute_node.actors.kit.actor import Replier
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.base import ActorUnavailableError, Message
from compute_node.messages.lifecycle import ActorFailed

from doubles.scripted import WAIT_S, Answer, Bench, Note, Other, Question, Scripted, ThreadedBench


def kit_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} - {"MainThread"}


def test_a_stop_ends_every_thread_and_may_be_repeated() -> None:
    before = kit_threads()
    bench = ThreadedBench()
    bench.spawn("a", Scripted(bench.recorder))
    bench.spawn("b", Scripted(bench.recorder))
    assert kit_threads() - before == {"a", "a-job-1", "a-job-2", "b", "b-job-1", "b-job-2", "timers"}
    assert bench.stop() == ()
    assert kit_threads() == before
    assert bench.stop() == ()


@pytest.mark.blocking_handlers
def test_a_stop_does_not_wait_behind_a_full_mailbox() -> None:
    bench = ThreadedBench()
    entered = threading.Event()

    def hold_until_stopped(_: Scripted, __: Other) -> None:
        entered.set()
        assert bench.runtime._residents["actor"].host.actor_stopped.wait(WAIT_S)

    ref = bench.spawn("actor", Scripted(bench.recorder, {Other: hold_until_stopped}))
    ref.tell(Other("first"))
    assert entered.wait(WAIT_S)
    for number in range(5_000):
        ref.tell(Note(str(number)))
    asked = ref.request(Question())
    for number in range(45_000):
        ref.tell(Note(str(number)))
    assert bench.stop() == ()
    assert bench.recorder.entries == [Other("first")]
    with pytest.raises(ActorUnavailableError, match="actor: it was stopped"):
        asked.get(0)


def test_what_is_started_last_is_stopped_first(bench: Bench) -> None:
    ended: list[str] = []

    def wait_for_the_end(actor: Scripted, question: Question) -> None:
        actor.defer(question)

    waiting = []
    for name in ("first", "second", "third"):
        ref = bench.spawn(name, Scripted(bench.recorder, {Question: wait_for_the_end}))
        pending = ref.request(Question())
        pending.on_done(partial(ended.append, name))
        waiting.append(pending)
    bench.wait(lambda: len([e for e in bench.recorder.entries if isinstance(e, Question)]) == 3)
    assert bench.stop() == ()
    assert ended == ["third", "second", "first"]


def test_a_stop_tells_all_who_wait(bench: Bench) -> None:
    kept: list[Replier[Answer]] = []
    script: dict[Any, Any] = {Question: lambda actor, question: kept.append(actor.defer(question))}
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    waiting = [ref.request(Question(str(number))) for number in range(3)]
    bench.wait(lambda: len(kept) == 3)
    assert bench.stop() == ()
    for pending in waiting:
        with pytest.raises(ActorUnavailableError, match="actor: it was stopped"):
            pending.get(0)
    late = ref.request(Question())
    assert late.done
    with pytest.raises(ActorUnavailableError, match="actor: it was stopped"):
        late.get(0)
    assert not any(isinstance(entry, ActorFailed) for entry in bench.recorder.entries)


def test_a_stop_cancels_jobs_those_in_the_queue_included() -> None:
    bench = ThreadedBench()
    cancelled: list[int] = []
    began = threading.Semaphore(0)

    def begin(actor: Scripted, _: Note) -> None:
        for number in range(6):
            actor.start_job(f"job {number}", partial(work, number))

    def work(number: int, cancellation: Cancellation) -> Message | None:
        cancellation.on_request(lambda: cancelled.append(number))
        began.release()
        cancellation.wait(3600)
        return None

    bench.spawn("actor", Scripted(bench.recorder, {Note: begin})).tell(Note("go"))
    for _ in range(2):
        assert began.acquire(timeout=WAIT_S)
    assert bench.stop() == ()
    assert sorted(cancelled) == [0, 1]


@pytest.mark.blocking_handlers
def test_a_stop_names_the_threads_that_live_on_and_leaves_at_its_deadline() -> None:
    bench = ThreadedBench()
    go_on = threading.Event()
    entered = threading.Semaphore(0)

    def hang(_: object, __: object = None) -> None:
        entered.release()
        assert go_on.wait(WAIT_S)

    bench.spawn("healthy", Scripted(bench.recorder))
    bench.spawn("deaf", Scripted(bench.recorder, {Other: hang})).tell(Other())
    script = {Note: lambda actor, _: actor.start_job("deaf work", hang)}
    bench.spawn("worker", Scripted(bench.recorder, script)).tell(Note("go"))
    for _ in range(2):
        assert entered.acquire(timeout=WAIT_S)
    left = {name.removesuffix("-job-1").removesuffix("-job-2") for name in bench.runtime.stop(0.2)}
    assert {"worker", "deaf"} <= left
    go_on.set()
    assert bench.stop() == ()


@pytest.mark.blocking_handlers
def test_an_actor_that_hangs_does_not_keep_its_jobs_from_being_cancelled() -> None:
    bench = ThreadedBench()
    go_on, at_work, cancelled = threading.Event(), threading.Event(), threading.Event()
    hanging = threading.Event()

    def work(cancellation: Cancellation) -> Message | None:
        cancellation.on_request(cancelled.set)
        at_work.set()
        cancellation.wait(3600)
        return None

    def hang(_: Scripted, __: Other) -> None:
        hanging.set()
        assert go_on.wait(WAIT_S)

    script: dict[Any, Any] = {Note: lambda actor, _: actor.start_job("work", work), Other: hang}
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    ref.tell(Note("go"))
    assert at_work.wait(WAIT_S)
    ref.tell(Other())
    assert hanging.wait(WAIT_S)
    assert "actor" in bench.runtime.stop(0.1)
    assert cancelled.is_set()
    go_on.set()
    assert bench.stop() == ()


@pytest.mark.blocking_handlers
def test_an_exception_during_a_stop_reaches_the_owner() -> None:
    bench = ThreadedBench()
    entered, go_on = threading.Event(), threading.Event()

    def die(_: Scripted, __: Other) -> None:
        entered.set()
        assert go_on.wait(WAIT_S)
        msg = "bad luck"
        raise ValueError(msg)

    bench.spawn("actor", Scripted(bench.recorder, {Other: die})).tell(Other())
    assert entered.wait(WAIT_S)
    assert "actor" in bench.runtime.stop(0.01)
    go_on.set()
    bench.wait(lambda: len(bench.abandoned) == 1)
    assert bench.abandoned == [ActorFailed("actor", "ValueError: bad luck")]
    assert bench.stop() == ()


def test_a_request_that_slips_in_after_the_last_look_into_the_mailbox_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = ThreadedBench()
    ref = bench.spawn("actor", Scripted(bench.recorder))

    def alive_until_now() -> bool:
        monkeypatch.undo()
        assert bench.stop() == ()
        return True

    monkeypatch.setattr(bench.runtime._residents["actor"].host.actor_ref, "is_alive", alive_until_now)
    pending = ref.request(Question())
    assert pending.done
    with pytest.raises(ActorUnavailableError, match="actor: it was stopped"):
        pending.get(0)

import threading
from functools import partial
from typing import Any

import pytest
from compute_node.actors.kit.actor import Pending, Ref, Replier
from compute_node.actors.kit.threaded import MAX_WAITING
from compute_node.messages.base import ActorUnavailableError, AskTimeoutError, Message
from compute_node.messages.lifecycle import ActorFailed

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


def answering(actor: Scripted, question: Question) -> None:
    actor.reply(question, Answer(f"to {question.text}"))


def test_messages_of_one_sender_arrive_in_the_order_they_were_told(bench: Bench) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder))
    for number in range(200):
        ref.tell(Note(str(number)))
    bench.wait(lambda: len(bench.recorder.texts) == 200)
    assert bench.recorder.texts == [str(number) for number in range(200)]


def test_every_actor_handles_one_message_at_a_time(threads: ThreadedBench) -> None:
    inside: list[str] = []
    overlaps: list[str] = []

    def count(_: Scripted, note: Note) -> None:
        inside.append(note.text)
        if len(inside) > 1:
            overlaps.append(note.text)
        inside.pop()

    ref = threads.spawn("actor", Scripted(threads.recorder, {Note: count}))
    gate = threading.Barrier(4)

    def tell_many(sender: int) -> None:
        gate.wait(WAIT_S)
        for number in range(200):
            ref.tell(Note(f"{sender}.{number}"))

    senders = [threading.Thread(target=tell_many, args=(sender,)) for sender in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    threads.wait(lambda: len(threads.recorder.texts) == 800)
    assert overlaps == []
    for number in range(4):
        mine = [text for text in threads.recorder.texts if text.startswith(f"{number}.")]
        assert mine == [f"{number}.{index}" for index in range(200)]


def test_an_answer_reaches_its_asker(bench: Bench) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder, {Question: answering}))
    pending: Pending[Answer] = ref.request(Question("one"))
    assert bench.result(pending) == Answer("to one")
    assert pending.done


def test_an_ask_on_threads_waits_for_its_answer(threads: ThreadedBench) -> None:
    ref = threads.spawn("actor", Scripted(threads.recorder, {Question: answering}))
    assert ref.ask(Question("one"), WAIT_S) == Answer("to one")


def test_an_ask_in_the_simulation_steps_until_the_answer_is_there(simulation: SimulatedBench) -> None:
    ref = simulation.spawn("actor", Scripted(simulation.recorder, {Question: answering}))
    assert simulation.runtime.ask(ref, Question("one")) == Answer("to one")


def test_a_request_that_is_only_told_needs_no_asker(bench: Bench) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder, {Question: answering}))
    ref.tell(Question("one"))
    bench.wait(lambda: Question("one") in bench.recorder.entries)
    assert bench.result(ref.request(Question("two"))) == Answer("to two")


def test_an_asker_is_told_when_the_answer_is_there(bench: Bench) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder, {Question: answering}))
    pending = ref.request(Question())
    pending.on_done(partial(bench.recorder.add, "answered"))
    bench.wait(lambda: "answered" in bench.recorder.entries)


def test_a_timed_out_ask_says_so_and_its_work_goes_on(threads: ThreadedBench) -> None:
    go_on = threading.Event()

    def slowly(actor: Scripted, question: Question) -> None:
        kept = actor.defer(question)

        def work(_: object) -> Message | None:
            assert go_on.wait(WAIT_S)
            return Other("done")

        actor.start_job("slow work", work)
        repliers.append(kept)

    def finish(_: Scripted, __: Other) -> None:
        repliers.pop().answer(Answer("late"))

    repliers: list[Replier[Answer]] = []
    ref = threads.spawn("actor", Scripted(threads.recorder, {Question: slowly, Other: finish}))
    pending: Pending[Answer] = ref.request(Question())
    with pytest.raises(AskTimeoutError, match=r"no answer to Question by actor within 0 s"):
        pending.get(0)
    go_on.set()
    assert pending.get(WAIT_S) == Answer("late")


def test_an_ask_waits_no_longer_than_it_says(threads: ThreadedBench) -> None:
    kept: list[Replier[Answer]] = []
    script: dict[Any, Any] = {Question: lambda actor, question: kept.append(actor.defer(question))}
    ref = threads.spawn("actor", Scripted(threads.recorder, script))
    with pytest.raises(AskTimeoutError, match=r"no answer to Question by actor within 0\.01 s"):
        ref.ask(Question(), 0.01)


def test_a_deferred_reply_answers_at_a_later_message(bench: Bench) -> None:
    kept: list[Replier[Answer]] = []
    script = {
        Question: lambda actor, question: kept.append(actor.defer(question)),
        Note: lambda _, note: kept.pop(0).answer(Answer(note.text)),
    }
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    first, second = ref.request(Question("1")), ref.request(Question("2"))
    ref.tell(Note("a"))
    ref.tell(Note("b"))
    assert bench.result(first) == Answer("a")
    assert bench.result(second) == Answer("b")


def test_a_deferred_request_that_was_told_may_be_answered_into_the_void(bench: Bench) -> None:
    kept: list[Replier[Answer]] = []
    script = {
        Question: lambda actor, question: kept.append(actor.defer(question)),
        Note: lambda _, note: kept.pop(0).answer(Answer(note.text)),
    }
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    ref.tell(Question())
    ref.tell(Note("a"))
    bench.wait(lambda: bench.recorder.texts == ["a"])
    assert not any(isinstance(entry, ActorFailed) for entry in bench.recorder.entries)


def reply_twice(actor: Scripted, question: Question) -> None:
    actor.reply(question, Answer("first"))
    actor.reply(question, Answer("second"))


def reply_and_defer(actor: Scripted, question: Question) -> None:
    actor.reply(question, Answer("first"))
    actor.defer(question)


def defer_and_reply(actor: Scripted, question: Question) -> None:
    actor.defer(question).answer(Answer("first"))
    actor.reply(question, Answer("second"))


def answer_twice(actor: Scripted, question: Question) -> None:
    replier = actor.defer(question)
    replier.answer(Answer("first"))
    replier.answer(Answer("second"))


@pytest.mark.parametrize("twice", [reply_twice, reply_and_defer, defer_and_reply, answer_twice])
def test_a_second_answer_is_the_death_of_the_actor_and_the_first_one_counts(bench: Bench, twice: Any) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder, {Question: twice}))
    assert bench.result(ref.request(Question())) == Answer("first")
    bench.wait(lambda: any(isinstance(entry, ActorFailed) for entry in bench.recorder.entries))
    failure = next(entry for entry in bench.recorder.entries if isinstance(entry, ActorFailed))
    assert failure == ActorFailed("actor", "RuntimeError: Question was answered twice")


def test_a_forgotten_reply_is_the_death_of_the_actor_and_its_asker_learns_it(bench: Bench) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder, {Question: lambda *_: None}))
    with pytest.raises(
        ActorUnavailableError, match=r"actor failed: .*Question was neither answered nor kept for later"
    ):
        bench.result(ref.request(Question()))
    bench.wait(lambda: any(isinstance(entry, ActorFailed) for entry in bench.recorder.entries))


def test_only_the_request_that_is_being_handled_can_be_replied_to(bench: Bench) -> None:
    seen: list[Question] = []

    def reply_to_an_old_one(actor: Scripted, question: Question) -> None:
        actor.reply(seen[0] if seen else question, Answer("x"))
        seen.append(question)

    ref = bench.spawn("actor", Scripted(bench.recorder, {Question: reply_to_an_old_one}))
    assert bench.result(ref.request(Question("1"))) == Answer("x")
    with pytest.raises(ActorUnavailableError, match="Question is not the request that is being handled"):
        bench.result(ref.request(Question("2")))


def test_an_actor_may_tell_itself(bench: Bench) -> None:
    script = {Note: lambda actor, _: actor.myself.tell(Other("later"))}
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("first"))
    bench.wait(lambda: len(bench.recorder.entries) == 2)
    assert bench.recorder.entries == [Note("first"), Other("later")]


def test_an_absent_actor_is_unavailable_at_once(bench: Bench) -> None:
    pending = bench.ref("nobody").request(Question())
    assert pending.done
    with pytest.raises(ActorUnavailableError, match="no actor named nobody"):
        pending.get(0)


def test_what_is_told_to_an_absent_actor_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.ref("nobody").tell(Note("x"))
    assert "there is no actor named nobody: Note is lost" in caplog.text


def test_an_address_may_be_given_out_before_its_actor_is_there(bench: Bench) -> None:
    ref: Ref[Message] = bench.ref("late")
    bench.spawn("late", Scripted(bench.recorder))
    ref.tell(Note("hello"))
    bench.wait(lambda: bench.recorder.texts == ["hello"])


@pytest.mark.blocking_handlers
def test_a_full_mailbox_refuses_requests_and_never_what_actors_tell(threads: ThreadedBench) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold(_: Scripted, __: Other) -> None:
        entered.set()
        assert go_on.wait(WAIT_S)

    ref = threads.spawn("actor", Scripted(threads.recorder, {Other: hold, Question: answering}))
    ref.tell(Other())
    assert entered.wait(WAIT_S)
    for number in range(MAX_WAITING + 1):
        ref.tell(Note(str(number)))
    refused = ref.request(Question())
    assert refused.done
    with pytest.raises(ActorUnavailableError, match=f"more than {MAX_WAITING} messages waiting"):
        refused.get(0)
    ref.tell(Note("the last"))
    go_on.set()
    threads.wait(lambda: threads.recorder.entries[-1:] == [Note("the last")])
    assert len(threads.recorder.texts) == MAX_WAITING + 2
    assert ref.ask(Question("again"), WAIT_S) == Answer("to again")

import json
from typing import Any

import msgspec
import pytest
from compute_node.actors.kit.journal import CAPACITY, MAX_CONTENT, Journal
from compute_node.messages.base import Message, redacted
from compute_node.messages.secret import MASK, Secret
from typing_extensions import override

from doubles.scripted import Answer, Bench, Note, Question, Scripted

CANARY = "correct horse battery staple"


class Confidential(Message, frozen=True):
    password: Secret
    nested: tuple[Secret, ...] = ()


class Opaque(Message, frozen=True):
    thing: Any


class Loop:
    """Refuses to be written, and says its secret when asked why."""

    @override
    def __repr__(self) -> str:
        raise AssertionError(CANARY)


def content(journal: Journal) -> Any:
    return msgspec.json.decode(journal.read()[-1].content)


def test_the_journal_tells_what_was_handled_by_whom_and_when(bench: Bench) -> None:
    ref = bench.spawn(
        "actor",
        Scripted(bench.recorder, {Question: lambda actor, question: actor.reply(question, Answer("yes"))}),
    )
    ref.tell(Note("hello"))
    assert bench.result(ref.request(Question("why"))) == Answer("yes")
    ref.tell(Note("the one before stands in the journal by now"))
    bench.wait(lambda: len(bench.recorder.texts) == 2)
    first, second = bench.journal.read()[:2]
    assert (first.number, first.actor, first.message) == (1, "actor", "Note")
    assert json.loads(bytes(first.content)) == {"message": "Note", "text": "hello"}
    assert (second.number, second.actor, second.message) == (2, "actor", "Question")
    assert first.at_s <= second.at_s <= bench.clock.now()
    assert first.took_ms >= 0


def test_an_actor_can_read_the_journal(bench: Bench) -> None:
    seen: list[int] = []
    script = {Note: lambda actor, _: seen.append(len(actor.journal()))}
    ref = bench.spawn("actor", Scripted(bench.recorder, script))
    ref.tell(Note("a"))
    ref.tell(Note("b"))
    bench.wait(lambda: bench.recorder.texts == ["a", "b"])
    assert seen == [0, 1]


def test_the_message_that_killed_stands_in_the_journal(bench: Bench) -> None:
    def die(_: Scripted, __: Note) -> None:
        raise ValueError

    bench.spawn("actor", Scripted(bench.recorder, {Note: die})).tell(Note("deadly"))
    bench.wait(lambda: len(bench.recorder.entries) == 1)
    assert ("actor", "Note") in {(entry.actor, entry.message) for entry in bench.journal.read()}


def test_the_journal_is_bounded_and_keeps_the_newest() -> None:
    journal = Journal()
    for number in range(CAPACITY + 10):
        journal.record(0.0, "actor", Note(str(number)), 0.0)
    entries = journal.read()
    assert len(entries) == CAPACITY
    assert [entries[0].number, entries[-1].number] == [11, CAPACITY + 10]


def test_secrets_are_masked_in_the_journal() -> None:
    journal = Journal()
    journal.record(0.0, "actor", Confidential(Secret(CANARY), (Secret(CANARY),)), 0.0)
    assert content(journal) == {"message": "Confidential", "password": MASK, "nested": [MASK]}
    assert CANARY not in repr(journal.read())
    assert CANARY.encode() not in redacted(Confidential(Secret(CANARY)))


def test_long_messages_show_that_they_are_long() -> None:
    journal = Journal()
    journal.record(0.0, "actor", Note("x" * MAX_CONTENT), 0.0)
    assert content(journal) == "(too long to show)"
    journal.record(0.0, "actor", Note("x" * (MAX_CONTENT - 40)), 0.0)
    assert content(journal)["text"] == "x" * (MAX_CONTENT - 40)


@pytest.mark.parametrize(
    "message",
    [
        Note("\ud800"),
        Opaque(object()),
        Opaque({Loop(): Loop()}),
        Opaque({1, 2}),
        Opaque(10**400),
        Opaque(Loop()),
        Opaque(float("nan")),
        Opaque(b"\xff\x00"),
    ],
    ids=[
        "a lone surrogate",
        "no JSON form",
        "keys without one",
        "a set",
        "a huge number",
        "a liar",
        "NaN",
        "bytes",
    ],
)
def test_reading_the_journal_never_fails_whatever_a_message_holds(message: Message) -> None:
    journal = Journal()
    journal.record(0.0, "actor", message, 0.0)
    journal.record(0.0, "actor", Note("after"), 0.0)
    first, second = journal.read()
    assert isinstance(msgspec.json.decode(first.content), dict | str)
    assert CANARY not in repr(first)
    assert second.message == "Note"
    assert msgspec.json.decode(msgspec.json.encode(journal.read()))[1]["content"]["text"] == "after"


def test_a_message_that_holds_itself_does_not_break_the_journal() -> None:
    endless: list[object] = []
    endless.append(endless)
    journal = Journal()
    journal.record(0.0, "actor", Opaque(endless), 0.0)
    assert content(journal) == "(cannot be shown: RecursionError)"


def test_an_entry_has_microseconds_of_its_time_and_of_its_handler() -> None:
    journal = Journal()
    journal.record(12.34567891, "actor", Note("a"), 0.0123456789)
    (entry,) = journal.read()
    assert (entry.at_s, entry.took_ms) == (12.345679, 12.346)


def test_a_message_of_just_the_limit_is_shown_and_one_byte_more_is_not() -> None:
    journal = Journal()
    frame = len(redacted(Note("")))
    for size in (MAX_CONTENT - frame, MAX_CONTENT - frame + 1):
        journal.record(0.0, "actor", Note("x" * size), 0.0)
    shown, hidden = journal.read()
    assert len(bytes(shown.content)) == MAX_CONTENT
    assert bytes(hidden.content) == b'"(too long to show)"'

import logging
import re
import threading

import pytest
from compute_node.actors.kit import cell
from compute_node.actors.kit.metrics import Metrics
from compute_node.messages.metrics import (
    ACTOR_FAILURES,
    CONDITION,
    CURRENT_DOWNTIME,
    FAMILIES,
    HANDLED,
    HANDLER_SECONDS,
    MAILBOX_DEPTH,
    SLOW_HANDLERS,
    UP,
    Kind,
)

from doubles.scripted import WAIT_S, Bench, Note, Other, Scripted, ThreadedBench


def test_messages_and_their_times_are_counted_by_actor_and_kind(bench: Bench) -> None:
    ref = bench.spawn("actor", Scripted(bench.recorder))
    for text in "abc":
        ref.tell(Note(text))
    ref.tell(Other())
    bench.wait(lambda: bench.metrics.read(HANDLED).get(("actor", "Other")) == 1.0)
    assert bench.metrics.read(HANDLED) == {("actor", "Note"): 3.0, ("actor", "Other"): 1.0}
    seconds = bench.metrics.read(HANDLER_SECONDS)
    assert set(seconds) == {("actor", "Note"), ("actor", "Other")}
    assert all(value > 0 for value in seconds.values())


class FakeTime:
    """A perf_counter that a handler moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.blocking_handlers
def test_a_slow_handler_is_logged_and_counted_and_a_fast_one_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeTime()

    def take(_: Scripted, note: Note) -> None:
        fake.now += float(note.text)

    ref = bench.spawn("actor", Scripted(bench.recorder, {Note: take}))
    monkeypatch.setattr(cell, "time", fake)
    ref.tell(Note("0.05"))
    bench.wait(lambda: bench.recorder.texts == ["0.05"])
    ref.tell(Note("0.06"))
    ref.tell(Note("0.0"))
    bench.wait(lambda: len(bench.recorder.texts) == 3)
    monkeypatch.undo()
    assert bench.metrics.read(SLOW_HANDLERS) == {("actor",): 1.0}
    slow = [record for record in caplog.records if "slow handler" in record.message]
    assert [record.levelno for record in slow] == [logging.WARNING]
    assert slow[0].message == "actor: slow handler: Note took 60 ms"


@pytest.mark.blocking_handlers
def test_a_slow_start_counts_as_a_slow_handler(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeTime()

    def begin(_: Scripted) -> None:
        fake.now += 1

    monkeypatch.setattr(cell, "time", fake)
    bench.spawn("actor", Scripted(bench.recorder, on_start=begin))
    monkeypatch.undo()
    assert bench.metrics.read(SLOW_HANDLERS) == {("actor",): 1.0}
    assert "actor: slow handler: its start took 1000 ms" in caplog.messages


@pytest.mark.blocking_handlers
def test_the_depth_of_mailboxes_is_measured_when_it_is_read(threads: ThreadedBench) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold(_: Scripted, __: Other) -> None:
        entered.set()
        assert go_on.wait(WAIT_S)

    ref = threads.spawn("actor", Scripted(threads.recorder, {Other: hold}))
    ref.tell(Other())
    assert entered.wait(WAIT_S)
    for text in "abc":
        ref.tell(Note(text))
    threads.runtime.read_mailboxes()
    assert threads.metrics.read(MAILBOX_DEPTH) == {("watcher",): 0.0, ("actor",): 3.0}
    go_on.set()
    threads.wait(lambda: len(threads.recorder.texts) == 3)


def test_a_family_without_labels_is_there_from_the_first_scrape() -> None:
    metrics = Metrics()
    assert metrics.read(CURRENT_DOWNTIME) == {(): 0.0}
    assert metrics.read(UP) == {}


def test_numbers_are_set_added_and_replaced() -> None:
    metrics = Metrics()
    metrics.set(UP, 1, "latest", "init")
    metrics.add(ACTOR_FAILURES, 1, "a")
    metrics.add(ACTOR_FAILURES, 2, "a")
    assert metrics.read(ACTOR_FAILURES) == {("a",): 3.0}
    metrics.replace(UP, {("latest", "running"): 1})
    assert metrics.read(UP) == {("latest", "running"): 1}
    metrics.replace(CONDITION, {})
    assert metrics.read(CONDITION) == {}


def test_what_is_read_is_a_copy() -> None:
    metrics = Metrics()
    metrics.read(CURRENT_DOWNTIME)[()] = 99
    assert metrics.read(CURRENT_DOWNTIME) == {(): 0.0}


def test_a_sample_has_a_value_for_each_label_of_its_family() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="compute_ctl_up has the labels build_tag, status"):
        metrics.set(UP, 1, "running")
    with pytest.raises(ValueError, match="compute_node_actor_failures_total has the labels actor"):
        metrics.add(ACTOR_FAILURES, 1)
    with pytest.raises(ValueError, match="compute_ctl_up has the labels"):
        metrics.replace(UP, {("running",): 1})


def test_numbers_added_by_many_threads_are_all_counted() -> None:
    metrics = Metrics()
    gate = threading.Barrier(4)

    def add() -> None:
        gate.wait(WAIT_S)
        for _ in range(500):
            metrics.add(ACTOR_FAILURES, 1, "a")
            metrics.handled("a", "b", 0.5)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.read(ACTOR_FAILURES) == {("a",): 2000.0}
    assert metrics.read(HANDLED) == {("a", "b"): 2000.0}
    assert metrics.read(HANDLER_SECONDS) == {("a", "b"): 1000.0}


def test_names_of_metrics_are_unique_and_prometheus_takes_them() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.help.endswith(".")
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)

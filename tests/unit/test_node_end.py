"""How the main thread ends a node's life."""

from concurrent.futures import Future

import pytest
from compute_node.actors.kit.actor import Pending
from compute_node.messages.base import ActorUnavailableError
from compute_node.messages.lifecycle import ActorFailed, ExitReport
from compute_node.process import node
from compute_node.process.signals import SignalPipe


@pytest.fixture
def news(monkeypatch: pytest.MonkeyPatch) -> node._News:
    monkeypatch.setattr(node, "leave_after", lambda _: None)
    monkeypatch.setattr(SignalPipe, "wake", lambda _: None)
    return node._News(SignalPipe.__new__(SignalPipe), (), 1.0)


def pending(promise: "Future[object]") -> "Pending[ExitReport]":
    return Pending(promise, "AwaitExit")


def test_the_report_is_what_the_supervisor_says(news: node._News) -> None:
    promise: Future[object] = Future()
    assert not news.over(pending(promise))
    promise.set_result(ExitReport(0, "stopped in order"))
    assert news.over(pending(promise))
    assert news.report(pending(promise)) == ExitReport(0, "stopped in order")


def test_a_supervisor_that_died_is_a_failure(news: node._News) -> None:
    news.abandoned(ActorFailed("supervisor", "KeyError"))
    assert news.report(pending(Future())) == ExitReport(1, "the actor supervisor died: KeyError")


def test_a_supervisor_whose_death_is_not_told_yet_is_a_failure_too(news: node._News) -> None:
    promise: Future[object] = Future()
    promise.set_exception(ActorUnavailableError("supervisor: it died of KeyError"))
    assert news.over(pending(promise))
    assert news.report(pending(promise)) == ExitReport(1, "supervisor: it died of KeyError")


def test_postgres_is_stopped_before_the_actors_and_what_was_being_launched_after_them() -> None:
    done: list[str] = []

    def stop_postgres(_: float) -> bool:
        done.append("postgres")
        return False

    def stop_actors(_: float) -> tuple[str, ...]:
        done.append("actors")
        return ("a thread",)

    assert node.end(stop_postgres, stop_actors, 25.0) == ("a thread",)
    assert done == ["postgres", "actors", "postgres"]

"""Requests that wait: how many, how long, and for whom."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import get_args

import pytest
from compute_node.actors.kit.metrics import Metrics
from compute_node.http import clerk, table
from compute_node.http.app import EXTERNAL, INTERNAL, create_external_app, create_internal_app
from compute_node.http.errors import ApiError
from compute_node.http.routes import configure, probes, promote, terminate
from compute_node.http.table import Route, Scope
from compute_node.http.waiting import MAX_WAITERS, ClientGoneError, Waiters
from compute_node.messages.base import ActorUnavailableError, AskTimeoutError
from compute_node.messages.clerk import ClerkRequest
from compute_node.messages.lifecycle import ShutdownMode, Terminate, Terminated
from compute_node.messages.metrics import REFUSED_WAITERS, WAITERS

from doubles.node import BODIES, QUERIES, Client, StubSupervisor, node

REQUEST = Terminate(ShutdownMode.FAST)


def test_there_are_sixteen_places() -> None:
    assert MAX_WAITERS == 16


def test_beyond_the_limit_nothing_is_sent_and_the_answer_says_when_to_come_back() -> None:
    metrics, supervisor = Metrics(), StubSupervisor()
    waiters = Waiters(metrics, limit=3)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(waiters.wait, supervisor, REQUEST, limit_s=30) for _ in range(3)]
        supervisor.wait_until_asked(3)
        assert metrics.read(WAITERS) == {(): 3.0}
        with pytest.raises(ApiError) as caught:
            waiters.wait(supervisor, REQUEST, limit_s=30)
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
        assert len(supervisor.asked) == 3
        supervisor.release(Terminated(lsn="0/1"))
        assert [answer.result(10) for answer in waiting] == [Terminated(lsn="0/1")] * 3
    assert metrics.read(WAITERS) == {(): 0.0}
    assert metrics.read(REFUSED_WAITERS) == {(): 1.0}


def test_what_is_minor_leaves_places_for_configurations_and_terminations() -> None:
    metrics, supervisor = Metrics(), StubSupervisor()
    waiters = Waiters(metrics, limit=3, minor_limit=2)
    with waiters.place(minor=True), waiters.place(minor=True):
        with pytest.raises(ApiError) as caught, waiters.place(minor=True):
            pass
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
        assert caught.value.text.startswith("2 requests are waiting already")
        with waiters.place(minor=False):
            assert metrics.read(WAITERS) == {(): 3.0}
    with (
        waiters.place(minor=False),
        waiters.place(minor=False),
        waiters.place(minor=False),
        pytest.raises(ApiError, match=r"^3 requests are waiting already"),
        waiters.place(minor=True),
    ):
        pass
    with waiters.place(minor=True):
        assert metrics.read(WAITERS) == {(): 1.0}
    assert metrics.read(REFUSED_WAITERS) == {(): 2.0}
    assert supervisor.asked == []


@pytest.mark.parametrize("failure", [ActorUnavailableError("dead"), ValueError("odd")])
def test_a_place_is_free_again_after_any_failure(failure: Exception) -> None:
    metrics, supervisor = Metrics(), StubSupervisor()
    supervisor.answers[Terminate] = failure
    waiters = Waiters(metrics, limit=1)
    for _ in range(3):
        with pytest.raises(type(failure)):
            waiters.wait(supervisor, REQUEST, limit_s=1)
    assert metrics.read(WAITERS) == {(): 0.0}


def test_a_client_that_left_frees_its_place() -> None:
    gone = threading.Event()
    metrics, supervisor = Metrics(), StubSupervisor()
    waiters = Waiters(metrics, limit=1, slice_s=0.001)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waiters.wait, supervisor, REQUEST, limit_s=30, gone=gone.is_set)
        supervisor.wait_until_asked(1)
        gone.set()
        with pytest.raises(ClientGoneError):
            waiting.result(10)
    assert metrics.read(WAITERS) == {(): 0.0}


def test_an_answer_counts_more_than_a_client_that_left() -> None:
    supervisor = StubSupervisor()
    supervisor.answers[Terminate] = Terminated(lsn=None)
    answer = Waiters(Metrics()).wait(supervisor, REQUEST, limit_s=1, gone=lambda: True)
    assert answer == Terminated(lsn=None)


@pytest.mark.parametrize("limit_s", [0.0, 0.005, 0.02])
def test_the_wait_ends_at_its_limit(limit_s: float) -> None:
    with pytest.raises(AskTimeoutError):
        Waiters(Metrics(), slice_s=0.01).wait(StubSupervisor(), REQUEST, limit_s=limit_s)


@pytest.mark.parametrize("route", [*EXTERNAL, *INTERNAL], ids=lambda route: f"{route.method} {route.path}")
def test_no_request_outlives_its_limit_when_the_supervisor_keeps_silent(
    route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = (
        (table, "ASK_S"),
        (probes, "PROBE_S"),
        (configure, "CONFIGURE_LIMIT_S"),
        (promote, "CONFIGURE_LIMIT_S"),
        (terminate, "STOP_MARGIN_S"),
        (clerk, "QUEUE_LIMIT_S"),
        (clerk, "MARGIN_S"),
        *((request, "limit_s") for request in get_args(ClerkRequest)),
    )
    for module, name in limits:
        monkeypatch.setattr(module, name, 0.01)
    silent = replace(node(StubSupervisor()), stop_timeout_s=0.01)
    make = create_external_app if route in EXTERNAL else create_internal_app
    client = Client(make(silent))
    result = client(route.method, route.path + QUERIES.get(route.path, ""), document=BODIES.get(route.path))
    probe = route.path in {"/live", "/ready"}
    from_memory = route.scope is Scope.PUBLIC and route.method == "GET" and not route.waits and not probe
    assert result.status_code == (200 if from_memory else 503 if probe else 504)

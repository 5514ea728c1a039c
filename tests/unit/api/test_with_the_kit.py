"""The application in front of a real actor of the kit: its Ref and its Metrics are what the port asks for."""

from collections.abc import Iterator
from typing import Any

import pytest
from compute_node.http.app import create_external_app
from compute_node.http.port import AuthSettings, Node
from compute_node.messages.lifecycle import Configure, ConfigureRefused, GetReadiness, GetStatus

from doubles.node import CONFIGURE, RUNNING, Client
from doubles.scripted import Scripted, ThreadedBench
from doubles.tokens import COMPUTE_ID, KEY


@pytest.fixture
def bench() -> Iterator[ThreadedBench]:
    """The threaded runtime; it leaves no thread behind."""
    bench = ThreadedBench()
    yield bench
    assert bench.stop() == ()


def _client(bench: ThreadedBench) -> Client:
    node = Node(
        supervisor=bench.ref("supervisor"),
        postgres_process=bench.ref("postgres_process"),
        configurator=bench.ref("configurator"),
        clerk=bench.ref("clerk"),
        lfc=bench.ref("lfc_manager"),
        metrics=bench.metrics,
        auth=AuthSettings(COMPUTE_ID, (KEY.jwk,)),
        refresh_metrics=bench.runtime.read_mailboxes,
    )
    return Client(create_external_app(node))


def _reply(answer: object) -> Any:
    return lambda actor, message: actor.reply(message, answer)


def test_an_actor_answers_requests(bench: ThreadedBench) -> None:
    refused = ConfigureRefused("invalid compute status: init", bad_spec=False)
    bench.spawn(
        "supervisor", Scripted(bench.recorder, {GetStatus: _reply(RUNNING), Configure: _reply(refused)})
    )
    client = _client(bench)
    assert client("GET", "/status").json["status"] == "running"
    assert client("POST", "/configure", document=CONFIGURE).status_code == 412
    assert 'compute_node_mailbox_depth{actor="supervisor"} 0.0' in client("GET", "/metrics").text


def test_without_a_supervisor_everything_but_the_probes_is_503_and_the_probes_say_so(
    bench: ThreadedBench,
) -> None:
    client = _client(bench)
    for method, target in (("GET", "/status"), ("GET", "/live"), ("GET", "/ready"), ("POST", "/terminate")):
        assert client(method, target).status_code == 503


@pytest.mark.slow
def test_a_supervisor_that_is_stuck_makes_the_node_not_live_within_a_second_or_so(
    bench: ThreadedBench,
) -> None:
    bench.spawn(
        "supervisor", Scripted(bench.recorder, {GetReadiness: lambda actor, message: actor.defer(message)})
    )
    result = _client(bench)("GET", "/live")
    assert result.status_code == 503
    assert result.json["conditions"][0]["condition"] == "supervisor_unresponsive"

import pytest
from compute_node.actors.kit.metrics import Metrics
from compute_node.http.app import create_external_app
from compute_node.messages.lifecycle import GetStartupMetrics, GetStatus, StartupMetrics

from doubles.node import RUNNING, Client, StubSupervisor, node


@pytest.fixture
def supervisor() -> StubSupervisor:
    """A Supervisor of a running node; it keeps silent to what a test does not set."""
    stub = StubSupervisor()
    stub.answers[GetStatus] = RUNNING
    stub.answers[GetStartupMetrics] = StartupMetrics(start_postgres_ms=210)
    return stub


@pytest.fixture
def metrics() -> Metrics:
    """The numbers of the node."""
    return Metrics()


@pytest.fixture
def client(supervisor: StubSupervisor, metrics: Metrics) -> Client:
    """The external application with a token that opens it."""
    return Client(create_external_app(node(supervisor, metrics)))

"""`POST /refresh_configuration` on the internal server: answered at once, or refused by the name of the status."""

import pytest
from compute_node.http.app import create_internal_app
from compute_node.messages.lifecycle import RefreshConfiguration, RefreshTaken, Status, WrongStatus

from doubles.node import Client, StubSupervisor, node


def test_a_refresh_is_taken_with_an_empty_answer_and_without_a_token(supervisor: StubSupervisor) -> None:
    supervisor.answers[RefreshConfiguration] = RefreshTaken()
    result = Client(create_internal_app(node(supervisor)), token="")("POST", "/refresh_configuration")
    assert (result.status_code, result.text) == (200, "")


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (Status.EMPTY, "Empty"),
        (Status.CONFIGURATION_PENDING, "ConfigurationPending"),
        (Status.TERMINATION_PENDING_FAST, "TerminationPendingFast"),
        (Status.FAILED, "Failed"),
    ],
)
def test_a_refresh_in_another_status_is_500_as_the_counterpart_says_it(
    supervisor: StubSupervisor, status: Status, name: str
) -> None:
    supervisor.answers[RefreshConfiguration] = WrongStatus(status)
    result = Client(create_internal_app(node(supervisor)), token="")("POST", "/refresh_configuration")
    assert (result.status_code, result.json) == (
        500,
        {"error": f"Cannot refresh compute configuration in state {name}"},
    )

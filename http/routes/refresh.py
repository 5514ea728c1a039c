"""`POST /refresh_configuration`, internal: Postgres suspects that its spec is outdated."""

from typing import Final, assert_never

from ...messages.lifecycle import RefreshConfiguration, RefreshTaken, Status, WrongStatus
from ..errors import ApiError, ErrorBody
from ..table import Answer, Call, Route, Scope, Shape


def _refresh(call: Call) -> Answer:
    outcome = call.ask(RefreshConfiguration())
    match outcome:
        case RefreshTaken():
            return Answer(None)
        case WrongStatus(status):
            raise ApiError(500, f"Cannot refresh compute configuration in state {_name(status)}")
        case _:
            assert_never(outcome)


def _name(status: Status) -> str:
    """Write a status as the counterpart does here: `ConfigurationPending`."""
    return status.value.title().replace("_", "")


ROUTES: Final = (
    Route(
        path="/refresh_configuration",
        method="POST",
        handler=_refresh,
        scope=Scope.PUBLIC,
        summary="Fetch the spec again, and apply it if the pageservers have moved. Asked by Postgres itself.",
        responses={
            200: Shape("It will be fetched, or a spec is on its way already."),
            500: Shape("The node is in a status in which it cannot be.", ErrorBody),
        },
    ),
)

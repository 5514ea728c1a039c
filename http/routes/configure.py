"""`POST /configure`: give the node a spec, and wait until it is applied."""

from typing import Final, assert_never

from ...messages.lifecycle import Configure, Configured, ConfigureFailed, ConfigureRefused, NodeStatus
from ...messages.spec import ConfigurationRequest, request_decoder
from ..errors import ApiError, ErrorBody, escaped
from ..table import LARGE_BODY, Answer, Call, Route, Shape
from ..waiting import CONFIGURE_LIMIT_S

PENDING_RESTART: Final = "X-Pending-Restart"
"""Response header: the settings that were taken and take effect at the next start of the node."""


def _configure(call: Call) -> Answer:
    spec = call.body(ConfigurationRequest).spec
    outcome = call.wait(Configure(spec), CONFIGURE_LIMIT_S)
    match outcome:
        case Configured(status, pending_restart):
            return Answer(
                status, headers={PENDING_RESTART: ", ".join(pending_restart)} if pending_restart else {}
            )
        case ConfigureRefused(error, bad_spec):
            raise ApiError(400 if bad_spec else 412, error)
        case ConfigureFailed(error):
            raise ApiError(500, f'compute configuration failed: "{escaped(error)}"')
        case _:
            assert_never(outcome)


ROUTES: Final = (
    Route(
        path="/configure",
        method="POST",
        handler=_configure,
        body=request_decoder,
        body_limit=LARGE_BODY,
        waits=True,
        summary="Apply a spec: the start of an empty node, the reconfiguration of a running one.",
        responses={
            200: Shape("The spec is applied and the node is running.", NodeStatus),
            400: Shape("The token, the JSON or the spec is not valid; nothing was changed.", ErrorBody),
            412: Shape("The node is not in a status that takes a spec.", ErrorBody),
            500: Shape("The spec was taken and could not be applied.", ErrorBody),
        },
    ),
)

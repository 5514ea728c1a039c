"""`POST /failpoints`, internal and only with `--dev`: what happens at the named steps of the node's jobs."""

from typing import Final

import msgspec

from ...messages.failpoints import FailpointError, FailpointSetting, parse_settings
from ..errors import ApiError, ErrorBody
from ..table import Answer, Call, Route, Scope, Shape


def _configure(call: Call) -> Answer:
    if call.node.failpoints is None:
        msg = "the route is there and the node has no failpoints"
        raise RuntimeError(msg)
    try:
        armings = parse_settings(call.body(tuple))
    except FailpointError as error:
        raise ApiError(400, f"failed to configure failpoints: {error}") from None
    call.node.failpoints.configure(armings)
    return Answer(None)


ROUTES: Final = (
    Route(
        path="/failpoints",
        method="POST",
        handler=_configure,
        scope=Scope.PUBLIC,
        body=msgspec.json.Decoder(tuple[FailpointSetting, ...]),
        summary="Give failpoints their actions, all or none.",
        responses={
            200: Shape("They are in force."),
            400: Shape("A name or an action is not known, or the JSON is not valid.", ErrorBody),
        },
    ),
)

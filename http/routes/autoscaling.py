"""`GET /autoscaling`: what is known of the machine's size, and what was decided about it."""

from typing import Final

from ...messages.vm import Autoscaling, GetAutoscaling
from ..table import ASK_S, Answer, Call, Route, Shape


def _autoscaling(call: Call) -> Answer:
    bridge = call.node.vm_monitor_bridge
    if bridge is None:
        return Answer(Autoscaling(enabled=False))
    return Answer(bridge.ask(GetAutoscaling(), ASK_S))


ROUTES: Final = (
    Route(
        path="/autoscaling",
        method="GET",
        handler=_autoscaling,
        summary="The autoscaler agent, the memory of Postgres, and the last decisions about the machine's size.",
        responses={200: Shape("All of it; `enabled` is false where there is no autoscaling.", Autoscaling)},
    ),
)

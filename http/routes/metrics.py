"""`GET /metrics`: the node's numbers for a Prometheus scrape; public."""

from typing import Final

from ..metrics import CONTENT_TYPE, exposition
from ..table import Answer, Call, Route, Scope, Shape


def _metrics(call: Call) -> Answer:
    call.node.refresh_metrics()
    return Answer(exposition(call.node.metrics), media=CONTENT_TYPE)


ROUTES: Final = (
    Route(
        path="/metrics",
        method="GET",
        handler=_metrics,
        scope=Scope.PUBLIC,
        probe=True,
        summary="The node's numbers, as Prometheus text.",
        responses={200: Shape("Prometheus text format 0.0.4.", str, media=CONTENT_TYPE)},
    ),
)

"""`GET /status` and `GET /metrics.json`: what the Supervisor knows, from memory."""

from typing import Final

from ...messages.lifecycle import GetStartupMetrics, GetStatus, NodeStatus, StartupMetrics
from ..table import Answer, Call, Route, Shape


def _status(call: Call) -> Answer:
    return Answer(call.ask(GetStatus()))


def _startup_metrics(call: Call) -> Answer:
    return Answer(call.ask(GetStartupMetrics()))


ROUTES: Final = (
    Route(
        path="/status",
        method="GET",
        handler=_status,
        summary="The node's status.",
        responses={200: Shape("The status; all six keys are always there.", NodeStatus)},
    ),
    Route(
        path="/metrics.json",
        method="GET",
        handler=_startup_metrics,
        summary="How long the stages of the first start took.",
        responses={200: Shape("Stage times, 0 until measured.", StartupMetrics)},
    ),
)

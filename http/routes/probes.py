"""`GET /live` and `GET /ready`: for whoever watches the node; public and from memory."""

from typing import Final

import msgspec

from ...messages.base import AskError
from ...messages.lifecycle import Condition, ConditionReport, GetReadiness, Readiness
from ..table import Answer, Call, Route, Scope, Shape

PROBE_S: Final = 1.0
"""A Supervisor that takes longer is taken for hung."""


class Liveness(msgspec.Struct, frozen=True):
    """The body of `GET /live`: live means that the Supervisor answers, whatever the node's status."""

    live: bool
    conditions: tuple[ConditionReport, ...] = ()


def _readiness(call: Call) -> Readiness | None:
    try:
        return call.node.supervisor.ask(GetReadiness(), PROBE_S)
    except AskError:
        return None


_UNRESPONSIVE: Final = (
    ConditionReport(Condition.SUPERVISOR_UNRESPONSIVE, f"no answer within {PROBE_S:g} s"),
)


def _live(call: Call) -> Answer:
    if _readiness(call) is None:
        return Answer(Liveness(live=False, conditions=_UNRESPONSIVE), status=503)
    return Answer(Liveness(live=True))


def _ready(call: Call) -> Answer:
    readiness = _readiness(call)
    if readiness is None:
        readiness = Readiness(ready=False, conditions=_UNRESPONSIVE)
    return Answer(readiness, status=200 if readiness.ready else 503)


LIVE: Final = Route(
    path="/live",
    method="GET",
    handler=_live,
    scope=Scope.PUBLIC,
    probe=True,
    summary="Whether the node's own machinery answers.",
    responses={200: Shape("It does.", Liveness), 503: Shape("It does not.", Liveness)},
)

READY: Final = Route(
    path="/ready",
    method="GET",
    handler=_ready,
    scope=Scope.PUBLIC,
    probe=True,
    summary="Whether the node is ready to be used.",
    responses={
        200: Shape("It is.", Readiness),
        503: Shape("It is not, for these conditions.", Readiness),
    },
)

ROUTES: Final = (LIVE, READY)

"""`POST /plan` and `GET /drift`: what a spec would change, and where the node is not as its own says."""

from typing import Final

from ...messages.lifecycle import Status
from ...messages.planning import (
    CannotPlan,
    CatalogPlanned,
    CompareSettings,
    Drift,
    GetSpec,
    Plan,
    PlanRefusal,
    PlanSpec,
    SettingsCompared,
)
from ...messages.spec import ComputeSpec, ConfigurationRequest, request_decoder
from ..errors import ApiError, ErrorBody
from ..table import LARGE_BODY, Answer, Call, Route, Shape
from ..waiting import CONFIGURE_LIMIT_S, RETRY_AFTER_S

COMPARE_LIMIT_S: Final = 60.0
SETTINGS: Final = "settings"
"""What the refusal of preflight is about."""


def _plan(call: Call) -> Answer:
    _spec_in_force(call)
    compared, planned = _ask(call, call.body(ConfigurationRequest).spec, everywhere=False)
    preflight = () if compared.refused is None else (PlanRefusal(SETTINGS, compared.refused),)
    return Answer(
        Plan(
            changes=bool(compared.changes or planned.operations),
            settings=compared.changes,
            operations=planned.operations,
            refused=(*preflight, *planned.refused),
            warnings=(*compared.warnings, *planned.warnings),
        )
    )


def _drift(call: Call) -> Answer:
    compared, planned = _ask(call, _spec_in_force(call), everywhere=True)
    return Answer(
        Drift(
            drifted=bool(compared.drift or planned.operations),
            settings=compared.drift,
            operations=planned.operations,
            refused=planned.refused,
            warnings=planned.warnings,
        )
    )


def _spec_in_force(call: Call) -> ComputeSpec:
    """Return the spec of a running node. Raises ApiError for any other."""
    known = call.ask(GetSpec())
    if known.status is not Status.RUNNING or known.spec is None:
        raise ApiError(412, f"invalid compute status: {known.status.text}")
    return known.spec


def _ask(call: Call, spec: ComputeSpec, *, everywhere: bool) -> tuple[SettingsCompared, CatalogPlanned]:
    node = call.node
    compared = call.wait(CompareSettings(spec), COMPARE_LIMIT_S, of=node.postgres_process)
    if isinstance(compared, CannotPlan):
        raise _failure(compared)
    planned = call.wait(PlanSpec(spec, everywhere=everywhere), CONFIGURE_LIMIT_S, of=node.configurator)
    if isinstance(planned, CannotPlan):
        raise _failure(planned)
    return compared, planned


def _failure(outcome: CannotPlan) -> ApiError:
    if outcome.busy:
        return ApiError(503, outcome.error, {"Retry-After": str(RETRY_AFTER_S)})
    return ApiError(500, outcome.error)


ROUTES: Final = (
    Route(
        path="/plan",
        method="POST",
        handler=_plan,
        body=request_decoder,
        body_limit=LARGE_BODY,
        waits=True,
        summary="What `/configure` with the same body would change now. Nothing is changed.",
        responses={
            200: Shape("The plan; `refused` is not empty where `/configure` would fail.", Plan),
            412: Shape("The node is not running.", ErrorBody),
            500: Shape("Postgres could not be asked.", ErrorBody),
            503: Shape("The node cannot answer now, for instance because it makes another plan.", ErrorBody),
        },
    ),
    Route(
        path="/drift",
        method="GET",
        handler=_drift,
        waits=True,
        summary="Where roles, databases, owners, grants and settings are not as the spec in force says.",
        responses={
            200: Shape("What is different.", Drift),
            412: Shape("The node is not running.", ErrorBody),
            500: Shape("Postgres could not be asked.", ErrorBody),
            503: Shape("The node cannot answer now, for instance because it makes another plan.", ErrorBody),
        },
    ),
)

"""What the Supervisor knows, as frozen data, and what others may see of it."""

from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Final

import msgspec

from ...messages.lifecycle import (
    Condition,
    ConditionReport,
    NodeStatus,
    Readiness,
    StartupMetrics,
    Status,
)
from ...messages.promotion import Promote, Promoted
from ...messages.settings import NodeSettings
from ...messages.spec import ComputeSpec


class Step(Enum):
    """How far an attempt to bring a spec into force has come."""

    CHECKING = "checking"
    """Preflight; with a spec given at boot, PGDATA is being made at the same time."""
    PREPARING = "preparing"
    STARTING = "starting"
    INSTALLING = "installing"
    APPLYING = "applying"
    ABORTING = "aborting"
    """The start has failed; what it left is being stopped."""


class Origin(Enum):
    """Where the spec of an attempt comes from."""

    BOOT = "boot"
    REQUEST = "request"
    """`/configure` or SIGHUP."""
    REFRESH = "refresh"
    """It was fetched because Postgres has asked for it."""
    PROMOTION = "promotion"
    """It is that of the new primary."""


class Attempt(msgspec.Struct, frozen=True):
    """One spec on its way into force."""

    operation: int
    spec: ComputeSpec
    step: Step
    starts: bool
    """True: Postgres is to be started. False: a running one is to be reconfigured."""
    origin: Origin
    waiters: tuple[int, ...] = ()
    checked: bool = False
    prepared: bool = False
    vm_ready: bool = True
    """Swap and disk quota are set, or nobody asks for them."""
    pending_restart: tuple[str, ...] = ()
    stage_began_s: float = 0.0


class PromotionStep(Enum):
    """How far a promotion has come."""

    CHECKING = "checking"
    """Preflight of the new primary's spec."""
    PROMOTING = "promoting"
    CONFIGURING = "configuring"
    """It is a primary; its spec is being applied, as an attempt."""


class Promotion(msgspec.Struct, frozen=True):
    """A promotion under way."""

    operation: int
    request: Promote
    step: PromotionStep
    waiters: tuple[int, ...] = ()
    times: Promoted = Promoted(0, 0)
    since_s: float = 0.0
    """Since when its spec is being applied."""


class Cause(Enum):
    """Why the node is ending."""

    REQUEST = "request"
    SIGNAL = "signal"
    FAILURE = "failure"
    """An actor died; Postgres itself may be well."""


class Ending(msgspec.Struct, frozen=True):
    """The end of the node, once it is decided."""

    cause: Cause
    deadline_s: float
    waiters: tuple[int, ...] = ()
    immediate: bool = False
    queued: bool = False
    """A configuration under way is given a moment to end."""
    signals: int = 0
    checkpointing: bool = False
    """A checkpoint is being written, while Postgres still serves; the stop comes after it."""
    offloading: bool = False
    """The state of the cache is being saved, while Postgres still serves; the stop comes after it."""
    syncing: bool = False
    """Postgres is gone, and the safekeepers are being synced."""
    failed_before: bool = False
    """The node had failed already: there is nothing more to read, so it lingers no longer than needed."""

    @property
    def has_duties(self) -> bool:
        """Whether something is to be done before Postgres is told to stop."""
        return self.checkpointing or self.offloading


class Phase(Enum):
    """Where the process itself stands, apart from the node's status."""

    NEW = "new"
    INSPECTING = "inspecting"
    UP = "up"
    LINGERING = "lingering"
    CLOSING = "closing"
    OVER = "over"


class NodeState(msgspec.Struct, frozen=True):
    """Everything the Supervisor knows. `began_*` is when the process, or the wait for its spec, began."""

    settings: NodeSettings
    began_wall_s: float
    began_s: float
    phase: Phase = Phase.NEW
    status: Status = Status.EMPTY
    spec: ComputeSpec | None = None
    error: str | None = None
    postgres_up: bool = False
    postmaster: int | None = None
    """Of the start that was ready last."""
    serves: bool = False
    """The HTTP servers were told to begin."""
    tidied: bool = False
    """The PostgresProcess has said that nothing is left of Postgres."""
    synced_lsn: str | None = None
    """Where a quorum of safekeepers stands after the end of Postgres."""
    lease_asked: bool = False
    """Somebody was told to keep a lease, and is to hear of every other spec."""
    lease_error: str | None = None
    """Why the LSN of a Static node is not held."""
    refresh_not_before_s: float = 0.0
    """When the next refresh may begin."""
    operation: int = 0
    attempt: Attempt | None = None
    promotion: Promotion | None = None
    promoted: tuple[Promote, Promoted | None] | None = None
    """What made a primary of this node, and its result; None as long as its spec is not applied."""
    ending: Ending | None = None
    exit_code: int = 0
    exit_reason: str = ""
    exit_waiters: tuple[int, ...] = ()
    startup: StartupMetrics = StartupMetrics()
    last_active_s: float | None = None
    raised: tuple[ConditionReport, ...] = ()


_OF_STATUS: Final = {
    Status.EMPTY: Condition.WAITING_FOR_SPEC,
    Status.INIT: Condition.STARTING,
    Status.CONFIGURATION: Condition.CONFIGURING,
    Status.REFRESH_CONFIGURATION_PENDING: Condition.CONFIGURING,
    Status.REFRESH_CONFIGURATION: Condition.CONFIGURING,
    Status.FAILED: Condition.FAILED,
    Status.TERMINATION_PENDING_FAST: Condition.STOPPING,
    Status.TERMINATION_PENDING_IMMEDIATE: Condition.STOPPING,
    Status.TERMINATED: Condition.STOPPING,
}


def readiness(state: NodeState) -> Readiness:
    """Say which reasons not to be ready hold: the status's own, then those that actors raised."""
    condition = _OF_STATUS.get(state.status)
    if state.status is Status.CONFIGURATION_PENDING:
        condition = Condition.CONFIGURING if state.postgres_up else Condition.STARTING
    detail = state.error or "" if condition is Condition.FAILED else ""
    own = () if condition is None else (ConditionReport(condition, detail),)
    held = own + (state.raised if state.ending is None else ())
    return Readiness(ready=not held, conditions=held)


def node_status(state: NodeState) -> NodeStatus:
    """Build the body of `GET /status`."""
    spec = state.spec
    return NodeStatus(
        start_time=_rfc3339(state.began_wall_s).replace("+00:00", "Z"),
        tenant=None if spec is None or spec.tenant_id is None else spec.tenant_id.lower(),
        timeline=None if spec is None or spec.timeline_id is None else spec.timeline_id.lower(),
        status=state.status,
        last_active=None if state.last_active_s is None else _rfc3339(state.last_active_s),
        error=state.error or state.lease_error,
    )


@lru_cache(maxsize=8)  # the status is asked for often, and its times change seldom
def _rfc3339(at_s: float) -> str:
    """Write a time in UTC with a fraction of 0, 3 or 6 digits, as many as it needs."""
    at = datetime.fromtimestamp(at_s, UTC)
    if at.microsecond == 0:
        return at.isoformat()
    return at.isoformat(timespec="milliseconds" if at.microsecond % 1000 == 0 else "microseconds")

"""The Configurator: one application of a spec at a time, as a job; its outcome goes to the Supervisor."""

import logging
from functools import partial
from typing import ClassVar, TypeAlias, assert_never

from typing_extensions import override

from ...messages.base import Message
from ...messages.catalog import (
    ApplyFailed,
    ApplySpec,
    CancelApply,
    Checkpoint,
    CheckpointEnded,
    CollectExtensions,
    MakeReady,
    RunMigrations,
    SpecApplied,
    StopUpkeep,
)
from ...messages.failpoints import FailpointError
from ...messages.metrics import APPLIED_STATEMENTS, DRIFTED_COLLATIONS
from ...messages.planning import CannotPlan, CatalogPlanned, PlanOutcome, PlanSpec
from ...messages.settings import NodeSettings
from ...messages.spec import ComputeSpec, Mode
from ..kit.actor import Actor, Ref, Replier
from ..kit.jobs import Cancellation, CancelledError, Job, describe
from .port import Administration, AdministrationError, Order
from .upkeep import Collected, CollectionDue, Migrated, Upkeep, UpkeepMessage

log = logging.getLogger(__name__)


class Applied(Message, frozen=True):
    """Tells the Configurator how its job ended. Without `errors` the spec is applied."""

    operation: int
    statements: int = 0
    seen: frozenset[int] = frozenset()
    errors: tuple[str, ...] = ()
    subscribers: bool = False
    """Whether nothing is left of the logical subscriptions that the branch has inherited."""
    drifted: int | None = None
    """Databases with another collation version; None when nobody looked."""


class Written(Message, frozen=True):
    """Tells the Configurator how its checkpoint ended."""

    error: str | None = None


class Planned(Message, frozen=True):
    """Tells the Configurator what its plan says."""

    outcome: PlanOutcome


Heard: TypeAlias = (
    MakeReady | ApplySpec | CancelApply | Applied | Checkpoint | Written | PlanSpec | Planned | UpkeepMessage
)
Told: TypeAlias = SpecApplied | ApplyFailed | CheckpointEnded


class _Running:
    def __init__(self, operation: int, job: Job, began_s: float) -> None:
        self.operation = operation
        self.job = job
        self.began_s = began_s


class Configurator(Actor[Heard]):
    """Brings roles, databases and grants to the described state, and keeps them up in the background."""

    max_jobs: ClassVar[int] = 4  # one that changes what is asked for, a plan, the migrations, a collection

    def __init__(self, settings: NodeSettings, supervisor: Ref[Told], administration: Administration) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._administration = administration
        self._running: _Running | None = None
        self._planning: Replier[PlanOutcome] | None = None
        self._seen: frozenset[int] = frozenset()
        """Databases that were brought to their described state in this process's life, by oid."""
        self._upkeep = Upkeep(self, settings, administration)

    @override
    def receive(self, message: Heard) -> None:  # noqa: C901 - one case for each kind
        match message:
            case MakeReady():
                self.start_job("load the driver", lambda _: self._administration.load())
            case ApplySpec():
                self._apply(message)
            case CancelApply(operation):
                if self._running is not None and self._running.operation == operation:
                    self._running.job.cancel()
            case Applied():
                self._applied(message)
            case Checkpoint(limit_s):
                self._checkpoint(limit_s)
            case Written(error):
                self._supervisor.tell(CheckpointEnded(error))
            case PlanSpec():
                self._plan(message)
            case Planned(outcome):
                self._planned(outcome)
            case (
                RunMigrations()
                | Migrated()
                | CollectExtensions()
                | CollectionDue()
                | Collected()
                | StopUpkeep()
            ):
                self._upkeep.receive(message)
            case _:
                assert_never(message)

    def _apply(self, command: ApplySpec) -> None:
        spec = command.spec
        left_alone = _left_alone(spec) is not None
        if not (left_alone and command.starting):
            self._upkeep.take_interval(spec.suspend_timeout_seconds)
        if self._running is not None:
            reason = f"the spec of operation {self._running.operation} is still being applied"
            self._supervisor.tell(ApplyFailed(command.operation, reason))
        elif left_alone and not _asks_for_mark(spec):
            self._supervisor.tell(SpecApplied(command.operation, statements=0, took_ms=0))
        else:
            order = Order(spec, command.starting, self._settings.privileged_role_name, self._seen)
            job = self.start_job(
                "apply the spec",
                partial(_work, self._administration, order, command.operation),
                failed=partial(_failed, command.operation),
            )
            self._running = _Running(command.operation, job, self.clock.now())

    def _plan(self, request: PlanSpec) -> None:
        if self._planning is not None:
            self.reply(request, CannotPlan("another plan is being made; try again in a moment", busy=True))
        elif (reason := _left_alone(request.spec)) is not None:
            self.reply(request, CatalogPlanned(warnings=(reason,)))
        else:
            seen = frozenset[int]() if request.everywhere else self._seen
            order = Order(
                request.spec, starting=False, seen=seen, privileged_role=self._settings.privileged_role_name
            )
            self._planning = self.defer(request)
            self.start_job(
                "plan the spec",
                lambda cancellation: Planned(self._administration.plan(order, cancellation)),
                failed=lambda error: Planned(CannotPlan(f"cannot plan the spec: {_reason(error)}")),
            )

    def _planned(self, outcome: PlanOutcome) -> None:
        waiter, self._planning = self._planning, None
        if waiter is not None:
            waiter.answer(outcome)

    def _checkpoint(self, limit_s: float) -> None:
        if self._running is not None:
            reason = f"the spec of operation {self._running.operation} is still being applied"
            self._supervisor.tell(CheckpointEnded(reason))
        else:
            write = partial(_write, self._administration, limit_s)
            self.start_job("write a checkpoint", write, failed=lambda error: Written(_reason(error)))

    def _applied(self, outcome: Applied) -> None:
        running, self._running = self._running, None
        took_ms = 0 if running is None else round((self.clock.now() - running.began_s) * 1000)
        self._seen = outcome.seen
        self.metrics.add(APPLIED_STATEMENTS, outcome.statements)
        if outcome.drifted is not None:
            self.metrics.set(DRIFTED_COLLATIONS, outcome.drifted)
        if outcome.errors:
            error = "cannot apply the spec: " + " | ".join(outcome.errors)
            log.error("%s", error)
            self._supervisor.tell(ApplyFailed(outcome.operation, error, outcome.subscribers))
        else:
            log.info("the spec is applied: %d changes in %d ms", outcome.statements, took_ms)
            self._supervisor.tell(
                SpecApplied(outcome.operation, outcome.statements, took_ms, outcome.subscribers)
            )


def _left_alone(spec: ComputeSpec) -> str | None:
    """Say why the catalog is not touched; None when it is."""
    if spec.skip_pg_catalog_updates:
        return "the catalog is left as it is: the spec says `skip_pg_catalog_updates`"
    if spec.compute_mode is not Mode.PRIMARY:
        return f"the catalog is left as it is: the node is in the mode {spec.compute_mode.value}"
    return None


def _asks_for_mark(spec: ComputeSpec) -> bool:
    """Whether the catalog must be read, though left alone, to know if logical subscribers may work."""
    return spec.drop_subscriptions_before_start and spec.compute_mode is Mode.PRIMARY


def _work(
    administration: Administration, order: Order, operation: int, cancellation: Cancellation
) -> Applied:
    report = administration.apply(order, cancellation)
    return Applied(
        operation, report.statements, report.seen, report.errors, report.subscribers, report.drifted
    )


def _write(administration: Administration, limit_s: float, cancellation: Cancellation) -> Written:
    administration.checkpoint(limit_s, cancellation)
    return Written()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AdministrationError) else describe(error)


def _failed(operation: int, error: Exception) -> Applied:
    match error:
        case CancelledError():
            reason = "it was broken off because it was asked to end; applying it again goes on from there"
        case AdministrationError() | FailpointError():
            reason = str(error)
        case _:
            log.error("applying the spec failed in an unexpected way", exc_info=error)
            reason = describe(error)
    return Applied(operation, errors=(reason,))

"""One application of a spec: read, plan, and carry out step by step. Knows neither driver nor sockets."""

import logging
from collections.abc import Sequence
from typing import Final

from ...messages.failpoints import Failpoint
from ..kit.jobs import Cancellation
from . import operations as op
from .desired import Context, departing_names
from .model import Catalog, CollationDrift, DatabaseFacts
from .phases import Maintenance, Plan, Step, Visit, plan, plan_visit
from .port import Order, Report
from .session import Failure, Session

SHOWN_FAILURES: Final = 50
"""More than these are only counted: the list is for a person."""

log = logging.getLogger(__name__)


async def survey(session: Session, order: Order) -> tuple[Context, Catalog]:
    """Find out what the planner must know, before it plans an application or what one would do."""
    context = Context(session.administrator, session.system_database, order.privileged_role, order.seen)
    return context, await session.snapshot(departing_names(order.spec))


async def apply(session: Session, order: Order, cancellation: Cancellation) -> Report:
    """Bring the catalog to the state that the spec describes.

    The first step with a failure is the last one; all that the step holds is tried. What the planner
    refuses is left out, and the rest is done in full.
    """
    context, catalog = await survey(session, order)
    cancellation.reach(Failpoint.APPLY_CATALOG)
    planned = plan(catalog, order.spec, context)
    for warning in planned.warnings:
        log.warning("applying the spec: %s", warning)
    for drift in catalog.drift:
        log.warning("%s", collation_warning(drift))
    progress = _Progress(planned, context, len(catalog.drift))
    for step in planned.steps:
        if failures := await progress.take(step, session):
            return progress.report((_summary(step, failures),))
        cancellation.reach(Failpoint.APPLY_PHASE)
    cancellation.reach(Failpoint.APPLY_DONE)
    return progress.report(())


class _Progress:
    """What was done so far."""

    def __init__(self, planned: Plan, context: Context, drifted: int) -> None:
        self._plan = planned
        self._drifted = drifted
        self._context = context
        self._statements = 0
        self._visited = 0
        known = planned.catalog.databases
        to_visit = {visit.database for visit in planned.visits}
        self._seen = context.seen & {state.oid for name, state in known.items() if name not in to_visit}

    async def take(self, step: Step, session: Session) -> Sequence[Failure]:
        """Carry out a step and return what failed."""
        if isinstance(step, Maintenance):
            _announce(step)
            outcome = await session.execute(step.operations)
            self._statements += outcome.done
            return outcome.failures
        outcomes = await session.visit(step.visits, self._decide)
        self._statements += sum(outcome.done for outcome in outcomes)
        self._visited += len(outcomes)
        self._seen |= {o.oid for o in outcomes if o.visit.permissions and o.oid and not o.failures}
        return [failure for outcome in outcomes for failure in outcome.failures]

    def _decide(self, visit: Visit, facts: DatabaseFacts) -> Sequence[op.Visiting]:
        operations = plan_visit(visit, facts, self._plan.catalog, self._context)
        for operation in operations:
            log.debug("applying the spec: %s", operation.describe())
        return operations

    def report(self, errors: tuple[str, ...]) -> Report:
        """Say how it ended; what the planner refused is an error, too."""
        refused = tuple(refusal.describe() for refusal in self._plan.refusals)
        return Report(
            self._statements, self._visited, frozenset(self._seen), (*errors, *refused), self._drifted
        )


def collation_warning(drift: CollationDrift) -> str:
    """Say what is wrong with a database whose collation has changed, and what to do."""
    name = op.database_named(drift.database)
    return (
        f"{name} was made with version {drift.made_with or 'none'} of its collation, and this machine has "
        f"{drift.actual or 'none'}: indexes on text may be out of order; rebuild them (REINDEX DATABASE), then "
        "ALTER DATABASE ... REFRESH COLLATION VERSION"
    )


def _announce(step: Maintenance) -> None:
    log.info("applying the spec: %s: %d to do", step.phase.value, len(step.operations))
    for operation in step.operations:
        log.debug("applying the spec: %s", operation.describe())


def _summary(step: Step, failures: Sequence[Failure]) -> str:
    listed = [failure.describe() for failure in failures[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        listed.append(f"and {len(failures) - SHOWN_FAILURES} more")
    return f"{step.phase.value}: {'; '.join(listed)}"

"""One application of a spec: read, plan, and carry out step by step. Knows neither driver nor sockets."""

import logging
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final, TypeVar

from ...messages.failpoints import Failpoint
from ..kit.jobs import Cancellation
from . import operations as op
from .desired import Context, departing_names
from .model import Catalog, CollationDrift, DatabaseFacts
from .phases import plan
from .plans import Maintenance, Plan, Step, Visit, Visits
from .port import Order, Report
from .session import Failure, Session
from .visits import is_clean, plan_visit

SHOWN_FAILURES: Final = 50
"""More than these are only counted: the list is for a person."""

log = logging.getLogger(__name__)

OperationT = TypeVar("OperationT", bound=op.Operation)


async def survey(session: Session, order: Order) -> tuple[Context, Catalog]:
    """Find out what the planner must know, before it plans an application or what one would do."""
    context = Context(session.administrator, session.system_database, order.privileged_role, order.seen)
    return context, await session.snapshot(departing_names(order.spec))


async def apply(session: Session, order: Order, cancellation: Cancellation) -> Report:
    """Bring the catalog to the state that the spec describes, as far as it can be.

    What fails, or is refused by the planner, is left alone from then on; all else is done in full.
    """
    context, catalog = await survey(session, order)
    cancellation.reach(Failpoint.APPLY_CATALOG)
    if order.spec.skip_pg_catalog_updates:  # and yet it is of use to know what an earlier life has done
        return Report(seen=order.seen, subscribers=is_clean(catalog, order.spec))
    planned = plan(catalog, order.spec, context)
    for warning in planned.warnings:
        log.warning("applying the spec: %s", warning)
    for drift in catalog.drift:
        log.warning("%s", collation_warning(drift))
    progress = _Progress(planned, context, len(catalog.drift))
    for step in planned.steps:
        await progress.take(step, session)
        cancellation.reach(Failpoint.APPLY_PHASE)
    cancellation.reach(Failpoint.APPLY_DONE)
    return progress.report()


class Fallout:
    """What failures leave untouched. Pure.

    Nothing more is tried with an object that something went wrong with: the plan counted on it. Others that
    only name it are tried, and fail by themselves where they need it; but not where a renaming failed, for
    then the name may be another object's.
    """

    def __init__(self) -> None:
        self._spoilt: set[str] = set()
        self._renamed: set[str] = set()

    def note(self, failure: Failure) -> None:
        """Take a failure into account."""
        self._spoilt.update(failure.spoils)
        self._renamed.update(failure.renamed)

    def left(self, operations: Iterable[OperationT]) -> tuple[OperationT, ...]:
        """Return the operations that may be tried; of a unit all or none. The others spoil what they would."""
        found: list[OperationT] = []
        for unit, members in groupby(operations, key=lambda operation: operation.unit):
            group = list(members)
            for part in ([member] for member in group) if unit is None else (group,):
                if all(map(self._spares, part)):
                    found += part
                else:
                    self._spoilt.update(subject for operation in part for subject in operation.spoils)
        return tuple(found)

    @property
    def is_clean(self) -> bool:
        """Whether nothing has gone wrong with the subscriptions that are to be dropped."""
        return self._spoilt.isdisjoint((op.MARK_SUBJECT, op.LEFT_SUBJECT))

    def left_to_visit(self, visits: Iterable[Visit]) -> tuple[Visit, ...]:
        """Return the databases that may be looked into."""
        found = []
        for visit in visits:
            if self._spoilt.isdisjoint(visit.needs) and op.role_named(visit.owner) not in self._renamed:
                found.append(visit)
            else:
                self._spoilt.update(visit.spoils)
        return tuple(found)

    def _spares(self, operation: op.Operation) -> bool:
        return operation.subject not in self._spoilt and self._renamed.isdisjoint(operation.mentions)


class _Progress:
    """What was done so far."""

    def __init__(self, planned: Plan, context: Context, drifted: int) -> None:
        self._plan = planned
        self._drifted = drifted
        self._context = context
        self._statements = 0
        self._visited = 0
        self._fallout = Fallout()
        self._errors: list[str] = []
        known = planned.catalog.databases
        to_visit = {visit.database for visit in planned.visits if visit.permissions}
        self._seen = context.seen & {state.oid for name, state in known.items() if name not in to_visit}

    async def take(self, step: Step, session: Session) -> None:
        """Carry out a step, as far as what failed before allows it."""
        failures = await (
            self._maintain(step, session) if isinstance(step, Maintenance) else self._visit(step, session)
        )
        for failure in failures:
            self._fallout.note(failure)
        if failures:
            self._errors.append(_summary(step, failures))

    async def _maintain(self, step: Maintenance, session: Session) -> Sequence[Failure]:
        operations = self._fallout.left(step.operations)
        if not operations:
            return ()
        log.info("applying the spec: %s: %d to do", step.phase.value, len(operations))
        for operation in operations:
            log.debug("applying the spec: %s", operation.describe())
        outcome = await session.execute(operations)
        self._statements += outcome.done
        return outcome.failures

    async def _visit(self, step: Visits, session: Session) -> Sequence[Failure]:
        visits = self._fallout.left_to_visit(step.visits)
        outcomes = await session.visit(visits, self._decide)
        self._statements += sum(outcome.done for outcome in outcomes)
        self._visited += len(outcomes)
        self._seen |= {o.oid for o in outcomes if o.visit.permissions and o.oid and not o.failures}
        return [failure for outcome in outcomes for failure in outcome.failures]

    def _decide(self, visit: Visit, facts: DatabaseFacts) -> Sequence[op.Visiting]:
        planned = plan_visit(visit, facts, self._plan.catalog, self._context)
        operations = self._fallout.left(planned)
        for operation in operations:
            log.debug("applying the spec: %s", operation.describe())
        return operations

    def report(self) -> Report:
        """Say how it ended; what the planner refused is an error, too."""
        refused = self._plan.refusals
        return Report(
            self._statements,
            self._visited,
            frozenset(self._seen),
            (*self._errors, *(refusal.describe() for refusal in refused)),
            self._fallout.is_clean and all(refusal.subject != op.MARK_SUBJECT for refusal in refused),
            self._drifted,
        )


def collation_warning(drift: CollationDrift) -> str:
    """Say what is wrong with a database whose collation has changed, and what to do."""
    name = op.database_named(drift.database)
    return (
        f"{name} was made with version {drift.made_with or 'none'} of its collation, and this machine has "
        f"{drift.actual or 'none'}: indexes on text may be out of order; rebuild them (REINDEX DATABASE), then "
        "ALTER DATABASE ... REFRESH COLLATION VERSION"
    )


def _summary(step: Step, failures: Sequence[Failure]) -> str:
    listed = [failure.describe() for failure in failures[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        listed.append(f"and {len(failures) - SHOWN_FAILURES} more")
    return f"{step.phase.value}: {'; '.join(listed)}"

"""What an application of a spec would do, found without doing it: phases are recorded, visits only look."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ...messages.planning import CatalogPlanned, PlannedOperation, PlanRefusal
from ...messages.spec import GenericOption
from ..kit.jobs import Cancellation
from . import operations as op
from .apply import collation_warning, survey
from .desired import Context, Refusal
from .model import Catalog, DatabaseFacts, Draft, facts_after, facts_renamed
from .phases import plan
from .plans import Maintenance, Plan, Visit, Visits
from .port import Order
from .session import Session
from .visits import WEB_ACCESS_SINCE, plan_visit

WEB_ACCESS: Final = "web_access"
DEFAULT_TEMPLATE: Final = "template1"


class Rehearsed(msgspec.Struct, frozen=True):
    """What would be done, in order, and what is to be told about it."""

    operations: tuple[op.AnyOperation, ...]
    refusals: tuple[Refusal, ...]
    """What the planner leaves out, and the databases that could not be looked into."""
    warnings: tuple[str, ...]

    def told(self) -> CatalogPlanned:
        """Put it into words."""
        return CatalogPlanned(
            tuple(PlannedOperation(o.phase.value, o.where, o.subject, o.describe()) for o in self.operations),
            tuple(PlanRefusal(refusal.subject, refusal.reason) for refusal in self.refusals),
            self.warnings,
        )


async def rehearse(session: Session, order: Order, cancellation: Cancellation) -> Rehearsed:
    """Say what `apply` would do; the session is asked questions only. Raises AdministrationError."""
    context, catalog = await survey(session, order)
    planned = plan(catalog, order.spec, context)
    stage = _Stage(catalog, planned, context)
    for step in planned.steps:
        cancellation.check()
        if isinstance(step, Maintenance):
            stage.record(step.operations)
        else:
            await stage.look(step, session)
    warnings = (*planned.warnings, *map(collation_warning, catalog.drift))
    return Rehearsed(tuple(stage.operations), (*planned.refusals, *stage.unseen), warnings)


class _Stage:
    """The catalog as it would be by now, and where of that something can be looked at today."""

    def __init__(self, catalog: Catalog, planned: Plan, context: Context) -> None:
        self.operations: list[op.AnyOperation] = []
        self.unseen: list[Refusal] = []
        self._plan = planned
        self._context = context
        self._today = catalog
        self._draft = Draft(catalog)
        self._places: dict[str, str | None] = {name: name for name in catalog.databases}
        """Under which name of today a database is found; a new one is as the database it is copied from."""
        self._renamed: list[op.RenameRole] = []
        self._visited: dict[str, list[op.Visiting]] = {}

    def record(self, operations: Iterable[op.AnyOperation]) -> None:
        """Take these operations as done."""
        for operation in operations:
            match operation:
                case op.CreateDatabase(name, _, options):
                    self._places[name] = self._places.get(_template(options))
                case op.RenameDatabase(name, new_name):
                    self._places[new_name] = self._places.pop(name)
                case op.RenameRole():
                    self._renamed.append(operation)
                case _:
                    pass
            self._draft.record(operation)
            self.operations.append(operation)

    async def look(self, step: Visits, session: Session) -> None:
        """Look into the databases of a step, and take as done what a visit would do there."""
        looks = {visit: self._look(visit) for visit in step.visits}
        found: dict[Visit, DatabaseFacts] = {}

        def remember(visit: Visit, facts: DatabaseFacts) -> Sequence[op.Visiting]:
            found[visit] = facts
            return ()

        wanted = tuple(dict.fromkeys(look for look in looks.values() if look is not None))
        outcomes = await session.visit(wanted, remember) if wanted else ()
        reasons = {outcome.visit: outcome.failures[0].reason for outcome in outcomes if outcome.failures}
        for visit, look in looks.items():
            if look in reasons:
                subject = op.database_named(visit.database)
                self.unseen.append(Refusal(subject, f"it cannot be looked into: {reasons[look]}"))
                continue
            facts = self._fresh() if look is None else found[look]
            facts = self._as_it_would_be(visit, facts)
            operations = plan_visit(visit, facts, self._plan.catalog, self._context)
            self._visited.setdefault(visit.database, []).extend(operations)
            self.record(operations)

    def _look(self, visit: Visit) -> Visit | None:
        """Say where to look today: one look for all new databases with the same template."""
        place = self._places.get(visit.database)
        if place is None or not self._today.databases[place].connectable:
            return None
        return msgspec.structs.replace(visit, database=place, owner="")

    def _fresh(self) -> DatabaseFacts:
        """Return what is in a database as initdb makes it, where its template cannot be looked into."""
        if self._today.server_version >= WEB_ACCESS_SINCE:
            return DatabaseFacts()
        return DatabaseFacts(public_owner=self._context.administrator)

    def _as_it_would_be(self, visit: Visit, facts: DatabaseFacts) -> DatabaseFacts:
        for change in self._renamed:
            facts = facts_renamed(facts, change.name, change.new_name)
        facts = facts_after(facts, self._visited.get(visit.database, ()))
        return msgspec.structs.replace(facts, has_web_access=WEB_ACCESS in self._draft.roles)


def _template(options: Iterable[GenericOption]) -> str:
    values = [option.value for option in options if option.name.upper() == "TEMPLATE" and option.value]
    return values[-1].strip('"') if values else DEFAULT_TEMPLATE

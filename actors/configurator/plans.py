"""A plan: its steps in order, what each visit is for, and what the planning shares. Pure data."""

from typing import TypeAlias

import msgspec

from . import operations as op
from .desired import Context, Desired, Refusal
from .model import Catalog, DatabaseState, Draft
from .operations import Phase, database_named, role_named


class Maintenance(msgspec.Struct, frozen=True):
    """Operations of one phase, on the maintenance connection, in this order."""

    phase: Phase
    operations: tuple[op.Maintaining, ...]


class Visit(msgspec.Struct, frozen=True):
    """One database to look into."""

    database: str
    owner: str
    """Who gets what departing roles own there."""
    permissions: bool
    """Whether the spec lists it, so that its schema permissions are put right."""
    departing: tuple[str, ...] = ()
    shared: bool = False
    """Whether departing roles are to let go of what belongs to no database, too."""
    subscriptions: frozenset[int] = frozenset()
    """The logical subscriptions to be dropped there, by oid."""
    inherited: bool = False
    """Whether it is done because they are on the list of inherited ones."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The objects with which nothing may have gone wrong before."""
        listed = (op.MARK_SUBJECT,) if self.inherited else ()
        return (database_named(self.database), *listed)

    @property
    def spoils(self) -> tuple[str, ...]:
        """The objects that are left alone from then on when the database cannot be looked into."""
        left = (op.LEFT_SUBJECT,) if self.subscriptions else ()
        return (database_named(self.database), *map(role_named, self.departing), *left)


class Visits(msgspec.Struct, frozen=True):
    """Databases that may be visited at the same time."""

    visits: tuple[Visit, ...]
    phase: Phase = Phase.VISIT_DATABASES


Step: TypeAlias = Maintenance | Visits


class Plan(msgspec.Struct, frozen=True):
    """What is to be done, in order; the operations of a visit are planned when its facts are known."""

    steps: tuple[Step, ...]
    catalog: Catalog
    """As it is when all this is done, but for what the visits find."""
    refusals: tuple[Refusal, ...] = ()
    """Parts of the spec that are left out; all else is done, and then the application fails."""
    warnings: tuple[str, ...] = ()

    @property
    def operations(self) -> tuple[op.Maintaining, ...]:
        """All operations that do not depend on a visit."""
        return tuple(
            operation for step in self.steps if isinstance(step, Maintenance) for operation in step.operations
        )

    @property
    def visits(self) -> tuple[Visit, ...]:
        """All visits."""
        return tuple(visit for step in self.steps if isinstance(step, Visits) for visit in step.visits)


class Planner:
    """What the phases share: the wish, the catalog so far, and what is to be told about the plan."""

    def __init__(self, catalog: Catalog, wish: Desired, context: Context) -> None:
        self.catalog = catalog
        self.draft = Draft(catalog)
        self.wish = wish
        self.context = context
        self.stuck: set[str] = set()
        """Departing roles that hold something where nobody can connect."""
        self.refusals = list(wish.refusals)
        self.warnings: list[str] = []

    def refuse(self, subject: str, reason: str) -> None:
        """Leave this part of the spec out."""
        self.refusals.append(Refusal(subject, reason))


def departing_roles(planner: Planner) -> tuple[str, ...]:
    """Return the roles that are to go and are still there."""
    return tuple(role for role in planner.wish.departing if role in planner.draft.roles)


def is_open(database: DatabaseState) -> bool:
    """Whether one can connect to it."""
    return database.connectable and database.valid

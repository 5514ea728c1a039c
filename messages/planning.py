"""What a spec would change, and where the node has drifted from its own: asked for, answered, shown by the API."""

from enum import Enum
from typing import TypeAlias

import msgspec

from .base import Message, Request
from .lifecycle import Status
from .spec import ComputeSpec

# --- Parts of a plan ---------------------------------------------------------------------------------------


class Change(Enum):
    """What becomes of a setting in the configuration file."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


class SettingChange(msgspec.Struct, frozen=True):
    """A setting that the configuration file would give another value; secrets are masked."""

    name: str
    change: Change
    before: str | None
    after: str | None
    needs_restart: bool
    """Whether Postgres takes it only at the next start of the node."""


class DriftCause(Enum):
    """Why a setting is not what the spec says."""

    FILE = "postgresql.conf"
    ALTER_SYSTEM = "ALTER SYSTEM"
    RESTART = "awaits a restart"


class SettingDrift(msgspec.Struct, frozen=True):
    """A setting that the spec describes and that is different; secrets are masked."""

    name: str
    cause: DriftCause
    described: str | None
    """None: the spec does not set it, and the configuration file does."""
    actual: str | None
    """None: it is not set."""


class PlannedOperation(msgspec.Struct, frozen=True):
    """One change of the catalog, never with a password."""

    phase: str
    database: str | None
    """The database in which it is done; null for what all databases share."""
    object: str
    action: str


class PlanRefusal(msgspec.Struct, frozen=True):
    """A part of the spec that would not be applied, and why."""

    part: str
    reason: str


# --- The bodies of the API ---------------------------------------------------------------------------------


class Plan(msgspec.Struct, frozen=True):
    """The body of `POST /plan`: what `/configure` with the same body would do now."""

    changes: bool
    """Whether there are settings or operations."""
    settings: tuple[SettingChange, ...]
    operations: tuple[PlannedOperation, ...]
    """In the order in which they would be carried out."""
    refused: tuple[PlanRefusal, ...]
    """Not empty: `/configure` would fail, with or without changes."""
    warnings: tuple[str, ...]


class Drift(msgspec.Struct, frozen=True):
    """The body of `GET /drift`: where the node is not as its spec says."""

    drifted: bool
    settings: tuple[SettingDrift, ...]
    operations: tuple[PlannedOperation, ...]
    """What would bring roles, databases, owners and grants back to what the spec says."""
    refused: tuple[PlanRefusal, ...]
    """Parts of the spec that could not be applied at all."""
    warnings: tuple[str, ...]


# --- Questions to the actors -------------------------------------------------------------------------------


class SpecInForce(Message, frozen=True):
    """The node's status, and the spec that was taken last."""

    status: Status
    spec: ComputeSpec | None


class GetSpec(Request[SpecInForce], frozen=True):
    """Ask the Supervisor which spec is in force."""


class CannotPlan(Message, frozen=True):
    """There is no plan; nothing was changed."""

    error: str
    busy: bool = False
    """Another plan is being made, or Postgres does not run: a later attempt may succeed."""


class SettingsCompared(Message, frozen=True):
    """How the settings that a spec describes differ from those of the node."""

    changes: tuple[SettingChange, ...] = ()
    drift: tuple[SettingDrift, ...] = ()
    refused: str | None = None
    """Why preflight would refuse the spec."""
    warnings: tuple[str, ...] = ()


class CatalogPlanned(Message, frozen=True):
    """What applying a spec would do in the catalog."""

    operations: tuple[PlannedOperation, ...] = ()
    refused: tuple[PlanRefusal, ...] = ()
    warnings: tuple[str, ...] = ()


ComparisonOutcome: TypeAlias = SettingsCompared | CannotPlan
PlanOutcome: TypeAlias = CatalogPlanned | CannotPlan


class CompareSettings(Request[ComparisonOutcome], frozen=True):
    """Ask the PostgresProcess what this spec would change in the settings. Changes nothing."""

    spec: ComputeSpec


class PlanSpec(Request[PlanOutcome], frozen=True):
    """Ask the Configurator what applying this spec would do. Changes nothing.

    `everywhere`: also look into databases that an application would leave out because it knows them.
    """

    spec: ComputeSpec
    everywhere: bool = False

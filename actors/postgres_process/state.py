"""What the PostgresProcess knows, and what its decisions ask its shell to do.

    idle -> inspecting -> inspected -> preparing -> prepared -> starting -> running -> gone
                              any of them -> stopping -> gone

Checks and installations go on beside a phase; everything else has one.
"""

from enum import Enum
from typing import TypeAlias

import msgspec

from ...messages.planning import ComparisonOutcome
from ...messages.postgres import InstallConfiguration, PgdataStages, SettleConfiguration, StopRung
from ...messages.promotion import PromotePostgres
from ...messages.spec import ComputeSpec
from ..kit.effects import Log, Remind, Tell
from .disk import Area, Fullness
from .work import Work


class Phase(Enum):
    """Where the folder and the postmaster are in their life."""

    IDLE = "idle"
    INSPECTING = "inspecting"
    INSPECTED = "inspected"
    PREPARING = "preparing"
    PREPARED = "prepared"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    GONE = "gone"


class Ladder(msgspec.Struct, frozen=True):
    """A postmaster is being ended; `number` tells its reminders from those of an earlier ladder."""

    number: int
    deadline_s: float
    reached: StopRung = StopRung.NOT_RUNNING


class ProcessState(msgspec.Struct, frozen=True):
    """All that the actor remembers."""

    start_timeout_s: float
    has_safekeepers: bool = False
    """The source is Neon's storage: a Primary begins where its safekeepers end."""
    phase: Phase = Phase.IDLE
    work: frozenset[Work] = frozenset()
    pid: int | None = None
    """The postmaster, from its launch until it was waited for."""
    operation: int = 0
    """Of the preparation or start under way."""
    began_s: float = 0.0
    preparing: ComputeSpec | None = None
    """What the preparation under way is for."""
    attempt: int = 0
    after_warming: bool = False
    """The attempt begins when the warming, which was broken off, has ended."""
    start_lsn: int = 0
    """Where it begins; 0: at the latest."""
    sync_began_s: float = 0.0
    sync_tries: int = 0
    syncs_at_end: bool = False
    """The sync of safekeepers under way is that after the end of Postgres."""
    stages: PgdataStages = PgdataStages()
    """What of the preparation was measured here."""
    check_operation: int = 0
    install_operation: int = 0
    promote_operation: int = 0
    kept: bool = False
    recovering: bool = False
    fault: str | None = None
    """Why the postmaster of a failing start is being ended."""
    ladder: Ladder | None = None
    ladders: int = 0
    tidied: bool = False
    trouble: str | None = None
    """What went wrong with a stop that was not forced: the postmaster's own words."""
    after_settling: InstallConfiguration | SettleConfiguration | PromotePostgres | None = None
    """Asked for while a configuration was being settled: both write the same files."""
    disk: Fullness = Fullness()
    disk_looks: int = 0
    disk_unknown: bool = False
    """The disk cannot be looked at; said once."""


# --- Effects ---------------------------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True):
    """Begin a piece of work; `limit_s` is for the wait for readiness and the sync of safekeepers alone."""

    work: Work
    spec: ComputeSpec | None = None
    limit_s: float | None = None
    subscribers: bool = False
    """For the settling alone."""
    start_lsn: int = 0
    """For the preparation alone."""
    promoting: bool = False
    """For the check alone."""
    wal_flush_lsn: str | None = None
    """For the promotion alone."""


class Answer(msgspec.Struct, frozen=True):
    """Answer one who asked for a comparison: who came last and is refused, or who waits for the work."""

    outcome: ComparisonOutcome
    refused: bool = False


class Cancel(msgspec.Struct, frozen=True):
    """Ask a piece of work to end; its outcome still comes."""

    work: Work


class Send(msgspec.Struct, frozen=True):
    """Send the signal of a rung to the postmaster."""

    rung: StopRung


class Show(msgspec.Struct, frozen=True):
    """Show in the metrics how much is left on the disk."""

    areas: tuple[Area, ...]


Effect: TypeAlias = Tell | Answer | Begin | Cancel | Send | Remind | Show | Log

"""What the PostgresProcess tells itself: outcomes of its jobs, and its reminders."""

from typing import Final

from ...messages.base import Message
from ...messages.planning import ComparisonOutcome
from ...messages.postgres import PgdataKind, PgdataStages, StopRung
from .disk import Area
from .work import Work


class Inspected(Message, frozen=True):
    """The folder is locked and may be used."""

    kind: PgdataKind


class InspectionRefused(Message, frozen=True):
    """The folder must not be touched."""

    error: str
    exit_code: int


class Checked(Message, frozen=True):
    """Postgres would take the configuration."""

    warnings: tuple[str, ...]


class CheckRefused(Message, frozen=True):
    """Postgres would not take the configuration, or it could not be asked."""

    error: str


class Compared(Message, frozen=True):
    """The settings of a spec were compared with those of the node, or could not be."""

    outcome: ComparisonOutcome


class QuorumSeen(Message, frozen=True):
    """A quorum of safekeepers is at this place; None: they must be brought together first."""

    lsn: int | None


class QuorumUnknown(Message, frozen=True):
    """The safekeepers could not be asked at all."""

    error: str


class Synced(Message, frozen=True):
    """A quorum of safekeepers was brought to this place; 0: nothing was ever written."""

    lsn: int


class NotSynced(Message, frozen=True):
    """The safekeepers were not brought together."""

    error: str


class SyncDue(Message, frozen=True):
    """Time for another try of the preparation with that number."""

    operation: int


class Prepared(Message, frozen=True):
    """A complete PGDATA is there; `kept` when nothing had to be built."""

    kept: bool
    stages: PgdataStages = PgdataStages()


class PreparationFailed(Message, frozen=True):
    """Nothing was built, and nothing is left of the attempt; `passing`: another one may go better."""

    error: str
    passing: bool = False


class AttemptDue(Message, frozen=True):
    """Time for the next attempt to prepare, unless that operation is over."""

    operation: int
    attempt: int


class Launched(Message, frozen=True):
    """The postmaster process exists; `recovering` when it was not shut down in order the last time."""

    pid: int
    recovering: bool


class LaunchFailed(Message, frozen=True):
    """There is no postmaster process."""

    error: str


class BecameReady(Message, frozen=True):
    """The status line says `ready` and the child lives."""


class NotReady(Message, frozen=True):
    """The wait for readiness is over without it; `error` is None when the process itself will report."""

    error: str | None


class Ended(Message, frozen=True):
    """The postmaster was waited for; `failed` when it says itself that something went wrong."""

    description: str
    failed: bool


class Installed(Message, frozen=True):
    """The running Postgres has taken the configuration."""

    pending_restart: tuple[str, ...]


class InstallationFailed(Message, frozen=True):
    """The configuration before is in force again."""

    error: str


class BecamePrimary(Message, frozen=True):
    """The standby is a primary; milliseconds of both stages."""

    lsn_wait_time_ms: int
    pg_promote_time_ms: int


class NotPromoted(Message, frozen=True):
    """The standby is none, or nobody knows."""

    error: str


class Done(Message, frozen=True):
    """A piece of work without an outcome has ended."""

    work: Work


class SpaceRefused(Message, frozen=True):
    """Postgres says that the disk is full."""


class DiskSeen(Message, frozen=True):
    """What the file systems show."""

    areas: tuple[Area, ...]


class DiskUnknown(Message, frozen=True):
    """The file systems could not be asked."""

    error: str


class DiskDue(Message, frozen=True):
    """Time for another look at the disk, unless there was one since that with this number."""

    number: int


class RungDue(Message, frozen=True):
    """Time for the next rung of the stop with that number."""

    number: int
    rung: StopRung


class BudgetSpent(Message, frozen=True):
    """The budget of the stop with that number is used up: what is optional is broken off."""

    number: int


WORK_OF: Final[dict[type[Message], Work]] = {
    Inspected: Work.INSPECT,
    InspectionRefused: Work.INSPECT,
    Checked: Work.CHECK,
    CheckRefused: Work.CHECK,
    Compared: Work.COMPARE,
    QuorumSeen: Work.QUORUM,
    QuorumUnknown: Work.QUORUM,
    Synced: Work.SYNC,
    NotSynced: Work.SYNC,
    Prepared: Work.PREPARE,
    PreparationFailed: Work.PREPARE,
    Launched: Work.LAUNCH,
    LaunchFailed: Work.LAUNCH,
    BecameReady: Work.AWAIT_READY,
    NotReady: Work.AWAIT_READY,
    Ended: Work.AWAIT_EXIT,
    Installed: Work.INSTALL,
    InstallationFailed: Work.INSTALL,
    BecamePrimary: Work.PROMOTE,
    NotPromoted: Work.PROMOTE,
    DiskSeen: Work.DISK,
    DiskUnknown: Work.DISK,
}
"""Which work an outcome ends; `Done` says it itself."""

"""What the PostgresProcess hears and says: the PGDATA folder and the postmaster.

Commands carry the number of the operation they belong to; outcomes bear it, so that a late one is known.
"""

from enum import Enum

import msgspec

from .base import Message
from .spec import ComputeSpec

# --- Commands --------------------------------------------------------------------------------------------


class InspectPgdata(Message, frozen=True):
    """Lock the folder and judge it, before anything else happens."""


class WarmMemory(Message, frozen=True):
    """Run a Postgres for nobody while there is no spec, so that the start finds the machine warm.

    Nobody answers; PreparePgdata and StopPostgres break it off.
    """


class CheckConfiguration(Message, frozen=True):
    """Would Postgres take the configuration of this spec? Changes nothing.

    `promoting`: it is that of the primary which the running replica is to become.
    """

    operation: int
    spec: ComputeSpec
    promoting: bool = False


class PreparePgdata(Message, frozen=True):
    """Make a complete PGDATA ready beside its place, or keep the complete one that is there."""

    operation: int
    spec: ComputeSpec


class StartPostgres(Message, frozen=True):
    """Put the prepared PGDATA in its place, write its configuration, start the postmaster."""

    operation: int
    spec: ComputeSpec


class InstallConfiguration(Message, frozen=True):
    """Write the configuration of this spec, load it, and verify that it was taken."""

    operation: int
    spec: ComputeSpec


class SettleConfiguration(Message, frozen=True):
    """End what held only while a spec was applied: the lifted size limit, and the rest of logical subscribers.

    The latter if `subscribers`: nothing that the branch has inherited is left. Nobody answers; it means nothing
    once another configuration was installed.
    """

    spec: ComputeSpec
    subscribers: bool


class SyncSafekeepers(Message, frozen=True):
    """Bring the safekeepers to the same place, now that Postgres is gone; at most for `budget_s`."""

    spec: ComputeSpec
    budget_s: float


class StopPostgres(Message, frozen=True):
    """Cancel whatever is under way and stop the postmaster within `budget_s`: fast, immediate, kill.

    Said again while stopping, it skips to the next rung when `hurry` is set.
    """

    budget_s: float
    hurry: bool = False


# --- Facts -----------------------------------------------------------------------------------------------


class PgdataKind(Enum):
    """What stands at the PGDATA path."""

    ABSENT = "absent"
    EMPTY = "empty"
    OURS_COMPLETE = "ours_complete"
    OURS_COPY = "ours_copy"
    """Complete, and no more than a copy of what is elsewhere: a new one is made."""
    OURS_INCOMPLETE = "ours_incomplete"
    FOREIGN = "foreign"
    """Given up by --set-aside-pgdata: it is renamed when the new one is complete."""


class PgdataInspected(Message, frozen=True):
    """The folder is locked and may be used."""

    kind: PgdataKind


class PgdataRefused(Message, frozen=True):
    """The folder must not be touched; the node ends at once with `exit_code`."""

    error: str
    exit_code: int


class ConfigurationAccepted(Message, frozen=True):
    """Postgres would take it."""

    operation: int
    warnings: tuple[str, ...] = ()


class ConfigurationRefused(Message, frozen=True):
    """Postgres would not take it; `error` names the setting and the reason."""

    operation: int
    error: str


class PgdataStages(msgspec.Struct, frozen=True):
    """What the making of a PGDATA from storage took, as StartupMetrics shows it; 0 for what there was none of."""

    sync_sk_check_ms: int = 0
    sync_safekeepers_ms: int = 0
    pageserver_connect_micros: int = 0
    basebackup_ms: int = 0
    basebackup_bytes: int = 0


class SafekeepersSynced(Message, frozen=True):
    """A quorum of safekeepers stands at this LSN."""

    lsn: str
    took_ms: int


class SafekeeperSyncFailed(Message, frozen=True):
    """After the end of Postgres the safekeepers could not be brought together, or not in time."""

    error: str


class PgdataPrepared(Message, frozen=True):
    """A complete PGDATA stands ready; `kept` when it is the one that was there."""

    operation: int
    kept: bool
    took_ms: int
    stages: PgdataStages = PgdataStages()


class PgdataFailed(Message, frozen=True):
    """No PGDATA could be made; what was begun is gone again."""

    operation: int
    error: str


class PostgresReady(Message, frozen=True):
    """The postmaster accepts connections."""

    operation: int
    pid: int
    took_ms: int


class PostgresStartFailed(Message, frozen=True):
    """The postmaster did not come up; it is gone, `error` holds its last words."""

    operation: int
    error: str


class ConfigurationInstalled(Message, frozen=True):
    """The running Postgres has taken the configuration, but for the settings that await a restart."""

    operation: int
    pending_restart: tuple[str, ...] = ()


class ConfigurationInstallFailed(Message, frozen=True):
    """The configuration was not taken; the one before it is in force again."""

    operation: int
    error: str


class StopRung(Enum):
    """How far the stop ladder had to go."""

    NOT_RUNNING = "not_running"
    FAST = "fast"
    IMMEDIATE = "immediate"
    KILL = "kill"


class PostgresStopped(Message, frozen=True):
    """Postgres is gone because it was asked to; jobs under way are over and cleaned up."""

    rung: StopRung
    trouble: str | None = None
    """A stop that was not forced, and nevertheless was not in order: what Postgres said."""


class PostgresExited(Message, frozen=True):
    """Postgres ended although nobody asked it to: a failure, whatever its exit code says."""

    description: str

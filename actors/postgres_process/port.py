"""Every effect of the PostgresProcess, as its jobs see it; server.py is the real one, tests have a fake."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from ...messages.planning import SettingsCompared
from ...messages.postgres import PgdataKind, PgdataStages, StopRung
from ...messages.spec import ComputeSpec
from ..kit.jobs import Cancellation
from .disk import Area


class PostgresError(Exception):
    """Something could not be done; the message says what, why, and what to do."""


class PassingError(PostgresError):
    """No PGDATA could be made, and another attempt may go better."""


class PgdataRefusedError(PostgresError):
    """The folder must not be touched; the node is to end with `exit_code`."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Preparation(msgspec.Struct, frozen=True):
    """A complete folder; `kept` when it is the one that was there."""

    kept: bool
    stages: PgdataStages = PgdataStages()


class Promotion(msgspec.Struct, frozen=True):
    """A standby that has become a primary; milliseconds of both stages."""

    lsn_wait_time_ms: int = 0
    pg_promote_time_ms: int = 0


class Launch(msgspec.Struct, frozen=True):
    """A postmaster that was started; `recovering` when the folder was not shut down in order."""

    pid: int
    recovering: bool


class Exit(msgspec.Struct, frozen=True):
    """How a postmaster ended, with its last words; `failed` when its own exit code says so."""

    description: str
    failed: bool


class ProcessSink(Protocol):
    """Who is told which postmaster lives, for the last resort; called on any thread, never blocks."""

    def started(self, pid: int) -> None:
        """Remember this child."""
        ...

    def ended(self) -> None:
        """Forget it: it was waited for."""
        ...

    def tidied(self) -> None:
        """Hear that what was made for its run is gone, too."""
        ...


class Port(Protocol):
    """Called in jobs only, but for `signal`. Every method ends within a second of a cancellation.

    Raises PostgresError (or OSError) with a text for people, and the kit's CancelledError.
    """

    def inspect(self, cancellation: Cancellation) -> PgdataKind:
        """Lock the folder, end orphans of it, judge it. Raises PgdataRefusedError."""
        ...

    def check(
        self, spec: ComputeSpec, cancellation: Cancellation, *, promoting: bool = False
    ) -> tuple[str, ...]:
        """Ask whether Postgres would take this configuration; returns warnings. Changes nothing."""
        ...

    def compare(self, spec: ComputeSpec, cancellation: Cancellation) -> SettingsCompared:
        """Say how the settings of this spec differ from those of the running Postgres. Changes nothing."""
        ...

    def check_safekeepers(self, spec: ComputeSpec, cancellation: Cancellation) -> int | None:
        """Return the LSN at which a quorum of safekeepers agrees; None when they must be synced first."""
        ...

    def sync_safekeepers(self, spec: ComputeSpec, limit_s: float, cancellation: Cancellation) -> int:
        """Bring a quorum of safekeepers to the same place and return its LSN.

        At the start in a folder of its own, once Postgres has been launched in PGDATA. Raises PostgresError.
        """
        ...

    def prepare(self, spec: ComputeSpec, start_lsn: int, cancellation: Cancellation) -> Preparation:
        """Build a complete folder beside its place, or find the one to keep.

        `start_lsn` is where a base backup begins; 0: at the latest there is.
        After an error or a cancellation nothing is left of what was begun. Raises PassingError where it is worth
        another attempt.
        """
        ...

    def warm(self, cancellation: Cancellation) -> None:
        """Run a Postgres over a new cluster until it is ready, and end it; `prepare` may take the cluster over.

        Raises PostgresError; nothing is left of what it ran.
        """
        ...

    def pump_logs(self, no_space: Callable[[], None], cancellation: Cancellation) -> None:
        """Hand what Postgres writes to the log, from before `launch` until the end of its output.

        `no_space` is called, on this thread and at most once a second, when it says that the disk is full.
        """
        ...

    def launch(self, spec: ComputeSpec, cancellation: Cancellation) -> Launch:
        """Put the folder in its place, write its files, start the postmaster.

        A cancellation counts only until the process exists.
        """
        ...

    def await_ready(self, limit_s: float | None, cancellation: Cancellation) -> bool:
        """Wait until Postgres accepts connections; False when its process ended before.

        Raises PostgresError after `limit_s` seconds; None: no limit.
        """
        ...

    def await_exit(self, cancellation: Cancellation) -> Exit:
        """Wait for the postmaster, as long as it lives; returns how it ended."""
        ...

    def install(self, spec: ComputeSpec, cancellation: Cancellation) -> tuple[str, ...]:
        """Let the running Postgres take this configuration; returns the settings that await a restart.

        Raises PostgresError with the configuration before in force again.
        """
        ...

    def promote(self, spec: ComputeSpec, wal_flush_lsn: str | None, cancellation: Cancellation) -> Promotion:
        """Make a primary of the running standby; `spec` is the replica's, with the new primary's safekeepers.

        What is a primary already passes. Raises PostgresError.
        """
        ...

    def settle(self, spec: ComputeSpec, cancellation: Cancellation, *, subscribers: bool) -> None:
        """End what held only while this spec was applied, unless another one's configuration is in force."""
        ...

    def signal(self, rung: StopRung) -> None:
        """Send the signal of this rung to the postmaster; never blocks."""
        ...

    def kill(self, cancellation: Cancellation) -> None:
        """Kill the postmaster's group and every Postgres process that works in the folder."""
        ...

    def tidy(self, cancellation: Cancellation) -> None:
        """End what is left of Postgres, and remove what was made for its run or half-made."""
        ...

    def look_at_disk(self) -> tuple[Area, ...]:
        """Ask the file systems that Postgres writes to how much is left. Raises OSError."""
        ...

    def report_cores(self, cancellation: Cancellation) -> None:
        """Log the backtraces of core dumps of this run."""
        ...

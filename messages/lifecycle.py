"""What the Supervisor hears and answers: the node's status, configuration, termination, exit."""

from enum import Enum
from typing import Final, TypeAlias

import msgspec

from .base import Message, Request
from .spec import ComputeSpec


class Status(Enum):
    """The node's status; the values are those of the JSON API (`http-api` reference, section 4)."""

    EMPTY = "empty"
    CONFIGURATION_PENDING = "configuration_pending"
    INIT = "init"
    RUNNING = "running"
    CONFIGURATION = "configuration"
    FAILED = "failed"
    TERMINATION_PENDING_FAST = "termination_pending_fast"
    TERMINATION_PENDING_IMMEDIATE = "termination_pending_immediate"
    TERMINATED = "terminated"
    REFRESH_CONFIGURATION_PENDING = "refresh_configuration_pending"
    REFRESH_CONFIGURATION = "refresh_configuration"

    @property
    def text(self) -> str:
        """The hyphenated name of logs, error texts and the metric's label."""
        return self.value.replace("_", "-")


class ShutdownMode(Enum):
    """How long the node lingers after a stop; both modes stop Postgres fast."""

    FAST = "fast"
    IMMEDIATE = "immediate"


class Condition(Enum):
    """A reason not to be ready."""

    WAITING_FOR_SPEC = "waiting_for_spec"
    STARTING = "starting"
    CONFIGURING = "configuring"
    RECOVERING = "recovering"
    POSTGRES_UNREACHABLE = "postgres_unreachable"
    POSTGRES_FROZEN = "postgres_frozen"
    DISK_FULL = "disk_full"
    STOPPING = "stopping"
    FAILED = "failed"
    SUPERVISOR_UNRESPONSIVE = "supervisor_unresponsive"


# --- Answers ---------------------------------------------------------------------------------------------


class NodeStatus(msgspec.Struct, frozen=True):
    """The body of `GET /status`; all six keys are always there. Times are RFC 3339."""

    start_time: str
    tenant: str | None
    timeline: str | None
    status: Status
    last_active: str | None
    error: str | None


class ConditionReport(msgspec.Struct, frozen=True):
    """A condition that holds now, with what is known of it."""

    condition: Condition
    detail: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """The body of `GET /ready`: ready means that no condition holds."""

    ready: bool
    conditions: tuple[ConditionReport, ...]


class StartupMetrics(msgspec.Struct, frozen=True):
    """The body of `GET /metrics.json`: stages of the first start, 0 until measured.

    Milliseconds, but for `pageserver_connect_micros` and the counts and sizes (bytes).
    """

    wait_for_spec_ms: int = 0
    sync_sk_check_ms: int = 0
    sync_safekeepers_ms: int = 0
    pageserver_connect_micros: int = 0
    basebackup_ms: int = 0
    basebackup_bytes: int = 0
    start_postgres_ms: int = 0
    config_ms: int = 0
    total_startup_ms: int = 0
    load_ext_ms: int = 0
    num_ext_downloaded: int = 0
    largest_ext_size: int = 0
    total_ext_download_size: int = 0


class JournalEntry(msgspec.Struct, frozen=True):
    """One handled message: `at_s` on the monotonic clock, `took_ms` in its handler, secrets masked."""

    number: int
    at_s: float
    actor: str
    message: str
    took_ms: float
    content: msgspec.Raw


class Configured(Message, frozen=True):
    """The spec is applied and the node is running, but for settings that take effect at its next start."""

    status: NodeStatus
    pending_restart: tuple[str, ...] = ()


class ConfigureRefused(Message, frozen=True):
    """Nothing was changed: the spec is bad, or the node is not in a status that takes one."""

    error: str
    bad_spec: bool
    """True: the caller's fault (400). False: the node's status (412)."""


class ConfigureFailed(Message, frozen=True):
    """The spec was taken and could not be applied."""

    error: str


ConfigureOutcome: TypeAlias = Configured | ConfigureRefused | ConfigureFailed


class Terminated(Message, frozen=True):
    """Postgres is gone. `lsn` is None without safekeepers; `repeated` when the node had already ended."""

    lsn: str | None
    repeated: bool = False


class TerminateFailed(Message, frozen=True):
    """Nobody knows whether Postgres is gone; the process ends, and stops it as a last resort."""

    error: str


TerminateOutcome: TypeAlias = Terminated | TerminateFailed


class ExitReport(Message, frozen=True):
    """How the process is to end; `code` is one of the exit codes below.

    `stop_budget_s` is what is left of a stop under way, should Postgres still be there; None: there was no stop.
    """

    code: int
    reason: str
    stop_budget_s: float | None = None


class WrongStatus(Message, frozen=True):
    """The node is not in a status in which this can be done."""

    status: Status


class RefreshTaken(Message, frozen=True):
    """The spec will be fetched again, or one is on its way already."""


RefreshOutcome: TypeAlias = RefreshTaken | WrongStatus


# --- Requests and commands -------------------------------------------------------------------------------


class Boot(Message, frozen=True):
    """Begin the node's life; with a spec it starts at once, without one it waits in `empty`."""

    spec: ComputeSpec | None


class Configure(Request[ConfigureOutcome], frozen=True):
    """Apply this spec; answered when that one configuration has ended, one way or the other."""

    spec: ComputeSpec


class Terminate(Request[TerminateOutcome], frozen=True):
    """Stop Postgres and the node; answered when Postgres is gone, or when that is given up."""

    mode: ShutdownMode


class GetStatus(Request[NodeStatus], frozen=True):
    """Ask for the status."""


class GetReadiness(Request[Readiness], frozen=True):
    """Ask for the conditions that hold."""


class GetStartupMetrics(Request[StartupMetrics], frozen=True):
    """Ask for the stage times."""


class GetJournal(Request[tuple[JournalEntry, ...]], frozen=True):
    """Ask for the last messages of all actors, oldest first."""


class AwaitExit(Request[ExitReport], frozen=True):
    """Ask to be told when the node's life is over; for the main thread."""


class RefreshConfiguration(Request[RefreshOutcome], frozen=True):
    """Fetch the spec again, because Postgres has reason to think that it is outdated; answered at once."""


class SignalReceived(Message, frozen=True):
    """The process got a signal that asks it to stop (SIGTERM, SIGINT, SIGQUIT)."""

    signal: str


class RereadConfiguration(Request[ConfigureOutcome], frozen=True):
    """Read the `--config` file again and configure as `/configure` would (SIGHUP); answered like that."""


# --- Facts -----------------------------------------------------------------------------------------------


class StatusChanged(Message, frozen=True):
    """The node's status is now another one; `old` is None when a node without a spec begins to serve."""

    old: Status | None
    new: Status
    error: str | None = None


class ConditionRaised(Message, frozen=True):
    """A reason not to be ready was seen."""

    condition: Condition
    detail: str = ""


class ConditionCleared(Message, frozen=True):
    """A reason not to be ready is gone."""

    condition: Condition


class ActorFailed(Message, frozen=True):
    """An actor died of an exception; `error` is its text, the traceback stands in the log."""

    actor: str
    error: str


EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_LOCKED: Final = 75

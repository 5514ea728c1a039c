"""What the VmMonitorBridge hears and says: autoscaling, and what of the machine is set before Postgres starts."""

from enum import Enum

import msgspec

from .base import Message, Request

# --- Before Postgres starts ------------------------------------------------------------------------------


class PrepareVm(Message, frozen=True):
    """Give the machine this much swap, and its disk this quota (bytes); None: leave it as it is."""

    operation: int
    swap_bytes: int | None
    quota_bytes: int | None


class VmPrepared(Message, frozen=True):
    """The machine is as Postgres needs it."""

    operation: int


class VmPreparationFailed(Message, frozen=True):
    """Swap or quota could not be set: Postgres must not start."""

    operation: int
    error: str


# --- While Postgres runs ---------------------------------------------------------------------------------


class StartVmMonitor(Message, frozen=True):
    """Postgres runs: watch its memory and wait for the autoscaler agent."""

    postmaster: int
    resizes_file_cache: bool
    """False: the size of the file cache is left alone."""


class StopVmMonitor(Message, frozen=True):
    """Postgres is gone, or will not come: send the agent away, and end what is under way."""


# --- What is shown ---------------------------------------------------------------------------------------


class MonitorPhase(Enum):
    """What the bridge is doing."""

    OFF = "off"
    """Nothing: there is no autoscaling here, or Postgres does not run."""
    UNREACHABLE = "unreachable"
    """No agent can connect; see `error`."""
    WAITING = "waiting"
    """For an agent."""
    SETTING_UP = "setting_up"
    """An agent is connected; the sizes are being set from what the machine has."""
    SERVING = "serving"


class AgentSeen(msgspec.Struct, frozen=True):
    """The agent that is connected. Times are RFC 3339."""

    address: str
    connected_at: str
    messages: int
    """That it has sent."""


class MemorySeen(msgspec.Struct, frozen=True):
    """The memory of Postgres that cannot be reclaimed: an average of the last samples, in bytes."""

    bytes: int
    samples: int
    age_s: float


class CgroupSeen(msgspec.Struct, frozen=True):
    """Where the memory is read: the group that the postmaster is in, and the smallest limit above it."""

    path: str
    version: int
    limit_bytes: int | None


class Exchanged(msgspec.Struct, frozen=True):
    """A message that came from the agent or went to it."""

    at: str
    direction: str
    """`in` or `out`."""
    type: str
    id: int | None


class Decided(msgspec.Struct, frozen=True):
    """A decision, and why."""

    at: str
    decision: str
    reason: str


class Autoscaling(msgspec.Struct, frozen=True):
    """The body of `GET /autoscaling`. Sizes are bytes; None: not known, or not managed."""

    enabled: bool
    phase: MonitorPhase = MonitorPhase.OFF
    address: str | None = None
    """Where agents are listened for."""
    error: str | None = None
    agent: AgentSeen | None = None
    connections: int = 0
    """Agents that were taken so far."""
    cgroup: CgroupSeen | None = None
    memory: MemorySeen | None = None
    total_bytes: int | None = None
    """What sizes are made from."""
    threshold_bytes: int | None = None
    """With this much in use more is asked for."""
    file_cache_bytes: int | None = None
    manages: tuple[str, ...] = ()
    """`cgroup`, `file_cache`, both, or none."""
    messages: tuple[Exchanged, ...] = ()
    decisions: tuple[Decided, ...] = ()


class GetAutoscaling(Request[Autoscaling], frozen=True):
    """Ask what is known of autoscaling."""

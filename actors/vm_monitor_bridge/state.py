"""What the VmMonitorBridge knows, and what of it is shown: pure.

Its life: off -> listening for agents -> an agent has connected -> its sizes are set -> serving
"""

from datetime import UTC, datetime
from enum import Enum
from typing import Final

import msgspec

from ...messages.vm import AgentSeen, Autoscaling, CgroupSeen, Decided, Exchanged, MemorySeen, MonitorPhase
from . import protocol
from .decisions import REQUEST_PAUSE_S, Pressure, Summary

FIRST_PAUSE_S: Final = 1.0
"""Before a job that has failed is begun again; it doubles from there."""
LONGEST_PAUSE_S: Final = 30.0


class Kind(Enum):
    """What a sizing is for; the values are the names of decisions."""

    SET_UP = "set_up"
    UPSCALE = "upscale"
    DOWNSCALE = "downscale"
    RESTORE = "restore"
    """After a downscale that must not be any more; nobody waits for it."""


class Task(msgspec.Struct, frozen=True):
    """A sizing that somebody waits for; `total` is what there will be to use (None: what the machine has)."""

    kind: Kind
    connection: int
    id: int = protocol.NO_ID
    total: int | None = None


class Agent(msgspec.Struct, frozen=True):
    """The agent that is served."""

    connection: int
    address: str
    since_s: float
    since_wall_s: float
    ready: bool = False
    """Its sizes are set."""
    heard: int = 0
    unreadable: int = 0
    """Of the last messages, in a row."""
    next_id: int = protocol.FIRST_ID


class BridgeState(msgspec.Struct, frozen=True):
    """All that the actor remembers; sizes in bytes."""

    watches_cgroup: bool
    on: bool = False
    run: int = 0
    postmaster: int = 0
    resizes: bool = False
    serving: int | None = None
    """The run whose job listens for agents."""
    watching: int | None = None
    """The run whose job watches the memory."""
    address: str | None = None
    error: str | None = None
    """Why no agent can connect."""
    watch_error: str | None = None
    serve_pause_s: float = FIRST_PAUSE_S
    watch_pause_s: float = FIRST_PAUSE_S
    agent: Agent | None = None
    connections: int = 0
    asked_s: float | None = None
    cgroup: CgroupSeen | None = None
    memory: Summary = Summary(0.0)
    total: int | None = None
    threshold: int | None = None
    file_cache: int | None = None
    has_file_cache: bool | None = None
    """None: nobody has looked yet."""
    queue: tuple[Task, ...] = ()
    sizing: Task | None = None
    sizing_run: int = 0
    """The run that the sizing under way belongs to."""
    works: int = 0
    """Sizings that were begun; the number of the one under way."""
    preparing: int | None = None
    exchanged: tuple[Exchanged, ...] = ()
    decided: tuple[Decided, ...] = ()

    @property
    def pressure(self) -> Pressure | None:
        """When more memory is asked for; None while there is nobody to be asked."""
        if self.threshold is None or self.agent is None or not self.agent.ready:
            return None
        return Pressure(self.threshold, 0.0 if self.asked_s is None else self.asked_s + REQUEST_PAUSE_S)

    @property
    def manages(self) -> tuple[str, ...]:
        """What is managed."""
        cache = ("file_cache",) if self.resizes and self.has_file_cache else ()
        return (("cgroup",) if self.watches_cgroup else ()) + cache


def longer(pause_s: float) -> float:
    """Return the pause after the next failure in a row."""
    return min(2 * pause_s, LONGEST_PAUSE_S)


# --- What is shown ---------------------------------------------------------------------------------------


def shown(state: BridgeState, now_s: float) -> Autoscaling:
    """Build the body of `GET /autoscaling`."""
    agent = state.agent
    memory = None
    if state.memory.count:
        memory = MemorySeen(state.memory.average, state.memory.count, round(now_s - state.memory.at_s, 3))
    return Autoscaling(
        enabled=True,
        phase=_phase(state),
        address=state.address,
        error=state.error or state.watch_error,
        agent=None if agent is None else AgentSeen(agent.address, rfc3339(agent.since_wall_s), agent.heard),
        connections=state.connections,
        cgroup=state.cgroup,
        memory=memory,
        total_bytes=state.total,
        threshold_bytes=state.threshold,
        file_cache_bytes=state.file_cache,
        manages=state.manages,
        messages=state.exchanged,
        decisions=state.decided,
    )


def _phase(state: BridgeState) -> MonitorPhase:
    if not state.on:
        return MonitorPhase.OFF
    if state.address is None:
        return MonitorPhase.UNREACHABLE
    if state.agent is None:
        return MonitorPhase.WAITING
    return MonitorPhase.SERVING if state.agent.ready else MonitorPhase.SETTING_UP


def rfc3339(at_s: float) -> str:
    """Write a time of the wall clock, to the millisecond."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

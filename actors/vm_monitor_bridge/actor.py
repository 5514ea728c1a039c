"""The VmMonitorBridge: carries out what is decided (dispatch.py), through the ports."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeAlias

from typing_extensions import override

from ...messages.base import Message
from ...messages.failpoints import FailpointError
from ...messages.metrics import (
    AUTOSCALING_AGENTS,
    AUTOSCALING_BYTES,
    AUTOSCALING_CONNECTED,
    AUTOSCALING_DECISIONS,
    AUTOSCALING_MESSAGES,
)
from ...messages.vm import GetAutoscaling, PrepareVm, StartVmMonitor, StopVmMonitor
from ..kit.actor import Actor, Ref
from ..kit.effects import Log, Remind, Tell
from ..kit.jobs import Cancellation, CancelledError, Job, describe
from ..kit.turn import Moment
from . import decisions, protocol
from .dispatch import decide
from .effects import Cancel, Close, Count, Effect, Expect, Prepare, Send, Serve, Size, Watch
from .port import Agents, FileCache, Machine, Memory, VmError
from .private import (
    AgentGone,
    AgentOffered,
    AgentSaid,
    CgroupFound,
    Listening,
    MemoryUsed,
    PreparationEnded,
    ServeAgain,
    ServingEnded,
    SettlingEnded,
    SetUpOverdue,
    Sized,
    SizingFailed,
    WatchAgain,
    WatchEnded,
)
from .state import BridgeState, shown

VmMessage: TypeAlias = (
    AgentGone
    | AgentOffered
    | AgentSaid
    | CgroupFound
    | GetAutoscaling
    | Listening
    | MemoryUsed
    | PreparationEnded
    | PrepareVm
    | ServeAgain
    | ServingEnded
    | SetUpOverdue
    | SettlingEnded
    | Sized
    | SizingFailed
    | StartVmMonitor
    | StopVmMonitor
    | WatchAgain
    | WatchEnded
)

BROKEN_OFF = "it was broken off"

log = logging.getLogger("compute_node.vm_monitor_bridge")


class VmMonitorBridge(Actor[VmMessage]):
    """Owns the agent's connection, the sizes, and the watch over the memory.

    Without `watches_cgroup` the memory is not looked at. `supervisor` hears VmPrepared and VmPreparationFailed.
    """

    max_jobs: ClassVar[int] = 4  # one of each kind

    def __init__(
        self,
        supervisor: Ref[Any],
        *,
        watches_cgroup: bool,
        agents: Agents,
        memory: Memory,
        file_cache: FileCache,
        machine: Machine,
    ) -> None:
        self._state = BridgeState(watches_cgroup)
        self._supervisor = supervisor
        self._agents = agents
        self._memory = memory
        self._file_cache = file_cache
        self._machine = machine
        self._jobs: dict[type[Effect], Job] = {}

    @property
    def state(self) -> BridgeState:
        """What the actor knows; frozen."""
        return self._state

    @override
    def receive(self, message: VmMessage) -> None:
        if isinstance(message, GetAutoscaling):
            self.reply(message, shown(self._state, self.clock.now()))
            return
        before = self._state
        moment = Moment(self.clock.now(), self.clock.wall())
        self._state, effects = decide(before, message, moment)
        if isinstance(message, AgentSaid):
            self.metrics.add(AUTOSCALING_MESSAGES, 1, "in", protocol.kind_of(message.said))
        for effect in effects:
            self._carry_out(effect)
        self._show(before)

    def _carry_out(self, effect: Effect) -> None:  # noqa: C901 - one flat table of effects
        match effect:
            case Serve(run):
                self._begin(effect, "listen for agents", self._serve, partial(_serving_failed, run))
            case Watch(run):
                self._begin(effect, "watch the memory", self._watch, partial(_watch_failed, run))
            case Size(work):
                self._begin(effect, "set the sizes", self._size, partial(_sizing_failed, work))
            case Prepare(wanted):
                failed = partial(_preparation_failed, wanted.operation)
                self._begin(effect, "prepare the machine", self._prepare, failed)
            case Cancel(of):
                self._jobs[of].cancel()
            case Send(connection, message):
                self._agents.send(connection, message)
                self.metrics.add(AUTOSCALING_MESSAGES, 1, "out", protocol.kind_of(message))
            case Close(connection, code, reason):
                self._agents.close(connection, code, reason)
            case Expect(pressure):
                self._memory.expect(pressure)
            case Tell(message):
                self._supervisor.tell(message)
            case Remind(after_s, message):
                self.timers.after(after_s, message)
            case Log(level, text):
                log.log(level, "%s", text)
            case Count(decision):
                self.metrics.add(AUTOSCALING_DECISIONS, 1, decision)

    def _begin(
        self,
        effect: Effect,
        name: str,
        work: Callable[[Any, Cancellation], Message],
        failed: Callable[[Exception], Message],
    ) -> None:
        self._jobs[type(effect)] = self.start_job(name, partial(work, effect), failed=failed)

    def _show(self, before: BridgeState) -> None:
        state = self._state
        if state.connections != before.connections:
            self.metrics.add(AUTOSCALING_AGENTS, state.connections - before.connections)
        if (state.agent is None) != (before.agent is None):
            self.metrics.set(AUTOSCALING_CONNECTED, state.agent is not None)
        sizes = {
            "memory": state.memory.average if state.on and state.memory.count else None,
            "total": state.total,
            "threshold": state.threshold,
            "file_cache": state.file_cache,
        }
        self.metrics.replace(
            AUTOSCALING_BYTES, {(what,): size for what, size in sizes.items() if size is not None}
        )

    # --- Jobs

    def _serve(self, effect: Serve, cancellation: Cancellation) -> Message:
        self._agents.serve(self.myself.tell, cancellation)  # type: ignore[arg-type] # it says what we hear
        return ServingEnded(effect.run)

    def _watch(self, effect: Watch, cancellation: Cancellation) -> Message:
        self._memory.watch(effect.postmaster, self.myself.tell, cancellation)  # type: ignore[arg-type] # as above
        return WatchEnded(effect.run)

    def _size(self, effect: Size, cancellation: Cancellation) -> Message:
        total = self._memory.total(effect.postmaster, effect.total)
        size = None
        if effect.cache:
            size = self._file_cache.resize(decisions.FILE_CACHE.size(total), cancellation)
        return Sized(effect.work, total, size)

    def _prepare(self, effect: Prepare, cancellation: Cancellation) -> Message:
        wanted = effect.wanted
        if wanted.swap_bytes is not None:
            self._machine.resize_swap(wanted.swap_bytes, cancellation)
        if wanted.quota_bytes is not None:
            self._machine.set_disk_quota(wanted.quota_bytes, cancellation)
        return PreparationEnded(wanted.operation)


def _text(error: Exception) -> str:
    """Say what went wrong: our own errors speak for themselves, others are named."""
    if isinstance(error, CancelledError):
        return BROKEN_OFF
    return str(error) if isinstance(error, (VmError, FailpointError)) else describe(error)


def _serving_failed(run: int, error: Exception) -> Message:
    return ServingEnded(run, None if isinstance(error, CancelledError) else _text(error))


def _watch_failed(run: int, error: Exception) -> Message:
    return WatchEnded(run, None if isinstance(error, CancelledError) else _text(error))


def _sizing_failed(work: int, error: Exception) -> Message:
    return SizingFailed(work, _text(error))


def _preparation_failed(operation: int, error: Exception) -> Message:
    return PreparationEnded(operation, _text(error))

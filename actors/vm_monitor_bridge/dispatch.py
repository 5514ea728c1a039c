"""What the VmMonitorBridge decides: pure. Which message is decided where."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ...messages.base import Message
from ...messages.vm import PrepareVm, StartVmMonitor, StopVmMonitor
from ..kit.turn import Moment
from . import life, serving, sizing, watching
from .effects import Effect, Expect
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
from .state import BridgeState
from .turn import Turn

_Handler: TypeAlias = Callable[[Turn, Any], None]

_HANDLERS: Final[dict[type[Message], _Handler]] = {
    AgentGone: serving.agent_gone,
    AgentOffered: serving.agent_offered,
    AgentSaid: serving.agent_said,
    CgroupFound: watching.cgroup_found,
    Listening: serving.listening,
    MemoryUsed: watching.memory_used,
    PreparationEnded: life.preparation_ended,
    PrepareVm: life.prepare,
    ServeAgain: serving.serve_again,
    ServingEnded: serving.serving_ended,
    SetUpOverdue: serving.set_up_overdue,
    SettlingEnded: serving.settling_ended,
    Sized: sizing.sized,
    SizingFailed: sizing.sizing_failed,
    StartVmMonitor: life.start,
    StopVmMonitor: life.stop,
    WatchAgain: watching.watch_again,
    WatchEnded: watching.watch_ended,
}


def decide(state: BridgeState, message: Message, moment: Moment) -> tuple[BridgeState, tuple[Effect, ...]]:
    """Return the state after a message, and what is to be done, in order."""
    turn = Turn(state, moment)
    _HANDLERS[type(message)](turn, message)
    sizing.begin_next(turn)
    if turn.state.pressure != state.pressure:
        turn.effects.append(Expect(turn.state.pressure))
    return turn.state, tuple(turn.effects)

"""What the LfcManager does about each message: `decide(state, message) -> (state, effects)`, pure.

Here is which message is decided where, and what the Supervisor's come to; the rest is in prewarming and offloading.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from ...messages.base import Message
from ...messages.lfc import (
    CacheLost,
    CancelPrewarm,
    FollowSpec,
    Offload,
    OffloadLast,
    Prewarm,
    PrewarmStatus,
    StopLfc,
)
from ..kit.effects import Never
from . import offloading, prewarming
from .effects import CancelJob, Effect
from .private import OffloadDue, OffloadEnded, PrewarmEnded, PrewarmProgressed, PrewarmRetry
from .state import LfcState
from .turn import Turn

Decided: TypeAlias = (
    Prewarm
    | CancelPrewarm
    | Offload
    | FollowSpec
    | CacheLost
    | OffloadLast
    | StopLfc
    | OffloadDue
    | PrewarmRetry
    | PrewarmProgressed
    | PrewarmEnded
    | OffloadEnded
)


class Decision(msgspec.Struct, frozen=True):
    """The next state, and what is to be done, in order."""

    state: LfcState
    effects: tuple[Effect, ...]


def decide(state: LfcState, message: Decided, now_s: float) -> Decision:
    """Say what a message changes and what is to be done about it; `now_s` on the monotonic clock."""
    turn = Turn(state, now_s)
    _HANDLERS[type(message)](turn, message)
    return Decision(turn.state, tuple(turn.effects))


def follow_spec(turn: Turn, message: FollowSpec) -> None:
    before, spec = turn.state.spec, message.spec
    turn.set(spec=spec, active=True, ending=False)
    wanted = spec.autoprewarm and (message.starting or before is None or not before.autoprewarm)
    if wanted and turn.state.prewarm.status is PrewarmStatus.NOT_PREWARMED:
        turn.log(logging.INFO, "prewarming the cache, because the spec's `autoprewarm` says so")
        prewarming.begin(turn, None)
    changed = before is None or before.offload_lfc_interval_seconds != spec.offload_lfc_interval_seconds
    if message.starting or changed:
        offloading.await_next(turn)


def offload_last(turn: Turn, _: OffloadLast) -> None:
    _end(turn)
    turn.set(ending=True)
    prewarming.cancel(turn)
    if turn.state.saving is not None:
        return  # it is the last one
    if (why := offloading.why_not(turn)) is not None:
        offloading.last_ended(turn, why)
    elif turn.state.spec is None:
        offloading.last_ended(turn, "Postgres was not running")
    else:
        offloading.begin(turn, turn.state.spec)


def stop_lfc(turn: Turn, _: StopLfc) -> None:
    _end(turn)
    turn.set(ending=False)
    prewarming.cancel(turn)
    if turn.state.saving is not None:
        turn.do(CancelJob())


def _end(turn: Turn) -> None:
    """Begin nothing any more."""
    turn.set(active=False)
    turn.do(Never(OffloadDue))


_Handler: TypeAlias = Callable[[Turn, Any], None]
_HANDLERS: Final[dict[type[Message], _Handler]] = {
    Prewarm: prewarming.prewarm,
    CancelPrewarm: prewarming.cancel_prewarm,
    CacheLost: prewarming.cache_lost,
    PrewarmRetry: prewarming.prewarm_retry,
    PrewarmProgressed: prewarming.prewarm_progressed,
    PrewarmEnded: prewarming.prewarm_ended,
    Offload: offloading.offload,
    OffloadDue: offloading.offload_due,
    OffloadEnded: offloading.offload_ended,
    FollowSpec: follow_spec,
    OffloadLast: offload_last,
    StopLfc: stop_lfc,
}

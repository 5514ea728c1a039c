"""What is decided about an offload: the rule, when one is due, what it leaves behind. Pure.

The rule of all rules: what is saved is never replaced by the state of a cache that a prewarm has left incomplete. So
no offload begins during a prewarm, nor after one that failed or was cancelled, unless a person forces that; and a
prewarm that is asked for during an offload waits for its end.
"""

import logging

from ...messages.lfc import LastOffloadEnded, LfcRefusal, Offload, OffloadState, PrewarmStatus
from ...messages.metrics import LFC_OFFLOAD_ERRORS, LFC_OFFLOADS, LFC_SECONDS, LFC_STATE_BYTES
from ...messages.spec import ComputeSpec
from ..kit.effects import After, Never, Tell
from . import prewarming
from .effects import Count, Observe, StartOffload
from .lifecycle import OFFLOADS, OffloadEvent, Refused, moved
from .places import NoPlaceError, place_of
from .private import OffloadDue, OffloadEnded
from .state import Saving
from .turn import Turn


def why_not_offload(status: PrewarmStatus, *, incomplete: bool, force: bool = False) -> str | None:
    """Say why an offload could replace a good state by an incomplete one; None when it cannot."""
    if status is PrewarmStatus.PREWARMING:
        return "a prewarm is under way, and the cache is incomplete until it ends"
    if incomplete and not force:
        return (
            "the last prewarm failed or was cancelled, so the cache may be incomplete: prewarm it again, "
            "or take it as it is with ?force=true"
        )
    return None


def offload(turn: Turn, message: Offload) -> None:
    spec = turn.state.spec
    if not turn.state.active or spec is None:
        turn.refuse(LfcRefusal.NOT_RUNNING, "Postgres is not running")
    elif OFFLOADS[turn.state.offload.status][OffloadEvent.ASKED] is Refused.BUSY:
        turn.refuse(LfcRefusal.BUSY, "Multiple requests for prewarm offload are not allowed")
    elif (why := why_not(turn, force=message.force)) is not None:
        turn.refuse(LfcRefusal.UNSAFE, f"the cache is not offloaded: {why}")
    else:
        if message.force and turn.state.incomplete:
            turn.log(logging.WARNING, "an offload is forced although the last prewarm is not complete")
        begin(turn, spec, force=message.force)
        turn.accept()


def offload_due(turn: Turn, _: OffloadDue) -> None:
    state = turn.state
    if not state.active or state.spec is None or state.saving is not None:
        return  # the end of the one under way sets the next
    why = why_not(turn)
    if why is None:
        begin(turn, state.spec)
        return
    if state.prewarm.status is not PrewarmStatus.PREWARMING and not state.told:
        turn.set(told=True)
        turn.log(logging.WARNING, f"the cache is not offloaded any more: {why}")
    await_next(turn)


def offload_ended(turn: Turn, message: OffloadEnded) -> None:
    saving = turn.state.saving
    if saving is None or saving.number != message.number:
        return
    turn.set(saving=None, offload=_shown(turn.state.offload, message))
    took_s = turn.now_s - saving.began_s
    if message.event is OffloadEvent.COMPLETED:
        turn.set(life=message.life, source=None, unsaved="")
        turn.do(Observe(LFC_SECONDS, "offload", took_s), Observe(LFC_STATE_BYTES, "offload", message.size))
        turn.log(logging.INFO, f"the state of the cache is saved: {message.size} bytes in {took_s:.1f} s")
    elif message.event is not OffloadEvent.FAILED or message.cancelled:
        if message.error != turn.state.unsaved:
            level = logging.WARNING if message.event is OffloadEvent.NO_MODULE else logging.INFO
            turn.log(level, f"the state of the cache is not saved: {message.error}")
        turn.set(unsaved=message.error)
    else:
        turn.set(unsaved="")
        turn.do(Count(LFC_OFFLOAD_ERRORS))
        turn.log(logging.ERROR, f"the state of the cache could not be saved: {message.error}")
    last_ended(turn, message.error or None)
    await_next(turn)
    if turn.state.warming is not None:
        prewarming.start(turn)
    elif message.event is OffloadEvent.CACHE_LOST:
        prewarming.warm_again(turn)


def _shown(before: OffloadState, message: OffloadEnded) -> OffloadState:
    match message.event:
        case OffloadEvent.COMPLETED:
            return moved(
                OFFLOADS,
                before,
                message.event,
                state_query_time_ms=message.query_ms,
                compress_time_ms=message.compress_ms,
                state_upload_time_ms=message.upload_ms,
            )
        case OffloadEvent.FAILED:
            return moved(OFFLOADS, before, message.event, error=message.error)
        case OffloadEvent.CACHE_LOST | OffloadEvent.NO_MODULE:
            return moved(OFFLOADS, before, message.event, reason=message.error)
        case _:
            return moved(OFFLOADS, before, message.event)


# --- Steps that others take, too


def why_not(turn: Turn, *, force: bool = False) -> str | None:
    """Say why no offload may begin now; None when one may."""
    return why_not_offload(turn.state.prewarm.status, incomplete=turn.state.incomplete, force=force)


def begin(turn: Turn, spec: ComputeSpec, *, force: bool = False) -> None:
    """Begin an offload; with `force` whatever has become of the cache."""
    state = turn.state
    number = state.count + 1
    turn.set(
        offload=moved(OFFLOADS, OffloadState(state.offload.status), OffloadEvent.ASKED),
        saving=Saving(number, turn.now_s),
        count=number,
    )
    turn.do(Never(OffloadDue), Count(LFC_OFFLOADS))
    try:
        place = place_of(spec, state.settings)
    except NoPlaceError as error:
        offload_ended(turn, OffloadEnded(number, OffloadEvent.FAILED, str(error)))
        return
    life = state.life if prewarming.is_to_be_warm(turn) and not force else None
    turn.do(StartOffload(number, place, life))


def await_next(turn: Turn) -> None:
    """Set the next tick, so long after now as the spec says."""
    spec = turn.state.spec
    interval_s = None if spec is None else spec.offload_lfc_interval_seconds
    if interval_s is None:
        turn.do(Never(OffloadDue))
    elif turn.state.active and turn.state.saving is None:
        turn.do(After(interval_s, OffloadDue()))


def last_ended(turn: Turn, error: str | None) -> None:
    """Tell the Supervisor, if it waits, that what could be saved before the stop is saved, or why it is not."""
    if turn.state.ending:
        turn.set(ending=False)
        turn.do(Tell(LastOffloadEnded(error)))

"""What is decided about a prewarm: when one begins, is tried again, ends, and is due again after a crash. Pure."""

import logging
from typing import Final

from msgspec.structs import replace

from ...messages.lfc import CacheLost, CancelPrewarm, LfcRefusal, Prewarm, PrewarmState, PrewarmStatus
from ...messages.metrics import LFC_PREWARM_ERRORS, LFC_PREWARMS, LFC_SECONDS, LFC_STATE_BYTES
from ..kit.effects import After, Never
from .effects import CancelJob, Count, Observe, StartPrewarm
from .lifecycle import PREWARMS, PrewarmEvent, Refused, moved
from .places import NoPlaceError, place_of
from .private import PrewarmEnded, PrewarmProgressed, PrewarmRetry
from .state import Warming
from .turn import Turn

RETRY_S: Final = (1.0, 5.0, 15.0)
"""Pauses before a state is asked for again, when trying again may help."""
MOST_AGAIN: Final = 3
"""Prewarms in a row that a crash may break off: it may be the prewarm of which Postgres crashes."""


def prewarm(turn: Turn, message: Prewarm) -> None:
    if not turn.state.active:
        turn.refuse(LfcRefusal.NOT_RUNNING, "Postgres is not running")
    elif PREWARMS[turn.state.prewarm.status][PrewarmEvent.ASKED] is Refused.BUSY:
        turn.refuse(LfcRefusal.BUSY, "Multiple requests for prewarm are not allowed")
    else:
        turn.set(again=0)
        begin(turn, message.from_endpoint)
        turn.accept()


def cancel_prewarm(turn: Turn, _: CancelPrewarm) -> None:
    turn.accept()
    cancel(turn)


def cache_lost(turn: Turn, _: CacheLost) -> None:
    if turn.state.warming is not None:
        turn.set(warming=replace(turn.state.warming, lost=True))
    else:
        warm_again(turn)


def prewarm_retry(turn: Turn, message: PrewarmRetry) -> None:
    state = turn.state
    if state.warming is not None and state.warming.number == message.number and state.saving is None:
        start(turn)


def prewarm_progressed(turn: Turn, message: PrewarmProgressed) -> None:
    if turn.state.warming is not None and turn.state.warming.number == message.number:
        counts = {"total": message.total, "prewarmed": message.prewarmed, "skipped": message.skipped}
        turn.set(prewarm=replace(turn.state.prewarm, **counts))


def prewarm_ended(turn: Turn, message: PrewarmEnded) -> None:
    warming = turn.state.warming
    if warming is None or warming.number != message.number:
        return
    if message.transient and turn.state.active and warming.attempt <= len(RETRY_S):
        pause_s = RETRY_S[warming.attempt - 1]
        turn.log(logging.WARNING, f"prewarming the cache: {message.error}; trying again in {pause_s:g} s")
        turn.set(warming=replace(warming, started=False))
        turn.do(After(pause_s, PrewarmRetry(warming.number)))
        return
    turn.set(warming=None, prewarm=_shown(turn.state.prewarm, message))
    took_s = turn.now_s - warming.began_s
    match message.event:
        case PrewarmEvent.COMPLETED:
            turn.set(incomplete=False, life=message.life, again=0)
            turn.do(
                Observe(LFC_SECONDS, "prewarm", took_s), Observe(LFC_STATE_BYTES, "prewarm", message.size)
            )
            turn.log(
                logging.INFO,
                f"the cache is prewarmed: {message.prewarmed} of {message.total} blocks in {took_s:.1f} s, "
                f"{message.skipped} skipped",
            )
        case PrewarmEvent.NOT_FOUND:
            if warming.from_endpoint is None:  # there is nothing that could be lost
                turn.set(incomplete=False, life=None, again=0)
            else:
                turn.set(incomplete=warming.was_incomplete, source=None, again=0)
            turn.log(logging.INFO, "the cache is not prewarmed: there is no saved state")
        case PrewarmEvent.CANCELLED:
            turn.log(logging.INFO, "the prewarm was cancelled")
        case _:
            turn.do(Count(LFC_PREWARM_ERRORS))
            turn.log(logging.ERROR, f"the cache could not be prewarmed: {message.error}")
    if warming.lost and turn.state.incomplete and message.event is not PrewarmEvent.CANCELLED:
        warm_again(turn)


def _shown(before: PrewarmState, message: PrewarmEnded) -> PrewarmState:
    match message.event:
        case PrewarmEvent.COMPLETED:
            return moved(
                PREWARMS,
                before,
                message.event,
                total=message.total,
                prewarmed=message.prewarmed,
                skipped=message.skipped,
                state_download_time_ms=message.download_ms,
                uncompress_time_ms=message.uncompress_ms,
                prewarm_time_ms=message.prewarm_ms,
            )
        case PrewarmEvent.FAILED:
            return moved(PREWARMS, before, message.event, error=message.error)
        case _:
            return moved(PREWARMS, before, message.event)


# --- Steps that others take, too


def begin(turn: Turn, from_endpoint: str | None) -> None:
    """Begin a prewarm; its job starts at the end of an offload that is under way."""
    state = turn.state
    number = state.count + 1
    turn.set(
        prewarm=moved(PREWARMS, PrewarmState(state.prewarm.status), PrewarmEvent.ASKED),
        warming=Warming(number, from_endpoint, state.incomplete, turn.now_s),
        source=from_endpoint,
        incomplete=True,
        told=False,
        count=number,
    )
    turn.do(Count(LFC_PREWARMS))
    if state.saving is None:
        start(turn)


def start(turn: Turn) -> None:
    """Start the job of the prewarm under way, or its next attempt."""
    warming, spec = turn.state.warming, turn.state.spec
    if warming is None or spec is None:
        return
    try:
        place = place_of(spec, turn.state.settings, warming.from_endpoint)
    except NoPlaceError as error:
        prewarm_ended(turn, PrewarmEnded(warming.number, PrewarmEvent.FAILED, str(error)))
        return
    turn.set(warming=replace(warming, started=True, attempt=warming.attempt + 1))
    turn.do(StartPrewarm(warming.number, place))


def cancel(turn: Turn) -> None:
    """End the prewarm under way: by its job's outcome, or at once while it waits."""
    warming = turn.state.warming
    if warming is None:
        return
    if warming.started:
        turn.do(CancelJob())
    else:
        turn.do(Never(PrewarmRetry))
        prewarm_ended(turn, PrewarmEnded(warming.number, PrewarmEvent.CANCELLED))


def warm_again(turn: Turn) -> None:
    """Warm a cache that a crash has emptied, lest what is saved be replaced by a cold one."""
    if not turn.state.active or not is_to_be_warm(turn):
        return
    if turn.state.again < MOST_AGAIN:
        turn.log(logging.INFO, "prewarming the cache again, because a crash has emptied it")
        turn.set(again=turn.state.again + 1)
        begin(turn, turn.state.source)
    else:
        turn.log(
            logging.ERROR,
            f"the cache is not prewarmed again: Postgres has crashed during the last {MOST_AGAIN} prewarms",
        )


def is_to_be_warm(turn: Turn) -> bool:
    """Whether a cache that has become cold must be warmed before it is saved again."""
    return turn.state.prewarm.status not in {PrewarmStatus.NOT_PREWARMED, PrewarmStatus.CANCELLED}

"""What the LfcManager does about each message: `decide(state, message) -> (state, effects)`, pure.

The rule of all rules: what is saved is never replaced by the state of a cache that a prewarm has left
incomplete. So no offload begins during a prewarm, nor after one that failed or was cancelled, unless a
person forces that; and a prewarm that is asked for during an offload waits for its end.
"""

import logging
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeAlias

import msgspec
from msgspec.structs import replace

from ...messages.base import Message
from ...messages.lfc import (
    CacheLost,
    CancelPrewarm,
    FollowSpec,
    LastOffloadEnded,
    LfcAccepted,
    LfcRefusal,
    LfcRefused,
    Offload,
    OffloadLast,
    OffloadState,
    OffloadStatus,
    Prewarm,
    PrewarmState,
    PrewarmStatus,
    StopLfc,
)
from ...messages.metrics import (
    LFC_OFFLOAD_ERRORS,
    LFC_OFFLOADS,
    LFC_PREWARM_ERRORS,
    LFC_PREWARMS,
    LFC_SECONDS,
    LFC_STATE_BYTES,
    Family,
)
from ...messages.settings import NodeSettings
from ...messages.spec import ComputeSpec
from ..kit.effects import After, Log, Never, Tell
from .places import NoPlaceError, Place, place_of

RETRY_S: Final = (1.0, 5.0, 15.0)
"""Pauses before a state is asked for again, when trying again may help."""
MOST_AGAIN: Final = 3
"""Prewarms in a row that a crash may break off: it may be the prewarm of which Postgres crashes."""
BROKEN_OFF: Final = "it was broken off because the node is ending"

# --- The tables


class PrewarmEvent(Enum):
    """What can happen to a prewarm."""

    ASKED = "a prewarm was asked for"
    COMPLETED = "all of the state is loaded"
    FAILED = "the state could not be read or loaded"
    NOT_FOUND = "there is no state"
    CANCELLED = "it was cancelled"


class OffloadEvent(Enum):
    """What can happen to an offload."""

    ASKED = "an offload was asked for, or is due"
    COMPLETED = "the state is saved"
    FAILED = "the state could not be taken or saved"
    NOTHING_CACHED = "there is nothing to save"
    CACHE_LOST = "a crash has emptied the cache since it was warm"
    NO_MODULE = "what is needed to ask the cache is not installed"


class Refused(Enum):
    """Why an event changes nothing."""

    BUSY = "answered 429: one is under way"
    CANNOT_HAPPEN = "none is under way: it is late, and ignored"


_P, _E = PrewarmStatus, PrewarmEvent
_O, _F = OffloadStatus, OffloadEvent
_NO_PREWARM: Final[dict[PrewarmEvent, PrewarmStatus | Refused]] = {
    **dict.fromkeys(PrewarmEvent, Refused.CANNOT_HAPPEN),
    _E.ASKED: _P.PREWARMING,
}
_NO_OFFLOAD: Final[dict[OffloadEvent, OffloadStatus | Refused]] = {
    **dict.fromkeys(OffloadEvent, Refused.CANNOT_HAPPEN),
    _F.ASKED: _O.OFFLOADING,
}

PREWARMS: Final[dict[PrewarmStatus, dict[PrewarmEvent, PrewarmStatus | Refused]]] = {
    _P.NOT_PREWARMED: _NO_PREWARM,
    _P.PREWARMING: {
        _E.ASKED: Refused.BUSY,
        _E.COMPLETED: _P.COMPLETED,
        _E.FAILED: _P.FAILED,
        _E.NOT_FOUND: _P.SKIPPED,
        _E.CANCELLED: _P.CANCELLED,
    },
    _P.COMPLETED: _NO_PREWARM,
    _P.FAILED: _NO_PREWARM,
    _P.SKIPPED: _NO_PREWARM,
    _P.CANCELLED: _NO_PREWARM,
}
OFFLOADS: Final[dict[OffloadStatus, dict[OffloadEvent, OffloadStatus | Refused]]] = {
    _O.NOT_OFFLOADED: _NO_OFFLOAD,
    _O.OFFLOADING: {
        _F.ASKED: Refused.BUSY,
        _F.COMPLETED: _O.COMPLETED,
        _F.FAILED: _O.FAILED,
        _F.NOTHING_CACHED: _O.SKIPPED,
        _F.CACHE_LOST: _O.SKIPPED,
        _F.NO_MODULE: _O.SKIPPED,
    },
    _O.COMPLETED: _NO_OFFLOAD,
    _O.FAILED: _NO_OFFLOAD,
    _O.SKIPPED: _NO_OFFLOAD,
}


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


# --- What is known


class Warming(msgspec.Struct, frozen=True):
    """A prewarm under way."""

    number: int
    from_endpoint: str | None
    was_incomplete: bool
    """What holds again when there is no state of another endpoint."""
    began_s: float
    started: bool = False
    """Its job is running; else it waits for an offload or for its next attempt."""
    attempt: int = 0
    lost: bool = False
    """Postgres has crashed meanwhile."""


class Saving(msgspec.Struct, frozen=True):
    """An offload under way."""

    number: int
    began_s: float


class LfcState(msgspec.Struct, frozen=True):
    """Everything the LfcManager knows."""

    settings: NodeSettings
    spec: ComputeSpec | None = None
    active: bool = False
    """Postgres is running, and not about to be stopped."""
    prewarm: PrewarmState = PrewarmState()
    offload: OffloadState = OffloadState()
    warming: Warming | None = None
    saving: Saving | None = None
    incomplete: bool = False
    """A prewarm of this life has begun and not completed: less may be cached than is saved."""
    life: str | None = None
    """That of the cache when it was last known to be whole: prewarmed, or saved."""
    source: str | None = None
    """The endpoint from whose state the cache was to be warmed last; None: its own, which is the newer one once saved."""
    again: int = 0
    """Prewarms in a row that were begun because a crash had emptied the cache."""
    told: bool = False
    """That nothing is offloaded any more is in the log."""
    unsaved: str = ""
    """Why the last offload has saved nothing, as it is in the log."""
    ending: bool = False
    """Somebody waits for LastOffloadEnded."""
    count: int = 0


# --- What comes of it


class Answer(msgspec.Struct, frozen=True):
    """Answer the request that is being decided."""

    value: LfcAccepted | LfcRefused


class StartPrewarm(msgspec.Struct, frozen=True):
    """Start the job that warms the cache."""

    number: int
    place: Place


class StartOffload(msgspec.Struct, frozen=True):
    """Start the job that saves the state, if the cache has still that life, or `life` is None."""

    number: int
    place: Place
    life: str | None


class CancelJob(msgspec.Struct, frozen=True):
    """End the job under way; its outcome still comes."""


class Count(msgspec.Struct, frozen=True):
    """Let a counter grow by one."""

    family: Family


class Observe(msgspec.Struct, frozen=True):
    """Count a value into a histogram of the operation."""

    family: Family
    operation: str
    value: float


Effect: TypeAlias = (
    Answer | StartPrewarm | StartOffload | CancelJob | After | Never | Log | Count | Observe | Tell
)


# --- The messages to oneself


class OffloadDue(Message, frozen=True):
    """Tells the LfcManager that the interval since the last offload is over."""


class PrewarmRetry(Message, frozen=True):
    """Tells the LfcManager to ask for the state again."""

    number: int


class PrewarmProgressed(Message, frozen=True):
    """Tells the LfcManager how far the prewarm has come, in blocks."""

    number: int
    total: int
    prewarmed: int
    skipped: int


class PrewarmEnded(Message, frozen=True):
    """Tells the LfcManager how the job of a prewarm ended; counts and times as in PrewarmState."""

    number: int
    event: PrewarmEvent
    error: str = ""
    transient: bool = False
    """The state could not be read, and trying again may help."""
    total: int = 0
    prewarmed: int = 0
    skipped: int = 0
    life: str | None = None
    size: int = 0
    """Bytes that were read."""
    download_ms: int = 0
    uncompress_ms: int = 0
    prewarm_ms: int = 0


class OffloadEnded(Message, frozen=True):
    """Tells the LfcManager how the job of an offload ended; `size` in bytes, times as in OffloadState."""

    number: int
    event: OffloadEvent
    error: str = ""
    life: str | None = None
    size: int = 0
    query_ms: int = 0
    compress_ms: int = 0
    upload_ms: int = 0
    cancelled: bool = False


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
    turn = _Turn(state, now_s)
    _HANDLERS[type(message)](turn, message)
    return Decision(turn.state, tuple(turn.effects))


class _Turn:
    def __init__(self, state: LfcState, now_s: float) -> None:
        self.state = state
        self.now_s = now_s
        self.effects: list[Effect] = []

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - field names are checked by msgspec
        self.state = replace(self.state, **changes)

    def do(self, *effects: Effect) -> None:
        self.effects += effects

    def log(self, level: int, text: str) -> None:
        self.do(Log(level, text))

    # --- Requests

    def prewarm_asked(self, message: Prewarm) -> None:
        if not self.state.active:
            self._refuse(LfcRefusal.NOT_RUNNING, "Postgres is not running")
        elif PREWARMS[self.state.prewarm.status][PrewarmEvent.ASKED] is Refused.BUSY:
            self._refuse(LfcRefusal.BUSY, "Multiple requests for prewarm are not allowed")
        else:
            self.set(again=0)
            self._begin_prewarm(message.from_endpoint)
            self.do(Answer(LfcAccepted()))

    def cancel_asked(self, _: CancelPrewarm) -> None:
        self.do(Answer(LfcAccepted()))
        self._cancel_prewarm()

    def offload_asked(self, message: Offload) -> None:
        state = self.state
        unsafe = why_not_offload(state.prewarm.status, incomplete=state.incomplete, force=message.force)
        if not state.active:
            self._refuse(LfcRefusal.NOT_RUNNING, "Postgres is not running")
        elif OFFLOADS[state.offload.status][OffloadEvent.ASKED] is Refused.BUSY:
            self._refuse(LfcRefusal.BUSY, "Multiple requests for prewarm offload are not allowed")
        elif unsafe is not None:
            self._refuse(LfcRefusal.UNSAFE, f"the cache is not offloaded: {unsafe}")
        else:
            if message.force and state.incomplete:
                self.log(logging.WARNING, "an offload is forced although the last prewarm is not complete")
            self._begin_offload(force=message.force)
            self.do(Answer(LfcAccepted()))

    def _refuse(self, why: LfcRefusal, error: str) -> None:
        self.do(Answer(LfcRefused(why, error)))

    # --- Of the Supervisor

    def follow(self, message: FollowSpec) -> None:
        before = self.state.spec
        self.set(spec=message.spec, active=True, ending=False)
        wanted = message.spec.autoprewarm and (message.starting or before is None or not before.autoprewarm)
        if wanted and self.state.prewarm.status is PrewarmStatus.NOT_PREWARMED:
            self.log(logging.INFO, "prewarming the cache, because the spec's `autoprewarm` says so")
            self._begin_prewarm(None)
        changed = (
            before is None or before.offload_lfc_interval_seconds != message.spec.offload_lfc_interval_seconds
        )
        if message.starting or changed:
            self._await_next()

    def lost(self, _: CacheLost) -> None:
        if self.state.warming is not None:
            self.set(warming=replace(self.state.warming, lost=True))
        else:
            self._warm_again()

    def _warm_again(self) -> None:
        """Warm a cache that a crash has emptied, lest what is saved be replaced by a cold one."""
        if not self.state.active or not self._is_to_be_warm():
            return
        if self.state.again < MOST_AGAIN:
            self.log(logging.INFO, "prewarming the cache again, because a crash has emptied it")
            self.set(again=self.state.again + 1)
            self._begin_prewarm(self.state.source)
        else:
            self.log(
                logging.ERROR,
                f"the cache is not prewarmed again: Postgres has crashed during the last {MOST_AGAIN} prewarms",
            )

    def _is_to_be_warm(self) -> bool:
        """Whether a cache that has become cold must be warmed before it is saved again."""
        return self.state.prewarm.status not in {PrewarmStatus.NOT_PREWARMED, PrewarmStatus.CANCELLED}

    def offload_last(self, _: OffloadLast) -> None:
        self._end()
        self.set(ending=True)
        state = self.state
        self._cancel_prewarm()
        if state.saving is not None:
            return  # it is the last one
        if (why := why_not_offload(state.prewarm.status, incomplete=state.incomplete)) is not None:
            self._last_ended(why)
        elif state.spec is None:
            self._last_ended("Postgres was not running")
        else:
            self._begin_offload()

    def stop(self, _: StopLfc) -> None:
        self._end()
        self.set(ending=False)
        self._cancel_prewarm()
        if self.state.saving is not None:
            self.do(CancelJob())

    def _end(self) -> None:
        self.set(active=False)
        self.do(Never(OffloadDue))

    def _last_ended(self, error: str | None) -> None:
        if self.state.ending:
            self.set(ending=False)
            self.do(Tell(LastOffloadEnded(error)))

    # --- Prewarm

    def _begin_prewarm(self, from_endpoint: str | None) -> None:
        state = self.state
        self._move_prewarm(PrewarmEvent.ASKED)
        warming = Warming(state.count + 1, from_endpoint, state.incomplete, self.now_s)
        self.set(count=state.count + 1, warming=warming, source=from_endpoint, incomplete=True, told=False)
        self.do(Count(LFC_PREWARMS))
        if state.saving is None:
            self._start_prewarm()

    def _start_prewarm(self) -> None:
        warming, spec = self.state.warming, self.state.spec
        if warming is None or spec is None:
            return
        try:
            place = place_of(spec, self.state.settings, warming.from_endpoint)
        except NoPlaceError as error:
            self.prewarm_ended(PrewarmEnded(warming.number, PrewarmEvent.FAILED, str(error)))
            return
        self.set(warming=replace(warming, started=True, attempt=warming.attempt + 1))
        self.do(StartPrewarm(warming.number, place))

    def retry(self, message: PrewarmRetry) -> None:
        state = self.state
        if state.warming is not None and state.warming.number == message.number and state.saving is None:
            self._start_prewarm()

    def _cancel_prewarm(self) -> None:
        warming = self.state.warming
        if warming is None:
            return
        if warming.started:
            self.do(CancelJob())
        else:
            self.do(Never(PrewarmRetry))
            self.prewarm_ended(PrewarmEnded(warming.number, PrewarmEvent.CANCELLED))

    def progressed(self, message: PrewarmProgressed) -> None:
        if self.state.warming is not None and self.state.warming.number == message.number:
            self.set(
                prewarm=replace(
                    self.state.prewarm,
                    total=message.total,
                    prewarmed=message.prewarmed,
                    skipped=message.skipped,
                )
            )

    def prewarm_ended(self, message: PrewarmEnded) -> None:
        warming = self.state.warming
        if warming is None or warming.number != message.number:
            return
        if message.transient and self.state.active and warming.attempt <= len(RETRY_S):
            pause_s = RETRY_S[warming.attempt - 1]
            self.log(logging.WARNING, f"prewarming the cache: {message.error}; trying again in {pause_s:g} s")
            self.set(warming=replace(warming, started=False))
            self.do(After(pause_s, PrewarmRetry(warming.number)))
            return
        self.set(warming=None)
        self._move_prewarm(message.event, message)
        took_s = self.now_s - warming.began_s
        match message.event:
            case PrewarmEvent.COMPLETED:
                self.set(incomplete=False, life=message.life, again=0)
                self.do(
                    Observe(LFC_SECONDS, "prewarm", took_s), Observe(LFC_STATE_BYTES, "prewarm", message.size)
                )
                self.log(
                    logging.INFO,
                    f"the cache is prewarmed: {message.prewarmed} of {message.total} blocks in {took_s:.1f} s, "
                    f"{message.skipped} skipped",
                )
            case PrewarmEvent.NOT_FOUND:
                if warming.from_endpoint is None:  # there is nothing that could be lost
                    self.set(incomplete=False, life=None, again=0)
                else:
                    self.set(incomplete=warming.was_incomplete, source=None, again=0)
                self.log(logging.INFO, "the cache is not prewarmed: there is no saved state")
            case PrewarmEvent.CANCELLED:
                self.log(logging.INFO, "the prewarm was cancelled")
            case _:
                self.do(Count(LFC_PREWARM_ERRORS))
                self.log(logging.ERROR, f"the cache could not be prewarmed: {message.error}")
        if warming.lost and self.state.incomplete and message.event is not PrewarmEvent.CANCELLED:
            self._warm_again()

    def _move_prewarm(self, event: PrewarmEvent, message: PrewarmEnded | None = None) -> None:
        status = PREWARMS[self.state.prewarm.status][event]
        if isinstance(status, Refused):
            return
        prewarm = PrewarmState(status)
        if message is not None and event is PrewarmEvent.COMPLETED:
            prewarm = PrewarmState(
                status,
                total=message.total,
                prewarmed=message.prewarmed,
                skipped=message.skipped,
                state_download_time_ms=message.download_ms,
                uncompress_time_ms=message.uncompress_ms,
                prewarm_time_ms=message.prewarm_ms,
            )
        elif message is not None:
            prewarm = replace(self.state.prewarm, status=status)
            if event is PrewarmEvent.FAILED:
                prewarm = replace(prewarm, error=message.error)
        self.set(prewarm=prewarm)

    # --- Offload

    def due(self, _: OffloadDue) -> None:
        state = self.state
        if not state.active or state.saving is not None:
            return  # the end of the one under way sets the next
        why = why_not_offload(state.prewarm.status, incomplete=state.incomplete)
        if why is None:
            self._begin_offload()
            return
        if state.prewarm.status is not PrewarmStatus.PREWARMING and not state.told:
            self.set(told=True)
            self.log(logging.WARNING, f"the cache is not offloaded any more: {why}")
        self._await_next()

    def _await_next(self) -> None:
        spec = self.state.spec
        interval_s = None if spec is None else spec.offload_lfc_interval_seconds
        if interval_s is None:
            self.do(Never(OffloadDue))
        elif self.state.active and self.state.saving is None:
            self.do(After(interval_s, OffloadDue()))

    def _begin_offload(self, *, force: bool = False) -> None:
        state = self.state
        self._move_offload(OffloadEvent.ASKED)
        self.set(count=state.count + 1, saving=Saving(state.count + 1, self.now_s))
        self.do(Never(OffloadDue), Count(LFC_OFFLOADS))
        assert state.spec is not None  # noqa: S101 - callers have looked
        try:
            place = place_of(state.spec, state.settings)
        except NoPlaceError as error:
            self.offload_ended(OffloadEnded(state.count + 1, OffloadEvent.FAILED, str(error)))
            return
        life = state.life if self._is_to_be_warm() and not force else None
        self.do(StartOffload(state.count + 1, place, life))

    def offload_ended(self, message: OffloadEnded) -> None:
        saving = self.state.saving
        if saving is None or saving.number != message.number:
            return
        self.set(saving=None)
        self._move_offload(message.event, message)
        took_s = self.now_s - saving.began_s
        if message.event is OffloadEvent.COMPLETED:
            self.set(life=message.life, source=None, unsaved="")
            self.do(
                Observe(LFC_SECONDS, "offload", took_s), Observe(LFC_STATE_BYTES, "offload", message.size)
            )
            self.log(logging.INFO, f"the state of the cache is saved: {message.size} bytes in {took_s:.1f} s")
        elif message.event is not OffloadEvent.FAILED or message.cancelled:
            if message.error != self.state.unsaved:
                level = logging.WARNING if message.event is OffloadEvent.NO_MODULE else logging.INFO
                self.log(level, f"the state of the cache is not saved: {message.error}")
            self.set(unsaved=message.error)
        else:
            self.set(unsaved="")
            self.do(Count(LFC_OFFLOAD_ERRORS))
            self.log(logging.ERROR, f"the state of the cache could not be saved: {message.error}")
        self._last_ended(message.error or None)
        self._await_next()
        if self.state.warming is not None:
            self._start_prewarm()
        elif message.event is OffloadEvent.CACHE_LOST:
            self._warm_again()

    def _move_offload(self, event: OffloadEvent, message: OffloadEnded | None = None) -> None:
        status = OFFLOADS[self.state.offload.status][event]
        if isinstance(status, Refused):
            return
        offload = OffloadState(status)
        if message is not None and event is OffloadEvent.COMPLETED:
            offload = OffloadState(
                status,
                state_query_time_ms=message.query_ms,
                compress_time_ms=message.compress_ms,
                state_upload_time_ms=message.upload_ms,
            )
        elif message is not None and event is OffloadEvent.FAILED:
            offload = OffloadState(status, error=message.error)
        elif message is not None and event in {OffloadEvent.CACHE_LOST, OffloadEvent.NO_MODULE}:
            offload = OffloadState(status, reason=message.error)
        self.set(offload=offload)


_Handler: TypeAlias = Callable[[_Turn, Any], None]
_HANDLERS: Final[dict[type[Message], _Handler]] = {
    Prewarm: _Turn.prewarm_asked,
    CancelPrewarm: _Turn.cancel_asked,
    Offload: _Turn.offload_asked,
    FollowSpec: _Turn.follow,
    CacheLost: _Turn.lost,
    OffloadLast: _Turn.offload_last,
    StopLfc: _Turn.stop,
    OffloadDue: _Turn.due,
    PrewarmRetry: _Turn.retry,
    PrewarmProgressed: _Turn.progressed,
    PrewarmEnded: _Turn.prewarm_ended,
    OffloadEnded: _Turn.offload_ended,
}

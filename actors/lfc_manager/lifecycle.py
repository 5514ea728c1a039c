"""How a prewarm and an offload may go: two tables `(status, event) -> status`, pure and complete."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from ...messages.lfc import OffloadState, OffloadStatus, PrewarmState, PrewarmStatus

S = TypeVar("S", PrewarmState, OffloadState)


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


def moved(
    table: Mapping[Any, Mapping[Any, Any]],
    shown: S,
    event: PrewarmEvent | OffloadEvent,
    **told: Any,  # noqa: ANN401 - field names are checked by msgspec
) -> S:
    """Return what is shown after an event, with what is to be told beside; the same where the table refuses it."""
    status = table[shown.status][event]
    return shown if isinstance(status, Refused) else replace(shown, status=status, **told)

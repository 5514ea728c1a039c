"""What the LfcManager knows."""

import msgspec

from ...messages.lfc import OffloadState, PrewarmState
from ...messages.settings import NodeSettings
from ...messages.spec import ComputeSpec


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

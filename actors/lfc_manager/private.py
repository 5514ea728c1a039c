"""What the LfcManager says to itself: ticks, and how its jobs come along."""

from ...messages.base import Message
from .lifecycle import OffloadEvent, PrewarmEvent


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

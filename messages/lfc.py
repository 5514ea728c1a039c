"""What the LfcManager hears and says: prewarming a cache from its saved state, and offloading that state."""

from enum import Enum
from typing import TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from .base import Message, Request
from .spec import ComputeSpec


class PrewarmStatus(Enum):
    """How far the last prewarm has come; the values are those of the API."""

    NOT_PREWARMED = "not_prewarmed"
    PREWARMING = "prewarming"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """There was no state to warm from."""
    CANCELLED = "cancelled"


class OffloadStatus(Enum):
    """How far the last offload has come; the values are those of the API."""

    NOT_OFFLOADED = "not_offloaded"
    OFFLOADING = "offloading"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Nothing was stored, and what is stored stays."""


class PrewarmState(msgspec.Struct, frozen=True):
    """The body of `GET /lfc/prewarm`: counts in blocks, as far as they are known, and times of a completed one."""

    status: PrewarmStatus = PrewarmStatus.NOT_PREWARMED
    error: str | UnsetType = UNSET
    total: int = 0
    prewarmed: int = 0
    skipped: int = 0
    state_download_time_ms: int | UnsetType = UNSET
    uncompress_time_ms: int | UnsetType = UNSET
    prewarm_time_ms: int | UnsetType = UNSET


class OffloadState(msgspec.Struct, frozen=True):
    """The body of `GET /lfc/offload`; the times are those of a completed one."""

    status: OffloadStatus = OffloadStatus.NOT_OFFLOADED
    error: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    """Why one was `skipped` although something may be cached."""
    state_query_time_ms: int | UnsetType = UNSET
    compress_time_ms: int | UnsetType = UNSET
    state_upload_time_ms: int | UnsetType = UNSET


class LfcAccepted(Message, frozen=True):
    """What was asked for is under way, or there was nothing to do."""


class LfcRefusal(Enum):
    """Why a request is not taken."""

    BUSY = "another of its kind is under way"
    UNSAFE = "a good state could be replaced by an incomplete one"
    NOT_RUNNING = "Postgres is not running"


class LfcRefused(Message, frozen=True):
    """What was asked for is not begun; nothing has changed."""

    why: LfcRefusal
    error: str


LfcAnswer: TypeAlias = LfcAccepted | LfcRefused


class GetPrewarm(Request[PrewarmState], frozen=True):
    """Ask how far the last prewarm has come."""


class GetOffload(Request[OffloadState], frozen=True):
    """Ask how far the last offload has come."""


class Prewarm(Request[LfcAnswer], frozen=True):
    """Warm the cache from the node's own saved state, or from that of another endpoint.

    Answered when it has begun. During an offload it waits for its end.
    """

    from_endpoint: str | None = None


class CancelPrewarm(Request[LfcAccepted], frozen=True):
    """End a prewarm that is under way, within a second; answered at once."""


class Offload(Request[LfcAnswer], frozen=True):
    """Save the state of the cache; answered when it has begun.

    `force`: although the last prewarm failed or was cancelled, so that the cache may hold less than the
    saved state says.
    """

    force: bool = False


class FollowSpec(Message, frozen=True):
    """This spec is in force on a running Postgres; `starting` tells the first of a life."""

    spec: ComputeSpec
    starting: bool


class CacheLost(Message, frozen=True):
    """Postgres runs again after a crash of one of its processes, which has emptied its cache."""


class OffloadLast(Message, frozen=True):
    """Postgres is about to be stopped: save the state once more, if that is safe, and begin nothing else."""


class LastOffloadEnded(Message, frozen=True):
    """The last offload has ended; `error` says why nothing was saved. The stop goes on in any case."""

    error: str | None = None


class StopLfc(Message, frozen=True):
    """Postgres is being stopped, or is gone: break off what is under way, and begin no more."""


LfcRequest: TypeAlias = GetPrewarm | GetOffload | Prewarm | CancelPrewarm | Offload

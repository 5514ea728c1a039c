"""Making a primary of a replica: what is asked for, what the Supervisor orders, and what comes of it."""

from .base import Message, Request
from .lfc import PrewarmStatus
from .spec import ComputeSpec


class Promoted(Message, frozen=True):
    """The node is a primary; milliseconds for each stage, None for one that was not asked for."""

    lsn_wait_time_ms: int
    pg_promote_time_ms: int
    reconfigure_time_ms: int | None = None


class PromoteRefused(Message, frozen=True):
    """Nothing was done: `bad_request` tells a fault of the request (400) from one of the node's status (412)."""

    error: str
    bad_request: bool = False


class PromoteFailed(Message, frozen=True):
    """It was tried; the same may be asked for again, and goes on from there."""

    error: str


PromoteOutcome = Promoted | PromoteRefused | PromoteFailed


class Promote(Request[PromoteOutcome], frozen=True):
    """Make a primary of this replica; who asks the same while it is under way joins.

    `wal_flush_lsn` is where the old primary ended: it is replayed first; None: whatever has arrived. `spec` is the new
    primary's, applied afterwards; without one `safekeepers`, a comma-separated list, is all that changes.
    `prewarm` is how far the prewarm has come; None where nobody has asked.
    """

    wal_flush_lsn: str | None = None
    spec: ComputeSpec | None = None
    safekeepers: str | None = None
    prewarm: PrewarmStatus | None = None


class PromotePostgres(Message, frozen=True):
    """Let the standby catch up, load what it needs as a primary, promote it, and see that it can be written to.

    `spec` is the replica's, with the safekeepers of the new primary.
    """

    operation: int
    spec: ComputeSpec
    wal_flush_lsn: str | None


class PostgresPromoted(Message, frozen=True):
    """It is a primary, also if it was one already."""

    operation: int
    lsn_wait_time_ms: int
    pg_promote_time_ms: int


class PostgresPromotionFailed(Message, frozen=True):
    """It is still a standby, or nobody knows; asking again goes on from there."""

    operation: int
    error: str

"""`POST /promote`: make a primary of a replica, and wait until it is one."""

from typing import Final, Literal, assert_never

import msgspec

from ...messages.base import decode_hook
from ...messages.lfc import GetPrewarm
from ...messages.promotion import Promote, Promoted, PromoteFailed, PromoteRefused
from ...messages.spec import ComputeSpec, check_lsn
from ..errors import ApiError, ErrorBody
from ..table import LARGE_BODY, Answer, Call, Route, Shape
from ..waiting import CONFIGURE_LIMIT_S


class PromoteBody(msgspec.Struct, frozen=True):
    """The spec of the new primary, and where the old one ended; null, without Neon's storage: wherever it did."""

    spec: ComputeSpec
    wal_flush_lsn: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not an LSN."""
        if self.wal_flush_lsn is not None:
            check_lsn(self.wal_flush_lsn, "wal_flush_lsn")


class PromoteForm(msgspec.Struct, frozen=True):
    """The form of older control planes: nothing but the safekeepers changes."""

    safekeepers: str
    wal_flush_lsn: str

    def __post_init__(self) -> None:
        """Refuse what is not an LSN."""
        check_lsn(self.wal_flush_lsn, "wal_flush_lsn")


class PromoteState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the promotion has come to; the times are only there after one with a spec."""

    status: Literal["completed"]
    lsn_wait_time_ms: int | None = None
    pg_promote_time_ms: int | None = None
    reconfigure_time_ms: int | None = None


class PromoteTrouble(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why there is no new primary; `status` only when the spec of one was given."""

    status: Literal["failed"] | None = None
    error: str


def _promote(call: Call) -> Answer:
    body, prewarm = call.decoded_body, call.ask_lfc(GetPrewarm()).status
    match body:
        case PromoteForm(safekeepers, wal_flush_lsn):
            request = Promote(wal_flush_lsn, safekeepers=safekeepers, prewarm=prewarm)
        case _:
            given = call.body(PromoteBody)
            request = Promote(given.wal_flush_lsn, given.spec, prewarm=prewarm)
    outcome = call.wait(request, CONFIGURE_LIMIT_S)
    match outcome:
        case Promoted(waited, promoted, configured):
            if request.spec is None:
                return Answer(PromoteState("completed"))
            return Answer(PromoteState("completed", waited, promoted, configured))
        case PromoteRefused(error, bad_request):
            raise ApiError(400 if bad_request else 412, error)
        case PromoteFailed(error) if request.spec is None:
            raise ApiError(500, error)
        case PromoteFailed(error):
            return Answer(PromoteTrouble(status="failed", error=error), status=500)
        case _:
            assert_never(outcome)


ROUTES: Final = (
    Route(
        path="/promote",
        method="POST",
        handler=_promote,
        body=msgspec.json.Decoder(PromoteBody, dec_hook=decode_hook),
        form=PromoteForm,
        body_limit=LARGE_BODY,
        waits=True,
        summary="Make a primary of this replica, after the old primary has ended.",
        responses={
            200: Shape("The node is a primary.", PromoteState),
            400: Shape("The token, the body or the spec is not valid; nothing was changed.", ErrorBody),
            412: Shape("The node is not in a status in which it can be promoted.", ErrorBody),
            500: Shape(
                "It is no primary, or its spec could not be applied; it may be asked for again.",
                PromoteTrouble,
            ),
        },
    ),
)

"""`/lfc/prewarm` and `/lfc/offload`: warming the cache from its saved state, and saving it."""

from typing import Final, assert_never

import msgspec

from ...messages.base import Request
from ...messages.lfc import (
    CancelPrewarm,
    GetOffload,
    GetPrewarm,
    LfcAccepted,
    LfcAnswer,
    LfcRefusal,
    LfcRefused,
    Offload,
    OffloadState,
    Prewarm,
    PrewarmState,
)
from ...messages.lifecycle import GetStatus
from ..errors import ApiError, ErrorBody
from ..table import Answer, Call, Route, Shape

STATUS_OF: Final = {LfcRefusal.BUSY: 429, LfcRefusal.UNSAFE: 409, LfcRefusal.NOT_RUNNING: 412}


class PrewarmQuery(msgspec.Struct, frozen=True):
    """The query of `POST /lfc/prewarm`: whose state is taken."""

    from_endpoint: str


class OffloadQuery(msgspec.Struct, frozen=True):
    """The query of `POST /lfc/offload`: save the state although the last prewarm is not complete."""

    force: bool


def _get_prewarm(call: Call) -> Answer:
    return Answer(call.ask_lfc(GetPrewarm()))


def _prewarm(call: Call) -> Answer:
    query = call.query(PrewarmQuery)
    return _taken(call, Prewarm(None if query is None else query.from_endpoint or None))


def _cancel(call: Call) -> Answer:
    call.ask_lfc(CancelPrewarm())
    return Answer(None, 202)


def _get_offload(call: Call) -> Answer:
    return Answer(call.ask_lfc(GetOffload()))


def _offload(call: Call) -> Answer:
    query = call.query(OffloadQuery)
    return _taken(call, Offload(force=query is not None and query.force))


def _taken(call: Call, request: Request[LfcAnswer]) -> Answer:
    answer = call.ask_lfc(request)
    match answer:
        case LfcAccepted():
            return Answer(None, 202)
        case LfcRefused(why=LfcRefusal.NOT_RUNNING):
            status = call.ask(GetStatus()).status
            raise ApiError(412, f"invalid compute status: {status.text}")
        case LfcRefused(why, error):
            raise ApiError(STATUS_OF[why], error)
        case _:
            assert_never(answer)


_BUSY: Final = Shape("Another one is under way.", ErrorBody)
_NOT_RUNNING: Final = Shape("Postgres is not running.", ErrorBody)

ROUTES: Final = (
    Route(
        path="/lfc/prewarm",
        method="GET",
        handler=_get_prewarm,
        summary="How far the last prewarm of the cache has come; counts in blocks, also while it runs.",
        responses={200: Shape("The state of the prewarm.", PrewarmState)},
    ),
    Route(
        path="/lfc/prewarm",
        method="POST",
        handler=_prewarm,
        query=PrewarmQuery,
        query_optional=True,
        summary="Warm the cache from its saved state, or that of another endpoint; after an offload under way.",
        responses={202: Shape("It has begun."), 412: _NOT_RUNNING, 429: _BUSY},
    ),
    Route(
        path="/lfc/prewarm",
        method="DELETE",
        handler=_cancel,
        summary="End a prewarm that is under way, within a second.",
        responses={202: Shape("It ends, or there was none.")},
    ),
    Route(
        path="/lfc/offload",
        method="GET",
        handler=_get_offload,
        summary="How far the last offload of the cache's state has come.",
        responses={200: Shape("The state of the offload.", OffloadState)},
    ),
    Route(
        path="/lfc/offload",
        method="POST",
        handler=_offload,
        query=OffloadQuery,
        query_optional=True,
        summary="Save the state of the cache, so that the next start can be warm.",
        responses={
            202: Shape("It has begun."),
            409: Shape(
                "A prewarm is under way, or the last one is not complete: a good state could be lost.",
                ErrorBody,
            ),
            412: _NOT_RUNNING,
            429: _BUSY,
        },
    ),
)

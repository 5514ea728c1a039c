"""What is decided about promotions: one at a time, joined by who asks the same, and gone on with after a failure."""

import logging
import re
from typing import Final

from msgspec.structs import replace

from ...messages.lfc import PrewarmStatus
from ...messages.lifecycle import Status
from ...messages.postgres import (
    CheckConfiguration,
    ConfigurationAccepted,
    ConfigurationRefused,
)
from ...messages.promotion import (
    PostgresPromoted,
    PostgresPromotionFailed,
    Promote,
    Promoted,
    PromoteFailed,
    PromotePostgres,
    PromoteRefused,
)
from ...messages.settings import SourceName
from ...messages.spec import ComputeSpec, Mode
from ...postgres.storage import safekeeper_problem
from . import attempts
from .effects import POSTGRES
from .lifecycle import Event
from .state import Attempt, Origin, Phase, Promotion, PromotionStep, Step
from .turn import Turn

SAFEKEEPERS: Final = "neon.safekeepers"
_COLD: Final[dict[PrewarmStatus | None, str]] = {
    PrewarmStatus.NOT_PREWARMED: "compute NotPrewarmed",
    PrewarmStatus.PREWARMING: "compute Prewarming",
}
"""With these a Neon replica is not promoted: as the counterpart, which promotes to save the cold start."""
_GENERATION: Final = re.compile(r"g#(\d+):")


def promote(turn: Turn, message: Promote, waiter: int | None) -> None:
    waiters = () if waiter is None else (waiter,)
    prewarm, message = message.prewarm, replace(message, prewarm=None)
    under_way, done = turn.state.promotion, turn.state.promoted
    if under_way is not None and under_way.request == message:
        turn.set(promotion=replace(under_way, waiters=(*under_way.waiters, *waiters)))
    elif done is not None and done[0] == message and done[1] is not None:
        turn.answer(waiters, done[1])
    elif (refusal := _refusal(turn, message, prewarm)) is not None:
        turn.answer(waiters, refusal)
    else:
        _begin(turn, message, waiters)


def _refusal(
    turn: Turn, message: Promote, prewarm: PrewarmStatus | None
) -> PromoteRefused | PromoteFailed | None:
    state = turn.state
    if state.promotion is not None:
        return PromoteRefused("another promotion is under way")
    if state.status is not Status.RUNNING or state.phase is not Phase.UP or state.spec is None:
        return PromoteRefused(f"invalid compute status: {state.status.text}")
    if state.attempt is not None:
        return PromoteRefused(f"invalid compute status: {Status.CONFIGURATION_PENDING.text}")
    if (fault := _fault(message, state.settings.source)) is not None:
        return PromoteRefused(fault, bad_request=True)
    goes_on = state.promoted is not None and state.promoted[0] == message
    mode = state.spec.compute_mode.value
    if state.spec.compute_mode is not Mode.REPLICA and not goes_on:
        named = f'compute mode "{mode}"' if message.spec is not None else mode
        return PromoteFailed(f"{named} is not replica")
    if state.settings.source is SourceName.PAGESERVER and prewarm in _COLD:
        return PromoteFailed(
            _COLD[prewarm] if message.spec is not None else "prewarm not requested or pending"
        )
    return None


def _fault(message: Promote, source: SourceName) -> str | None:
    """Say what is wrong with the request itself; a spec is checked further later on."""
    if message.spec is not None and message.spec.compute_mode is not Mode.PRIMARY:
        return f"the spec of the new primary has the mode {message.spec.compute_mode.value}"
    if source is not SourceName.PAGESERVER:
        return None
    if message.wal_flush_lsn is None:
        return "wal_flush_lsn is needed: what the old primary has committed must be replayed first"
    if message.spec is not None:
        return None
    return safekeeper_problem(safekeepers_in(message.safekeepers or "")[1], "safekeepers")


def _begin(turn: Turn, message: Promote, waiters: tuple[int, ...]) -> None:
    turn.log(logging.INFO, "got promotion request")
    operation = turn.state.operation + 1
    turn.set(operation=operation, promotion=Promotion(operation, message, PromotionStep.CHECKING, waiters))
    if message.spec is None:
        _order(turn)
    else:
        turn.tell(POSTGRES, CheckConfiguration(operation, message.spec, promoting=True))


def _order(turn: Turn) -> None:
    promotion, spec = turn.state.promotion, turn.state.spec
    assert promotion is not None  # noqa: S101 - callers have looked
    assert spec is not None  # noqa: S101 - a node that runs has one
    turn.set(promotion=replace(promotion, step=PromotionStep.PROMOTING))
    request = promotion.request
    wanted = replace(_with_safekeepers(spec, request), mode="Replica")
    turn.tell(POSTGRES, PromotePostgres(promotion.operation, wanted, request.wal_flush_lsn))


def _with_safekeepers(spec: ComputeSpec, request: Promote) -> ComputeSpec:
    """Return the replica's spec with the safekeepers of the new primary, whichever way either spec names them."""
    new = request.spec
    if new is not None and new.safekeeper_connstrings:
        generation, safekeepers = new.safekeepers_generation, new.safekeeper_connstrings
    else:
        listed = request.safekeepers if new is None else new.cluster.setting(SAFEKEEPERS)
        generation, safekeepers = safekeepers_in(listed or "")
    settings = tuple(setting for setting in spec.cluster.settings or () if setting.name != SAFEKEEPERS)
    return replace(
        spec,
        safekeepers_generation=generation,
        safekeeper_connstrings=safekeepers,
        cluster=replace(spec.cluster, settings=settings),
    )


def safekeepers_in(text: str) -> tuple[int | None, tuple[str, ...]]:
    """Read the value of `neon.safekeepers`: perhaps a generation, then a comma-separated list."""
    found = _GENERATION.match(text)
    generation = None if found is None else int(found[1])
    listed = text if found is None else text[found.end() :]
    return generation, tuple(part.strip() for part in listed.split(",") if part.strip())


def checked(turn: Turn, message: ConfigurationAccepted | ConfigurationRefused) -> None:
    """Hear what preflight says of the new primary's spec."""
    if attempts.promotion_under_way(turn, message.operation, PromotionStep.CHECKING) is None:
        return
    match message:
        case ConfigurationAccepted(warnings=warnings):
            for warning in warnings:
                turn.log(logging.WARNING, warning)
            _order(turn)
        case ConfigurationRefused(error=error):
            turn.log(logging.WARNING, f"a promotion was refused: {error}")
            attempts.end_promotion(turn, PromoteRefused(error, bad_request=True))


def postgres_promoted(turn: Turn, message: PostgresPromoted, _: int | None) -> None:
    promotion = attempts.promotion_under_way(turn, message.operation, PromotionStep.PROMOTING)
    if promotion is None or turn.state.spec is None:
        return
    turn.log(logging.INFO, "Postgres is a primary now")
    request = promotion.request
    times = Promoted(message.lsn_wait_time_ms, message.pg_promote_time_ms)
    if request.spec is None:
        spec = replace(_with_safekeepers(turn.state.spec, request), mode="Primary")
        turn.set(spec=spec, promoted=(request, times))
        attempts.end_promotion(turn, times)
        return
    turn.set(spec=request.spec, promoted=(request, None))
    if turn.state.status is not Status.RUNNING:
        text = f"the node is a primary now, and its spec is not applied: it is in status {turn.state.status.text}"
        attempts.end_promotion(turn, PromoteFailed(text))
        return
    turn.set(promotion=replace(promotion, step=PromotionStep.CONFIGURING, times=times, since_s=turn.now_s))
    turn.move(Event.SPEC_TAKEN)
    turn.move(Event.RECONFIGURATION_BEGAN)
    attempt = Attempt(
        promotion.operation, request.spec, Step.INSTALLING, starts=False, origin=Origin.PROMOTION
    )
    attempts.install(turn, attempt)


def postgres_promotion_failed(turn: Turn, message: PostgresPromotionFailed, _: int | None) -> None:
    if attempts.promotion_under_way(turn, message.operation, PromotionStep.PROMOTING) is not None:
        turn.log(logging.ERROR, f"the promotion failed: {message.error}")
        attempts.end_promotion(turn, PromoteFailed(message.error))

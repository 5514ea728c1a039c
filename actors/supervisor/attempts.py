"""What is under way: a spec on its way into force, a promotion. The steps that several decisions share."""

from typing import Any

from msgspec.structs import replace

from ...messages.lease import KeepLease
from ...messages.lifecycle import Configured, ConfigureOutcome
from ...messages.postgres import CheckConfiguration, InstallConfiguration, PreparePgdata, StartPostgres
from ...messages.promotion import PromoteFailed, PromoteOutcome
from ...messages.settings import SourceName
from ...messages.spec import ComputeSpec, Mode
from ...messages.vm import PrepareVm
from .effects import LEASE, POSTGRES, VM
from .state import Attempt, Origin, Promotion, PromotionStep, Step
from .turn import Turn


def is_applying(turn: Turn) -> bool:
    """Whether a spec is being brought into force in a running Postgres: preflight is over."""
    attempt = turn.state.attempt
    return attempt is not None and not attempt.starts and attempt.step is not Step.CHECKING


def under_way(turn: Turn, operation: int, *steps: Step) -> Attempt | None:
    """Return the attempt that an outcome belongs to; None for a late outcome."""
    attempt = turn.state.attempt
    if attempt is None or attempt.operation != operation or attempt.step not in steps:
        return None
    return attempt


def advance(turn: Turn, **changes: Any) -> Attempt:  # noqa: ANN401 - as in `set`
    """Change the attempt under way."""
    assert turn.state.attempt is not None  # noqa: S101 - callers have looked
    attempt = replace(turn.state.attempt, **changes)
    turn.set(attempt=attempt)
    return attempt


def begin(turn: Turn, spec: ComputeSpec, origin: Origin, waiters: tuple[int, ...] = ()) -> None:
    """Begin to bring a spec into force: preflight, and at boot PGDATA at the same time."""
    operation = turn.state.operation + 1
    starts = not turn.state.postgres_up
    attempt = Attempt(operation, spec, Step.CHECKING, starts, origin, waiters=waiters)
    turn.set(operation=operation, attempt=attempt)
    if origin is Origin.BOOT:
        follow_lease(turn, spec)
        prepare(turn)
    turn.tell(POSTGRES, CheckConfiguration(operation, spec))


def prepare(turn: Turn) -> None:
    """Have PGDATA made, and the machine made ready meanwhile."""
    attempt = turn.state.attempt
    assert attempt is not None  # noqa: S101 - callers have begun one
    turn.tell(POSTGRES, PreparePgdata(attempt.operation, attempt.spec))
    settings, spec = turn.state.settings, attempt.spec
    swap = spec.swap_size_bytes if settings.resize_swap else None
    quota = spec.disk_quota_bytes if settings.disk_quota_mount is not None else None
    if swap is not None or quota is not None:
        advance(turn, vm_ready=False)
        turn.tell(VM, PrepareVm(attempt.operation, swap, quota))


def start_postgres_if_ready(turn: Turn) -> None:
    """Start Postgres once preflight has passed, PGDATA stands ready, and so does the machine."""
    attempt = turn.state.attempt
    if attempt is not None and attempt.checked and attempt.prepared and attempt.vm_ready:
        advance(turn, step=Step.STARTING)
        turn.tell(POSTGRES, StartPostgres(attempt.operation, attempt.spec))


def install(turn: Turn, attempt: Attempt) -> None:
    """Have the settings of a running Postgres replaced by those of the attempt."""
    turn.set(attempt=replace(attempt, step=Step.INSTALLING))
    turn.tell(POSTGRES, InstallConfiguration(attempt.operation, attempt.spec))


def follow_lease(turn: Turn, spec: ComputeSpec) -> None:
    """Have the LSN of a Static node held from now on, or not any more."""
    is_stored = turn.state.settings.source is SourceName.PAGESERVER
    if is_stored and (turn.state.lease_asked or spec.compute_mode is Mode.STATIC):
        turn.set(lease_asked=True, lease_error=None)
        turn.tell(LEASE, KeepLease(spec))


def end(turn: Turn, result: ConfigureOutcome) -> None:
    """Answer all who wait for the attempt, and forget it."""
    attempt = turn.state.attempt
    if attempt is not None:
        turn.set(attempt=None)
        turn.answer(attempt.waiters, result)
        _promotion_configured(turn, attempt.operation, result)


def promotion_under_way(turn: Turn, operation: int, step: PromotionStep) -> Promotion | None:
    """Return the promotion that an outcome belongs to; None for a late outcome."""
    promotion = turn.state.promotion
    if promotion is None or (promotion.operation, promotion.step) != (operation, step):
        return None
    return promotion


def end_promotion(turn: Turn, result: PromoteOutcome) -> None:
    """Answer all who wait for the promotion, and forget it."""
    promotion = turn.state.promotion
    if promotion is not None:
        turn.set(promotion=None)
        turn.answer(promotion.waiters, result)


def _promotion_configured(turn: Turn, operation: int, result: ConfigureOutcome) -> None:
    """End a promotion with the application of its spec."""
    promotion = promotion_under_way(turn, operation, PromotionStep.CONFIGURING)
    if promotion is None:
        return
    if isinstance(result, Configured):
        took_ms = round((turn.now_s - promotion.since_s) * 1000)
        times = replace(promotion.times, reconfigure_time_ms=took_ms)
        turn.set(promoted=(promotion.request, times))
        end_promotion(turn, times)
    else:
        text = f"the node is a primary now, and its spec is not applied: {result.error}"
        end_promotion(turn, PromoteFailed(text))

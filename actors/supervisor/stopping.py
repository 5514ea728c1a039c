"""How the end begins: what comes before the order to stop Postgres, and the order itself."""

from typing import Final

from msgspec.structs import replace

from ...messages.activity import StopMonitoring
from ...messages.catalog import Checkpoint, StopUpkeep
from ...messages.lease import ReleaseLease
from ...messages.lfc import OffloadLast, StopLfc
from ...messages.lifecycle import ConfigureFailed, ConfigureOutcome, ConfigureRefused, Status
from ...messages.postgres import StopPostgres
from ...messages.promotion import PromoteFailed
from ...messages.vm import StopVmMonitor
from ..kit.effects import After, Never
from . import attempts
from .effects import CONFIGURATOR, LEASE, LFC, MONITOR, POSTGRES, VM
from .lifecycle import Event, Refused
from .private import CheckpointOverdue, ConfigurationGraceEnded, LingerEnded, StopOverdue
from .state import Cause, Ending, Origin, Phase, Step
from .turn import Turn

CONFIGURATION_GRACE_S: Final = 5.0
"""How long a termination lets a configuration end by itself."""
APPLYING: Final = frozenset({Status.CONFIGURATION, Status.REFRESH_CONFIGURATION})
"""Where a termination waits for a moment."""
SERVING: Final = frozenset(
    {Status.RUNNING, Status.REFRESH_CONFIGURATION_PENDING, Status.REFRESH_CONFIGURATION}
)
"""Where there may be something to save before a stop."""
IN_A_HURRY: Final = 2
"""So many signals ask for the end without anything before it."""
RESERVE: Final = 0.12
"""The share of the stop budget that is kept for what comes after Postgres."""
LEAST_S: Final = 1.0
"""What is left of a stop budget that other things have used up."""
OVERDUE_S: Final = 1.0
"""How much longer than its share of the budget the stop of Postgres may take before it is given up."""
CHECKPOINT_SHARE: Final = 0.2
CHECKPOINT_MIN_S: Final = 1.0
"""What comes before the stop, while Postgres still serves, gets at most this share of the budget.

Only where Postgres is well, for sessions are served that much longer. A checkpoint only where somebody asked for mode
`fast`, not after a signal: the platform's own limit counts then, and a part of what was written may have to be
written again. A last offload of the cache also after a signal, where the command line wants it.
"""
CHECKPOINT_GRACE_S: Final = 0.5


def stop_vm(turn: Turn) -> None:
    """Have the machine left alone: Postgres is gone."""
    if turn.state.settings.manages_vm:
        turn.tell(VM, StopVmMonitor())


def stop_postgres(turn: Turn, budget_s: float) -> None:
    """Have Postgres stopped; what comes after it gets a share of the budget too."""
    share = max(0.5, budget_s * (1 - RESERVE))
    turn.tell(POSTGRES, StopPostgres(budget_s=share))
    turn.effects.append(After(share + OVERDUE_S, StopOverdue()))


def terminate(
    turn: Turn, cause: Cause, *, immediate: bool, waiters: tuple[int, ...] = (), signals: int = 0
) -> None:
    """Begin the end of the node, or queue it behind the configuration under way.

    A node that has failed ends this way too: what is left of Postgres is tidied up first.
    """
    event = Event.TERMINATE_IMMEDIATE if immediate else Event.TERMINATE_FAST
    ending = Ending(
        cause=cause,
        deadline_s=turn.now_s + turn.state.settings.stop_timeout_s,
        immediate=immediate,
        waiters=waiters,
        signals=signals,
        failed_before=turn.state.status is Status.FAILED,
    )
    if turn.state.phase is Phase.LINGERING:
        turn.effects.append(Never(LingerEnded))
        turn.set(phase=Phase.UP)
    serves = _serves(turn)
    if turn.state.status is Status.REFRESH_CONFIGURATION and not attempts.is_applying(turn):
        turn.move(Event.REFRESH_FAILED)  # nothing has changed yet
    if turn.state.status not in APPLYING:
        attempts.end(turn, _cut_off(turn, immediate=immediate))
        attempts.end_promotion(turn, PromoteFailed("the node is terminating"))
    if turn.move(event) is Refused.QUEUED:
        turn.set(ending=replace(ending, queued=True))
        turn.effects.append(After(CONFIGURATION_GRACE_S, ConfigurationGraceEnded()))
        return
    _begin_stop(turn, ending, serves=serves)


def _serves(turn: Turn) -> bool:
    return turn.state.status in SERVING and not turn.state.raised


def _begin_stop(turn: Turn, ending: Ending, *, serves: bool) -> None:
    """Have Postgres stopped, after what is to be done before if it serves and nobody is in a hurry."""
    limit_s = CHECKPOINT_SHARE * _left_s(turn, ending)
    is_hurried = ending.immediate or ending.signals >= IN_A_HURRY or turn.state.exit_code != 0
    planned = serves and not is_hurried and limit_s >= CHECKPOINT_MIN_S
    ending = replace(
        ending,
        checkpointing=planned and ending.cause is Cause.REQUEST,
        offloading=planned and turn.state.settings.lfc_offload_on_stop,
    )
    turn.set(ending=ending)
    end_upkeep(turn, last_offload=ending.offloading)
    if ending.checkpointing:
        turn.tell(CONFIGURATOR, Checkpoint(limit_s))
    if ending.has_duties:
        turn.effects.append(After(limit_s + CHECKPOINT_GRACE_S, CheckpointOverdue()))
    else:
        stop_postgres(turn, _left_s(turn, ending))


def _left_s(turn: Turn, ending: Ending) -> float:
    """Return what is left of the stop budget; something always is."""
    return max(min(LEAST_S, turn.state.settings.stop_timeout_s), ending.deadline_s - turn.now_s)


def end_lease(turn: Turn) -> None:
    """Hold the LSN no longer."""
    if turn.state.lease_asked:
        turn.set(lease_asked=False)
        turn.tell(LEASE, ReleaseLease())


def end_upkeep(turn: Turn, *, last_offload: bool = False) -> None:
    """End what goes on beside a Postgres that runs; the state of its cache may be saved once more."""
    end_lease(turn)
    turn.tell(LFC, OffloadLast() if last_offload else StopLfc())
    turn.tell(CONFIGURATOR, StopUpkeep())
    turn.tell(MONITOR, StopMonitoring())


def end_duties(turn: Turn, **ended: bool) -> None:
    """Stop Postgres now, if nothing is to be done before it any more; `ended` names what is over, else all is."""
    ending = turn.state.ending
    if ending is None or not ending.has_duties:
        return
    left = replace(ending, **(ended or {"checkpointing": False, "offloading": False}))
    turn.set(ending=left)
    if left.has_duties:
        return
    if ending.offloading:
        turn.tell(LFC, StopLfc())
    turn.effects.append(Never(CheckpointOverdue))
    stop_postgres(turn, _left_s(turn, ending))


def _cut_off(turn: Turn, *, immediate: bool) -> ConfigureOutcome:
    """Say what those are told whose configuration or start a termination ends."""
    attempt = turn.state.attempt
    if attempt is not None and attempt.origin is not Origin.BOOT and attempt.step is Step.CHECKING:
        # Nothing was taken yet.
        pending = Status.TERMINATION_PENDING_IMMEDIATE if immediate else Status.TERMINATION_PENDING_FAST
        return ConfigureRefused(f"invalid compute status: {pending.text}", bad_spec=False)
    return ConfigureFailed(turn.state.error or "the start was cancelled: the node is terminating")


def end_queue(turn: Turn) -> None:
    """Carry out a termination that was waiting for the configuration."""
    ending = turn.state.ending
    if ending is None or not ending.queued:
        return
    turn.effects.append(Never(ConfigurationGraceEnded))
    serves = _serves(turn)
    turn.move(Event.TERMINATE_IMMEDIATE if ending.immediate else Event.TERMINATE_FAST)
    _begin_stop(turn, replace(ending, queued=False), serves=serves)

"""One message's worth of decisions: the steps that several of them share.

The status is changed by `Turn.move` alone, through the table in lifecycle.py.
"""

import logging
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from ...messages.activity import StopMonitoring
from ...messages.base import Message
from ...messages.catalog import Checkpoint, StopUpkeep
from ...messages.lease import KeepLease, ReleaseLease
from ...messages.lfc import OffloadLast, StopLfc
from ...messages.lifecycle import (
    EXIT_FAILED,
    Configured,
    ConfigureFailed,
    ConfigureOutcome,
    ConfigureRefused,
    ExitReport,
    Status,
    StatusChanged,
    Terminated,
    TerminateFailed,
)
from ...messages.postgres import (
    CheckConfiguration,
    PreparePgdata,
    StartPostgres,
    StopPostgres,
)
from ...messages.promotion import PromoteFailed, PromoteOutcome
from ...messages.serving import StopServing
from ...messages.settings import SourceName
from ...messages.spec import ComputeSpec, Mode
from ...messages.vm import PrepareVm, StopVmMonitor
from ..kit.effects import After, Log, Never
from .effects import (
    CONFIGURATOR,
    HTTP,
    LEASE,
    LFC,
    MONITOR,
    POSTGRES,
    VM,
    Answer,
    DumpJournal,
    Effect,
    Publish,
    Tell,
)
from .lifecycle import Event, Refused, outcome
from .private import (
    CheckpointOverdue,
    ClosingOverdue,
    ConfigurationGraceEnded,
    LingerEnded,
    RefreshDue,
    StopOverdue,
)
from .state import Attempt, Cause, Ending, NodeState, Phase, Promotion, PromotionStep, Step

CONFIGURATION_GRACE_S: Final = 5.0
"""How long a termination lets a configuration end by itself."""
REFRESH_PAUSE_S: Final = 5.0
"""Between two refreshes of the spec, after one that failed or found nothing new."""
APPLYING: Final = frozenset({Status.CONFIGURATION, Status.REFRESH_CONFIGURATION})
"""Where a termination waits for a moment."""
SERVING: Final = frozenset(
    {Status.RUNNING, Status.REFRESH_CONFIGURATION_PENDING, Status.REFRESH_CONFIGURATION}
)
"""Where there may be something to save before a stop."""
IN_A_HURRY: Final = 2
"""So many signals ask for the end without anything before it."""
LINGER_FAILED_START_S: Final = 30.0
LINGER_FAST_S: Final = 30.0
LINGER_IMMEDIATE_S: Final = 0.3
LINGER_LOST_S: Final = 5.0
LINGER_DEV_S: Final = 0.3
DRAIN_S: Final = 1.0
"""How long requests under way may take to end when the servers close."""
CLOSING_S: Final = 2.0
"""After this long the process ends without waiting for the servers."""
RESERVE: Final = 0.12
"""The share of the stop budget that is kept for what comes after Postgres."""
TIDY_S: Final = 3.0
"""How long it may take to clear away what a Postgres that ended unasked has left."""
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


class Decision(msgspec.Struct, frozen=True):
    """The next state, and what is to be done, in order."""

    state: NodeState
    effects: tuple[Effect, ...]


class Moment(msgspec.Struct, frozen=True):
    """When a message is handled: monotonic and wall clock, seconds."""

    now_s: float
    wall_s: float


class Turn:
    """One message's worth of decisions: the state so far and the effects so far."""

    def __init__(self, state: NodeState, moment: Moment) -> None:
        self.state = state
        self.now_s = moment.now_s
        self.wall_s = moment.wall_s
        self.effects: list[Effect] = []

    # --- Small steps

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - field names are checked by msgspec
        """Change what is known."""
        self.state = replace(self.state, **changes)

    def tell(self, to: str, message: Message) -> None:
        """Tell another actor."""
        self.effects.append(Tell(to, message))

    def log(self, level: int, text: str) -> None:
        """Write a line."""
        self.effects.append(Log(level, text))

    def answer(self, waiters: tuple[int, ...], value: Message) -> None:
        """Answer each of those who wait."""
        self.effects += (Answer(waiter, value) for waiter in waiters)

    def move(self, event: Event) -> Status | Refused:
        """Let an event happen; the only place where the status changes."""
        old = self.state.status
        new = outcome(old, event)
        if isinstance(new, Refused):
            if new is Refused.CANNOT_HAPPEN:
                self.log(logging.WARNING, f"ignored in status {old.text}: {event.value}")
            return new
        if new is not old:
            self.set(status=new)
            self.log(logging.INFO, f"Changing compute status from {old.text} to {new.text}")
            self.effects.append(Publish(StatusChanged(old, new, self.state.error)))
        return new

    @property
    def attempt(self) -> Attempt | None:
        """The spec on its way into force, if there is one."""
        return self.state.attempt

    @property
    def is_applying(self) -> bool:
        """Whether a spec is being brought into force in a running Postgres: preflight is over."""
        attempt = self.state.attempt
        return attempt is not None and not attempt.starts and attempt.step is not Step.CHECKING

    def under_way(self, operation: int, *steps: Step) -> Attempt | None:
        """Return the attempt that an outcome belongs to; None for a late outcome."""
        attempt = self.state.attempt
        if attempt is None or attempt.operation != operation or attempt.step not in steps:
            return None
        return attempt

    def advance(self, **changes: Any) -> Attempt:  # noqa: ANN401 - as in `set`
        """Change the attempt under way."""
        assert self.state.attempt is not None  # noqa: S101 - callers have looked
        attempt = replace(self.state.attempt, **changes)
        self.set(attempt=attempt)
        return attempt

    # --- Starting and configuring

    def begin(
        self, spec: ComputeSpec, *, asked: bool, refreshes: bool = False, waiters: tuple[int, ...] = ()
    ) -> None:
        """Begin to bring a spec into force: preflight, and at boot PGDATA at the same time."""
        operation = self.state.operation + 1
        starts = not self.state.postgres_up
        self.set(
            operation=operation,
            attempt=Attempt(
                operation=operation,
                spec=spec,
                step=Step.CHECKING,
                starts=starts,
                asked=asked,
                refreshes=refreshes,
                waiters=waiters,
            ),
        )
        if not asked:
            self.follow_lease(spec)
            self.prepare()
        self.tell(POSTGRES, CheckConfiguration(operation, spec))

    def prepare(self) -> None:
        """Have PGDATA made, and the machine made ready meanwhile."""
        attempt = self.state.attempt
        assert attempt is not None  # noqa: S101 - callers have begun one
        self.tell(POSTGRES, PreparePgdata(attempt.operation, attempt.spec))
        settings, spec = self.state.settings, attempt.spec
        swap = spec.swap_size_bytes if settings.resize_swap else None
        quota = spec.disk_quota_bytes if settings.disk_quota_mount is not None else None
        if swap is not None or quota is not None:
            self.advance(vm_ready=False)
            self.tell(VM, PrepareVm(attempt.operation, swap, quota))

    def follow_lease(self, spec: ComputeSpec) -> None:
        """Have the LSN of a Static node held from now on, or not any more."""
        is_stored = self.state.settings.source is SourceName.PAGESERVER
        if is_stored and (self.state.lease_asked or spec.compute_mode is Mode.STATIC):
            self.set(lease_asked=True, lease_error=None)
            self.tell(LEASE, KeepLease(spec))

    def end_attempt(self, result: ConfigureOutcome) -> None:
        """Answer all who wait for the attempt, and forget it."""
        attempt = self.state.attempt
        if attempt is not None:
            self.set(attempt=None)
            self.answer(attempt.waiters, result)
            self._promotion_configured(attempt.operation, result)

    # --- Promoting

    def promotion(self, operation: int, step: PromotionStep) -> Promotion | None:
        """Return the promotion that an outcome belongs to; None for a late outcome."""
        promotion = self.state.promotion
        if promotion is None or (promotion.operation, promotion.step) != (operation, step):
            return None
        return promotion

    def end_promotion(self, result: PromoteOutcome) -> None:
        """Answer all who wait for the promotion, and forget it."""
        promotion = self.state.promotion
        if promotion is not None:
            self.set(promotion=None)
            self.answer(promotion.waiters, result)

    def _promotion_configured(self, operation: int, result: ConfigureOutcome) -> None:
        """End a promotion with the application of its spec."""
        promotion = self.promotion(operation, PromotionStep.CONFIGURING)
        if promotion is None:
            return
        if isinstance(result, Configured):
            took_ms = round((self.now_s - promotion.since_s) * 1000)
            times = replace(promotion.times, reconfigure_time_ms=took_ms)
            self.set(promoted=(promotion.request, times))
            self.end_promotion(times)
        else:
            self.end_promotion(
                PromoteFailed(f"the node is a primary now, and its spec is not applied: {result.error}")
            )

    # --- Starting

    def start_postgres_if_ready(self) -> None:
        """Start Postgres once preflight has passed, PGDATA stands ready, and so does the machine."""
        attempt = self.state.attempt
        if attempt is not None and attempt.checked and attempt.prepared and attempt.vm_ready:
            self.advance(step=Step.STARTING)
            self.tell(POSTGRES, StartPostgres(attempt.operation, attempt.spec))

    def abort_start(self, error: str) -> None:
        """Stop what a failing start has left; the status becomes `failed` when it is gone."""
        self.log(logging.ERROR, f"could not start the compute node: {error}")
        self.broken(error, unexpected=False)
        self.advance(step=Step.ABORTING)
        self.end_lease()
        self.stop_postgres(self.state.settings.stop_timeout_s)

    def reconfiguration_failed(self, error: str) -> None:
        """Go back to running with the error kept; Postgres has its last good settings."""
        self.log(logging.ERROR, f"could not configure compute node: {error}")
        self.set(error=error)
        if self.attempt is not None and self.attempt.refreshes:
            self.end_attempt(ConfigureFailed(error))
            self._refresh_again()
        else:
            self.move(Event.RECONFIGURATION_FAILED)
            self.end_attempt(ConfigureFailed(error))
        self.end_queue()

    def refresh_failed(self, error: str) -> None:
        """Try a refresh that came to nothing again, in a while; Postgres serves on."""
        self.log(logging.WARNING, f"could not refresh the configuration: {error}")
        self.end_attempt(ConfigureRefused(error, bad_spec=True))
        self._refresh_again()

    def _refresh_again(self) -> None:
        self.move(Event.REFRESH_FAILED)
        self.effects.append(After(REFRESH_PAUSE_S, RefreshDue()))

    # --- Ending

    def stop_vm(self) -> None:
        """Have the machine left alone: Postgres is gone."""
        if self.state.settings.manages_vm:
            self.tell(VM, StopVmMonitor())

    def stop_postgres(self, budget_s: float) -> None:
        """Have Postgres stopped; what comes after it gets a share of the budget too."""
        share = max(0.5, budget_s * (1 - RESERVE))
        self.tell(POSTGRES, StopPostgres(budget_s=share))
        self.effects.append(After(share + OVERDUE_S, StopOverdue()))

    def terminate(
        self, cause: Cause, *, immediate: bool, waiters: tuple[int, ...] = (), signals: int = 0
    ) -> None:
        """Begin the end of the node, or queue it behind the configuration under way.

        A node that has failed ends this way too: what is left of Postgres is tidied up first.
        """
        event = Event.TERMINATE_IMMEDIATE if immediate else Event.TERMINATE_FAST
        ending = Ending(
            cause=cause,
            deadline_s=self.now_s + self.state.settings.stop_timeout_s,
            immediate=immediate,
            waiters=waiters,
            signals=signals,
            failed_before=self.state.status is Status.FAILED,
        )
        if self.state.phase is Phase.LINGERING:
            self.effects.append(Never(LingerEnded))
            self.set(phase=Phase.UP)
        serves = self._serves
        if self.state.status is Status.REFRESH_CONFIGURATION and not self.is_applying:
            self.move(Event.REFRESH_FAILED)  # nothing has changed yet
        if self.state.status not in APPLYING:
            self.end_attempt(self._cut_off(immediate=immediate))
            self.end_promotion(PromoteFailed("the node is terminating"))
        if self.move(event) is Refused.QUEUED:
            self.set(ending=replace(ending, queued=True))
            self.effects.append(After(CONFIGURATION_GRACE_S, ConfigurationGraceEnded()))
            return
        self._begin_stop(ending, serves=serves)

    @property
    def _serves(self) -> bool:
        return self.state.status in SERVING and not self.state.raised

    def _begin_stop(self, ending: Ending, *, serves: bool) -> None:
        """Have Postgres stopped, after what is to be done before if it serves and nobody is in a hurry."""
        limit_s = CHECKPOINT_SHARE * self._left_s(ending)
        is_hurried = ending.immediate or ending.signals >= IN_A_HURRY or self.state.exit_code != 0
        planned = serves and not is_hurried and limit_s >= CHECKPOINT_MIN_S
        ending = replace(
            ending,
            checkpointing=planned and ending.cause is Cause.REQUEST,
            offloading=planned and self.state.settings.lfc_offload_on_stop,
        )
        self.set(ending=ending)
        self.end_upkeep(last_offload=ending.offloading)
        if ending.checkpointing:
            self.tell(CONFIGURATOR, Checkpoint(limit_s))
        if ending.has_duties:
            self.effects.append(After(limit_s + CHECKPOINT_GRACE_S, CheckpointOverdue()))
        else:
            self.stop_postgres(self._left_s(ending))

    def _left_s(self, ending: Ending) -> float:
        """Return what is left of the stop budget; something always is."""
        return max(min(LEAST_S, self.state.settings.stop_timeout_s), ending.deadline_s - self.now_s)

    def end_lease(self) -> None:
        """Hold the LSN no longer."""
        if self.state.lease_asked:
            self.set(lease_asked=False)
            self.tell(LEASE, ReleaseLease())

    def end_upkeep(self, *, last_offload: bool = False) -> None:
        """End what goes on beside a Postgres that runs; the state of its cache may be saved once more."""
        self.end_lease()
        self.tell(LFC, OffloadLast() if last_offload else StopLfc())
        self.tell(CONFIGURATOR, StopUpkeep())
        self.tell(MONITOR, StopMonitoring())

    def end_duties(self, **ended: bool) -> None:
        """Stop Postgres now, if nothing is to be done before it any more; `ended` names what is over, else all is."""
        ending = self.state.ending
        if ending is None or not ending.has_duties:
            return
        left = replace(ending, **(ended or {"checkpointing": False, "offloading": False}))
        self.set(ending=left)
        if left.has_duties:
            return
        if ending.offloading:
            self.tell(LFC, StopLfc())
        self.effects.append(Never(CheckpointOverdue))
        self.stop_postgres(self._left_s(ending))

    def _cut_off(self, *, immediate: bool) -> ConfigureOutcome:
        """Say what those are told whose configuration or start a termination ends."""
        attempt = self.state.attempt
        if attempt is not None and attempt.asked and attempt.step is Step.CHECKING:
            # Nothing was taken yet.
            pending = Status.TERMINATION_PENDING_IMMEDIATE if immediate else Status.TERMINATION_PENDING_FAST
            return ConfigureRefused(f"invalid compute status: {pending.text}", bad_spec=False)
        return ConfigureFailed(self.state.error or "the start was cancelled: the node is terminating")

    def end_queue(self) -> None:
        """Carry out a termination that was waiting for the configuration."""
        ending = self.state.ending
        if ending is None or not ending.queued:
            return
        self.effects.append(Never(ConfigurationGraceEnded))
        serves = self._serves
        self.move(Event.TERMINATE_IMMEDIATE if ending.immediate else Event.TERMINATE_FAST)
        self._begin_stop(replace(ending, queued=False), serves=serves)

    def linger(self, seconds: float, reason: str = "") -> None:
        """Keep serving for a while, so that the outcome can be read; then leave."""
        if self.state.settings.dev:
            seconds = min(seconds, LINGER_DEV_S)
        if reason:
            self.log(logging.INFO, reason)
        self.set(phase=Phase.LINGERING)
        if seconds > 0:
            self.effects.append(After(seconds, LingerEnded()))
        else:
            self.leave()

    def leave(self) -> None:
        """Close, once what a Postgres that ended unasked has left is cleared away."""
        if self.state.tidied:
            self.close()
        else:
            self.stop_postgres(TIDY_S)

    def close(self) -> None:
        """Close the servers; the process ends when they are, or a moment later."""
        if self.state.phase in {Phase.CLOSING, Phase.OVER}:
            return
        self.effects.append(Never(LingerEnded))
        self.set(phase=Phase.CLOSING)
        self.tell(HTTP, StopServing(DRAIN_S))
        self.effects.append(After(CLOSING_S, ClosingOverdue()))

    def give_up(self) -> None:
        """Let the process end although Postgres may live: nobody is told that it is gone."""
        error = self.state.error or "unknown error"
        self.end_attempt(ConfigureFailed(error))
        self.end_promotion(PromoteFailed(error))
        ending = self.state.ending
        if ending is not None:
            self.answer(ending.waiters, TerminateFailed(error))
            self.set(ending=replace(ending, waiters=()))
        self.close()  # the answers reach those who wait

    def finish(self) -> None:
        """Let the process end; nobody is left waiting."""
        if self.state.phase is Phase.OVER:
            return
        self.end_attempt(ConfigureFailed(self.state.error or "the node has ended"))
        self.end_promotion(PromoteFailed(self.state.error or "the node has ended"))
        ending = self.state.ending
        if ending is not None and ending.waiters:
            self.answer(ending.waiters, Terminated(self.state.synced_lsn))
            self.set(ending=replace(ending, waiters=()))
        self.set(phase=Phase.OVER)
        report = self.exit_report()
        self.log(logging.INFO, f"shutting down: {report.reason}")
        self.answer(self.state.exit_waiters, report)
        self.set(exit_waiters=())

    def exit_report(self) -> ExitReport:
        """Say how the process is to end."""
        state = self.state
        left_s = None
        if state.ending is not None and not state.tidied:
            left_s = max(1.0, state.ending.deadline_s - self.now_s)
        return ExitReport(state.exit_code, state.exit_reason or "stopped in order", left_s)

    def broken(self, error: str, *, unexpected: bool = True) -> None:
        """Note that the node failed; it will end with a failure whatever follows."""
        if self.state.exit_code == 0:
            # What a bad spec did needs no history.
            self.effects.append(DumpJournal(logging.INFO if unexpected else logging.DEBUG))
        self.set(error=error, exit_code=EXIT_FAILED, exit_reason=error)

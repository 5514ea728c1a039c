"""What the Supervisor does about each message: `decide(state, message) -> (state, effects)`, pure.

The status is changed by `_Turn.move` alone, through the table in lifecycle.py.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec
from msgspec.structs import replace

from ...messages.activity import ActivityObserved, StartMonitoring, StopMonitoring
from ...messages.base import Message
from ...messages.catalog import ApplyFailed, ApplySpec, CancelApply, SpecApplied
from ...messages.lifecycle import (
    EXIT_FAILED,
    ActorFailed,
    AwaitExit,
    Boot,
    ConditionCleared,
    ConditionRaised,
    ConditionReport,
    Configure,
    Configured,
    ConfigureFailed,
    ConfigureOutcome,
    ConfigureRefused,
    ExitReport,
    RereadConfiguration,
    ShutdownMode,
    SignalReceived,
    Status,
    StatusChanged,
    Terminate,
    Terminated,
)
from ...messages.postgres import (
    CheckConfiguration,
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    InspectPgdata,
    InstallConfiguration,
    PgdataFailed,
    PgdataInspected,
    PgdataPrepared,
    PgdataRefused,
    PostgresExited,
    PostgresReady,
    PostgresStartFailed,
    PostgresStopped,
    PreparePgdata,
    StartPostgres,
    StopPostgres,
    StopRung,
)
from ...messages.serving import ServingFailed, ServingStarted, ServingStopped, StartServing, StopServing
from ...messages.spec import ComputeSpec
from .effects import (
    CONFIGURATOR,
    HTTP,
    MONITOR,
    POSTGRES,
    After,
    Answer,
    Effect,
    Log,
    Never,
    Publish,
    ReadConfiguration,
    Tell,
)
from .lifecycle import Event, Refused, outcome
from .private import ClosingOverdue, ConfigurationGraceEnded, ConfigurationReread, LingerEnded, StopOverdue
from .state import Attempt, Cause, Ending, NodeState, Phase, Step, node_status

CONFIGURATION_GRACE_S: Final = 5.0
"""How long a termination lets a configuration end by itself."""
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
OVERDUE_S: Final = 1.0
"""How much longer than its budget a stop may take before it is given up."""


class Decision(msgspec.Struct, frozen=True):
    """The next state, and what is to be done, in order."""

    state: NodeState
    effects: tuple[Effect, ...]


class Moment(msgspec.Struct, frozen=True):
    """When a message is handled: monotonic and wall clock, seconds."""

    now_s: float
    wall_s: float


def decide(state: NodeState, message: Message, moment: Moment, waiter: int | None = None) -> Decision:
    """Say what a message changes and what is to be done about it.

    `waiter` is the number under which the asker of a request is kept; it is answered by an Answer effect.
    """
    turn = _Turn(state, moment)
    _HANDLERS[type(message)](turn, message, waiter)
    return Decision(turn.state, tuple(turn.effects))


class _Turn:
    """One message's worth of decisions: the state so far and the effects so far."""

    def __init__(self, state: NodeState, moment: Moment) -> None:
        self.state = state
        self.now_s = moment.now_s
        self.wall_s = moment.wall_s
        self.effects: list[Effect] = []

    # --- Small steps

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - field names are checked by msgspec
        self.state = replace(self.state, **changes)

    def tell(self, to: str, message: Message) -> None:
        self.effects.append(Tell(to, message))

    def log(self, level: int, text: str) -> None:
        self.effects.append(Log(level, text))

    def answer(self, waiters: tuple[int, ...], value: Message) -> None:
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
        return self.state.attempt

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

    def begin(self, spec: ComputeSpec, *, asked: bool, waiters: tuple[int, ...] = ()) -> None:
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
                waiters=waiters,
                stage_began_s=self.now_s,
            ),
        )
        self.tell(POSTGRES, CheckConfiguration(operation, spec))
        if not asked:
            self.tell(POSTGRES, PreparePgdata(operation, spec))

    def end_attempt(self, result: ConfigureOutcome) -> None:
        """Answer all who wait for the attempt, and forget it."""
        attempt = self.state.attempt
        if attempt is not None:
            self.set(attempt=None)
            self.answer(attempt.waiters, result)

    def start_postgres_if_ready(self) -> None:
        attempt = self.state.attempt
        if attempt is not None and attempt.checked and attempt.prepared:
            self.advance(step=Step.STARTING)
            self.tell(POSTGRES, StartPostgres(attempt.operation, attempt.spec))

    def abort_start(self, error: str) -> None:
        """Stop what a failing start has left; the status becomes `failed` when it is gone."""
        self.log(logging.ERROR, f"could not start the compute node: {error}")
        self.set(error=error, exit_code=EXIT_FAILED, exit_reason=error)
        self.advance(step=Step.ABORTING)
        self.stop_postgres(self.state.settings.stop_timeout_s)

    def reconfiguration_failed(self, error: str) -> None:
        """Go back to running with the error kept; Postgres has its last good settings."""
        self.log(logging.ERROR, f"could not configure compute node: {error}")
        self.set(error=error)
        self.move(Event.RECONFIGURATION_FAILED)
        self.end_attempt(ConfigureFailed(error))
        self.end_queue()

    # --- Ending

    def stop_postgres(self, budget_s: float, *, hurry: bool = False) -> None:
        share = max(0.5, budget_s * (1 - RESERVE))
        self.tell(POSTGRES, StopPostgres(budget_s=share, hurry=hurry))
        self.effects.append(After(budget_s + OVERDUE_S, StopOverdue()))

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
        if self.state.status is not Status.CONFIGURATION:
            self.end_attempt(self._cut_off(immediate=immediate))
        if self.move(event) is Refused.QUEUED:
            self.set(ending=replace(ending, queued=True))
            self.effects.append(After(CONFIGURATION_GRACE_S, ConfigurationGraceEnded()))
            return
        self.set(ending=ending)
        self.tell(MONITOR, StopMonitoring())
        self.stop_postgres(self.state.settings.stop_timeout_s)

    def _cut_off(self, *, immediate: bool) -> ConfigureOutcome:
        """Say what those are told whose configuration or start a termination ends."""
        if self.state.status in {Status.EMPTY, Status.RUNNING}:
            # Preflight only: nothing was taken yet.
            pending = Status.TERMINATION_PENDING_IMMEDIATE if immediate else Status.TERMINATION_PENDING_FAST
            return ConfigureRefused(f"invalid compute status: {pending.text}", bad_spec=False)
        return ConfigureFailed(self.state.error or "the start was cancelled: the node is terminating")

    def end_queue(self) -> None:
        """Carry out a termination that was waiting for the configuration."""
        ending = self.state.ending
        if ending is None or not ending.queued:
            return
        self.effects.append(Never(ConfigurationGraceEnded))
        self.move(Event.TERMINATE_IMMEDIATE if ending.immediate else Event.TERMINATE_FAST)
        self.set(ending=replace(ending, queued=False))
        self.tell(MONITOR, StopMonitoring())
        self.stop_postgres(max(1.0, ending.deadline_s - self.now_s))

    def linger(self, seconds: float, reason: str = "") -> None:
        """Keep serving for a while, so that the outcome can be read; then close."""
        if self.state.settings.dev:
            seconds = min(seconds, LINGER_DEV_S)
        if seconds <= 0:
            self.close()
            return
        if reason:
            self.log(logging.INFO, reason)
        self.set(phase=Phase.LINGERING)
        self.effects.append(After(seconds, LingerEnded()))

    def close(self) -> None:
        """Close the servers; the process ends when they are, or a moment later."""
        if self.state.phase in {Phase.CLOSING, Phase.OVER}:
            return
        self.effects.append(Never(LingerEnded))
        self.set(phase=Phase.CLOSING)
        self.tell(HTTP, StopServing(DRAIN_S))
        self.effects.append(After(CLOSING_S, ClosingOverdue()))

    def finish(self) -> None:
        """Let the process end; nobody is left waiting."""
        if self.state.phase is Phase.OVER:
            return
        self.end_attempt(ConfigureFailed(self.state.error or "the node has ended"))
        ending = self.state.ending
        if ending is not None and ending.waiters:
            self.answer(ending.waiters, Terminated(lsn=None))
            self.set(ending=replace(ending, waiters=()))
        self.set(phase=Phase.OVER)
        reason = self.state.exit_reason or "stopped in order"
        self.log(logging.INFO, f"shutting down: {reason}")
        self.answer(self.state.exit_waiters, ExitReport(self.state.exit_code, reason))
        self.set(exit_waiters=())

    def broken(self, error: str) -> None:
        """Note that the node itself failed; it will end with a failure whatever follows."""
        self.set(error=error, exit_code=EXIT_FAILED, exit_reason=error)


# --- The process's own life --------------------------------------------------------------------------------


def _boot(turn: _Turn, message: Boot, _: int | None) -> None:
    turn.set(phase=Phase.INSPECTING, spec=message.spec)
    turn.effects.append(Publish(StatusChanged(None, turn.state.status)))
    if message.spec is not None:
        turn.move(Event.START_BEGAN)
    turn.tell(POSTGRES, InspectPgdata())


def _pgdata_inspected(turn: _Turn, _: PgdataInspected, __: int | None) -> None:
    if turn.state.ending is not None or turn.state.phase is not Phase.INSPECTING:
        return
    turn.set(phase=Phase.UP)
    turn.tell(HTTP, StartServing())
    if turn.state.spec is not None:
        turn.begin(turn.state.spec, asked=False)


def _pgdata_refused(turn: _Turn, message: PgdataRefused, _: int | None) -> None:
    turn.log(logging.ERROR, message.error)
    turn.set(error=message.error, exit_code=message.exit_code, exit_reason=message.error)
    turn.finish()


def _serving_started(turn: _Turn, _: ServingStarted, __: int | None) -> None:
    if turn.state.spec is None and turn.state.attempt is None and turn.state.ending is None:
        turn.log(logging.INFO, "no compute spec provided, waiting")


def _serving_failed(turn: _Turn, message: ServingFailed, _: int | None) -> None:
    turn.log(logging.ERROR, message.error)
    turn.broken(message.error)
    if turn.state.ending is None:
        turn.terminate(Cause.FAILURE, immediate=True)


def _serving_stopped(turn: _Turn, _: ServingStopped, __: int | None) -> None:
    if turn.state.phase is Phase.CLOSING:
        turn.effects.append(Never(ClosingOverdue))
        turn.finish()


def _closing_overdue(turn: _Turn, _: ClosingOverdue, __: int | None) -> None:
    turn.log(logging.WARNING, f"the HTTP servers did not close within {CLOSING_S:g} s; ending without them")
    turn.finish()


def _linger_ended(turn: _Turn, _: LingerEnded, __: int | None) -> None:
    if turn.state.tidied:
        turn.close()
    else:
        turn.stop_postgres(TIDY_S)  # it is gone, but what it left may not be


def _await_exit(turn: _Turn, _: AwaitExit, waiter: int | None) -> None:
    if waiter is None:
        return
    if turn.state.phase is Phase.OVER:
        turn.answer((waiter,), ExitReport(turn.state.exit_code, turn.state.exit_reason))
    else:
        turn.set(exit_waiters=(*turn.state.exit_waiters, waiter))


def _actor_failed(turn: _Turn, message: ActorFailed, _: int | None) -> None:
    error = f"the actor {message.actor} died: {message.error}"
    turn.log(logging.ERROR, f"{error}; the node is stopped (this is a defect of compute-node)")
    turn.broken(error)
    ending = turn.state.ending
    if message.actor == POSTGRES:
        # Nobody is left who could stop Postgres in order: the main thread does it, as its last resort.
        turn.finish()
    elif message.actor == HTTP and turn.state.phase in {Phase.LINGERING, Phase.CLOSING}:
        turn.finish()
    elif ending is None and turn.state.phase is Phase.LINGERING:
        turn.close()
    elif ending is None:
        _drop_configuration(turn, error)
        turn.terminate(Cause.FAILURE, immediate=False)
    elif ending.queued:
        _drop_configuration(turn, error)


def _drop_configuration(turn: _Turn, error: str) -> None:
    """Give a configuration under way up, so that the node can end."""
    attempt = turn.attempt
    if attempt is not None and not attempt.starts and turn.state.status is Status.CONFIGURATION:
        turn.tell(CONFIGURATOR, CancelApply(attempt.operation))
        turn.reconfiguration_failed(error)


# --- Configure ---------------------------------------------------------------------------------------------


def _configure(turn: _Turn, message: Configure, waiter: int | None) -> None:
    waiters = () if waiter is None else (waiter,)
    attempt = turn.attempt
    if (
        attempt is not None
        and attempt.asked
        and attempt.spec == message.spec
        and attempt.step is not Step.ABORTING
    ):
        turn.advance(waiters=(*attempt.waiters, *waiters))
        return
    if attempt is not None and attempt.asked and turn.state.status in {Status.EMPTY, Status.RUNNING}:
        # The other request is still in preflight: to its asker, and to this one, the node is already taken.
        refusal = ConfigureRefused(
            f"invalid compute status: {Status.CONFIGURATION_PENDING.text}", bad_spec=False
        )
        turn.answer(waiters, refusal)
        return
    taken = outcome(turn.state.status, Event.SPEC_TAKEN)
    if isinstance(taken, Refused) or turn.state.phase is not Phase.UP:
        text = f"invalid compute status: {turn.state.status.text}"
        turn.answer(waiters, ConfigureRefused(text, bad_spec=False))
        if not waiters:
            turn.log(logging.WARNING, f"the configuration file was not applied: {text}")
        return
    turn.log(logging.INFO, "got configuration request")
    turn.begin(message.spec, asked=True, waiters=waiters)


def _reread_configuration(turn: _Turn, _: RereadConfiguration, __: int | None) -> None:
    if turn.state.settings.config_path is None:
        turn.log(logging.WARNING, "SIGHUP: there is no --config file to read again")
    elif turn.state.phase is Phase.UP and turn.state.ending is None:
        turn.effects.append(ReadConfiguration())


def _configuration_reread(turn: _Turn, message: ConfigurationReread, _: int | None) -> None:
    if message.error is not None:
        turn.log(logging.ERROR, f"the configuration file could not be read again: {message.error}")
    elif message.spec is None:
        turn.log(logging.WARNING, "the configuration file has no spec; nothing is changed")
    else:
        _configure(turn, Configure(message.spec), None)


def _configuration_accepted(turn: _Turn, message: ConfigurationAccepted, _: int | None) -> None:
    attempt = turn.under_way(message.operation, Step.CHECKING)
    if attempt is None:
        return
    for warning in message.warnings:
        turn.log(logging.WARNING, warning)
    turn.advance(checked=True)
    if not attempt.asked:
        turn.start_postgres_if_ready()
        return
    turn.move(Event.SPEC_TAKEN)
    turn.set(spec=attempt.spec)
    if attempt.starts:
        turn.log(logging.INFO, "got spec, continue configuration")
        waited_ms = round((turn.now_s - turn.state.began_s) * 1000)
        turn.set(
            startup=replace(turn.state.startup, wait_for_spec_ms=waited_ms),
            began_s=turn.now_s,
            began_wall_s=turn.wall_s,
        )
        turn.move(Event.START_BEGAN)
        turn.advance(step=Step.PREPARING)
        turn.tell(POSTGRES, PreparePgdata(attempt.operation, attempt.spec))
    else:
        turn.move(Event.RECONFIGURATION_BEGAN)
        turn.advance(step=Step.INSTALLING)
        turn.tell(POSTGRES, InstallConfiguration(attempt.operation, attempt.spec))


def _configuration_refused(turn: _Turn, message: ConfigurationRefused, _: int | None) -> None:
    attempt = turn.under_way(message.operation, Step.CHECKING)
    if attempt is None:
        return
    if attempt.asked:
        turn.log(logging.WARNING, f"a configuration was refused: {message.error}")
        turn.end_attempt(ConfigureRefused(message.error, bad_spec=True))
    else:
        turn.abort_start(message.error)


def _pgdata_prepared(turn: _Turn, message: PgdataPrepared, _: int | None) -> None:
    attempt = turn.under_way(message.operation, Step.CHECKING, Step.PREPARING)
    if attempt is None:
        return
    turn.set(startup=replace(turn.state.startup, basebackup_ms=message.took_ms))
    turn.advance(prepared=True)
    turn.start_postgres_if_ready()


def _pgdata_failed(turn: _Turn, message: PgdataFailed, _: int | None) -> None:
    if turn.under_way(message.operation, Step.CHECKING, Step.PREPARING) is not None:
        turn.abort_start(message.error)


def _postgres_ready(turn: _Turn, message: PostgresReady, _: int | None) -> None:
    attempt = turn.under_way(message.operation, Step.STARTING)
    if attempt is None:
        return
    turn.set(postgres_up=True, startup=replace(turn.state.startup, start_postgres_ms=message.took_ms))
    turn.log(logging.INFO, "PostgreSQL is now running, continuing to configure it")
    turn.advance(step=Step.APPLYING, stage_began_s=turn.now_s)
    turn.tell(CONFIGURATOR, ApplySpec(attempt.operation, attempt.spec, starting=True))


def _postgres_start_failed(turn: _Turn, message: PostgresStartFailed, _: int | None) -> None:
    if turn.under_way(message.operation, Step.STARTING) is not None:
        turn.abort_start(message.error)


def _configuration_installed(turn: _Turn, message: ConfigurationInstalled, _: int | None) -> None:
    attempt = turn.under_way(message.operation, Step.INSTALLING)
    if attempt is None:
        return
    if message.pending_restart:
        names = ", ".join(message.pending_restart)
        turn.log(logging.WARNING, f"these settings take effect at the next start of the node: {names}")
    turn.advance(step=Step.APPLYING)
    turn.tell(CONFIGURATOR, ApplySpec(attempt.operation, attempt.spec, starting=False))


def _configuration_install_failed(turn: _Turn, message: ConfigurationInstallFailed, _: int | None) -> None:
    if turn.under_way(message.operation, Step.INSTALLING) is not None:
        turn.reconfiguration_failed(message.error)


def _spec_applied(turn: _Turn, message: SpecApplied, _: int | None) -> None:
    attempt = turn.under_way(message.operation, Step.APPLYING)
    if attempt is None:
        return
    turn.set(error=None)
    if attempt.starts:
        turn.set(
            startup=replace(
                turn.state.startup,
                config_ms=round((turn.now_s - attempt.stage_began_s) * 1000),
                total_startup_ms=round((turn.now_s - turn.state.began_s) * 1000),
            )
        )
    turn.move(Event.SPEC_APPLIED)
    if attempt.starts:
        stages = msgspec.json.encode(turn.state.startup).decode()
        turn.log(logging.INFO, f"compute start finished: {stages}")
        experimental = "activity_monitor_experimental" in attempt.spec.features
        turn.tell(MONITOR, StartMonitoring(experimental))
    else:
        turn.log(logging.INFO, "compute node configured")
        operation = attempt.spec.operation_uuid or "unknown"
        turn.log(logging.INFO, f"finished reconfiguration of compute node for operation {operation}")
    turn.end_attempt(Configured(node_status(turn.state)))
    turn.end_queue()


def _apply_failed(turn: _Turn, message: ApplyFailed, _: int | None) -> None:
    attempt = turn.under_way(message.operation, Step.APPLYING)
    if attempt is None:
        return
    if attempt.starts:
        turn.abort_start(message.error)
    else:
        turn.reconfiguration_failed(message.error)


# --- The end -----------------------------------------------------------------------------------------------


def _terminate(turn: _Turn, message: Terminate, waiter: int | None) -> None:
    immediate = message.mode is ShutdownMode.IMMEDIATE
    waiters = () if waiter is None else (waiter,)
    ending = turn.state.ending
    status = turn.state.status
    if status is Status.TERMINATED or turn.state.phase in {Phase.CLOSING, Phase.OVER}:
        turn.answer(waiters, Terminated(lsn=None, repeated=status is Status.TERMINATED))
        if turn.state.phase is Phase.LINGERING:
            turn.close()
    elif ending is not None:
        turn.set(
            ending=replace(
                ending, waiters=(*ending.waiters, *waiters), immediate=ending.immediate or immediate
            )
        )
        if immediate and not ending.queued:
            turn.move(Event.TERMINATE_IMMEDIATE)
    else:
        turn.terminate(Cause.REQUEST, immediate=immediate, waiters=waiters)


def _signal_received(turn: _Turn, message: SignalReceived, _: int | None) -> None:
    turn.log(logging.INFO, f"received {message.signal}")
    ending = turn.state.ending
    if turn.state.phase is Phase.LINGERING and turn.state.tidied:
        turn.close()
    elif ending is None and turn.state.phase not in {Phase.CLOSING, Phase.OVER}:
        turn.terminate(Cause.SIGNAL, immediate=False, signals=1)
    elif ending is not None and turn.state.phase is Phase.UP:
        turn.set(ending=replace(ending, cause=Cause.SIGNAL, signals=ending.signals + 1))
        if ending.signals >= 1 and ending.queued:
            _configuration_grace_ended(turn, ConfigurationGraceEnded(), None)
        elif ending.signals >= 1:
            turn.tell(POSTGRES, StopPostgres(budget_s=max(0.5, ending.deadline_s - turn.now_s), hurry=True))


def _configuration_grace_ended(turn: _Turn, _: ConfigurationGraceEnded, __: int | None) -> None:
    ending = turn.state.ending
    if ending is not None and ending.queued:
        _drop_configuration(turn, "the configuration was broken off: the node is terminating")


def _postgres_stopped(turn: _Turn, message: PostgresStopped, _: int | None) -> None:
    turn.effects.append(Never(StopOverdue))
    turn.set(postgres_up=False, raised=(), tidied=True)
    ending = turn.state.ending
    if message.rung is StopRung.KILL:
        turn.set(exit_code=EXIT_FAILED, exit_reason="Postgres had to be killed")
    attempt = turn.attempt
    if attempt is not None and attempt.step is Step.ABORTING:
        turn.move(Event.START_FAILED)
        turn.end_attempt(ConfigureFailed(turn.state.error or "unknown error"))
        turn.linger(
            LINGER_FAILED_START_S,
            f"giving control plane {LINGER_FAILED_START_S:g}s to collect the error before shutdown",
        )
        return
    if ending is None and turn.state.phase is Phase.LINGERING:
        turn.close()
        return
    if ending is None or ending.queued:
        turn.log(logging.WARNING, "Postgres was reported stopped although nobody had asked for it")
        return
    if ending.cause is Cause.FAILURE:
        turn.move(Event.STOPPED_BROKEN)
        turn.answer(ending.waiters, Terminated(lsn=None))
        turn.set(ending=replace(ending, waiters=()))
        turn.linger(0 if ending.immediate else LINGER_LOST_S)
        return
    turn.move(Event.STOPPED)
    turn.answer(ending.waiters, Terminated(lsn=None))
    turn.set(ending=replace(ending, waiters=()))
    if ending.cause is Cause.REQUEST:
        turn.linger(LINGER_IMMEDIATE_S if ending.immediate or ending.failed_before else LINGER_FAST_S)
    else:
        turn.close()


def _stop_overdue(turn: _Turn, _: StopOverdue, __: int | None) -> None:
    error = "Postgres was not reported stopped within the stop budget"
    turn.log(logging.ERROR, f"{error}; the process ends and stops it as a last resort")
    turn.broken(error)
    turn.finish()


def _postgres_exited(turn: _Turn, message: PostgresExited, _: int | None) -> None:
    error = f"Postgres ended although nobody asked it to: {message.description}"
    turn.log(logging.ERROR, error)
    turn.broken(error)
    attempt, ending = turn.attempt, turn.state.ending
    stopping = ending is not None and not ending.queued
    if stopping or (attempt is not None and attempt.step is Step.ABORTING):
        return  # it went while the order to stop was on its way; PostgresStopped follows
    turn.set(postgres_up=False, raised=(), ending=None)
    turn.tell(MONITOR, StopMonitoring())
    if attempt is not None:
        turn.tell(CONFIGURATOR, CancelApply(attempt.operation))
    turn.move(Event.POSTGRES_LOST)
    turn.end_attempt(ConfigureFailed(error))
    if ending is not None:
        turn.effects.append(Never(ConfigurationGraceEnded))
        turn.answer(ending.waiters, Terminated(lsn=None))
    turn.linger(0 if ending is not None and ending.cause is Cause.SIGNAL else LINGER_LOST_S)


# --- What is merely noted ----------------------------------------------------------------------------------


def _activity_observed(turn: _Turn, message: ActivityObserved, _: int | None) -> None:
    known = turn.state.last_active_s
    turn.set(last_active_s=message.at_s if known is None else max(known, message.at_s))


def _condition_raised(turn: _Turn, message: ConditionRaised, _: int | None) -> None:
    others = tuple(report for report in turn.state.raised if report.condition is not message.condition)
    turn.set(raised=(*others, ConditionReport(message.condition, message.detail)))


def _condition_cleared(turn: _Turn, message: ConditionCleared, _: int | None) -> None:
    turn.set(raised=tuple(r for r in turn.state.raised if r.condition is not message.condition))


_Handler: TypeAlias = Callable[[_Turn, Any, int | None], None]

_HANDLERS: Final[dict[type[Message], _Handler]] = {
    ActivityObserved: _activity_observed,
    ActorFailed: _actor_failed,
    ApplyFailed: _apply_failed,
    AwaitExit: _await_exit,
    Boot: _boot,
    ClosingOverdue: _closing_overdue,
    ConditionCleared: _condition_cleared,
    ConditionRaised: _condition_raised,
    ConfigurationAccepted: _configuration_accepted,
    ConfigurationGraceEnded: _configuration_grace_ended,
    ConfigurationInstalled: _configuration_installed,
    ConfigurationInstallFailed: _configuration_install_failed,
    ConfigurationRefused: _configuration_refused,
    ConfigurationReread: _configuration_reread,
    Configure: _configure,
    LingerEnded: _linger_ended,
    PgdataFailed: _pgdata_failed,
    PgdataInspected: _pgdata_inspected,
    PgdataPrepared: _pgdata_prepared,
    PgdataRefused: _pgdata_refused,
    PostgresExited: _postgres_exited,
    PostgresReady: _postgres_ready,
    PostgresStartFailed: _postgres_start_failed,
    PostgresStopped: _postgres_stopped,
    RereadConfiguration: _reread_configuration,
    ServingFailed: _serving_failed,
    ServingStarted: _serving_started,
    ServingStopped: _serving_stopped,
    SignalReceived: _signal_received,
    SpecApplied: _spec_applied,
    StopOverdue: _stop_overdue,
    Terminate: _terminate,
}
"""Every message that changes something; the requests that only read are answered by the actor."""

DECIDED: Final = tuple(_HANDLERS)

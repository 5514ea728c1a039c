"""What surrounds one actor in either runtime: delivery, replies, accounting, and its death."""

import logging
import math
import time
from concurrent import futures
from typing import Any, Final, Generic, Protocol, TypeVar

from typing_extensions import override

from ...messages.base import Message, Request
from ...messages.lifecycle import JournalEntry
from ...messages.metrics import ACTOR_FAILURES, SLOW_HANDLERS
from .actor import Actor, Envelope, Guard, Post, Ref, Replier, Services, Timers
from .clock import Clock
from .failpoints import Failpoints
from .jobs import Blocked, Job, JobCrashed, describe
from .journal import Journal
from .metrics import Metrics

M = TypeVar("M", bound=Message)
R = TypeVar("R")

SLOW_S: Final = 0.05
"""A handler that takes longer blocks others; it is logged and counted."""

log = logging.getLogger(__name__)


class ActorStartError(Exception):
    """An actor could not be started; it never hears a message."""


class Host(Post, Protocol):
    """What a cell needs of its runtime."""

    clock: Clock
    metrics: Metrics
    failpoints: Failpoints
    journal: Journal

    def run_job(self, name: str, job: Job) -> None:
        """Have `Cell.run` called with the job, on a thread of that actor's."""
        ...

    def deliver_after(self, name: str, delay_s: float, envelope: Envelope) -> None:
        """Send an envelope later."""
        ...

    def actor_failed(self, name: str, error: str) -> None:
        """Tell whoever watches that an actor is dead."""
        ...

    @staticmethod
    def lose(name: str, envelope: Envelope) -> None:
        """Give up an envelope for an actor that was never there."""
        log.warning("there is no actor named %s: %s is lost", name, type(envelope.message).__name__)
        envelope.refuse(f"there is no actor named {name}")


class Cell(Services, Generic[M]):
    """One actor and its surroundings. Nothing an actor does escapes from here as an exception."""

    def __init__(self, host: Host, name: str, actor: Actor[M]) -> None:
        self.name = name
        self.clock = host.clock
        self.metrics = host.metrics
        self.failpoints = host.failpoints
        self.timers: Timers = _CellTimers(host, name, self)
        self.max_jobs = actor.max_jobs
        self.dead: str | None = None
        self.pulse = 0
        """Odd while the actor is at work; never the same again."""
        self._host = host
        self._actor = actor
        self._current: Envelope | None = None
        self._settled = True
        # Ordered, so that a simulation picks the same again; other threads may only take their keys at once.
        self._outstanding: dict[Replier[Any], None] = {}
        self._jobs: dict[Job, None] = {}
        self.guards: dict[Guard, None] = {}
        actor.attach(self, Ref(host, name))

    @property
    def outstanding(self) -> int:
        """How many askers wait for this actor's answer."""
        return len(self._outstanding)

    # --- Called by the runtime, on the actor's own thread

    def start(self) -> None:
        """Let the actor begin; a failure here is its death."""
        began = time.perf_counter()
        self.pulse += 1
        try:
            self._actor.started()
        except BaseException as error:  # noqa: BLE001 - nothing may end the thread
            self._die(error)
        self.pulse += 1
        self._judge("its start", time.perf_counter() - began)

    def handle(self, envelope: Envelope) -> None:
        """Deliver one envelope."""
        guard = envelope.guard
        if guard is not None and guard.cancelled:
            return
        if self.dead is not None:
            envelope.refuse(f"{self.name}: {self.dead}")
            return
        self._receive(envelope)
        if guard is not None:
            if guard.period is None:
                guard.release()
            elif not guard.cancelled and self.dead is None:
                self._host.deliver_after(self.name, guard.period, envelope)

    def stop(self, reason: str = "it was stopped") -> None:
        """End the actor's life in order: askers learn it, jobs are cancelled, timers fall silent."""
        if self.dead is None:
            self.dead = reason
        for guard in tuple(self.guards):
            guard.cancel()
        for replier in tuple(self._outstanding):
            replier.abandon(f"{self.name}: {self.dead}")
        self.cancel_jobs()

    # --- Called by the runtime, on any thread

    @property
    def at_work_on(self) -> str:
        """Name the kind of message that is being handled, if one is."""
        current = self._current
        return "its start" if current is None else type(current.message).__name__

    def give_up(self, error: str) -> None:
        """Take the actor for dead, although its thread may be stuck in a handler."""
        self.metrics.add(ACTOR_FAILURES, 1, self.name)
        self.dead = error
        for replier in tuple(self._outstanding):
            replier.abandon(f"{self.name}: {error}")
        self.cancel_jobs()
        self._host.actor_failed(self.name, error)

    def cancel_jobs(self) -> None:
        """Ask all jobs to end."""
        for job in tuple(self._jobs):
            job.cancel()

    def run(self, job: Job, *, may_block: bool = False) -> None:
        """Do a job's work and send its outcome to the actor. Raises Blocked where it may, and nothing else."""
        outcome: Message | None
        try:
            outcome = job.run()
        except BaseException as error:
            if may_block and isinstance(error, Blocked):
                raise
            log.exception("%s: the job '%s' failed in a way that nobody handles", self.name, job.name)
            outcome = JobCrashed(job.name, describe(error))
        self._jobs.pop(job, None)
        job.cancellation.forget()
        if outcome is not None:
            self._host.send(self.name, Envelope(outcome))

    # --- Called by the actor

    @override
    def reply(self, request: Request[R], value: R) -> None:
        promise = self._settle(request)
        if promise is not None:
            promise.set_result(value)

    @override
    def defer(self, request: Request[R]) -> Replier[R]:
        return Replier(request, self._settle(request), self._outstanding)

    @override
    def start_job(self, job: Job) -> None:
        if self.max_jobs == 0:
            msg = f"{self.name} has no threads for jobs, and '{job.name}' is one (max_jobs)"
            raise RuntimeError(msg)
        self._jobs[job] = None
        self._host.run_job(self.name, job)

    @override
    def journal(self) -> tuple[JournalEntry, ...]:
        return self._host.journal.read()

    # --- Its own

    def _receive(self, envelope: Envelope) -> None:
        message = envelope.message
        self._current, self._settled = envelope, envelope.promise is None
        error: BaseException | None = None
        self.pulse += 1
        began = time.perf_counter()
        try:
            if isinstance(message, JobCrashed):
                raise _JobFailedError(message)  # noqa: TRY301 - the death of the actor has one place
            self._actor.receive(message)  # type: ignore[arg-type] # Ref checks what is told
            if not self._settled:
                msg = f"{type(message).__name__} was neither answered nor kept for later"
                raise RuntimeError(msg)  # noqa: TRY301 - as above
        except BaseException as raised:  # noqa: BLE001 - nothing may end the thread
            error = raised
        took = time.perf_counter() - began
        self.pulse += 1
        self._current = None
        self._account(message, took)
        if error is not None:
            if not self._settled:
                envelope.refuse(f"{self.name} failed: {describe(error)}")
            self._die(error)

    def _settle(self, request: Request[R]) -> "futures.Future[object] | None":
        if self._current is None or self._current.message is not request:
            msg = f"{type(request).__name__} is not the request that is being handled"
            raise RuntimeError(msg)
        if self._settled and self._current.promise is not None:
            msg = f"{type(request).__name__} was answered twice"
            raise RuntimeError(msg)
        self._settled = True
        return self._current.promise

    def _account(self, message: Message, took: float) -> None:
        kind = type(message).__name__
        self._host.journal.record(self.clock.now(), self.name, message, took)
        self.metrics.handled(self.name, kind, took)
        self._judge(kind, took)

    def _judge(self, what: str, took: float) -> None:
        if took > SLOW_S:
            self.metrics.add(SLOW_HANDLERS, 1, self.name)
            log.warning("%s: slow handler: %s took %.0f ms", self.name, what, took * 1000)

    def _die(self, error: BaseException) -> None:
        if isinstance(error, _JobFailedError):
            text = f"job '{error.crash.job}': {error.crash.error}"
        else:
            text = describe(error)
            log.error("%s died of an exception", self.name, exc_info=error)
        self.metrics.add(ACTOR_FAILURES, 1, self.name)
        self.stop(f"it died of {text}")
        self._host.actor_failed(self.name, text)


class _JobFailedError(Exception):
    """Carries a job's crash to where actors die."""

    def __init__(self, crash: JobCrashed) -> None:
        super().__init__(crash.error)
        self.crash = crash


class _CellTimers(Timers):
    def __init__(self, host: Host, name: str, cell: "Cell[M]") -> None:
        self._host = host
        self._name = name
        self._cell = cell

    @override
    def after(self, delay_s: float, message: Message) -> Guard:
        return self._start(delay_s, message, Guard(self._cell.guards))

    @override
    def every(self, period_s: float, message: Message) -> Guard:
        if not period_s > 0:
            msg = f"a timer repeats after a positive time, not after {period_s:g} s"
            raise ValueError(msg)
        return self._start(period_s, message, Guard(self._cell.guards, period_s))

    def _start(self, delay_s: float, message: Message, guard: Guard) -> Guard:
        if delay_s < math.inf:
            self._host.deliver_after(self._name, delay_s, Envelope(message, guard=guard))
        return guard

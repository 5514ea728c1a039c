"""The typed actor, the only handle on it, and what it may use: replies, jobs, timers, the clock.

    class Counter(Actor[CounterMessage]):
        def receive(self, message: CounterMessage) -> None:
            match message:
                case GetCount():
                    self.reply(message, Count(self._count))
                case Add(amount):
                    self._count += amount
                case _:
                    assert_never(message)

A handler never blocks: what waits is a job. Actors only tell; only the edge asks.
"""

import abc
from collections.abc import Callable
from concurrent import futures
from typing import Any, ClassVar, Generic, Protocol, TypeVar, final

from ...messages.base import (
    ActorUnavailableError,
    AskTimeoutError,
    Message,
    Request,
)
from ...messages.lifecycle import JournalEntry
from .clock import Clock
from .failpoints import Failpoints
from .jobs import Job, OnFailure, Work
from .metrics import Metrics

M = TypeVar("M", bound=Message)
M_contra = TypeVar("M_contra", bound=Message, contravariant=True)
R = TypeVar("R")


@final
class Guard:
    """A hold on a timer: once cancelled, its message is not delivered, even if it is already queued."""

    __slots__ = ("_held", "cancelled", "period")

    def __init__(self, held: "dict[Guard, None]", period: float | None = None) -> None:
        self.cancelled = False
        self.period = period
        self._held = held
        held[self] = None

    def cancel(self) -> None:
        """See to it that the message is not delivered (again)."""
        self.cancelled = True
        self.release()

    def release(self) -> None:
        """Forget the timer, because it is over; for the kit."""
        self._held.pop(self, None)


@final
class Envelope:
    """A message on its way, with whoever waits for its answer."""

    __slots__ = ("guard", "message", "promise")

    def __init__(
        self,
        message: Message,
        promise: "futures.Future[object] | None" = None,
        guard: Guard | None = None,
    ) -> None:
        self.message = message
        self.promise = promise
        self.guard = guard

    def refuse(self, reason: str) -> None:
        """Tell whoever waits for the answer that none will come."""
        if self.promise is not None:
            self.promise.set_exception(ActorUnavailableError(reason))


class Post(Protocol):
    """The part of a runtime that carries envelopes to actors by name."""

    def send(self, name: str, envelope: Envelope) -> None:
        """Put an envelope into that actor's mailbox; the promise fails if there is no such actor."""
        ...


@final
class Pending(Generic[R]):
    """The answer to a request, once it comes."""

    def __init__(self, promise: "futures.Future[object]", what: str) -> None:
        self._promise = promise
        self._what = what

    def get(self, timeout: float) -> R:
        """Wait at most `timeout` seconds.

        Raises AskTimeoutError, or ActorUnavailableError when the actor cannot answer any more.
        """
        try:
            return self._promise.result(timeout)  # type: ignore[return-value] # `reply` is typed by the request
        except futures.TimeoutError:
            msg = f"no answer to {self._what} within {timeout:g} s"
            raise AskTimeoutError(msg) from None

    @property
    def done(self) -> bool:
        """Whether `get` would return at once."""
        return self._promise.done()

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call this once there is an answer, on the thread that gives it; it must not block."""
        self._promise.add_done_callback(lambda _: callback())


@final
class Ref(Generic[M_contra]):
    """The only handle on an actor: its name, and the runtime that finds it."""

    __slots__ = ("_post", "name")

    def __init__(self, post: Post, name: str) -> None:
        self._post = post
        self.name = name

    def tell(self, message: M_contra) -> None:
        """Send a message and go on."""
        self._post.send(self.name, Envelope(message))

    def request(self, request: Request[R]) -> Pending[R]:
        """Send a request; for the edge only (http/, run.py, the command line, tests)."""
        promise: futures.Future[object] = futures.Future()
        self._post.send(self.name, Envelope(request, promise))
        return Pending(promise, f"{type(request).__name__} by {self.name}")

    def ask(self, request: Request[R], timeout: float) -> R:
        """Send a request and wait for its answer, at most `timeout` seconds; for the edge only."""
        return self.request(request).get(timeout)


@final
class Replier(Generic[R]):
    """A waiter, kept by the actor until the answer is known. It is to be answered exactly once."""

    __slots__ = ("_outstanding", "_promise", "request")

    def __init__(
        self,
        request: Request[R],
        promise: "futures.Future[object] | None",
        outstanding: "dict[Replier[Any], None]",
    ) -> None:
        self.request = request
        self._promise = promise
        self._outstanding = outstanding
        outstanding[self] = None

    def answer(self, value: R) -> None:
        """Give the answer; raises RuntimeError the second time."""
        if self not in self._outstanding:
            msg = f"{type(self.request).__name__} was answered twice"
            raise RuntimeError(msg)
        del self._outstanding[self]
        if self._promise is not None:
            self._promise.set_result(value)

    def abandon(self, reason: str) -> None:
        """Tell the waiter that no answer will come; for the kit."""
        self._outstanding.pop(self, None)
        if self._promise is not None:
            self._promise.set_exception(ActorUnavailableError(reason))


class Timers(Protocol):
    """Messages to oneself, later."""

    def after(self, delay_s: float, message: Message) -> Guard:
        """Deliver the message once, that much later."""
        ...

    def every(self, period_s: float, message: Message) -> Guard:
        """Deliver the message again and again, each time that long after the last one was handled.

        Raises ValueError when no time would pass between.
        """
        ...


class Services(Protocol):
    """What the runtime gives an actor."""

    clock: Clock
    metrics: Metrics
    failpoints: Failpoints
    timers: Timers

    def reply(self, request: Request[R], value: R) -> None:
        """Answer the request that is being handled."""
        ...

    def defer(self, request: Request[R]) -> Replier[R]:
        """Keep the asker of the request that is being handled; the answer comes later."""
        ...

    def start_job(self, job: Job) -> None:
        """Run a job on one of the actor's threads."""
        ...

    def journal(self) -> tuple[JournalEntry, ...]:
        """Return the journal of all actors."""
        ...


class Actor(abc.ABC, Generic[M]):
    """Owns some state that nobody else touches, and handles one message at a time.

    `max_jobs` threads are started with the actor; a job beyond them waits for a free one.
    """

    max_jobs: ClassVar[int] = 0

    _services: Services
    _myself: Ref[M]

    def attach(self, services: Services, myself: Ref[M]) -> None:
        """Give the actor what it may use; the runtime calls this before `started`."""
        self._services = services
        self._myself = myself

    def started(self) -> None:
        """Do what must come before the first message; raising here fails the start."""

    @abc.abstractmethod
    def receive(self, message: M) -> None:
        """Handle one message, without blocking. A request must be replied to or deferred here."""

    @property
    def myself(self) -> Ref[M]:
        """The actor's own address."""
        return self._myself

    @property
    def clock(self) -> Clock:
        """The only source of time."""
        return self._services.clock

    @property
    def timers(self) -> Timers:
        """The only way to act later."""
        return self._services.timers

    @property
    def metrics(self) -> Metrics:
        """The node's numbers."""
        return self._services.metrics

    def reply(self, request: Request[R], value: R) -> None:
        """Answer the request that is being handled."""
        self._services.reply(request, value)

    def defer(self, request: Request[R]) -> Replier[R]:
        """Keep the asker of the request that is being handled, and answer at a later message."""
        return self._services.defer(request)

    def journal(self) -> tuple[JournalEntry, ...]:
        """Return the last messages of all actors."""
        return self._services.journal()

    def start_job(self, name: str, work: Work, *, failed: OnFailure | None = None) -> Job:
        """Run `work` on a thread of the kit; the message it returns comes to this actor (see Job).

        Raises RuntimeError in an actor that has no threads for jobs.
        """
        job = Job(name, work, failed, self.clock, self._services.failpoints)
        self._services.start_job(job)
        return job

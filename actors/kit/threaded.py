"""The runtime of production: Pykka's threads, one for each actor, and a fixed number for jobs.

Every thread starts with its actor; none is made later, so that a machine short of memory cannot freeze a
request that waits for one.
"""

import heapq
import itertools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import pykka
from pykka import ActorRef
from typing_extensions import override

from ...messages.base import ActorUnavailableError, Message
from ...messages.lifecycle import ActorFailed
from ...messages.metrics import MAILBOX_DEPTH
from .actor import Actor, Envelope, Ref
from .cell import Cell, Host
from .clock import SystemClock
from .jobs import Job
from .journal import Journal
from .metrics import Metrics

M = TypeVar("M", bound=Message)

START_TIMEOUT_S: Final = 10.0
MAX_WAITING: Final = 10_000
"""Messages in one mailbox beyond which requests are refused; what actors tell each other never is."""

log = logging.getLogger(__name__)


class ActorStartError(Exception):
    """An actor failed before its first message."""


class _Host(pykka.ThreadingActor):
    """Gives a cell its thread; no exception of the actor ever reaches Pykka."""

    use_daemon_thread = True  # the main thread stops actors in order, and leaves hard at its deadline

    def __init__(self, cell: Cell[Any]) -> None:
        super().__init__()
        self._cell = cell
        self.started = threading.Event()
        self.ended = threading.Event()

    @staticmethod
    @override
    def _create_actor_inbox() -> Any:
        return queue.SimpleQueue()

    @override
    def on_start(self) -> None:
        threading.current_thread().name = self._cell.name
        self._cell.start()
        self.started.set()

    @override
    def on_receive(self, message: Envelope) -> None:
        self._cell.handle(message)

    @override
    def on_stop(self) -> None:
        self._cell.stop()

    @override
    def _actor_loop(self) -> None:
        try:
            super()._actor_loop()
        finally:
            self.ended.set()


class _Resident:
    """An actor at home in this runtime."""

    def __init__(self, cell: Cell[Any], host: _Host) -> None:
        self.cell = cell
        self.host = host
        self.ref: ActorRef[_Host] = host.actor_ref
        self.inbox = cast("queue.SimpleQueue[Any]", host.actor_inbox)
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.workers: list[threading.Thread] = []


class ThreadedRuntime(Host):
    """Runs actors on threads.

    `watcher` names the actor that is told of deaths; `abandoned` is called, on the dying actor's thread,
    when that one cannot be told because it is the one that died.
    """

    def __init__(self, *, watcher: str, abandoned: Callable[[ActorFailed], None]) -> None:
        self.clock = SystemClock()
        self.metrics = Metrics()
        self.journal = Journal()
        self._watcher = watcher
        self._abandoned = abandoned
        self._residents: dict[str, _Resident] = {}
        self._timers = _TimerThread(self.send)

    def ref(self, name: str) -> "Ref[Any]":
        """Return the address of an actor, which may be spawned later."""
        return Ref(self, name)

    def spawn(self, name: str, actor: Actor[M]) -> Ref[M]:
        """Start an actor and its job threads. Raises ActorStartError when it fails to start."""
        if name in self._residents:
            msg = f"there is already an actor named {name}"
            raise ActorStartError(msg)
        cell = Cell(self, name, actor)
        host = _Host(cell)
        resident = _Resident(cell, host)
        self._residents[name] = resident
        for number in range(1, actor.max_jobs + 1):
            worker = threading.Thread(
                target=_work, args=(cell, resident.jobs), name=f"{name}-job-{number}", daemon=True
            )
            worker.start()
            resident.workers.append(worker)
        pykka.ActorRegistry.register(resident.ref)
        host._start_actor_loop()  # noqa: SLF001 - Pykka's hook for makers of actor types
        if not host.started.wait(START_TIMEOUT_S) or cell.dead is not None:
            msg = f"the actor {name} did not start: {cell.dead or 'it took too long'}"
            raise ActorStartError(msg)
        return Ref(self, name)

    def stop(self, timeout_s: float) -> tuple[str, ...]:
        """Stop all actors, last started first, and their jobs; returns the names of threads that live on."""
        deadline = self.clock.now() + timeout_s
        residents = tuple(reversed(self._residents.values()))
        for resident in residents:
            if resident.cell.dead is None:
                resident.cell.dead = "it was stopped"
            _ = resident.ref.stop(block=False)
        left = [
            resident.cell.name
            for resident in residents
            if not resident.host.ended.wait(max(0.0, deadline - self.clock.now()))
        ]
        for resident in residents:
            for _ in resident.workers:
                resident.jobs.put(None)
        self._timers.stop()
        for thread in (*(w for r in residents for w in r.workers), self._timers.thread):
            thread.join(max(0.0, deadline - self.clock.now()))
            if thread.is_alive():
                left.append(thread.name)
        return tuple(left)

    def read_mailboxes(self) -> None:
        """Bring the gauge of mailbox depths up to date; for the metrics route."""
        self.metrics.replace(MAILBOX_DEPTH, {(name,): r.inbox.qsize() for name, r in self._residents.items()})

    # --- Host

    @override
    def send(self, name: str, envelope: Envelope) -> None:
        resident = self._residents.get(name)
        problem = None
        if resident is None:
            problem = f"there is no actor named {name}"
        elif resident.cell.dead is not None:
            problem = f"{name}: {resident.cell.dead}"
        elif envelope.promise is not None and resident.inbox.qsize() > MAX_WAITING:
            problem = f"{name} has more than {MAX_WAITING} messages waiting"
        if problem is None and resident is not None:
            try:
                resident.ref.tell(envelope)
            except pykka.ActorDeadError:
                problem = f"{name} has ended"
        if problem is not None and envelope.promise is not None:
            envelope.promise.set_exception(ActorUnavailableError(problem))

    @override
    def run_job(self, name: str, job: Job) -> None:
        self._residents[name].jobs.put(job)

    @override
    def deliver_after(self, name: str, delay_s: float, envelope: Envelope) -> None:
        self._timers.add(self.clock.now() + delay_s, name, envelope)

    @override
    def actor_failed(self, name: str, error: str) -> None:
        failure = ActorFailed(name, error)
        watcher = self._residents.get(self._watcher)
        if watcher is None or watcher.cell.dead is not None:
            self._abandoned(failure)
        else:
            self.send(self._watcher, Envelope(failure))


def _work(cell: Cell[Any], jobs: "queue.SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        cell.run(job)


class _TimerThread:
    """One thread that sends envelopes when they are due; it never does the work itself."""

    def __init__(self, send: Callable[[str, Envelope], None]) -> None:
        self._send = send
        self._clock = SystemClock()
        self._order = itertools.count()
        self._due: list[tuple[float, int, str, Envelope]] = []
        self._changed = threading.Condition()
        self._stopped = False
        self.thread = threading.Thread(target=self._run, name="timers", daemon=True)
        self.thread.start()

    def add(self, at: float, name: str, envelope: Envelope) -> None:
        with self._changed:
            heapq.heappush(self._due, (at, next(self._order), name, envelope))
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                wait = self._due[0][0] - self._clock.now() if self._due else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                _, _, name, envelope = heapq.heappop(self._due)
            self._send(name, envelope)

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
from typing_extensions import override

from ...messages.base import Message
from ...messages.lifecycle import ActorFailed
from ...messages.metrics import MAILBOX_DEPTH
from .actor import Actor, Envelope, Ref
from .cell import ActorStartError, Cell, Host
from .clock import TICK_S, AwakeClock
from .failpoints import Failpoints
from .jobs import Job, describe
from .journal import Journal
from .metrics import Metrics
from .threads import show_name
from .watchdog import HUNG_S, Watchdog, stacks

M = TypeVar("M", bound=Message)

START_TIMEOUT_S: Final = 10.0
MAX_WAITING: Final = 10_000
"""Messages in one mailbox beyond which requests are refused; what actors tell each other never is."""

CROWDED: Final = 64
"""Timers under way beyond which the cancelled ones are looked for and dropped."""

log = logging.getLogger(__name__)

__all__ = ["HUNG_S", "MAX_WAITING", "START_TIMEOUT_S", "ActorStartError", "ThreadedRuntime"]


class _Host(pykka.ThreadingActor):
    """Gives a cell its thread; no exception of the actor ever reaches Pykka."""

    use_daemon_thread = True  # the main thread stops actors in order, and leaves hard at its deadline

    def __init__(self, cell: Cell[Any]) -> None:
        super().__init__()
        self._cell = cell
        self.thread: threading.Thread | None = None
        self.started = threading.Event()
        self.ended = threading.Event()
        self._closed = False

    @staticmethod
    @override
    def _create_actor_inbox() -> Any:
        return queue.SimpleQueue()

    @override
    def on_start(self) -> None:
        self.thread = threading.current_thread()
        self.thread.name = self._cell.name
        show_name()
        self._cell.start()
        self.started.set()

    @override
    def on_receive(self, message: Envelope) -> None:
        self._cell.handle(message)

    @override
    def _actor_loop_teardown(self) -> None:
        self._cell.stop()
        pykka.ActorRegistry.unregister(self.actor_ref)
        self._closed = True
        self._refuse_the_rest()
        self.ended.set()

    def put(self, envelope: Envelope) -> None:
        """Put an envelope into the mailbox; it is handled or refused, however this meets a stop."""
        try:
            self.actor_ref.tell(envelope)
        except pykka.ActorDeadError:
            envelope.refuse(f"{self._cell.name}: {self._cell.dead}")
        if self._closed:  # after the last look into the mailbox, perhaps: then this is the last one
            self._refuse_the_rest()

    def end(self) -> None:
        """Have the loop end after the message that is being handled; those behind it are refused."""
        if self._cell.dead is None:
            self._cell.dead = "it was stopped"
        if not self.actor_stopped.is_set():
            _ = self.actor_ref.stop(block=False)  # wakes the loop
            self.actor_stopped.set()

    def _refuse_the_rest(self) -> None:
        inbox = cast("queue.SimpleQueue[Any]", self.actor_inbox)
        while True:
            try:
                message = inbox.get_nowait().message
            except queue.Empty:
                return
            if isinstance(message, Envelope):
                message.refuse(f"{self._cell.name}: {self._cell.dead}")


class _Resident:
    """An actor at home in this runtime."""

    def __init__(self, cell: Cell[Any], host: _Host) -> None:
        self.cell = cell
        self.host = host
        self.inbox = cast("queue.SimpleQueue[Any]", host.actor_inbox)
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.workers: list[threading.Thread] = []
        self.told_to_end = False

    @property
    def lost_thread(self) -> str | None:
        """Name a thread that has ended although nobody asked it to."""
        if self.told_to_end or not self.host.started.is_set():
            return None
        threads = [thread for thread in (self.host.thread, *self.workers) if thread is not None]
        return next((thread.name for thread in threads if not thread.is_alive()), None)

    def start(self) -> None:
        """Start the threads. Raises RuntimeError when the machine has none to spare."""
        for number in range(1, self.cell.max_jobs + 1):
            worker = threading.Thread(
                target=_work, args=(self.cell, self.jobs), name=f"{self.cell.name}-job-{number}", daemon=True
            )
            worker.start()
            self.workers.append(worker)
        self.host._start_actor_loop()  # noqa: SLF001 - Pykka's hook for makers of actor types
        pykka.ActorRegistry.register(self.host.actor_ref)

    def end(self, timeout_s: float) -> None:
        """End the actor, then its jobs; waits at most so long for the actor."""
        self.told_to_end = True
        self.host.end()
        has_thread = self.host.thread is not None and self.host.thread.is_alive()
        if not self.host.ended.wait(timeout_s if has_thread else 0):
            self.cell.cancel_jobs()  # the actor itself cannot
        for _ in self.workers:
            self.jobs.put(None)


class ThreadedRuntime(Host):
    """Runs actors on threads.

    `watcher` names the actor that is told of deaths; `abandoned` is called, on the dying actor's thread,
    when that one cannot be told because it is the one that died. An actor that hangs has died, too.
    """

    def __init__(self, *, watcher: str, abandoned: Callable[[ActorFailed], None]) -> None:
        self.clock = AwakeClock()
        self.metrics = Metrics()
        self.failpoints = Failpoints()
        self.journal = Journal()
        self._watcher = watcher
        self._abandoned = abandoned
        self._residents: dict[str, _Resident] = {}
        self._watchdog = Watchdog()
        self._timers = _TimerThread(self.send, self.clock, self._watch, self._timers_failed)

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
        try:
            resident.start()
        except RuntimeError as error:
            cell.dead = f"it has no thread: {error}"
            host.ended.set()
        else:
            if not host.started.wait(START_TIMEOUT_S):
                cell.dead = f"it took longer than {START_TIMEOUT_S:g} s"
        if cell.dead is not None:
            msg = f"the actor {name} did not start: {cell.dead}"
            raise ActorStartError(msg)
        return Ref(self, name)

    def stop(self, timeout_s: float) -> tuple[str, ...]:
        """Stop all actors, last started first, and their jobs; returns the names of threads that live on.

        An actor that does not end in its share of the time is left behind.
        """
        deadline = self.clock.now() + timeout_s
        residents = tuple(reversed(self._residents.values()))
        for number, resident in enumerate(residents):
            resident.end(max(0.0, deadline - self.clock.now()) / (len(residents) - number + 1))
        self._timers.stop()
        threads = [thread for r in residents for thread in (r.host.thread, *r.workers) if thread is not None]
        left: list[str] = []
        for thread in (*threads, self._timers.thread):
            thread.join(max(0.0, deadline - self.clock.now()))
            if thread.is_alive():
                left.append(thread.name)
        return tuple(left)

    def read_mailboxes(self) -> None:
        """Bring the gauge of mailbox depths up to date; for the metrics route."""
        self.metrics.replace(
            MAILBOX_DEPTH, {(name,): r.inbox.qsize() for name, r in tuple(self._residents.items())}
        )

    # --- Host

    @override
    def send(self, name: str, envelope: Envelope) -> None:
        resident = self._residents.get(name)
        if resident is None:
            self.lose(name, envelope)
        elif resident.cell.dead is not None:
            envelope.refuse(f"{name}: {resident.cell.dead}")
        elif envelope.promise is not None and resident.inbox.qsize() > MAX_WAITING:
            envelope.refuse(f"{name} has more than {MAX_WAITING} messages waiting")
        else:
            resident.host.put(envelope)

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
            try:
                self._abandoned(failure)
            except Exception:
                log.exception("nobody could be told that %s died", name)
        else:
            self.send(self._watcher, Envelope(failure))

    # --- On the timer thread

    def _watch(self) -> None:
        """Look for actors that hang, or whose threads are gone; each is reported once."""
        living = {name: r for name, r in tuple(self._residents.items()) if r.cell.dead is None}
        pulses = {name: resident.cell.pulse for name, resident in living.items()}
        lost = {
            name: f"its thread {thread} has ended"
            for name, resident in living.items()
            if (thread := resident.lost_thread) is not None
        }
        for name in self._watchdog.hung(pulses, self.clock.now(), HUNG_S):
            what = living[name].cell.at_work_on
            lost[name] = f"it hangs: it has been at work on {what} for more than {HUNG_S:g} s"
        if not lost:
            return
        for name in sorted(lost, key=lambda name: name != self._watcher):  # so that nobody tells it of others
            log.error("%s is given up: %s; what every thread is doing follows", name, lost[name])
            living[name].cell.give_up(lost[name])
        for stack in stacks():
            log.error("%s", stack)

    def _timers_failed(self, error: BaseException) -> None:
        log.error("the thread of the timers died of an exception", exc_info=error)
        self._abandoned(ActorFailed("timers", describe(error)))


def _work(cell: Cell[Any], jobs: "queue.SimpleQueue[Job | None]") -> None:
    show_name()
    while (job := jobs.get()) is not None:
        cell.run(job)


class _TimerThread:
    """One thread that sends envelopes when they are due; it never does the work itself.

    `every_tick` is called each TICK_S, `failed` with the exception that ends the thread, if one does.
    """

    def __init__(
        self,
        send: Callable[[str, Envelope], None],
        clock: AwakeClock,
        every_tick: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._send = send
        self._clock = clock
        self._every_tick = every_tick
        self._failed = failed
        self._order = itertools.count()
        self._due: list[tuple[float, int, str, Envelope]] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._crowded = CROWDED
        self.thread = threading.Thread(target=self._run, name="timers", daemon=True)
        self.thread.start()

    def add(self, at: float, name: str, envelope: Envelope) -> None:
        with self._changed:
            heapq.heappush(self._due, (at, next(self._order), name, envelope))
            if len(self._due) > self._crowded:
                self._due = [due for due in self._due if due[3].guard is None or not due[3].guard.cancelled]
                heapq.heapify(self._due)
                self._crowded = max(CROWDED, 2 * len(self._due))
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        show_name()
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - nobody acts in time without this thread
            self._failed(error)

    def _serve(self) -> None:
        tick_s = self._clock.now()
        while True:
            now = self._clock.now()
            if now >= tick_s:
                tick_s = now + TICK_S
                self._every_tick()
            with self._changed:
                if self._stopped:
                    return
                now = self._clock.now()
                wait = self._due[0][0] - now if self._due else TICK_S
                if wait > 0:
                    self._changed.wait(min(wait, TICK_S))
                    continue
                _, _, name, envelope = heapq.heappop(self._due)
            self._send(name, envelope)

"""The runtime of tests: the same actors on one thread, with made-up time and an order drawn from a seed.

At each step the scheduler picks one of: the next message of some mailbox, a job that can go on, or, when
the seed says so or nothing else is left, the next timer (time jumps to it). The same seed picks the same.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from typing_extensions import override

from ...messages.base import Message, Request
from ...messages.failpoints import Action, Failpoint
from ...messages.lifecycle import ActorFailed
from .actor import Actor, Envelope, Pending, Ref
from .cell import ActorStartError, Cell, Host
from .clock import Clock
from .failpoints import Armed, Failpoints, Interruptible
from .jobs import Blocked, Job
from .journal import Journal
from .metrics import Metrics

M = TypeVar("M", bound=Message)
R = TypeVar("R")

EPOCH: Final = 1_700_000_000.0
TIMER_CHANCE: Final = 0.05
"""How often time moves on to a near timer although messages are waiting: a busy machine."""
NEAR_S: Final = 1.0
"""Longer than that nothing waits: the clock of production leaves gaps out in which nobody ran."""


class SimulatedClock(Clock):
    """Time that moves only when the scheduler says so; somebody may set the wall clock meanwhile."""

    def __init__(self) -> None:
        self._now = 1_000.0
        self.wall_is_off_by_s = 0.0

    @override
    def now(self) -> float:
        return self._now

    @override
    def wall(self) -> float:
        return EPOCH + self._now + self.wall_is_off_by_s

    def move_to(self, now: float) -> None:
        """Jump; never backwards."""
        self._now = max(self._now, now)


class SimulatedFailpoints(Failpoints):
    """Nobody waits on the one thread: who pauses is Blocked, and while somebody sleeps time jumps."""

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self._clock = clock

    @override
    def _pause(self, armed: Armed, action: Action, failpoint: Failpoint, job: Interruptible) -> None:
        armed.give_back(action)
        raise Blocked

    @override
    def _sleep(self, seconds: float, job: Interruptible) -> None:
        self._clock.move_to(self._clock.now() + seconds)


class SimulatedRuntime(Host):
    """Runs actors one message at a time; `trace` tells what was picked, in order.

    `continuing` is the runtime of a process that was killed: its actors, jobs and timers are gone, while time,
    chance, the trace and what happens around the process go on.
    """

    def __init__(
        self, seed: int, *, watcher: str = "supervisor", continuing: "SimulatedRuntime | None" = None
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a seeded choice is what is wanted
        self.clock = SimulatedClock()
        self.stalled_s = 0.0
        """How much time passed although there was something to do: a machine that stood still."""
        self.metrics = Metrics()
        self.failpoints = SimulatedFailpoints(self.clock)
        self.journal = Journal()
        self.abandoned: list[ActorFailed] = []
        self.after_step: Callable[[], None] = lambda: None
        self._watcher = watcher
        self._cells: dict[str, Cell[Any]] = {}
        self._mailboxes: dict[str, deque[Envelope]] = {}
        self._jobs: list[tuple[str, Job]] = []
        self._timers: list[tuple[float, int, str, Envelope]] = []
        self.happenings: list[tuple[float, int, Callable[[], None]]] = []
        self.timer_count = itertools.count()  # this and the next, like the happenings, outlive the process
        self.steps: list[tuple[float, str, str, object]] = []
        if continuing is not None:
            self.random, self.clock, self.stalled_s = (
                continuing.random,
                continuing.clock,
                continuing.stalled_s,
            )
            self.happenings, self.steps = continuing.happenings, continuing.steps
            self.timer_count = continuing.timer_count

    @property
    def trace(self) -> list[str]:
        """What was picked, in order, one line each."""
        return [
            f"{at:.3f} {name} {verb} {what if isinstance(what, str) else repr(what)}"
            for at, name, verb, what in self.steps
        ]

    def ref(self, name: str) -> "Ref[Any]":
        """Return the address of an actor, which may be spawned later."""
        return Ref(self, name)

    def spawn(self, name: str, actor: Actor[M]) -> Ref[M]:
        """Take an actor in; it begins at once. Raises ActorStartError when it fails to."""
        if name in self._cells:
            msg = f"there is already an actor named {name}"
            raise ActorStartError(msg)
        cell = Cell(self, name, actor)
        self._cells[name] = cell
        self._mailboxes[name] = deque()
        cell.start()
        if cell.dead is not None:
            msg = f"the actor {name} did not start: {cell.dead}"
            raise ActorStartError(msg)
        return Ref(self, name)

    def cell(self, name: str) -> Cell[Any]:
        """Return what surrounds an actor, for a look inside."""
        return self._cells[name]

    # --- Stepping

    def step(self) -> bool:
        """Do one thing; False when there is nothing left to do."""
        ready = [name for name, mailbox in self._mailboxes.items() if mailbox]
        choices: list[Callable[[], bool]] = [partial(self._deliver, name) for name in ready]
        choices += [partial(self._try_job, entry) for entry in self._jobs_on_threads()]
        self.random.shuffle(choices)
        next_s = self._next_s()
        if next_s is not None:
            if next_s <= self.clock.now() + NEAR_S and self.random.random() < TIMER_CHANCE:
                choices.insert(0, partial(self._stand_still, next_s))
            else:
                choices.append(self._fire_timer)
        for choice in choices:
            if choice():
                self.after_step()
                return True
        return False

    def run(self, *, until: Callable[[], bool] | None = None, max_steps: int = 10_000) -> None:
        """Step until the condition holds, or nothing is left. Raises AssertionError beyond `max_steps`."""
        for _ in range(max_steps):
            if until is not None and until():
                return
            if not self.step():
                if until is not None and not until():  # a job that is Blocked may have changed things
                    msg = "nothing is left to do and the condition does not hold"
                    raise AssertionError(msg)
                return
        msg = f"not done after {max_steps} steps"
        raise AssertionError(msg)

    def settle(self, *, max_steps: int = 100_000) -> None:
        """Deliver messages and run jobs until both are at rest; time stands still.

        Raises AssertionError beyond `max_steps`.
        """
        for _ in range(max_steps):
            ready = [name for name, mailbox in self._mailboxes.items() if mailbox]
            progress = any(self._deliver(name) for name in ready) or any(
                self._try_job(entry) for entry in self._jobs_on_threads()
            )
            self.after_step()
            if not progress:
                return
        msg = f"not at rest after {max_steps} steps"
        raise AssertionError(msg)

    def advance(self, seconds: float) -> None:
        """Let that much time pass, with all that it brings."""
        end = self.clock.now() + seconds
        self.settle()
        while (next_s := self._next_s()) is not None and next_s <= end:
            self._fire_timer()
            self.settle()
        self.clock.move_to(end)

    def ask(self, ref: "Ref[Any]", request: Request[R]) -> R:
        """Ask, and step until the answer is there."""
        pending: Pending[R] = ref.request(request)
        self.run(until=lambda: pending.done)
        return pending.get(0)

    def stop(self) -> tuple[str, ...]:
        """Stop all actors, last started first, and their jobs; returns the names of jobs that live on."""
        for name, cell in reversed(self._cells.items()):
            cell.stop()
            for envelope in self._mailboxes[name]:
                envelope.refuse(f"{name}: {cell.dead}")
            self._mailboxes[name].clear()
        self.settle()
        return tuple(job.name for _, job in self._jobs)

    def later(self, delay_s: float, happening: Callable[[], None]) -> None:
        """Let something happen around the process, in that many seconds."""
        entry = (self.clock.now() + delay_s, next(self.timer_count), happening)
        heapq.heappush(self.happenings, entry)

    # --- Host

    @override
    def send(self, name: str, envelope: Envelope) -> None:
        cell = self._cells.get(name)
        if cell is None:
            self.lose(name, envelope)
        elif cell.dead is not None:
            envelope.refuse(f"{name}: {cell.dead}")
        else:
            self._mailboxes[name].append(envelope)

    @override
    def run_job(self, name: str, job: Job) -> None:
        self._jobs.append((name, job))

    @override
    def deliver_after(self, name: str, delay_s: float, envelope: Envelope) -> None:
        entry = (self.clock.now() + delay_s, next(self.timer_count), name, envelope)
        heapq.heappush(self._timers, entry)

    @override
    def actor_failed(self, name: str, error: str) -> None:
        self.steps.append((self.clock.now(), name, "died:", error))
        failure = ActorFailed(name, error)
        watcher = self._cells.get(self._watcher)
        if watcher is None or watcher.dead is not None:
            self.abandoned.append(failure)
        else:
            self.send(self._watcher, Envelope(failure))

    # --- Choices

    def _deliver(self, name: str) -> bool:
        envelope = self._mailboxes[name].popleft()
        self._note(name, envelope.message)
        self._cells[name].handle(envelope)
        return True

    def _jobs_on_threads(self) -> list[tuple[str, Job]]:
        """Return the jobs that have a thread: of each actor the first `max_jobs` that have not ended."""
        free = {name: cell.max_jobs for name, cell in self._cells.items()}
        chosen = []
        for entry in self._jobs:
            free[entry[0]] -= 1
            if free[entry[0]] >= 0:
                chosen.append(entry)
        return chosen

    def _try_job(self, entry: tuple[str, Job]) -> bool:
        name, job = entry
        try:
            self._cells[name].run(job, may_block=True)
        except Blocked:
            return False
        self._jobs.remove(entry)
        self._note(name, f"job '{job.name}' ended")
        return True

    def _next_s(self) -> float | None:
        """Return when the next timer is due, or something else happens."""
        timer = self._timers[0][0] if self._timers else None
        happening = self.happenings[0][0] if self.happenings else None
        return happening if timer is None else timer if happening is None else min(timer, happening)

    def _stand_still(self, until_s: float) -> bool:
        self.stalled_s += max(0.0, until_s - self.clock.now())
        return self._fire_timer()

    def _fire_timer(self) -> bool:
        if not self._timers or (self.happenings and self.happenings[0] < self._timers[0][:2]):
            at, _, happen = heapq.heappop(self.happenings)
            self.clock.move_to(at)
            happen()
            return True
        at, _, name, envelope = heapq.heappop(self._timers)
        if envelope.guard is not None and envelope.guard.cancelled:
            return True
        self.clock.move_to(at)
        self.steps.append((self.clock.now(), name, "<- timer", envelope.message))
        self.send(name, envelope)
        return True

    def _note(self, name: str, what: object) -> None:
        self.steps.append((self.clock.now(), name, "<-", what))

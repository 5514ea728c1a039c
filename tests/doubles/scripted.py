"""Actors that do what a test says, and one way to drive them on either runtime.

What a test waits for is written into a Recorder; `Bench.wait` returns once a condition on it holds: on
threads by being notified, in the simulation by stepping. Nothing here sleeps.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from compute_node.actors.kit.actor import Actor, Pending, Ref
from compute_node.actors.kit.clock import Clock
from compute_node.actors.kit.journal import Journal
from compute_node.actors.kit.metrics import Metrics
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.messages.base import Message, Request
from compute_node.messages.lifecycle import ActorFailed
from typing_extensions import override

R = TypeVar("R")

LOOK_AGAIN_S = 0.05
"""Not everything that a test waits for is told."""
WAIT_S = 20.0
"""Longer than any wait that ends; a test that gets here fails."""


class Note(Message, frozen=True):
    text: str


class Other(Message, frozen=True):
    text: str = ""


class Answer(Message, frozen=True):
    text: str


class Question(Request[Answer], frozen=True):
    text: str = ""


class Recorder:
    """A list that tells whoever waits that it grew."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.entries: list[Any] = []

    def add(self, entry: object) -> None:
        with self.changed:
            self.entries.append(entry)
            self.changed.notify_all()

    @property
    def texts(self) -> list[str]:
        """The texts of the Notes heard, in order."""
        return [entry.text for entry in tuple(self.entries) if isinstance(entry, Note)]


class Scripted(Actor[Message]):
    """Runs the test's function for each kind of message; what has none is only recorded."""

    max_jobs: ClassVar[int] = 2

    def __init__(
        self,
        recorder: Recorder,
        script: Mapping[Any, Callable[..., None]] | None = None,
        on_start: Callable[["Scripted"], None] = lambda _: None,
    ) -> None:
        self.recorder = recorder
        self._script = dict(script or {})
        self._on_start = on_start

    @override
    def started(self) -> None:
        self._on_start(self)

    @override
    def receive(self, message: Message) -> None:
        action = self._script.get(type(message))
        if action is not None:
            action(self, message)
        self.recorder.add(message)


class JoblessScripted(Scripted):
    """The same without a thread for jobs."""

    max_jobs: ClassVar[int] = 0


class SingleJobScripted(Scripted):
    """The same with one thread for jobs."""

    max_jobs: ClassVar[int] = 1


class Watcher(Actor[ActorFailed]):
    """Hears of deaths and records them."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @override
    def receive(self, message: ActorFailed) -> None:
        self._recorder.add(message)


class Bench(Protocol):
    """A runtime under test."""

    recorder: Recorder
    abandoned: list[ActorFailed]

    @property
    def clock(self) -> Clock: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def journal(self) -> Journal: ...

    def ref(self, name: str) -> Ref[Any]: ...

    def spawn(self, name: str, actor: Actor[Any]) -> Ref[Any]: ...

    def wait(self, condition: Callable[[], bool]) -> None:
        """Go on until the condition holds; it may look at the recorder and at promises that record."""
        ...

    def result(self, pending: Pending[R]) -> R:
        """Wait for an answer; raises what the asker would see."""
        ...

    def stop(self) -> tuple[str, ...]: ...


class ThreadedBench:
    def __init__(self, watcher: str = "watcher") -> None:
        self.recorder = Recorder()
        self.abandoned: list[ActorFailed] = []
        self.runtime = ThreadedRuntime(watcher=watcher, abandoned=self._abandon)

    def _abandon(self, failure: ActorFailed) -> None:
        self.abandoned.append(failure)
        self.recorder.add(failure)

    @property
    def clock(self) -> Clock:
        return self.runtime.clock

    @property
    def metrics(self) -> Metrics:
        return self.runtime.metrics

    @property
    def journal(self) -> Journal:
        return self.runtime.journal

    def ref(self, name: str) -> Ref[Any]:
        return self.runtime.ref(name)

    def spawn(self, name: str, actor: Actor[Any]) -> Ref[Any]:
        return self.runtime.spawn(name, actor)

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        with self.recorder.changed:
            while not self.recorder.changed.wait_for(condition, LOOK_AGAIN_S):
                assert time.monotonic() < deadline, self.recorder.entries

    def result(self, pending: Pending[R]) -> R:
        return pending.get(WAIT_S)

    def stop(self) -> tuple[str, ...]:
        return self.runtime.stop(WAIT_S)


class SimulatedBench:
    def __init__(self, seed: int, watcher: str = "watcher") -> None:
        self.recorder = Recorder()
        self.runtime = SimulatedRuntime(seed, watcher=watcher)
        self.abandoned = self.runtime.abandoned

    @property
    def clock(self) -> Clock:
        return self.runtime.clock

    @property
    def metrics(self) -> Metrics:
        return self.runtime.metrics

    @property
    def journal(self) -> Journal:
        return self.runtime.journal

    def ref(self, name: str) -> Ref[Any]:
        return self.runtime.ref(name)

    def spawn(self, name: str, actor: Actor[Any]) -> Ref[Any]:
        return self.runtime.spawn(name, actor)

    def wait(self, condition: Callable[[], bool]) -> None:
        self.runtime.run(until=condition)

    def result(self, pending: Pending[R]) -> R:
        self.runtime.run(until=lambda: pending.done)
        return pending.get(0)

    def stop(self) -> tuple[str, ...]:
        return self.runtime.stop()

"""Compares the actor kit with bare Pykka: `python bench/kit.py` prints medians of 7 runs and their ratio."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import pykka
from compute_node.actors.kit.actor import Actor
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.messages.base import Message, Request
from typing_extensions import override

RUNS: Final = 7
TELLS: Final = 50_000
ASKS: Final = 10_000


class Tick(Message, frozen=True):
    """Told many times."""

    number: int


class Ping(Request[int], frozen=True):
    """Asked many times."""

    number: int


class KitActor(Actor[Tick | Ping]):
    """Counts what it is told and echoes what it is asked."""

    def __init__(self, done: threading.Event) -> None:
        self._done = done

    @override
    def receive(self, message: Tick | Ping) -> None:
        match message:
            case Tick(number):
                if number == TELLS - 1:
                    self._done.set()
            case Ping(number):
                self.reply(message, number)


class PykkaActor(pykka.ThreadingActor):
    """The same without the kit."""

    def __init__(self, done: threading.Event) -> None:
        super().__init__()
        self._done = done

    @override
    def on_receive(self, message: Tick | Ping) -> int | None:
        match message:
            case Tick(number):
                if number == TELLS - 1:
                    self._done.set()
                return None
            case Ping(number):
                return number


def timed(work: Callable[[], None]) -> float:
    """Return the seconds that it took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run(tell: Callable[[Any], None], ask: Callable[[Any], Any], done: threading.Event) -> tuple[float, float]:
    """Return the seconds for all tells, handled, and for all asks, answered."""

    def tells() -> None:
        for number in range(TELLS):
            tell(Tick(number))
        done.wait()

    def asks() -> None:
        for number in range(ASKS):
            assert ask(Ping(number)) == number

    return timed(tells), timed(asks)


def kit_run() -> tuple[float, float]:
    """Measure the kit."""
    done = threading.Event()
    runtime = ThreadedRuntime(watcher="nobody", abandoned=lambda _: None)
    ref = runtime.spawn("actor", KitActor(done))
    try:
        return run(ref.tell, lambda request: ref.ask(request, 10), done)
    finally:
        runtime.stop(10)


def pykka_run() -> tuple[float, float]:
    """Measure bare Pykka."""
    done = threading.Event()
    ref = PykkaActor.start(done)
    try:
        return run(ref.tell, lambda request: ref.ask(request, timeout=10), done)
    finally:
        ref.stop()


def main() -> None:
    """Print a table: microseconds per message, median of all runs, and the ratio."""
    pairs = [(kit_run(), pykka_run()) for _ in range(RUNS)]
    print(f"{'':6}{'kit':>9}{'pykka':>9}{'ratio':>8}   (microseconds a message, medians of {RUNS} runs)")
    for name, index, count in (("tell", 0, TELLS), ("ask", 1, ASKS)):
        kit = statistics.median(pair[0][index] for pair in pairs) / count * 1e6
        bare = statistics.median(pair[1][index] for pair in pairs) / count * 1e6
        print(f"{name:6}{kit:9.2f}{bare:9.2f}{kit / bare:8.2f}")


if __name__ == "__main__":
    main()

"""The actor kit beside bare Pykka, and what the kit writes down of every message: `python bench/kit.py`."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Final
from unittest import mock

import pykka
from compute_node.actors.kit.actor import Actor
from compute_node.actors.kit.cell import Cell
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.bench.rig import ROUNDS, Row, rounds, table
from compute_node.messages.base import Message, Request
from typing_extensions import override

AIM: Final = 1.5
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


def bare_kit_run() -> tuple[float, float]:
    """Measure the kit without what it writes down of every message: journal and metrics."""
    with mock.patch.object(Cell, "_account", lambda *_: None):  # noqa: PT008 - a Mock takes longer than all else
        return kit_run()


def measure(count: int = ROUNDS) -> list[Row]:
    """Let the kit, the kit without its books and Pykka take turns."""
    kit: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    pykka: list[tuple[float, float]] = []
    rounds(
        "kit",
        count,
        lambda: kit.append(kit_run()),
        lambda: pykka.append(pykka_run()),
        lambda: bare.append(bare_kit_run()),
    )
    rows = []
    for name, index, messages in (("tell", 0, TELLS), ("ask", 1, ASKS)):
        ours, without, other = (
            statistics.median(times[index] for times in side) / messages * 1e6 for side in (kit, bare, pykka)
        )
        ratio = ours / other
        rows += [
            Row(
                f"kit: `{name}`, handled",
                f"{ours:.1f} µs",
                f"{other:.1f} µs, bare Pykka",
                ratio,
                f"≤ {AIM:.2f}",
                ratio <= AIM,
            ),
            Row(
                f"kit: journal and metrics of a `{name}`",
                f"{ours - without:.1f} µs",
                f"{without:.1f} µs, without them",
                None,
                "",
            ),
        ]
    return rows


if __name__ == "__main__":
    print(table(measure()))

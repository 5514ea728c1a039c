"""What holds for every test: actors that were started are stopped, their handlers were quick, examples are bounded."""

import gc
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
from compute_node.actors.kit import cell
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.messages.metrics import SLOW_HANDLERS
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester", "fix_matrix"]

STOP_S: Final = 10.0

settings.register_profile("here", deadline=None, max_examples=60)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=200,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("mutation", deadline=None, max_examples=15, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


class CpuAwareTime(threading.local):
    """A clock that stands still while its thread waits for a processor, so that a busy machine blames no handler."""

    def __init__(self) -> None:
        try:
            self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a system without it: an honest machine is needed then
            self._schedstat = -1

    def __del__(self) -> None:
        if self._schedstat >= 0:
            os.close(self._schedstat)

    def perf_counter(self) -> float:
        """Return seconds; read again when the thread had to wait between looking at the two clocks."""
        if self._schedstat < 0:
            return time.perf_counter()
        while True:
            waited_ns, now = self._waited_ns(), time.perf_counter()
            if waited_ns == self._waited_ns():
                return now - waited_ns / 1e9

    def _waited_ns(self) -> int:
        return int(os.pread(self._schedstat, 64, 0).split()[1])


# Under nohup, or in the background of a shell, whatever a test starts would ignore these, too.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
gc.set_threshold(20_000, 50, 1_000_000)  # nor one in which all that thousands of tests left is looked through
COLLECT_EVERY: Final = 200
"""Tests between two looks for garbage among what has lived long."""

sys.setswitchinterval(0.0005)  # nor does a handler that waits for the interpreter's lock stand for a slow one

_time = CpuAwareTime()
_time.perf_counter()
vars(cell)["time"] = _time  # all that it uses of the module

_tests = itertools.count(1)
_runtimes: list[ThreadedRuntime] = []
_make = ThreadedRuntime.__init__


def _remembered(runtime: ThreadedRuntime, *args: Any, **options: Any) -> None:
    _make(runtime, *args, **options)
    _runtimes.append(runtime)


ThreadedRuntime.__init__ = _remembered  # type: ignore[method-assign,assignment] # the one place that sees all of them


@pytest.fixture(autouse=True)
def actors_stop_and_their_handlers_are_quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stop what the test started; fail it for a thread that lives on, or for a handler that blocked."""
    if next(_tests) % COLLECT_EVERY == 0:
        gc.collect()
    before = len(_runtimes)
    yield
    mine = _runtimes[before:]
    del _runtimes[before:]
    left = [name for runtime in mine for name in runtime.stop(STOP_S)]
    assert not left, f"threads of the actor kit live on: {left} of {threading.enumerate()}"
    slowed = "MUTANT_UNDER_TEST" in os.environ  # by mutmut: every call goes through its trampoline
    if request.node.get_closest_marker("blocking_handlers") is None and not slowed:
        slow = {
            actor: count
            for runtime in mine
            for (actor,), count in runtime.metrics.read(SLOW_HANDLERS).items()
        }
        assert not slow, f"handlers took longer than 50 ms: {slow}"


@pytest.fixture(autouse=True)
def loggers_keep_their_levels() -> Iterator[None]:
    """Fail a test that leaves a logger louder or quieter: what a later one hears would depend on the order."""
    before = _levels()
    yield
    assert _levels() == before


def _levels() -> dict[str, int]:
    known = logging.root.manager.loggerDict.items()
    levels = {name: logger.level for name, logger in known if isinstance(logger, logging.Logger)}
    return {"": logging.root.level} | {name: level for name, level in levels.items() if level}

from collections.abc import Iterator

import pytest

from doubles.scripted import Bench, SimulatedBench, ThreadedBench, Watcher


@pytest.fixture(params=["threads", "simulation", "simulation with another seed"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A runtime with a watcher, once of each kind: what is tested with it holds for both."""
    bench: Bench
    match request.param:
        case "threads":
            bench = ThreadedBench()
        case "simulation":
            bench = SimulatedBench(seed=1)
        case _:
            bench = SimulatedBench(seed=2)
    bench.spawn("watcher", Watcher(bench.recorder))
    yield bench
    assert bench.stop() == ()


@pytest.fixture
def threads() -> Iterator[ThreadedBench]:
    """A threaded runtime with a watcher."""
    bench = ThreadedBench()
    bench.spawn("watcher", Watcher(bench.recorder))
    yield bench
    assert bench.stop() == ()


@pytest.fixture
def simulation() -> SimulatedBench:
    """A simulated runtime with a watcher."""
    bench = SimulatedBench(seed=1)
    bench.spawn("watcher", Watcher(bench.recorder))
    return bench

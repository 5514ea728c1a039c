"""Lives of a LfcManager over a store that outlives them: any order of ticks, requests, faults, crashes, restarts."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from compute_node.actors.kit.actor import Actor, Pending, Ref
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.lfc_manager.actor import LfcManager
from compute_node.actors.lfc_manager.port import CacheError, StoreError
from compute_node.messages.lfc import (
    CacheLost,
    CancelPrewarm,
    FollowSpec,
    GetOffload,
    GetPrewarm,
    LastOffloadEnded,
    LfcAccepted,
    Offload,
    OffloadLast,
    OffloadStatus,
    Prewarm,
    PrewarmStatus,
    StopLfc,
)
from compute_node.messages.spec import ComputeSpec
from typing_extensions import override

from doubles.lfc import FakeCache, FakeStore, body_of
from doubles.specs import a_spec, settings
from simulation.lives import FoundError, silence

OWN: Final = "compute-1"
OTHER: Final = "compute-2"
PAGES: Final = 30
STEPS: Final = 120
"""In one life."""
SETTLES_S: Final = 30.0
"""Longer than all attempts of a prewarm."""


class _Supervisor(Actor[LastOffloadEnded]):
    def __init__(self) -> None:
        self.ended: list[LastOffloadEnded] = []

    @override
    def receive(self, message: LastOffloadEnded) -> None:
        self.ended.append(message)


class CacheWorld:
    """One store, and one life after the other of a cache and its manager."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.runtime = SimulatedRuntime(seed)
        self.random = self.runtime.random
        self.store = FakeStore()
        self.store.kept[OTHER] = body_of(range(0, PAGES, 2))
        self.lives = 0

    def begin(self, spec: ComputeSpec) -> None:
        """Begin a life: another process, another Postgres with a cold cache."""
        if self.lives:
            self.runtime = SimulatedRuntime(self.seed, continuing=self.runtime)
        self.lives += 1
        self.store.missed.clear()
        self.cache = FakeCache([self.random.randrange(PAGES)])
        self.cache.at_once = self.random.choice([1, 3, PAGES])
        self.supervisor = _Supervisor()
        listener: Ref[Any] = self.runtime.spawn("supervisor", self.supervisor)
        self.manager = LfcManager(settings(lfc_store="/lfc"), listener, self.cache, self.store)
        self.ref: Ref[Any] = self.runtime.spawn("lfc_manager", self.manager)
        self.runtime.after_step = self._check
        self.ref.tell(FollowSpec(spec, starting=True))

    def _check(self) -> None:
        assert not self.store.violations, self.store.violations[0]
        state = self.manager.state
        assert (state.warming is not None) is (state.prewarm.status is PrewarmStatus.PREWARMING)
        assert (state.saving is not None) is (state.offload.status is OffloadStatus.OFFLOADING)

    def some_spec(self) -> ComputeSpec:
        return a_spec(
            autoprewarm=self.random.random() < 0.8,
            offload_lfc_interval_seconds=self.random.choice([None, 1, 1, 3]),
        )

    def act(self) -> None:
        """Let somebody do something, drawn from the seed; nobody forces anything."""
        choice = self.random.choice
        actions: list[Callable[[], object]] = [
            lambda: self.ref.tell(
                choice([Prewarm(), Prewarm(), Prewarm(OWN), Prewarm("nobody"), Prewarm(OTHER)])
            ),
            lambda: self.ref.tell(CancelPrewarm()),
            lambda: self.ref.tell(Offload()),
            lambda: self.ref.tell(choice([GetPrewarm(), GetOffload()])),
            lambda: self.ref.tell(FollowSpec(self.some_spec(), starting=False)),
            lambda: self.cache.pages.update(self.random.randrange(PAGES) for _ in range(5)),
            lambda: setattr(self.store, "failure", StoreError("no", transient=choice([True, False]))),
            lambda: setattr(self.store, "held", True),
            lambda: setattr(self.cache, "held", True),
            lambda: setattr(self.cache, "failure", CacheError("no")),
            lambda: setattr(self.cache, "fails_after", self.random.randrange(PAGES)),
            self.crash_postgres,
            self.mend,
            self.mend,
        ]
        choice(actions)()

    def crash_postgres(self) -> None:
        """Empty the cache; the Supervisor, which hears of it from the monitor, says so later."""
        was_warmed = self.cache.was_loaded or OWN in self.store.missed
        self.cache.crash([self.random.randrange(PAGES)], was_warmed=was_warmed)
        self.runtime.later(self.random.choice([0.0, 0.5, 3.0]), partial(self.ref.tell, CacheLost()))

    def mend(self) -> None:
        """Let everything work again."""
        self.store.failure, self.store.held = None, False
        self.cache.failure, self.cache.held, self.cache.fails_after = None, False, None

    def live_on(self) -> None:
        """Live a life of a drawn length; then it is over from one moment to the next, or in order."""
        for _ in range(self.random.randrange(STEPS)):
            if self.random.random() < 0.15:
                self.act()
            elif not self.runtime.step():
                break
        if self.random.random() < 0.3:
            self._end()

    def _end(self) -> None:
        last = self.random.random() < 0.5
        self.mend()
        self.ref.tell(OffloadLast() if last else StopLfc())
        self.runtime.advance(SETTLES_S)
        assert self.supervisor.ended or not last, "nobody was told of the last offload"
        self.ref.tell(StopLfc())
        self.runtime.settle()
        assert self.manager.state.warming is None, "a prewarm outlives the stop"
        assert self.manager.state.saving is None, "an offload outlives the stop"

    def come_right(self) -> None:
        """See that after all faults a prewarm completes, and an offload is saved."""
        self.mend()
        self.cache.at_once = PAGES
        self.ref.tell(FollowSpec(a_spec(), starting=False))
        self.runtime.advance(SETTLES_S)
        prewarm: Pending[Any] = self.ref.request(Prewarm())
        self.runtime.advance(SETTLES_S)
        assert prewarm.get(0) == LfcAccepted()
        assert self.manager.state.prewarm.status in {PrewarmStatus.COMPLETED, PrewarmStatus.SKIPPED}
        offload: Pending[Any] = self.ref.request(Offload())
        self.runtime.advance(SETTLES_S)
        assert offload.get(0) == LfcAccepted()
        assert self.store.pages(OWN) == sorted(self.cache.pages)


def check_cache(seed: int) -> None:
    """Live all the lives of a seed. Raises FoundError."""
    world = CacheWorld(seed)
    try:
        with silence():
            for _ in range(world.random.choice([1, 2, 4])):
                world.begin(world.some_spec())
                world.live_on()
            world.begin(world.some_spec())
            world.come_right()
    except AssertionError as error:
        raise FoundError(seed, error, world.runtime.trace, "test_lfc_manager.py") from error

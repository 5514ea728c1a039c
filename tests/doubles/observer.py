"""A Postgres as the ActivityMonitor sees it, for the simulated runtime."""

from compute_node.actors.activity_monitor.checks import Readings, Sessions
from compute_node.actors.activity_monitor.port import Observer
from compute_node.actors.activity_monitor.reach import Observation, Reach
from compute_node.actors.kit.clock import Clock
from compute_node.actors.kit.jobs import Blocked, Cancellation
from typing_extensions import override

ACTIVE = Readings(sessions=(Sessions(own=False, state="active", count=1, changed_at_s=0.0),))


class FakeObserver(Observer):
    """Reports what the test set; a look takes `takes_s` on the simulated clock."""

    def __init__(self, clock: Clock) -> None:
        self.reach = Reach.UP
        self.readings: Readings | None = Readings()
        self.takes_s = 0.0
        self.broken: Exception | None = None
        self.connected = False
        self.looks = 0
        self.probes: list[bool] = []
        self.experimental: list[bool] = []
        self.generations: list[int] = []
        self._clock = clock
        self._began_s: float | None = None

    @override
    def observe(
        self, generation: int, *, experimental: bool, probe: bool, cancellation: Cancellation
    ) -> Observation:
        if cancellation.requested:
            self._began_s = None
            self.connected = False
            cancellation.check()
        if self._began_s is None:
            self._began_s = self._clock.now()
        if self._clock.now() < self._began_s + self.takes_s:
            raise Blocked
        self._began_s = None
        if self.broken is not None:
            raise self.broken
        self.looks += 1
        self.probes.append(probe)
        self.experimental.append(experimental)
        self.generations.append(generation)
        self.connected = self.reach in {Reach.UP, Reach.FROZEN}
        readings = self.readings if self.connected else None
        return Observation(self.reach, f"the double says {self.reach.value}", readings)

    @override
    def close(self) -> None:
        self.connected = False

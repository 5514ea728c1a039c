"""Looks at Postgres twice a second while it is meant to run, and says what it saw."""

import logging
from typing import ClassVar, Final, TypeAlias, assert_never

from msgspec.structs import replace
from typing_extensions import override

from ...messages.activity import ActivityObserved, StartMonitoring, StopMonitoring
from ...messages.base import Message
from ...messages.failpoints import Failpoint
from ...messages.lifecycle import Condition, ConditionCleared, ConditionRaised
from ...messages.metrics import CRASH_RESTARTS, CURRENT_DOWNTIME, DOWNTIME_TOTAL
from ...messages.settings import NodeSettings
from ..kit.actor import Actor, Guard, Ref
from ..kit.jobs import Cancellation, CancelledError, Job
from . import downtime
from .checks import Memory, remember
from .observer import PostgresObserver
from .outcomes import Disconnected, JobBrokenOff, LookAgain, Observed
from .port import Observer
from .reach import CONDITIONS, DOWN, Health, Observation, Reach, has_crashed, learn

PERIOD_S: Final = 0.5
"""From the end of one look to the beginning of the next."""
PROBE_EVERY: Final = 2
"""While all is well every second look also makes a new connection; otherwise each does."""
REPORT_S: Final = 10.0
"""How often an outage that lasts is logged again."""

MonitorMessage: TypeAlias = (
    StartMonitoring | StopMonitoring | LookAgain | Observed | Disconnected | JobBrokenOff
)
ToSupervisor: TypeAlias = ActivityObserved | ConditionRaised | ConditionCleared

log = logging.getLogger("compute_node.activity_monitor")


class ActivityMonitor(Actor[MonitorMessage]):
    """Owns one connection and the downtime clock. One job at a time: a look, or closing the connection."""

    max_jobs: ClassVar[int] = 1

    def __init__(
        self, settings: NodeSettings, supervisor: Ref[ToSupervisor], observer: Observer | None = None
    ) -> None:
        self._supervisor = supervisor
        self._observer: Observer = observer or PostgresObserver(settings.connstr.reveal())
        self._monitoring = False
        self._experimental = False
        self._generation = 0
        self._looks = 0
        self._job: Job | None = None
        self._connected = False
        self._pause: Guard | None = None
        self._memory = Memory()
        self._health = Health(Reach.UP, "", 0.0)
        self._account = downtime.begin(0.0)
        self._reported_s: float | None = None
        self._raised: ConditionRaised | None = None

    @override
    def receive(self, message: MonitorMessage) -> None:
        match message:
            case StartMonitoring():
                self._start(message)
            case StopMonitoring():
                self._stop()
            case LookAgain():
                self._look()
            case Observed():
                self._job = None
                if self._monitoring and message.generation == self._generation:
                    self._take_in(message.observation)
                    self._pause = self.timers.after(PERIOD_S, LookAgain())
                else:
                    self._go_on()
            case Disconnected():
                self._job = None
                self._connected = False
                self._go_on()
            case JobBrokenOff():
                self._job = None
                self._go_on()
            case _:
                assert_never(message)

    # --- Beginning and end

    def _start(self, message: StartMonitoring) -> None:
        now = self.clock.now()
        if not self._monitoring:
            self._monitoring = True
            self._health = Health(Reach.UP, "", now)
            self._account = downtime.begin(now, self._account.total_ms)
        self._health = replace(self._health, server_began_s=None)
        self._experimental = message.experimental
        self._memory = Memory(last=self._memory.last)
        self._begin_generation()

    def _stop(self) -> None:
        if not self._monitoring:
            return
        self._monitoring = False
        self._reported_s = None
        self._show_condition(None)
        self.metrics.set(CURRENT_DOWNTIME, 0)
        self._begin_generation()

    def _begin_generation(self) -> None:
        self._generation += 1
        self._looks = 0
        if self._pause is not None:
            self._pause.cancel()
        if self._job is not None:
            self._job.cancel()
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self._monitoring:
            self._look()
        elif self._connected:
            self._job = self.start_job("disconnect", self._close, failed=_only_cancelled)

    # --- Looking

    def _look(self) -> None:
        generation, experimental = self._generation, self._experimental
        probe = self._health.reach is not Reach.UP or self._looks % PROBE_EVERY == 0
        self._looks += 1
        self._connected = True

        def work(cancellation: Cancellation) -> Message:
            cancellation.reach(Failpoint.OBSERVE)
            return Observed(
                generation,
                self._observer.observe(
                    generation, experimental=experimental, probe=probe, cancellation=cancellation
                ),
            )

        self._job = self.start_job("look", work, failed=_only_cancelled)

    def _close(self, _: Cancellation) -> Message:
        self._observer.close()
        return Disconnected()

    def _take_in(self, observation: Observation) -> None:
        now = self.clock.now()
        before, self._health = self._health, learn(self._health, observation, now)
        self.metrics.add(CRASH_RESTARTS, has_crashed(before, self._health))
        self._count(observation, now)
        self._report(before, now)
        condition = CONDITIONS.get(self._health.reach)
        self._show_condition(None if condition is None else ConditionRaised(condition, self._health.detail))
        if observation.readings is not None:
            last = self._memory.last
            self._memory = remember(self._memory, observation.readings, self.clock.wall())
            if self._memory.last is not None and self._memory.last != last:
                self._supervisor.tell(ActivityObserved(self._memory.last.at_s, self._memory.last.reason))

    def _count(self, observation: Observation, now: float) -> None:
        before = self._account.total_ms
        if self._health.reach in DOWN:
            self._account = downtime.seen_down(self._account, now)
        elif observation.reach is Reach.UP:
            self._account = downtime.seen_up(self._account, now)
        self.metrics.add(DOWNTIME_TOTAL, self._account.total_ms - before)
        self.metrics.set(CURRENT_DOWNTIME, self._account.current_ms)

    def _report(self, before: Health, now: float) -> None:
        health = self._health
        if health.reach in DOWN:
            due = self._reported_s is None or now - self._reported_s >= REPORT_S
            if due or health.reach is not before.reach:
                self._reported_s = now
                log.warning("Postgres is %s: %s; %s", health.reach.value, health.detail, self._info())
        elif self._reported_s is not None:
            self._reported_s = None
            log.info("Postgres is up again; %s", self._info())

    def _info(self) -> str:
        account = self._account
        return f"downtime_info: current_ms={account.current_ms:.0f} total_ms={account.total_ms:.0f}"

    def _show_condition(self, raised: ConditionRaised | None) -> None:
        if raised == self._raised:
            return
        old: Condition | None = None if self._raised is None else self._raised.condition
        if old is not None and (raised is None or raised.condition is not old):
            self._supervisor.tell(ConditionCleared(old))
        if raised is not None:
            self._supervisor.tell(raised)
        self._raised = raised


def _only_cancelled(error: Exception) -> Message:
    """Take a cancelled job as ended; whatever else a job raises is a fault of this program."""
    if isinstance(error, CancelledError):
        return JobBrokenOff()
    raise error

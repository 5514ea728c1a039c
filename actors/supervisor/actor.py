"""The Supervisor: interprets its own decisions, and answers what only reads."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias

from typing_extensions import override

from ...messages.activity import ActivityObserved
from ...messages.base import Message, Request
from ...messages.catalog import ApplyFailed, CheckpointEnded, SpecApplied
from ...messages.failpoints import Failpoint
from ...messages.lease import LeaseRefused
from ...messages.lfc import LastOffloadEnded
from ...messages.lifecycle import (
    ActorFailed,
    AwaitExit,
    Boot,
    ConditionCleared,
    ConditionRaised,
    Configure,
    GetJournal,
    GetReadiness,
    GetStartupMetrics,
    GetStatus,
    RefreshConfiguration,
    RereadConfiguration,
    SignalReceived,
    StatusChanged,
    Terminate,
)
from ...messages.metrics import CONDITION, CONTROL_PLANE_REQUESTS, PAGESTREAM_ERRORS, STOP_RUNGS, UP
from ...messages.planning import GetSpec, SpecInForce
from ...messages.postgres import (
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    PgdataFailed,
    PgdataInspected,
    PgdataPrepared,
    PgdataRefused,
    PostgresExited,
    PostgresReady,
    PostgresStartFailed,
    PostgresStopped,
    SafekeepersSynced,
    SafekeeperSyncFailed,
)
from ...messages.promotion import PostgresPromoted, PostgresPromotionFailed, Promote
from ...messages.serving import ServingFailed, ServingStarted, ServingStopped
from ...messages.settings import NodeSettings
from ...messages.spec import ComputeSpec
from ...messages.vm import VmPreparationFailed, VmPrepared
from ..kit.actor import Actor, Ref, Replier
from ..kit.effects import After, Log, Never, Reminders
from ..kit.jobs import Cancellation, describe
from ..kit.turn import Moment
from .decisions import decide
from .effects import Answer, DumpJournal, Effect, Publish, ReadConfiguration, Tell
from .private import (
    CheckpointOverdue,
    ClosingOverdue,
    ConfigurationGraceEnded,
    ConfigurationReread,
    HeadStartEnded,
    LingerEnded,
    RefreshDue,
    StopOverdue,
    SyncOverdue,
)
from .state import NodeState, node_status, readiness

SupervisorMessage: TypeAlias = (
    ActivityObserved
    | ActorFailed
    | ApplyFailed
    | AwaitExit
    | Boot
    | CheckpointEnded
    | CheckpointOverdue
    | ClosingOverdue
    | ConditionCleared
    | ConditionRaised
    | ConfigurationAccepted
    | ConfigurationGraceEnded
    | ConfigurationInstalled
    | ConfigurationInstallFailed
    | ConfigurationRefused
    | ConfigurationReread
    | Configure
    | GetJournal
    | GetReadiness
    | GetSpec
    | GetStartupMetrics
    | GetStatus
    | HeadStartEnded
    | LastOffloadEnded
    | LeaseRefused
    | LingerEnded
    | PgdataFailed
    | PgdataInspected
    | PgdataPrepared
    | PgdataRefused
    | PostgresExited
    | PostgresPromoted
    | PostgresPromotionFailed
    | PostgresReady
    | PostgresStartFailed
    | PostgresStopped
    | Promote
    | RefreshConfiguration
    | RefreshDue
    | RereadConfiguration
    | SafekeeperSyncFailed
    | SafekeepersSynced
    | ServingFailed
    | ServingStarted
    | ServingStopped
    | SignalReceived
    | SpecApplied
    | StopOverdue
    | SyncOverdue
    | Terminate
    | VmPreparationFailed
    | VmPrepared
)

ReadSpec: TypeAlias = Callable[[Cancellation, Callable[[str], None]], ComputeSpec | None]
"""Gets the spec again from file or control plane, whose every `http_status` is told to the callable; may raise."""

GET_CONFIG: Final = "GetConfig"
"""The only call to the control plane, as its metric names it."""
DUMPED_ENTRIES: Final = 100
"""How many of the last messages are written into the log when the node fails."""

log = logging.getLogger("compute_node.supervisor")


class Supervisor(Actor[SupervisorMessage]):
    """Owns the node's state. `others` maps the names of effects.py to the actors that are told.

    `read_spec` gets the spec again from where it came from. `listeners` hear StatusChanged.
    `began` is when the process began: seconds on the monotonic clock and since the epoch.
    """

    max_jobs: ClassVar[int] = 1

    def __init__(
        self,
        settings: NodeSettings,
        others: Mapping[str, Ref[Any]],
        *,
        read_spec: ReadSpec,
        listeners: tuple[Ref[StatusChanged], ...] = (),
        began: Moment,
    ) -> None:
        self._state = NodeState(settings=settings, began_s=began.now_s, began_wall_s=began.wall_s)
        self._others = others
        self._read_spec = read_spec
        self._listeners = listeners
        self._waiters: dict[int, Replier[Any]] = {}
        self._waiter_count = 0
        self._reminders = Reminders()

    @property
    def state(self) -> NodeState:
        """What the Supervisor knows; frozen."""
        return self._state

    @override
    def started(self) -> None:
        self._show()

    @override
    def receive(self, message: SupervisorMessage) -> None:
        match message:
            case GetStatus():
                self.reply(message, node_status(self._state))
            case GetReadiness():
                self.reply(message, readiness(self._state))
            case GetSpec():
                self.reply(message, SpecInForce(self._state.status, self._state.spec))
            case GetStartupMetrics():
                self.reply(message, self._state.startup)
            case GetJournal():
                self.reply(message, self.journal())
            case Configure() | Promote() | RereadConfiguration() | Terminate() | AwaitExit():
                self._decide(message, self._keep(message))
            case RefreshConfiguration():
                self.metrics.add(PAGESTREAM_ERRORS, 1)
                self._decide(message, self._keep(message))
            case PostgresStopped(rung=rung):
                self.metrics.add(STOP_RUNGS, 1, rung.value)
                self._decide(message, None)
            case _:
                self._decide(message, None)

    def _keep(self, request: Request[Any]) -> int:
        self._waiter_count += 1
        self._waiters[self._waiter_count] = self.defer(request)
        return self._waiter_count

    def _decide(self, message: Message, waiter: int | None) -> None:
        before = self._state
        decision = decide(before, message, Moment(self.clock.now(), self.clock.wall()), waiter)
        self._state = decision.state
        if (before.status, before.raised, before.ending) != (
            self._state.status,
            self._state.raised,
            self._state.ending,
        ):
            self._show()
        for effect in decision.effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Tell(to, message):
                self._others[to].tell(message)
            case Publish(message):
                for listener in self._listeners:
                    listener.tell(message)  # type: ignore[arg-type] # StatusChanged is all that is published
            case Answer(waiter, value):
                self._waiters.pop(waiter).answer(value)
            case After() | Never():
                self._reminders.carry_out(effect, self.timers)
            case Log(level, text):
                log.log(level, "%s", text)
            case DumpJournal(level):
                self._dump_journal(level)
            case ReadConfiguration():
                self.start_job(
                    "read the configuration again",
                    partial(self._reread, effect),
                    failed=partial(_not_read, effect),
                )

    def _dump_journal(self, level: int) -> None:
        if not log.isEnabledFor(level):
            return
        for entry in self.journal()[-DUMPED_ENTRIES:]:
            content = bytes(entry.content).decode()
            log.log(
                level,
                "journal %d at %.3f: %s took %.1f ms for %s",
                entry.number,
                entry.at_s,
                entry.actor,
                entry.took_ms,
                content,
            )

    def _reread(self, wish: ReadConfiguration, cancellation: Cancellation) -> ConfigurationReread:
        cancellation.reach(Failpoint.REREAD)
        count = partial(self.metrics.add, CONTROL_PLANE_REQUESTS, 1, GET_CONFIG)
        spec = self._read_spec(cancellation, count)
        return ConfigurationReread(spec=spec, waiters=wish.waiters, refreshes=wish.refreshes)

    def _show(self) -> None:
        """Let the metrics show exactly the current status and conditions."""
        tag = self._state.settings.build_tag
        self.metrics.replace(UP, {(tag, self._state.status.text): 1.0})
        conditions = readiness(self._state).conditions
        self.metrics.replace(CONDITION, {(report.condition.value,): 1.0 for report in conditions})


def _not_read(wish: ReadConfiguration, error: Exception) -> ConfigurationReread:
    return ConfigurationReread(error=describe(error), waiters=wish.waiters, refreshes=wish.refreshes)

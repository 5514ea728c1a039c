"""What the Supervisor does about each message: `decide(state, message) -> (state, effects)`, pure."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ...messages.activity import ActivityObserved
from ...messages.base import Message
from ...messages.catalog import ApplyFailed, CheckpointEnded, SpecApplied
from ...messages.lease import LeaseRefused
from ...messages.lfc import CacheLost, LastOffloadEnded
from ...messages.lifecycle import (
    ActorFailed,
    AwaitExit,
    Boot,
    Condition,
    ConditionCleared,
    ConditionRaised,
    ConditionReport,
    Configure,
    RefreshConfiguration,
    RereadConfiguration,
    SignalReceived,
    Terminate,
)
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
from ...messages.vm import VmPreparationFailed, VmPrepared
from ..kit.turn import Moment
from . import configuring, ending, promoting, refreshing, serving
from .effects import LFC
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
from .state import NodeState
from .turn import Decision, Turn


def decide(state: NodeState, message: Message, moment: Moment, waiter: int | None = None) -> Decision:
    """Say what a message changes and what is to be done about it.

    `waiter` is the number under which the asker of a request is kept; it is answered by an Answer effect.
    """
    turn = Turn(state, moment)
    _HANDLERS[type(message)](turn, message, waiter)
    return Decision(turn.state, tuple(turn.effects))


def activity_observed(turn: Turn, message: ActivityObserved, _: int | None) -> None:
    known = turn.state.last_active_s
    turn.set(last_active_s=message.at_s if known is None else max(known, message.at_s))


def lease_refused(turn: Turn, message: LeaseRefused, _: int | None) -> None:
    if turn.state.lease_asked:
        turn.set(lease_error=message.error)


def condition_raised(turn: Turn, message: ConditionRaised, _: int | None) -> None:
    others = tuple(report for report in turn.state.raised if report.condition is not message.condition)
    turn.set(raised=(*others, ConditionReport(message.condition, message.detail)))


def condition_cleared(turn: Turn, message: ConditionCleared, _: int | None) -> None:
    held = any(report.condition is message.condition for report in turn.state.raised)
    if held and message.condition is Condition.RECOVERING and turn.state.ending is None:
        turn.tell(LFC, CacheLost())
    turn.set(raised=tuple(r for r in turn.state.raised if r.condition is not message.condition))


_Handler: TypeAlias = Callable[[Turn, Any, int | None], None]

_HANDLERS: Final[dict[type[Message], _Handler]] = {
    ActivityObserved: activity_observed,
    ActorFailed: ending.actor_failed,
    ApplyFailed: configuring.apply_failed,
    AwaitExit: serving.await_exit,
    CheckpointEnded: ending.checkpoint_ended,
    CheckpointOverdue: ending.checkpoint_overdue,
    Boot: serving.boot,
    ClosingOverdue: serving.closing_overdue,
    ConditionCleared: condition_cleared,
    ConditionRaised: condition_raised,
    ConfigurationAccepted: configuring.configuration_accepted,
    ConfigurationGraceEnded: ending.configuration_grace_ended,
    ConfigurationInstalled: configuring.configuration_installed,
    ConfigurationInstallFailed: configuring.configuration_install_failed,
    ConfigurationRefused: configuring.configuration_refused,
    ConfigurationReread: configuring.configuration_reread,
    Configure: configuring.configure,
    HeadStartEnded: serving.head_start_ended,
    LastOffloadEnded: ending.last_offload_ended,
    LeaseRefused: lease_refused,
    LingerEnded: serving.linger_ended,
    PgdataFailed: configuring.pgdata_failed,
    PgdataInspected: serving.pgdata_inspected,
    PgdataPrepared: configuring.pgdata_prepared,
    PgdataRefused: serving.pgdata_refused,
    PostgresExited: ending.postgres_exited,
    PostgresPromoted: promoting.postgres_promoted,
    PostgresPromotionFailed: promoting.postgres_promotion_failed,
    PostgresReady: configuring.postgres_ready,
    PostgresStartFailed: configuring.postgres_start_failed,
    PostgresStopped: ending.postgres_stopped,
    Promote: promoting.promote,
    RefreshConfiguration: refreshing.refresh_configuration,
    RefreshDue: refreshing.refresh_due,
    RereadConfiguration: configuring.reread_configuration,
    SafekeeperSyncFailed: ending.safekeeper_sync_failed,
    SafekeepersSynced: ending.safekeepers_synced,
    ServingFailed: serving.serving_failed,
    ServingStarted: serving.serving_started,
    ServingStopped: serving.serving_stopped,
    SignalReceived: ending.signal_received,
    SpecApplied: configuring.spec_applied,
    StopOverdue: ending.stop_overdue,
    SyncOverdue: ending.sync_overdue,
    Terminate: ending.terminate,
    VmPreparationFailed: configuring.vm_preparation_failed,
    VmPrepared: configuring.vm_prepared,
}
"""Every message that changes something; the requests that only read are answered by the actor."""

DECIDED: Final = tuple(_HANDLERS)

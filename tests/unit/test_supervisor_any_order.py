"""What the Supervisor decides, whatever it hears in whatever order, likely or not."""

import random
from collections.abc import Iterator

import pytest
from compute_node.actors.supervisor.effects import CONFIGURATOR, HTTP, LFC, POSTGRES, ReadConfiguration, Tell
from compute_node.actors.supervisor.private import (
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
from compute_node.actors.supervisor.state import Phase, Step
from compute_node.messages.base import Message, Request
from compute_node.messages.catalog import ApplyFailed, ApplySpec, CheckpointEnded, SpecApplied
from compute_node.messages.lease import LeaseRefused
from compute_node.messages.lfc import LastOffloadEnded, OffloadLast, PrewarmStatus
from compute_node.messages.lifecycle import (
    ActorFailed,
    AwaitExit,
    Boot,
    Condition,
    ConditionCleared,
    ConditionRaised,
    Configure,
    RefreshConfiguration,
    RereadConfiguration,
    ShutdownMode,
    SignalReceived,
    Status,
    Terminate,
)
from compute_node.messages.postgres import (
    CheckConfiguration,
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    InstallConfiguration,
    PgdataFailed,
    PgdataInspected,
    PgdataKind,
    PgdataPrepared,
    PostgresExited,
    PostgresReady,
    PostgresStartFailed,
    PostgresStopped,
    PreparePgdata,
    SafekeepersSynced,
    SafekeeperSyncFailed,
    StartPostgres,
    StopPostgres,
    StopRung,
)
from compute_node.messages.promotion import (
    PostgresPromoted,
    PostgresPromotionFailed,
    Promote,
    PromotePostgres,
)
from compute_node.messages.serving import ServingFailed, ServingStarted, ServingStopped
from compute_node.messages.settings import SourceName
from compute_node.messages.vm import VmPreparationFailed, VmPrepared

from doubles.specs import a_spec, with_role
from unit.test_supervisor_decisions import LSN, NEW, REPLICA, Life, neon, pinned

SEEDS = 400
SPECS = (
    a_spec(),
    neon(),
    neon("postgresql://ps2", swap_size_bytes=5),
    REPLICA,
    NEW,
    with_role("a"),
    pinned(),
)
LEAVING = (Phase.CLOSING, Phase.OVER)
RARE = (ActorFailed, ServingFailed, ClosingOverdue, ServingStopped)
"""With them a life is soon over."""
NOT_AFTER_A_STOP = (
    ApplySpec,
    CheckConfiguration,
    InstallConfiguration,
    OffloadLast,
    PreparePgdata,
    PromotePostgres,
    StartPostgres,
)


class Drawn:
    """One life, message by message as a seed says; what holds for every step is looked at after each."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311 - to be drawn again
        draw = self.draw
        self.life = Life(
            lfc_offload_on_stop=draw.random() < 0.5,
            control_plane_uri=draw.choice([None, "http://plane"]),
            config_path=draw.choice([None, "/config.json"]),
            source=draw.choice(list(SourceName)),
            autoscaling=draw.random() < 0.3,
            resize_swap=draw.random() < 0.3,
            dev=draw.random() < 0.2,
        )
        self.asked: dict[int, Message] = {}
        self.reading: list[ReadConfiguration] = []
        self.is_stopped = False

    def hear(self, message: Message) -> None:
        if isinstance(message, ConfigurationReread):
            self.reading.pop(0)
        before = self.life.state
        waiter = self.life.hear(message)
        after = self.life.state
        if isinstance(message, Request):
            self.asked[waiter] = message
        if before.phase in LEAVING:
            assert after.phase in LEAVING[LEAVING.index(before.phase) :], message
        assert before.status is not Status.TERMINATED or after.status is Status.TERMINATED
        assert after.exit_code != 0 or before.exit_code == 0
        for effect in self.life.effects:
            if isinstance(effect, ReadConfiguration):
                self.reading.append(effect)
            elif isinstance(effect, Tell):
                assert not (self.is_stopped and isinstance(effect.message, NOT_AFTER_A_STOP)), message
                self.is_stopped |= isinstance(effect.message, StopPostgres)

    def live(self) -> None:
        self.hear(Boot(self.draw.choice([None, *SPECS])))
        self.hear(PgdataInspected(PgdataKind.ABSENT))
        for _ in range(self.draw.randrange(60)):
            self.life.now_s += self.draw.choice([0.0, 0.1, 1.0, 6.0])
            answers = tuple(self.answers())
            if answers and self.draw.random() < 0.6:
                self.hear(self.draw.choice(answers))
                continue
            message = self.draw.choice(tuple(self.others()))
            if self.may_come(message) and (not isinstance(message, RARE) or self.draw.random() < 0.4):
                self.hear(message)

    def end(self) -> None:
        for _ in range(8):
            for message in (
                SignalReceived("SIGTERM"),
                CheckpointOverdue(),
                ConfigurationGraceEnded(),
                PostgresStopped(StopRung.FAST),
                SyncOverdue(),
                LingerEnded(),
                ServingStopped(),
            ):
                if self.may_come(message):
                    self.hear(message)
        while self.reading:
            reading = self.reading[0]
            self.hear(ConfigurationReread(error="no", waiters=reading.waiters, refreshes=reading.refreshes))

    def may_come(self, message: Message) -> bool:
        """Whether anybody has a reason to say that."""
        match message:
            case LingerEnded():
                return self.life.state.phase is Phase.LINGERING
            case PostgresExited():
                return self.life.state.postgres_up
            case StopOverdue() | PostgresStopped():
                return self.is_stopped
            case _:
                return True

    def answers(self) -> Iterator[Message]:
        """Say what may come of what is under way; now and then of what was before."""
        n = self.life.operation - (self.draw.random() < 0.05)
        if self.life.state.attempt is not None:
            yield from {
                Step.CHECKING: (
                    ConfigurationAccepted(n),
                    ConfigurationRefused(n, "no"),
                    PgdataPrepared(n, kept=False, took_ms=1),
                    VmPrepared(n),
                ),
                Step.PREPARING: (
                    PgdataPrepared(n, kept=False, took_ms=1),
                    PgdataFailed(n, "no"),
                    VmPrepared(n),
                    VmPreparationFailed(n, "no"),
                ),
                Step.STARTING: (PostgresReady(n, 4, 4), PostgresStartFailed(n, "no")),
                Step.INSTALLING: (ConfigurationInstalled(n), ConfigurationInstallFailed(n, "no")),
                Step.APPLYING: (SpecApplied(n, 1, 1), ApplyFailed(n, "no")),
                Step.ABORTING: (PostgresStopped(StopRung.FAST),),
            }[self.life.state.attempt.step]
        if self.life.state.promotion is not None:
            yield from (PostgresPromoted(n, 1, 1), PostgresPromotionFailed(n, "no"))
            yield from (ConfigurationAccepted(n), ConfigurationRefused(n, "no"))
        if self.reading:
            reading = self.reading[0]
            spec = self.draw.choice([None, *SPECS])
            yield ConfigurationReread(spec=spec, waiters=reading.waiters, refreshes=reading.refreshes)

    def others(self) -> Iterator[Message]:
        """Say what may come at any time."""
        draw = self.draw
        yield Configure(draw.choice(SPECS))
        yield Promote(LSN, draw.choice([NEW, a_spec()]), prewarm=PrewarmStatus.COMPLETED)
        yield Promote(LSN, safekeepers="sk:1", prewarm=PrewarmStatus.COMPLETED)
        yield from (RefreshConfiguration(), RefreshDue(), RereadConfiguration(), AwaitExit())
        yield from (Terminate(draw.choice(list(ShutdownMode))), SignalReceived("SIGTERM"))
        yield from (PostgresStopped(draw.choice(list(StopRung))), PostgresExited("it fell"))
        yield from (CheckpointEnded(), LastOffloadEnded(), CheckpointOverdue(), ConfigurationGraceEnded())
        yield from (StopOverdue(), SyncOverdue(), SafekeepersSynced("0/1", 1), SafekeeperSyncFailed("no"))
        yield from (ServingStarted(1, 2), ServingFailed("no"), ServingStopped(), HeadStartEnded())
        yield from (LingerEnded(), ClosingOverdue(), LeaseRefused("no"))
        yield from (ConditionRaised(Condition.RECOVERING), ConditionCleared(Condition.RECOVERING))
        yield ActorFailed(draw.choice([POSTGRES, HTTP, LFC, CONFIGURATOR]), "KeyError")


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_whatever_is_heard_the_node_ends_in_order_and_whoever_asked_is_answered_once(first: int) -> None:
    for seed in range(first, first + 100):
        drawn = Drawn(seed)
        drawn.live()
        drawn.end()
        assert drawn.life.state.phase is Phase.OVER, seed
        left = [message for waiter, message in drawn.asked.items() if waiter not in drawn.life.answers]
        assert left == [], seed

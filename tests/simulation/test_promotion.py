"""Promotions of a node whose Postgres lives in memory: whoever asks, leaves, or ends the node meanwhile."""

from typing import Any

import pytest
from compute_node.actors.kit.actor import Actor, Pending, Ref
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.kit.turn import Moment
from compute_node.actors.postgres_process.actor import PostgresProcess
from compute_node.actors.supervisor.actor import Supervisor
from compute_node.actors.supervisor.effects import CONFIGURATOR, HTTP, LFC, MONITOR, POSTGRES
from compute_node.messages.base import Message
from compute_node.messages.catalog import ApplyFailed, ApplySpec, SpecApplied
from compute_node.messages.lfc import LastOffloadEnded, OffloadLast
from compute_node.messages.lifecycle import Boot, Configure, ConfigureRefused, ShutdownMode, Status, Terminate
from compute_node.messages.promotion import Promote, Promoted, PromoteFailed, PromoteRefused
from compute_node.messages.serving import ServingStarted, ServingStopped, StartServing, StopServing
from compute_node.messages.settings import SourceName
from typing_extensions import override

from doubles.postgres_server import FakeServer, Faults
from doubles.scripted import Note
from doubles.specs import a_spec, settings, with_role

SEEDS = range(30)
LSN = "0/28F10D8"
REPLICA = a_spec(mode="Replica")
NEW = with_role("a")
BY_SPEC = Promote(LSN, NEW)
BY_FORM = Promote(LSN, safekeepers="sk1:1")
REQUESTS = pytest.mark.parametrize("request_", [BY_SPEC, BY_FORM], ids=["by spec", "by form"])


class Neighbour(Actor[Message]):
    """Every other actor of a node, as far as the Supervisor waits for it; `refuses` an application with a text."""

    refuses: str | None = None

    def __init__(self, supervisor: Ref[Any]) -> None:
        self._supervisor = supervisor

    @override
    def started(self) -> None:
        self.timers.every(0.05, Note("tick"))

    @override
    def receive(self, message: Message) -> None:
        match message:
            case ApplySpec(operation) if Neighbour.refuses is not None:
                self._supervisor.tell(ApplyFailed(operation, Neighbour.refuses))
            case ApplySpec(operation):
                self._supervisor.tell(SpecApplied(operation, 1, 1))
            case StartServing():
                self._supervisor.tell(ServingStarted(1, 2))
            case StopServing():
                self._supervisor.tell(ServingStopped())
            case OffloadLast():
                self._supervisor.tell(LastOffloadEnded())
            case _:
                pass


class House:
    """A replica that runs."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.runtime = SimulatedRuntime(seed)
        self.faults = faults or Faults()
        self.server = FakeServer(self.runtime.clock, self.faults)
        node = settings(source=SourceName.UPSTREAM, dev=True)
        self.ref = self.runtime.ref("supervisor")
        names = (POSTGRES, CONFIGURATOR, MONITOR, HTTP, LFC)
        self.supervisor = Supervisor(
            node,
            {name: self.runtime.ref(name) for name in names},
            read_spec=lambda *_: None,
            began=Moment(self.runtime.clock.now(), self.runtime.clock.wall()),
        )
        self.runtime.spawn("supervisor", self.supervisor)
        self.runtime.spawn(POSTGRES, PostgresProcess(node, self.ref, self.server))
        for name in names[1:]:
            self.runtime.spawn(name, Neighbour(self.ref))
        self.ref.tell(Boot(REPLICA))
        self.until(lambda: self.status is Status.RUNNING)

    @property
    def status(self) -> Status:
        return self.supervisor.state.status

    def until(self, condition: Any) -> None:
        self.runtime.run(until=condition)
        assert not self.runtime.abandoned, self.runtime.abandoned

    def ask(self, *requests: Any) -> list[Any]:
        """Ask all at once and wait for all answers."""
        pending: list[Pending[Any]] = [self.ref.request(request) for request in requests]
        self.until(lambda: all(one.done for one in pending))
        return [one.get(0) for one in pending]


@pytest.fixture(autouse=True)
def applies() -> None:
    Neighbour.refuses = None


@REQUESTS
@pytest.mark.parametrize("seed", SEEDS)
def test_all_who_ask_the_same_share_one_promotion_whether_they_stay_or_leave(
    seed: int, request_: Promote
) -> None:
    house = House(seed, Faults(promote_takes_s=2.0, settle_takes_s=0.5))
    house.ref.request(request_)  # whoever asked first has left, and nobody reads the answer
    answers = house.ask(request_, request_, Configure(with_role("b")))
    assert answers[0] == answers[1]
    assert isinstance(answers[0], Promoted)
    assert isinstance(answers[2], ConfigureRefused)
    assert [lsn for _, lsn in house.server.promoted] == [LSN]
    spec = house.supervisor.state.spec
    assert spec is not None
    assert (spec.mode, house.status) == ("Primary", Status.RUNNING)
    assert house.server.installed == ([NEW] if request_.spec is not None else [])
    assert house.ask(request_) == answers[:1]


@REQUESTS
@pytest.mark.parametrize("seed", SEEDS)
def test_what_failed_goes_on_when_it_is_asked_for_again(seed: int, request_: Promote) -> None:
    house = House(seed, Faults(promote_refused="didn't catch up"))
    assert house.ask(request_) == [PromoteFailed("didn't catch up")]
    house.faults.promote_refused = None
    if request_.spec is not None:
        Neighbour.refuses = "no"
        (failed,) = house.ask(request_)
        assert "its spec is not applied: no" in failed.error
        Neighbour.refuses = None
    (done,) = house.ask(request_)
    assert isinstance(done, Promoted)
    assert house.status is Status.RUNNING


@REQUESTS
@pytest.mark.parametrize("seed", SEEDS)
def test_a_promotion_is_answered_when_the_node_ends_at_any_moment_of_it(seed: int, request_: Promote) -> None:
    house = House(seed, Faults(promote_takes_s=1.0, install_takes_s=1.0))
    pending = house.ref.request(request_)
    for _ in range(seed):
        house.runtime.step()
    if seed % 2:
        house.server.crash()
    else:
        house.ref.request(Terminate(ShutdownMode.IMMEDIATE))
    house.until(lambda: pending.done)
    assert isinstance(pending.get(0), (Promoted, PromoteFailed, PromoteRefused))
    assert house.supervisor.state.promotion is None

"""The LSN lease over pageservers in memory: the clock of renewals, refusals, failures, and changes of what is held."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from compute_node.actors.kit.actor import Actor, Ref
from compute_node.actors.kit.jobs import Blocked, Cancellation
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.actors.lsn_lease.actor import LsnLease
from compute_node.actors.lsn_lease.port import Answer, Failed, Granted, Pageservers, Refused, Wanted
from compute_node.actors.lsn_lease.rules import FACTOR, FIRST_PAUSE_S, LATEST_S, LONGEST_PAUSE_S, SOONEST_S
from compute_node.messages.base import Message
from compute_node.messages.lease import KeepLease, LeaseRefused, ReleaseLease
from compute_node.messages.metrics import LEASE_REQUESTS, LEASE_VALID_UNTIL
from compute_node.messages.secret import Secret
from compute_node.messages.spec import ComputeSpec, StaticMode
from typing_extensions import override

from doubles.specs import a_spec


@dataclass
class FakePageservers(Pageservers):
    """Grants leases of `length_s`, unless it is told to do otherwise; `held` lets nobody through."""

    runtime: SimulatedRuntime
    length_s: float = 600.0
    answers: list[Answer] = field(default_factory=list)
    """What is answered next, before all else."""
    held: bool = False
    asked: list[tuple[float, Wanted]] = field(default_factory=list)

    @override
    def request(self, wanted: Wanted, cancellation: Cancellation) -> Answer:
        cancellation.check()
        if self.held:
            raise Blocked
        clock = self.runtime.clock
        self.asked.append((clock.now(), wanted))
        wall_s = clock.wall() - clock.wall_is_off_by_s  # theirs is right
        return self.answers.pop(0) if self.answers else Granted(round((wall_s + self.length_s) * 1000))


class Listener(Actor[Message]):
    """A Supervisor that only listens."""

    def __init__(self) -> None:
        self.told: list[Message] = []

    @override
    def receive(self, message: Message) -> None:
        self.told.append(message)


class World:
    """One LsnLease."""

    def __init__(self) -> None:
        self.runtime = SimulatedRuntime(1)
        self.pageservers = FakePageservers(self.runtime)
        self.listener = Listener()
        self.runtime.spawn("supervisor", self.listener)
        self.actor = LsnLease(self.runtime.ref("supervisor"), self.pageservers)
        self.lease: Ref[Any] = self.runtime.spawn("lease", self.actor)

    def keep(self, spec: ComputeSpec) -> None:
        self.lease.tell(KeepLease(spec))
        self.runtime.settle()

    def pauses(self, seconds: float) -> list[float]:
        """Let time pass; return how long it was each time from one request to the next."""
        self.runtime.advance(seconds)
        times = [at_s for at_s, _ in self.pageservers.asked]
        return [after - before for before, after in pairwise(times)]

    @property
    def valid_until_s(self) -> float:
        return self.runtime.metrics.read(LEASE_VALID_UNTIL)[()]


def static(lsn: str = "0/169ad58", url: str = "postgresql://ps1", **changes: Any) -> ComputeSpec:
    fields = {
        "mode": StaticMode(lsn),
        "tenant_id": "1" * 32,
        "timeline_id": "2" * 32,
        "pageserver_connstring": Secret(url),
    }
    return a_spec(**(fields | changes))


@pytest.fixture
def world() -> Iterator[World]:
    """A lease that nobody wants yet."""
    world = World()
    yield world
    assert not world.runtime.abandoned


@pytest.mark.parametrize(
    ("length_s", "pause_s"), [(600.0, 300.0), (8.0, 4.0), (3600.0, LATEST_S), (0.5, SOONEST_S), (-60.0, 1.0)]
)
def test_a_lease_is_renewed_at_half_time_whatever_our_clock_says(
    world: World, length_s: float, pause_s: float
) -> None:
    world.pageservers.length_s = length_s
    world.keep(static())
    assert world.pauses(3.5 * pause_s) == pytest.approx([pause_s] * 3, abs=0.01)


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_short_lease_is_renewed_at_half_time_also_after_our_clock_has_jumped(
    world: World, jump_s: float
) -> None:
    world.pageservers.length_s = 8.0
    world.keep(static())
    world.runtime.clock.wall_is_off_by_s = jump_s
    assert world.pauses(20) == pytest.approx([4.0] * 5, abs=0.01)


@pytest.mark.parametrize("off_by_s", [-3600.0, 3600.0])
def test_a_clock_that_was_wrong_at_first_is_believed_once_it_is_right(world: World, off_by_s: float) -> None:
    world.pageservers.length_s = 8.0
    world.runtime.clock.wall_is_off_by_s = off_by_s
    world.keep(static())
    world.runtime.clock.wall_is_off_by_s = 0.0
    world.runtime.advance(LATEST_S + 1)
    assert world.pauses(20)[-4:] == pytest.approx([4.0] * 4, abs=0.01)


def test_what_is_held_is_the_lsn_of_the_mode_in_its_usual_form(world: World) -> None:
    world.keep(static("0/169ad58", storage_auth_token=Secret("canary")))
    ((_, wanted),) = world.pageservers.asked
    assert (wanted.lsn, wanted.storage.tenant_id, wanted.token) == ("0/169AD58", "1" * 32, Secret("canary"))
    assert world.valid_until_s == pytest.approx(world.runtime.clock.wall() + 600, abs=1)


def test_failures_are_tried_again_without_end_and_ever_more_slowly_until_one_works(world: World) -> None:
    world.pageservers.answers = [Failed("no")] * 30
    world.keep(static())
    pauses = world.pauses(1200)
    assert pauses[:4] == pytest.approx([FIRST_PAUSE_S * FACTOR**number for number in range(4)], abs=0.01)
    assert max(pauses[:20]) <= LONGEST_PAUSE_S + 0.01
    assert pauses[15:20] == pytest.approx([LONGEST_PAUSE_S] * 5, abs=0.01)
    world.runtime.advance(1200)
    world.pageservers.answers = [Failed("no")]
    asked = len(world.pageservers.asked)
    world.runtime.advance(302)
    times = [at_s for at_s, _ in world.pageservers.asked[asked:]]
    assert times[1] - times[0] == pytest.approx(FIRST_PAUSE_S, abs=0.01)
    assert world.listener.told == []


def test_a_refusal_ends_it_and_is_told_and_a_new_lsn_begins_anew(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.pageservers.answers = [Refused("shard 0000")]
    world.keep(static())
    world.runtime.advance(7200)
    assert len(world.pageservers.asked) == 1
    (refused,) = world.listener.told
    assert isinstance(refused, LeaseRefused)
    assert "LSN is behind the GC cutoff (shard 0000)" in refused.error
    assert any(text.startswith("Exited with error: Permanent error: lease") for text in caplog.messages)
    assert world.valid_until_s == 0
    world.keep(static(operation_uuid="another"))
    assert len(world.pageservers.asked) == 1
    assert world.listener.told == [refused, refused], "whoever follows another spec has forgotten it"
    world.keep(static("0/2"))
    assert world.valid_until_s > 0
    assert world.runtime.metrics.read(LEASE_REQUESTS) == {("refused",): 1, ("granted",): 1}


@pytest.mark.parametrize(
    "moved",
    [static(url="postgresql://ps2"), static("0/2"), static(storage_auth_token=Secret("new"))],
    ids=["pageserver", "lsn", "token"],
)
def test_what_is_changed_is_asked_for_at_once_and_the_old_is_forgotten(
    world: World, moved: ComputeSpec
) -> None:
    world.keep(static())
    world.runtime.advance(10)
    world.keep(moved)
    assert len(world.pageservers.asked) == 2
    assert world.pageservers.asked[0][1] != world.pageservers.asked[1][1]
    assert world.pauses(700)[1:] == pytest.approx([300.0, 300.0], abs=0.01)


def test_the_same_spec_again_changes_nothing(world: World) -> None:
    world.keep(static())
    world.keep(static(operation_uuid="another"))
    assert len(world.pageservers.asked) == 1


def test_a_request_under_way_is_broken_off_by_a_change_and_its_answer_means_nothing(world: World) -> None:
    world.pageservers.held = True
    world.keep(static())
    world.keep(static("0/2"))
    world.pageservers.held = False
    world.runtime.settle()
    assert [wanted.lsn for _, wanted in world.pageservers.asked] == ["0/2"]


@pytest.mark.parametrize("message", [ReleaseLease(), KeepLease(a_spec()), KeepLease(a_spec(mode="Replica"))])
def test_the_end_and_another_mode_release_it(world: World, message: Message) -> None:
    world.keep(static())
    world.lease.tell(message)
    world.runtime.advance(7200)
    assert len(world.pageservers.asked) == 1
    assert world.valid_until_s == 0


def test_a_spec_without_storage_is_told_and_asked_for_nowhere(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.keep(a_spec(mode=StaticMode("0/1")))
    assert world.pageservers.asked == []
    assert "no LSN lease is asked for" in caplog.text

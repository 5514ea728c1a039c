"""Nodes on Neon's storage, told step by step: cancelled starts, leases on a clock, promotions whose clients leave."""

from collections.abc import Iterator
from typing import Any

import pytest
from compute_node.actors.postgres_process.safekeepers import Position
from compute_node.messages.lfc import PrewarmStatus
from compute_node.messages.lifecycle import GetStatus, Status
from compute_node.messages.promotion import Promote, Promoted
from compute_node.messages.secret import Secret
from compute_node.messages.settings import SourceName
from compute_node.messages.spec import StaticMode

from doubles.storage import KEEPERS, Storage
from doubles.world import LSN, MODES, World

STATIC = MODES[2]


def a_world(mode: str | StaticMode, seed: int = 0) -> World:
    """A machine of that storage, on which nothing has happened yet."""
    world = World(seed, source=SourceName.PAGESERVER)
    world.mode = mode
    return world


@pytest.fixture
def static() -> Iterator[World]:
    """A Static node that runs."""
    with a_world(STATIC) as world:
        yield run(world)


@pytest.fixture
def replica() -> Iterator[World]:
    """A replica that runs."""
    with a_world("Replica") as world:
        yield run(world)


def run(world: World) -> World:
    world.boot(world.stored_spec())
    world.runtime.settle()
    assert world.supervisor.state.status is Status.RUNNING
    return world


def storage_of(world: World) -> Storage:
    assert world.storage is not None
    return world.storage


# --- Starts


@pytest.mark.parametrize("mode", MODES, ids=["primary", "replica", "static"])
def test_a_start_can_be_cancelled_at_every_step(mode: str | StaticMode) -> None:
    for steps in range(200):
        with a_world(mode, seed=steps) as world:
            storage, faults = storage_of(world), world.machine.faults
            storage.ends = [Position(40, 40), Position(48, 40), None]
            faults.quorum_takes_s = faults.sync_takes_s = faults.initdb_takes_s = 1.0
            faults.syncs_that_fail, faults.passing_failures = 2, 2
            faults.launch_takes_s = faults.ready_after_s = 1.0
            world.boot(world.stored_spec())
            for _ in range(steps):
                if world.supervisor.state.status is Status.RUNNING:
                    break
                world.runtime.step()
            was_up = world.supervisor.state.status is Status.RUNNING
            if steps % 2:
                world.signal()
            else:
                world.terminate()
            report = world.live_on(acts=0)
            assert report is not None
            assert report.code == 0, (steps, report)
            assert world.machine.left == []
            assert (world.machine.launched == 0) or storage.committed >= 48 or mode != "Primary"
        if was_up:
            return
    message = "it never came up"
    raise AssertionError(message)


@pytest.mark.parametrize(
    ("ends", "silent", "synced", "behind"),
    [
        ([None, None, None], [], True, 0),
        ([Position(40, 40)] * 3, [], False, 40),
        ([Position(40, 40)] * 3, [2], False, 40),
        ([Position(40, 40), Position(40, 40), Position(40, 32)], [2], False, 40),
        ([Position(40, 32)] * 3, [], True, 40),
        ([Position(48, 40), Position(40, 40), Position(40, 40)], [1], True, 48),
        ([Position(40, 40), None, None], [0], True, 0),
    ],
)
def test_a_primary_begins_where_a_quorum_stands(
    ends: list[Position | None], silent: list[int], *, synced: bool, behind: int
) -> None:
    with a_world("Primary") as world:
        storage = storage_of(world)
        storage.ends, storage.faults.silent = list(ends), frozenset(silent)
        run(world)
        assert bool(storage.happened["synced"]) is synced
        assert storage.committed > behind


def test_without_a_quorum_a_primary_does_not_start_until_there_is_one() -> None:
    with a_world("Primary") as world:
        storage = storage_of(world)
        storage.faults.silent = frozenset({0, 1})
        world.boot(world.stored_spec())
        world.runtime.advance(20)
        assert world.machine.launched == 0
        storage.faults.silent = frozenset()
        world.runtime.advance(1)
        assert world.supervisor.state.status is Status.RUNNING


# --- Leases


def test_a_lease_is_kept_whatever_the_wall_clock_says(static: World) -> None:
    storage = storage_of(static)
    static.wall_clock_jumps_by_s = 3600.0
    static.runtime.advance(1500)  # after each step it is looked at
    assert len(storage.leases) >= 1500 / 300
    assert storage.held_until_s > static.clock.now()


def test_a_lease_is_held_again_within_a_minute_of_an_outage(static: World) -> None:
    storage = storage_of(static)
    storage.faults.lease_fails = True
    static.runtime.advance(700)
    assert storage.held_until_s < static.clock.now()
    storage.mend()
    static.runtime.advance(61)
    assert storage.held_until_s > static.clock.now()


def test_a_moved_shard_wakes_the_lease_and_a_refusal_is_shown_and_the_node_serves_on(static: World) -> None:
    storage = storage_of(static)
    static.configure(static.stored_spec(pageserver_connstring=Secret("postgresql://ps2")))
    static.runtime.settle()
    assert [wanted.storage.shards[0].servers[0].url.reveal() for _, wanted in storage.leases] == [
        "postgresql://ps1",
        "postgresql://ps2",
    ]
    storage.faults.collected = True
    static.runtime.advance(301)
    asked = len(storage.leases)
    shown = static.runtime.ask(static.ref, GetStatus())
    assert shown.status is Status.RUNNING
    assert "LSN is behind the GC cutoff" in (shown.error or "")
    static.runtime.advance(400)
    assert len(storage.leases) == asked


# --- Promotions


def promotion(world: World, *, by_spec: bool) -> Promote:
    if by_spec:
        return Promote(LSN, world.stored_spec(mode="Primary"), prewarm=PrewarmStatus.COMPLETED)
    return Promote(LSN, safekeepers=",".join(KEEPERS), prewarm=PrewarmStatus.COMPLETED)


@pytest.mark.parametrize("by_spec", [True, False], ids=["by spec", "by form"])
@pytest.mark.parametrize("seed", range(10))
def test_who_leaves_stops_no_promotion_and_who_comes_later_joins_it(seed: int, *, by_spec: bool) -> None:
    with a_world("Replica", seed) as world:
        run(world)
        storage = storage_of(world)
        world.machine.faults.promote_takes_s = 2.0
        request = promotion(world, by_spec=by_spec)
        pending: Any = world.ref.request(request)
        for _ in range(seed):
            world.runtime.step()
        del pending  # whoever asked has left
        later = world.ask(request)
        world.runtime.advance(5)
        assert isinstance(later.pending.get(0), Promoted)
        assert storage.happened["promoted"] == 1
        assert storage.primary is not None
        assert world.supervisor.state.promotion is None
        assert world.supervisor.state.status is Status.RUNNING
        before = storage.happened["synced"]
        world.signal()
        report = world.live_on(acts=0)
        assert report is not None
        assert report.code == 0
        assert storage.happened["synced"] == before + 1, "what has become a primary syncs at its end"


@pytest.mark.parametrize("by_spec", [True, False], ids=["by spec", "by form"])
def test_a_node_that_ends_during_a_promotion_answers_at_every_step(*, by_spec: bool) -> None:
    for steps in range(0, 40, 2):
        with a_world("Replica", steps) as world:
            run(world)
            world.machine.faults.promote_takes_s = 2.0
            world.ask(promotion(world, by_spec=by_spec))
            for _ in range(steps):
                world.runtime.step()
            world.terminate()
            report = world.live_on(acts=0)
            assert report is not None
            assert report.code == 0
            assert world.machine.left == []

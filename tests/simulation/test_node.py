"""The whole node from a seed: any order of messages, faults, requests and deaths keeps the promises."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from compute_node.actors.activity_monitor.reach import Reach
from compute_node.messages.lifecycle import (
    Condition,
    Configured,
    GetReadiness,
    GetStatus,
    ShutdownMode,
    Status,
    Terminated,
    TerminateFailed,
)
from compute_node.messages.postgres import PgdataKind, StopRung
from compute_node.messages.spec import ComputeSpec

from doubles.specs import a_spec, with_role
from doubles.world import World
from fix_matrix import seed as matrix_seed
from simulation.lives import check, live, told

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "200"))
"""How many are tried that are always the same, and as many again that are not."""
BLOCK = 50
"""Seeds in one test, so that a failing one is found without a test for each."""


def rotated(block: int) -> int:
    """Return the first seed of a block that is another one on each commit."""
    return 1_000_000 + matrix_seed() * 1_000 + block * BLOCK


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_whatever_happens_the_node_ends_in_order_and_everybody_is_answered(first: int) -> None:
    for seed in range(first, first + BLOCK):
        check(seed)


@pytest.mark.parametrize("block", range(SEEDS // BLOCK))
def test_whatever_else_happens_too(block: int) -> None:
    first = rotated(block)
    print(f"seeds from {first}")  # noqa: T201 - shown when one fails
    for seed in range(first, first + BLOCK):
        check(seed)


def test_the_same_seed_lives_the_same_life() -> None:
    assert told(live(7)) == told(live(7))


@pytest.mark.skipif("SIMULATION_SEED" not in os.environ, reason="replays one seed, given by SIMULATION_SEED")
def test_replay_of_one_seed() -> None:
    check(int(os.environ["SIMULATION_SEED"]))


def test_the_seeds_reach_every_end_and_every_status() -> None:
    codes, statuses, recoveries, stored = set(), set(), 0, Counter[str]()
    for seed in range(150):
        world = live(seed)
        codes |= {None if report is None else report.code for report in world.ends}
        statuses |= world.reached
        recoveries += world.machine.orphans_met
        if world.storage is not None:
            stored += world.storage.happened
    assert set(stored) >= {
        "agreed",
        "synced",
        "not synced",
        "backup",
        "retry",
        "granted",
        "refused",
        "promoted",
    }
    assert codes == {None, 0, 1, 75}
    assert statuses == set(Status)
    assert recoveries > 3


# --- Lives that are told, not drawn ------------------------------------------------------------------------


@pytest.fixture
def world() -> Iterator[World]:
    """A world without faults in which nothing has happened yet."""
    with World(0) as world:
        yield world


@pytest.fixture
def quiet(world: World) -> World:
    """A node that is running, in a world without faults."""
    return run(world)


def run(world: World, spec: ComputeSpec | None = None) -> World:
    world.boot(spec or a_spec())
    world.runtime.settle()
    assert world.supervisor.state.status is Status.RUNNING
    return world


def rungs(world: World) -> list[StopRung]:
    return [rung for _, rung in world.machine.signals]


def test_a_quiet_start_is_running_without_time_passing(quiet: World) -> None:
    assert [change.new for change in quiet.changes] == [Status.INIT, Status.RUNNING]


def test_a_configuration_reaches_the_catalog_and_is_answered(quiet: World) -> None:
    waiting = quiet.configure(with_role("a"))
    quiet.runtime.settle()
    assert isinstance(waiting.pending.get(0), Configured)
    assert quiet.invariants.left_to_do(with_role("a")) == []


def test_a_termination_waits_five_seconds_for_a_configuration_that_hangs(quiet: World) -> None:
    quiet.machine.held = True
    configure = quiet.configure(with_role("a"))
    quiet.runtime.settle()
    terminate = quiet.terminate()
    quiet.runtime.advance(4.9)
    assert not terminate.pending.done
    quiet.runtime.advance(1.0)
    assert configure.pending.done
    assert isinstance(terminate.pending.get(0), Terminated)


def test_a_postgres_that_ignores_everything_but_the_kill_is_gone_within_the_budget(quiet: World) -> None:
    quiet.machine.faults.ignores = frozenset({StopRung.FAST, StopRung.IMMEDIATE})
    terminate = quiet.terminate(ShutdownMode.FAST)
    quiet.runtime.advance(25.0)
    assert isinstance(terminate.pending.get(0), Terminated)
    assert rungs(quiet) == [StopRung.FAST, StopRung.IMMEDIATE, StopRung.KILL]
    quiet.runtime.advance(35.0)
    assert quiet.exit.get(0).code == 1


def test_a_dead_actor_stops_postgres_and_fails_the_node(
    quiet: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    quiet.observer.broken = KeyError("planted")
    quiet.runtime.advance(10.0)
    assert not alive(quiet)
    assert quiet.exit.get(0).code == 1
    assert quiet.changes[-1].new is Status.FAILED
    assert "activity_monitor" in (quiet.changes[-1].error or "")
    assert any("journal" in text and "StartMonitoring" in text for text in caplog.messages)


@pytest.mark.parametrize(
    "actor", ["supervisor", "postgres_process", "configurator", "activity_monitor", "http_facade"]
)
def test_the_death_of_any_actor_ends_postgres_and_the_node(quiet: World, actor: str) -> None:
    quiet.plant_a_bug(actor)
    while not quiet.over:
        assert quiet.runtime.step()
    assert quiet.finish().code == 1
    assert not alive(quiet)


def test_a_frozen_postgres_is_no_reason_to_change_the_status_but_the_node_is_not_ready(quiet: World) -> None:
    assert quiet.runtime.ask(quiet.ref, GetReadiness()).ready
    quiet.observer.reach = Reach.FROZEN
    quiet.runtime.advance(3.0)
    shown = quiet.runtime.ask(quiet.ref, GetReadiness())
    assert [report.condition for report in shown.conditions] == [Condition.POSTGRES_FROZEN]
    assert quiet.supervisor.state.status is Status.RUNNING
    quiet.observer.reach = Reach.UP
    quiet.runtime.advance(3.0)
    assert quiet.runtime.ask(quiet.ref, GetReadiness()).ready


def test_what_is_optional_does_not_keep_a_node_from_running(world: World) -> None:
    world.observer.takes_s = 1e9
    world.servers.held = True
    run(world)


def test_the_status_is_answered_while_everything_else_hangs(quiet: World) -> None:
    quiet.machine.held = True
    quiet.observer.takes_s = 1e9
    quiet.configure(with_role("a"))
    quiet.runtime.settle()
    began = quiet.clock.now()
    assert quiet.runtime.ask(quiet.ref, GetStatus()).status is Status.CONFIGURATION
    assert quiet.clock.now() == began


def test_a_restart_keeps_the_cluster_that_was_served(quiet: World) -> None:
    served = quiet.machine.served
    quiet.signal()
    quiet.runtime.settle()
    assert quiet.finish().code == 0
    assert run(quiet).machine.served == served


def alive(world: World) -> bool:
    world.machine.pass_time()
    return any(process.alive for process in world.machine.processes)


def test_the_postgres_of_a_killed_node_is_ended_before_its_folder_is_touched(quiet: World) -> None:
    orphan = quiet.machine.postmaster
    assert orphan is not None
    quiet.crash()
    quiet.machine.faults.orphan_takes_s = 2.0
    quiet.boot(with_role("a"))
    quiet.runtime.settle()
    assert alive(quiet)
    quiet.runtime.advance(2.0)
    assert orphan.ending_as == "told to end"
    assert quiet.supervisor.state.status is Status.RUNNING


@pytest.mark.parametrize("mount", [False, True], ids=["a folder", "a mount point"])
def test_a_half_made_cluster_is_made_anew_by_the_next_life(mount: bool) -> None:  # noqa: FBT001 - a parameter
    changes = 0
    for changes in range(1, 80):
        with World(changes, mount=mount) as world:
            world.machine.doomed_in = changes
            world.boot(with_role("a"))
            if not dies(world):
                break
            world.crash()
            run(world, with_role("a"))
            assert world.invariants.left_to_do(with_role("a")) == []
    assert changes > 20


def dies(world: World) -> bool:
    """Live until the node is killed, or runs."""
    world.runtime.run(until=lambda: world.machine.died or world.invariants.is_right)
    return world.machine.died


def test_a_foreign_folder_is_refused_and_left_as_it_is() -> None:
    with World(0, kind=PgdataKind.FOREIGN) as world:
        world.boot(a_spec())
        world.runtime.settle()
        assert world.finish().code == 1
        assert world.machine.foreign_is_whole()
        assert world.machine.processes == []


def test_what_a_killed_life_left_outside_of_its_folder_is_removed_by_the_next(quiet: World) -> None:
    quiet.crash()
    assert any("shared memory" in name for name in quiet.machine.left)
    quiet.boot(None)
    quiet.runtime.settle()
    assert quiet.machine.left == []


def test_a_postgres_that_is_launched_while_the_node_dies_is_stopped_too(world: World) -> None:
    world.machine.faults.launch_takes_s = 1.0
    world.boot(a_spec())
    world.runtime.settle()
    world.plant_a_bug("supervisor")
    world.runtime.run(until=lambda: world.over)
    world.finish(launch_ends_between=True)
    assert not alive(world)


def test_nobody_is_told_that_postgres_is_gone_before_it_is(quiet: World) -> None:
    quiet.machine.faults.stop_takes_s = 10.0
    terminate = quiet.terminate()
    quiet.runtime.settle()
    quiet.plant_a_bug("postgres_process")
    while not quiet.over:
        assert quiet.runtime.step()
    assert isinstance(terminate.pending.get(0), TerminateFailed)
    assert alive(quiet)
    assert quiet.finish().code == 1
    assert not alive(quiet)


@pytest.mark.parametrize("changes", range(3, 12))
def test_what_a_killed_life_was_making_beside_a_foreign_folder_is_cleared_away(changes: int) -> None:
    with World(changes, kind=PgdataKind.FOREIGN) as world:
        world.machine.doomed_in = changes
        world.boot(a_spec(), set_aside_pgdata=True)
        assert dies(world)
        world.crash()
        world.boot(None, set_aside_pgdata=True)
        world.runtime.settle()
        assert world.machine.left == []
        assert world.machine.foreign_is_whole()

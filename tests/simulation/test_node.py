"""The whole node from a seed: any order of messages, faults and requests keeps the promises."""

import itertools
import os

import pytest
from compute_node.actors.activity_monitor.reach import Reach
from compute_node.messages.lifecycle import (
    Condition,
    Configure,
    Configured,
    GetReadiness,
    Status,
    Terminated,
)
from compute_node.messages.postgres import StopRung

from doubles.specs import a_spec, with_role
from doubles.world import World

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "300"))
BLOCK = 50
"""Seeds in one test, so that a failing one is found without a test for each."""


def begin(seed: int) -> World:
    """Draw a world from the seed and boot its node."""
    world = World(seed)
    world.random_start_faults()
    return world.boot(a_spec() if world.random.random() < 0.6 else None)


def live(world: World) -> World:
    """Let it happen."""
    world.live(acts=world.random.randrange(8))
    return world


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_whatever_happens_the_node_ends_in_order_and_everybody_is_answered(first: int) -> None:
    for seed in range(first, first + BLOCK):
        world = begin(seed)
        try:
            live(world)
        except AssertionError as error:
            trace = "\n".join(world.runtime.trace[-60:])
            pytest.fail(f"seed {seed}: {error}\nreplay it with SIMULATION_SEED={seed}; its end:\n{trace}")


def test_the_same_seed_lives_the_same_life() -> None:
    assert live(begin(7)).runtime.trace == live(begin(7)).runtime.trace


@pytest.mark.skipif("SIMULATION_SEED" not in os.environ, reason="replays one seed, given by SIMULATION_SEED")
def test_replay_of_one_seed() -> None:
    world = live(begin(int(os.environ["SIMULATION_SEED"])))
    assert world.exit.done


def test_the_seeds_reach_every_end_and_every_status() -> None:
    codes, statuses = set(), set()
    for seed in range(200):
        world = live(begin(seed))
        codes.add(world.exit.get(0).code)
        statuses |= {change.new for change in world.changes}
    assert codes == {0, 1, 75}
    later = {Status.REFRESH_CONFIGURATION, Status.REFRESH_CONFIGURATION_PENDING}
    assert statuses == set(Status) - later


# --- Lives that are told, not drawn ------------------------------------------------------------------------


def quiet(seed: int = 0) -> World:
    """A node that is running, in a world without faults."""
    world = World(seed).boot(a_spec())
    world.runtime.settle()
    assert world.supervisor.state.status is Status.RUNNING
    return world


def test_a_quiet_start_is_running_without_time_passing() -> None:
    assert [change.new for change in quiet().changes] == [Status.INIT, Status.RUNNING]


def test_a_configuration_reaches_the_catalog_and_is_answered() -> None:
    world = quiet()
    waiting = world.ask("configure", Configure(with_role("a")))
    world.runtime.settle()
    assert isinstance(waiting.pending.get(0), Configured)
    assert "a" in world.administration.catalog.roles
    assert "a" in world.administration.catalog.databases


def test_a_termination_waits_five_seconds_for_a_configuration_that_hangs() -> None:
    world = quiet()
    world.administration.held = True
    configure = world.ask("configure", Configure(with_role("a")))
    world.runtime.settle()
    terminate = world.terminate()
    world.runtime.advance(4.9)
    assert not terminate.pending.done
    world.runtime.advance(1.0)
    assert configure.pending.done
    assert isinstance(terminate.pending.get(0), Terminated)


def test_a_postgres_that_ignores_everything_but_the_kill_is_gone_within_the_budget() -> None:
    world = quiet()
    world.server.faults.ignores = frozenset({StopRung.FAST, StopRung.IMMEDIATE})
    terminate = world.terminate()
    world.runtime.advance(25.0)
    assert isinstance(terminate.pending.get(0), Terminated)
    assert [rung for _, rung in world.server.signals] == [StopRung.FAST, StopRung.IMMEDIATE, StopRung.KILL]
    world.runtime.advance(35.0)
    assert world.exit.get(0).code == 1


def test_a_dead_actor_stops_postgres_and_fails_the_node(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world = quiet()
    world.observer.broken = KeyError("planted")
    world.runtime.advance(10.0)
    assert not world.server.alive
    assert world.exit.get(0).code == 1
    assert world.changes[-1].new is Status.FAILED
    assert "activity_monitor" in (world.changes[-1].error or "")
    assert any("journal" in text and "StartMonitoring" in text for text in caplog.messages)


def test_a_frozen_postgres_is_no_reason_to_change_the_status_but_the_node_is_not_ready() -> None:
    world = quiet()
    assert world.runtime.ask(world.ref, GetReadiness()).ready
    world.observer.reach = Reach.FROZEN
    world.runtime.advance(3.0)
    shown = world.runtime.ask(world.ref, GetReadiness())
    assert [report.condition for report in shown.conditions] == [Condition.POSTGRES_FROZEN]
    assert world.supervisor.state.status is Status.RUNNING
    world.observer.reach = Reach.UP
    world.runtime.advance(3.0)
    assert world.runtime.ask(world.ref, GetReadiness()).ready


@pytest.mark.parametrize("seed", range(20))
def test_a_wall_clock_that_jumps_by_an_hour_at_every_step_changes_no_life(seed: int) -> None:
    def lived(*, jumps: bool) -> tuple[object, ...]:
        world = begin(seed)
        check, clock, hours = world.runtime.after_step, world.runtime.clock, itertools.cycle([3600, -3600, 0])

        def after_step() -> None:
            clock.wall_is_off_by_s = next(hours) if jumps else 0
            check()

        world.runtime.after_step = after_step
        live(world)
        story = [line for line in world.runtime.trace if "Observed" not in line]  # those show the wall clock
        return world.changes, world.exit.get(0), world.server.signals, story

    assert lived(jumps=True) == lived(jumps=False)

"""The LfcManager in made-up time: what is saved is never made worse, whatever the order of events."""

import logging
import os
from typing import Any

import pytest
from compute_node.actors.lfc_manager.port import CacheError, NoModuleError, StoreError
from compute_node.messages.lfc import (
    CancelPrewarm,
    FollowSpec,
    GetOffload,
    GetPrewarm,
    LfcAccepted,
    LfcRefused,
    Offload,
    OffloadLast,
    OffloadStatus,
    Prewarm,
    PrewarmStatus,
    StopLfc,
)
from compute_node.messages.metrics import (
    LFC_OFFLOAD_BLOCKED,
    LFC_OFFLOAD_ERRORS,
    LFC_OFFLOADS,
    LFC_PREWARM_ERRORS,
    LFC_PREWARMS,
    LFC_SECONDS,
    LFC_STATE_BYTES,
    Family,
)

from doubles.lfc import body_of
from doubles.specs import a_spec
from fix_matrix import seed as matrix_seed
from simulation.bites import BITES, NO_GUARD, find
from simulation.cache_lives import OWN, CacheWorld, check_cache

SEEDS = 200
"""That are always the same, and as many again that are not."""


@pytest.mark.parametrize("first", [0, 1_000_000 + matrix_seed() * 1_000])
def test_whatever_happens_without_force_a_complete_state_is_never_replaced_by_an_incomplete_one(
    first: int,
) -> None:
    for seed in range(first, first + SEEDS):
        check_cache(seed)


@pytest.mark.skipif("SIMULATION_SEED" not in os.environ, reason="replays one seed, given by SIMULATION_SEED")
def test_replay_of_one_seed() -> None:
    check_cache(int(os.environ["SIMULATION_SEED"]))


def test_with_the_guard_removed_the_simulation_finds_it() -> None:
    (bite,) = [bite for bite in BITES if bite.name == NO_GUARD]
    found = find(bite)
    assert found is not None
    assert "a complete state of compute-1 was replaced by an incomplete one" in found.said


def house(seed: int = 0, **spec: Any) -> CacheWorld:
    world = CacheWorld(seed)
    world.begin(a_spec(**spec))
    world.cache.at_once = 1
    return world


def read(world: CacheWorld, family: Family) -> float:
    return world.runtime.metrics.read(family)[()]


def test_the_original_bug_an_offload_during_an_unfinished_prewarm_does_not_replace_the_good_state() -> None:
    """https://github.com/neondatabase/neon/pull/12645."""
    world = house()
    world.cache.pages = set(range(20))
    world.ref.tell(Offload())
    world.runtime.settle()
    good = world.store.kept[OWN]
    world.begin(a_spec(autoprewarm=True, offload_lfc_interval_seconds=1))
    world.cache.at_once = 1
    for _ in range(8):
        world.runtime.step()
    assert world.manager.state.warming is not None
    world.cache.held = True
    world.runtime.advance(10)
    assert isinstance(world.runtime.ask(world.ref, Offload()), LfcRefused)
    assert world.store.kept[OWN] == good
    world.begin(a_spec(autoprewarm=True, offload_lfc_interval_seconds=1))  # killed, and started again
    world.cache.at_once = 100
    world.runtime.advance(10)
    assert world.manager.state.prewarm.status is PrewarmStatus.COMPLETED
    assert world.cache.pages >= set(range(20))
    assert read(world, LFC_PREWARMS) == 1
    assert read(world, LFC_OFFLOADS) >= 5


def test_after_a_failed_prewarm_the_log_and_a_metric_say_that_nothing_is_saved_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = house(autoprewarm=True, offload_lfc_interval_seconds=1)
    world.store.failure = StoreError("401 Unauthorized querying endpoint storage")
    with caplog.at_level(logging.INFO):
        world.runtime.advance(10)
    assert sum("is not offloaded any more" in record.message for record in caplog.records) == 1
    assert read(world, LFC_OFFLOAD_BLOCKED) == 1
    assert read(world, LFC_PREWARM_ERRORS) == 1
    assert read(world, LFC_OFFLOADS) == 0
    world.store.failure = None
    assert world.runtime.ask(world.ref, Prewarm()) == LfcAccepted()
    world.runtime.advance(10)
    assert read(world, LFC_OFFLOAD_BLOCKED) == 0
    assert read(world, LFC_OFFLOADS) >= 5


def test_progress_is_told_while_a_prewarm_runs_and_its_size_and_time_are_counted() -> None:
    world = house()
    world.cache.pages = set(range(10))
    world.ref.tell(Offload())
    world.runtime.settle()
    world.begin(a_spec())
    world.cache.at_once, world.cache.pages = 3, set()
    world.ref.tell(Prewarm())
    seen = []
    for _ in range(100):
        world.runtime.step()
        shown = world.runtime.ask(world.ref, GetPrewarm())
        if shown.status is PrewarmStatus.PREWARMING:
            seen.append((shown.total, shown.prewarmed))
    assert (10, 3) in seen
    assert seen == sorted(seen)
    assert world.manager.state.prewarm.prewarmed == 10
    assert world.runtime.metrics.read(LFC_SECONDS)["prewarm", "inf"] == 1
    assert world.runtime.metrics.read(LFC_STATE_BYTES)["prewarm", "sum"] > 0


def test_an_empty_cache_is_never_saved() -> None:
    world = house()
    world.cache.pages = set()
    world.ref.tell(Offload())
    world.runtime.settle()
    assert world.manager.state.offload.status is OffloadStatus.SKIPPED
    assert OWN not in world.store.kept


def test_a_cache_that_cannot_be_listed_here_is_skipped_and_says_why_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = house(offload_lfc_interval_seconds=1)
    world.cache.failure = NoModuleError("a standby has the extension pg_buffercache only from its primary")
    with caplog.at_level(logging.INFO):
        world.runtime.advance(10)
    shown = world.runtime.ask(world.ref, GetOffload())
    assert (shown.status, shown.reason) == (OffloadStatus.SKIPPED, str(world.cache.failure))
    assert sum("pg_buffercache" in record.message for record in caplog.records) == 1
    assert read(world, LFC_OFFLOAD_ERRORS) == 0
    assert read(world, LFC_OFFLOADS) >= 5
    world.cache.failure = None
    world.runtime.advance(10)
    assert world.manager.state.offload.status is OffloadStatus.COMPLETED


def test_a_node_that_was_warmed_from_another_and_has_crashed_is_saved_again() -> None:
    world = house(offload_lfc_interval_seconds=1)
    world.store.kept["other"] = body_of(range(20))
    world.cache.at_once = 100
    world.ref.tell(Prewarm("other"))
    world.runtime.settle()
    del world.store.kept["other"]
    world.cache.crash([3], was_warmed=True)
    world.runtime.advance(20)
    assert world.manager.state.offload.status is OffloadStatus.COMPLETED
    assert world.store.puts


@pytest.mark.parametrize("seed", range(10))
def test_a_prewarm_that_hangs_is_cancelled_without_time_passing(seed: int) -> None:
    world = house(seed)
    world.store.kept[OWN] = b"x"
    world.store.held = True
    world.ref.tell(Prewarm())
    world.runtime.settle()
    world.ref.tell(CancelPrewarm())
    world.runtime.settle()
    assert world.manager.state.prewarm.status is PrewarmStatus.CANCELLED


def test_a_bad_body_fails_the_prewarm_and_nothing_else() -> None:
    world = house()
    world.store.kept[OWN] = b"<html>"
    world.ref.tell(Prewarm())
    world.runtime.settle()
    assert world.manager.state.prewarm.error == ("decoding LFC state: it does not begin as a Zstandard frame")


def test_a_cache_that_cannot_be_asked_fails_the_offload_with_its_reason() -> None:
    world = house()
    world.cache.failure = CacheError("connecting to postgres: no")
    world.ref.tell(Offload())
    world.runtime.settle()
    assert world.manager.state.offload.error == "connecting to postgres: no"


def test_the_last_offload_is_saved_and_told() -> None:
    world = house(offload_lfc_interval_seconds=1_000)
    world.cache.pages = {1, 2}
    world.ref.tell(OffloadLast())
    world.runtime.settle()
    assert world.store.pages(OWN) == [1, 2]
    assert [ended.error for ended in world.supervisor.ended] == [None]
    world.ref.tell(StopLfc())
    world.runtime.advance(5_000)
    assert len(world.store.puts) == 1


def test_ticks_come_again_that_long_after_the_end_of_the_last_offload() -> None:
    world = house(offload_lfc_interval_seconds=10)
    world.store.held = True
    world.runtime.advance(35)
    assert world.store.puts == []
    world.store.held = False
    world.runtime.settle()
    assert len(world.store.puts) == 1
    world.runtime.advance(9)
    assert len(world.store.puts) == 1
    world.runtime.advance(2)
    assert len(world.store.puts) == 2
    world.ref.tell(FollowSpec(a_spec(), starting=False))
    world.runtime.advance(100)
    assert len(world.store.puts) == 2

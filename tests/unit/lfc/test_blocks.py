"""Blocks of shared buffers as a state, handed out again in runs."""

import asyncio
from typing import Any

import pytest
from compute_node.actors.lfc_manager import buffers
from compute_node.actors.lfc_manager.blocks import (
    AT_ONCE,
    MAGIC,
    Batches,
    Buffers,
    Relation,
    Run,
    decode,
    encode,
    examine,
    runs,
    spans,
)
from compute_node.actors.lfc_manager.packing import StateError
from hypothesis import given, settings
from hypothesis import strategies as st

T = Relation("db", "public", "t", 0, 16384, 5, "0+3,7+2")
BLOCKS = st.sets(st.integers(0, 100), min_size=1)


def a_relation(blocks: set[int], name: str = "t") -> Relation:
    """Describe blocks in the way in which the query does."""
    ranges: list[list[int]] = []
    for block in sorted(blocks):
        if ranges and sum(ranges[-1]) == block:
            ranges[-1][1] += 1
        else:
            ranges.append([block, 1])
    ends = [0, *(first + count for first, count in ranges)]
    text = ",".join(f"{first - end}+{count}" for (first, count), end in zip(ranges, ends, strict=False))
    return Relation("db", "public", name, 0, 16384, len(blocks), text)


def test_a_state_is_the_same_after_a_trip() -> None:
    buffers = Buffers((T, Relation("", "pg_catalog", "pg_database", 1, 1262, 1, "0+1")))
    assert decode(encode(buffers)) == buffers
    assert buffers.total == 6


@given(BLOCKS)
def test_ranges_are_the_blocks_that_were_described(blocks: set[int]) -> None:
    relation = a_relation(blocks)
    assert {first + n for first, count in spans(relation.ranges) for n in range(count)} == blocks
    assert decode(encode(Buffers((relation,)))).relations == (relation,)


@pytest.mark.parametrize(
    "relation",
    [
        Relation("db", "s", "t", 0, 1, 5, "0+4"),
        Relation("db", "s", "t", 7, 1, 1, "0+1"),
        Relation("db", "s", "t", -1, 1, 1, "0+1"),
        Relation("db", "s", "t", 0, 1, 0, ""),
        Relation("db", "s", "t", 0, 1, 1, "0+1,x"),
        Relation("db", "s", "t", 0, 1, 1, "5+1,-3+0"),
        Relation("db", "s", "t", 0, 1, 1, "-1+1"),
        Relation("db", "s", "t", 0, 1, 2**32 + 1, f"0+{2**32 + 1}"),
    ],
    ids=repr,
)
def test_a_state_that_contradicts_itself_is_refused(relation: Relation) -> None:
    with pytest.raises(StateError, match="decoding LFC state"):
        decode(encode(Buffers((relation,))))


@pytest.mark.parametrize("state", [b"", MAGIC, MAGIC + b"\x91\x90x", MAGIC + b"\x91\x91\x90", b"\xfc" * 16])
def test_what_is_no_state_is_refused(state: bytes) -> None:
    with pytest.raises(StateError, match="decoding LFC state"):
        decode(state)


@settings(max_examples=30)
@given(BLOCKS, BLOCKS, st.integers(0, 120), st.integers(1, 40), st.integers(1, 5))
def test_every_block_that_is_still_there_is_handed_out_once(
    one: set[int], other: set[int], size: int, blocks: int, most: int
) -> None:
    batches = Batches(runs([(a_relation(one), size), (a_relation(other, "u"), 1_000)]))
    seen: list[tuple[int, int]] = []
    while batch := batches.take(blocks, most):
        assert len(batch) <= most
        assert sum(run.blocks for run in batch) <= blocks
        seen += [(run.relation, block) for run in batch for block in range(run.first, run.last + 1)]
    expected = {(0, block) for block in one if block < size} | {(1, block) for block in other}
    assert len(seen) == len(set(seen))
    assert set(seen) == expected


def test_nothing_is_handed_out_where_there_is_no_room() -> None:
    batches = Batches(runs([(T, 100)]))
    assert batches.take(0, 10) == ()
    assert batches.take(2, 10) == (Run(0, 0, 1),)


def test_a_state_of_many_ranges_is_examined_in_pieces_so_that_a_cancellation_is_heard() -> None:
    ranges = ",".join(["1+1"] * 3 * AT_ONCE)
    large = encode(Buffers((Relation("db", "s", "t", 0, 1, 3 * AT_ONCE, ranges),)))
    assert len(list(examine(decode(large)))) == 3
    nobody: Any = None

    async def cancelled() -> None:
        loading = asyncio.create_task(buffers.load(nobody, nobody, large, lambda _: None))
        await asyncio.sleep(0)
        loading.cancel()
        await loading

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())

"""The blocks of shared buffers as a state, and handed out again to be read. Pure.

A relation is known by database, schema and name, and by the number of its file: after a rewrite (TRUNCATE, VACUUM
FULL) its blocks are others, so they are not read. Both survive a base backup and a restart.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from .packing import DECODING, StateError

MAGIC: Final = b"compute-node shared buffers 1\n"
FORKS: Final = ("main", "fsm", "vm", "init")
SHARED: Final = ""
"""The database of relations that belong to all databases."""
AT_ONCE: Final = 10_000
"""Ranges that are examined in some 10 ms."""
_RANGE: Final = re.compile(r"(\d{1,10})\+(\d{1,10})(?:,(?=\d)|\Z)", re.ASCII)


class Relation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The cached blocks of one fork of a relation."""

    database: str
    schema: str
    name: str
    fork: int
    filenode: int
    blocks: int
    ranges: str
    """`<gap>+<count>` with commas between; a gap counts from the end of the range before."""


class Buffers(msgspec.Struct, frozen=True, array_like=True):
    """What was in the shared buffers."""

    relations: tuple[Relation, ...]

    @property
    def total(self) -> int:
        """How many blocks there are."""
        return total_of(self.relations)


def total_of(relations: Iterable[Relation]) -> int:
    """Count the blocks of relations."""
    return sum(relation.blocks for relation in relations)


class Run(msgspec.Struct, frozen=True):
    """Some blocks to be read at once: of the relation with that place in a list, `first` to `last`."""

    relation: int
    first: int
    last: int

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return self.last - self.first + 1


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Buffers)


def encode(buffers: Buffers) -> bytes:
    """Write a state."""
    return MAGIC + _encoder.encode(buffers)


def decode(state: bytes) -> Buffers:
    """Read a state and examine it. Raises StateError."""
    buffers = parse(state)
    for _ in examine(buffers):
        pass
    return buffers


def parse(state: bytes) -> Buffers:
    """Read a state, which is then to be examined. Raises StateError."""
    if not state.startswith(MAGIC):
        msg = f"{DECODING}: it is not of the shared buffers of a plain Postgres"
        raise StateError(msg)
    try:
        return _decoder.decode(memoryview(state)[len(MAGIC) :])
    except ValueError as error:  # msgspec's own are, too
        msg = f"{DECODING}: {error}"
        raise StateError(msg) from None


def examine(buffers: Buffers) -> Iterator[None]:
    """See that a state does not contradict itself; there are pauses, as it may have millions of ranges.

    Raises StateError.
    """
    seen = 0
    for relation in buffers.relations:
        if not 0 <= relation.fork < len(FORKS):
            msg = f"{DECODING}: there is no fork {relation.fork}"
            raise StateError(msg)
        counted = 0
        for _, count in spans(relation.ranges):
            counted += count
            seen += 1
            if seen % AT_ONCE == 0:
                yield
        if counted != relation.blocks:
            msg = f"{DECODING}: {relation.blocks} blocks of {relation.name!r} are told, and {counted} listed"
            raise StateError(msg)


def spans(ranges: str) -> Iterator[tuple[int, int]]:
    """Yield first block and count of each range. Raises StateError."""
    end = place = 0
    while place < len(ranges) or not end:
        found = _RANGE.match(ranges, place)
        size = int(found[2]) if found else 0
        if found is None or size < 1:
            msg = f"{DECODING}: {ranges[place : place + 30]!r} does not begin with a range"
            raise StateError(msg)
        first = end + int(found[1])
        end, place = first + size, found.end()
        if end > 2**32:
            msg = f"{DECODING}: {found[0]!r} leads beyond the last block there can be"
            raise StateError(msg)
        yield first, size


def runs(relations: Iterable[tuple[Relation, int]]) -> Iterator[Run]:
    """Yield the ranges of the relations, each cut off at its size in blocks."""
    for number, (relation, size) in enumerate(relations):
        for first, count in spans(relation.ranges):
            if first < size:
                yield Run(number, first, min(first + count, size) - 1)


class Batches:
    """Hands runs out, so many blocks at a time."""

    def __init__(self, source: Iterator[Run]) -> None:
        self._source = source
        self._rest: Run | None = None

    def take(self, blocks: int, most: int) -> tuple[Run, ...]:
        """Return the next runs with at most that many blocks, `most` of them; empty at the end."""
        taken: list[Run] = []
        while blocks > 0 and len(taken) < most:
            run = self._rest or next(self._source, None)
            self._rest = None
            if run is None:
                break
            if run.blocks > blocks:
                self._rest = Run(run.relation, run.first + blocks, run.last)
                run = Run(run.relation, run.first, run.first + blocks - 1)
            taken.append(run)
            blocks -= run.blocks
        return tuple(taken)

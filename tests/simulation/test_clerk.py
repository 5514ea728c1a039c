"""The Clerk in made-up time: everybody who asks is answered once, whatever becomes of the work."""

import logging
from typing import Any

import pytest
from compute_node.actors.clerk.actor import BROKEN_OFF, MAX_DUMPS, MAX_QUERIES, Clerk
from compute_node.actors.kit.actor import Pending
from compute_node.actors.kit.simulated import SimulatedRuntime
from compute_node.messages.base import Request
from compute_node.messages.clerk import (
    QUEUE_LIMIT_S,
    CheckWritability,
    CollectInsights,
    Done,
    DumpBegun,
    DumpSchema,
    InstallExtension,
    ListCatalog,
    NotDone,
    Overloaded,
    Privilege,
    Query,
    SetGrants,
    Writable,
)
from compute_node.messages.metrics import CATALOG_REQUESTS, DUMPED_BYTES
from compute_node.messages.stream import ByteStream, StreamBrokenError

from doubles.catalog import FakeCatalog

QUERIES: tuple[Query, ...] = (
    CheckWritability(),
    ListCatalog(),
    CollectInsights(),
    InstallExtension("d", "e", "1"),
    SetGrants("d", "s", (Privilege.USAGE,), "r"),
)


class House:
    def __init__(self, seed: int) -> None:
        self.runtime = SimulatedRuntime(seed)
        self.postgres = FakeCatalog()
        self.postgres.pieces["d"] = (b"12", b"345")
        self.clerk = self.runtime.spawn("clerk", Clerk(self.postgres))

    def request(self, request: Request[Any]) -> Pending[Any]:
        return self.clerk.request(request)

    def answers(self, *pending: Pending[Any]) -> list[Any]:
        self.runtime.run(until=lambda: all(one.done for one in pending))
        return [one.get(0) for one in pending]

    def outcome(self, kind: type[Request[Any]], result: str) -> float:
        return self.runtime.metrics.read(CATALOG_REQUESTS).get((kind.__name__, result), 0.0)


@pytest.fixture(params=range(20))
def house(request: pytest.FixtureRequest) -> House:
    return House(request.param)


def test_each_query_is_answered_with_what_became_of_it(house: House) -> None:
    house.postgres.answers = {CheckWritability: Writable(disk_full=True), ListCatalog: NotDone("no")}
    pending = [house.request(query) for query in QUERIES]
    assert house.answers(*pending) == [Writable(disk_full=True), NotDone("no"), Done(), Done(), Done()]
    assert house.outcome(ListCatalog, "failed") == 1
    assert house.outcome(SetGrants, "done") == 1


def test_what_an_exception_becomes_is_an_answer_too(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.postgres.broken = KeyError("odd")
    stream = ByteStream()
    pending = [*map(house.request, QUERIES), house.request(DumpSchema("d", stream))]
    assert house.answers(*pending) == [NotDone("KeyError: 'odd'")] * 6
    with pytest.raises(StreamBrokenError, match="odd"):
        stream.read(0)
    assert len([record for record in caplog.records if record.exc_info]) == 6
    house.postgres.broken = None
    assert house.answers(house.request(CheckWritability())) == [Done()]


def test_a_query_that_waited_too_long_for_its_turn_is_not_begun(house: House) -> None:
    house.postgres.held = True
    pending = [house.request(CheckWritability()) for _ in range(MAX_QUERIES + MAX_DUMPS + 1)]
    house.runtime.advance(QUEUE_LIMIT_S + 1)
    house.postgres.held = False
    late = house.answers(*pending)[-1]
    assert isinstance(late, Overloaded)
    assert house.outcome(CheckWritability, "refused") >= 1


def test_a_dump_is_answered_when_it_begins_and_its_stream_says_the_rest(house: House) -> None:
    stream = ByteStream()
    assert house.answers(house.request(DumpSchema("d", stream))) == [DumpBegun()]
    house.runtime.settle()
    assert house.runtime.metrics.read(DUMPED_BYTES) == {(): 5.0}
    assert [stream.read(0) for _ in range(3)] == [b"12", b"345", b""]
    assert house.outcome(DumpSchema, "done") == 1


def test_a_dump_of_no_database_is_told_as_missing(house: House) -> None:
    (answer,) = house.answers(house.request(DumpSchema("nowhere", ByteStream())))
    assert answer == NotDone("database does not exist", missing=True)


def test_a_dump_that_breaks_off_is_logged_with_its_reason(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.postgres.breaks_after = 1
    stream = ByteStream()
    assert house.answers(house.request(DumpSchema("d", stream))) == [DumpBegun()]
    house.runtime.settle()
    with pytest.raises(StreamBrokenError, match="pg_dump was killed"):
        stream.read(0)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == (
        "the dump of the schema of database 'd' ended after 2 bytes, and is not whole: pg_dump was killed"
    )


def test_there_are_few_dumps_at_a_time_and_queries_go_on_beside_them(house: House) -> None:
    house.postgres.held = True
    streams = [ByteStream() for _ in range(MAX_DUMPS + 1)]
    *dumps, refused = [house.request(DumpSchema("d", stream)) for stream in streams]
    (answer,) = house.answers(refused)
    assert isinstance(answer, Overloaded)
    house.postgres.held = False
    assert house.answers(*dumps, house.request(ListCatalog())) == [DumpBegun()] * MAX_DUMPS + [Done()]
    house.runtime.settle()
    assert house.answers(house.request(DumpSchema("d", ByteStream()))) == [DumpBegun()]


def test_at_the_end_of_the_node_whoever_reads_a_dump_learns_that_it_is_not_whole(house: House) -> None:
    house.postgres.held = True
    stream = ByteStream()
    house.request(DumpSchema("d", stream))
    house.runtime.settle()
    house.runtime.stop()
    with pytest.raises(StreamBrokenError, match=BROKEN_OFF):
        stream.read(0)

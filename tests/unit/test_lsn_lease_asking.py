"""How pageservers are asked for a lease, over a real wire: command, token, shards, and what their answers mean."""

from collections.abc import Callable, Iterator

import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.lsn_lease.asking import StoragePageservers, combine, read
from compute_node.actors.lsn_lease.port import Answer, Failed, Granted, Refused, Wanted
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Wire
from compute_node.postgres.storage import Pageserver, Shard, Storage

from doubles.wire import Client, Reply, Rows, WireServer
from doubles.wire import Refused as WireRefused

TENANT, TIMELINE = "1" * 32, "2" * 32


class LeasingPageserver:
    """One pageserver that grants leases until then; None: it refuses."""

    def __init__(self, valid_until: str | None) -> None:
        self.valid_until = valid_until
        self.server = WireServer(self.answer, password="canary")

    def answer(self, _: Client, __: str) -> Reply:
        return Rows(("valid_until",), ((self.valid_until,),))


@pytest.fixture
def serve() -> Iterator[Callable[..., list[LeasingPageserver]]]:
    """Call it with what each pageserver is to answer."""
    made: list[LeasingPageserver] = []

    def start(*values: str | None) -> list[LeasingPageserver]:
        made.extend(LeasingPageserver(value) for value in values)
        return made

    yield start
    for one in made:
        one.server.close()


def wanted(servers: list[LeasingPageserver], *, sharded: bool) -> Wanted:
    """Ask each as a shard of its own, or all as servers of one."""
    found = [Pageserver(Secret(one.server.url), Wire.LIBPQ) for one in servers]
    if sharded:
        count = len(found)
        shards = tuple(Shard(f"{number:02x}{count:02x}", (one,)) for number, one in enumerate(found))
    else:
        shards = (Shard("0000", tuple(found)),)
    return Wanted(Storage(TENANT, TIMELINE, shards), "0/169AD58", Secret("canary"))


def ask(what: Wanted) -> Answer:
    return StoragePageservers().request(what, Cancellation())


def test_every_shard_is_asked_by_its_own_name_and_the_earliest_end_counts(
    serve: Callable[..., list[LeasingPageserver]],
) -> None:
    servers = serve("1789000000500", "1789000000400")
    assert ask(wanted(servers, sharded=True)) == Granted(1789000000400)
    assert [one.server.queries for one in servers] == [
        [f"lease lsn {TENANT}-0002 {TIMELINE} 0/169AD58 "],
        [f"lease lsn {TENANT}-0102 {TIMELINE} 0/169AD58 "],
    ]
    told = servers[0].server.clients[0]
    assert (told.password, told.options, told.parameters["user"]) == ("canary", "", "no_user")
    assert "application_name" not in told.parameters


def test_all_servers_of_an_unsharded_tenant_are_asked(serve: Callable[..., list[LeasingPageserver]]) -> None:
    servers = serve("1", "2")
    assert ask(wanted(servers, sharded=False)) == Granted(1)
    assert [one.server.queries for one in servers] == [[f"lease lsn {TENANT} {TIMELINE} 0/169AD58 "]] * 2


def test_a_refusal_by_any_shard_is_a_refusal(serve: Callable[..., list[LeasingPageserver]]) -> None:
    assert ask(wanted(serve("1", None), sharded=True)) == Refused("shard 0102")


def test_an_error_of_a_server_is_told_without_its_connection_string(
    serve: Callable[..., list[LeasingPageserver]],
) -> None:
    servers = serve("1", "2")
    servers[1].server.faults.refuses = WireRefused("timeline not found")
    answer = ask(wanted(servers, sharded=True))
    assert isinstance(answer, Failed)
    assert answer.error.startswith("shard 0102: ")
    assert "timeline not found" in answer.error
    assert "postgresql://" not in answer.error


def test_a_server_that_is_away_is_a_failure() -> None:
    nobody = Shard("0000", (Pageserver(Secret("postgresql://no_user:canary@127.0.0.1:1"), Wire.LIBPQ),))
    answer = ask(Wanted(Storage(TENANT, TIMELINE, (nobody,)), "0/1"))
    assert isinstance(answer, Failed)
    assert "canary" not in answer.error


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ((("1789000000000",),), Granted(1789000000000)),
        (((None,),), Refused("here")),
        ((), Failed("here: it answered 0 rows")),
        ((("x",),), Failed("here: it answered what is no time: 'x'")),
        ((("-1",),), Failed("here: it answered what is no time: '-1'")),
        ((("1", "2"),), Failed("here: it answered 1 rows")),
    ],
)
def test_what_an_answer_means(rows: tuple[tuple[str | None, ...], ...], answer: Answer) -> None:
    assert read(rows, "here") == answer


def test_a_refusal_weighs_more_than_a_failure() -> None:
    assert combine([Granted(1), Failed("x"), Refused("y")]) == Refused("y")
    assert combine([Granted(1), Failed("x")]) == Failed("x")
    assert combine([Granted(2), Granted(1)]) == Granted(1)

"""The LSN leases of a Static node: over gRPC, and a whole node with real Postgres that keeps them."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.lsn_lease import asking
from compute_node.actors.lsn_lease.asking import StoragePageservers
from compute_node.actors.lsn_lease.port import Answer, Failed, Granted, Refused, Wanted
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Wire
from compute_node.postgres import page_api
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.page_api_call import LEASE, WireError, expires_ms, lease_request
from compute_node.postgres.storage import Pageserver as Place
from compute_node.postgres.storage import Shard, Storage

from doubles.page_api import PageApiServer, a_lease, page_api_server
from doubles.pageserver import Pageserver, pageserver
from fix_node import MakeNode
from fix_postgres import wait_until
from fix_process import in_thread
from fix_storage import NO_CANARY, TENANT, TIMELINE, stored

LSN = "0/1000028"
UNTIL_MS = 1789000000500


@pytest.fixture
def servers() -> Iterator[tuple[PageApiServer, PageApiServer]]:
    with page_api_server() as first, page_api_server() as second:
        yield first, second


def wanted(*urls: str) -> Wanted:
    """Ask each of these as a shard of its own."""
    shards = tuple(
        Shard(
            f"{number:02x}{len(urls):02x}",
            (Place(Secret(url), Wire.GRPC if url.startswith("grpc:") else Wire.LIBPQ),),
        )
        for number, url in enumerate(urls)
    )
    return Wanted(Storage(TENANT, TIMELINE, shards), LSN, Secret("canary"))


def ask(*urls: str) -> Answer:
    return StoragePageservers().request(wanted(*urls), Cancellation())


def test_over_grpc_every_shard_is_asked_by_its_name_and_the_earliest_end_counts(
    servers: tuple[PageApiServer, PageApiServer],
) -> None:
    first, second = servers
    second.lease = a_lease(UNTIL_MS - 1)
    assert ask(first.url, second.url) == Granted(UNTIL_MS - 1)
    for number, server in enumerate(servers):
        assert server.requests == [(LEASE, b"\x08\xa8\x80\x80\x08")]
        told = {name: server.metadata[name] for name in server.metadata if name.startswith(("neon-", "auth"))}
        assert told == {
            "neon-tenant-id": TENANT,
            "neon-timeline-id": TIMELINE,
            "neon-shard-id": f"0{number}02",
            "authorization": "Bearer canary",
        }


def test_over_grpc_a_failed_precondition_is_a_refusal_and_all_else_a_failure(
    servers: tuple[PageApiServer, PageApiServer],
) -> None:
    first, second = servers
    second.fails = "FAILED_PRECONDITION", "behind the horizon"
    assert ask(first.url, second.url) == Refused("shard 0102: behind the horizon")
    second.fails = "NOT_FOUND", "no such timeline"
    assert ask(first.url, second.url) == Failed("shard 0102: no such timeline (NOT_FOUND)")
    second.fails, second.lease = None, b""
    assert ask(first.url, second.url) == Failed("shard 0102: it answered without a time (INTERNAL)")
    second.close()
    answer = ask(first.url, second.url)
    assert isinstance(answer, Failed)
    assert "(UNAVAILABLE)" in answer.error


def test_each_shard_is_asked_by_its_own_protocol(servers: tuple[PageApiServer, PageApiServer]) -> None:
    with pageserver(b"", tenant_id=TENANT, timeline_id=TIMELINE, password="canary") as by_libpq:
        servers[0].lease = a_lease(UNTIL_MS * 5)
        answer = ask(servers[0].url, by_libpq.url)
        assert isinstance(answer, Granted)
        assert answer.valid_until_ms < UNTIL_MS * 5
        assert by_libpq.leases == [f"lease lsn {TENANT}-0102 {TIMELINE} {LSN} "]
        assert [method for method, _ in servers[0].requests] == [LEASE]


def test_a_request_over_grpc_that_is_not_answered_is_given_up_and_can_be_broken_off(
    servers: tuple[PageApiServer, PageApiServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers[0].deaf = True
    cancellation = Cancellation()
    ended: list[float] = []

    def run() -> None:
        with pytest.raises(CancelledError):
            StoragePageservers().request(wanted(servers[0].url), cancellation)
        ended.append(time.monotonic())

    thread = in_thread(run)
    wait_until(lambda: servers[0].requests, "the helper has asked", 50)
    asked = time.monotonic()
    cancellation.request()
    thread.join(30)
    assert ended
    assert ended[0] - asked < 1.0
    assert not [c for c in psutil.Process().children() if page_api.HELPER in " ".join(c.cmdline())]
    monkeypatch.setattr(asking, "LIMIT_S", 0.2)
    answer = ask(servers[0].url)
    assert isinstance(answer, Failed)
    assert "DEADLINE_EXCEEDED" in answer.error


def test_without_the_library_a_lease_fails_and_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_api, "is_installed", lambda: False)
    answer = ask("grpc://127.0.0.1:1")
    assert isinstance(answer, Failed)
    assert "pip install 'compute-node[grpc]'" in answer.error


def test_the_messages_of_a_lease_are_what_the_protocol_says() -> None:
    assert lease_request(0x16ABCDE) == b"\x08\xde\xf9\xaa\x0b"
    assert expires_ms(a_lease(UNTIL_MS)) == UNTIL_MS
    assert expires_ms(a_lease(UNTIL_MS // 1000 * 1000)) == UNTIL_MS // 1000 * 1000
    assert expires_ms(b"\x10\x07\x0a\x04\x08\x05\x18\x09") == 5000
    for broken in (b"", b"\x10\x07", b"\x0a\x05\x08", b"\x0a\x01\x08"):
        with pytest.raises(WireError):
            expires_ms(broken)


def test_a_static_node_keeps_its_lsn_on_every_shard_until_it_is_refused(
    storage: Pageserver, make_node: MakeNode, binaries15: Binaries, sockets: Path
) -> None:
    with (
        pageserver(b"", tenant_id=TENANT, timeline_id=TIMELINE, password=NO_CANARY) as second,
        pageserver(b"", tenant_id=TENANT, timeline_id=TIMELINE, password=NO_CANARY) as moved,
    ):
        storage.lease_s, second.lease_s, moved.lease_s = 600.0, 2.0, 600.0
        node = make_node(binaries15, "--source", "pageserver")
        document = stored(storage, node.postgres_port, sockets, mode={"Static": LSN}, shard_stripe_size=2048)
        node.run(document | {"pageserver_connstring": f"{storage.url},{second.url}"})
        wait_until(lambda: len(second.leases) > 1, "the lease is renewed before the earlier one ends", 30)
        for number, server in enumerate((storage, second)):
            assert set(server.leases) == {f"lease lsn {TENANT}-0{number}02 {TIMELINE} {LSN} "}
        node.heard("Request succeeded, sleeping for 1 seconds")
        assert node.metric("compute_node_lsn_lease_valid_until_seconds") > time.time() - 60
        answer = node.configure(document | {"pageserver_connstring": f"{storage.url},{moved.url}"})
        assert answer.status == 200, answer.body
        wait_until(lambda: moved.leases, "a shard that has moved is asked at once", 30)
        # A refusal protects nobody any more, and what is read still may be there: it is told, and the node serves.
        storage.horizon, storage.lease_s = "0/2000000", 600.0
        answer = node.configure(document | {"pageserver_connstring": f"{storage.url},{second.url}"})
        assert answer.status == 200, answer.body
        wait_until(lambda: node.status()["error"] is not None, "the refusal is shown", 30)
        told = node.status()
        assert told["status"] == "running"
        assert "lease could not be obtained, LSN is behind the GC cutoff (shard 0002)" in told["error"]
        assert node.query("SELECT pg_is_in_recovery()") == [(True,)]
        assert node.metric("compute_node_lsn_lease_valid_until_seconds") == 0
        assert node.stop() == 0, node.log

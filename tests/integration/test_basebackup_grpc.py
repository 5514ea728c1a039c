"""Base backups over gRPC: the same stream by another way, with a helper process in between."""

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.kit.programs import Starter
from compute_node.actors.postgres_process.sources import SourceError
from compute_node.actors.postgres_process.sources.pageserver import PageserverSource, missing_extra
from compute_node.actors.postgres_process.sources.stream import GrpcStream
from compute_node.messages.secret import Secret
from compute_node.messages.spec import ComputeSpec
from compute_node.postgres import page_api
from compute_node.postgres.page_api import HELPER
from compute_node.postgres.page_api_call import BASE_BACKUP, SERVICE, WireError, backup_request, chunk

from doubles.archives import chunks, compressed, entry, folder, whole
from doubles.page_api import PageApiServer, a_message, page_api_server
from doubles.specs import a_spec
from fix_postgres import wait_until
from fix_process import in_thread

TENANT, TIMELINE, TOKEN = "a" * 32, "b" * 32, "canary-of-storage"
ARCHIVE = compressed(
    whole(
        folder("global"),
        entry("PG_VERSION", b"15\n"),
        entry("global/pg_control", bytes(8192)),
        entry("pg_wal/000000010000000000000001", bytes(range(256)) * 4000),
    )
)


@pytest.fixture
def server() -> Iterator[PageApiServer]:
    with page_api_server() as made:
        made.answer = lambda _: chunks(ARCHIVE, 16_384)
        yield made


def spec_of(port: int, **changes: Any) -> ComputeSpec:
    fields: dict[str, Any] = {
        "tenant_id": TENANT,
        "timeline_id": TIMELINE,
        "mode": "Replica",
        "pageserver_connstring": Secret(f"grpc://127.0.0.1:{port},grpc://127.0.0.1:1"),
        "storage_auth_token": Secret(TOKEN),
    }
    return a_spec(**(fields | changes))


def fetch(target: Path, spec: ComputeSpec, cancellation: Cancellation | None = None) -> int:
    source = PageserverSource(None, 15, 0)
    stages = source.build(str(target), spec, cancellation or Cancellation(), sync=False)
    assert stages.pageserver_connect_micros > 0
    return stages.basebackup_bytes


def test_a_backup_comes_with_the_ids_the_shard_and_the_token(server: PageApiServer, tmp_path: Path) -> None:
    assert fetch(tmp_path / "data", spec_of(server.port)) == len(ARCHIVE)
    assert (tmp_path / "data/pg_wal/000000010000000000000001").read_bytes() == bytes(range(256)) * 4000
    assert server.requests == [(BASE_BACKUP, b"\x10\x01\x20\x02")]
    told = {name: server.metadata[name] for name in server.metadata if name.startswith(("neon-", "auth"))}
    assert told == {
        "neon-tenant-id": TENANT,
        "neon-timeline-id": TIMELINE,
        "neon-shard-id": "0002",
        "authorization": f"Bearer {TOKEN}",
    }


@pytest.mark.parametrize(
    ("count", "status", "passing"),
    [(0, "FAILED_PRECONDITION", False), (2, "UNAVAILABLE", True), (10**6, "INTERNAL", True)],
    ids=["at once", "within", "after the end"],
)
def test_an_error_anywhere_is_an_error(
    count: int, status: str, server: PageApiServer, tmp_path: Path, *, passing: bool
) -> None:
    server.fail_after(chunks(ARCHIVE, 16_384), count, status, "so it is")
    with pytest.raises(SourceError, match="failed to get basebackup@0/0: so it is") as caught:
        fetch(tmp_path / "data", spec_of(server.port))
    assert caught.value.passing is passing
    assert TOKEN not in str(caught.value)


def test_the_time_to_connect_is_not_that_of_a_server_that_thinks(server: PageApiServer) -> None:
    endpoint = page_api.Endpoint(f"127.0.0.1:{server.port}", {})
    stream = GrpcStream(endpoint, 0, replica=True, starter=Starter(None), cancellation=Cancellation())

    def answer(_: Any) -> Iterator[bytes]:
        wait_until(lambda: stream.connect_us > 0, "the connection is known", 50)
        yield ARCHIVE

    server.answer = answer
    with stream:
        assert b"".join(stream.chunks()) == ARCHIVE


def test_a_cancellation_ends_the_helper_too(server: PageApiServer, tmp_path: Path) -> None:
    def stall(context: Any) -> Iterator[bytes]:
        yield ARCHIVE[:1000]
        while context.is_active():
            wait_until(lambda: not context.is_active(), "the helper has left", 30)

    server.answer = stall
    cancellation = Cancellation()
    ended: list[float] = []

    def run() -> None:
        with pytest.raises(CancelledError):
            fetch(tmp_path / "data", spec_of(server.port), cancellation)
        ended.append(time.monotonic())

    thread = in_thread(run)
    wait_until(lambda: server.requests, "the helper has asked", 50)
    asked = time.monotonic()
    cancellation.request()
    thread.join(30)
    assert ended
    assert ended[0] - asked < 1.0
    assert not [child for child in psutil.Process().children() if HELPER in " ".join(child.cmdline())]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert missing_extra(spec_of(1, pageserver_connstring=Secret("postgresql://a"))) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'compute-node[grpc]'" in (missing_extra(spec_of(1)) or "")
    with pytest.raises(SourceError, match="compute-node") as caught:
        fetch(tmp_path / "data", spec_of(1))
    assert not caught.value.passing


def test_the_two_messages_are_what_the_protocol_says() -> None:
    assert backup_request(0x16ABCDE, replica=True) == b"\x08\xde\xf9\xaa\x0b\x10\x01\x20\x02"
    assert backup_request(0, replica=False) == b"\x20\x02"
    data = bytes(range(256)) * 100
    assert chunk(a_message(data)) == data
    assert chunk(b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x0a\x01x") == b"x"
    for broken in (b"\x0a\x05x", b"\x0a", b"\x80", b"\x0b", b"\x19\x00"):
        with pytest.raises(WireError):
            chunk(broken)


def test_what_is_no_pageserver_is_said_by_the_helper(server: PageApiServer, tmp_path: Path) -> None:
    server.close()
    spec = spec_of(server.port)
    with pytest.MonkeyPatch.context() as patch:
        from compute_node.actors.postgres_process.sources import stream

        patch.setattr(stream, "CONNECT_S", 0.5)
        with pytest.raises(SourceError, match=r"no connection within 0.5 s") as caught:
            fetch(tmp_path / "data", spec)
    assert caught.value.passing
    assert SERVICE + BASE_BACKUP == "/page_api.PageService/GetBaseBackup"

"""Base backups over gRPC: the same stream by another way, with a helper process in between."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.postgres_process.sources import SourceError, grpc_fetch
from compute_node.actors.postgres_process.sources.grpc_fetch import WireError, chunk, request
from compute_node.actors.postgres_process.sources.pageserver import PageserverSource, missing_extra
from compute_node.messages.secret import Secret
from compute_node.messages.spec import ComputeSpec

from doubles.archives import chunks, compressed, entry, folder, whole
from doubles.specs import a_spec
from fix_postgres import absent, wait_until
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


def a_message(data: bytes) -> bytes:
    """GetBaseBackupResponseChunk, with a field that nobody knows yet."""
    size = len(data)
    return b"\x0a" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + data + b"\x10\x01"


class Server:
    """A pageserver's gRPC side; `answer` is given what to do with a call, and yields data."""

    def __init__(self, grpc: Any) -> None:
        self.requests: list[bytes] = []
        self.metadata: dict[str, str] = {}
        self.answer: Callable[[Any], Iterator[bytes]] = lambda _: chunks(ARCHIVE, 16_384)
        self._grpc = grpc
        self._server = grpc.server(ThreadPoolExecutor(2))
        methods = {"GetBaseBackup": grpc.unary_stream_rpc_method_handler(self._call)}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("page_api.PageService", methods),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _call(self, asked: bytes, context: Any) -> Iterator[bytes]:
        self.requests.append(asked)
        self.metadata = dict(context.invocation_metadata())
        for data in self.answer(context):
            yield a_message(data)

    def fail_after(self, count: int, status: str, text: str) -> None:
        """Send so many chunks, and then this."""

        def answer(context: Any) -> Iterator[bytes]:
            for number, data in enumerate(chunks(ARCHIVE, 16_384)):
                if number == count:
                    break
                yield data
            context.abort(self._grpc.StatusCode[status], text)

        self.answer = answer

    def close(self) -> None:
        self._server.stop(grace=None).wait(20)


@pytest.fixture
def server() -> Iterator[Server]:
    if importlib.util.find_spec("grpc") is None:
        absent("the library for gRPC (the extra grpc)")
    import grpc

    made = Server(grpc)
    yield made
    made.close()


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


def test_a_backup_comes_with_the_ids_the_shard_and_the_token(server: Server, tmp_path: Path) -> None:
    assert fetch(tmp_path / "data", spec_of(server.port)) == len(ARCHIVE)
    assert (tmp_path / "data/pg_wal/000000010000000000000001").read_bytes() == bytes(range(256)) * 4000
    assert server.requests == [b"\x10\x01\x20\x02"]
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
    count: int, status: str, server: Server, tmp_path: Path, *, passing: bool
) -> None:
    server.fail_after(count, status, "so it is")
    with pytest.raises(SourceError, match="failed to get basebackup@0/0: so it is") as caught:
        fetch(tmp_path / "data", spec_of(server.port))
    assert caught.value.passing is passing
    assert TOKEN not in str(caught.value)


def test_a_cancellation_ends_the_helper_too(server: Server, tmp_path: Path) -> None:
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
    assert not [child for child in psutil.Process().children() if "grpc_fetch" in " ".join(child.cmdline())]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert missing_extra(spec_of(1, pageserver_connstring=Secret("postgresql://a"))) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'compute-node[grpc]'" in (missing_extra(spec_of(1)) or "")
    with pytest.raises(SourceError, match="compute-node") as caught:
        fetch(tmp_path / "data", spec_of(1))
    assert not caught.value.passing


def test_the_two_messages_are_what_the_protocol_says() -> None:
    assert request(0x16ABCDE, replica=True) == b"\x08\xde\xf9\xaa\x0b\x10\x01\x20\x02"
    assert request(0, replica=False) == b"\x20\x02"
    data = bytes(range(256)) * 100
    assert chunk(a_message(data)) == data
    assert chunk(b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x0a\x01x") == b"x"
    for broken in (b"\x0a\x05x", b"\x0a", b"\x80", b"\x0b", b"\x19\x00"):
        with pytest.raises(WireError):
            chunk(broken)


def test_what_is_no_pageserver_is_said_by_the_helper(server: Server, tmp_path: Path) -> None:
    server.close()
    spec = spec_of(server.port)
    with pytest.MonkeyPatch.context() as patch:
        from compute_node.actors.postgres_process.sources import stream

        patch.setattr(stream, "CONNECT_S", 0.5)
        with pytest.raises(SourceError, match=r"no connection within 0.5 s") as caught:
            fetch(tmp_path / "data", spec)
    assert caught.value.passing
    assert grpc_fetch.METHOD == "/page_api.PageService/GetBaseBackup"

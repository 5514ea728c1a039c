"""The source `pageserver` over a double: what is asked, what goes wrong on the wire, and nodes that live on it."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.kit.metrics import Metrics
from compute_node.actors.postgres_process.port import PassingError
from compute_node.actors.postgres_process.sources import SourceError, stream
from compute_node.actors.postgres_process.sources.pageserver import PageserverSource
from compute_node.actors.postgres_process.sources.tar import BLOCK
from compute_node.messages.metrics import BASEBACKUP_RECEIVED
from compute_node.messages.postgres import PgdataFailed, PgdataStages, PreparePgdata
from compute_node.messages.secret import Secret
from compute_node.messages.settings import SourceName
from compute_node.messages.spec import (
    ComputeSpec,
    PageserverConnectionInfo,
    PageserverShard,
    PageserverUrls,
    StaticMode,
)
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries
from msgspec.structs import replace

from doubles.archives import compressed, entry, folder, whole
from doubles.pageserver import Pageserver, pageserver
from doubles.safekeepers import Sync, SyncProgram, safekeepers
from doubles.specs import a_spec
from doubles.wire import Refused, WireFaults
from fix_node import MakeNode
from fix_postgres import wait_until
from fix_process import MakeProcess, in_thread
from fix_storage import NO_CANARY, TENANT, TIMELINE, stored

TOKEN: Final = "canary-of-storage"
SEGMENT: Final = "pg_wal/000000010000000000000001"
SMALL: Final = whole(
    folder("global"),
    folder("pg_wal"),
    entry("PG_VERSION", b"15\n"),
    entry("pg_hba.conf", b"local all all trust\n"),
    entry("zenith.signal", b"PREV LSN: none"),
    entry("global/pg_control", bytes(8192)),
    entry(SEGMENT, bytes(range(256)) * 16),
)


def a_stored_spec(server: Pageserver, **changes: Any) -> ComputeSpec:
    fields: dict[str, Any] = {
        "tenant_id": TENANT.upper(),
        "timeline_id": TIMELINE,
        "pageserver_connstring": Secret(f"{server.url},postgresql://no_user@second-shard:1"),
        "storage_auth_token": Secret(TOKEN),
    }
    return a_spec(**(fields | changes))


@pytest.fixture
def server() -> Iterator[Pageserver]:
    with pageserver(compressed(SMALL), tenant_id=TENANT, timeline_id=TIMELINE, password=TOKEN) as made:
        yield made
        wait_until(lambda: made.server.connected == 0, "the client has left")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data"


def fetch(
    target: Path, spec: ComputeSpec, cancellation: Cancellation | None = None, *, synced: int = 0
) -> PgdataStages:
    if target.exists():
        shutil.rmtree(target)
    source = PageserverSource(None, 15, synced)
    return source.build(str(target), spec, cancellation or Cancellation(), sync=False)


# --- What is asked, and what is made of the answer

MODES: Final[dict[str, tuple[Any, str, bool]]] = {
    "primary": ("Primary", f"basebackup {TENANT} {TIMELINE} 0/16ABCDE --gzip", False),
    "static": (StaticMode("0/169ad58"), f"basebackup {TENANT} {TIMELINE} 0/169AD58 --gzip --replica", True),
    "replica": ("Replica", f"basebackup {TENANT} {TIMELINE} --gzip --replica", True),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_asks_in_its_own_words_and_gets_its_own_files(
    mode: str, server: Pageserver, target: Path
) -> None:
    asked, command, is_standby = MODES[mode]
    stages = fetch(target, a_stored_spec(server, mode=asked), synced=0x16ABCDE)
    assert server.server.queries == [command]
    (client,) = server.server.clients
    assert client.options == f"-c neon.compute_mode={mode}"
    assert client.parameters["application_name"] == "compute_ctl"
    assert (client.parameters["user"], client.password) == ("no_user", TOKEN)
    assert (target / "standby.signal").exists() is is_standby
    assert (target / "neon.signal").read_text() == "PREV LSN: none"
    assert (target / SEGMENT).read_bytes() == bytes(range(256)) * 16
    assert stages.basebackup_bytes == len(server.archive)
    assert stages.pageserver_connect_micros > 0
    assert stages.basebackup_ms >= 0


def test_without_synced_safekeepers_a_primary_asks_for_the_latest(server: Pageserver, target: Path) -> None:
    fetch(target, a_stored_spec(server))
    assert server.server.queries == [f"basebackup {TENANT} {TIMELINE} --gzip"]


def test_the_bytes_that_came_are_shown(server: Pageserver, target: Path) -> None:
    metrics = Metrics()
    PageserverSource(None, 15, 0, metrics).build(
        str(target), a_stored_spec(server), Cancellation(), sync=False
    )
    assert metrics.read(BASEBACKUP_RECEIVED) == {(): len(server.archive)}


# --- What goes wrong

FAULTS: Final = {
    "hangs up": (WireFaults(hangs_up=True), "failed to get", True),
    "refuses for now": (WireFaults(refuses=Refused("tenant is not active")), "not active", True),
    "shuts down": (WireFaults(refuses=Refused("shutting down", "57P01")), "shutting down", True),
    "unknown": (WireFaults(refuses=Refused("Not found: tenant")), "Not found", False),
    "archived": (WireFaults(refuses=Refused("timeline is archived")), "archived", False),
    "no right": (WireFaults(refuses=Refused("JWT authentication error", "28000")), "JWT", False),
    "cut before the stream": (WireFaults(cut_at=0), "failed to get", True),
    "cut": (WireFaults(cut_at=300), "failed to get", True),
    "no protocol": (WireFaults(garbage_at=300), "lost synchronization with server", True),
    "ends too early": (WireFaults(done_at=300), "its compressed end is missing", True),
    "an error within": (WireFaults(error_at=300), "shutting down", True),
    "an error after the end": (WireFaults(error_after=Refused("could not finish")), "could not finish", True),
    "a flipped trailer": (WireFaults(flips={len(compressed(SMALL)) - 6: 1}), "incorrect", True),
}


@pytest.mark.parametrize("case", FAULTS)
def test_every_fault_of_the_wire_is_an_error_that_says_whether_it_may_pass(
    case: str, server: Pageserver, target: Path
) -> None:
    faults, text, passing = FAULTS[case]
    server.server.faults = faults
    with pytest.raises(SourceError, match=text) as caught:
        fetch(target, a_stored_spec(server, mode=StaticMode("0/10")))
    assert caught.value.passing is passing, str(caught.value)
    assert str(caught.value).startswith("failed to get basebackup@0/10: ")
    assert TOKEN not in str(caught.value)


def test_a_wrong_token_an_old_lsn_and_an_unknown_branch_do_not_pass(server: Pageserver, target: Path) -> None:
    server.horizon = "0/20"
    for changes, text in (
        ({"storage_auth_token": Secret("wrong")}, "JWT authentication error"),
        ({"storage_auth_token": None}, "no password supplied"),
        ({"mode": StaticMode("0/10")}, "invalid basebackup lsn"),
        ({"timeline_id": "c" * 32}, "not found"),
    ):
        with pytest.raises(SourceError, match=text) as caught:
            fetch(target, a_stored_spec(server, **changes))
        assert not caught.value.passing, text


@pytest.mark.parametrize("port", ["x", "5432,5433", "99999"])
def test_a_port_that_is_none_is_refused_for_good(port: str, target: Path) -> None:
    servers = (PageserverUrls(libpq_url=Secret(f"host=127.0.0.1 port={port}")),)
    info = PageserverConnectionInfo(0, {"0000": PageserverShard(servers)})
    with pytest.raises(SourceError, match="invalid port number") as caught:
        fetch(target, a_spec(tenant_id=TENANT, timeline_id=TIMELINE, pageserver_connection_info=info))
    assert not caught.value.passing


def test_cut_at_a_block_or_anywhere_else_it_is_never_taken_for_whole(
    server: Pageserver, target: Path
) -> None:
    pick = random.Random(33)  # noqa: S311 - a seed, to be found again
    blocks = [compressed(SMALL[:end]) for end in pick.sample(range(0, len(SMALL), BLOCK), 8)]
    spec = a_stored_spec(server)
    for archive in blocks:
        server.archive = archive
        with pytest.raises(SourceError, match="the archive is"):
            fetch(target, spec)
    server.archive, server.chunk = compressed(SMALL), 64
    for end in pick.sample(range(len(server.archive)), 8):
        server.server.faults = WireFaults(cut_at=end)
        with pytest.raises(SourceError):
            fetch(target, spec)
        server.server.faults = WireFaults(done_at=end)
        with pytest.raises(SourceError):
            fetch(target, spec)


def test_a_real_one_that_is_cut_at_any_byte_is_never_taken_for_whole(
    storage: Pageserver, target: Path
) -> None:
    pick, size = random.Random(34), len(storage.archive)  # noqa: S311 - a seed, to be found again
    spec = a_stored_spec(storage, storage_auth_token=Secret(NO_CANARY))
    cut, done = pick.sample(range(size), 2)
    for faults in (WireFaults(cut_at=cut), WireFaults(done_at=done), WireFaults(done_at=size - 1)):
        storage.server.faults = faults
        with pytest.raises(SourceError) as caught:
            fetch(target, spec)
        assert caught.value.passing, str(caught.value)
    storage.server.faults = WireFaults()
    assert fetch(target, spec).basebackup_bytes == size


@pytest.mark.parametrize(
    ("archive", "text"),
    [
        (whole(entry("global/pg_control"), entry(SEGMENT)), "holds no cluster"),
        (whole(entry("PG_VERSION", b"15\n"), entry(SEGMENT)), "holds no cluster"),
        (whole(entry("PG_VERSION", b"15\n"), entry("global/pg_control")), "no segment of the log"),
        (SMALL.replace(b"15\n", b"16\n"), "is of PostgreSQL 16, and the programs given are of 15"),
        (whole(), "holds no cluster"),
        (bytes(20 * BLOCK), "holds no cluster"),
    ],
)
def test_what_is_no_cluster_of_this_version_is_refused_for_good(
    archive: bytes, text: str, server: Pageserver, target: Path
) -> None:
    server.archive = compressed(archive)
    with pytest.raises(SourceError, match=text) as caught:
        fetch(target, a_stored_spec(server))
    assert not caught.value.passing


@pytest.mark.parametrize(
    ("limit", "faults"),
    [
        ("CONNECT_S", WireFaults(deaf=True)),
        ("REPLY_S", WireFaults(mute=True)),
        ("SILENCE_S", WireFaults(stall_at=100)),
    ],
)
def test_a_server_that_says_nothing_is_given_up(
    limit: str, faults: WireFaults, server: Pageserver, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, limit, 0.3)
    server.server.faults = faults
    with pytest.raises(SourceError, match=r"nothing for 0.3 s|no answer within 0.3 s") as caught:
        fetch(target, a_stored_spec(server))
    assert caught.value.passing


def test_a_server_that_trickles_is_given_up_too(
    server: Pageserver, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "TOTAL_S", 0.5)
    server.chunk = 1
    server.server.faults = WireFaults(pause_s=0.01)
    with pytest.raises(SourceError, match=r"it has not ended within 0\.5 s") as caught:
        fetch(target, a_stored_spec(server))
    assert caught.value.passing


@pytest.mark.parametrize(
    "faults", [WireFaults(deaf=True), WireFaults(mute=True), WireFaults(stall_at=0), WireFaults(stall_at=300)]
)
def test_a_cancellation_ends_it_wherever_it_waits(
    faults: WireFaults, server: Pageserver, target: Path
) -> None:
    server.server.faults = faults
    cancellation = Cancellation()
    ended: list[float] = []

    def run() -> None:
        with pytest.raises(CancelledError):
            fetch(target, a_stored_spec(server), cancellation)
        ended.append(time.monotonic())

    thread = in_thread(run)
    assert server.server.stalled.wait(30)
    asked = time.monotonic()
    cancellation.request()
    thread.join(30)
    assert ended
    assert ended[0] - asked < 1.0


def test_a_pageserver_whose_disk_is_full_is_asked_again_and_nobody_blames_ours(
    server: Pageserver, make_process: MakeProcess, binaries15: Binaries
) -> None:
    server.server.faults = WireFaults(refuses=Refused("No space left on device (os error 28)"))
    process = make_process(binaries15, source=SourceName.PAGESERVER)
    process.inspect()
    with pytest.raises(PassingError, match=r"No space left on device \(os error 28\)$"):
        process.server.prepare(a_stored_spec(server, mode="Replica"), 0, Cancellation())


# --- Whole nodes


@pytest.mark.parametrize("mode", [{"Static": "0/1000028"}, "Replica"], ids=["static", "replica"])
def test_a_read_only_node_comes_up_from_storage_again_and_again(
    mode: Any, storage: Pageserver, make_node: MakeNode, binaries15: Binaries, sockets: Path
) -> None:
    node = make_node(binaries15, "--source", "pageserver")
    node.write_config(stored(storage, node.postgres_port, sockets, mode=mode))
    storage.server.faults = WireFaults(cut_at=len(storage.archive) // 2)
    node.start()
    node.heard("Failed to get basebackup: basebackup@")
    storage.server.faults = WireFaults()
    node.await_status("running")
    assert node.query("SELECT pg_is_in_recovery()") == [(True,)]
    stages = node.call("GET", "/metrics.json").body
    assert stages["basebackup_bytes"] == len(storage.archive)
    assert stages["pageserver_connect_micros"] > 0
    (node.pgdata / "stale").write_text("of the life before")
    answer = node.call("POST", "/terminate?mode=immediate")
    assert (answer.status, node.wait()) == (200, 0)
    node.start().await_status("running")
    assert not (node.pgdata / "stale").exists()
    assert node.stop() == 0


def test_a_primary_comes_up_at_the_lsn_of_its_safekeepers_and_writes(
    storage: Pageserver, make_node: MakeNode, binaries15: Binaries, sockets: Path
) -> None:
    program = SyncProgram(sockets / "programs", binaries15)  # for a machine on which 100 ms are not enough
    with safekeepers(3, tenant_id=TENANT, timeline_id=TIMELINE) as keepers:
        node = make_node(replace(binaries15, postgres=str(program.postgres)), "--source", "pageserver")
        document = stored(storage, node.postgres_port, sockets)
        node.run(document | {"safekeeper_connstrings": [one.address for one in keepers]})
        assert storage.backups == [f"basebackup {TENANT} {TIMELINE} 0/16ABCDE --gzip"]
        node.query("CREATE TABLE t AS SELECT 1 AS a")
        assert node.query("SELECT a FROM t") == [(1,)]
        program.set(Sync(code=1, says=("FATAL: term 9 was seen",)))
        assert node.stop() == 0, "its own end was in order, and the next start syncs"
        node.heard("the safekeepers were not synced after the end of Postgres")
        node.heard("exit code 1")
        assert not (node.pgdata / "postmaster.pid").exists()


def test_a_primary_syncs_safekeepers_that_disagree_and_once_more_at_its_end(
    storage: Pageserver, make_node: MakeNode, binaries15: Binaries, sockets: Path
) -> None:
    program = SyncProgram(sockets / "programs", binaries15)
    program.set(Sync(lsn="0/1000028", says=("elected in term 7",)))
    with safekeepers(3, tenant_id=TENANT, timeline_id=TIMELINE) as keepers:
        for number, one in enumerate(keepers, start=1):
            one.flush_lsn = one.commit_lsn = f"0/{number}"
        node = make_node(replace(binaries15, postgres=str(program.postgres)), "--source", "pageserver")
        document = stored(storage, node.postgres_port, sockets)
        node.run(document | {"safekeeper_connstrings": [one.address for one in keepers]})
        assert storage.backups == [f"basebackup {TENANT} {TIMELINE} 0/1000028 --gzip"]
        node.heard("LOG:  elected in term 7")
        program.set(Sync(lsn="0/28F10D8"))
        answer = node.call("POST", "/terminate?mode=immediate")
        assert (answer.status, answer.body, node.wait()) == (200, {"lsn": "0/28F10D8"}, 0)
        assert [call["pgdata"] for call in program.calls] == [str(node.pgdata)]


def test_an_archive_with_an_error_behind_it_is_never_served(
    storage: Pageserver, make_node: MakeNode, binaries15: Binaries, sockets: Path
) -> None:
    storage.server.faults = WireFaults(error_after=Refused("timeline was not found", "XX000"))
    node = make_node(binaries15, "--source", "pageserver", "--dev")
    node.write_config(stored(storage, node.postgres_port, sockets, mode="Replica"))
    node.start()
    assert node.wait() == 1
    node.heard("timeline was not found")
    assert not node.pgdata.exists()
    assert len(storage.backups) == 1


def test_an_order_to_stop_ends_a_base_backup_within_a_second_and_leaves_nothing(
    storage: Pageserver, make_process: MakeProcess, binaries15: Binaries, account: Account | None
) -> None:
    storage.server.faults = WireFaults(stall_at=len(storage.archive) // 2)
    process = make_process(binaries15, source=SourceName.PAGESERVER)
    process.inspect()
    changes = {"mode": "Replica", "storage_auth_token": Secret(NO_CANARY)}
    process.ref.tell(PreparePgdata(1, a_stored_spec(storage, **changes)))
    assert storage.server.stalled.wait(30)
    wait_until(
        lambda: any(process.pgdata.parent.glob("*.building/data/base")), "the first files are there", 30
    )
    asked = time.monotonic()
    process.stop()
    took_s = time.monotonic() - asked
    assert took_s < 1.0
    assert not os.path.lexists(process.pgdata)
    assert not list(process.pgdata.parent.glob("*.building"))
    assert process.heard(PgdataFailed) == []

"""Whole nodes that come back warm: from endpoint storage with the extension neon, from a folder on plain Postgres."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from compute_node.actors.lfc_manager.neon import size_of
from compute_node.actors.lfc_manager.packing import unpack
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries

from doubles import canaries
from doubles.endpoint_storage import TENANT, TIMELINE, EndpointStorage, Fault, endpoint_storage
from fix_node import MakeNode, Node, setting, spec
from fix_postgres import copy_with_extensions, owned_folder, wait_until

ENDPOINT = "ep-winter"
CHUNKS = 50
"""What users have in the cache of the stand-in."""
STAND_IN = """\
CREATE SEQUENCE neon.standin_cached MINVALUE 0;
CREATE SEQUENCE neon.standin_life MINVALUE 0;
CREATE SEQUENCE neon.standin_total MINVALUE 0;
CREATE FUNCTION neon.standin_born() RETURNS int8 LANGUAGE sql
    AS 'SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000)::int8';
CREATE FUNCTION neon.standin_chunks() RETURNS int4 LANGUAGE sql
    AS 'SELECT CASE WHEN (SELECT last_value FROM neon.standin_life) = neon.standin_born()
                    THEN (SELECT last_value FROM neon.standin_cached)::int4 ELSE 0 END';
CREATE FUNCTION neon.standin_fill(n int4) RETURNS void LANGUAGE sql
    AS 'SELECT pg_catalog.setval(''neon.standin_life'', neon.standin_born());
        SELECT pg_catalog.setval(''neon.standin_cached'', n)';
CREATE FUNCTION neon.get_local_cache_state(max_chunks integer DEFAULT NULL) RETURNS bytea LANGUAGE sql
    AS 'SELECT CASE WHEN c > 0 THEN decode(''fcfcfcfc'' || lpad(to_hex(c), 2, ''0'') || ''000000''
             || lpad(to_hex(c), 2, ''0'') || ''000000'' || ''07000000'' || repeat(''00'', 36 * c), ''hex'') END
          FROM neon.standin_chunks() AS c';
CREATE FUNCTION neon.prewarm_local_cache(state bytea, n_workers integer DEFAULT 1) RETURNS void STRICT
    LANGUAGE plpgsql AS $$
DECLARE
    wanted int4 := get_byte(state, 4);
BEGIN
    PERFORM setval('neon.standin_total', wanted);
    FOR n IN 1..wanted LOOP
        PERFORM neon.standin_fill(n);
        PERFORM pg_sleep(current_setting('neon.standin_pause_s', true)::float8);
    END LOOP;
END $$;
CREATE FUNCTION neon.get_prewarm_info(
    OUT total_pages integer, OUT prewarmed_pages integer, OUT skipped_pages integer, OUT active_workers integer
) LANGUAGE sql AS 'SELECT last_value::int4, neon.standin_chunks(), 0, 0 FROM neon.standin_total';
"""
"""The functions of the extension, over sequences: what they hold is seen at once, and cold after a restart."""


@pytest.fixture
def flavoured(binaries15: Binaries, scratch: Path, account: Account | None) -> Iterator[Binaries]:
    """A Postgres that offers an extension neon with the functions of the cache."""
    folder = owned_folder(scratch, account)
    yield copy_with_extensions(
        binaries15,
        account,
        folder,
        {
            "neon.control": "comment = 'a double'\ndefault_version = '1.6'\nrelocatable = false\nschema = neon\n",
            "neon--1.6.sql": STAND_IN,
        },
    )
    shutil.rmtree(folder)


@pytest.fixture
def storage() -> Iterator[EndpointStorage]:
    with endpoint_storage(canaries.canary("endpoint")) as made:
        yield made


def on_neon(storage: EndpointStorage, *, pause_s: float = 0.0, **changes: Any) -> dict[str, Any]:
    fields = {
        "tenant_id": TENANT,
        "timeline_id": TIMELINE,
        "endpoint_id": ENDPOINT,
        "endpoint_storage_addr": storage.address,
        "autoprewarm": True,
        "offload_lfc_interval_seconds": 1,
        "cluster": {
            "settings": [*spec()["cluster"]["settings"], setting("neon.standin_pause_s", str(pause_s))]
        },
    }
    return spec(**(fields | changes))


def prewarm_state(node: Node) -> dict[str, Any]:
    answer = node.call("GET", "/lfc/prewarm")
    assert answer.status == 200
    shown: dict[str, Any] = answer.body
    return shown


def await_prewarm(node: Node, status: str) -> dict[str, Any]:
    wait_until(lambda: prewarm_state(node)["status"] == status, f"prewarm {status}:\n{node.log[-2000:]}", 40)
    return prewarm_state(node)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_node_that_is_killed_in_the_middle_of_a_prewarm_comes_back_with_the_good_state(
    make_node: MakeNode, flavoured: Binaries, storage: EndpointStorage
) -> None:
    """The bug that this project began with: the incomplete cache was offloaded over the complete state."""
    path = storage.path(ENDPOINT)

    def saved() -> int:
        return size_of(unpack(storage.kept[path])).chunks if path in storage.kept else 0

    node = make_node(flavoured).run(on_neon(storage))
    assert await_prewarm(node, "skipped") == {"status": "skipped", "total": 0, "prewarmed": 0, "skipped": 0}
    wait_until(lambda: node.call("GET", "/lfc/offload").body == {"status": "skipped"}, "nothing is cached")
    assert node.metric("compute_ctl_lfc_prewarms_total") == 1
    assert path not in storage.kept
    node.query(f"SELECT neon.standin_fill({CHUNKS})")
    wait_until(lambda: saved() == CHUNKS, "the cache is offloaded", 30)
    assert node.metric("compute_ctl_lfc_offload_errors_total") == 0
    assert node.process is not None
    node.process.kill()
    node.wait()

    puts = sum(method == "PUT" for method, _ in storage.asked)
    node.run(on_neon(storage, pause_s=1.0))
    wait_until(lambda: prewarm_state(node)["prewarmed"] >= 2, "the prewarm tells how far it is", 30)
    assert prewarm_state(node) | {"prewarmed": 0} == {
        "status": "prewarming",
        "total": CHUNKS,
        "prewarmed": 0,
        "skipped": 0,
    }
    assert node.call("POST", "/lfc/prewarm").status == 429
    refused = node.call("POST", "/lfc/offload?force=true")
    assert (refused.status, "a prewarm is under way" in refused.body["error"]) == (409, True)
    assert node.call("DELETE", "/lfc/prewarm").status == 202
    await_prewarm(node, "cancelled")
    asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_until(lambda: not node.query(asleep), "the statement has ended in the server")
    node.heard("canceling statement due to user request")
    node.heard("not offloaded any more")
    assert node.call("POST", "/lfc/offload").status == 409
    assert node.metric("compute_node_lfc_offload_blocked") == 1
    assert node.call("POST", "/lfc/prewarm").status == 202
    await_prewarm(node, "prewarming")
    node.process.kill()
    node.wait()
    assert sum(method == "PUT" for method, _ in storage.asked) == puts, "nothing was stored meanwhile"
    assert saved() == CHUNKS

    node.run(on_neon(storage))
    done = await_prewarm(node, "completed")
    assert (done["total"], done["prewarmed"], done["skipped"]) == (CHUNKS, CHUNKS, 0)
    assert set(done) >= {"state_download_time_ms", "uncompress_time_ms", "prewarm_time_ms"}
    assert node.query("SELECT neon.standin_chunks()") == [(CHUNKS,)]
    assert node.stop() == 0, node.log
    assert saved() == CHUNKS


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_whatever_the_storage_answers_a_prewarm_ends_in_a_state_that_says_why_and_the_node_serves(
    make_node: MakeNode, flavoured: Binaries, storage: EndpointStorage
) -> None:
    node = make_node(flavoured).run(on_neon(storage, autoprewarm=False, offload_lfc_interval_seconds=None))
    node.query(f"SELECT neon.standin_fill({CHUNKS})")
    assert node.call("POST", "/lfc/offload").status == 202
    wait_until(lambda: storage.kept, "it is saved", 30)
    good = dict(storage.kept)
    for fault, text in (
        (Fault.SHORTENED, "decoding LFC state: its end is missing"),
        (Fault.HTML, "decoding LFC state: it does not begin as a Zstandard frame"),
        (Fault.BOMB, "decoding LFC state: it has more than 67108864 bytes"),
        (401, "401 Unauthorized querying endpoint storage"),
    ):
        storage.fault, storage.status = (fault, None) if isinstance(fault, Fault) else (None, fault)
        assert node.call("POST", "/lfc/prewarm").status == 202
        assert await_prewarm(node, "failed")["error"].startswith(text)
    storage.status = None
    for fault, asked in ((Fault.SILENCE, "GET"), (Fault.TRICKLE, "GET"), (Fault.CUT, "GET")):
        storage.fault = fault
        storage.asked.clear()
        assert node.call("POST", "/lfc/prewarm").status == 202
        storage.wait_until_asked(asked)
        assert prewarm_state(node)["status"] == "prewarming", "a cut body is asked for again"
        assert node.call("DELETE", "/lfc/prewarm").status == 202
        await_prewarm(node, "cancelled")
    assert node.metric("compute_ctl_lfc_prewarm_errors_total") == 4
    storage.fault = None
    for path, status in (("/lfc/offload", 409), ("/lfc/prewarm", 202)):
        assert node.call("POST", path).status == status
    await_prewarm(node, "completed")
    storage.status = 413
    assert node.call("POST", "/lfc/offload").status == 202
    wait_until(lambda: node.call("GET", "/lfc/offload").body["status"] == "failed", "too large", 30)
    assert "413" in node.call("GET", "/lfc/offload").body["error"]
    assert storage.kept == good
    assert node.status()["status"] == "running"
    assert node.call("GET", "/ready", token=None).status == 200
    storage.status = None
    storage.kept.clear()
    often = on_neon(storage, autoprewarm=False, offload_lfc_interval_seconds=1)
    assert node.configure(often).status == 200
    wait_until(lambda: storage.kept == good, "a new interval holds at once", 30)
    assert storage.token not in node.log


CACHED = """\
SELECT count(*) FROM pg_buffercache AS b
 WHERE b.relfilenode = pg_relation_filenode('{0}') AND b.relforknumber = 0
   AND b.reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def cached_share(node: Node, table: str) -> float:
    """Return how much of a table is in the shared buffers."""
    ((cached,),) = node.query(CACHED.format(table))
    ((size,),) = node.query(f"SELECT pg_relation_size('{table}') / 8192")
    return float(cached / size)


BLOCKS = 200 * 1024 * 1024 // 8192
FILL = """\
CREATE TABLE t (n int4, x text) WITH (fillfactor = 10);
INSERT INTO t SELECT n, repeat('x', 700) FROM generate_series(1, {}) AS n
"""
"""A row to each page, so that there is little to log and to count."""
PLENTY = 3 << 30
"""Bytes that must be available: two Postgres with 300 MB of buffers, two copies of the table, maybe in memory."""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_200_mb_of_a_plain_node_are_back_after_a_restart_and_so_they_are_in_a_fresh_replica_of_it(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    if (available := psutil.virtual_memory().available) < PLENTY:
        pytest.skip(f"memory is scarce: {available >> 20} MB are available, and {PLENTY >> 20} are needed")
    settings = [one for one in spec()["cluster"]["settings"] if one["name"] != "shared_buffers"]
    settings += [setting("shared_buffers", "300MB"), setting("autovacuum", "off")]  # which would read, too
    plain = spec(autoprewarm=True, endpoint_storage_addr=None, cluster={"settings": settings})
    node = make_node(binaries15)
    store = node.folder / "lfc"
    node.flags = ["--lfc-store", store.as_uri(), "--lfc-offload-on-stop"]
    node.run(plain)
    await_prewarm(node, "skipped")
    for statement in (
        "CREATE EXTENSION pg_buffercache",
        "CREATE EXTENSION pg_prewarm",
        *FILL.format(BLOCKS).split(";\n"),
    ):
        node.query(statement)
    assert node.query("SELECT count(*), pg_relation_size('t') / 8192 FROM t") == [(BLOCKS, BLOCKS)]
    assert cached_share(node, "t") > 0.99
    assert node.stop() == 0, node.log
    assert (store / "compute-test" / "lfc_state").stat().st_size < 20_000

    node.run(plain)
    done = await_prewarm(node, "completed")
    assert done["prewarmed"] + done["skipped"] == done["total"] > BLOCKS
    assert cached_share(node, "t") >= 0.95
    node.heard("the cache is prewarmed")

    replica = make_node(binaries15)
    replica.flags = ["--source", "upstream", "--lfc-store", store.as_uri()]
    upstream = f"host=127.0.0.1 port={node.postgres_port} user=cloud_admin"
    replica.run(msgspec.to_builtins(plain | {"mode": "Replica", "upstream_conninfo": upstream}))
    await_prewarm(replica, "completed")
    assert cached_share(replica, "t") >= 0.95
    assert replica.stop() == 0, replica.log
    assert node.stop() == 0, node.log

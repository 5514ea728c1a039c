"""A cache that is saved and warmed again, beside pg_prewarm by hand and a cold start: `python bench/cache.py`.

200 MB in shared buffers; before each side the server is started anew and the system forgets the files.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Final

from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.lfc_manager.blocks import decode
from compute_node.actors.lfc_manager.caches import PostgresCache
from compute_node.actors.lfc_manager.packing import pack, unpack
from compute_node.bench.rig import (
    COMPUTE_ID,
    ROUNDS,
    USER,
    ByHand,
    Row,
    by_hand,
    compared,
    conf_of_a_node,
    rounds,
    shown,
    table,
)
from compute_node.messages.secret import Secret
from compute_node.messages.settings import NodeSettings
from compute_node.messages.spec import ComputeCtlConfig, KeySet

MEGABYTES: Final = 200
BLOCK: Final = 8192
AIM: Final = 1.2
BACK: Final = 0.95
MAKE: Final = """\
CREATE EXTENSION pg_prewarm;
CREATE TABLE t AS SELECT n, repeat('x', 480) AS x FROM generate_series(1, {}) AS n;
CREATE INDEX ON t (n);
VACUUM ANALYZE t;
SELECT count(*) FROM t WHERE x = '';
SELECT pg_prewarm('t'), pg_prewarm('t_n_idx');
CHECKPOINT;
"""
BY_HAND: Final = """\
SELECT sum(pg_prewarm(oid, 'buffer')) FROM pg_class WHERE relkind IN ('r', 'i', 't', 'S', 'm') AND relpersistence = 'p';
"""
READ: Final = "SET max_parallel_workers_per_gather = 0; SELECT count(*) FROM t WHERE x = '';"


def cache_of(cluster: ByHand) -> PostgresCache:
    """Return the cache of a cluster, as a node sees it."""
    return PostgresCache(
        NodeSettings(
            compute_id=COMPUTE_ID,
            pgdata=str(cluster.pgdata),
            connstr=Secret(f"postgresql://{USER}@localhost:{cluster.port}/postgres"),
            postgres_bin="",
            config=ComputeCtlConfig(jwks=KeySet(keys=())),
        )
    )


def forget_files(folder: Path) -> None:
    """Have the system drop what it remembers of these files, where it can."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(count: int = ROUNDS) -> list[Row]:
    """Save once, then warm by turns."""
    with by_hand(f"{conf_of_a_node()}shared_buffers = '512MB'\n") as cluster:
        cluster.start()
        scripts = {}
        for name, text in (("make", MAKE), ("by_hand", BY_HAND), ("read", READ)):
            scripts[name] = Path(cluster.where, f"{name}.sql")
            scripts[name].write_text(text.replace("{}", str(MEGABYTES * 2000)), encoding="utf-8")
        cluster.psql(scripts["make"])
        nothing = Cancellation()
        offloads: list[float] = []
        body = b""
        for _ in range(count):
            began = time.perf_counter()
            taken = cache_of(cluster).take(nothing)
            assert taken is not None
            body = pack(taken)
            offloads.append(time.perf_counter() - began)
        state = unpack(body)
        total = decode(state).total
        assert total * BLOCK >= MEGABYTES * 1_000_000
        ours: list[float] = []
        theirs: list[float] = []
        warm: list[float] = []
        cold: list[float] = []

        def again() -> None:
            cluster.stop()
            forget_files(cluster.pgdata)
            cluster.launch()

        def by_node() -> None:
            again()
            began = time.perf_counter()
            counts = cache_of(cluster).load(unpack(body), lambda _: None, nothing)
            ours.append(time.perf_counter() - began)
            taken = cache_of(cluster).take(nothing)
            assert taken is not None
            assert decode(taken).total >= BACK * total, counts
            warm.append(cluster.psql(scripts["read"]))

        def by_psql() -> None:
            again()
            theirs.append(cluster.psql(scripts["by_hand"]))

        def without() -> None:
            again()
            cold.append(cluster.psql(scripts["read"]))

        rounds("cache", count, by_node, by_psql, without)
    gigabytes = total * BLOCK / 2**30
    speed = gigabytes * 1024 / statistics.median(ours)
    return [
        compared(
            f"cache: prewarm of {gigabytes:.2f} GB ({speed:.0f} MB/s)",
            ours,
            theirs,
            "pg_prewarm by hand",
            AIM,
        ),
        compared("cache: first full read after a prewarm", warm, cold, "after a cold start", 1.0),
        Row("cache: state taken and compressed", shown(offloads), "", None, ""),
        Row("cache: size of the state", f"{len(body) / gigabytes:.0f} bytes per GB of cache", "", None, ""),
    ]


if __name__ == "__main__":
    print(table(measure()))

"""A cache that is saved and warmed again, beside pg_prewarm by hand and a cold start: `python bench/cache.py`.

200 MB in shared buffers; before each side the server is started anew and the system forgets the files. Then the
point queries of a user, in a process of their own, with and without a prewarm beside them.
"""

import contextlib
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.lfc_manager.blocks import decode
from compute_node.actors.lfc_manager.caches import PostgresCache
from compute_node.actors.lfc_manager.packing import pack, unpack
from compute_node.bench.rig import (
    COMPUTE_ID,
    PATIENCE_S,
    ROUNDS,
    USER,
    ByHand,
    Row,
    by_hand,
    compared,
    conf_of_a_node,
    rounds,
    table,
)
from compute_node.messages.secret import Secret
from compute_node.messages.settings import NodeSettings
from compute_node.messages.spec import ComputeCtlConfig, KeySet

MEGABYTES: Final = 200
BLOCK: Final = 8192
AIM: Final = 1.2
AIM_P99: Final = 2.0
"""That of the rows of `/status`, too."""
HOT: Final = 10_000
"""Rows that the user asks for, one after the other."""
BACK: Final = 0.95
MAKE: Final = """\
CREATE EXTENSION pg_prewarm;
CREATE TABLE t AS SELECT n, repeat('x', 480) AS x FROM generate_series(1, {}) AS n;
CREATE INDEX ON t (n);
VACUUM ANALYZE t;
CREATE TABLE hot (n int PRIMARY KEY, x text);
INSERT INTO hot SELECT n, repeat('x', 80) FROM generate_series(0, 9999) AS n;
VACUUM ANALYZE hot;
SELECT count(*) FROM t WHERE x = '';
SELECT pg_prewarm('t'), pg_prewarm('t_n_idx');
CHECKPOINT;
"""
BY_HAND: Final = """\
SELECT sum(pg_prewarm(oid, 'buffer')) FROM pg_class WHERE relkind IN ('r', 'i', 't', 'S', 'm') AND relpersistence = 'p';
"""
SCATTER: Final = """\
SELECT count(pg_prewarm('t', 'buffer', 'main', n, n)) FROM generate_series(0, {} / 16, 2) AS n;
"""
"""Every other block, which makes the longest state there is."""
WARM_HOT: Final = "SELECT pg_prewarm('hot'), pg_prewarm('hot_pkey');\n"
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


class Bench:
    """A cluster with its table, the state of its warm cache, and what was measured, in seconds."""

    def __init__(self, cluster: ByHand) -> None:
        self._cluster = cluster
        self._scripts: dict[str, Path] = {}
        for script in (MAKE, BY_HAND, READ, SCATTER, WARM_HOT):
            self._scripts[script] = Path(cluster.where, f"{len(self._scripts)}.sql")
            self._scripts[script].write_text(script.replace("{}", str(MEGABYTES * 2000)), encoding="utf-8")
        cluster.start()
        self._run(MAKE)
        self.body = b""
        self.offloads: list[float] = []
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.warm: list[float] = []
        self.cold: list[float] = []
        self.paced: list[float] = []
        self.crowded: list[float] = []
        self.quiet: list[float] = []

    def _run(self, script: str) -> float:
        return self._cluster.psql(self._scripts[script])

    def _again(self) -> None:
        self._cluster.stop()
        forget_files(self._cluster.pgdata)
        self._cluster.launch()

    def _load(self) -> float:
        began = time.perf_counter()
        cache_of(self._cluster).load(unpack(self.body), lambda _: None, Cancellation())
        return time.perf_counter() - began

    @property
    def blocks(self) -> int:
        """How many the state has."""
        return decode(unpack(self.body)).total

    def save(self) -> None:
        """Take the state of the warm cache, as it is stored."""
        began = time.perf_counter()
        self.body = taken_from(self._cluster)
        self.offloads.append(time.perf_counter() - began)

    def by_node(self) -> None:
        """Prewarm, then read all."""
        self._again()
        self.ours.append(self._load())
        assert decode(unpack(taken_from(self._cluster))).total >= BACK * self.blocks
        self.warm.append(self._run(READ))

    def by_psql(self) -> None:
        """Do by hand what a prewarm does."""
        self._again()
        self.theirs.append(self._run(BY_HAND))

    def without(self) -> None:
        """Read all from a cold start."""
        self._again()
        self.cold.append(self._run(READ))

    def beside(self) -> None:
        """Prewarm while a user works."""
        self._again()
        self._run(WARM_HOT)
        with user(self._cluster.port) as finished:
            self.paced.append(self._load())
            self.crowded.append(finished())

    def alone(self) -> None:
        """Let the user work as long, with nothing beside."""
        self._again()
        self._run(WARM_HOT)
        with user(self._cluster.port) as finished:
            Cancellation().wait(statistics.median(self.paced))
            self.quiet.append(finished())

    def scattered(self) -> bytes:
        """Return the state of a cache with the most ranges."""
        self._again()
        self._run(SCATTER)
        return taken_from(self._cluster)


def measure(count: int = ROUNDS) -> list[Row]:
    """Save, then warm by turns."""
    with by_hand(f"{conf_of_a_node()}shared_buffers = '512MB'\n") as cluster:
        bench = Bench(cluster)
        for _ in range(count):
            bench.save()
        assert bench.blocks * BLOCK >= MEGABYTES * 1_000_000
        rounds("cache", count, bench.by_node, bench.by_psql, bench.without)
        rounds("a user beside a prewarm", count, bench.beside, bench.alone)
        scattered = bench.scattered()
    gigabytes = bench.blocks * BLOCK / 2**30

    def megabytes_per_s(seconds: list[float]) -> str:
        return f"{gigabytes * 1024 / statistics.median(seconds):.0f} MB/s"

    p99, p99_alone = statistics.median(bench.crowded), statistics.median(bench.quiet)
    contiguous_size = len(bench.body) / gigabytes
    scattered_size = len(scattered) / (decode(unpack(scattered)).total * BLOCK / 2**30)
    return [
        compared(
            f"cache: prewarm of {gigabytes:.2f} GB ({megabytes_per_s(bench.ours)})",
            bench.ours,
            bench.theirs,
            "pg_prewarm by hand",
            AIM,
        ),
        compared(
            f"cache: offload of it, without the storage ({megabytes_per_s(bench.offloads)})",
            bench.offloads,
            bench.theirs,
            "pg_prewarm by hand",
            AIM,
        ),
        compared("cache: first full read after a prewarm", bench.warm, bench.cold, "after a cold start", 1.0),
        Row(
            f"cache: p99 of a point query beside a prewarm ({megabytes_per_s(bench.paced)} then)",
            f"{p99 * 1e6:.0f} µs",
            f"{p99_alone * 1e6:.0f} µs, without",
            p99 / p99_alone,
            f"≤ {AIM_P99:.2f}",
            p99 / p99_alone <= AIM_P99,
        ),
        Row(
            "cache: size of the state",
            f"{contiguous_size:.0f} bytes per GB of cache",
            f"{scattered_size:.0f}, of every other block",
            None,
            "",
        ),
    ]


def taken_from(cluster: ByHand) -> bytes:
    """Return the state of a cluster's cache as it is stored."""
    state = cache_of(cluster).take(Cancellation()).state
    assert state is not None
    return pack(state)


# --- The user, a process of its own ------------------------------------------------------------------------


def ask_for_points(port: int) -> None:
    """Ask for one row after the other until the input ends, then print the 99th percentile of the seconds."""
    import psycopg

    took: list[float] = []
    with psycopg.connect(
        host="127.0.0.1", port=port, user=USER, dbname="postgres", autocommit=True
    ) as session:
        print("at work", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            wanted = len(took) * 7919 % HOT
            began = time.perf_counter()
            session.execute("SELECT x FROM hot WHERE n = %s", (wanted,), prepare=True).fetchone()
            took.append(time.perf_counter() - began)
    took.sort()
    print(took[int(0.99 * len(took))])


@contextlib.contextmanager
def user(port: int) -> Iterator[Callable[[], float]]:
    """Let a user work meanwhile; what is given ends that and returns the 99th percentile."""
    command = [sys.executable, __file__, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()

        def finished() -> float:
            said, _ = process.communicate(timeout=PATIENCE_S)
            return float(said)

        yield finished


if __name__ == "__main__":
    if sys.argv[1:]:
        ask_for_points(int(sys.argv[1]))
    else:
        print(table(measure()))

"""Unpacking beside tar, and a start from storage beside the same steps by hand: `python bench/storage.py`."""

import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from compute_node.actors.postgres_process.sources.unpacking import unpack
from compute_node.bench.rig import (
    ROOT,
    ROUNDS,
    Row,
    by_hand,
    compared,
    conf_of_a_node,
    folder,
    node,
    progress,
    rounds,
    spec,
    table,
)
from compute_node.postgres.accounts import resolve_account

sys.path.append(str(ROOT / "tests"))
from doubles.archives import compressed, of_cluster
from doubles.pageserver import Pageserver, pageserver

LARGE_FILES: Final = 128
LARGE_FILE: Final = 8 << 20
"""Together 1 GiB."""
SMALL_FILES: Final = 1_000
PAGE: Final = 8192
SEGMENT: Final = 16 << 20
MEMORY_AIM: Final = 32
"""MiB by which unpacking 1 GiB may raise what this process takes."""
TENANT, TIMELINE = "a" * 32, "b" * 32
COMMAND: Final = f"basebackup {TENANT} {TIMELINE} --gzip --replica"


def measure(count: int = ROUNDS) -> list[Row]:
    """Unpack what is large and what is usual; then start replicas."""
    rows = []
    for what, make, aim in (
        ("unpack: 1 GiB", _large, 1.10),
        ("unpack: 1,000 small files and a segment of the log", _small, 1.20),
    ):
        with folder() as where:
            progress(f"{what}: making the archive")
            archive = _archived(where, make)
            rows.append(_unpacking(what, archive, where, count, aim))
            if make is _large:
                rows.append(_memory(archive, where))
    return [*rows, _starting(count)]


def _large(where: Path, pick: random.Random) -> None:
    page = pick.randbytes(PAGE // 2)
    for number in range(LARGE_FILES):
        pages = (pick.randbytes(64) + page + bytes(PAGE // 2 - 64) for _ in range(LARGE_FILE // PAGE))
        (where / str(number)).write_bytes(b"".join(pages))


def _small(where: Path, pick: random.Random) -> None:
    for number in range(SMALL_FILES):
        place = where / "base" / str(number % 4)
        place.mkdir(parents=True, exist_ok=True)
        pages = pick.choice((1, 1, 2, 4))
        (place / str(number)).write_bytes((pick.randbytes(PAGE // 4) + bytes(PAGE * 3 // 4)) * pages)
    (where / "pg_wal").mkdir()
    used = pick.randbytes(2 << 20)
    (where / "pg_wal" / f"{1:024X}").write_bytes(used + bytes(SEGMENT - len(used)))


def _archived(where: Path, make: Callable[[Path, random.Random], None]) -> Path:
    source, archive = where / "source", where / "archive.tar.gz"
    source.mkdir()
    make(source, random.Random(1))  # noqa: S311 - a seed
    command = ["/bin/tar", "-c", "--format=gnu", "-I", "gzip -1", "-f", str(archive), "-C", str(source), "."]
    subprocess.run(command, check=True)
    shutil.rmtree(source)
    return archive


def _chunks(archive: Path) -> Iterator[bytes]:
    with archive.open("rb") as file:
        while data := file.read(64 << 10):
            yield data


@contextlib.contextmanager
def _target(where: Path) -> Iterator[Path]:
    target = where / "target"
    target.mkdir(mode=0o700)
    try:
        yield target
    finally:
        shutil.rmtree(target)


def _unpacking(what: str, archive: Path, where: Path, count: int, aim: float) -> Row:
    account = resolve_account()
    ours: list[float] = []
    theirs: list[float] = []

    def we() -> None:
        with _target(where) as target:
            began = time.perf_counter()
            unpack(_chunks(archive), str(target), account)
            ours.append(time.perf_counter() - began)

    def tar() -> None:
        with _target(where) as target:
            began = time.perf_counter()
            subprocess.run(["/bin/tar", "-xzf", str(archive), "-C", str(target)], check=True)
            theirs.append(time.perf_counter() - began)

    rounds(what, count, we, tar)
    return compared(what, ours, theirs, "tar -xzf", aim)


def _memory(archive: Path, where: Path) -> Row:
    """Unpack in a process of its own, whose memory nobody else has raised."""
    script = (
        "import sys; from pathlib import Path; from compute_node.bench import storage\n"
        "storage.grown(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    with _target(where) as target:
        command = [sys.executable, "-c", script, str(archive), str(target)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
    mib = int(said.stdout) / 1024
    return Row("unpack: 1 GiB: memory", f"+{mib:.0f} MiB", "", None, f"≤ {MEMORY_AIM} MiB", mib <= MEMORY_AIM)


def grown(archive: Path, target: Path) -> None:
    """Print by how many KiB unpacking raises the most that this process ever took."""
    before = _most()
    unpack(_chunks(archive), str(target), None)
    print(_most() - before)


def _most() -> int:
    """Return the most KiB that were ever resident; getrusage would count what the parent had, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


# --- Starts ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _storage() -> Iterator[Pageserver]:
    """Serve the archive of a new cluster."""
    with by_hand(conf_of_a_node()) as cluster:
        cluster.start()
        cluster.stop()
        archive = compressed(of_cluster(cluster.pgdata), 1)
    with pageserver(archive, tenant_id=TENANT, timeline_id=TIMELINE) as made:
        made.chunk = 64 << 10
        yield made


def _starting(count: int) -> Row:
    ours: list[float] = []
    served: list[float] = []
    floors: list[float] = []
    with _storage() as server:
        document = spec() | {
            "mode": "Replica",
            "tenant_id": TENANT,
            "timeline_id": TIMELINE,
            "pageserver_connstring": server.url,
        }

        def start() -> None:
            with node(document, "--source", "pageserver") as made:
                ours.append(made.heard("from init to running") - made.started_s)
                served.append(made.heard("external HTTP server listening") - made.started_s)
                made.terminate()

        def floor() -> None:
            with by_hand("hot_standby = on\nlisten_addresses = 'localhost'\n") as cluster:
                floors.append(cluster.start(fetch=(server.url, COMMAND)))

        rounds("start from storage", count, start, floor)
    listening_ms = statistics.median(served) * 1000
    return compared(
        f"start from storage: exec to `running`, Replica (its API: {listening_ms:.0f} ms)",
        ours,
        floors,
        "psql into tar, postgres",
        1.20,
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(sys.path))
    print(table(measure()))

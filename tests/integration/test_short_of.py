"""A node that runs short of what the system gives: threads, memory, descriptors; or never had much shared memory."""

import os
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, Node, setting, spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

LESS_THAN_A_STACK = 1 << 20
DESCRIPTORS = 64
DATABASES = 200 if os.environ.get("MATRIX") == "all" else 30
"""Enough for more connections than there are descriptors; all of them with `make matrix`."""


def threads(node: Node) -> set[str]:
    assert node.process is not None
    return {task.name for task in Path(f"/proc/{node.process.pid}/task").iterdir()}


def with_databases(count: int) -> dict[str, Any]:
    databases = [{"name": f"d{number}", "owner": "app"} for number in range(count)]
    settings = [setting("fsync", "off", "bool"), setting("max_connections", "100", "integer")]
    return spec(cluster={"roles": [{"name": "app"}], "databases": databases, "settings": settings})


def test_every_thread_starts_at_boot_and_the_api_goes_on_where_no_more_can_be_had(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run(with_databases(0))
    assert node.process is not None
    before = threads(node)
    assert node.configure(with_databases(3)).status == 200
    with ThreadPoolExecutor(20) as callers:
        assert {a["status"] for a in callers.map(lambda _: node.status(), range(40))} == {"running"}
    assert threads(node) <= before, "none was made since"

    size = psutil.Process(node.process.pid).memory_info().vms + LESS_THAN_A_STACK
    resource.prlimit(node.process.pid, resource.RLIMIT_AS, (size, size))
    resource.prlimit(node.process.pid, resource.RLIMIT_NPROC, (1, 1))
    for _ in range(20):
        assert node.status()["status"] == "running"
    assert node.call("GET", "/ready", token=None).status == 200
    assert node.stop() == 0, node.log


def test_little_shared_memory_is_warned_about(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    own = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    tried = subprocess.run([*own, "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {tried.stderr.decode().strip()}")
    node.command = [*own, *node.command]
    node.run()
    node.heard("(/dev/shm) has 64 MB")
    node.heard("--shm-size")
    assert node.query("select 1") == [(1,)]
    assert node.configure(spec()).status == 200
    assert node.log.count("(/dev/shm) has 64 MB") == 1, "once"
    assert node.stop() == 0, node.log


def test_many_databases_are_visited_with_few_descriptors(make_node: MakeNode, binaries15: Binaries) -> None:
    """As many connections as are asked for would take all of them."""
    node = make_node(binaries15).run(with_databases(0))
    assert node.process is not None
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    document = with_databases(DATABASES) | {"reconfigure_concurrency": 100}
    answer = node.configure(document)
    assert answer.status == 200, answer.body
    assert node.query("select count(*) from pg_database where datname like 'd%'") == [(DATABASES,)]
    assert node.stop() == 0, node.log

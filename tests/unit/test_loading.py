import ast
import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from compute_node.postgres.loading import SHARED

AT_THE_START = "compute_node.actors.system, compute_node.cli.compute_ctl, compute_node.cli.demo, compute_node.process.node"
LATE = {
    "the API": "compute_node.actors.http_facade.web, compute_node.http.app",
    "the driver": "compute_node.actors.configurator.executor, compute_node.postgres.neighbours",
    "the client": "asyncio, http.client, ssl",
    "the agents": "compute_node.actors.vm_monitor_bridge.websocket",
}
WITH_THE_DRIVER = {
    "the activity": "compute_node.actors.activity_monitor.session",
    "the cache": "compute_node.actors.lfc_manager.caches, compute_node.actors.lfc_manager.neon, "
    "compute_node.actors.lfc_manager.packing, compute_node.actors.lfc_manager.sessions",
}
"""They load the driver first; only one thread does that, as for any whole library."""
SHOW = "\nimport sys\nfor name, module in sys.modules.items(): print(name, getattr(module, '__file__', None) or '-')"


@functools.cache
def loaded_by(modules: str) -> Mapping[str, Path]:
    """What a fresh interpreter has loaded after importing these, with its files."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}{SHOW}"],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return {name: Path(file) for name, file in (line.split(" ", 1) for line in done.stdout.splitlines())}


def without(names: Collection[str], modules: Mapping[str, Path]) -> Mapping[str, Path]:
    return {name: file for name, file in modules.items() if name not in names}


@functools.cache
def reached_through_their_package(file: Path) -> frozenset[str]:
    """The modules that a source imports as `import a.b` and so finds as the attribute `b` of `a`."""
    if file.suffix != ".py":
        return frozenset()
    imports = (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Import))
    return frozenset(
        alias.name for one in imports for alias in one.names if "." in alias.name and alias.asname is None
    )


@pytest.mark.timeout(120)
def test_what_two_jobs_may_load_at_once_and_reach_through_its_package_is_loaded_by_one_of_them() -> None:
    safe = loaded_by(AT_THE_START).keys() | loaded_by(", ".join(SHARED)).keys()
    driver = loaded_by(LATE["the driver"]).keys()
    late = [without(safe, loaded_by(modules)) for modules in LATE.values()]
    late += [without(safe | driver, loaded_by(modules)) for modules in WITH_THE_DRIVER.values()]
    times = Counter(name for modules in late for name in modules)
    for modules in late:
        for name, file in modules.items():
            for other in reached_through_their_package(file) - safe:
                assert times[other] < 2, (
                    f"{name} reaches {other}, which others load too: it belongs to SHARED"
                )


def test_each_shared_module_is_shared() -> None:
    before = loaded_by(AT_THE_START).keys()
    for name in SHARED:
        assert name not in before
        assert sum(name in loaded_by(modules) for modules in LATE.values()) > 1, name

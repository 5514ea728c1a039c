"""The folder `http` beside the standard library's module of that name, and what importing costs."""

import subprocess
import sys
from pathlib import Path

import compute_node
import pytest

ROOT = Path(compute_node.__file__).parent
HEAVY = ("falcon", "waitress", "jwt", "prometheus_client", "cryptography")


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_the_root_http_is_the_standard_library_and_ours_is_found_by_its_full_name() -> None:
    shown = _python("import http.client, compute_node.http.app; print(http.__file__)")
    assert ROOT.resolve() not in Path(shown.strip()).resolve().parents


def test_the_folders_of_the_application_are_no_packages() -> None:
    assert not (ROOT / "http" / "__init__.py").exists()
    assert not (ROOT / "http" / "routes" / "__init__.py").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "actors.http_facade.actor",
        "actors.http_facade.port",
        "actors.http_facade.servers",
        "http.port",
        "messages.unknown",
    ],
)
def test_importing_what_the_composition_needs_loads_nothing_heavy(module: str) -> None:
    loaded = _python(f"import sys, compute_node.{module}; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)

"""`python run.py` works from a checkout in which nothing is installed but the dependencies."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(msgspec.__file__).parents[1]


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run this Python without its site configuration: packages are found, editable installs are not."""
    environment = os.environ | {"PYTHONPATH": str(SITE)}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_package_is_not_installed_here() -> None:
    assert "No module named 'compute_node'" in run("-c", "import compute_node").stderr


@pytest.mark.parametrize("init", ["0", "1"], ids=["alone", "below an init"])
def test_run_py_finds_the_package_around_it(monkeypatch: pytest.MonkeyPatch, init: str) -> None:
    monkeypatch.setenv("COMPUTE_NODE_INIT", init)
    done = run("run.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--pgdata" in done.stdout


def test_run_py_says_what_to_install_where_a_dependency_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "run.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/bin"},
    )
    assert done.returncode == 1
    assert "is not installed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("init", ["0", "1"], ids=["alone", "below an init"])
def test_run_py_reports_a_usage_error_with_status_two(monkeypatch: pytest.MonkeyPatch, init: str) -> None:
    monkeypatch.setenv("COMPUTE_NODE_INIT", init)
    assert run("run.py").returncode == 2


def test_run_py_reports_an_unusable_configuration_with_status_one(tmp_path: Path) -> None:
    connstr = "postgresql://cloud_admin@localhost:55432/postgres"
    done = run("run.py", "-D", tmp_path / "pgdata", "-C", connstr, "-i", "node", "-c", tmp_path / "absent")
    assert done.returncode == 1
    assert "Error: cannot read the configuration file" in done.stderr
    assert "Traceback" not in done.stderr

"""The package as others get it: a wheel, built from what is committed, in an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import compute_node
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = ("tests/", "bench/", "docs/", ".")
ISOLATED_BELOW = 77
"""The major of setuptools that pyproject.toml needs; with an older one at hand, pip fetches a newer."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return what it prints; the test fails with its output when it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def tracked() -> list[str]:
    """Return the paths that are committed and still there."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("only a clone knows what is committed")
    listed = run("git", "-c", f"safe.directory={ROOT}", "ls-files", "-z")
    return [path for path in listed.split("\0") if path and (ROOT / path).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a clean copy."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    for path in tracked():
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target, follow_symlinks=False)
    isolation = ["--no-build-isolation"] if setuptools_major() >= ISOLATED_BELOW else []
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", *isolation, "--wheel-dir", folder, copy)
    (built,) = folder.glob("*.whl")
    return built


def setuptools_major() -> int:
    """Return the major of the setuptools at hand, 0 without one."""
    try:
        return int(version("setuptools").split(".")[0])
    except PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but the wheel; what it depends on is lent by this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    # Only its folder: the .pth files in it, an editable install among them, have no effect from here.
    (site / "lent.pth").write_text(
        sysconfig.get_path("platlib") + "\n" + sysconfig.get_path("purelib") + "\n"
    )
    return folder


def test_the_wheel_holds_every_module_and_nothing_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"compute_node/{path}"
        for path in tracked()
        if not path.startswith(NOT_SHIPPED) and ("/" in path or path.endswith(".py"))
    }
    assert shipped == expected


def test_every_module_can_be_imported_from_the_wheel(wheel: Path, environment: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modules = [
            name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            for name in archive.namelist()
            if name.endswith(".py")
        ]
    assert "compute_node.http.app" in modules
    assert "compute_node.http.routes.status" in modules
    code = (
        "import importlib\n"
        f"for name in {modules!r}:\n"
        "    module = importlib.import_module(name)\n"
        f"    assert module.__file__.startswith({str(environment)!r}), module.__file__\n"
        "print('all')"
    )
    assert run(environment / "bin" / "python", "-W", "error", "-c", code, cwd=tmp_path) == "all\n"


@pytest.mark.parametrize("script", ["compute_ctl", "compute-node"])
def test_the_console_scripts_run_from_the_wheel(script: str, environment: Path, tmp_path: Path) -> None:
    assert "usage" in run(environment / "bin" / script, "--help", cwd=tmp_path).lower()


def test_the_version_of_the_wheel_is_that_of_the_package(wheel: Path) -> None:
    assert wheel.name.split("-")[:2] == ["compute_node", compute_node.__version__]


def test_run_py_works_from_the_root() -> None:
    assert run(sys.executable, "run.py", "--help").startswith("usage: compute_ctl ")


@pytest.mark.parametrize("module", ["http.client", "http.cookies", "urllib.request", "falcon", "waitress"])
def test_the_root_on_the_path_hides_nothing_of_the_standard_library(module: str) -> None:
    code = f"import sys, http; assert sys.path[0] == ''; import {module}; print(http.__file__)"
    assert run(sys.executable, "-c", code).startswith(sysconfig.get_path("stdlib"))


def test_a_dependency_that_some_pythons_do_not_have_is_locked_for_the_others_only() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    marked = {
        name.split(">=")[0]: marker.strip() for name, _, marker in (one.partition(";") for one in asked)
    }
    assert any(marked.values())
    for lock in ("requirements.lock", "requirements-dev.lock"):
        for line in (ROOT / lock).read_text().splitlines():
            pinned, _, marker = line.partition(";")
            wanted = marked.get(pinned.partition("==")[0], "")
            assert marker.strip().replace('"', "'") == wanted, f"{lock}: {line}"

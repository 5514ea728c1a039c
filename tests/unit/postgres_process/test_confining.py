"""The way of Postgres into its cgroup, in made-up trees; a real one is in integration/test_autoscaling.py."""

import os
import subprocess
from pathlib import Path

import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.programs import Starter
from compute_node.actors.postgres_process import confining
from compute_node.actors.postgres_process.confining import NOT_CONFINED, Confinement, enter, plan

NAME = "neon-postgres"


class Tree:
    def __init__(self, folder: Path, version: int) -> None:
        self.proc = folder / "proc"
        self.group = folder / "cgroup" / NAME
        (self.proc / "self").mkdir(parents=True)
        (folder / "cgroup").mkdir()
        kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,memory"
        (self.proc / "self/mountinfo").write_text(f"31 24 0:27 / {self.group.parent} rw - {kind}\n")
        (self.proc / "self/cgroup").write_text("0::/\n" if version == 2 else "4:memory:/\n")
        self.bin = folder / "bin"
        self.bin.mkdir()

    @property
    def procs(self) -> Path:
        return self.group / "cgroup.procs"

    def make(self) -> None:
        self.group.mkdir()
        self.procs.touch()

    def install_cgexec(self, script: str) -> str:
        program = self.bin / "cgexec"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return str(program)

    def plan(self, name: str = NAME) -> Confinement:
        return plan(name, Starter(None), Cancellation(), proc=str(self.proc))


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def tree(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    made = Tree(tmp_path, request.param)
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    monkeypatch.setattr(confining, "CGEXEC", "cgexec")
    return made


def test_without_cgexec_the_pid_is_written(tree: Tree) -> None:
    tree.make()
    confinement = tree.plan()
    assert confinement == Confinement(procs=str(tree.procs))

    enter(str(tree.procs), os.getpid())
    assert tree.procs.read_text() == str(os.getpid())


def test_cgexec_is_used_where_it_works(tree: Tree) -> None:
    tree.make()
    program = tree.install_cgexec('test "$1 $2" = "-g memory:neon-postgres" && shift 2 && exec "$@"')

    assert tree.plan() == Confinement(prefix=(program, "-g", f"memory:{NAME}"))


def test_a_cgexec_that_refuses_is_not_used(tree: Tree) -> None:
    tree.make()
    tree.install_cgexec("echo cgroup change of group failed; exit 96")

    assert tree.plan() == Confinement(procs=str(tree.procs))


def test_a_group_that_is_not_there_is_named_with_what_to_do(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.install_cgexec('shift 2; exec "$@"')

    assert tree.plan() == NOT_CONFINED
    assert f"mkdir {tree.group}" in caplog.text
    assert "Postgres is not put into the cgroup neon-postgres" in caplog.text


def test_a_machine_without_cgroups_is_warned_about(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    (tree.proc / "self/mountinfo").write_text("")
    assert tree.plan() == NOT_CONFINED
    assert "no hierarchy with the memory controller is mounted here" in caplog.text
    (tree.proc / "self/mountinfo").unlink()
    assert tree.plan() == NOT_CONFINED
    assert "cgroups cannot be read" in caplog.text


def test_a_group_that_refuses_the_pid_is_warned_about(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    enter(str(tree.procs), os.getpid())
    assert f"{tree.procs} refuses process {os.getpid()}: No such file" in caplog.text


def test_a_child_that_has_ended_by_then_keeps_no_other_out(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, written = 4712, list[str]()

    def write(_: Path, text: str, **__: str) -> None:
        if text == str(gone):
            raise ProcessLookupError
        written.append(text)

    monkeypatch.setattr(Path, "write_text", write)
    monkeypatch.setattr(confining, "_children", lambda _: (gone, 4713))
    enter(str(tree.procs), 4711)
    assert written == ["4711", "4713"]


def test_the_children_that_are_there_by_then_go_along(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.make()
    written: list[str] = []
    monkeypatch.setattr(Path, "write_text", lambda _, text, **__: written.append(text))
    with subprocess.Popen(["/bin/sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        enter(str(tree.procs), parent.pid)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
        os.kill(int(children[0]), 9)
    assert written == [str(parent.pid), *children]
    assert len(children) == 1

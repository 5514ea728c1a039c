"""When one sync of the file system does, and that a new cluster is synced one way or the other."""

from pathlib import Path

import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.postgres_process.children import Starter
from compute_node.actors.postgres_process.sources import SourceError, initdb
from compute_node.actors.postgres_process.sources.initdb import InitdbSource
from compute_node.actors.postgres_process.syncing import FileSystemSync, is_wise
from compute_node.postgres.binaries import Binaries

from doubles.specs import a_spec

LITTLE = "MemTotal: 1000 kB\nDirty:               120 kB\nWriteback:             0 kB\n"
MUCH = "Dirty:            131000 kB\nWriteback:           100 kB\nWritebackTmp:     99 kB\n"


@pytest.mark.parametrize(
    ("release", "meminfo", "wise"),
    [
        ("6.18.44-fc", LITTLE, True),
        ("5.8.0", LITTLE, True),
        ("5.7.19", LITTLE, False),
        ("4.19", LITTLE, False),
        ("unknown", LITTLE, False),
        ("6.1.0", MUCH, False),
        ("6.1.0", "", False),
    ],
)
def test_one_sync_is_used_where_it_reports_errors_and_others_have_little_to_write(
    release: str,
    meminfo: str,
    wise: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert is_wise(release, meminfo) is wise


class Machine:
    """A source whose initdb is a script that notes its options, and syncs that are only noted."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, wise: bool) -> None:
        self.events: list[str] = []
        self.failure: OSError | None = None
        script = tmp_path / "initdb"
        script.write_text(f'#!/bin/sh\nmkdir {tmp_path}/data && echo "$@" > {tmp_path}/options\n')
        script.chmod(0o755)
        self._folder, self._options, self._target = tmp_path, tmp_path / "options", str(tmp_path / "data")
        self._source = InitdbSource(Binaries(str(tmp_path / "postgres"), 15, "15"), Starter(None), "me", {})
        monkeypatch.setattr(initdb, "is_wise_here", lambda: wise)
        monkeypatch.setattr(FileSystemSync, "sync", lambda _: self._sync())

    def _sync(self) -> None:
        self.events.append("sync of " + " ".join(sorted(path.name for path in self._folder.iterdir())))
        if self.failure is not None:
            raise self.failure

    def build(self) -> str:
        self._source.build(self._target, a_spec(), Cancellation())
        return self._options.read_text()


def test_initdb_leaves_the_sync_to_one_that_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, monkeypatch, wise=True)
    assert "--no-sync" in machine.build()
    assert machine.events == ["sync of data initdb options"]


def test_where_that_is_not_wise_initdb_syncs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch, wise=False)
    assert "--no-sync" not in machine.build()
    assert machine.events == []


def test_a_cluster_that_could_not_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch, wise=True)
    machine.failure = OSError(28, "No space left on device")
    with pytest.raises(SourceError, match=r"written to the disk: No space left"):
        machine.build()


def test_the_real_sync_works_here_and_an_unusable_descriptor_is_an_error(tmp_path: Path) -> None:
    with FileSystemSync(str(tmp_path)) as whole:
        whole.sync()
    with pytest.raises(OSError, match="Bad file descriptor"):
        whole.sync()

"""When one sync of the file system does, and that a new cluster is synced one way or the other."""

from pathlib import Path

import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.programs import Starter
from compute_node.actors.postgres_process import syncing
from compute_node.actors.postgres_process.sources.initdb import InitdbSource
from compute_node.actors.postgres_process.syncing import FileSystemSync, is_wise, of_all
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


@pytest.mark.parametrize("sync", [True, False])
def test_initdb_syncs_only_when_it_is_asked_to(tmp_path: Path, sync: bool) -> None:  # noqa: FBT001 - both
    script = tmp_path / "initdb"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/options\n')
    script.chmod(0o755)
    source = InitdbSource(Binaries(str(tmp_path / "postgres"), 15, "15"), Starter(None), "me", {})
    source.build(str(tmp_path / "data"), a_spec(), Cancellation(), sync=sync)
    assert ("--no-sync" in (tmp_path / "options").read_text()) is not sync


@pytest.mark.parametrize("wise", [True, False])
def test_the_sync_is_there_where_it_is_wise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wise: bool,  # noqa: FBT001 - both
) -> None:
    monkeypatch.setattr(syncing, "is_wise", lambda *_: wise)
    with of_all(str(tmp_path)) as whole:
        assert (whole is not None) is wise


def test_the_real_sync_works_here_and_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with of_all(str(tmp_path)) as whole:
        if whole is not None:  # somebody beside this test may be writing much
            whole.sync()
    with pytest.raises(OSError, match="could not be written to the disk: Bad file descriptor"):
        FileSystemSync(-1).sync()

"""The names of the folders that a node has outside of PGDATA."""

from pathlib import Path

import pytest
from compute_node.actors.postgres_process.run_folders import socket_folder


def test_each_pgdata_has_a_folder_of_its_own_and_always_the_same(tmp_path: Path) -> None:
    paths = [
        f"{tmp_path}/{name}{number}" for name in ("pgdata", "pgdata-", "data/0") for number in range(1000)
    ]
    names = [socket_folder(path, None) for path in paths]
    assert len(set(names)) == len(paths)
    assert names == [socket_folder(path, None) for path in paths]
    assert {len(name) for name in names} == {len(names[0])}


def test_a_link_leads_to_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert socket_folder(f"{tmp_path}/link/x", None) == socket_folder(f"{tmp_path}/x", None)


@pytest.mark.parametrize("missing", ["", "/nowhere/at/all"])
def test_without_a_usable_tmpdir_it_is_tmp(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setenv("TMPDIR", missing)
    assert socket_folder("/pgdata", None).startswith("/tmp/compute-node-")


def test_tmpdir_is_used_where_it_is_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert socket_folder("/pgdata", None).startswith(f"{tmp_path}/compute-node-")

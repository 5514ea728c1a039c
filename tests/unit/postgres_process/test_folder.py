"""PGDATA on disk: looking, sealing, placing, and what a crash at any step leaves."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.postgres_process import folder
from compute_node.actors.postgres_process.folder import Paths, look, place, recover, remove, write_file
from compute_node.actors.postgres_process.pgdata import (
    MARKER,
    TOKEN,
    Seal,
    Shape,
    Usable,
    Wish,
    judge,
    recovery,
)
from compute_node.messages.postgres import PgdataKind

from doubles.power import ForgetfulDisk


def a_seal(paths: Paths) -> Seal:
    return Seal(compute_id="me", path=paths.pgdata, major=15, source="initdb")


def wish(paths: Paths, **changes: Any) -> Wish:
    return Wish(compute_id="me", path=paths.pgdata, major=15, **changes)


@pytest.fixture(params=[False, True], ids=["beside", "in a mount point"])
def paths(request: pytest.FixtureRequest, tmp_path: Path) -> Paths:
    """PGDATA in a folder of its own; for a mount point the folder is there already."""
    if request.param:
        (tmp_path / "pgdata").mkdir()
    return Paths(str(tmp_path / "pgdata"), is_mount=request.param)


def a_cluster_at(path: str, paths: Paths, content: str) -> None:
    """A small complete data directory."""
    Path(path).mkdir(parents=True, exist_ok=True)
    folder.seal(path, TOKEN, a_seal(paths), None)
    (Path(path) / "base").mkdir()
    (Path(path) / "base" / "1").write_text(content)
    (Path(path) / "PG_VERSION").write_text("15\n")
    (Path(path) / f"only_{content}").touch()
    folder.seal(path, MARKER, a_seal(paths), None)


def build(paths: Paths, content: str) -> None:
    Path(paths.building).mkdir()
    folder.seal(paths.pgdata if paths.is_mount else paths.building, TOKEN, a_seal(paths), None)
    a_cluster_at(paths.built, paths, content)


def content(paths: Paths) -> str:
    return (Path(paths.pgdata) / "base" / "1").read_text()


def kind(paths: Paths, **changes: bool) -> PgdataKind:
    judgement = judge(look(paths), wish(paths, **changes))
    assert isinstance(judgement, Usable), judgement
    return judgement.kind


def test_a_built_folder_is_placed_where_nothing_was(paths: Paths) -> None:
    build(paths, "new")
    place(paths, Cancellation())
    assert content(paths) == "new"
    assert kind(paths) is PgdataKind.OURS_COMPLETE
    assert not Path(paths.building).exists()


def test_a_built_folder_replaces_the_old_one_wholly(paths: Paths) -> None:
    a_cluster_at(paths.pgdata, paths, "old")
    build(paths, "new")
    place(paths, Cancellation())
    assert content(paths) == "new"
    names = {path.name for path in Path(paths.pgdata).iterdir()}
    assert names == {TOKEN, MARKER, "PG_VERSION", "base", "only_new"}
    assert [path.name for path in Path(paths.pgdata).parent.iterdir()] == ["pgdata"]


def test_a_foreign_folder_is_renamed_aside_with_all_it_holds(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "pgdata"), is_mount=False)
    Path(paths.pgdata).mkdir()
    (Path(paths.pgdata) / "letter.txt").write_text("dear")
    build(paths, "new")
    place(paths, Cancellation(), aside=paths.aside(1))
    assert content(paths) == "new"
    assert (tmp_path / "pgdata.aside-1" / "letter.txt").read_text() == "dear"
    assert look(paths).asides == (1,)


class Crash(BaseException):
    """The power goes."""


STEPS = ("rename", "replace", "unlink", "rmdir", "mkdir")


class Countdown:
    """Lets a number of changes of the file system happen, and then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1_000_000
        for name in STEPS:
            monkeypatch.setattr(Path, name, self._counted(getattr(Path, name)))
        monkeypatch.setattr(shutil, "rmtree", self._counted(shutil.rmtree))

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self.left <= 0:
                raise Crash
            self.left -= 1
            return step(*args, **options)

        return counted


def crashes_in(work: Callable[[], None], countdown: Countdown, steps: int) -> bool:
    """Do the work with the power going after so many steps; tell whether it did."""
    countdown.left = steps
    try:
        work()
    except Crash:
        return True
    finally:
        countdown.left = 1_000_000
    return False


def empty(paths: Paths) -> None:
    if not Path(paths.pgdata).exists():
        return
    for entry in list(Path(paths.pgdata).iterdir()):
        remove(str(entry)) if entry.is_dir() else entry.unlink()
    if not paths.is_mount:
        Path(paths.pgdata).rmdir()


@pytest.mark.parametrize("data_before", ["old", None])
def test_after_a_crash_at_any_step_of_placing_there_is_the_old_data_or_the_new_never_neither(
    data_before: str | None, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    countdown = Countdown(monkeypatch)
    seen: set[str | None] = set()
    for steps in range(100):
        if data_before is not None:
            a_cluster_at(paths.pgdata, paths, data_before)
        build(paths, "new")
        crashed = crashes_in(lambda: place(paths, Cancellation()), countdown, steps)
        for again in (0, 1, 1_000_000):  # the recovery may be interrupted as well
            crashes_in(
                lambda: recover(paths, recovery(look(paths), wish(paths)), Cancellation()), countdown, again
            )
        found = content(paths) if kind(paths) is PgdataKind.OURS_COMPLETE else None
        assert found in {data_before, "new"}, steps
        if found is not None:
            names = {entry.name for entry in Path(paths.pgdata).iterdir()}
            assert names == {TOKEN, MARKER, "PG_VERSION", "base", f"only_{found}"}, steps
        assert {path.name for path in Path(paths.pgdata).parent.iterdir()} <= {"pgdata"}, steps
        seen.add(found)
        empty(paths)
        if not crashed:
            assert seen == {data_before, "new"}
            return
    pytest.fail("placing never came to its end")


@pytest.mark.parametrize("data_before", ["old", None])
def test_after_a_power_loss_at_any_step_of_placing_what_is_served_is_whole(
    data_before: str | None, paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_tree = shutil.rmtree
    countdown = Countdown(monkeypatch)
    disk = ForgetfulDisk(tmp_path, monkeypatch)
    seen: set[str | None] = set()
    for steps in range(100):
        if data_before is not None:
            a_cluster_at(paths.pgdata, paths, data_before)
        build(paths, "new")
        disk.sync_all()  # as the source has done
        crashed = crashes_in(lambda: place(paths, Cancellation()), countdown, steps)
        disk.lose_power(remove_tree)
        for again in (0, 1, 1_000_000):
            crashes_in(
                lambda: recover(paths, recovery(look(paths), wish(paths)), Cancellation()), countdown, again
            )
            disk.lose_power(remove_tree)
        found = content(paths) if kind(paths) is PgdataKind.OURS_COMPLETE else None
        assert found in {data_before, "new"}, steps
        if found is not None:
            names = {entry.name for entry in Path(paths.pgdata).iterdir()}
            assert names >= {TOKEN, MARKER, "PG_VERSION", "base", f"only_{found}"}, steps
            assert f"only_{'new' if found == 'old' else 'old'}" not in names, steps
        seen.add(found)
        for leftover in tmp_path.iterdir():  # a deletion need not last: the next start deletes again
            assert leftover.name in {"pgdata", "pgdata.building", "pgdata.old"}
            remove_tree(leftover)
        if paths.is_mount:
            Path(paths.pgdata).mkdir()
        disk.sync_all()
        if not crashed:
            assert seen == {data_before, "new"}
            return
    pytest.fail("placing never came to its end")


@pytest.mark.parametrize("before", [b"good", None])
def test_after_a_power_loss_while_it_is_written_a_file_is_the_old_one_or_the_new_one(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "postgresql.conf"
    countdown, remove_tree = Countdown(monkeypatch), shutil.rmtree
    disk = ForgetfulDisk(tmp_path, monkeypatch)
    seen = set()
    for steps in range(10):
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
        disk.sync_all()
        crashed = crashes_in(lambda: write_file(str(path), b"better"), countdown, steps)
        disk.lose_power(remove_tree)
        seen.add(path.read_bytes() if path.exists() else None)
        if not crashed:
            assert path.read_bytes() == b"better"
            assert seen == {before, b"better"}
            return
    pytest.fail("writing never came to its end")


def test_deleting_never_follows_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("alive")
    ours = tmp_path / "ours"
    (ours / "pg_tblspc").mkdir(parents=True)
    (ours / "pg_tblspc" / "16384").symlink_to(outside)
    (ours / "pg_wal").symlink_to(outside)
    assert folder.tablespaces(str(ours)) == (str(outside),)
    remove(str(ours))
    assert not ours.exists()
    assert (outside / "canary").read_text() == "alive"


def test_a_folder_that_is_half_deleted_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(str(tmp_path / "pgdata"), is_mount=False)
    a_cluster_at(paths.pgdata, paths, "old")
    countdown = Countdown(monkeypatch)
    countdown.left = 1
    with pytest.raises(Crash):
        remove(paths.pgdata)
    countdown.left = 1_000_000
    assert kind(paths) is PgdataKind.OURS_INCOMPLETE


def test_looking_sees_what_is_there(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "pgdata"), is_mount=False)
    assert look(paths).pgdata.shape is Shape.ABSENT
    (tmp_path / "pgdata").write_text("a file")
    assert look(paths).pgdata.shape is Shape.OTHER
    (tmp_path / "pgdata").unlink()
    (tmp_path / "real").mkdir()
    (tmp_path / "pgdata").symlink_to(tmp_path / "real")
    seen = look(paths).pgdata
    assert (seen.shape, seen.link_target) == (Shape.LINK, str(tmp_path / "real"))


def test_a_token_that_is_no_json_or_a_link_counts_as_unreadable_or_as_an_error(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "pgdata"), is_mount=False)
    Path(paths.pgdata).mkdir()
    token = Path(paths.pgdata) / TOKEN
    for torn in ("", "{", "[]", '{"compute_id": 1}', "\xff"):
        token.write_bytes(torn.encode("latin-1"))
        assert look(paths).pgdata.unreadable == TOKEN
    token.unlink()
    token.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="symbolic links"):
        look(paths)


def test_the_same_place_by_another_way_is_ours_and_a_copy_is_seen_as_one(tmp_path: Path) -> None:
    real = Paths(str(tmp_path / "a" / "pgdata"), is_mount=False)
    a_cluster_at(real.pgdata, real, "x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    other_way = Paths(str(tmp_path / "b" / "pgdata"), is_mount=False)
    assert kind(other_way) is PgdataKind.OURS_COMPLETE
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    copy = Paths(str(tmp_path / "copy" / "pgdata"), is_mount=False)
    assert look(copy).pgdata.original_there
    shutil.move(real.pgdata, tmp_path / "gone")
    assert not look(copy).pgdata.original_there


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "postgresql.conf"
    write_file(str(path), b"good")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_file(str(path), b"bad")
    monkeypatch.undo()
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]
    write_file(str(path), b"better", mode=0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"better", 0o600)


def test_everything_that_is_written_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        order.append("sync " + ("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file"))
        fsync(descriptor)

    def noted_replace(path: Path, target: Any) -> Path:
        order.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_file(str(tmp_path / "x"), b"x")
    assert order == ["sync file", "rename", "sync folder"]


def test_a_folder_of_ours_that_is_open_to_others_is_closed_again(tmp_path: Path) -> None:
    pgdata = tmp_path / "pgdata"
    pgdata.mkdir()
    for mode, repaired in ((0o777, True), (0o755, True), (0o700, False), (0o750, False)):
        pgdata.chmod(mode)
        assert folder.repair_ownership(str(pgdata), None) is repaired
    assert pgdata.stat().st_mode & 0o777 == 0o750


def test_mount_points_are_known(tmp_path: Path) -> None:
    assert folder.is_mount("/")
    assert folder.is_mount("/proc")
    assert not folder.is_mount(str(tmp_path))
    assert not folder.is_mount(str(tmp_path / "missing"))

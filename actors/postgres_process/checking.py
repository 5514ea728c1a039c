"""Would Postgres take this configuration? Everything that can be said before anything is changed.

Pure but for the look at files that settings name: `problems`, `explain`.
"""

import re
import stat
from collections.abc import Callable, Container
from pathlib import Path
from typing import Final

import msgspec

from ...messages.secret import MASK, is_secret_setting, mask_credentials
from ...postgres.accounts import Account
from ...postgres.conf import AUTO_CONF_FILE, CONF_FILE, ConfText, socket_folder_problem
from ...postgres.conf_reader import Entry, effective, read, split_libraries
from ...postgres.target import DEFAULT_PORT

SCARCE_SHARED_MEMORY: Final = 64 << 20
"""What Docker gives a container unless it is told otherwise."""
LOOPBACK: Final = frozenset({"*", "localhost", "0.0.0.0", "127.0.0.1", "::", "::1"})  # noqa: S104 - text compared

# --- What `postgres -C` does not see --------------------------------------------------------------------


class Surroundings(msgspec.Struct, frozen=True):
    """What the settings are checked against."""

    host: str
    """Of `-C`: where this node itself connects to."""
    port: int
    major: int
    pgdata: str
    socket_folder: str
    account: Account | None
    library_folder: str | None
    """Where libraries are (pg_config --pkglibdir); None when unknown."""
    auto_conf: str = ""
    """What ALTER SYSTEM has left in a PGDATA that is kept."""


class Settings:
    """The settings that will be in force, with where each comes from."""

    def __init__(self, conf: ConfText, auto_conf: str) -> None:
        self._conf = conf
        self._entries = read(conf.text)
        self._auto = read(auto_conf)

    def value(self, name: str, default: str = "") -> str:
        """Return the value that counts; `default` when nobody sets it."""
        found = effective(self._entries + self._auto, name)
        return default if found is None else found

    def own(self, name: str) -> str | None:
        """Return the value that the configuration file gives, ALTER SYSTEM apart."""
        return effective(self._entries, name)

    def is_on(self, name: str, *, default: bool = False) -> bool:
        """Tell whether a switch is on; Postgres has seen to it that the text is one."""
        text = self.value(name).lower()
        if not text:
            return default
        return text == "1" or "on".startswith(text) or "true".startswith(text) or "yes".startswith(text)

    def number(self, name: str, default: int) -> int | None:
        """Return a plain number; None for one with a unit."""
        text = self.value(name, str(default))
        return int(text) if text.isascii() and text.isdecimal() else None

    def where(self, name: str) -> str:
        """Say where the value that counts comes from."""
        for entries, describe in ((self._auto, self._in_auto), (self._entries, self._in_conf)):
            for entry in reversed(entries):
                if entry.name.lower() == name:
                    return describe(entry)
        return f"`{name}`, which nobody sets"

    def overridden(self) -> tuple[str, ...]:
        """Warn about settings of the spec that ALTER SYSTEM has replaced."""
        warnings = []
        for name in sorted({entry.name.lower() for entry in self._auto}):
            ours, theirs = self.own(name), effective(self._auto, name)
            if ours is not None and ours != theirs:
                to, over = (MASK, "the value") if is_secret_setting(name) else (_shown(theirs), _shown(ours))
                warnings.append(
                    f"ALTER SYSTEM has set `{name}` to {to}, which overrides {over} of the spec: "
                    f"ALTER SYSTEM RESET {name} gives it back"
                )
        return tuple(warnings)

    def _in_conf(self, entry: Entry) -> str:
        return self._conf.origin(entry.line)

    def _in_auto(self, entry: Entry) -> str:
        return f"setting `{entry.name}`, line {entry.line} of {AUTO_CONF_FILE} (ALTER SYSTEM wrote it)"


def _shown(value: str | None) -> str:
    return repr(mask_credentials(value or ""))


def problems(conf: ConfText, around: Surroundings) -> tuple[str, ...]:
    """Return what would keep Postgres from starting, or us from reaching it, though `postgres -C` is content."""
    settings = Settings(conf, around.auto_conf)
    checks = (
        _address_problems,
        _library_problems,
        _tls_problems,
        _connection_problems,
        _wal_problems,
        _file_problems,
    )
    return tuple(problem for check in checks for problem in check(settings, around))


class Refusal(msgspec.Struct, frozen=True):
    """A line of ALTER SYSTEM's file that would keep Postgres from starting."""

    line: int
    setting: str
    why: str


def without_refused(auto_conf: str, refuses: Callable[[str], str | None]) -> tuple[str, tuple[Refusal, ...]]:
    """Return ALTER SYSTEM's file with empty lines in the place of those that are refused, and these.

    `refuses` says why Postgres would not start with such a text, or None. A line is refused when it is not
    taken together with all that are taken.
    """
    lines = auto_conf.split("\n")
    out = {
        number: "" for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")
    }

    def text(missing: Container[int]) -> str:
        return "\n".join("" if number in missing else line for number, line in enumerate(lines))

    found = True
    while out and found:
        found = False
        for number in tuple(out):
            why = refuses(text(out.keys() - {number}))
            if why is None:
                del out[number]
                found = True
            else:
                out[number] = why
    return text(out), tuple(Refusal(number + 1, _name_in(lines[number]), why) for number, why in out.items())


def _name_in(line: str) -> str:
    entries = read(line)
    return entries[0].name if entries else "not a setting"


def overridden(conf: ConfText, around: Surroundings) -> tuple[str, ...]:
    """Return warnings about what ALTER SYSTEM has changed."""
    return Settings(conf, around.auto_conf).overridden()


def scarce_shared_memory(conf: ConfText, around: Surroundings, total: int | None) -> str | None:
    """Warn of a /dev/shm of so many bytes (None: unknown) that parallel queries would fill it."""
    kind = Settings(conf, around.auto_conf).value("dynamic_shared_memory_type", "posix").lower()
    if total is None or total > SCARCE_SHARED_MEMORY or kind == "sysv":
        return None
    return (
        f"the system's shared memory (/dev/shm) has {total >> 20} MB, and parallel queries fail when it is full: "
        "give it more (docker --shm-size=256m; Kubernetes: an emptyDir with medium Memory), or set "
        "`max_parallel_workers_per_gather` to 0"
    )


def _address_problems(settings: Settings, around: Surroundings) -> list[str]:
    found = []
    if settings.own("data_directory") is not None:
        found.append(f"{settings.where('data_directory')}: the data directory is given by -D alone")
    port = settings.own("port") or str(DEFAULT_PORT)
    if port != str(around.port):
        found.append(
            f"{settings.where('port')}: Postgres would listen on {port}, and this node looks for it on "
            f"{around.port} (-C): make both the same"
        )
    addresses = {a.strip().strip('"') for a in settings.value("listen_addresses", "localhost").split(",")}
    if around.host in LOOPBACK and not addresses & LOOPBACK:
        found.append(
            f"{settings.where('listen_addresses')}: this node itself connects to {around.host} (-C), which is not "
            "among them: add localhost"
        )
    folders = [
        f.strip().strip('"') for f in settings.value("unix_socket_directories").split(",") if f.strip()
    ]
    for folder in folders:
        if (problem := socket_folder_problem(folder, around.port)) is not None:
            found.append(f"{settings.where('unix_socket_directories')}: {problem}")
        elif folder != around.socket_folder and not folder.startswith("@") and not Path(folder).is_dir():
            found.append(f"{settings.where('unix_socket_directories')}: the folder {folder} does not exist")
    return found


def _library_problems(settings: Settings, around: Surroundings) -> list[str]:
    if around.library_folder is None:
        return []
    found = []
    for name in ("shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"):
        try:
            libraries = split_libraries(settings.value(name))
        except ValueError as error:
            found.append(f"{settings.where(name)}: this is not a list of libraries: {error}")
            continue
        missing = [
            library
            for library in libraries
            if not _has_library(library, name, settings, around.library_folder)
        ]
        if missing:
            found.append(
                f"{settings.where(name)}: there is no library {', '.join(map(repr, missing))} in "
                f"{around.library_folder}: install its package, or leave it out"
            )
    return found


def _has_library(library: str, name: str, settings: Settings, folder: str) -> bool:
    if name == "local_preload_libraries" and "/" not in library:
        library = f"$libdir/plugins/{library}"
    if "/" in library:
        candidates = [library]
    else:
        path = settings.value("dynamic_library_path", "$libdir")
        candidates = [f"{part.strip()}/{library}" for part in path.split(":") if part.strip()]
    files = [candidate.replace("$libdir", folder, 1) for candidate in candidates]
    return any(Path(file + suffix).is_file() for file in files for suffix in ("", ".so"))


def _tls_problems(settings: Settings, around: Surroundings) -> list[str]:
    if not settings.is_on("ssl"):
        return []
    found = []
    for name, default in (
        ("ssl_cert_file", "server.crt"),
        ("ssl_key_file", "server.key"),
        ("ssl_ca_file", ""),
        ("ssl_crl_file", ""),
    ):
        value = settings.value(name, default)
        if not value:
            continue
        path = Path(around.pgdata, value)
        if not path.is_file():
            found.append(f"`{name}`: `ssl` is on and there is no file {path}")
        elif name == "ssl_key_file" and (problem := _key_problem(path, around.account)) is not None:
            found.append(f"`{name}`: {problem}")
    return found


def _key_problem(path: Path, account: Account | None) -> str | None:
    """Judge owner and mode of a private key as Postgres does at its start."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    too_open = mode & (0o027 if status.st_uid == 0 else 0o077)
    if account is not None and status.st_uid not in {0, account.uid}:
        return f"{path} must belong to {account.name} or root: chown {account.name} {path}"
    if too_open:
        return f"{path} is open to others (mode {mode:04o}), which Postgres refuses: chmod 0600 {path}"
    return None


def _connection_problems(settings: Settings, around: Surroundings) -> list[str]:
    limit = settings.number("max_connections", 100)
    reserved = settings.number("superuser_reserved_connections", 3)
    also_reserved = settings.number("reserved_connections", 0) if around.major >= 16 else 0  # noqa: PLR2004 - its first major
    if limit is None or reserved is None or also_reserved is None or reserved + also_reserved < limit:
        return []
    text = (
        f"{settings.where('max_connections')}: max_connections ({limit}) must be more than the reserved ones "
        f"(superuser_reserved_connections {reserved}, reserved_connections {also_reserved})"
    )
    return [text]


def _wal_problems(settings: Settings, around: Surroundings) -> list[str]:
    if settings.value("wal_level", "replica").lower() != "minimal":
        return []
    found = []
    where = settings.where("wal_level")
    if settings.number("max_wal_senders", 10) != 0:
        found.append(f"{where}: wal_level = minimal needs max_wal_senders = 0 (its default is 10)")
    if settings.value("archive_mode", "off").lower() == "always" or settings.is_on("archive_mode"):
        found.append(f"{where}: wal_level = minimal does not go with archive_mode = on")
    if around.major >= 17 and settings.is_on("summarize_wal"):  # noqa: PLR2004 - its first major
        found.append(f"{where}: wal_level = minimal does not go with summarize_wal = on")
    return found


def _file_problems(settings: Settings, around: Surroundings) -> list[str]:
    found = []
    for name in ("hba_file", "ident_file"):
        value = settings.value(name)
        if value and not Path(around.pgdata, value).is_file():
            found.append(f"{settings.where(name)}: there is no file {Path(around.pgdata, value)}")
    return found


# --- What `postgres -C` says -----------------------------------------------------------------------------

_SAID: Final = re.compile(r"\b(?:LOG|WARNING|ERROR|FATAL|PANIC): {1,2}(.*)")
_MAX_SAID: Final = 8


def explain(output: str, conf: ConfText, folder: str, pgdata: str) -> str:
    """Put what `postgres -C` said about the files in `folder` into the words of whoever wrote the spec."""
    conf_path, auto_path = f"{folder}/{CONF_FILE}", f"{folder}/{AUTO_CONF_FILE}"
    said = []
    for line in output.splitlines():
        found = _SAID.search(line)
        if found is None or re.search(r"configuration file .* contains errors", found[1]):
            continue
        said.append(conf.explain(found[1], conf_path).replace(auto_path, f"{pgdata}/{AUTO_CONF_FILE}"))
    if not said:
        said = mask_credentials(output).strip().splitlines()[-3:] or ["nothing"]
    more = f" (and {len(said) - _MAX_SAID} more)" if len(said) > _MAX_SAID else ""
    return f"Postgres refuses the configuration: {'; '.join(said[:_MAX_SAID])}{more}"

"""Would Postgres take this configuration? Everything that can be said before anything is changed.

Pure but for the look at files that settings name: `not_built`, `storage_problem`, `problems`, `explain`.
"""

import re
import stat
from collections.abc import Callable, Container
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from ...messages.secret import MASK, is_secret_setting, mask_credentials
from ...messages.spec import Audit, ComputeSpec, Mode
from ...postgres.accounts import Account
from ...postgres.conf import ConfText, socket_folder_problem, spec_setting
from ...postgres.conf_reader import Entry, effective, read, split_libraries
from ...postgres.connection import DEFAULT_PORT
from ...postgres.storage import StorageError, pageservers, safekeepers_of, storage_of

AUTO_CONF: Final = "postgresql.auto.conf"
SCARCE_SHARED_MEMORY: Final = 64 << 20
"""What Docker gives a container unless it is told otherwise."""
LOOPBACK: Final = frozenset({"*", "localhost", "0.0.0.0", "127.0.0.1", "::", "::1"})  # noqa: S104 - text compared

# --- Spec fields whose feature is not there -------------------------------------------------------------


class NotBuilt(msgspec.Struct, frozen=True):
    """A field of the spec that this version cannot act on, and why it is refused or only warned about."""

    field: str
    given: Callable[[ComputeSpec], bool]
    refuse: bool
    why: str


NOT_BUILT: Final = (
    NotBuilt(
        "audit_log_level",
        lambda spec: spec.audit_log_level not in {Audit.DISABLED, Audit.LOG, Audit.BASE},
        refuse=True,
        why="its records go to files of their own, which nothing sends on or clears away: use the level Base, "
        "whose records go to the log of Postgres",
    ),
    NotBuilt(
        "local_proxy_config",
        lambda spec: spec.local_proxy_config is not None,
        refuse=True,
        why="local_proxy would go on with its old keys: access that was taken away would stay",
    ),
    NotBuilt(
        "features: tls_experimental",
        lambda spec: "tls_experimental" in spec.features,
        refuse=False,
        why="Postgres gets no certificate from compute_ctl_config.tls and serves without TLS",
    ),
    NotBuilt(
        "remote_extensions",
        lambda spec: spec.remote_extensions is not None,
        refuse=False,
        why="no extension is downloaded; one that is missing is an error where it is used",
    ),
    NotBuilt(
        "pgbouncer_settings",
        lambda spec: bool(spec.pgbouncer_settings),
        refuse=False,
        why="pgbouncer keeps its own settings",
    ),
    NotBuilt(
        "logs_export_host",
        lambda spec: spec.logs_export_host is not None,
        refuse=False,
        why="Postgres writes to syslog too, and nothing sends it on; the log here is complete",
    ),
)
"""Refused where ignoring it could lose data, access control or audit; else a warning by name."""

FOLLOWING: Final = ("primary_conninfo", "primary_slot_name", "hot_standby")
"""Settings of a replica that come from fields of the spec."""
_STORAGE_FIELDS: Final = ("pageserver_connstring", "pageserver_connection_info", "safekeeper_connstrings")

_HOST_AND_PORT: Final = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?", re.ASCII)


def not_built(spec: ComputeSpec) -> tuple[str | None, tuple[str, ...]]:
    """Return why the spec must be refused (or None), and warnings about what has no effect."""
    given = [entry for entry in NOT_BUILT if entry.given(spec)]
    refused = [f"`{entry.field}` ({entry.why})" for entry in given if entry.refuse]
    error = None
    if refused:
        error = f"the spec asks for what this version cannot do yet: {'; '.join(refused)}; leave it out"
    return error, tuple(
        f"the spec's `{entry.field}` has no effect in this version: {entry.why}"
        for entry in given
        if not entry.refuse
    )


def local_problem(spec: ComputeSpec) -> str | None:
    """Say why a new, local cluster cannot be what the spec asks for (source `initdb`)."""
    if spec.compute_mode is Mode.PRIMARY:
        return None
    return (
        f"the mode {spec.compute_mode.value!r} needs data to read, and the source `initdb` makes an empty cluster: "
        'give "mode": "Primary", or another --source'
    )


def upstream_problem(spec: ComputeSpec, *, promoted: bool) -> str | None:
    """Say why a copy of a running primary cannot be what the spec asks for (source `upstream`).

    `promoted`: it has become a primary itself, and is kept.
    """
    if promoted:
        if spec.compute_mode is Mode.PRIMARY:
            return None
        return (
            f"the mode {spec.compute_mode.value!r} is not what this node is any more: it was promoted, and its PGDATA "
            'holds data of its own. Give "mode": "Primary", or --fresh to copy the upstream anew and lose that data'
        )
    if spec.compute_mode is not Mode.REPLICA:
        return (
            f"the mode {spec.compute_mode.value!r} does not go with the source `upstream`, which makes replicas of a "
            'running primary: give "mode": "Replica" (and promote it later), or another --source'
        )
    if spec.upstream_conninfo is None:
        return (
            "upstream_conninfo should be provided: it says where the primary is that is copied and followed"
        )
    return None


def overruled(spec: ComputeSpec) -> tuple[str, ...]:
    """Warn about settings by which a replica of the source `upstream` does not go."""
    return tuple(
        f"`{name}` of the spec's settings is not used: with the source `upstream` its field `upstream_conninfo` counts"
        for name in FOLLOWING
        if spec_setting(spec, name) is not None
    )


def unused_storage(spec: ComputeSpec) -> tuple[str, ...]:
    """Warn that data will not go where the spec says."""
    given = [field for field in _STORAGE_FIELDS if getattr(spec, field)]
    if not given:
        return ()
    names = ", ".join(f"`{field}`" for field in given)
    return (
        f"{names} of the spec is not used: without the source `pageserver` the data lives in PGDATA alone",
    )


def unused_resources(spec: ComputeSpec, *, swap: bool, quota: bool) -> tuple[str, ...]:
    """Warn that the machine is not set as the spec says, where the command line has not asked for it."""
    found = []
    if spec.swap_size_bytes is not None and not swap:
        found.append("`swap_size_bytes` of the spec has no effect without --resize-swap-on-bind")
    if spec.disk_quota_bytes is not None and not quota:
        found.append("`disk_quota_bytes` of the spec has no effect without --set-disk-quota-for-fs")
    return tuple(found)


def storage_problem(spec: ComputeSpec) -> str | None:
    """Validate what the source `pageserver` needs (`startup-and-spec` 2.9); the first problem, or None."""
    try:
        pageservers(spec)
        safekeepers = safekeepers_of(spec)
        storage_of(spec)
    except StorageError as error:
        return str(error)
    return _safekeeper_problem(safekeepers) if spec.compute_mode is Mode.PRIMARY else None


def _safekeeper_problem(safekeepers: tuple[str, ...]) -> str | None:
    if not safekeepers:
        return "safekeeper_connstrings is empty"
    ordered = sorted(safekeepers)
    for one, next_one in pairwise(ordered):
        if one == next_one:
            return f"duplicate entry in safekeeper_connstrings: {mask_credentials(one)}!"
    for number, name in enumerate(safekeepers, start=1):
        found = _HOST_AND_PORT.fullmatch(name)
        if found is None or not 0 < int(found[1] or 1) < 2**16:
            return f"safekeeper_connstrings: entry {number} is not of the form host:port"
    return None


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
        return f"setting `{entry.name}`, line {entry.line} of {AUTO_CONF} (ALTER SYSTEM wrote it)"


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
    conf_path, auto_path = f"{folder}/postgresql.conf", f"{folder}/{AUTO_CONF}"
    said = []
    for line in output.splitlines():
        found = _SAID.search(line)
        if found is None or re.search(r"configuration file .* contains errors", found[1]):
            continue
        said.append(conf.explain(found[1], conf_path).replace(auto_path, f"{pgdata}/{AUTO_CONF}"))
    if not said:
        said = mask_credentials(output).strip().splitlines()[-3:] or ["nothing"]
    more = f" (and {len(said) - _MAX_SAID} more)" if len(said) > _MAX_SAID else ""
    return f"Postgres refuses the configuration: {'; '.join(said[:_MAX_SAID])}{more}"

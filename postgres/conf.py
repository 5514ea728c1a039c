"""The text of `postgresql.conf`: a spec and a few facts of this node in, text out, every line with its origin."""

import re
from pathlib import Path
from typing import Final

import msgspec
from typing_extensions import override

from ..messages.secret import MASK, Secret, is_secret_setting, mask_credentials
from ..messages.spec import Audit, ComputeSpec, GenericOption, Mode, PageserverConnectionInfo, StaticMode
from .conf_reader import (
    effective,
    is_setting_name,
    join_libraries,
    plain_max_connections,
    read,
    split_libraries,
)
from .lsn import parse_lsn, show_lsn
from .masking import mask_server_words
from .storage import StorageError, libpq_urls

CONF_FILE: Final = "postgresql.conf"
AUTO_CONF_FILE: Final = "postgresql.auto.conf"
"""Where ALTER SYSTEM writes to."""
OVERRIDE_FILE: Final = "compute_ctl_temp_override.conf"
"""Included last. It holds OVERRIDE_TEXT while SQL work must not fail on a full cluster, else nothing."""
OVERRIDE_TEXT: Final = "neon.max_cluster_size=-1"

MAX_SOCKET_PATH: Final = 107
"""Bytes that fit into the address of a Unix socket."""

DEFAULT_CONCURRENCY: Final = 10
PRELOAD: Final = "shared_preload_libraries"
LOCALE: Final = "C.UTF-8"

_LOG_PREFIX: Final = re.compile(r"^.*?(?=\b[A-Z]+: {2})")
_NO_REASON: Final = re.compile("^skipping missing configuration file|contains errors$")
_LINE_NAME: Final = re.compile(r"\s*([\w.]+)")
_TOKEN: Final = re.compile(r'(near token )".*"', re.DOTALL)
_PARAMETER: Final = re.compile(r'parameter "([^"]+)"')
_NOT_IN_A_LINE: Final = re.compile(r"[\0\n\r]")
_ESCAPES: Final = {"'": "''", "\\": "\\\\", "\n": "\\n", "\r": "\\r"}


class ConfError(ValueError):
    """The spec holds what no configuration file can say; the message names the setting."""


class Listening(msgspec.Struct, frozen=True):
    """Where a cluster of our own making listens, unless its spec says otherwise."""

    port: int
    socket_folder: str


class Standby(msgspec.Struct, frozen=True):
    """How a replica of the source `upstream` follows its primary."""

    conninfo: Secret
    """For `primary_conninfo`."""
    slot: str | None = None
    at_least: tuple[tuple[str, int], ...] = ()
    """Settings, with the primary's values: with less a hot standby does not start."""


class ConfContext(msgspec.Struct, frozen=True):
    """What the configuration depends on besides the spec."""

    internal_http_port: int
    privileged_role_name: str
    listening: Listening | None = None
    """For the source `initdb`; the others bring it in the spec."""
    tls: bool = False
    """Certificate and key lie in PGDATA as server.crt and server.key."""
    strict_overcommit: bool = False
    """The kernel promises no more memory than it has (vm.overcommit_memory is 2)."""
    subscribers: bool = False
    """No logical subscription that the branch has inherited is left: those that are there may work."""
    default_preload: tuple[str, ...] = ("neon",)
    """What is preloaded beside the audit libraries where the spec names nothing; none on plain Postgres."""
    standby: Standby | None = None
    """For the source `upstream`, until the node is promoted."""
    promoted: bool = False
    """A replica of Neon's storage that is to be, or has become, a primary: what it commits waits for safekeepers."""


class ConfText(msgspec.Struct, frozen=True):
    """A configuration file; its text may hold secrets, so it does not show itself."""

    text: str
    origins: tuple[str, ...]

    def origin(self, line: int) -> str:
        """Say where that line comes from, counted from 1, in words for whoever wrote the spec."""
        return self.origins[line - 1] if 0 < line <= len(self.origins) else f"line {line}"

    def explain(self, message: str, path: str) -> str:
        """Put origins into a message of Postgres about the file at `path`, in place of its line numbers."""
        place = re.compile(rf'(?:in file )?"{re.escape(path)}",? line (\d+)')
        message = mask_server_words(message)
        if (blamed := place.search(message)) is not None and self._holds_secret(int(blamed[1])):
            message = _TOKEN.sub(rf'\1"{MASK}"', message)
        told = place.sub(lambda found: f"in {self.origin(int(found[1]))}", message)
        if told == message and (named := _PARAMETER.search(message)) is not None:
            lines = [entry.line for entry in read(self.text) if entry.name.lower() == named[1].lower()]
            told += f" ({self.origin(lines[-1])})" if lines else ""
        return told

    def _holds_secret(self, number: int) -> bool:
        lines = self.text.split("\n")
        line = lines[number - 1] if 0 < number <= len(lines) else ""
        name = _LINE_NAME.match(line)
        return (name is not None and is_secret_setting(name[1])) or mask_credentials(line) != line

    def refusal(self, output: str, path: str) -> str:
        """Return why Postgres refuses the file at `path`, from what `postgres -C` wrote to stderr."""
        told: list[str] = []
        for line in output.splitlines():
            level, has_level, text = _LOG_PREFIX.sub("", line).partition(":  ")
            if not has_level or _NO_REASON.search(text):
                continue
            if level == "HINT" and told:
                told[-1] += f" ({text})"
            else:
                told.append(self.explain(text, path))
        return "; ".join(told) or output.strip()

    @override
    def __repr__(self) -> str:
        return f"ConfText({len(self.origins)} lines)"


def render(spec: ComputeSpec, context: ConfContext) -> ConfText:
    """Write the configuration of a node; the order of its lines is `startup-and-spec` 5.1. Raises ConfError."""
    lines = _Lines()
    if context.listening is not None:
        _add_listening(lines, context.listening)
    if spec.cluster.postgresql_conf is not None:
        _add_own_text(lines, spec.cluster.postgresql_conf)
    _add_storage(lines, spec)
    if context.tls:
        for text in ("ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'"):
            lines.fixed(text)
    for name in ("lc_messages", "lc_monetary", "lc_time", "lc_numeric"):
        lines.fixed(f"{name}='{LOCALE}'")
    _add_mode(lines, spec, promoted=context.promoted)
    if context.strict_overcommit:
        lines.fixed("dynamic_shared_memory_type = mmap")
    lines.quoted("neon.privileged_role_name", context.privileged_role_name, "--privileged-role-name")
    if spec.cluster.settings is not None:
        _add_settings(lines, spec.cluster.settings)
    if context.standby is not None:
        _add_standby(lines, spec, context.standby)
    _add_audit(lines, spec, context)
    lines.fixed(f"neon.extension_server_port={context.internal_http_port}")
    held = "true" if spec.drop_subscriptions_before_start and not context.subscribers else "false"
    lines.fixed(f"neon.disable_logical_replication_subscribers={held}")
    if spec.logs_export_host is not None:
        lines.fixed("log_destination='stderr,syslog'")
    lines.fixed(f"include_if_exists = '{OVERRIDE_FILE}'")
    return lines.finished()


def quote(value: str) -> str:
    """Quote a value so that Postgres reads exactly it. Raises ValueError for what it cannot hold."""
    if "\0" in value:
        msg = "a value cannot contain a NUL character"
        raise ValueError(msg)
    if not _is_unicode(value):
        msg = "a value must be valid Unicode, without lone surrogates"
        raise ValueError(msg)
    return "'" + "".join(_ESCAPES.get(character, character) for character in value) + "'"


def _is_unicode(text: str) -> bool:
    """Whether there are no lone surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def socket_folder_problem(folder: str, port: int) -> str | None:
    """Say why no Unix socket of that port can lie in that folder; None when it can."""
    size = len(f"{folder}/.s.PGSQL.{port}".encode())
    if size <= MAX_SOCKET_PATH:
        return None
    return (
        f"the path of the Unix socket in {folder} would have {size} bytes, and {MAX_SOCKET_PATH} are possible: "
        "choose a shorter folder (TMPDIR)"
    )


def preload_libraries(spec: ComputeSpec) -> tuple[str, ...] | None:
    """Return the libraries to preload by the spec, audit apart; None when it names none. Raises ConfError."""
    settings = [s for s in spec.cluster.settings or () if s.name.lower() == PRELOAD]
    value = settings[-1].value if settings else None
    source = "cluster.settings"
    if not settings:
        value = effective(read(spec.cluster.postgresql_conf or ""), PRELOAD)
        source = "cluster.postgresql_conf"
    if value is None:
        return None
    if settings and settings[-1].vartype != "string":
        value = effective(read(f"{PRELOAD} = {value}"), PRELOAD) or value
    try:
        return split_libraries(value)
    except ValueError as error:
        msg = f"the setting `{PRELOAD}` of {source} is not a list of libraries: {error}"
        raise ConfError(msg) from None


def max_connections(spec: ComputeSpec) -> int | None:
    """Return `max_connections` as far as the spec tells it; None when unknown."""
    if any(setting.name == "max_connections" for setting in spec.cluster.settings or ()):
        value = spec.cluster.setting("max_connections") or ""
        return int(value) if value.isascii() and value.isdigit() else None
    return plain_max_connections(spec.cluster.postgresql_conf or "")


def spec_setting(spec: ComputeSpec, name: str) -> str | None:
    """Return the value that the spec gives a setting; None when it leaves it to Postgres."""
    for setting in reversed(spec.cluster.settings or ()):
        if setting.name.lower() == name:
            return setting.value
    return effective(read(spec.cluster.postgresql_conf or ""), name)


def start_concurrency(spec: ComputeSpec) -> int:
    """Return how many databases may be worked on at once while starting; at least 1."""
    known = max_connections(spec)
    if known is None:
        return DEFAULT_CONCURRENCY
    if known < DEFAULT_CONCURRENCY:
        return max(1, known)
    return max(DEFAULT_CONCURRENCY, known // 3)


def reconfigure_concurrency(spec: ComputeSpec) -> int:
    """Return how many databases may be worked on at once while users are there; at least 1."""
    return max(1, spec.reconfigure_concurrency)


class _Lines:
    """The lines so far, each with where it comes from."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._origins: list[str] = []

    def add(self, line: str, origin: str) -> None:
        self._lines.append(line)
        self._origins.append(origin)

    def fixed(self, line: str) -> None:
        name = re.split(r"[ =]", line.lstrip("# "), maxsplit=1)[0]
        self.add(line, f"`{name}`, which this program writes")

    def quoted(self, name: str, value: str, field: str) -> None:
        try:
            self.add(f"{name}={quote(value)}", f"`{name}`, which comes from {field}")
        except ValueError as error:
            msg = f"the setting `{name}` cannot be written from {field}: {error}"
            raise ConfError(msg) from None

    def finished(self) -> ConfText:
        return ConfText("".join(f"{line}\n" for line in self._lines), tuple(self._origins))


def _add_listening(lines: _Lines, listening: Listening) -> None:
    if (problem := socket_folder_problem(listening.socket_folder, listening.port)) is not None:
        raise ConfError(problem)
    lines.add(f"port = {listening.port}", "`port`, which comes from --connstr")
    lines.fixed("listen_addresses = 'localhost'")
    folders = join_libraries((listening.socket_folder,))
    lines.fixed(f"unix_socket_directories = {quote(folders)}")


def _add_own_text(lines: _Lines, text: str) -> None:
    names = {entry.line: entry.name for entry in read(text)}
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"line {number} of cluster.postgresql_conf"
        if "\0" in line or not _is_unicode(line):
            msg = f"{place} contains a NUL character or a lone surrogate"
            raise ConfError(msg)
        lines.add(line, f"setting `{names[number]}`, {place}" if number in names else place)


def _add_storage(lines: _Lines, spec: ComputeSpec) -> None:
    if spec.pageserver_connection_info is not None:
        _add_pageservers(lines, spec.pageserver_connection_info)
    else:
        if spec.shard_stripe_size is not None:
            lines.fixed(f"neon.stripe_size={spec.shard_stripe_size}")
        lines.fixed("# Neon storage settings")
        if spec.pageserver_connstring is not None:
            connstring = spec.pageserver_connstring.reveal()
            lines.quoted("neon.pageserver_connstring", connstring, "pageserver_connstring")
    if spec.safekeeper_connstrings:
        generation = "" if spec.safekeepers_generation is None else f"g#{spec.safekeepers_generation}:"
        lines.quoted(
            "neon.safekeepers", generation + ",".join(spec.safekeeper_connstrings), "safekeeper_connstrings"
        )
    for field in ("tenant_id", "timeline_id", "project_id", "branch_id", "endpoint_id"):
        if (value := getattr(spec, field)) is not None:
            shown = value.lower() if field in {"tenant_id", "timeline_id"} else value
            lines.quoted(f"neon.{field}", shown, field)


def _add_pageservers(lines: _Lines, info: PageserverConnectionInfo) -> None:
    """Write what the newer field says, as the counterpart has it since then (`startup-and-spec` 10.1)."""
    field = "pageserver_connection_info"
    lines.fixed("# Neon storage settings")
    lines.fixed("")
    if info.stripe_size is not None:
        lines.fixed(f"# from compute spec's {field}.stripe_size field")
        lines.fixed(
            f"neon.stripe_size={info.stripe_size}"
        )  # before the next one, which makes the extension read it
    try:
        urls = libpq_urls(info)
    except StorageError as error:
        msg = f"`{field}`: {error}"
        raise ConfError(msg) from None
    if urls is None:
        lines.fixed("# no neon.pageserver_connstring")
        return
    lines.fixed(f"# derived from compute spec's {field} field")
    lines.quoted("neon.pageserver_connstring", ",".join(url.reveal() for url in urls), field)


def _add_mode(lines: _Lines, spec: ComputeSpec, *, promoted: bool) -> None:
    lines.fixed(f"neon.compute_mode={spec.compute_mode.value}")
    if spec.compute_mode is not Mode.PRIMARY:
        lines.fixed("hot_standby=on")
    if promoted:
        lines.fixed("synchronous_standby_names='walproposer'")
    if isinstance(spec.mode, StaticMode):
        lines.fixed(f"recovery_target_lsn='{show_lsn(parse_lsn(spec.mode.static))}'")


def _add_settings(lines: _Lines, settings: tuple[GenericOption, ...]) -> None:
    lines.fixed("# Managed by compute_ctl: begin")
    for setting in settings:
        lines.add(_setting_line(setting), f"setting `{setting.name}` of cluster.settings")
    if not settings:
        lines.fixed("")
    lines.fixed("# Managed by compute_ctl: end")


def _setting_line(setting: GenericOption) -> str:
    if not is_setting_name(setting.name):
        msg = f"cluster.settings: {setting.name[:80]!r} is not the name of a setting"
        raise ConfError(msg)
    problem = None
    if setting.value is None:
        problem = "it has no value"
    elif setting.vartype == "string":
        try:
            return f"{setting.name} = {quote(setting.value)}"
        except ValueError as error:
            problem = str(error)
    elif _NOT_IN_A_LINE.search(setting.value) is not None or not _is_unicode(setting.value):
        problem = f"a value of the type `{setting.vartype}` is one line of text; the type `string` is quoted"
    if problem is not None:
        msg = f"the setting `{setting.name}` of cluster.settings cannot be written: {problem}"
        raise ConfError(msg)
    return f"{setting.name} = {setting.value}"


def _add_standby(lines: _Lines, spec: ComputeSpec, standby: Standby) -> None:
    """Write what must hold whatever the spec's settings say: it comes after them."""
    lines.fixed("# Replica of the upstream: begin")
    lines.quoted("primary_conninfo", standby.conninfo.reveal(), "upstream_conninfo")
    lines.quoted("primary_slot_name", standby.slot or "", "upstream_slot_name")
    lines.fixed("hot_standby = on")
    for name, least in standby.at_least:
        given = spec_setting(spec, name)
        if given is None or not given.isdecimal() or int(given) < least:
            lines.add(f"{name} = {least}", f"`{name}`, which must not be less than the upstream's")
    lines.fixed("# Replica of the upstream: end")


_BASE: Final = ("pgaudit.log='ddl,role'", "pgaudit.log_catalog=off")
_EXTENDED: Final = (
    "pgaudit.log_parameter=off",
    "pgaudit.log='all, -misc'",
    "pgaudit.log_catalog=off",
    "pgaudit.log_rotation_age=5",
)
_FULL: Final = ("pgaudit.log_parameter=on", "pgaudit.log='all'", *_EXTENDED[2:])
_BASE_LIBRARIES: Final = ("pgaudit",)
_COMPLIANCE_LIBRARIES: Final = ("pgaudit", "pgauditlogtofile")
_BASE_MARKS: Final = ("base audit settings: start", "base audit settings: end")
_COMPLIANCE_MARKS: Final = ("compliance audit settings: begin", "compliance audit settings: end")

_AUDIT_BLOCKS: Final = {
    Audit.LOG: (_BASE_MARKS, _BASE, _BASE_LIBRARIES),
    Audit.BASE: (_BASE_MARKS, _BASE, _BASE_LIBRARIES),
    Audit.HIPAA: (_COMPLIANCE_MARKS, _EXTENDED, _COMPLIANCE_LIBRARIES),
    Audit.EXTENDED: (_COMPLIANCE_MARKS, _EXTENDED, _COMPLIANCE_LIBRARIES),
    Audit.FULL: (_COMPLIANCE_MARKS, _FULL, _COMPLIANCE_LIBRARIES),
}


def _add_audit(lines: _Lines, spec: ComputeSpec, context: ConfContext) -> None:
    if spec.audit_log_level is Audit.DISABLED:
        return
    (begin, end), block, needed = _AUDIT_BLOCKS[spec.audit_log_level]
    named = preload_libraries(spec)
    libraries = context.default_preload if named is None else named
    loaded = {Path(library).name.removesuffix(".so") for library in libraries}
    libraries += tuple(library for library in needed if library not in loaded)
    lines.fixed(f"# Managed by compute_ctl {begin}")
    for line in block:
        lines.fixed(line)
    lines.quoted(PRELOAD, join_libraries(libraries), f"the spec's `{PRELOAD}` and its audit_log_level")
    lines.fixed(f"# Managed by compute_ctl {end}")

"""The command line of `compute_ctl`, flag for flag, with what this project adds.

Source: `startup-and-spec` reference, 1.1. A flag whose feature is not built is refused or warned about by name.
"""

import argparse
import os
import re
import string
from collections.abc import Sequence
from typing import Any, Final, Literal, NoReturn
from urllib.parse import unquote, urlsplit

import msgspec
from typing_extensions import override

from ..messages.failpoints import Arming, FailpointError, parse_environment
from ..messages.secret import Secret, mask_credentials
from ..messages.settings import (
    DEFAULT_CGROUP,
    DEFAULT_COLLECTION_INTERVAL_S,
    DEFAULT_SAFEKEEPER_CHECK_S,
    DEFAULT_STOP_TIMEOUT_S,
    DEFAULT_VM_MONITOR,
    Address,
    SourceName,
)
from ..postgres.target import parse_connection, parse_connstr

AUTOSCALING: Final = "AUTOSCALING"
"""The variable that turns autoscaling on, whatever its value."""
FAILPOINTS: Final = "FAILPOINTS"
"""The variable that arms failpoints; it is taken out of the environment."""
CONTROL_PLANE_TOKEN: Final = "NEON_CONTROL_PLANE_TOKEN"  # noqa: S105 - the name of a variable
"""Goes along with every request to the control plane."""
LOG_FORMATS: Final = ("auto", "human", "json")

_ROLE: Final = re.compile(r"[a-z_]+")
_U64: Final = 2**64 - 1

_LATER: Final = {
    "remote_ext_base_url": "extensions are not downloaded",
}
"""Flags that parse and are checked, whose feature comes later: what is therefore not done."""


class Options(msgspec.Struct, frozen=True):
    """What the command line asked for; `warnings` are to be logged."""

    pgdata: str
    connstr: Secret
    compute_id: str
    pgbin: str | None
    config: str | None
    spec: str | None
    source: SourceName
    fresh: bool
    set_aside_pgdata: bool
    claim_pgdata: bool
    postgres_user: str | None
    external_http_port: int
    internal_http_port: int
    http_host: str | None
    privileged_role_name: str
    dev: bool
    start_timeout_s: float
    stop_timeout_s: float
    log_format: Literal["auto", "human", "json"]
    lfc_store: str | None = None
    lfc_offload_on_stop: bool = False
    safekeeper_check_timeout_s: float = DEFAULT_SAFEKEEPER_CHECK_S
    warms_memory: bool = True
    installed_extensions_collection_interval: int = DEFAULT_COLLECTION_INTERVAL_S
    control_plane_uri: str | None = None
    control_plane_token: Secret = Secret("")
    autoscaling: bool = False
    cgroup: str = DEFAULT_CGROUP
    filecache_connstr: Secret | None = None
    vm_monitor_addr: Address = DEFAULT_VM_MONITOR
    resize_swap_on_bind: bool = False
    set_disk_quota_for_fs: str | None = None
    failpoints: tuple[Arming, ...] = ()
    warnings: tuple[str, ...] = ()


def parse(argv: Sequence[str] | None = None, *, prog: str = "compute_ctl") -> Options:
    """Read the command line; exits with status 2 and a usage line when it is wrong."""
    parser = _parser(prog)
    values = vars(parser.parse_args(argv))
    warnings = [
        f"{_flag(name)} has no effect: this is not built yet, so {consequence}"
        for name, consequence in _LATER.items()
        if values.pop(name) not in {None, False}
    ]
    values |= _autoscaling(values, warnings)
    _check_sources(parser, values)
    armings: tuple[Arming, ...] = ()
    failpoints = os.environ.pop(FAILPOINTS, None)
    if failpoints is not None and not values["dev"]:
        warnings.append(f"{FAILPOINTS} has no effect: failpoints work only with --dev")
    elif failpoints is not None:
        try:
            armings = parse_environment(failpoints)
        except FailpointError as error:
            parser.error(f"{FAILPOINTS}: {error}")
    token = Secret(os.environ.get(CONTROL_PLANE_TOKEN, ""))
    return Options(**values, control_plane_token=token, failpoints=armings, warnings=tuple(warnings))


def _autoscaling(values: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """Take the defaults of the flags that are only for autoscaling, and warn of those that are given without it."""
    autoscaling = AUTOSCALING in os.environ
    defaults = {
        "cgroup": DEFAULT_CGROUP,
        "filecache_connstr": None,
        "vm_monitor_addr": DEFAULT_VM_MONITOR,
    }
    given = [name for name in defaults if values[name] is not None]
    if not autoscaling:
        warnings += [
            f"{_flag(name)} has no effect: the variable {AUTOSCALING} is not set, so there is no autoscaling"
            for name in given
        ]
    return {"autoscaling": autoscaling} | {name: defaults[name] for name in defaults if name not in given}


def _check_sources(parser: argparse.ArgumentParser, values: dict[str, Any]) -> None:
    given = [
        flag
        for flag, name in (
            ("-c/--config", "config"),
            ("-S/--spec-path", "spec"),
            ("-p/--control-plane-uri", "control_plane_uri"),
        )
        if values[name] is not None
    ]
    if not given:
        parser.error(
            "one of -c/--config, -S/--spec-path and -p/--control-plane-uri is needed: where does the spec come from?"
        )
    if len(given) > 1:
        parser.error(f"{' and '.join(given)} exclude each other: give one")
    if values["external_http_port"] == values["internal_http_port"] != 0:
        parser.error(
            f"--external-http-port and --internal-http-port are both {values['external_http_port']}: give two ports"
        )
    if values["set_aside_pgdata"] and values["claim_pgdata"]:
        parser.error("--set-aside-pgdata and --claim-pgdata exclude each other: give one")


class _Parser(argparse.ArgumentParser):
    @override
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {mask_credentials(message)}\n\nusage: {self.prog} -D <pgdata> -C <connstr> -i <compute id> -c <config>"
                     "\n\nFor more information, try '--help'.\n")  # fmt: skip


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        description="Run one Postgres from a JSON spec until it ends, with a control plane over HTTP.",
        epilog="Exit status: 0 stopped in order, 1 failed, 2 usage, 75 the data folder belongs to another node.",
    )
    node = parser.add_argument_group("the node")
    node.add_argument(
        "-D", "--pgdata", required=True, metavar="FOLDER", help="data folder; its parent must exist"
    )
    node.add_argument(
        "-C",
        "--connstr",
        required=True,
        type=_connstr,
        metavar="URL",
        help="postgresql://<superuser>@<host>:<port>/<database> of the Postgres to run",
    )
    node.add_argument(
        "-i", "--compute-id", required=True, type=_not_empty, metavar="ID", help="who this node is"
    )
    node.add_argument(
        "-b",
        "--pgbin",
        default=os.environ.get("POSTGRES_PATH") or None,
        metavar="PATH",
        help="the postgres program (POSTGRES_PATH); else one is looked for",
    )
    spec = parser.add_argument_group("its description (one of these)")
    spec.add_argument(
        "-c", "--config", metavar="FILE", help="JSON file: a config with a spec, or without one"
    )
    spec.add_argument("-S", "--spec-path", dest="spec", metavar="FILE", help="JSON file: a bare spec")
    spec.add_argument(
        "-p",
        "--control-plane-uri",
        type=_control_plane,
        metavar="URL",
        help=f"where to ask for the config, with the token of {CONTROL_PLANE_TOKEN}",
    )
    folder = parser.add_argument_group("the data folder")
    folder.add_argument(
        "--source",
        type=SourceName,
        default=SourceName.PAGESERVER,
        metavar="{pageserver,initdb,upstream}",
        help="where its content comes from (default pageserver)",
    )
    folder.add_argument(
        "--fresh", action="store_true", help="build it anew even if it holds data that is nowhere else"
    )
    folder.add_argument(
        "--set-aside-pgdata",
        action="store_true",
        help="rename a folder that is not this node's out of the way",
    )
    folder.add_argument(
        "--claim-pgdata", action="store_true", help="take over a complete folder that was moved or renamed"
    )
    folder.add_argument("--postgres-user", metavar="USER", help="who runs Postgres when this process is root")
    _add_cache(parser.add_argument_group("the cache"))
    _add_serving(parser.add_argument_group("serving"))
    _add_limits(parser.add_argument_group("limits and output"))
    _add_vm(parser.add_argument_group("the machine (the first three with AUTOSCALING in the environment)"))
    _add_later(parser.add_argument_group("taken, but not built yet"))
    return parser


def _add_cache(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--lfc-store",
        type=_folder_url,
        metavar="URL",
        help="file:///folder: where the state of the cache is kept, unless the spec names an endpoint storage",
    )
    group.add_argument(
        "--lfc-offload-on-stop", action="store_true", help="save it once more when a stop was asked for"
    )


def _add_serving(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--external-http-port", type=_port, default=3080, metavar="PORT", help="default 3080")
    group.add_argument("--internal-http-port", type=_port, default=3081, metavar="PORT", help="default 3081")
    group.add_argument("--http-host", metavar="ADDRESS", help="external address; default: every interface")
    group.add_argument(
        "--privileged-role-name",
        type=_role,
        default="neon_superuser",
        metavar="ROLE",
        help="default neon_superuser",
    )
    group.add_argument("--dev", action="store_true", help="open API on loopback without keys, short pauses")


def _add_limits(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--start-timeout", dest="start_timeout_s", type=_seconds, default=60.0, metavar="SECONDS",
        help="a new Postgres must be ready by then (default 60)",
    )  # fmt: skip
    group.add_argument(
        "--stop-timeout", dest="stop_timeout_s", type=_seconds, default=DEFAULT_STOP_TIMEOUT_S, metavar="SECONDS",
        help=f"a stop, with everything, takes no longer (default {DEFAULT_STOP_TIMEOUT_S:g})",
    )  # fmt: skip
    group.add_argument(
        "--safekeeper-check-timeout", dest="safekeeper_check_timeout_s", type=_seconds,
        default=DEFAULT_SAFEKEEPER_CHECK_S, metavar="SECONDS",
        help="at the start each safekeeper is asked for so long, before they are synced "
        f"(default {DEFAULT_SAFEKEEPER_CHECK_S:g})",
    )  # fmt: skip
    group.add_argument(
        "--installed-extensions-collection-interval", type=_u64, default=DEFAULT_COLLECTION_INTERVAL_S, metavar="SECONDS",
        help="installed extensions are counted after the start and each time twice as long after the last time; "
        f"`suspend_timeout_seconds` of a Primary's spec replaces it (default, also for 0: {DEFAULT_COLLECTION_INTERVAL_S})",
    )  # fmt: skip
    group.add_argument(
        "--no-memory-prewarm", dest="warms_memory", action="store_false",
        help="a node without a spec does not run a Postgres of its own while it waits",
    )  # fmt: skip
    group.add_argument("--log-format", choices=LOG_FORMATS, default="auto", help="auto: human on a terminal")


def _add_vm(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--cgroup",
        type=_cgroup,
        metavar="NAME",
        help=f"Postgres runs in it and its memory is watched (default {DEFAULT_CGROUP}); empty: in none",
    )
    group.add_argument(
        "--filecache-connstr",
        type=_connection,
        metavar="DSN",
        help="how the size of the file cache is set, a URL or `host=... port=...` (default as -C)",
    )
    group.add_argument(
        "--vm-monitor-addr",
        type=_address,
        metavar="ADDRESS",
        help=f"where the autoscaler agent connects to (default {DEFAULT_VM_MONITOR})",
    )
    group.add_argument(
        "--resize-swap-on-bind",
        action="store_true",
        help="swap gets the `swap_size_bytes` of the spec before Postgres starts",
    )
    group.add_argument(
        "--set-disk-quota-for-fs",
        metavar="FOLDER",
        help="the file system mounted there gets the `disk_quota_bytes` of the spec before Postgres starts",
    )


def _add_later(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("-r", "--remote-ext-base-url", type=_base_url, metavar="URL")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _connstr(text: str) -> Secret:
    try:
        parse_connstr(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Secret(text)


def _connection(text: str) -> Secret:
    try:
        parse_connection(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Secret(text)


def _control_plane(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_url = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, is_url = urlsplit(""), False
    if not is_url or parts.scheme not in {"http", "https"} or any(c in string.whitespace for c in text):
        msg = "it is not a URL such as https://host/path"
        raise argparse.ArgumentTypeError(msg)
    if parts.query or parts.fragment or "@" in parts.netloc:
        msg = f"a path is put behind it, so it has no query and no fragment; the token is given by {CONTROL_PLANE_TOKEN}"
        raise argparse.ArgumentTypeError(msg)
    return text


def _folder_url(text: str) -> str:
    parts = urlsplit(text)
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"} or not path.startswith("/"):
        msg = "it is not a folder such as file:///var/lib/compute-node/lfc"
        raise argparse.ArgumentTypeError(msg)
    if parts.query or parts.fragment or "\0" in path:
        msg = "a file URL has no parameters: write `?` as %3F and `#` as %23"
        raise argparse.ArgumentTypeError(msg)
    return path


def _base_url(text: str) -> str:
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if not parts.scheme or not parts.netloc:
        msg = "it is not a URL such as https://host/path"
        raise argparse.ArgumentTypeError(msg)
    if parts.query:
        msg = "parameters detected in remote extensions base URL"
        raise argparse.ArgumentTypeError(msg)
    return text.rstrip("/") + "/"


def _not_empty(text: str) -> str:
    if not text:
        msg = "it must not be empty"
        raise argparse.ArgumentTypeError(msg)
    return text


def _role(text: str) -> str:
    if _ROLE.fullmatch(text) is None:
        msg = "--privileged-role-name can only contain lowercase letters and underscores"
        raise argparse.ArgumentTypeError(msg)
    return text


def _whole(text: str, upper: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= upper):
        msg = f"{text!r} is not a whole number from 0 to {upper}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _port(text: str) -> int:
    return _whole(text, 65535)


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port:
        msg = f"{text!r} is not an address such as {DEFAULT_VM_MONITOR}"
        raise argparse.ArgumentTypeError(msg)
    return Address(host, _port(port))


def _cgroup(text: str) -> str:
    if "\0" in text or set(text.strip("/").split("/")) & {".", ".."}:
        msg = f"{text!r} is not the name of a cgroup"
        raise argparse.ArgumentTypeError(msg)
    return text.strip("/")


def _u64(text: str) -> int:
    return _whole(text, _U64)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:  # noqa: PLR2004 - a day
        msg = f"{text!r} is not a number of seconds above 0 and up to a day"
        raise argparse.ArgumentTypeError(msg)
    return value

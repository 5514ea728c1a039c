"""How the node's own Postgres is named: the URL of `-C`, and the keywords and startup options made of it. Pure."""

import re
from collections.abc import Iterable
from typing import Final, NoReturn
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from ..messages.secret import Secret
from ..messages.spec import invalid_name

DEFAULT_USER: Final = "cloud_admin"
DEFAULT_DBNAME: Final = "postgres"
DEFAULT_PORT: Final = 5432
MAX_PORT: Final = 65535

LOOPBACK: Final = ("127.0.0.1", "::1")
"""What `localhost` means, so that nothing is resolved."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_TO_ESCAPE: Final = re.compile(r"([\\\s])")
_SCHEMES: Final = ("postgresql", "postgres")
_PLAIN_SSLMODES: Final = ("disable", "allow", "prefer")
_WITHOUT_EFFECT: Final = ("application_name", "connect_timeout")
"""Taken in a URL because the counterpart takes them; each purpose has its own."""


class Target(msgspec.Struct, frozen=True):
    """Where Postgres is and who we are there; what the URL of `-C` says."""

    host: str
    """A host name, an address, or the folder of a Unix socket."""
    port: int
    user: str
    dbname: str
    password: Secret | None = None
    options: str | None = None
    """Startup options of the URL, in libpq's own syntax."""


def parse_connstr(url: str) -> Target:
    """Read the URL of `-C`; without a user it is `cloud_admin`, without a database `postgres`.

    Raises ValueError, whose text never repeats the URL: it may hold a password.
    """
    if _CONTROL.search(url) is not None:
        _refuse_url("it contains control characters")
    try:
        parts = urlsplit(url)
    except ValueError:
        _refuse_url("its brackets do not match")
    if not parts.scheme or not url.lower().startswith(f"{parts.scheme}://"):
        _refuse_url("give it as postgresql://user@host:port/database")
    if parts.scheme not in _SCHEMES:
        _refuse_config("its scheme must be postgresql")
    if parts.fragment:
        _refuse_config("a `#` in it must be written %23")
    userinfo, _, hostport = parts.netloc.rpartition("@")
    user, has_password, password = userinfo.partition(":")
    host, port = _split_port(hostport)
    fields = {"host": host, "port": port, "user": user, "dbname": parts.path.removeprefix("/")}
    if has_password:
        fields["password"] = password
    return _target(_decoded(fields) | _query(parts.query))


def parse_connection(text: str) -> Target:
    """Read a URL, as `parse_connstr` does, or libpq's other form: `host=localhost port=5432`.

    Raises ValueError, whose text never repeats the connection: it may hold a password.
    """
    if text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
        return parse_connstr(text)
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = {key: str(value) for key, value in conninfo_to_dict(text).items()}
    except ProgrammingError:
        _refuse_config("it is neither a URL nor a list of `name=value`")
    fields = {"host": "", "port": "", "user": "", "dbname": ""} | _known(given)
    return _target(fields)


def params(
    target: Target,
    *,
    application_name: str,
    dbname: str | None = None,
    extra_options: Iterable[str] = (),
    connect_timeout_s: float = 5,
) -> dict[str, str]:
    """Return the keywords for psycopg; `localhost` comes with its addresses, so that nothing is resolved.

    `extra_options` are `name=value` settings that must hold whatever the URL says: they come last.
    The time limit counts for each address, in whole seconds and at least 2 (libpq's floor).
    """
    keywords = {
        "host": target.host,
        "port": str(target.port),
        "user": target.user,
        "dbname": dbname or target.dbname,
        "options": startup_options(target, extra_options),
        "application_name": application_name,
        "client_encoding": "UTF8",
        "sslmode": "disable",
        "gssencmode": "disable",
        "connect_timeout": str(max(2, round(connect_timeout_s))),
    }
    if target.password is not None:
        keywords["password"] = target.password.reveal()
    if target.host == "localhost":
        keywords["host"] = ",".join("localhost" for _ in LOOPBACK)
        keywords["hostaddr"] = ",".join(LOOPBACK)
    return keywords


def startup_options(target: Target, extra_options: Iterable[str] = ()) -> str:
    """Return the text of libpq's `options`: ours, then the URL's, then those of the caller."""
    ours = (
        f"role={target.user}",
        "default_transaction_read_only=off",
        "search_path=public",
        "statement_timeout=0",
        "pgaudit.log=none",
    )
    parts = [_option(setting) for setting in ours]
    if target.options:
        parts.append(target.options)
    parts += [_option(setting) for setting in extra_options]
    return " ".join(parts)


def _target(fields: dict[str, str]) -> Target:
    host, port = fields["host"], fields["port"]
    user, dbname = fields["user"] or DEFAULT_USER, fields["dbname"] or DEFAULT_DBNAME
    if not host:
        _refuse_config("it names no host")
    if "," in host:
        _refuse_config("it names several hosts; this node has one Postgres")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
        _refuse_config(f"its port must be a number from 1 to {MAX_PORT}")
    for what, name in (("user", user), ("database", dbname)):
        if (reason := invalid_name(name)) is not None:
            _refuse_config(f"its {what}: {reason}")
    password = fields.get("password")
    return Target(
        host=host,
        port=int(port) if port else DEFAULT_PORT,
        user=user,
        dbname=dbname,
        password=None if password is None else Secret(password),
        options=fields.get("options") or None,
    )


def _query(query: str) -> dict[str, str]:
    raw = {}
    for pair in query.split("&") if query else ():
        key, has_value, value = pair.partition("=")
        if not has_value:
            _refuse_config("a parameter of its query has no value")
        raw[key] = value
    return _known(_decoded(raw))


def _known(fields: dict[str, str]) -> dict[str, str]:
    """Leave out what has no effect here, and refuse what would have another than is meant."""
    known = {}
    for key, value in fields.items():
        if key == "sslmode":
            if value not in _PLAIN_SSLMODES:
                _refuse_config("own connections use no TLS: leave `sslmode` out, or give disable or prefer")
        elif key in {"host", "port", "user", "password", "dbname", "options"}:
            known[key] = value
        elif key not in _WITHOUT_EFFECT:
            _refuse_config(f"its parameter {key[:80]!r} is not known")
    return known


def _decoded(fields: dict[str, str]) -> dict[str, str]:
    try:
        decoded = {unquote_to_bytes(k).decode(): unquote_to_bytes(v).decode() for k, v in fields.items()}
    except UnicodeDecodeError:
        _refuse_config("its percent-encoding is not UTF-8")
    if any("\0" in value for value in decoded.values()):
        _refuse_config("it contains a NUL character")
    return decoded


def _split_port(hostport: str) -> tuple[str, str]:
    if hostport.startswith("["):
        host, _, rest = hostport[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = hostport.partition(":")
    return host, port


def _option(setting: str) -> str:
    return "-c " + _TO_ESCAPE.sub(r"\\\1", setting)


def _refuse_url(reason: str) -> NoReturn:
    msg = f"cannot parse connstr as a URL: {reason}"
    raise ValueError(msg) from None


def _refuse_config(reason: str) -> NoReturn:
    msg = f"cannot build postgres config from connstr: {reason}"
    raise ValueError(msg) from None

"""How everybody connects to the node's own Postgres: the URL of `-C`, the startup options, time limits."""

import contextlib
import errno
import re
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec
from typing_extensions import override

from ..messages.secret import Secret
from ..messages.spec import invalid_name
from .loading import load_shared

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

R = TypeVar("R")

DEFAULT_USER: Final = "cloud_admin"
DEFAULT_DBNAME: Final = "postgres"
DEFAULT_PORT: Final = 5432
MAX_PORT: Final = 65535

QUIET_OPTIONS: Final = (
    "log_statement=none",
    "log_min_error_statement=panic",
    "log_min_duration_statement=-1",
    "log_min_duration_sample=-1",
    "log_transaction_sample_rate=0",
    "log_parameter_max_length=0",
    "log_parameter_max_length_on_error=0",
    "track_activities=off",
    "debug_print_parse=off",
    "debug_print_rewritten=off",
    "debug_print_plan=off",
)
"""For sessions whose statements carry passwords: nothing of their text reaches log or statistics views."""

UNDISTURBED_OPTIONS: Final = (
    "search_path=",  # only pg_catalog: nothing of a user's can stand in for what we mean
    "lock_timeout=10s",
    "idle_session_timeout=0",
    "idle_in_transaction_session_timeout=0",
    "default_transaction_isolation=read committed",
    "standard_conforming_strings=on",
    "default_tablespace=",
    "default_table_access_method=heap",
    "session_preload_libraries=",  # one that is missing refuses every session
    "local_preload_libraries=",
    "jit=off",
    "client_connection_check_interval=100ms",  # what was broken off ends in the server, too
    "session_replication_role=replica",  # triggers and event triggers of users stay out of our statements
)
"""For sessions that change something, whatever users have set for databases and roles, and made in them."""
EVENT_TRIGGERS_OFF: Final = "event_triggers=off"
SET_EVENT_TRIGGERS_OFF: Final = b"SET event_triggers = off"
"""The same for a connection that is open before the version is known."""
EVENT_TRIGGERS_SINCE: Final = 170000
"""The version of Postgres that knows them."""

CANCEL_GRACE_S: Final = 0.4
"""How long a cancelled task may take to cancel its statement in the server before it is cut off."""

PROBE_TIMEOUT_S: Final = 0.2
STATEMENT_S: Final = 5.0
"""For a statement that is answered at once."""
LIBPQ_TIMEOUT_S: Final = 3600.0
"""Libpq's own limit counts the time in which this process stood still: it is out of the way of ours."""

_LOOPBACK: Final = ("127.0.0.1", "::1")
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


class Cancellation(Protocol):
    """The part of a job's cancellation that is needed here."""

    def now(self) -> float:
        """Return seconds on a monotonic clock."""
        ...

    def check(self) -> None:
        """Raise once the job has been asked to end."""
        ...

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call this when the job is asked to end."""
        ...


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
        keywords["host"] = ",".join("localhost" for _ in _LOOPBACK)
        keywords["hostaddr"] = ",".join(_LOOPBACK)
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


def addresses(target: Target) -> tuple[str, ...]:
    """Return where to connect to, best first: addresses, or the folder of a socket. Raises OSError.

    A name is looked up here, on the caller's thread: asyncio would start threads for it, and perhaps find none.
    """
    if target.host == "localhost":
        return _LOOPBACK
    if target.host.startswith("/"):
        return (target.host,)
    return find_addresses(target.host, target.port)


def find_addresses(host: str, port: int) -> tuple[str, ...]:
    """Look a name up, on the caller's thread. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


async def look_up(host: str, port: int) -> tuple[str, ...]:
    """Look a name up on a thread of its own that nobody waits for: asyncio would wait for its own. Raises OSError."""
    import asyncio

    if _is_address(host):
        return (host,)
    loop = asyncio.get_running_loop()
    found: asyncio.Future[tuple[str, ...]] = loop.create_future()

    def settle(result: tuple[str, ...] | OSError) -> None:
        if found.done():
            return
        if isinstance(result, OSError):
            found.set_exception(result)
        else:
            found.set_result(result)

    def look() -> None:
        try:
            result: tuple[str, ...] | OSError = find_addresses(host, port)
        except OSError as error:
            result = error
        except UnicodeError:
            result = OSError(errno.EINVAL, "it is no name of a host")
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=look, name="look-up", daemon=True).start()
    return await found


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False


async def connect(
    target: Target,
    *,
    application_name: str,
    dbname: str | None = None,
    extra_options: Sequence[str] = (),
    timeout_s: float = 5.0,
) -> "AsyncConnection[TupleRow]":
    """Connect within `timeout_s` in all: autocommit, no prepared statements, no thread.

    Raises psycopg.OperationalError; of several addresses, the error of the one that answers.
    """
    import asyncio

    from psycopg import OperationalError
    from psycopg.errors import ConnectionTimeout

    keywords: dict[str, Any] = params(
        target,
        application_name=application_name,
        dbname=dbname,
        extra_options=extra_options,
        connect_timeout_s=LIBPQ_TIMEOUT_S,
    )
    failure: OperationalError | None = None
    try:
        places = addresses(target)
    except OSError as error:
        msg = f"the host {target.host!r} of the connection string cannot be found: {error.strerror or error}"
        raise OperationalError(msg) from error
    try:
        async with asyncio.timeout(timeout_s):
            for place in places:
                if not place.startswith("/"):
                    keywords |= {"host": target.host, "hostaddr": place}
                try:
                    return await connect_once(keywords)
                except OperationalError as error:
                    failure = failure or error
                    if len(places) == 1 or _listens(place, target.port):
                        raise
    except TimeoutError:
        msg = (
            f"no connection to Postgres at {target.host}, port {target.port}, within {timeout_s:g} s: "
            "something takes connections there and does not answer"
        )
        raise ConnectionTimeout(msg) from None
    raise failure or OperationalError("no address to connect to")


async def connect_once(keywords: dict[str, Any]) -> "AsyncConnection[TupleRow]":
    """Connect to one address; an attempt that is broken off closes its socket at once.

    Left to the garbage collector, the traceback keeps libpq's connection open, and a Postgres that is told
    to stop then waits for the login that never comes (up to authentication_timeout).
    """
    import traceback

    from psycopg import AsyncConnection

    try:
        return await AsyncConnection.connect(autocommit=True, prepare_threshold=None, **keywords)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise


async def fetch(connection: "AsyncConnection[Any]", query: bytes, limit_s: float = STATEMENT_S) -> list[Any]:
    """Return the rows of a quick query. Raises psycopg.Error, and TimeoutError after `limit_s`."""
    import asyncio

    async with asyncio.timeout(limit_s):
        return await (await connection.execute(query)).fetchall()


def run_async(factory: Callable[[], Coroutine[Any, Any, R]], cancellation: Cancellation) -> R:
    """Run a coroutine in this thread (not the main one) until it ends or the job is asked to end.

    Its time limits are counted by the clock of the job.
    In the second case the coroutine is cancelled, and cut off when it has not ended by then; what
    `cancellation.check` raises is raised within a second.
    """
    import asyncio

    cancellation.check()
    load_shared()
    try:
        with asyncio.Runner(loop_factory=partial(_event_loop, cancellation.now)) as runner:
            return runner.run(_cancellable(factory, cancellation))
    except (Exception, asyncio.CancelledError):
        cancellation.check()
        raise


def _event_loop(now: Callable[[], float]) -> "AbstractEventLoop":
    import asyncio

    class Loop(asyncio.SelectorEventLoop):
        @override
        def time(self) -> float:
            return now()

    return Loop()


async def _cancellable(factory: Callable[[], Coroutine[Any, Any, R]], cancellation: Cancellation) -> R:
    import asyncio

    loop = asyncio.get_running_loop()
    task = loop.create_task(factory())

    def cancel() -> None:
        if not task.done():
            task.cancel()
            loop.call_later(CANCEL_GRACE_S, cancel)

    def request() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the work was over before
            loop.call_soon_threadsafe(cancel)

    cancellation.on_request(request)
    return await task


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


def _listens(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            return probe.connect_ex((address, port)) in {0, errno.EAGAIN}  # EAGAIN: its queue is full
    except OSError:
        return False


def _refuse_url(reason: str) -> NoReturn:
    msg = f"cannot parse connstr as a URL: {reason}"
    raise ValueError(msg) from None


def _refuse_config(reason: str) -> NoReturn:
    msg = f"cannot build postgres config from connstr: {reason}"
    raise ValueError(msg) from None

"""How everybody connects to the node's own Postgres, and what sessions are to be like."""

import errno
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .hosts import find_addresses
from .target import LOOPBACK, Target, params

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

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

PROBE_TIMEOUT_S: Final = 0.2
STATEMENT_S: Final = 5.0
"""For a statement that is answered at once."""
LIBPQ_TIMEOUT_S: Final = 3600.0
"""Libpq's own limit counts the time in which this process stood still: it is out of the way of ours."""


def addresses(target: Target) -> tuple[str, ...]:
    """Return where to connect to, best first: addresses, or the folder of a socket. Raises OSError.

    A name is looked up here, on the caller's thread: asyncio would start threads for it, and perhaps find none.
    """
    if target.host == "localhost":
        return LOOPBACK
    if target.host.startswith("/"):
        return (target.host,)
    return find_addresses(target.host, target.port)


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


def _listens(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            return probe.connect_ex((address, port)) in {0, errno.EAGAIN}  # EAGAIN: its queue is full
    except OSError:
        return False

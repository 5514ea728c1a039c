"""A configuration for a running Postgres: written, judged by Postgres, loaded, verified; else the old one is back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ...messages.failpoints import Failpoint
from ...postgres.accounts import Account
from ...postgres.conf import CONF_FILE, ConfText
from ...postgres.connection import connect, fetch
from ...postgres.coroutines import run_async
from ...postgres.target import Target
from ..kit.jobs import Cancellation
from .folder import write_file
from .port import PostgresError

APPLICATION: Final = "compute_ctl:reload"
VERIFY_S: Final = 10.0
"""How long the postmaster may take to load the file."""
_POLL_S: Final = 0.01

# A row of a postmaster-level setting says "could not be applied" when it awaits a restart: that is accepted.
# So is the row without name and file by which Postgres tells that such a setting was taken out of the file.
REFUSED_ROWS: Final = b"""
SELECT f.name, f.error, f.sourcefile, f.sourceline
FROM pg_catalog.pg_file_settings f LEFT JOIN pg_catalog.pg_settings s ON lower(s.name) = lower(f.name)
WHERE f.error IS NOT NULL AND s.context IS DISTINCT FROM 'postmaster'
  AND (f.name IS NOT NULL OR f.sourcefile IS NOT NULL)
ORDER BY f.seqno
"""
PENDING_ROWS: Final = b"SELECT name FROM pg_catalog.pg_settings WHERE pending_restart ORDER BY name"
LOAD_TIME: Final = b"SELECT pg_catalog.pg_conf_load_time()"


def install(
    conf: ConfText,
    pgdata: str,
    target: Target,
    *,
    account: Account | None,
    reload: Callable[[], None],
    cancellation: Cancellation,
) -> tuple[str, ...]:
    """Let the running Postgres take this configuration; returns the settings that await a restart.

    `reload` sends SIGHUP to the postmaster. Raises PostgresError, or CancelledError, with the old file back in
    place, and in force.
    """
    path = str(Path(pgdata, CONF_FILE))
    last_good = Path(path).read_bytes()
    loaded = False

    def load() -> None:
        nonlocal loaded
        loaded = True
        reload()

    try:
        return run_async(lambda: _install(conf, path, target, account, load, cancellation), cancellation)
    except BaseException as error:
        write_file(path, last_good, account=account)
        if loaded:
            reload()
        if not _is_of_database(error):
            raise
        said = str(error).strip() or type(error).__name__
        msg = f"the new configuration could not be loaded, the one before is in force: {said}"
        raise PostgresError(msg) from error


async def _install(
    conf: ConfText,
    path: str,
    target: Target,
    account: Account | None,
    load: Callable[[], None],
    cancellation: Cancellation,
) -> tuple[str, ...]:
    connection = await connect(target, application_name=APPLICATION)
    async with connection:
        before = (await fetch(connection, LOAD_TIME))[0][0]
        write_file(path, conf.text.encode(), account=account)
        cancellation.reach(Failpoint.INSTALL_WRITTEN)
        refused = await fetch(connection, REFUSED_ROWS)
    if refused:
        raise PostgresError(_explain(refused, conf, path))
    load()
    cancellation.reach(Failpoint.INSTALL_RELOADED)
    deadline = _now() + VERIFY_S
    while True:
        # A new connection: the postmaster's own state is what later sessions, and only they, inherit.
        async with await connect(target, application_name=APPLICATION) as fresh:
            if (await fetch(fresh, LOAD_TIME))[0][0] > before:
                cancellation.reach(Failpoint.INSTALL_VERIFIED)
                return tuple(row[0] for row in await fetch(fresh, PENDING_ROWS))
        if _now() > deadline:
            msg = (
                f"the new configuration was written and Postgres did not load it within {VERIFY_S:g} s; "
                "the one before is back: is the postmaster stopped (SIGSTOP)?"
            )
            raise PostgresError(msg)
        await _pause()


def _now() -> float:
    import asyncio

    return asyncio.get_running_loop().time()


async def _pause() -> None:
    import asyncio

    await asyncio.sleep(_POLL_S)


def _explain(rows: list[Any], conf: ConfText, path: str) -> str:
    said = []
    for name, error, file, line in rows:  # without the value, which may be a secret
        what = f"`{name}`" if name else "a line"
        where = conf.origin(line) if file == path else f"line {line} of {file}"
        said.append(f"{what} ({where}): {error}")
    return f"Postgres refuses the configuration, the one before is in force: {'; '.join(said)}"


def _is_of_database(error: BaseException) -> bool:
    from psycopg import Error

    return isinstance(error, (Error, TimeoutError))

"""Looks into the databases, one after the other, for their extensions. Imported late."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from psycopg import Error

from ...postgres.connection import connect
from ...postgres.coroutines import run_async
from ...postgres.target import Target, parse_connstr
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from .executor import OPTIONS
from .extensions import Extension
from .operations import shown
from .port import AdministrationError

APPLICATION_NAME: Final = "compute_ctl:get_installed_extensions"
LIMIT_S: Final = 120.0
"""One collection in all."""
DATABASES: Final = b"""
SELECT datname FROM pg_catalog.pg_database
WHERE datallowconn AND datconnlimit <> -2
ORDER BY oid LIMIT 500
"""
"""Those that take connections; -2 marks what an interrupted DROP DATABASE has left."""
EXTENSIONS: Final = b"SELECT extname, extversion, extowner FROM pg_catalog.pg_extension"

log = logging.getLogger(__name__)


def installed_extensions(connstr: str, cancellation: Cancellation) -> tuple[Extension, ...]:
    """Collect them from the Postgres of that URL, on this thread; see `port.Administration`."""
    return run_async(partial(_collect, parse_connstr(connstr), cancellation), cancellation)


async def _collect(target: Target, cancellation: Cancellation) -> tuple[Extension, ...]:
    found: list[Extension] = []
    missed: list[str] = []
    try:
        async with asyncio.timeout(LIMIT_S):
            databases = _readable(await _rows(target, target.dbname, DATABASES))
            for (name,) in databases:
                cancellation.check()
                try:
                    rows = await _rows(target, name, EXTENSIONS)
                except Error as error:
                    missed.append(f"{shown(name)}: {one_line(error)}")
                else:
                    found += (
                        Extension(name, version, int(owner)) for name, version, owner in _readable(rows)
                    )
    except TimeoutError:
        msg = f"it was broken off after {LIMIT_S:g} s: Postgres is too slow"
        raise AdministrationError(msg) from None
    except Error as error:
        raise AdministrationError(one_line(error)) from error
    if missed and len(missed) == len(databases):
        raise AdministrationError(missed[0])
    if missed:
        log.warning(
            "%d of %d databases are left out of the installed extensions; the first one is %s",
            len(missed),
            len(databases),
            missed[0],
        )
    return tuple(found)


async def _rows(target: Target, dbname: str, question: bytes) -> list[list[bytes]]:
    connection = await connect(
        target, application_name=APPLICATION_NAME, dbname=dbname, extra_options=OPTIONS
    )
    try:
        answer = (await connection.execute(question)).pgresult
    finally:
        connection.pgconn.finish()
    assert answer is not None  # noqa: S101 - the statement has run
    return [
        [answer.get_value(row, column) or b"" for column in range(answer.nfields)]
        for row in range(answer.ntuples)
    ]


def _readable(rows: Sequence[Sequence[bytes]]) -> list[list[str]]:
    """Decode rows; names that are not UTF-8 (a database in SQL_ASCII may hold some) are left out."""
    decoded = []
    for row in rows:
        try:
            decoded.append([value.decode() for value in row])
        except UnicodeDecodeError:
            continue
    return decoded

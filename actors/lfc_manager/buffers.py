"""The shared buffers of a plain Postgres, through the modules pg_buffercache and pg_prewarm. Imported late.

On a primary their functions are made for one session only, in its temporary schema: nothing is left in the
catalogs of users. A standby takes no new functions, so there the extensions must have come from its primary.
"""

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from psycopg import Error, sql

from ...postgres.asking import Row, StatementError, ask
from .blocks import (
    FORKS,
    SHARED,
    Batches,
    Buffers,
    Relation,
    Run,
    encode,
    examine,
    parse,
    runs,
    total_of,
)
from .pace import Pace
from .port import CacheError, Counts, NoModuleError, Progress
from .sessions import Connection, Sessions

MOST_RUNS: Final = 500
"""Ranges in one statement."""
LOOK_S: Final = 0.1
TELL_S: Final = 0.25
"""How often users are looked at, and progress is told."""
NICE: Final = 10
NO_MODULE: Final = "58P01"
SESSION_ENDED: Final = "57P"
"""How the states of a statement begin with which its session ends, too."""

IN_RECOVERY: Final = b"SELECT pg_catalog.pg_is_in_recovery()"
MAKE_LISTER: Final = b"""\
CREATE FUNCTION pg_temp.compute_node_buffers() RETURNS SETOF record
    AS '$libdir/pg_buffercache', 'pg_buffercache_pages' LANGUAGE c
"""
MAKE_READER: Final = b"""\
CREATE FUNCTION pg_temp.compute_node_prewarm(regclass, text, text, int8, int8) RETURNS int8
    AS '$libdir/pg_prewarm', 'pg_prewarm' LANGUAGE c
"""
FIND: Final = b"""\
SELECT n.nspname, p.proname
  FROM pg_catalog.pg_proc AS p
  JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
 WHERE l.lanname = 'c' AND p.probin = $1 AND p.prosrc = $2
 LIMIT 1
"""
"""Whatever it is called: the extension may be in any schema, and others may have functions of its name."""
LIST: Final = """\
WITH cached AS (
    SELECT reldatabase, reltablespace, relfilenode, relforknumber, relblocknumber,
           relblocknumber - pg_catalog.row_number() OVER (
               PARTITION BY reldatabase, reltablespace, relfilenode, relforknumber ORDER BY relblocknumber
           ) AS island
      FROM {}() AS b(
               bufferid int4, relfilenode oid, reltablespace oid, reldatabase oid, relforknumber int2,
               relblocknumber int8, isdirty bool, usagecount int2, pinning_backends int4
           )
     WHERE relfilenode IS NOT NULL
), ranges AS (
    SELECT reldatabase, reltablespace, relfilenode, relforknumber,
           pg_catalog.min(relblocknumber) AS first, pg_catalog.count(*) AS size
      FROM cached
     GROUP BY reldatabase, reltablespace, relfilenode, relforknumber, island
), gaps AS (
    SELECT *, first - COALESCE(pg_catalog.lag(first + size) OVER (
               PARTITION BY reldatabase, reltablespace, relfilenode, relforknumber ORDER BY first
           ), 0) AS gap
      FROM ranges
)
SELECT reldatabase, reltablespace, relfilenode, relforknumber, pg_catalog.sum(size),
       pg_catalog.string_agg(gap || '+' || size, ',' ORDER BY first)
  FROM gaps
 GROUP BY reldatabase, reltablespace, relfilenode, relforknumber
"""
DATABASES: Final = b"""\
SELECT oid, datname
  FROM pg_catalog.pg_database
 WHERE datallowconn AND datconnlimit <> -2 AND NOT datistemplate
 ORDER BY oid
"""
NAMES: Final = b"""\
SELECT w.n, s.nspname, c.relname
  FROM pg_catalog.json_to_recordset($1::pg_catalog.json) AS w(n int4, t oid, f oid)
  JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.pg_filenode_relation(w.t, w.f)
  JOIN pg_catalog.pg_namespace AS s ON s.oid = c.relnamespace
 WHERE c.relpersistence <> 't'
"""
FILES: Final = b"""\
SELECT w.n, c.oid,
       pg_catalog.pg_relation_size(c.oid, w.k) / pg_catalog.current_setting('block_size')::pg_catalog.int8
  FROM pg_catalog.json_to_recordset($1::pg_catalog.json)
       AS w(n int4, s pg_catalog.text, r pg_catalog.text, k pg_catalog.text, f oid)
  JOIN pg_catalog.pg_namespace AS s ON s.nspname = w.s
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relname = w.r
 WHERE pg_catalog.pg_relation_filenode(c.oid) = w.f
"""
READ: Final = """\
SELECT pg_catalog.sum({}(w.o::pg_catalog.regclass, 'buffer', w.k, w.a, w.b))
  FROM pg_catalog.json_to_recordset($1::pg_catalog.json) AS w(o oid, k pg_catalog.text, a int8, b int8)
"""
BUSY: Final = b"""\
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_stat_activity
     WHERE backend_type = 'client backend' AND application_name NOT LIKE 'compute_ctl:%'
       AND (state = 'active' OR state_change > pg_catalog.clock_timestamp() - '250 ms'::pg_catalog.interval)
)
"""
"""A session whose statements are short is seldom met at one. Those of the node itself have that name."""
ROOM: Final = b"""\
SELECT setting::pg_catalog.int8 FROM pg_catalog.pg_settings WHERE name = 'shared_buffers'
"""

log = logging.getLogger("compute_node.lfc")


# --- Taking ------------------------------------------------------------------------------------------------


async def take(sessions: Sessions, connection: Connection) -> bytes | None:
    """Return which blocks are cached, of all databases; None when there are none.

    Raises CacheError, StatementError and psycopg.Error.
    """
    lister = await _function(connection, "pg_buffercache", "pg_buffercache_pages", MAKE_LISTER)
    cached: dict[int, list[Row]] = {}
    for row in await ask(connection, sql.SQL(LIST).format(lister).as_bytes(connection)):
        cached.setdefault(_int(row[0]), []).append(row)
    found = await _named(connection, SHARED, cached.get(0, []))
    for database, oid in (await _databases(connection)).items():
        if oid not in cached:
            continue
        try:
            async with sessions.connect(database) as visit:
                found += await _named(visit, database, cached[oid])
        except (CacheError, StatementError, Error):
            if await _is_there(sessions, connection, database):
                raise
    return encode(Buffers(tuple(found))) if found else None


async def _named(connection: Connection, database: str, rows: Sequence[Row]) -> list[Relation]:
    """Name the relations of a database, but those whose names no state can hold."""
    wanted = [{"n": n, "t": _int(row[1]), "f": _int(row[2])} for n, row in enumerate(rows)]
    relations = []
    for number, *names in await ask(connection, NAMES, [msgspec.json.encode(wanted)]):
        _, _, filenode, fork, blocks, ranges = rows[_int(number)]
        schema, name = (_name(one) for one in names)
        if schema is not None and name is not None:
            known = (_int(fork), _int(filenode), _int(blocks), (ranges or b"").decode())
            relations.append(Relation(database, schema, name, *known))
    return relations


# --- Loading -----------------------------------------------------------------------------------------------


class _Load:
    """One load: how far it has come, and at what pace it goes on."""

    def __init__(self, total: int, room: int, progress: Progress) -> None:
        self._total = total
        self._room = room
        self._progress = progress
        self._told_s = asyncio.get_running_loop().time()
        self._looked_s = -math.inf
        self._busy = False
        self._pace = Pace()
        self.prewarmed = 0
        self.skipped = 0

    async def database(self, connection: Connection, relations: Sequence[Relation]) -> None:
        """Read what one database still has of its relations; the rest is for the caller to skip."""
        _give_way(connection)
        reader = await _function(connection, "pg_prewarm", "pg_prewarm", MAKE_READER)
        read = sql.SQL(READ).format(reader).as_bytes(connection)
        wanted = [
            {"n": n, "s": r.schema, "r": r.name, "k": FORKS[r.fork], "f": r.filenode}
            for n, r in enumerate(relations)
        ]
        files = await _files(connection, wanted)
        self.skipped += total_of(r for n, r in enumerate(relations) if n not in files)
        sizes = [(r, files[n][1] if n in files else 0) for n, r in enumerate(relations)]
        batches = Batches(runs(sizes))
        gone: set[int] = set()
        while batch := batches.take(min(self._pace.blocks, self._room - self.prewarmed), MOST_RUNS):
            kept = [run for run in batch if run.relation not in gone]
            began_s = asyncio.get_running_loop().time()
            for part in await self._parts(connection, read, kept, relations, files):
                gone.add(part)
            await self._go_on(connection, asyncio.get_running_loop().time() - began_s)

    async def _parts(
        self,
        connection: Connection,
        read: bytes,
        batch: Sequence[Run],
        relations: Sequence[Relation],
        files: dict[int, tuple[int, int]],
    ) -> list[int]:
        """Read a batch, by relation if not all of it can be read; returns the relations that cannot be."""
        if not batch:
            return []
        try:
            rows = [
                {
                    "o": files[run.relation][0],
                    "k": FORKS[relations[run.relation].fork],
                    "a": run.first,
                    "b": run.last,
                }
                for run in batch
            ]
            await ask(connection, read, [msgspec.json.encode(rows)])
        except StatementError as error:
            if error.sqlstate.startswith(SESSION_ENDED):
                raise
            numbers = {run.relation for run in batch}
            if len(numbers) == 1:
                return list(numbers)  # dropped, cut or locked meanwhile
            gone = []
            for number in sorted(numbers):
                own = [run for run in batch if run.relation == number]
                gone += await self._parts(connection, read, own, relations, files)
            return gone
        self.prewarmed += sum(run.blocks for run in batch)
        return []

    async def _go_on(self, connection: Connection, took_s: float) -> None:
        """Tell how far it has come, look at the users, and leave them the time that is theirs."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._progress(Counts(self._total, self.prewarmed, self.skipped))
        if self._busy or now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._busy = await ask(connection, BUSY) == [[b"t"]]
        self._pace = self._pace.after(took_s, busy=self._busy)
        if self._pace.pause_s:
            await asyncio.sleep(self._pace.pause_s)


def _give_way(connection: Connection) -> None:
    """Let sessions of users go first where they wait for a processor: no pause would come in time for them.

    Not lower than that: what this session holds for a moment, a user may wait for.
    """
    with contextlib.suppress(OSError):  # it may be another account's
        os.setpriority(os.PRIO_PROCESS, connection.pgconn.backend_pid, NICE)


async def _files(
    connection: Connection, wanted: Sequence[Mapping[str, object]]
) -> dict[int, tuple[int, int]]:
    """Return oid and size in blocks of what is still there and not locked, by its number."""
    try:
        rows = await ask(connection, FILES, [msgspec.json.encode(wanted)])
    except StatementError as error:
        if error.sqlstate.startswith(SESSION_ENDED):
            raise
        if len(wanted) == 1:
            return {}
        half = len(wanted) // 2
        return await _files(connection, wanted[:half]) | await _files(connection, wanted[half:])
    return {_int(number): (_int(oid), _int(size)) for number, oid, size in rows}


async def load(sessions: Sessions, connection: Connection, state: bytes, progress: Progress) -> Counts:
    """Read the blocks of a state, as far as they are still there and have room.

    Raises CacheError, StateError, StatementError and psycopg.Error.
    """
    buffers = parse(state)
    for _ in examine(buffers):
        await asyncio.sleep(0)
    total = buffers.total
    by_database: dict[str, list[Relation]] = {}
    for relation in buffers.relations:
        by_database.setdefault(relation.database, []).append(relation)
    progress(Counts(total))
    without: dict[str, NoModuleError] = {}
    visited = done = 0
    under_way = _Load(total, _int((await ask(connection, ROOM))[0][0]), progress)
    for database, relations in by_database.items():
        try:
            if database == SHARED:
                await under_way.database(connection, relations)
            else:
                async with sessions.connect(database) as visit:
                    await under_way.database(visit, relations)
            visited += 1
        except NoModuleError as error:
            without[database] = error
        except (CacheError, StatementError, Error):
            if await _is_there(sessions, connection, database):
                raise
        done += total_of(relations)
        under_way.skipped = done - under_way.prewarmed
    if without and not visited:
        raise next(iter(without.values()))
    if without:
        named = ", ".join(f"{database!r} ({error})" for database, error in list(without.items())[:10])
        log.warning("the cache is not prewarmed for %d databases: %s", len(without), named)
    return Counts(total, under_way.prewarmed, under_way.skipped)


# --- Databases and functions -------------------------------------------------------------------------------


async def _databases(connection: Connection) -> dict[str, int]:
    """Return the oids of the databases that take sessions, but of those whose names are not UTF-8."""
    rows = await ask(connection, DATABASES)
    return {name: _int(oid) for oid, given in rows if (name := _name(given)) is not None}


async def _is_there(sessions: Sessions, connection: Connection, database: str) -> bool:
    """Tell whether a database is still there; who knocks waits for a DROP DATABASE that has not ended."""
    if database == SHARED:
        return True
    with contextlib.suppress(CacheError, StatementError, Error):
        async with sessions.connect(database):
            pass
    return database in await _databases(connection)


async def _function(connection: Connection, module: str, symbol: str, make: bytes) -> sql.Identifier:
    """Return the name of a function of a module, which is made for this session if it may be.

    Raises NoModuleError where the module is missing, or on a standby the extension, StatementError and psycopg.Error.
    """
    if await ask(connection, IN_RECOVERY) == [[b"t"]]:
        found = await ask(connection, FIND, [f"$libdir/{module}".encode(), symbol.encode()])
        if not found:
            database = connection.pgconn.db.decode(errors="replace")
            msg = (
                f"a standby has the extension {module} only from its primary: CREATE EXTENSION {module} there, "
                f"in the database {database!r}"
            )
            raise NoModuleError(msg)
        return sql.Identifier(*((part or b"").decode() for part in found[0]))
    try:
        await ask(connection, make)
    except StatementError as error:
        if error.sqlstate != NO_MODULE:
            raise
        msg = f"the module {module} is not there: install PostgreSQL's contrib modules ({error})"
        raise NoModuleError(msg) from None
    return sql.Identifier("pg_temp", make.split(b"pg_temp.", 1)[1].split(b"(", 1)[0].decode())


def _int(value: bytes | None) -> int:
    return int(value or 0)


def _name(value: bytes | None) -> str | None:
    """Return a name; None of one that is not UTF-8, as those of a database with SQL_ASCII may be."""
    try:
        return (value or b"").decode()
    except UnicodeDecodeError:
        return None

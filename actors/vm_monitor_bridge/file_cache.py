"""The real file cache: the settings of Neon's extension, through SQL; what is heavy is loaded by the first use."""

from typing import TYPE_CHECKING, Final, LiteralString

from typing_extensions import override

from ...messages.secret import Secret
from ...postgres.connection import connect
from ...postgres.coroutines import run_async
from ...postgres.target import Target, parse_connection
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from .decisions import MIB
from .port import FileCache, VmError

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg.rows import TupleRow

APPLICATION_NAME: Final = "vm-monitor"
LIMIT_S: Final = 3.5
"""For all that a change takes: the agent waits 5 s for an answer, and a set-up has 4."""
RELOAD_S: Final = 1.0
LOOK_AGAIN_S: Final = 0.02
"""How long a reload may take to be seen, and how often it is looked for."""
LIMIT: Final[LiteralString] = "neon.file_cache_size_limit"
MAXIMUM: Final[LiteralString] = "neon.max_file_cache_size"

READ: Final[LiteralString] = """\
SELECT name, pg_catalog.pg_size_bytes(pg_catalog.current_setting(name))
  FROM pg_catalog.pg_settings
 WHERE name = ANY (%s)
"""
"""A setting that nobody has defined is in no view, though somebody may have given it a value."""


class NeonFileCache(FileCache):
    """Makes a connection for each change. `connstr` is a URL or has libpq's other form."""

    def __init__(
        self, connstr: Secret, *, limit: LiteralString = LIMIT, maximum: LiteralString = MAXIMUM
    ) -> None:
        self._connstr = connstr
        self._limit = limit
        self._maximum = maximum
        self._in_doubt = False
        """What is in force need not be what is written: somebody's next reload could bring another size."""

    @override
    def resize(self, size: int, cancellation: Cancellation) -> int | None:
        import psycopg

        try:
            target = parse_connection(self._connstr.reveal())
        except ValueError as error:
            msg = f"the file cache cannot be reached: --filecache-connstr: {error}"
            raise VmError(msg) from None
        try:
            return run_async(lambda: self._resize(target, size), cancellation)
        except TimeoutError:
            msg = f"the file cache could not be resized: Postgres has not done it within {LIMIT_S:g} s"
            raise VmError(msg) from None
        except psycopg.Error as error:
            msg = f"the file cache could not be resized: {one_line(error)}"
            raise VmError(msg) from error

    async def _resize(self, target: Target, size: int) -> int | None:
        import asyncio

        async with asyncio.timeout(LIMIT_S):
            connection, found = await self._read(target)
            try:
                if self._limit not in found or self._maximum not in found:
                    return None
                wanted = min(size, found[self._maximum]) // MIB * MIB
                if found[self._limit] != wanted or self._in_doubt:
                    await self._set(connection, wanted)
                return wanted
            finally:
                connection.pgconn.finish()  # a goodbye could wait for a server that does not answer

    async def _read(self, target: Target) -> "tuple[AsyncConnection[TupleRow], dict[str, int]]":
        """Connect and read both settings; a first failure is made good by a second connection."""
        import psycopg

        try:
            return await self._read_once(target)
        except psycopg.Error:
            return await self._read_once(target)

    async def _read_once(self, target: Target) -> "tuple[AsyncConnection[TupleRow], dict[str, int]]":
        connection = await connect(target, application_name=APPLICATION_NAME, timeout_s=LIMIT_S)
        try:
            cursor = await connection.execute(READ, ([self._limit, self._maximum],))
            return connection, dict(await cursor.fetchall())
        except BaseException:
            connection.pgconn.finish()
            raise

    async def _set(self, connection: "AsyncConnection[TupleRow]", size: int) -> None:
        """Write it, load it, and see that it was taken; what fails after the first step can be repeated."""
        import asyncio

        from psycopg import sql

        name = sql.SQL(".").join(map(sql.Identifier, self._limit.split(".")))
        statement = sql.SQL("ALTER SYSTEM SET {} = {}").format(name, sql.Literal(size // MIB))
        self._in_doubt = True
        await connection.execute(statement)
        await connection.execute("SELECT pg_catalog.pg_reload_conf()")
        loop = asyncio.get_running_loop()
        until_s = loop.time() + RELOAD_S
        while True:
            cursor = await connection.execute(READ, ([self._limit],))
            seen = [value for _, value in await cursor.fetchall()]
            if seen == [size]:
                self._in_doubt = False
                return
            if loop.time() >= until_s:
                msg = (
                    f"{self._limit} was set to {size // MIB} MB by ALTER SYSTEM and is still {seen} (bytes) after a "
                    "reload: something else, such as the command line of Postgres, overrides it, or an error in a "
                    "configuration file has kept Postgres from loading it (see its log)"
                )
                raise VmError(msg)
            await asyncio.sleep(LOOK_AGAIN_S)

"""The real catalog and the real pg_dump, light to import: what a query needs is loaded by the first one."""

import os
from collections.abc import Callable
from typing import Final

from typing_extensions import override

from ...messages.clerk import DumpSchema, Query, QueryAnswer
from ...messages.settings import NodeSettings
from ...messages.spec import invalid_name
from ...messages.stream import StreamClosedError
from ...postgres.accounts import Account
from ...postgres.binaries import Binaries
from ...postgres.environment import allowed
from ...postgres.passwords import PASSFILE, password_file
from ...postgres.target import parse_connstr
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from ..kit.metrics import Metrics
from ..kit.programs import Program, ProgramError, Starter, pour
from .dumping import COMMAND, MAX_SAID, environment
from .port import CatalogAccess, Dump

FAILED: Final = "failed to execute pg_dump"
NO_DATABASE: Final = "database does not exist"
MISSING: Final = Dump(error=NO_DATABASE, missing=True)
CLIENT_LEFT: Final = "the client left"


class PostgresCatalog(CatalogAccess):
    """Asks the Postgres of the settings' connection string, with the pg_dump beside its `postgres`."""

    def __init__(
        self, settings: NodeSettings, binaries: Binaries, account: Account | None, metrics: Metrics | None
    ) -> None:
        self._target = parse_connstr(settings.connstr.reveal())
        self._pg_dump = binaries.sibling("pg_dump")
        self._account = account
        self._starter = Starter(account, metrics=metrics, oom_score_adj=settings.oom_score_adj)

    @override
    def answer(self, query: Query, cancellation: Cancellation) -> QueryAnswer:
        from .queries import answer

        return answer(self._target, query, cancellation)

    @override
    def dump(self, request: DumpSchema, begun: Callable[[], None], cancellation: Cancellation) -> Dump:
        if invalid_name(request.database) is not None:  # a long one would be cut: another database
            request.stream.fail(NO_DATABASE)
            return MISSING
        dump = self._dump(request, begun, cancellation)
        if dump.error is None:
            request.stream.end()
            return dump
        request.stream.fail(dump.error)
        if dump.size or request.stream.closed or self._exists(request.database, cancellation):
            return dump
        return MISSING

    def _dump(self, request: DumpSchema, begun: Callable[[], None], cancellation: Cancellation) -> Dump:
        size = 0

        def poured(count: int) -> None:
            nonlocal size
            if not size:
                begun()
            size += count

        env = allowed(os.environ) | environment(self._target, request.database)
        with password_file(self._target.password, self._account) as descriptor:
            passed = () if descriptor is None else (descriptor,)
            if descriptor is not None:
                env[PASSFILE] = f"/proc/self/fd/{descriptor}"
            try:
                result = pour(
                    Program((self._pg_dump, *COMMAND), env, passed),
                    into=request.stream,
                    poured=poured,
                    starter=self._starter,
                    timeout_s=request.limit_s,
                    cancellation=cancellation,
                )
            except StreamClosedError:
                return Dump(size, CLIENT_LEFT)
            except ProgramError as error:
                return Dump(size, f"{FAILED}: {one_line(error, MAX_SAID)}")
        if result.code != 0:
            said = one_line(result.output, MAX_SAID) or "it said nothing"
            return Dump(size, f"{FAILED}: it ended with {result.code}: {said}")
        return Dump(size)

    def _exists(self, database: str, cancellation: Cancellation) -> bool:
        """Tell whether there is such a database; also True where that cannot be found out."""
        from .queries import exists

        return exists(self._target, database, cancellation)

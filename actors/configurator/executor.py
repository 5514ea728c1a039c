"""Applies specs over libpq: statements in pipelines, visits in parallel. Imported late."""

import asyncio
import resource
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from psycopg import Error, OperationalError, sql
from typing_extensions import override

from ...messages.failpoints import Failpoint
from ...messages.planning import CatalogPlanned
from ...postgres.connection import (
    EVENT_TRIGGERS_OFF,
    EVENT_TRIGGERS_SINCE,
    QUIET_OPTIONS,
    SET_EVENT_TRIGGERS_OFF,
    UNDISTURBED_OPTIONS,
    connect,
)
from ...postgres.coroutines import run_async
from ...postgres.target import Target, parse_connstr
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from . import apply as application
from . import conversation, rehearsal
from . import operations as op
from .catalog import (
    COLLATION_VERSIONS_SINCE,
    DRIFT_QUESTION,
    MARK_QUESTION,
    has_mark,
    read_drift,
    read_facts,
    read_mark,
    read_snapshot,
    snapshot_questions,
    visit_questions,
)
from .conversation import Connection, StatementRefusedError, ask
from .desired import BOOTSTRAP_SUPERUSER
from .limits import visit_limit
from .model import Catalog
from .operations import database_named, shown
from .plans import Visit
from .port import AdministrationError, Order, Report
from .session import DecideVisit, Failure, Outcome, Session, VisitOutcome

START_NAME: Final = "compute_ctl:apply_config"
RECONFIGURE_NAME: Final = "compute_ctl:reconfigure"
PLAN_NAME: Final = "compute_ctl:plan"
CHECKPOINT_NAME: Final = "compute_ctl:checkpoint"

APPLY_LIMIT_S: Final = 540.0
"""One application in all; a waiter of the API waits a minute longer."""
MUCH_TO_WRITE: Final = b"""\
SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), redo_lsn) > 16777216
  FROM pg_catalog.pg_control_checkpoint()
"""
"""Whether more than a segment was logged since the last checkpoint; for less one more costs more than it saves."""
CREATING_CONNECTIONS: Final = 4
"""CREATE DATABASE gains from a few sessions (half the time on two processors), and not from more."""
RECONNECT_PAUSES_S: Final = (0.02, 0.1, 0.5, 1.0)
"""Between attempts at databases that refused a connection, all of them together."""

OPTIONS: Final = (
    *QUIET_OPTIONS,
    "pg_stat_statements.track=none",  # it keeps the text of statements, passwords included
    *UNDISTURBED_OPTIONS,
)
"""They win over what users have set for databases and roles."""
MAINTENANCE_OPTIONS: Final = (*OPTIONS, "neon.forward_ddl=false")
READ_ONLY: Final = "default_transaction_read_only=on"
OPTIONS_OF_17: Final = (EVENT_TRIGGERS_OFF, "transaction_timeout=0")


T = TypeVar("T")


def apply(connstr: str, order: Order, cancellation: Cancellation) -> Report:
    """Apply a spec to the Postgres of that URL, on this thread; see `port.Administration`."""
    session = PostgresSession(parse_connstr(connstr), order, cancellation)
    work = partial(application.apply, session, order, cancellation)
    afterwards = "applying the spec again goes on from there"
    return run_async(partial(_within_limit, session, work, afterwards), cancellation)


def rehearse(connstr: str, order: Order, cancellation: Cancellation) -> CatalogPlanned:
    """Say what `apply` would do, in sessions that can only read; see `port.Administration`."""
    session = PostgresSession(parse_connstr(connstr), order, cancellation, read_only=True)
    work = partial(rehearsal.rehearse, session, order, cancellation)
    return run_async(partial(_within_limit, session, work, "nothing was changed"), cancellation).told()


async def _within_limit(
    session: "PostgresSession", work: Callable[[], Coroutine[Any, Any, T]], afterwards: str
) -> T:
    try:
        async with asyncio.timeout(APPLY_LIMIT_S):
            return await work()
    except TimeoutError:
        msg = (
            f"it was broken off after {APPLY_LIMIT_S:g} s: Postgres is too slow, or something holds it up; "
            f"{afterwards}"
        )
        raise AdministrationError(msg) from None
    finally:
        session.close()


def checkpoint(connstr: str, limit_s: float, cancellation: Cancellation) -> None:
    """Write a checkpoint if there is much to write; see `port.Administration`."""
    run_async(partial(_checkpoint, parse_connstr(connstr), limit_s), cancellation)


async def _checkpoint(target: Target, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            connection = await connect(target, application_name=CHECKPOINT_NAME, timeout_s=limit_s)
            try:
                connection.pgconn.enter_pipeline_mode()
                (((worthwhile,),),) = await ask(connection, ((MUCH_TO_WRITE, ()),))
                if worthwhile == b"t":
                    await ask(connection, ((b"CHECKPOINT", ()),))
            finally:
                connection.pgconn.finish()
    except TimeoutError:
        msg = f"it was not written within {limit_s:g} s"
        raise AdministrationError(msg) from None
    except (Error, StatementRefusedError) as error:
        raise AdministrationError(one_line(error)) from error


class PostgresSession(Session):
    """An administration over real connections; all are closed by `close`."""

    def __init__(
        self, target: Target, order: Order, cancellation: Cancellation, *, read_only: bool = False
    ) -> None:
        self._target = target
        self._order = order
        self._cancellation = cancellation
        self._read_only = read_only
        self._name = PLAN_NAME if read_only else START_NAME if order.starting else RECONFIGURE_NAME
        self._maintenance: list[Connection] = []
        self._limit = 1
        self._visit_options: tuple[str, ...] = OPTIONS
        self._server_version = 0

    @property
    @override
    def administrator(self) -> str:
        return self._target.user

    @property
    @override
    def system_database(self) -> str:
        return self._target.dbname

    def close(self) -> None:
        """Close the maintenance connections; what runs on them ends."""
        for connection in self._maintenance:
            connection.pgconn.finish()

    @override
    async def snapshot(self, departing: frozenset[str]) -> Catalog:
        where = f"{self._target.host}, port {self._target.port}"
        try:
            connection = await self._connect_or_bootstrap()
            answers = await ask(connection, snapshot_questions(departing))
            session, catalog = read_snapshot(answers)
            if catalog.server_version >= COLLATION_VERSIONS_SINCE:
                (drift,) = await ask(connection, (DRIFT_QUESTION,))
                catalog = msgspec.structs.replace(catalog, drift=read_drift(drift))
            if catalog.server_version >= EVENT_TRIGGERS_SINCE:
                self._visit_options = (*OPTIONS, *OPTIONS_OF_17)
                await ask(connection, ((SET_EVENT_TRIGGERS_OFF, ()),))
            if has_mark(catalog):
                (mark,) = await ask(connection, (MARK_QUESTION,))
                catalog = msgspec.structs.replace(catalog, mark=read_mark(mark))
        except (Error, StatementRefusedError) as error:
            msg = f"cannot read the catalog of the Postgres at {where} as {shown(self.administrator)}: {one_line(error)}"
            raise AdministrationError(msg) from error
        if session.user != self.administrator:
            msg = (
                f"the connection acts as {shown(session.user)} instead of {shown(self.administrator)}: "
                "remove `role` from the options of --connstr"
            )
            raise AdministrationError(msg)
        if session.in_recovery:
            msg = f"the Postgres at {where} is in recovery and takes no changes; a Primary must have left it"
            raise AdministrationError(msg)
        self._limit = visit_limit(
            self._order.spec,
            starting=self._order.starting,
            max_connections=session.max_connections,
            descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )
        self._server_version = catalog.server_version
        return catalog

    @override
    async def execute(self, operations: Sequence[op.Maintaining]) -> Outcome:
        lanes = await self._lanes(operations)
        try:
            outcomes = await _together(
                [
                    partial(conversation.carry_out, connection, lane, self._cancellation)
                    for connection, lane in lanes
                ]
            )
        except Error as error:
            phase = operations[0].phase.value
            msg = f"{phase}: the connection to Postgres was lost: {one_line(error)}; applying it again goes on from there"
            raise AdministrationError(msg) from error
        finally:
            while len(self._maintenance) > 1:
                self._maintenance.pop().pgconn.finish()
        return Outcome(sum(o.done for o in outcomes), tuple(f for o in outcomes for f in o.failures))

    @override
    async def visit(self, visits: Sequence[Visit], decide: DecideVisit) -> tuple[VisitOutcome, ...]:
        waiting_visits = deque(visits)
        outcomes: list[VisitOutcome] = []
        refused: list[Visit] = []

        async def work() -> None:
            while waiting_visits:
                visit = waiting_visits.popleft()
                try:
                    outcomes.append(await self._visit(visit, decide))
                except OperationalError:
                    refused.append(visit)

        # Whoever drops a subscription locks the catalog that all databases share: one after the other.
        limit = 1 if any(visit.subscriptions for visit in visits) else self._limit
        await _together([work] * min(limit, len(visits)))
        pauses_s: tuple[float, ...] = RECONNECT_PAUSES_S
        while refused:  # perhaps there were no free connections; sessions that have ended leave some
            try:
                outcomes.append(await self._visit(refused[0], decide))
                refused.pop(0)
            except OperationalError as error:
                if pauses_s:
                    pause_s, *rest = pauses_s
                    pauses_s = tuple(rest)
                    await asyncio.sleep(pause_s)
                else:
                    outcomes.append(_unvisited(refused.pop(0), one_line(error)))
        return tuple(outcomes)

    async def _visit(self, visit: Visit, decide: DecideVisit) -> VisitOutcome:
        connection = await self._connect(self._target, visit.database, self._visit_options)
        try:
            user, facts = read_facts(
                await ask(
                    connection, visit_questions(visit, self._order.privileged_role, self._server_version)
                )
            )
            if user != self.administrator:
                reason = f"the session acts as {shown(user)} instead of {shown(self.administrator)}"
                return _unvisited(visit, reason)
            self._cancellation.reach(Failpoint.APPLY_VISIT)
            outcome = await conversation.carry_out(connection, decide(visit, facts), self._cancellation)
            return VisitOutcome(visit, facts.oid, outcome.done, outcome.failures)
        except StatementRefusedError as error:
            return _unvisited(visit, str(error))
        finally:
            connection.pgconn.finish()

    async def _connect(self, target: Target, dbname: str | None, options: Sequence[str]) -> Connection:
        if self._read_only:
            options = (*options, READ_ONLY)
        connection = await connect(target, application_name=self._name, dbname=dbname, extra_options=options)
        connection.pgconn.enter_pipeline_mode()
        return connection

    async def _connect_or_bootstrap(self) -> Connection:
        """Connect; where the superuser of `-C` is still to be made, make it.

        libpq does not tell why a login was refused, so every refusal is looked into.
        """
        try:
            connection = await self._connect(self._target, None, MAINTENANCE_OPTIONS)
        except OperationalError:
            if self._read_only or not await self._bootstrapped():
                raise
            connection = await self._connect(self._target, None, MAINTENANCE_OPTIONS)
        self._maintenance.append(connection)
        return connection

    async def _bootstrapped(self) -> bool:
        """Create the superuser of `-C` as the one of old clusters; False where that cannot or need not be."""
        user = sql.Identifier(self.administrator)
        older = msgspec.structs.replace(self._target, user=BOOTSTRAP_SUPERUSER)
        exists = (b"SELECT FROM pg_catalog.pg_authid WHERE rolname = $1", (self.administrator.encode(),))
        try:
            connection = await self._connect(older, None, MAINTENANCE_OPTIONS)
        except OperationalError:
            return False
        try:
            if (await ask(connection, (exists,)))[0]:
                return False
            create = sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(user).as_bytes(connection)
            grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(BOOTSTRAP_SUPERUSER), user)
            await ask(connection, ((create, ()), (grant.as_bytes(connection), ())))
        except (Error, StatementRefusedError):
            return False
        finally:
            connection.pgconn.finish()
        return True

    async def _lanes(
        self, operations: Sequence[op.Maintaining]
    ) -> list[tuple[Connection, Sequence[op.Maintaining]]]:
        """Share operations among connections: several only for creating databases, never one database on two."""
        names = [operation.name for operation in operations if isinstance(operation, op.CreateDatabase)]
        while len(self._maintenance) < min(len(names), self._limit, CREATING_CONNECTIONS):
            try:
                self._maintenance.append(await self._connect(self._target, None, MAINTENANCE_OPTIONS))
            except OperationalError:
                break  # fewer will do
        lane_of = {name: number % len(self._maintenance) for number, name in enumerate(names)}
        lanes: list[list[op.Maintaining]] = [[] for _ in self._maintenance]
        for operation in operations:
            name = operation.name if isinstance(operation, op.CreateDatabase | op.GrantDatabase) else None
            lanes[lane_of.get(name or "", 0)].append(operation)
        return [(connection, lane) for connection, lane in zip(self._maintenance, lanes, strict=True) if lane]


def _unvisited(visit: Visit, reason: str) -> VisitOutcome:
    action = f"look into {database_named(visit.database)}"
    return VisitOutcome(visit, failures=(Failure(action, reason, visit.spoils),))


async def _together(works: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
    """Run all at the same time; the first exception ends the others and is raised as it is."""
    if len(works) == 1:
        return [await works[0]()]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work()) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]

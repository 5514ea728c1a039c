"""How the administration talks to Postgres: questions and operations in pipelines, each unit a transaction.

Imported late, for psycopg.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Final, TypeAlias

import msgspec
from psycopg import AsyncConnection, generators, waiting
from psycopg.abc import PQGen
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow

from ...messages.failpoints import Failpoint
from ...messages.secret import MASK
from ...postgres.asking import reason
from ..kit.jobs import Cancellation
from . import operations as op
from .catalog import Question, Row
from .session import Failure, Outcome, failure_of
from .sql import statements

ATTEMPTS: Final = 3
"""For what another session may have caused; each waits for at most the lock timeout."""
TRANSIENT: Final = frozenset({b"55P03", b"40P01", b"40001", b"55006", b"XX000"})
"""Lock timeout, deadlock, serialisation, object in use, and `tuple concurrently updated`."""

Connection: TypeAlias = AsyncConnection[TupleRow]
Unit: TypeAlias = tuple[op.AnyOperation, ...]


class StatementRefusedError(Exception):
    """A question that Postgres refused to answer."""


class _Refused(msgspec.Struct, frozen=True):
    """What Postgres said of a statement of a unit; `number` counts its statements."""

    number: int
    sqlstate: bytes
    text: str


async def carry_out(
    connection: Connection, operations: Iterable[op.AnyOperation], cancellation: Cancellation
) -> Outcome:
    """Run all operations; what another session may have disturbed is tried again. Raises psycopg.Error."""
    pending = [unit for key, group in groupby(operations, key=_joint) for unit in _units(key, group)]
    done = 0
    failures: list[Failure] = []
    for attempt in range(1, ATTEMPTS + 1):
        rendered = [
            [
                (statement.as_bytes(connection), ())
                for operation in unit
                for statement in statements(operation)
            ]
            for unit in pending
        ]
        answers = await _send(connection, rendered, cancellation)
        refused = [
            (unit, bad) for unit, results in zip(pending, answers, strict=True) if (bad := _refusal(results))
        ]
        done += sum(map(len, pending)) - sum(len(unit) for unit, _ in refused)
        disturbed = {unit[0].subject for unit, bad in refused if bad.sqlstate in TRANSIENT}
        last = attempt == ATTEMPTS
        blamed: set[str] = set()  # what follows from the first failure of an object is not worth a line
        for unit, bad in refused:
            subject = unit[0].subject
            if (last or subject not in disturbed) and subject not in blamed:
                blamed.add(subject)
                failures.append(_failure(unit, bad))
        pending = [] if last else [unit for unit, _ in refused if unit[0].subject in disturbed]
        if not pending:
            break
    return Outcome(done, tuple(failures))


async def _send(
    connection: Connection, units: Sequence[Sequence[Question]], cancellation: Cancellation
) -> list[list[PGresult]]:
    """Send all units at once; one by one while somebody wants to look in between."""
    if not cancellation.is_armed(Failpoint.APPLY_STATEMENT):
        return await _converse(connection, units)
    answers = []
    for unit in units:
        cancellation.reach(Failpoint.APPLY_STATEMENT)
        answers += await _converse(connection, [unit])
    return answers


def _joint(operation: op.AnyOperation) -> str | None:
    return operation.unit


def _units(key: str | None, operations: Iterable[op.AnyOperation]) -> list[Unit]:
    return [(operation,) for operation in operations] if key is None else [tuple(operations)]


def _failure(unit: Unit, bad: _Refused) -> Failure:
    blamed, counted = unit[0], 0
    for operation in unit:
        counted += len(statements(operation))
        if bad.number < counted:
            blamed = operation
            break
    text = bad.text
    if isinstance(blamed, op.CreateRole | op.AlterRole) and blamed.password is not None:
        text = text.replace(blamed.password.reveal(), MASK)
    return failure_of(blamed, text)


async def ask(connection: Connection, questions: Sequence[Question]) -> list[list[Row]]:
    """Return the rows of each answer. Raises StatementRefusedError and psycopg.Error."""
    (results,) = await _converse(connection, [questions])
    if (bad := _refusal(results)) is not None:
        raise StatementRefusedError(bad.text)
    return [
        [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]
        for result in results
    ]


async def _converse(connection: Connection, units: Sequence[Sequence[Question]]) -> list[list[PGresult]]:
    """Send all units without waiting, each a transaction, and return their results.

    If it is broken off, the connection must be closed: that ends in the server what was sent already.
    """
    pgconn = connection.pgconn
    return await waiting.wait_async(_conversation(pgconn, units), pgconn.socket, interval=1.0)


def _conversation(pgconn: PGconn, units: Sequence[Sequence[Question]]) -> PQGen[list[list[PGresult]]]:
    commands: deque[Callable[[], None]] = deque()
    for unit in units:
        commands += [
            partial(pgconn.send_query_params, query, parameters or None) for query, parameters in unit
        ]
        commands.append(pgconn.pipeline_sync)
    answers: list[list[PGresult]] = []
    current: list[PGresult] = []
    received = yield from generators.pipeline_communicate(pgconn, commands)
    while True:
        for results in received:
            if results and results[0].status == ExecStatus.PIPELINE_SYNC:
                answers.append(current)
                current = []
            else:
                current += results
        if len(answers) == len(units):
            return answers
        received = [(yield from generators.fetch_many(pgconn))]


def _refusal(results: Sequence[PGresult]) -> _Refused | None:
    """Return the first error among the results of one unit."""
    for number, result in enumerate(results):
        if result.status == ExecStatus.FATAL_ERROR:
            return _Refused(number, result.error_field(DiagnosticField.SQLSTATE) or b"", reason(result))
    return None

"""1,000 roles and 100 databases by a node, beside the same statements in one psql session: `python bench/apply.py`.

Then the same again, with nothing to change; and how much longer 1,000 databases take than 100.
"""

import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from compute_node.actors.configurator import apply
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.executor import PostgresSession
from compute_node.actors.configurator.model import DatabaseFacts
from compute_node.actors.configurator.plans import Visit
from compute_node.actors.configurator.port import Order
from compute_node.actors.configurator.session import DecideVisit, Outcome, VisitOutcome
from compute_node.actors.configurator.sql import statements
from compute_node.actors.kit.jobs import Cancellation
from compute_node.bench.rig import (
    ROUNDS,
    USER,
    Row,
    by_hand,
    compared,
    conf_of_a_node,
    node,
    rounds,
    shown,
    spec,
    table,
)
from compute_node.messages.base import decode_hook
from compute_node.messages.spec import ComputeSpec
from compute_node.postgres.target import parse_connstr
from typing_extensions import override

ROLES: Final = 1000
DATABASES: Final = 100
MANY: Final = 1000
"""Databases, to see how it grows."""
ROUNDS_OF_MANY: Final = 2
"""Each takes as long as ten of the others."""
AIM: Final = 0.5
AGAIN_AIM: Final = 0.1
GROWTH_AIM: Final = 10.5


class Recording(PostgresSession):
    """Notes every statement with its database."""

    def __init__(self, port: int, order: Order) -> None:
        target = parse_connstr(f"postgresql://{USER}@localhost:{port}/postgres")
        super().__init__(target, order, Cancellation())
        self.script: list[tuple[str, str]] = []

    def _note(self, database: str, operations: Sequence[op.AnyOperation]) -> None:
        for operation in operations:
            self.script += [(database, statement.as_string(None)) for statement in statements(operation)]

    @override
    async def execute(self, operations: Sequence[op.Maintaining]) -> Outcome:
        self._note(self.system_database, operations)
        return await super().execute(operations)

    @override
    async def visit(self, visits: Sequence[Visit], decide: DecideVisit) -> tuple[VisitOutcome, ...]:
        def noted(visit: Visit, facts: DatabaseFacts) -> Sequence[op.Visiting]:
            operations = decide(visit, facts)
            self._note(visit.database, operations)
            return operations

        return await super().visit(visits, noted)


def wanted(count: int = DATABASES) -> dict[str, Any]:
    """Return the spec that is applied, with that many databases."""
    roles = [{"name": f"role_{n}", "encrypted_password": f"md5{n:032x}"} for n in range(ROLES)]
    databases = [{"name": f"database_{n}", "owner": f"role_{n}"} for n in range(count)]
    return spec(roles, databases)


def script(conf: str) -> str:
    """Return, for psql, what a node does for that spec on a node's empty cluster."""
    described = msgspec.convert(wanted(), ComputeSpec, dec_hook=decode_hook)
    order = Order(described, starting=True, privileged_role="neon_superuser")
    with by_hand(f"{conf}fsync = off\n") as cluster:
        cluster.start()
        session = Recording(cluster.port, order)
        report = asyncio.run(apply.apply(session, order, Cancellation()))
        session.close()
        assert report.errors == (), report
    lines = []
    database = "postgres"
    for where, statement in session.script:
        if where != database:
            lines.append(f"\\connect {where}")
            database = where
        lines.append(f"{statement};")
    return "\n".join(lines)


def measure(count: int = ROUNDS) -> list[Row]:
    """Apply to new clusters by turns, and by the node a second time; the clusters end without a checkpoint."""
    conf = conf_of_a_node()
    text = script(conf)
    ours: list[float] = []
    again: list[float] = []
    theirs: list[float] = []
    many: list[float] = []
    document = wanted()

    def by_node() -> None:
        with node(document) as made:
            running = made.heard("from init to running")
            ours.append(running - made.heard("PostgreSQL is now running"))
            again.append(made.configure(document))

    def by_psql() -> None:
        with by_hand(conf) as cluster:
            cluster.start()
            file = Path(cluster.where, "script.sql")
            file.write_text(text, encoding="utf-8")
            theirs.append(cluster.psql(file))

    def by_node_many() -> None:
        with node(wanted(MANY)) as made:
            running = made.heard("from init to running")
            many.append(running - made.heard("PostgreSQL is now running"))

    rounds("apply", count, by_node, by_psql)
    rounds(f"apply, {MANY} databases", min(count, ROUNDS_OF_MANY), by_node_many)
    ratio = statistics.median(again) / statistics.median(ours)
    growth = statistics.median(many) / statistics.median(ours)
    return [
        compared(f"apply: {ROLES} roles and {DATABASES} databases, of a start", ours, theirs, "psql", AIM),
        Row(
            "apply again: `POST /configure`, nothing to change",
            shown(again),
            f"{shown(ours)}, the first time",
            ratio,
            f"≤ {AGAIN_AIM:.2f}",
            ratio <= AGAIN_AIM,
        ),
        Row(
            f"apply: {MANY} databases, of a start",
            shown(many),
            f"{shown(ours)}, {DATABASES} databases",
            growth,
            f"≤ {GROWTH_AIM:.1f}",
            growth <= GROWTH_AIM,
        ),
    ]


if __name__ == "__main__":
    print(table(measure()))

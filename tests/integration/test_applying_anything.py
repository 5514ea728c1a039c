"""Random catalogs and specs, with hostile names, on real Postgres: what is described is what is there afterwards."""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import psycopg
import pytest
from compute_node.actors.configurator import conversation, executor
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.desired import stored_password
from compute_node.actors.configurator.operations import database_named, role_named
from compute_node.actors.configurator.port import Order, Report
from compute_node.actors.configurator.session import Outcome
from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.secret import Secret
from compute_node.messages.spec import Cluster, ComputeSpec, Database, DeltaOp, Role
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import params
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from msgspec import UNSET
from psycopg import sql

from doubles.specs import a_spec
from fix_postgres import Cluster as RealPostgres
from fix_postgres import MakeCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
"""Starts a Postgres of its own; a failing example takes its time to be made small."""

EXAMPLES = int(os.environ.get("APPLY_EXAMPLES", "4"))
ADMINISTRATOR: Final = "cloud_admin"
PIECES: Final = (
    "'",
    '"',
    "$",
    "$x$",
    "%",
    "%s",
    "\\",
    ";",
    "--",
    " ",
    "\t",
    "\n",
    "{0}",
    "a",
    "É",
    "☃",
    "/*",
    "DROP",
)
DIGESTS: Final = ("0" * 32, "f" * 32)
VERIFIER: Final = "SCRAM-SHA-256$4096:c2FsdA==$" + "A" * 43 + "=:" + "B" * 43 + "="
COUNT: Final = 3
"""Names of roles, and as many of databases, in one example."""

INSIDE: Final = (
    "SELECT defaclobjtype, defaclacl FROM pg_default_acl ORDER BY 1, 2::text",
    """SELECT nspname, pg_get_userbyid(nspowner), nspacl FROM pg_namespace
       WHERE oid > 16000 OR nspname = 'public' ORDER BY 1""",
    """SELECT relname, pg_get_userbyid(relowner), relacl FROM pg_class
       WHERE relname IN ('t', 'other') ORDER BY relnamespace::regnamespace::text, 1""",
)
"""What is looked at in each database."""

Names = tuple[str, ...]


class Mutation(msgspec.Struct, frozen=True):
    """Something that users, or an accident, have done: what, and the numbers of the names it is about."""

    kind: str
    database: int
    role: int
    other: int


class Case(msgspec.Struct, frozen=True):
    """What there is, and what is asked for; names are numbers, `hostile` what they are made of."""

    hostile: Names
    owners: tuple[int | None, ...]
    """Of the databases that exist before; None: it does not."""
    mutations: tuple[Mutation, ...]
    roles: tuple[tuple[int, Any], ...]
    databases: tuple[tuple[int, int], ...]
    delta: tuple[tuple[str, int, int], ...]
    branching: bool


NUMBERS = st.integers(0, COUNT - 1)
KINDS: Final = (
    *("own", "grant", "invalid", "closed", "template", "subscribe", "no_public", "public_owner", "settings"),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pieces = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
    roles = draw(st.lists(NUMBERS, unique=True, max_size=COUNT))
    passwords = st.sampled_from([UNSET, None, *DIGESTS, VERIFIER])
    owner = st.sampled_from([*roles, COUNT])
    delta = st.tuples(
        st.sampled_from(["delete_db", "rename_db", "delete_role", "rename_role"]), NUMBERS, NUMBERS
    )
    return Case(
        hostile=tuple(draw(st.lists(pieces, min_size=2 * COUNT, max_size=2 * COUNT))),
        owners=tuple(draw(st.lists(st.none() | NUMBERS, min_size=COUNT, max_size=COUNT))),
        mutations=tuple(
            draw(st.lists(st.builds(Mutation, st.sampled_from(KINDS), NUMBERS, NUMBERS, NUMBERS), max_size=5))
        ),
        roles=tuple((number, draw(passwords)) for number in roles),
        databases=tuple((number, draw(owner)) for number in draw(st.lists(NUMBERS, unique=True))),
        delta=tuple(draw(st.lists(delta, max_size=4))),
        branching=draw(st.booleans()),
    )


class World:
    """One case in names of its own: several can be in one cluster."""

    def __init__(self, postgres: RealPostgres, case: Case, number: int) -> None:
        self.postgres = postgres
        self.case = case
        self.token = f"q7{number:04d}"
        self.roles: Names = (*(f"{self.token}{text}" for text in case.hostile[:COUNT]), ADMINISTRATOR)
        self.roles = (*(f"{name}r{n}" for n, name in enumerate(self.roles[:COUNT])), ADMINISTRATOR)
        self.databases: Names = tuple(
            f"{self.token}{text}d{n}" for n, text in enumerate(case.hostile[COUNT:])
        )

    def before(self) -> ComputeSpec:
        listed = [
            Database(self.databases[n], self.roles[owner])
            for n, owner in enumerate(self.case.owners)
            if owner is not None
        ]
        roles = [Role(name, Secret(DIGESTS[n % 2])) for n, name in enumerate(self.roles[:COUNT])]
        return a_spec(cluster=Cluster(tuple(roles), tuple(listed)))

    def wanted(self) -> ComputeSpec:
        def step(action: str, name: int, new: int) -> DeltaOp:
            known = self.roles if action.endswith("role") else self.databases
            return DeltaOp(action, known[name], known[new] if action.startswith("rename") else None)

        roles = (
            Role(self.roles[n], Secret(password) if isinstance(password, str) else password)
            for n, password in self.case.roles
        )
        databases = (Database(self.databases[n], self.roles[owner]) for n, owner in self.case.databases)
        return a_spec(
            cluster=Cluster(tuple(roles), tuple(databases)),
            delta_operations=tuple(step(*entry) for entry in self.case.delta),
            drop_subscriptions_before_start=self.case.branching,
            timeline_id=f"{int(self.token[2:]):032x}",
            reconfigure_concurrency=2,
        )

    def prepare(self) -> None:
        assert self.apply(self.before()).errors == ()
        for number, mutation in enumerate(self.case.mutations):
            if self.case.owners[mutation.database] is not None:
                self.mutate(mutation, number)

    def mutate(self, mutation: Mutation, number: int) -> None:
        database = sql.Identifier(self.databases[mutation.database])
        role, other = (sql.Identifier(self.roles[n]) for n in (mutation.role, mutation.other))
        thing = sql.Identifier(f"{self.token}{number}")
        inside: dict[str, tuple[str, ...]] = {
            "own": (
                "CREATE SCHEMA {thing}",
                "CREATE TABLE {thing}.t ()",
                "ALTER TABLE {thing}.t OWNER TO {role}",
            ),
            "grant": (
                "CREATE SCHEMA {thing}",
                "GRANT USAGE ON SCHEMA {thing} TO {role}",
                "CREATE TABLE {thing}.t (i int)",
                "CREATE TABLE {thing}.other ()",
                "GRANT SELECT, INSERT ON {thing}.t TO {role} WITH GRANT OPTION",
                "SET ROLE {role}",
                "GRANT SELECT, UPDATE (i), INSERT ON {thing}.t TO {other}",
            ),
            "subscribe": (
                "CREATE SUBSCRIPTION {thing} CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)",
            ),
            "no_public": ("DROP SCHEMA IF EXISTS public CASCADE",),
            "public_owner": (
                "CREATE SCHEMA IF NOT EXISTS public",
                "ALTER SCHEMA public OWNER TO cloud_admin",
            ),
        }
        outside: dict[str, tuple[str, ...]] = {
            "invalid": (
                (
                    "UPDATE pg_database SET datconnlimit = -2 WHERE datname = {name}"
                    " AND oid NOT IN (SELECT subdbid FROM pg_subscription)"
                ),
            ),
            "closed": ("ALTER DATABASE {database} ALLOW_CONNECTIONS false",),
            "template": ("ALTER DATABASE {database} IS_TEMPLATE true",),
            "settings": (
                "ALTER DATABASE {database} SET search_path = 'nowhere'",
                "ALTER DATABASE {database} SET default_transaction_read_only = on",
                "ALTER DATABASE {database} SET local_preload_libraries = 'missing'",
                "ALTER ROLE {role} SET statement_timeout = 1",
            ),
        }
        with self.session(None if mutation.kind in outside else self.databases[mutation.database]) as admin:
            if admin is None:
                return
            for text in (inside | outside)[mutation.kind]:
                statement = sql.SQL(text).format(
                    database=database,
                    role=role,
                    other=other,
                    thing=thing,
                    name=sql.Literal(self.databases[mutation.database]),
                )
                admin.execute(statement)

    @contextmanager
    def session(self, dbname: str | None) -> Iterator[psycopg.Connection[Any] | None]:
        """A superuser's session, as far as the database still takes one."""
        settings: dict[str, Any] = params(self.postgres.target, application_name="user", dbname=dbname)
        settings["options"] = "-c local_preload_libraries= -c default_transaction_read_only=off"
        try:
            connection = psycopg.connect(autocommit=True, **settings)
        except psycopg.OperationalError as error:
            if not re.search("not currently accepting|invalid database", str(error)):
                raise
            yield None
            return
        with connection:
            yield connection

    def apply(self, spec: ComputeSpec, seen: frozenset[int] = frozenset()) -> Report:
        order = Order(spec, starting=False, privileged_role="neon_superuser", seen=seen)
        return executor.apply(self.postgres.connstr, order, Cancellation())

    def rows(self, query: str, dbname: str | None = None) -> list[tuple[Any, ...]]:
        """Ask something; `$$` is the start of this world's names."""
        with self.session(dbname) as admin:
            return [] if admin is None else admin.execute(query.replace("$$", self.token).encode()).fetchall()

    def catalog(self) -> str:
        """Everything of this world, without what tells it from its twins."""
        databases = self.rows(
            "SELECT datname, pg_get_userbyid(datdba), datacl, datistemplate, datallowconn, datconnlimit"
            " FROM pg_database WHERE datname LIKE '$$%' ORDER BY 1"
        )
        found: list[Any] = [
            databases,
            self.rows(
                "SELECT rolname, rolpassword, rolcreatedb FROM pg_authid WHERE rolname LIKE '$$%' ORDER BY 1"
            ),
            self.rows("SELECT subname FROM pg_subscription WHERE subname LIKE '$$%' ORDER BY 1"),
        ]
        for name, *_ in databases:
            found += (self.rows(query, name) for query in INSIDE)
        return str(found).replace(self.token, "")


def refused(report: Report, subject: str) -> bool:
    return any(error.startswith(subject) for error in report.errors)


def as_described(world: World, report: Report) -> None:
    """Compare the catalog with the spec, but for what was refused."""
    spec = world.wanted()
    passwords: dict[str, str | None] = dict(world.rows("SELECT rolname, rolpassword FROM pg_authid"))
    owners: dict[str, str] = dict(world.rows("SELECT datname, pg_get_userbyid(datdba) FROM pg_database"))
    for role in spec.cluster.roles:
        if not refused(report, role_named(role.name)):
            assert role.name in passwords
            if isinstance(role.encrypted_password, Secret):
                stored = stored_password(role.encrypted_password.reveal())
                assert stored is not None
                assert passwords[role.name] == stored.reveal()
            elif role.encrypted_password is None:
                assert passwords[role.name] is None
    for database in spec.cluster.databases:
        assert owners[database.name] == database.owner
    listed = {role.name for role in spec.cluster.roles} | {
        database.name for database in spec.cluster.databases
    }
    targets = {step.new_name for step in spec.delta_operations or ()}
    for step in spec.delta_operations or ():
        named, known = (role_named, passwords) if step.action.endswith("role") else (database_named, owners)
        if (
            step.action.startswith("delete")
            and step.name not in listed | targets
            and not refused(report, named(step.name))
        ):
            assert step.name not in known
    if spec.drop_subscriptions_before_start:
        open_ones = world.rows(
            "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datallowconn"
        )
        assert open_ones == []


class CutError(Exception):
    pass


@contextmanager
def cut_after(count: int) -> Iterator[None]:
    """Break an application off after that many statements, or units of them."""
    normal, lanes = conversation.carry_out, executor.CREATING_CONNECTIONS
    left = count

    async def cutting(
        connection: conversation.Connection, operations: Sequence[op.AnyOperation], cancellation: Cancellation
    ) -> Outcome:
        nonlocal left
        units = [list(unit) for _, unit in itertools.groupby(operations, key=_unit())]
        if left < len(units):
            await normal(connection, [operation for unit in units[:left] for operation in unit], cancellation)
            raise CutError
        left -= len(units)
        return await normal(connection, operations, cancellation)

    conversation.carry_out, executor.CREATING_CONNECTIONS = cutting, 1  # type: ignore[assignment, misc] # put back below
    try:
        yield
    finally:
        conversation.carry_out, executor.CREATING_CONNECTIONS = normal, lanes  # type: ignore[misc] # as it was


def _unit() -> Callable[[op.AnyOperation], object]:
    alone = itertools.count()
    return lambda operation: operation.unit or next(alone)


def test_whatever_there_is_and_is_asked_for_is_there_afterwards_also_when_it_was_cut(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    postgres = cluster(binaries, conf="max_connections = 20")
    numbers = itertools.count()

    @given(cases(), st.integers(0, 25))
    @settings(
        max_examples=EXAMPLES if binaries.major == 15 else EXAMPLES // 2,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case, cut: int) -> None:
        whole, twin = (World(postgres, case, next(numbers)) for _ in range(2))
        whole.prepare()
        before = whole.catalog()
        note(f"before: {before}")
        note(f"delta: {whole.wanted().delta_operations}")
        report = whole.apply(whole.wanted())
        note(f"errors: {report.errors}")
        failed = [
            error for error in report.errors if any(error.startswith(phase.value) for phase in op.Phase)
        ]
        assert failed == []
        as_described(whole, report)
        again = whole.apply(whole.wanted())
        assert (again.statements, again.errors) == (0, report.errors)
        seen = whole.apply(whole.wanted(), report.seen)
        assert (seen.statements, seen.visited) == (0, 0)
        event(f"{min(report.statements, 20)} statements or more")

        twin.prepare()  # only now: each application drops what is invalid in the whole cluster
        assert twin.catalog() == before
        try:
            with cut_after(min(cut, max(0, report.statements - 1))):
                twin.apply(twin.wanted())
        except CutError:
            pass
        twin.apply(twin.wanted())
        assert twin.catalog() == whole.catalog()
        assert twin.apply(twin.wanted()).statements == 0

    check()

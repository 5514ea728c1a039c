"""SQL is composed so that no name, password or option can become anything else."""

import re
from collections.abc import Callable, Iterator

import pytest
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.operations import DefaultTarget, GrantTarget
from compute_node.actors.configurator.sql import statements
from compute_node.messages.secret import Secret
from compute_node.messages.spec import GenericOption, invalid_name
from hypothesis import example, given, settings
from hypothesis import strategies as st

VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$" + "A" * 43 + "=:" + "B" * 43 + "="


def text(operation: op.AnyOperation) -> str:
    return "; ".join(statement.as_string(None) for statement in statements(operation))


def string_option(name: str, value: str) -> GenericOption:
    return GenericOption(name, "string", value)


RENDERED: list[tuple[op.AnyOperation, str]] = [
    (
        op.CreatePrivilegedRole("boss"),
        (
            'CREATE ROLE "boss" CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS'
            " IN ROLE pg_read_all_data, pg_write_all_data"
        ),
    ),
    (op.DropInvalidDatabase("d"), 'DROP DATABASE IF EXISTS "d"'),
    (op.RenameRole("a", "b"), 'ALTER ROLE "a" RENAME TO "b"'),
    (
        op.CreateRole("alexk", Secret("md56b1d16b78004bbd51fa06af9eda75972")),
        "CREATE ROLE \"alexk\" LOGIN PASSWORD 'md56b1d16b78004bbd51fa06af9eda75972'",
    ),
    (
        op.CreateRole("a", None, (GenericOption("CONNECTION LIMIT", "integer", "3"),), "boss"),
        (
            'CREATE ROLE "a" INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE "boss"'
            " CONNECTION LIMIT 3 LOGIN PASSWORD NULL"
        ),
    ),
    (op.AlterRole("a", Secret(VERIFIER)), f"ALTER ROLE \"a\" LOGIN PASSWORD '{VERIFIER}'"),
    (op.AlterRole("a", None), 'ALTER ROLE "a" LOGIN PASSWORD NULL'),
    (op.ClearTemplateFlag("d"), 'ALTER DATABASE "d" IS_TEMPLATE false'),
    (op.DropDatabase("d"), 'DROP DATABASE IF EXISTS "d" WITH (FORCE)'),
    (op.RenameDatabase("d", "e"), 'ALTER DATABASE "d" RENAME TO "e"'),
    (op.AlterDatabaseOwner("d", "a"), 'ALTER DATABASE "d" OWNER TO "a"'),
    (
        op.CreateDatabase(
            "d",
            "alexk",
            (
                string_option("LC_COLLATE", "C"),
                string_option("LC_CTYPE", "C"),
                GenericOption("TEMPLATE", "enum", "template0"),
                GenericOption("IS_TEMPLATE", "bool"),
            ),
        ),
        "CREATE DATABASE \"d\" LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0 IS_TEMPLATE OWNER \"alexk\"",
    ),
    (op.GrantDatabase("d", "boss"), 'GRANT ALL PRIVILEGES ON DATABASE "d" TO "boss"'),
    (op.CreateSchema("neon"), 'CREATE SCHEMA IF NOT EXISTS "neon"'),
    (op.DropRole("a"), 'DROP ROLE IF EXISTS "a"'),
    (op.ReassignOwned("d", "a", "b"), 'REASSIGN OWNED BY "a" TO "b"'),
    (
        op.RevokeGrants("d", "a", "g", "s", GrantTarget.ROUTINES),
        'SET ROLE "g"; REVOKE ALL PRIVILEGES ON ALL ROUTINES IN SCHEMA "s" FROM "a" GRANTED BY "g" CASCADE; RESET ROLE',
    ),
    (op.DropOwned("d", "a"), 'DROP OWNED BY "a"'),
    (op.SetPublicOwner("d", "a"), 'ALTER SCHEMA public OWNER TO "a"'),
    (op.GrantPublicToWebAccess("d"), "GRANT CREATE ON SCHEMA public TO web_access"),
    (
        op.AlterDefaultPrivileges("d", "boss", DefaultTarget.SEQUENCES),
        'ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO "boss" WITH GRANT OPTION',
    ),
]


@pytest.mark.parametrize(
    ("operation", "rendered"), RENDERED, ids=[type(case[0]).__name__ for case in RENDERED]
)
def test_every_operation_has_its_statement(operation: op.AnyOperation, rendered: str) -> None:
    assert text(operation) == rendered


def kinds(family: type[op.Operation]) -> Iterator[type[op.Operation]]:
    for kind in family.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_the_table_above_is_complete() -> None:
    public = {kind for kind in kinds(op.Operation) if not kind.__name__.startswith("_")}
    assert {type(operation) for operation, _ in RENDERED} == public


def test_every_kind_of_operation_belongs_to_a_phase_and_describes_itself_on_one_line() -> None:
    for operation, _ in RENDERED:
        assert isinstance(operation.phase, op.Phase)
        assert operation.describe()
        assert "\n" not in operation.describe()


NAMES = st.text(min_size=1, max_size=30).filter(lambda name: invalid_name(name) is None)
NAMED: list[Callable[[str], op.AnyOperation]] = [
    op.DropDatabase,
    lambda name: op.CreateRole(name, None, (), name),
    lambda name: op.RenameRole(name, name),
    lambda name: op.CreateDatabase(name, name),
    lambda name: op.GrantDatabase(name, name),
    lambda name: op.ReassignOwned("d", name, name),
    lambda name: op.RevokeGrants("d", name, name, name, GrantTarget.TABLES),
    lambda name: op.AlterDefaultPrivileges("d", name, DefaultTarget.TABLES),
]
IDENTIFIER = re.compile(r'"((?:[^"]|"")*)"', re.DOTALL)
LITERAL = re.compile(r"( ?E'(?:[^'\\]|''|\\\\)*'|'(?:[^'\\]|'')*')", re.DOTALL)


@given(NAMES, st.sampled_from(NAMED))
@example('"; DROP DATABASE x; --', op.DropDatabase)
@example("$x$name$x$", op.DropDatabase)
@example("back\\slash\n'quote' %s %(a)s {} {0}", op.DropDatabase)
@settings(max_examples=150, deadline=None)
def test_a_name_is_one_quoted_identifier_whatever_it_contains(
    name: str, make: Callable[[str], op.AnyOperation]
) -> None:
    rendered = text(make(name))
    plain = text(make("plain"))
    assert IDENTIFIER.sub("?", rendered) == IDENTIFIER.sub("?", plain)
    assert {found.replace('""', '"') for found in IDENTIFIER.findall(rendered)} == {name}


@given(st.text(max_size=40).filter(lambda value: "\0" not in value and value.isprintable()))
@example("C'; DROP DATABASE x; --")
@example("\\'; --")
@settings(max_examples=150, deadline=None)
def test_the_value_of_a_string_option_is_one_literal_whatever_it_contains(value: str) -> None:
    rendered = text(op.CreateDatabase("d", "a", (string_option("LC_COLLATE", value),)))
    assert (
        LITERAL.sub("?", rendered, count=1).replace("  ", " ") == 'CREATE DATABASE "d" LC_COLLATE ? OWNER "a"'
    )


@pytest.mark.parametrize(
    "operation",
    [op.CreateRole("a", Secret("canary")), op.AlterRole("a", Secret("canary"))],
    ids=["create", "alter"],
)
def test_no_password_shows_in_what_an_operation_says_of_itself(operation: op.AnyOperation) -> None:
    assert "canary" not in f"{operation.describe()} {operation!r} {operation.subject}"

"""What a spec asks for, and what of it is refused by name."""

from typing import Any

import pytest
from compute_node.actors.configurator.desired import (
    Context,
    Desired,
    departing_names,
    desired,
    stored_password,
    unusable_option,
)
from compute_node.messages.secret import Secret
from compute_node.messages.spec import (
    Cluster,
    ComputeSpec,
    Database,
    DeltaOp,
    GenericOption,
    JwksSettings,
    LocalProxySpec,
    Role,
)

CONTEXT = Context(administrator="cloud_admin", system_database="main", privileged_role="neon_superuser")
DIGEST = "6b1d16b78004bbd51fa06af9eda75972"
VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$" + "A" * 43 + "=:" + "B" * 43 + "="


def wish(*, delta: tuple[DeltaOp, ...] = (), proxy: LocalProxySpec | None = None, **cluster: Any) -> Desired:
    spec = ComputeSpec(
        1.0,
        Cluster(**({"roles": (), "databases": ()} | cluster)),
        0,
        delta_operations=delta,
        local_proxy_config=proxy,
    )
    return desired(spec, CONTEXT)


def refused(wished: Desired) -> dict[str, str]:
    return {refusal.subject: refusal.reason for refusal in wished.refusals}


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (DIGEST, "md5" + DIGEST),
        (DIGEST.upper(), "md5" + DIGEST),
        ("md5" + DIGEST, "md5" + DIGEST),
        (VERIFIER, VERIFIER),
        ("hunter2", None),
        ("", None),
        (DIGEST + "\n", None),
        (DIGEST[:-1], None),
        ("SCRAM-SHA-256$4096:c2FsdA==$short=:short=", None),
        (VERIFIER + "'; DROP ROLE a --", None),
        (VERIFIER.replace("c2FsdA==", "c2FsdAA=="), None),
        (VERIFIER.replace("c2FsdA==", "c2FsdA="), None),
    ],
)
def test_a_password_is_compared_as_postgres_stores_it(text: str, stored: str | None) -> None:
    assert stored_password(text) == (None if stored is None else Secret(stored))


def test_a_plain_password_is_refused_without_repeating_it() -> None:
    wished = wish(roles=(Role("a", Secret("hunter2")), Role("b")))
    assert [role.name for role in wished.roles] == ["b"]
    ((subject, reason),) = refused(wished).items()
    assert subject == 'role "a"'
    assert "neither a SCRAM-SHA-256 verifier nor an md5 digest" in reason
    assert "hunter2" not in reason


def test_of_entries_of_one_name_the_last_counts() -> None:
    wished = wish(
        roles=(Role("a", Secret(DIGEST)), Role("a", None)), databases=(Database("d", "a"), Database("d", "b"))
    )
    assert [(role.name, role.password) for role in wished.roles] == [("a", None)]
    assert [(database.name, database.owner) for database in wished.databases] == [("d", "b")]


def test_roles_named_by_any_key_set_are_for_tokens() -> None:
    proxy = LocalProxySpec((JwksSettings("1", "u", "p", ("a",)), JwksSettings("2", "u", "p", ("b",))))
    wished = wish(roles=(Role("a"), Role("b"), Role("c")), proxy=proxy)
    assert [role.name for role in wished.roles if role.for_tokens] == ["a", "b"]


@pytest.mark.parametrize("name", ["cloud_admin", "neon_superuser", "pg_monitor", "pg_", "public", "none"])
def test_protected_roles_are_neither_deleted_nor_renamed_nor_replaced(name: str) -> None:
    for step in (
        DeltaOp("delete_role", name),
        DeltaOp("rename_role", name, "x"),
        DeltaOp("rename_role", "x", name),
    ):
        wished = wish(delta=(step,))
        assert (wished.departing, wished.role_renamings) == ((), ())
        ((subject, reason),) = refused(wished).items()
        assert subject.startswith('role "')
        verb = "deleted" if step.new_name is None else "renamed or replaced"
        assert reason.startswith(f"it must not be {verb}: ")


@pytest.mark.parametrize("name", ["postgres", "template0", "template1", "main"])
def test_protected_databases_are_neither_deleted_nor_renamed_nor_replaced(name: str) -> None:
    for step in (
        DeltaOp("delete_db", name),
        DeltaOp("rename_db", name, "x"),
        DeltaOp("rename_db", "x", name),
    ):
        wished = wish(delta=(step,))
        assert wished.database_changes == ()
        ((_, reason),) = refused(wished).items()
        verb = "deleted" if step.new_name is None else "renamed or replaced"
        assert reason == f"it must not be {verb}: the node itself needs it"


def test_all_that_is_refused_of_databases_is_named_with_its_reason() -> None:
    wished = wish(
        databases=(Database("d", "a"),), delta=(DeltaOp("delete_db", "postgres"), DeltaOp("delete_db", "d"))
    )
    assert wished.database_changes == ()
    assert refused(wished) == {
        'database "postgres"': "it must not be deleted: the node itself needs it",
        'database "d"': "the spec lists it and asks to delete it; remove one of the two",
    }


def test_the_owner_of_a_listed_database_is_not_deleted() -> None:
    wished = wish(databases=(Database("d", "a"),), delta=(DeltaOp("delete_role", "a"),))
    assert wished.departing == ()
    assert refused(wished) == {
        'role "a"': 'the spec makes it the owner of database "d" and asks to delete it'
    }


def test_a_role_that_is_both_listed_and_deleted_is_left_alone() -> None:
    wished = wish(roles=(Role("a"),), delta=(DeltaOp("delete_role", "a"),))
    assert wished.departing == ()
    assert list(refused(wished)) == ['role "a"']


def test_a_deleted_role_does_not_give_its_name_to_another_in_the_same_spec() -> None:
    wished = wish(roles=(Role("x"),), delta=(DeltaOp("delete_role", "x"), DeltaOp("rename_role", "a", "x")))
    assert wished.departing == ()
    ((subject, reason),) = refused(wished).items()
    assert subject == 'role "x"'
    assert "delete it first, with a spec of its own" in reason


def test_actions_that_are_not_known_are_passed_over() -> None:
    wished = wish(delta=(DeltaOp("paint_db", "a"), DeltaOp("rename_db", "a", "a")))
    assert (wished.database_changes, wished.refusals) == ((), ())


@pytest.mark.parametrize(
    ("option", "usable"),
    [
        (GenericOption("CONNECTION LIMIT", "integer", "-1"), True),
        (GenericOption("LC_COLLATE", "string", "C'; DROP DATABASE d --"), True),
        (GenericOption("TEMPLATE", "enum", "template0"), True),
        (GenericOption("TEMPLATE", "enum", '"odd ""name"""'), True),
        (GenericOption("ROLE", "enum", "a, b"), True),
        (GenericOption("VALID UNTIL", "enum", "'2030-01-01'"), True),
        (GenericOption("NOINHERIT", "bool"), True),
        (GenericOption("TEMPLATE", "enum", "template0; DROP DATABASE d"), False),
        (GenericOption("TEMPLATE", "enum", "template0 -- rest"), False),
        (GenericOption("TEMPLATE", "enum", "$x$y$x$"), False),
        (GenericOption("TEMPLATE", "enum", "'open"), False),
        (GenericOption("TEMPLATE", "enum", "a" * 50_000 + "!"), False),
        (GenericOption("LC_COLLATE", "string", "C\0"), False),
        (GenericOption("OWNER x; DROP", "string", "y"), False),
        (GenericOption("", "string", "y"), False),
        (GenericOption("PASSWORD", "string", "canary"), False),
        (GenericOption("ENCRYPTED PASSWORD", "string", "canary"), False),
        (GenericOption("PASSWORD 'canary'", "bool"), False),
        (GenericOption("LOGIN", "bool", "password 'canary'"), False),
        (GenericOption("LC_COLLATE", "string", "password"), True),
    ],
)
def test_an_option_is_a_clause_or_is_refused(option: GenericOption, *, usable: bool) -> None:
    reason = unusable_option(option)
    assert (reason is None) is usable
    assert "canary" not in (reason or "")


def test_an_object_with_an_unusable_option_is_refused_and_the_others_are_not() -> None:
    bad = (GenericOption("TEMPLATE", "enum", "a; b"),)
    wished = wish(
        roles=(Role("a", options=bad), Role("b")), databases=(Database("c", "b", bad), Database("d", "b"))
    )
    assert [role.name for role in wished.roles] == ["b"]
    assert [database.name for database in wished.databases] == ["d"]
    reason = unusable_option(bad[0])
    assert refused(wished) == {'role "a"': reason, 'database "c"': reason}


def test_an_option_that_is_no_clause_is_named() -> None:
    assert '"OWNER x; DROP"' in (unusable_option(GenericOption("OWNER x; DROP", "string")) or "")


def test_a_refused_renaming_names_both_ends_and_a_refused_deletion_one() -> None:
    wished = wish(
        delta=(
            DeltaOp("rename_role", "a", "pg_x"),
            DeltaOp("delete_db", "postgres"),
            DeltaOp("rename_db", "postgres", "y"),
        )
    )
    assert set(refused(wished)) == {
        'role "a" (to be renamed to "pg_x")',
        'database "postgres"',
        'database "postgres" (to be renamed to "y")',
    }


@pytest.mark.parametrize(
    ("steps", "names"),
    [
        ((), set()),
        ((DeltaOp("delete_db", "d"), DeltaOp("rename_db", "e", "f")), set()),
        ((DeltaOp("rename_role", "a", "b"),), set()),
        ((DeltaOp("delete_role", "a"), DeltaOp("delete_db", "d")), {"a"}),
        ((DeltaOp("rename_role", "a", "b"), DeltaOp("delete_role", "b")), {"a", "b"}),
    ],
)
def test_dependents_are_looked_for_of_every_name_that_a_departing_role_may_have(
    steps: tuple[DeltaOp, ...], names: set[str]
) -> None:
    spec = ComputeSpec(1.0, Cluster(roles=(), databases=()), 0, delta_operations=steps or None)
    assert departing_names(spec) == names

"""What a catalog and the facts of a database look like after each operation: the model that the planner trusts."""

from typing import Any

import msgspec
import pytest
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.model import (
    SHARED,
    Catalog,
    DatabaseFacts,
    DatabaseState,
    ExtensionState,
    Holdings,
    Mark,
    RoleState,
    after,
    facts_after,
    facts_renamed,
)
from compute_node.actors.configurator.operations import DefaultTarget, GrantTarget
from compute_node.messages.secret import Secret

MD5 = RoleState(Secret("md5" + "0" * 32))
SCRAM = RoleState(Secret("SCRAM-SHA-256$4096:c2FsdA==$x:y"))
D = DatabaseState("m", oid=7, template=True, replicating=True)
E = DatabaseState("s", oid=8)
OLD = ExtensionState("1", "public", relocatable=True)
BEFORE = Catalog(
    150018,
    {"m": MD5, "s": SCRAM},
    {"d": D, "e": E},
    frozenset({"neon"}),
    frozenset({("d", "m"), ("e", "m"), ("e", "s"), (SHARED, "m"), (SHARED, "s")}),
    extensions={"old": OLD},
    neon=ExtensionState("2", "public", relocatable=False),
    subscriptions=frozenset({("d", 3), ("d", 4), ("e", 3)}),
    silent=frozenset({"e"}),
)


def changed(state: DatabaseState, **changes: Any) -> DatabaseState:
    return msgspec.structs.replace(state, **changes)


CASES: dict[str, tuple[op.AnyOperation, dict[str, Any]]] = {
    "privileged role": (
        op.CreatePrivilegedRole("p"),
        {"roles": {"m": MD5, "s": SCRAM, "p": RoleState()}},
    ),
    "new role": (
        op.CreateRole("n", SCRAM.password),
        {"roles": {"m": MD5, "s": SCRAM, "n": SCRAM}},
    ),
    "new password": (op.AlterRole("m", SCRAM.password), {"roles": {"m": SCRAM, "s": SCRAM}}),
    "no password": (op.AlterRole("m", None), {"roles": {"m": RoleState(), "s": SCRAM}}),
    "renamed md5 role": (
        op.RenameRole("m", "n"),
        {
            "roles": {"s": SCRAM, "n": RoleState()},
            "databases": {"d": changed(D, owner="n"), "e": E},
            "dependents": frozenset({("d", "n"), ("e", "n"), ("e", "s"), (SHARED, "n"), (SHARED, "s")}),
        },
    ),
    "renamed scram role": (
        op.RenameRole("s", "n"),
        {
            "roles": {"m": MD5, "n": SCRAM},
            "databases": {"d": D, "e": changed(E, owner="n")},
            "dependents": frozenset({("d", "m"), ("e", "m"), ("e", "n"), (SHARED, "m"), (SHARED, "n")}),
        },
    ),
    "dropped role": (
        op.DropRole("m"),
        {"roles": {"s": SCRAM}, "dependents": frozenset({("e", "s"), (SHARED, "s")})},
    ),
    "dropped role that is not there": (op.DropRole("x"), {}),
    "dropped database": (
        op.DropDatabase("d"),
        {
            "databases": {"e": E},
            "dependents": frozenset({("e", "m"), ("e", "s"), (SHARED, "m"), (SHARED, "s")}),
            "subscriptions": frozenset({("e", 3)}),
        },
    ),
    "dropped invalid database": (
        op.DropInvalidDatabase("e"),
        {
            "databases": {"d": D},
            "dependents": frozenset({("d", "m"), (SHARED, "m"), (SHARED, "s")}),
            "subscriptions": frozenset({("d", 3), ("d", 4)}),
            "silent": frozenset(),
        },
    ),
    "dropped database that is not there": (op.DropDatabase("x"), {}),
    "template": (op.ClearTemplateFlag("d"), {"databases": {"d": changed(D, template=False), "e": E}}),
    "renamed database": (
        op.RenameDatabase("e", "f"),
        {
            "databases": {"d": D, "f": E},
            "dependents": frozenset({("d", "m"), ("f", "m"), ("f", "s"), (SHARED, "m"), (SHARED, "s")}),
            "subscriptions": frozenset({("d", 3), ("d", 4), ("f", 3)}),
            "silent": frozenset({"f"}),
        },
    ),
    "new owner": (op.AlterDatabaseOwner("d", "s"), {"databases": {"d": changed(D, owner="s"), "e": E}}),
    "new database": (
        op.CreateDatabase("f", "m"),
        {"databases": {"d": D, "e": E, "f": DatabaseState("m")}},
    ),
    "granted": (
        op.GrantDatabase("e", "p"),
        {"databases": {"d": D, "e": changed(E, grants_untouched=False)}},
    ),
    "schema": (op.CreateSchema("other"), {"schemas": frozenset({"neon", "other"})}),
    "disowned": (op.DropOwned("e", "m"), {"dependents": frozenset({("d", "m"), ("e", "s"), (SHARED, "s")})}),
    "seen in facts only": (op.ReassignOwned("d", "m", "s"), {}),
    "default privileges": (op.AlterDefaultPrivileges("d", "p", DefaultTarget.TABLES), {}),
    "replication ended": (
        op.EndReplication("d"),
        {"databases": {"d": changed(D, replicating=False, connectable=False), "e": E}},
    ),
    "noted": (
        op.NoteSubscriptions("t", (3, 4)),
        {"mark": Mark("t", frozenset({3, 4})), "tables": frozenset({"drop_subscriptions_done"})},
    ),
    "dropped subscription": (
        op.DropSubscription("d", "s", 3),
        {"subscriptions": frozenset({("d", 4), ("e", 3)})},
    ),
    "extension": (
        op.CreateExtension("x", "public"),
        {"extensions": {"old": OLD, "x": ExtensionState("", "public")}},
    ),
    "extension neon": (
        op.CreateExtensionNeon("neon", "neon"),
        {"extensions": {"old": OLD, "neon": ExtensionState("2", "neon", relocatable=False)}},
    ),
    "moved": (
        op.MoveExtension("old", "s"),
        {"extensions": {"old": msgspec.structs.replace(OLD, schema="s")}},
    ),
    "updated": (
        op.UpdateExtension("old", "3"),
        {"extensions": {"old": msgspec.structs.replace(OLD, version="3")}},
    ),
    "updated to what is offered": (
        op.UpdateExtension("old", "2"),
        {"extensions": {"old": msgspec.structs.replace(OLD, version="2")}},
    ),
    "availability check": (op.CreateAvailabilityCheck(), {"tables": frozenset({"health_check"})}),
    "silent": (op.SilenceOwnAudit("d"), {"silent": frozenset({"d", "e"})}),
}


@pytest.mark.parametrize(("operation", "expected"), CASES.values(), ids=CASES)
def test_an_operation_changes_the_catalog_as_postgres_would_and_nothing_else(
    operation: op.AnyOperation, expected: dict[str, Any]
) -> None:
    assert after(BEFORE, operation) == msgspec.structs.replace(BEFORE, **expected)


def test_an_extension_is_made_relocatable_and_nothing_else_of_it_changes() -> None:
    rigid = msgspec.structs.replace(
        BEFORE, extensions={"old": msgspec.structs.replace(OLD, relocatable=False)}
    )
    assert after(rigid, op.MakeRelocatable("old")) == BEFORE


def test_operations_follow_each_other() -> None:
    found = after(BEFORE, op.RenameRole("m", "n"), op.CreateDatabase("f", "n"), op.RenameRole("n", "o"))
    assert (found.databases["f"].owner, found.databases["d"].owner) == ("o", "o")
    assert ("d", "o") in found.dependents


HELD = Holdings(owns=True, foreign_grants=frozenset({op.Grant("g", GrantTarget.TABLE, ("public",), ("SELECT",)), op.Grant("h", GrantTarget.SCHEMA, ("x",), ("SELECT",))}))  # fmt: skip
OTHER = Holdings(owns=True)
FACTS = DatabaseFacts(
    oid=7, has_web_access=True, holdings={"m": HELD, "s": OTHER}, subscriptions={"t": 3, "u": 4}
)
VISITS: dict[str, tuple[op.Visiting, dict[str, Any]]] = {
    "reassigned": (
        op.ReassignOwned("d", "m", "s"),
        {"holdings": {"m": msgspec.structs.replace(HELD, owns=False), "s": OTHER}},
    ),
    "reassigned of nobody": (
        op.ReassignOwned("d", "x", "s"),
        {"holdings": {"m": HELD, "s": OTHER, "x": Holdings()}},
    ),
    "revoked": (
        op.RevokeGrant("d", "m", op.Grant("g", GrantTarget.TABLE, ("public",), ("SELECT",))),
        {
            "holdings": {
                "m": Holdings(
                    owns=True,
                    foreign_grants=frozenset({op.Grant("h", GrantTarget.SCHEMA, ("x",), ("SELECT",))}),
                ),
                "s": OTHER,
            }
        },
    ),
    "revoked of nobody": (
        op.RevokeGrant("d", "x", op.Grant("g", GrantTarget.TABLE, ("public",), ("SELECT",))),
        {"holdings": {"m": HELD, "s": OTHER, "x": Holdings()}},
    ),
    "disowned": (op.DropOwned("d", "m"), {"holdings": {"s": OTHER}}),
    "dropped subscription": (op.DropSubscription("d", "t", 3), {"subscriptions": {"u": 4}}),
    "public owner": (op.SetPublicOwner("d", "s"), {"public_owner": "s"}),
    "web access": (op.GrantPublicToWebAccess("d"), {"web_access_creates": True}),
    "default privileges": (
        op.AlterDefaultPrivileges("d", "p", DefaultTarget.TABLES),
        {"default_privileges": frozenset({DefaultTarget.TABLES})},
    ),
}


@pytest.mark.parametrize(("operation", "expected"), VISITS.values(), ids=VISITS)
def test_an_operation_changes_what_the_next_visit_would_find_and_nothing_else(
    operation: op.Visiting, expected: dict[str, Any]
) -> None:
    assert facts_after(FACTS, (operation,)) == msgspec.structs.replace(FACTS, **expected)


@pytest.mark.parametrize("owner", [None, "g", "somebody"])
def test_what_is_found_has_the_new_name_of_a_role_wherever_it_stands(owner: str | None) -> None:
    grants = frozenset({op.Grant("g", GrantTarget.SCHEMA, ("x",), ("SELECT",)), op.Grant("h", GrantTarget.SCHEMA, ("x",), ("SELECT",))})  # fmt: skip
    facts = msgspec.structs.replace(
        FACTS, public_owner=owner, holdings={"g": HELD, "s": Holdings(foreign_grants=grants)}
    )
    renamed = frozenset(msgspec.structs.replace(grant, grantor="n") if grant.grantor == "g" else grant for grant in grants)  # fmt: skip
    held = frozenset(msgspec.structs.replace(grant, grantor="n") if grant.grantor == "g" else grant for grant in HELD.foreign_grants)  # fmt: skip
    assert facts_renamed(facts, "g", "n") == msgspec.structs.replace(
        facts,
        public_owner="n" if owner == "g" else owner,
        holdings={
            "n": Holdings(owns=True, foreign_grants=held),
            "s": Holdings(foreign_grants=renamed),
        },
    )


def test_what_is_found_adds_up() -> None:
    both = [op.AlterDefaultPrivileges("d", "p", target) for target in DefaultTarget]
    assert facts_after(FACTS, both).default_privileges == frozenset(DefaultTarget)

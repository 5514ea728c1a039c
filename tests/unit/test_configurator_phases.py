"""Each phase: catalog and spec on one side, operations on the other."""

from typing import Any

import msgspec
import pytest
from compute_node.actors.configurator import operations as op
from compute_node.actors.configurator.desired import Context
from compute_node.actors.configurator.model import (
    SHARED,
    Catalog,
    DatabaseFacts,
    DatabaseState,
    ExtensionState,
    Holdings,
    Mark,
    RoleState,
)
from compute_node.actors.configurator.operations import DefaultTarget, GrantTarget, Phase
from compute_node.actors.configurator.phases import plan
from compute_node.actors.configurator.plans import Plan, Visit
from compute_node.actors.configurator.visits import is_clean, plan_visit
from compute_node.messages.secret import Secret
from compute_node.messages.spec import (
    Audit,
    Cluster,
    ComputeSpec,
    Database,
    DeltaOp,
    GenericOption,
    JwksSettings,
    LocalProxySpec,
    Role,
)

DIGEST = "6b1d16b78004bbd51fa06af9eda75972"
STORED = Secret("md5" + DIGEST)
VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$" + "A" * 43 + "=:" + "B" * 43 + "="
CONTEXT = Context("cloud_admin", "postgres")
POSTGRES = DatabaseState("cloud_admin", oid=5)


def catalog(
    roles: dict[str, RoleState] | None = None,
    databases: dict[str, DatabaseState] | None = None,
    dependents: frozenset[tuple[str, str]] = frozenset(),
) -> Catalog:
    """A catalog in which the first and the last phase before the visits have nothing to do."""
    everybody = {"cloud_admin": RoleState(), "neon_superuser": RoleState()}
    return Catalog(
        150000,
        everybody | (roles or {}),
        {"postgres": POSTGRES} | (databases or {}),
        frozenset({"neon", "public"}),
        dependents,
        tables=frozenset({"health_check"}),
    )


def spec(*delta: DeltaOp, **cluster: Any) -> ComputeSpec:
    return ComputeSpec(
        1.0, Cluster(**({"roles": (), "databases": ()} | cluster)), 0, delta_operations=delta or None
    )


def planned(known: Catalog, wanted: ComputeSpec, context: Context = CONTEXT) -> Plan:
    return plan(known, wanted, context)


def database(owner: str = "a", **state: Any) -> DatabaseState:
    return DatabaseState(owner, **({"oid": 100, "grants_untouched": False} | state))


def test_phases_come_in_the_order_of_the_reference() -> None:
    known = catalog(
        {"old": RoleState(), "gone": RoleState()},
        {"bad": database(valid=False), "q": database(), "p": database()},
        frozenset({("p", "gone")}),
    )
    known = msgspec.structs.replace(
        known,
        schemas=frozenset({"public"}),
        tables=frozenset(),
        neon=ExtensionState("2"),
        subscriptions=frozenset({("q", 8), ("p", 7)}),
        mark=Mark("aa", frozenset({1})),
        roles={name: state for name, state in known.roles.items() if name != "neon_superuser"},
    )
    wanted = spec(
        DeltaOp("delete_db", "q"),
        DeltaOp("rename_role", "old", "new"),
        DeltaOp("delete_role", "gone"),
        roles=(Role("new"), Role("a")),
        databases=(Database("p", "a"), Database("n", "new")),
        settings=(GenericOption("shared_preload_libraries", "string", "pg_stat_statements"),),
    )
    wanted = msgspec.structs.replace(
        wanted, audit_log_level=Audit.BASE, drop_subscriptions_before_start=True, timeline_id="b" * 32
    )
    assert [step.phase for step in planned(known, wanted).steps] == list(Phase)


def test_the_privileged_role_is_created_when_it_is_missing_under_the_name_of_this_node() -> None:
    context = msgspec.structs.replace(CONTEXT, privileged_role="boss")
    assert planned(catalog(), spec(), context).operations == (op.CreatePrivilegedRole("boss"),)
    assert planned(catalog({"boss": RoleState()}), spec(), context).operations == ()


def test_invalid_databases_are_dropped_and_made_anew_if_they_are_listed() -> None:
    known = catalog({"a": RoleState()}, {"x": database(valid=False), "y": database(valid=False)})
    assert planned(known, spec(databases=(Database("x", "a"),))).operations == (
        op.DropInvalidDatabase("x"),
        op.DropInvalidDatabase("y"),
        op.CreateDatabase("x", "a"),
        op.GrantDatabase("x", "neon_superuser"),
    )


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (["old"], [op.RenameRole("old", "new")]),
        (["old", "new"], []),
        (["new"], []),
        ([], [op.CreateRole("new", STORED, (), "neon_superuser")]),
    ],
    ids=["old", "both", "new", "none"],
)
def test_a_role_is_renamed_iff_the_old_one_exists_and_the_new_one_does_not(
    present: list[str], expected: list[op.AnyOperation]
) -> None:
    known = catalog({name: RoleState(Secret(VERIFIER)) for name in present})
    wanted = spec(DeltaOp("rename_role", "old", "new"), roles=(Role("new", Secret(VERIFIER)),))
    if not present:
        wanted = spec(DeltaOp("rename_role", "old", "new"), roles=(Role("new", Secret(DIGEST)),))
    assert list(planned(known, wanted).operations) == expected


def test_a_renamed_role_gets_its_md5_password_again_for_postgres_has_forgotten_it() -> None:
    known = catalog({"old": RoleState(STORED)})
    wanted = spec(DeltaOp("rename_role", "old", "new"), roles=(Role("new", Secret(DIGEST)),))
    assert planned(known, wanted).operations == (op.RenameRole("old", "new"), op.AlterRole("new", STORED))


PASSWORDS: list[tuple[str, RoleState | None, Role, tuple[op.AnyOperation, ...]]] = [
    ("absent keeps", RoleState(STORED), Role("r"), ()),
    ("absent keeps none", RoleState(), Role("r"), ()),
    ("null removes", RoleState(STORED), Role("r", None), (op.AlterRole("r", None),)),
    ("null, nothing there", RoleState(), Role("r", None), ()),
    ("md5 sets", RoleState(), Role("r", Secret(DIGEST)), (op.AlterRole("r", STORED),)),
    ("md5 equal", RoleState(STORED), Role("r", Secret(DIGEST)), ()),
    ("md5 equal with its prefix", RoleState(STORED), Role("r", Secret("md5" + DIGEST)), ()),
    ("scram equal", RoleState(Secret(VERIFIER)), Role("r", Secret(VERIFIER)), ()),
    ("md5 to scram", RoleState(STORED), Role("r", Secret(VERIFIER)), (op.AlterRole("r", Secret(VERIFIER)),)),
    ("new, absent", None, Role("r"), (op.CreateRole("r", None, (), "neon_superuser"),)),
    ("new, value", None, Role("r", Secret(DIGEST)), (op.CreateRole("r", STORED, (), "neon_superuser"),)),
]


@pytest.mark.parametrize(
    ("state", "role", "expected"), [case[1:] for case in PASSWORDS], ids=[c[0] for c in PASSWORDS]
)
def test_passwords_have_three_states(
    state: RoleState | None, role: Role, expected: tuple[op.AnyOperation, ...]
) -> None:
    known = catalog({} if state is None else {"r": state})
    assert planned(known, spec(roles=(role,))).operations == expected


def test_options_of_an_existing_role_only_come_along_with_a_new_password() -> None:
    options = (GenericOption("CONNECTION LIMIT", "integer", "3"),)
    known = catalog({"r": RoleState()})
    assert planned(known, spec(roles=(Role("r", options=options),))).operations == ()
    changed = planned(known, spec(roles=(Role("r", Secret(DIGEST), options),)))
    assert changed.operations == (op.AlterRole("r", STORED, options),)


def test_a_role_for_tokens_gets_no_attributes_and_no_membership() -> None:
    wanted = ComputeSpec(
        1.0,
        Cluster((Role("r"),), ()),
        0,
        local_proxy_config=LocalProxySpec((JwksSettings("1", "u", "p", ("r",)),)),
    )
    assert planned(catalog(), wanted).operations == (op.CreateRole("r", None),)


@pytest.mark.parametrize(
    "role", [Role("cloud_admin", Secret(DIGEST)), Role("pg_new"), Role("public"), Role("none")]
)
def test_a_protected_role_is_not_created_and_its_password_not_changed(role: Role) -> None:
    refused = planned(catalog(), spec(roles=(role, Role("r"))))
    assert refused.operations == (op.CreateRole("r", None, (), "neon_superuser"),)
    assert [refusal.subject for refusal in refused.refusals] == [f'role "{role.name}"']


def test_a_protected_role_may_be_listed_as_it_is() -> None:
    unchanged = planned(catalog(), spec(roles=(Role("cloud_admin"), Role("neon_superuser", None))))
    assert (unchanged.operations, unchanged.refusals) == ((), ())


def test_a_template_loses_its_flag_before_it_is_dropped() -> None:
    known = catalog(databases={"t": database(template=True)})
    assert planned(known, spec(DeltaOp("delete_db", "t"))).operations == (
        op.ClearTemplateFlag("t"),
        op.DropDatabase("t"),
    )


def test_deleting_and_renaming_what_is_not_there_does_nothing() -> None:
    wanted = spec(DeltaOp("delete_db", "x"), DeltaOp("rename_db", "y", "z"), DeltaOp("delete_role", "r"))
    assert planned(catalog(), wanted).steps == ()


def test_a_database_takes_the_place_of_a_deleted_one_only_once() -> None:
    wanted = spec(
        DeltaOp("delete_db", "b"), DeltaOp("rename_db", "a", "b"), databases=(Database("b", "cloud_admin"),)
    )
    both = catalog(databases={"a": database("cloud_admin", oid=1), "b": database("cloud_admin", oid=2)})
    first = planned(both, wanted)
    assert first.operations == (op.DropDatabase("b"), op.RenameDatabase("a", "b"))
    assert planned(first.catalog, wanted).operations == ()


def test_an_owner_is_changed_only_when_it_differs_and_options_never() -> None:
    known = catalog({"a": RoleState(), "b": RoleState()}, {"x": database("a"), "y": database("a")})
    options = (GenericOption("LC_COLLATE", "string", "C"),)
    wanted = spec(databases=(Database("x", "a", options), Database("y", "b", options)))
    assert planned(known, wanted).operations == (op.AlterDatabaseOwner("y", "b"),)


def test_a_grant_that_was_cut_off_after_its_create_is_made_up_for() -> None:
    known = catalog({"a": RoleState()}, {"x": database("a", grants_untouched=True)})
    wanted = spec(databases=(Database("x", "a"),))
    assert planned(known, wanted).operations == (op.GrantDatabase("x", "neon_superuser"),)


def test_a_grant_that_a_user_revoked_is_not_made_again() -> None:
    known = catalog({"a": RoleState()}, {"x": database("a", grants_untouched=False)})
    assert planned(known, spec(databases=(Database("x", "a"),))).operations == ()


def test_databases_that_the_spec_does_not_know_are_left_alone_but_for_departing_owners() -> None:
    known = catalog({"r": RoleState(), "s": RoleState()}, {"x": database("r"), "y": database("s")})
    assert planned(known, spec(DeltaOp("delete_role", "r"))).operations == (
        op.AlterDatabaseOwner("x", "cloud_admin"),
        op.DropRole("r"),
    )


# --- Which databases are visited -------------------------------------------------------------------------


def visits(known: Catalog, wanted: ComputeSpec, *seen: int) -> list[Visit]:
    return list(planned(known, wanted, msgspec.structs.replace(CONTEXT, seen=frozenset(seen))).visits)


def test_a_listed_database_is_visited_until_it_was_seen() -> None:
    known = catalog({"a": RoleState()}, {"x": database(oid=100), "unlisted": database(oid=101)})
    wanted = spec(databases=(Database("x", "a"),))
    assert visits(known, wanted) == [Visit("x", "a", permissions=True)]
    assert visits(known, wanted, 100) == []


def test_a_database_that_was_dropped_and_made_again_was_not_seen() -> None:
    known = catalog({"a": RoleState()}, {"x": database(oid=200)})
    assert [v.database for v in visits(known, spec(databases=(Database("x", "a"),)), 100)] == ["x"]


def test_a_seen_database_is_visited_again_when_its_owner_changes_and_not_when_its_name_does() -> None:
    known = catalog({"a": RoleState(), "b": RoleState()}, {"x": database(oid=100)})
    assert [v.owner for v in visits(known, spec(databases=(Database("x", "b"),)), 100)] == ["b"]
    renamed = spec(DeltaOp("rename_db", "x", "y"), databases=(Database("y", "a"),))
    assert visits(known, renamed, 100) == []


def test_a_departing_role_leads_to_every_database_where_it_holds_something_and_to_no_other() -> None:
    known = catalog(
        {"a": RoleState(), "r": RoleState()},
        {"x": database(oid=100), "y": database(oid=101), "unlisted": database("a", oid=102)},
        frozenset({("x", "r"), ("unlisted", "r"), ("postgres", "r")}),
    )
    wanted = spec(DeltaOp("delete_role", "r"), databases=(Database("x", "a"), Database("y", "a")))
    assert visits(known, wanted, 100, 101) == [
        Visit("postgres", "cloud_admin", permissions=False, departing=("r",)),
        Visit("x", "a", permissions=True, departing=("r",)),
        Visit("unlisted", "a", permissions=False, departing=("r",)),
    ]


def test_what_belongs_to_no_database_is_released_first_and_alone() -> None:
    known = catalog(
        {"a": RoleState(), "r": RoleState()}, {"x": database()}, frozenset({(SHARED, "r"), ("x", "r")})
    )
    steps = planned(known, spec(DeltaOp("delete_role", "r"))).steps
    groups = [[visit.database for visit in step.visits] for step in steps if hasattr(step, "visits")]
    assert groups == [["postgres"], ["x"]]


def test_a_database_that_takes_no_connections_is_passed_over_with_a_warning() -> None:
    known = catalog({"a": RoleState()}, {"x": database(connectable=False)})
    closed = planned(known, spec(databases=(Database("x", "a"),)))
    assert closed.visits == ()
    assert closed.warnings == ('database "x" takes no connections: it was not looked into',)


# --- What is done there ----------------------------------------------------------------------------------

DONE = frozenset(DefaultTarget)
LISTED = Visit("x", "a", permissions=True)
DEFAULTS = tuple(op.AlterDefaultPrivileges("x", "neon_superuser", target) for target in DefaultTarget)

FACTS: list[tuple[str, DatabaseFacts, int, tuple[op.AnyOperation, ...]]] = [
    ("all done", DatabaseFacts(default_privileges=DONE), 150000, ()),
    ("nothing done", DatabaseFacts(), 150000, DEFAULTS),
    ("half done", DatabaseFacts(default_privileges=frozenset({DefaultTarget.TABLES})), 150000, DEFAULTS[1:]),
    ("no schema public", DatabaseFacts(public_owner=None, has_web_access=True), 150000, ()),
    (
        "public is the administrator's",
        DatabaseFacts(public_owner="cloud_admin", default_privileges=DONE),
        150000,
        (op.SetPublicOwner("x", "a"),),
    ),
    (
        "public is the bootstrap superuser's",
        DatabaseFacts(public_owner="zenith_admin", default_privileges=DONE),
        150000,
        (op.SetPublicOwner("x", "a"),),
    ),
    ("public is a user's", DatabaseFacts(public_owner="u", default_privileges=DONE), 150000, ()),
    (
        "web_access",
        DatabaseFacts(has_web_access=True, default_privileges=DONE),
        150000,
        (op.GrantPublicToWebAccess("x"),),
    ),
    (
        "web_access, granted",
        DatabaseFacts(has_web_access=True, web_access_creates=True, default_privileges=DONE),
        150000,
        (),
    ),
    ("web_access before 15", DatabaseFacts(has_web_access=True, default_privileges=DONE), 140012, ()),
]


@pytest.mark.parametrize(
    ("facts", "version", "expected"), [case[1:] for case in FACTS], ids=[c[0] for c in FACTS]
)
def test_schema_permissions_are_put_right_where_they_are_not(
    facts: DatabaseFacts, version: int, expected: tuple[op.AnyOperation, ...]
) -> None:
    known = msgspec.structs.replace(catalog(), server_version=version)
    assert plan_visit(LISTED, facts, known, CONTEXT) == expected


def test_the_administrator_as_owner_keeps_the_schema_public() -> None:
    visit = Visit("x", "cloud_admin", permissions=True)
    facts = DatabaseFacts(public_owner="cloud_admin", default_privileges=DONE)
    assert plan_visit(visit, facts, catalog(), CONTEXT) == ()


def test_a_departing_role_gives_away_what_it_owns_before_the_rest_is_dropped() -> None:
    held = Holdings(
        owns=True, foreign_grants=frozenset({op.Grant("g", GrantTarget.TABLE, ("public",), ("SELECT",))})
    )
    visit = Visit("x", "a", permissions=False, departing=("gone", "r"))
    operations = plan_visit(visit, DatabaseFacts(holdings={"r": held}), catalog(), CONTEXT)
    assert operations == (
        op.ReassignOwned("x", "r", "a"),
        op.RevokeGrant("x", "r", op.Grant("g", GrantTarget.TABLE, ("public",), ("SELECT",))),
        op.DropOwned("x", "r"),
    )
    assert len({operation.unit for operation in operations} - {None}) == 1


def test_a_role_that_owns_nothing_has_nothing_reassigned() -> None:
    visit = Visit("x", "a", permissions=False, departing=("r",))
    facts = DatabaseFacts(holdings={"r": Holdings()})
    assert plan_visit(visit, facts, catalog(), CONTEXT) == (op.DropOwned("x", "r"),)


def test_what_must_not_be_created_or_changed_is_refused_in_the_right_word() -> None:
    known = catalog({"pg_there": RoleState()})
    wanted = spec(roles=(Role("pg_new"), Role("pg_there", Secret(DIGEST))))
    assert [refusal.describe() for refusal in planned(known, wanted).refusals] == [
        'role "pg_new": it must not be created: Postgres reserves this name',
        'role "pg_there": it must not be changed: Postgres reserves this name',
    ]


def test_a_change_that_is_not_due_does_not_hold_up_the_next_one() -> None:
    known = catalog(databases={"b": database()})
    wanted = spec(DeltaOp("delete_db", "a"), DeltaOp("delete_db", "b"))
    assert planned(known, wanted).operations == (op.DropDatabase("b"),)


def test_a_new_database_is_created_with_its_options() -> None:
    options = (GenericOption("TEMPLATE", "enum", "template0"),)
    wanted = spec(databases=(Database("d", "cloud_admin", options),))
    assert op.CreateDatabase("d", "cloud_admin", options) in planned(catalog(), wanted).operations


@pytest.mark.parametrize("name", ["postgres", "main"])
def test_neither_postgres_nor_the_database_of_the_url_is_granted_on(name: str) -> None:
    context = msgspec.structs.replace(CONTEXT, system_database="main")
    known = catalog(databases={"main": DatabaseState("cloud_admin", oid=6)})
    wanted = spec(databases=(Database(name, "cloud_admin"),))
    assert not any(
        isinstance(operation, op.GrantDatabase) for operation in planned(known, wanted, context).operations
    )


def test_the_schema_neon_is_made_where_it_is_missing() -> None:
    known = msgspec.structs.replace(catalog(), schemas=frozenset({"public"}))
    assert planned(known, spec()).operations == (op.CreateSchema("neon"),)


def test_a_database_without_connections_does_not_hide_the_ones_behind_it() -> None:
    known = catalog(
        {"gone": RoleState()},
        {"closed": database(connectable=False), "open": database("b")},
        frozenset({("closed", "gone"), ("open", "gone")}),
    )
    found = planned(known, spec(DeltaOp("delete_role", "gone")))
    assert [(visit.database, visit.owner) for visit in found.visits] == [("open", "b")]
    assert len(found.warnings) == 1
    assert [refusal.describe() for refusal in found.refusals] == [
        (
            'role "gone": it cannot be dropped: it holds something in database "closed",'
            " which takes no connections"
        )
    ]
    assert found.operations == ()


def test_what_a_departing_role_owns_goes_to_the_administrator_in_the_system_database() -> None:
    context = msgspec.structs.replace(CONTEXT, system_database="main")
    known = catalog(
        {"gone": RoleState(), "other": RoleState()},
        {"main": database("somebody"), "d": database("b")},
        frozenset({(SHARED, "gone"), ("d", "other")}),
    )
    wanted = spec(DeltaOp("delete_role", "gone"), DeltaOp("delete_role", "other"))
    assert planned(known, wanted, context).visits == (
        Visit("main", "cloud_admin", permissions=False, departing=("gone", "other"), shared=True),
        Visit("d", "b", permissions=False, departing=("other",)),
    )


def test_a_visit_releases_every_departing_role_and_then_puts_the_permissions_right() -> None:
    visit = Visit("d", "o", permissions=True, departing=("a", "b"))
    grants = frozenset(
        {
            op.Grant("g", GrantTarget.TABLE, ("y",), ("SELECT",)),
            op.Grant("g", GrantTarget.TABLE, ("x",), ("SELECT",)),
        }
    )
    facts = DatabaseFacts(holdings={"a": Holdings(foreign_grants=grants), "b": Holdings(owns=True)})
    operations = plan_visit(visit, facts, catalog(), CONTEXT)
    assert operations[:5] == (
        op.RevokeGrant("d", "a", op.Grant("g", GrantTarget.TABLE, ("x",), ("SELECT",))),
        op.RevokeGrant("d", "a", op.Grant("g", GrantTarget.TABLE, ("y",), ("SELECT",))),
        op.DropOwned("d", "a"),
        op.ReassignOwned("d", "b", "o"),
        op.DropOwned("d", "b"),
    )
    assert {type(operation) for operation in operations[5:]} == {op.AlterDefaultPrivileges}


@pytest.mark.parametrize(
    ("role", "renamed", "visited"),
    [
        ("web_access", None, True),
        ("web_access", "former", True),
        ("another", None, False),
        ("another", "former", False),
    ],
)
def test_known_databases_are_visited_again_for_a_new_role_that_is_to_create_there(
    role: str,
    renamed: str | None,
    visited: bool,  # noqa: FBT001 - a case
) -> None:
    known = catalog({"a": RoleState()} | ({renamed: RoleState()} if renamed else {}), {"x": database(oid=9)})
    delta = (DeltaOp("rename_role", renamed, role),) if renamed else ()
    wanted = spec(*delta, roles=(Role("a"), Role(role)), databases=(Database("x", "a"),))
    context = msgspec.structs.replace(CONTEXT, seen=frozenset({5, 9}))
    assert [visit.database for visit in planned(known, wanted, context).visits] == (["x"] if visited else [])


def test_grants_by_the_same_role_in_the_same_schema_are_revoked_in_a_fixed_order() -> None:
    grants = frozenset(op.Grant("g", target, ("x",), ("SELECT",)) for target in GrantTarget)
    facts = DatabaseFacts(holdings={"a": Holdings(foreign_grants=grants)})
    operations = plan_visit(Visit("d", "o", permissions=False, departing=("a",)), facts, catalog(), CONTEXT)
    assert [type(operation) for operation in operations] == [op.RevokeGrant] * len(GrantTarget) + [
        op.DropOwned
    ]


def test_a_database_that_cannot_be_freed_of_its_subscriptions_is_not_dropped() -> None:
    known = subscribed(("shut", 7), ("its successor", 8), shut={"connectable": False})
    wanted = spec(DeltaOp("delete_db", "shut"), DeltaOp("rename_db", "its successor", "shut"))
    found = planned(known, wanted)
    assert (found.operations, found.visits) == ((), ())
    assert [refusal.describe() for refusal in found.refusals] == [
        'database "shut": it cannot be dropped: it has logical subscriptions, and takes no connections to drop them'
    ]


# --- Extensions, the availability check, the audit -------------------------------------------------------


def preloading(text: str, **cluster: Any) -> ComputeSpec:
    return spec(settings=(GenericOption("shared_preload_libraries", "string", text),), **cluster)


@pytest.mark.parametrize(
    ("wanted", "created"),
    [
        (preloading("neon,pg_stat_statements"), True),
        (preloading("$libdir/pg_stat_statements.so"), True),
        (spec(postgresql_conf="shared_preload_libraries = 'pg_stat_statements, other'"), True),
        (preloading("other", postgresql_conf="shared_preload_libraries = pg_stat_statements"), False),
        (preloading("my_pg_stat_statements_too"), False),
        (preloading("'"), False),
        (spec(), False),
    ],
    ids=["setting", "path", "conf text", "setting wins", "part of a name", "no list", "absent"],
)
def test_the_extension_of_statement_statistics_goes_with_its_library(
    wanted: ComputeSpec, *, created: bool
) -> None:
    expected = (op.CreateExtension("pg_stat_statements", "public"),) if created else ()
    assert planned(catalog(), wanted).operations == expected


def neon_node(**changes: Any) -> Catalog:
    offered = ExtensionState("1.6", "neon", relocatable=changes.pop("offered", True))
    return msgspec.structs.replace(catalog(), neon=offered, **changes)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (catalog(), ()),
        (neon_node(), (op.CreateExtensionNeon("neon", "neon"),)),
        (neon_node(offered=False), (op.CreateExtensionNeon("neon", "neon"), op.MakeRelocatable("neon"))),
        (neon_node(extensions={"neon": ExtensionState("1.6", "neon")}), ()),
        (
            neon_node(offered=False, extensions={"neon": ExtensionState("1.0", "neon")}),
            (op.UpdateExtension("neon", "1.6"), op.MakeRelocatable("neon")),
        ),
        (
            neon_node(extensions={"neon": ExtensionState("1.0", "public", relocatable=False)}),
            (
                op.MakeRelocatable("neon"),
                op.MoveExtension("neon", "neon"),
                op.UpdateExtension("neon", "1.6"),
            ),
        ),
    ],
    ids=[
        "plain Postgres",
        "new",
        "new, not relocatable",
        "as it should be",
        "of another version",
        "of an old node",
    ],
)
def test_the_extension_neon_is_brought_to_the_servers_version_on_a_neon_node_only(
    known: Catalog, expected: tuple[op.AnyOperation, ...]
) -> None:
    assert planned(known, spec()).operations == expected


@pytest.mark.parametrize(
    ("level", "extensions"),
    [
        (Audit.LOG, ["pgaudit"]),
        (Audit.BASE, ["pgaudit"]),
        (Audit.HIPAA, ["pgaudit", "pgauditlogtofile"]),
        (Audit.EXTENDED, ["pgaudit", "pgauditlogtofile"]),
        (Audit.FULL, ["pgaudit", "pgauditlogtofile"]),
    ],
)
def test_each_level_of_audit_has_its_extensions_and_leaves_the_nodes_own_database_out(
    level: Audit, extensions: list[str]
) -> None:
    wanted = msgspec.structs.replace(spec(), audit_log_level=level)
    created = tuple(op.CreateAuditExtension(name, "public") for name in extensions)
    assert planned(catalog(), wanted).operations == (*created, op.SilenceOwnAudit("postgres"))
    there = {name: ExtensionState("1", "elsewhere") for name in extensions}
    done = msgspec.structs.replace(catalog(), extensions=there, silent=frozenset({"postgres"}))
    assert planned(done, wanted).operations == ()


def test_without_the_schema_public_an_audit_is_refused_and_the_rest_only_warned_about() -> None:
    known = msgspec.structs.replace(catalog(), schemas=frozenset({"neon"}), tables=frozenset())
    wanted = msgspec.structs.replace(preloading("pg_stat_statements"), audit_log_level=Audit.BASE)
    found = planned(known, wanted)
    assert [refusal.describe() for refusal in found.refusals] == [
        "extension pgaudit: it cannot be created: the database of --connstr has no schema public"
    ]
    assert found.warnings == (
        "the extension pg_stat_statements is not created: the database of --connstr has no schema public",
        "the table of the availability check is not created: the database of --connstr has no schema public",
    )


def test_a_table_of_a_users_that_has_the_name_of_the_availability_check_is_left_alone() -> None:
    known = msgspec.structs.replace(catalog(), foreign=frozenset({"table public.health_check"}))
    found = planned(known, spec())
    assert found.operations == ()
    assert found.warnings == (
        "table public.health_check does not belong to a superuser: nothing is written to it",
    )


# --- Subscriptions ---------------------------------------------------------------------------------------


def branch(timeline: str = "b" * 32, **cluster: Any) -> ComputeSpec:
    return msgspec.structs.replace(
        spec(**cluster), drop_subscriptions_before_start=True, timeline_id=timeline
    )


def subscribed(*subscriptions: tuple[str, int], mark: Mark | None = None, **states: Any) -> Catalog:
    known = catalog(databases={name: database(**states.get(name, {})) for name, _ in subscriptions})
    return msgspec.structs.replace(known, subscriptions=frozenset(subscriptions), mark=mark)


def dropping(found: Plan) -> dict[str, frozenset[int]]:
    return {visit.database: visit.subscriptions for visit in found.visits if visit.subscriptions}


def test_the_subscriptions_of_a_database_are_dropped_before_it_is_and_those_of_others_stay() -> None:
    known = subscribed(("doomed", 7), ("doomed", 8), ("kept", 9))
    found = planned(known, spec(DeltaOp("delete_db", "doomed"), DeltaOp("delete_db", "absent")))
    assert dropping(found) == {"doomed": frozenset({7, 8})}
    assert not any(visit.inherited for visit in found.visits)
    assert [step.phase for step in found.steps] == [Phase.DETACH_DATABASES, Phase.RENAME_AND_DELETE_DATABASES]
    facts = DatabaseFacts(subscriptions={"b": 8, "a": 7, "made meanwhile": 10})
    assert plan_visit(found.visits[0], facts, known, CONTEXT) == (
        op.DropSubscription("doomed", "a", 7),
        op.DropSubscription("doomed", "b", 8),
    )


def test_a_database_whose_changes_somebody_reads_is_freed_of_that_before_it_is_dropped() -> None:
    known = catalog(databases={"x": database(replicating=True, template=True)})
    assert planned(known, spec(DeltaOp("delete_db", "x"))).operations == (
        op.ClearTemplateFlag("x"),
        op.EndReplication("x"),
        op.DropDatabase("x"),
    )


def test_a_new_branch_notes_what_it_inherited_and_drops_it_listed_or_not() -> None:
    known = subscribed(("listed", 7), ("unlisted", 8))
    found = planned(known, branch(databases=(Database("listed", "a"),)))
    assert found.operations == (
        op.NoteSubscriptions("b" * 32, (7, 8)),
        op.NoteSubscriptionsLeft("b" * 32, ()),
    )
    assert dropping(found) == {"listed": frozenset({7}), "unlisted": frozenset({8})}
    assert [visit.inherited for visit in found.visits if visit.subscriptions] == [True, True]
    assert planned(found.catalog, branch(databases=(Database("listed", "a"),))).operations == ()


def test_a_branch_without_subscriptions_is_marked_all_the_same() -> None:
    found = planned(catalog(), branch())
    assert (found.operations, found.visits) == ((op.NoteSubscriptions("b" * 32, ()),), ())


@pytest.mark.parametrize(
    ("mark", "noted", "dropped"),
    [
        (Mark("b" * 32), False, set()),
        (Mark("b" * 32, frozenset({7, 99})), False, {7}),
        (Mark("a" * 32), True, {7, 8}),
        (Mark("a" * 32, frozenset({7})), True, {7, 8}),
        (None, True, {7, 8}),
    ],
    ids=["done here", "broken off here", "a branch of a branch", "of one that was broken off", "first"],
)
def test_what_is_dropped_is_decided_by_the_mark(mark: Mark | None, noted: bool, dropped: set[int]) -> None:  # noqa: FBT001 - a case
    found = planned(subscribed(("x", 7), ("x", 8), mark=mark), branch())
    assert any(type(operation) is op.NoteSubscriptions for operation in found.operations) == noted
    assert dropping(found).get("x", frozenset()) == dropped


@pytest.mark.parametrize(
    ("mark", "clean"),
    [
        (None, False),
        (Mark("a" * 32), False),
        (Mark("b" * 32), True),
        (Mark("b" * 32, frozenset({7})), False),
        (Mark("b" * 32, frozenset({8})), True),
        (Mark("b" * 32, frozenset({99})), True),
    ],
    ids=["no mark", "of another branch", "done", "one is left", "one is left where it cannot work", "gone"],
)
def test_a_branch_is_clean_when_nothing_inherited_is_left_that_could_work(
    mark: Mark | None,
    clean: bool,  # noqa: FBT001 - a case
) -> None:
    known = subscribed(("open", 7), ("shut", 8), shut={"connectable": False}, mark=mark)
    assert is_clean(known, branch()) is clean
    assert is_clean(known, msgspec.structs.replace(branch(), drop_subscriptions_before_start=False))
    assert is_clean(msgspec.structs.replace(known, subscriptions=frozenset()), branch())


def test_a_closed_database_is_dropped_unless_it_has_subscriptions() -> None:
    known = subscribed(("doomed", 7), ("kept", 8), doomed={"connectable": False})
    wanted = spec(DeltaOp("delete_db", "doomed"))
    assert planned(known, wanted).operations == ()
    others = msgspec.structs.replace(known, subscriptions=frozenset({("kept", 8)}))
    assert planned(others, wanted).operations == (op.DropDatabase("doomed"),)


def test_without_the_flag_no_subscription_is_touched_and_nothing_is_noted() -> None:
    wanted = msgspec.structs.replace(branch(), drop_subscriptions_before_start=False)
    found = planned(subscribed(("x", 7)), wanted)
    assert (found.operations, found.visits) == ((), ())


def test_inherited_subscriptions_where_nobody_can_connect_stay_on_the_list() -> None:
    known = subscribed(("open", 7), ("shut", 8), shut={"connectable": False})
    found = planned(known, branch())
    assert dropping(found) == {"open": frozenset({7})}
    assert found.operations[-1] == op.NoteSubscriptionsLeft("b" * 32, (8,))
    assert found.warnings == ('database "shut" takes no connections: its logical subscriptions stay',)
    again = planned(found.catalog, branch())
    assert (again.operations, again.visits) == ((), ())
    opened = msgspec.structs.replace(
        found.catalog, databases=found.catalog.databases | {"shut": database(connectable=True)}
    )
    assert dropping(planned(opened, branch())) == {"shut": frozenset({8})}


def test_a_mark_that_a_user_could_have_written_is_not_trusted() -> None:
    foreign = frozenset({"table neon.drop_subscriptions_done", "schema neon"})
    known = msgspec.structs.replace(subscribed(("x", 7)), foreign=foreign)
    found = planned(known, branch())
    assert (found.operations, found.visits) == ((), ())
    assert [refusal.describe() for refusal in found.refusals] == [
        (
            "the list of inherited subscriptions: it cannot be kept: schema neon and table"
            " neon.drop_subscriptions_done must belong to a superuser; give it to the administrator, or rename it"
        )
    ]
    assert planned(known, spec()).refusals == ()


def test_the_timeline_is_the_specs_or_that_of_its_settings() -> None:
    setting = (GenericOption("neon.timeline_id", "string", "AB" * 16),)
    wanted = msgspec.structs.replace(spec(settings=setting), drop_subscriptions_before_start=True)
    assert planned(catalog(), wanted).operations == (op.NoteSubscriptions("ab" * 16, ()),)

"""The questions that the Configurator asks Postgres, and how their answers are read. Pure.

Answers come as text. Names that are not UTF-8 (a database in SQL_ASCII may hold some) cannot be in a spec
and are left out.
"""

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from ...messages.secret import Secret
from ...postgres.conf_reader import effective, read
from . import operations as op
from .model import (
    DROP_MARK,
    NEON,
    SHARED,
    Catalog,
    CollationDrift,
    DatabaseFacts,
    DatabaseState,
    ExtensionState,
    Holdings,
    Mark,
    RoleState,
)
from .plans import Visit

Row: TypeAlias = Sequence[bytes | None]
Question: TypeAlias = tuple[bytes, tuple[bytes, ...]]
"""A statement and its parameters, all of them text."""


class Session(msgspec.Struct, frozen=True):
    """Who and where the maintenance connection is."""

    user: str
    in_recovery: bool
    max_connections: int


_SESSION: Final = b"""
SELECT CURRENT_USER, pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_setting('max_connections'), pg_catalog.current_setting('server_version_num'),
       (SELECT pg_catalog.pg_read_file(setting || '/extension/neon.control', 0, 65536, true)
        FROM pg_catalog.pg_config WHERE name = 'SHAREDIR')
"""

_OWN: Final = b"""
SELECT 'schema', n.nspname, NULL, NULL, o.rolsuper
FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_authid o ON o.oid = n.nspowner
WHERE n.nspname IN ('neon', 'public')
UNION ALL
SELECT 'table', c.relname, n.nspname, NULL, o.rolsuper AND c.relkind = 'r'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_authid o ON o.oid = c.relowner
WHERE (n.nspname, c.relname) IN (('public', 'health_check'), ('neon', 'drop_subscriptions_done'))
UNION ALL
SELECT 'extension', e.extname, n.nspname, e.extversion, e.extrelocatable
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
UNION ALL
SELECT 'subscription', d.datname, s.oid::pg_catalog.text, NULL, NULL
FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
UNION ALL
SELECT 'silent', d.datname, NULL, NULL, NULL
FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
WHERE s.setrole = 0 AND 'pgaudit.log=none' = ANY (s.setconfig)
"""

_MARK: Final = b"""
SELECT m.timeline_id, pg_catalog.to_jsonb(m) ->> 'left_over' FROM neon.drop_subscriptions_done m WHERE m.id = 1
"""
MARK_QUESTION: Final[tuple[bytes, tuple[bytes, ...]]] = (_MARK, ())

_DATABASES: Final = b"""
SELECT d.datname, r.rolname, d.oid, d.datallowconn, d.datconnlimit <> -2, d.datistemplate, d.datacl IS NULL,
       d.datname IN (SELECT s.database FROM pg_catalog.pg_replication_slots s WHERE s.active)
FROM pg_catalog.pg_database d JOIN pg_catalog.pg_authid r ON r.oid = d.datdba
ORDER BY d.oid
"""

_ROLES: Final = b"SELECT rolname, rolpassword FROM pg_catalog.pg_authid ORDER BY oid"

_DEPENDENTS: Final = b"""
SELECT DISTINCT COALESCE(d.datname, ''), r.rolname
FROM pg_catalog.pg_shdepend s
JOIN pg_catalog.pg_authid r ON s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND r.oid = s.refobjid
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid
WHERE r.rolname IN (SELECT pg_catalog.json_array_elements_text($1::pg_catalog.json))
  AND (s.dbid = 0 OR d.oid IS NOT NULL)
  AND NOT (s.classid = 'pg_catalog.pg_database'::pg_catalog.regclass AND s.deptype = 'o')
"""

_FACTS: Final = b"""
SELECT (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
       CURRENT_USER,
       n.owner,
       w.oid IS NOT NULL,
       EXISTS (SELECT FROM pg_catalog.aclexplode(n.acl) a WHERE a.grantee = w.oid AND a.privilege_type = 'CREATE'),
       (SELECT pg_catalog.string_agg(k.target, ',') FROM (VALUES ('TABLES', 'r', 'r'), ('SEQUENCES', 's', 'S'))
          AS k (target, builtin, kind)
        WHERE NOT EXISTS (
          SELECT a.privilege_type
          FROM pg_catalog.pg_authid me,
               pg_catalog.aclexplode(pg_catalog.acldefault(k.builtin::pg_catalog."char", me.oid)) a
          WHERE me.rolname = CURRENT_USER AND a.grantee = me.oid
          EXCEPT
          SELECT a.privilege_type
          FROM pg_catalog.pg_default_acl d
          JOIN pg_catalog.pg_authid me ON me.oid = d.defaclrole AND me.rolname = CURRENT_USER,
               pg_catalog.aclexplode(d.defaclacl) a
          JOIN pg_catalog.pg_authid p ON p.oid = a.grantee AND p.rolname = $1
          WHERE d.defaclnamespace = n.oid AND d.defaclobjtype = k.kind::pg_catalog."char" AND a.is_grantable))
FROM (SELECT 1) AS always
LEFT JOIN (SELECT s.oid, o.rolname AS owner,
                  COALESCE(s.nspacl, pg_catalog.acldefault('n', s.nspowner)) AS acl
           FROM pg_catalog.pg_namespace s JOIN pg_catalog.pg_authid o ON o.oid = s.nspowner
           WHERE s.nspname = 'public') n ON true
LEFT JOIN pg_catalog.pg_authid w ON w.rolname = 'web_access'
"""

_SUBSCRIPTIONS: Final = b"""
SELECT subname, oid FROM pg_catalog.pg_subscription
WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""

_HOLDERS: Final = b"""
SELECT r.rolname, pg_catalog.bool_or(s.deptype = 'o')
FROM pg_catalog.pg_shdepend s
JOIN pg_catalog.pg_authid r ON s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND r.oid = s.refobjid
WHERE r.rolname IN (SELECT pg_catalog.json_array_elements_text($1::pg_catalog.json))
  AND (s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
       OR $2::pg_catalog.bool AND s.dbid = 0)
GROUP BY r.rolname
"""

_FOREIGN_GRANTS: Final = b"""
SELECT g.rolname, o.rolname, x.target, x.names::pg_catalog.text,
       pg_catalog.string_agg(x.privilege, ',' ORDER BY x.privilege)
FROM (
  SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS target,
         pg_catalog.jsonb_build_array(n.nspname, c.relname) AS names, c.relowner AS owner,
         a.grantor, a.grantee, a.privilege_type AS privilege
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
       pg_catalog.aclexplode(c.relacl) a
  UNION ALL
  SELECT 'COLUMN', pg_catalog.jsonb_build_array(n.nspname, c.relname, t.attname), c.relowner,
         a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_attribute t JOIN pg_catalog.pg_class c ON c.oid = t.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, pg_catalog.aclexplode(t.attacl) a
  WHERE t.attacl IS NOT NULL
  UNION ALL
  SELECT 'ROUTINE', pg_catalog.jsonb_build_array(n.nspname, p.proname, pg_catalog.oidvectortypes(p.proargtypes)),
         p.proowner, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace,
       pg_catalog.aclexplode(p.proacl) a
  UNION ALL
  SELECT 'SCHEMA', pg_catalog.jsonb_build_array(s.nspname), s.nspowner, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_namespace s, pg_catalog.aclexplode(s.nspacl) a
  UNION ALL
  SELECT 'TYPE', pg_catalog.jsonb_build_array(n.nspname, t.typname), t.typowner, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace,
       pg_catalog.aclexplode(t.typacl) a
  UNION ALL
  SELECT 'LANGUAGE', pg_catalog.jsonb_build_array(l.lanname), l.lanowner, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_language l, pg_catalog.aclexplode(l.lanacl) a
  UNION ALL
  SELECT 'LARGE_OBJECT', pg_catalog.jsonb_build_array(m.oid), m.lomowner, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_largeobject_metadata m, pg_catalog.aclexplode(m.lomacl) a
  UNION ALL
  SELECT 'WRAPPER', pg_catalog.jsonb_build_array(w.fdwname), w.fdwowner, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_foreign_data_wrapper w, pg_catalog.aclexplode(w.fdwacl) a
  UNION ALL
  SELECT 'SERVER', pg_catalog.jsonb_build_array(f.srvname), f.srvowner, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_foreign_server f, pg_catalog.aclexplode(f.srvacl) a%s
) x
JOIN pg_catalog.pg_authid g ON g.oid = x.grantee
JOIN pg_catalog.pg_authid o ON o.oid = x.grantor
WHERE x.grantor <> x.owner
  AND g.rolname IN (SELECT pg_catalog.json_array_elements_text($1::pg_catalog.json))
GROUP BY g.rolname, o.rolname, x.target, x.names
"""
_SHARED_GRANTS: Final = b"""
  UNION ALL
  SELECT 'DATABASE', pg_catalog.jsonb_build_array(d.datname), d.datdba, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a
  UNION ALL
  SELECT 'TABLESPACE', pg_catalog.jsonb_build_array(b.spcname), b.spcowner, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_tablespace b, pg_catalog.aclexplode(b.spcacl) a"""
_PARAMETER_GRANTS: Final = b"""
  UNION ALL
  SELECT 'PARAMETER', pg_catalog.to_jsonb(pg_catalog.string_to_array(q.parname, '.')),
         10::pg_catalog.oid, a.grantor, a.grantee, a.privilege_type
  FROM pg_catalog.pg_parameter_acl q, pg_catalog.aclexplode(q.paracl) a"""
PARAMETER_GRANTS_SINCE: Final = 150000


_DRIFTED: Final = b"""
SELECT d.datname, d.datcollversion, pg_catalog.pg_database_collation_actual_version(d.oid)
FROM pg_catalog.pg_database d
WHERE d.datallowconn
  AND d.datcollversion IS DISTINCT FROM pg_catalog.pg_database_collation_actual_version(d.oid)
ORDER BY d.oid
"""
SCHEMA_NEON: Final = "schema neon"
COLLATION_VERSIONS_SINCE: Final = 150000
"""Before, Postgres does not remember with which version a database was made."""
DRIFT_QUESTION: Final[Question] = (_DRIFTED, ())


def snapshot_questions(departing: Iterable[str]) -> tuple[Question, ...]:
    """Return what to ask the maintenance database; the last question only if a role may depart."""
    names = sorted(departing)
    always: tuple[Question, ...] = ((_SESSION, ()), (_DATABASES, ()), (_ROLES, ()), (_OWN, ()))
    return (*always, (_DEPENDENTS, (msgspec.json.encode(names),))) if names else always


def read_snapshot(answers: Sequence[Sequence[Row]]) -> tuple[Session, Catalog]:
    """Understand the answers to `snapshot_questions`."""
    ((user, in_recovery, max_connections, server_version, control),) = answers[0]
    session = Session(_text(user), _truth(in_recovery), _number(max_connections))
    databases = {}
    for name, owner, oid, connectable, valid, template, grants_untouched, replicating in answers[1]:
        if _readable(name, owner):
            databases[_text(name)] = DatabaseState(
                _text(owner),
                _number(oid),
                _truth(connectable),
                _truth(valid),
                _truth(template),
                _truth(grants_untouched),
                _truth(replicating),
            )
    roles = {
        _text(name): RoleState(None if password is None else Secret(_text(password)))
        for name, password in answers[2]
        if _readable(name, password)
    }
    dependents = frozenset(
        (_text(database) or SHARED, _text(role))
        for rows in answers[4:]
        for database, role in rows
        if _readable(database, role)
    )
    own = _Own(answers[3])
    return session, Catalog(
        _number(server_version),
        roles,
        databases,
        own.schemas,
        dependents,
        extensions=own.extensions,
        neon=None if control is None else read_control(_text(control)),
        tables=own.tables,
        foreign=own.foreign,
        subscriptions=own.subscriptions,
        silent=own.silent,
    )


def read_control(text: str) -> ExtensionState:
    """Read the control file of the extension neon."""
    entries = read(text)
    relocatable = (effective(entries, "relocatable") or "false").lower() in {"true", "on", "yes", "1"}
    return ExtensionState(effective(entries, "default_version") or "", NEON, relocatable)


def has_mark(catalog: Catalog) -> bool:
    """Whether there is a mark that can be read and trusted."""
    return DROP_MARK in catalog.tables and not catalog.foreign & {SCHEMA_NEON, op.MARK_TABLE}


def read_mark(rows: Sequence[Row]) -> Mark | None:
    """Understand the answer to `MARK_QUESTION`."""
    for timeline, left in rows:
        oids = msgspec.json.decode(left, type=frozenset[int], strict=False) if left else frozenset[int]()
        return Mark(_text(timeline), oids)
    return None


class _Own:
    """What was found of this program's own in the maintenance database."""

    def __init__(self, rows: Sequence[Row]) -> None:
        found: dict[str, list[Row]] = {}
        for kind, *row in rows:
            if _readable(*row[:3]):
                found.setdefault(_text(kind), []).append(row)
        schemas, tables = found.get("schema", []), found.get("table", [])
        self.schemas = frozenset(_text(name) for name, *_ in schemas)
        self.tables = frozenset(_text(name) for name, *_ in tables)
        self.foreign = frozenset(
            f"table {_text(schema)}.{_text(name)}" for name, schema, _, ours in tables if not _truth(ours)
        ) | frozenset(f"schema {_text(name)}" for name, _, _, ours in schemas if not _truth(ours))
        self.extensions = {
            _text(name): ExtensionState(_text(version), _text(schema), _truth(relocatable))
            for name, schema, version, relocatable in found.get("extension", [])
        }
        self.subscriptions = frozenset(
            (_text(database), _number(oid)) for database, oid, *_ in found.get("subscription", [])
        )
        self.silent = frozenset(_text(database) for database, *_ in found.get("silent", []))


def read_drift(rows: Sequence[Row]) -> tuple[CollationDrift, ...]:
    """Understand the answer to `DRIFT_QUESTION`."""
    return tuple(
        CollationDrift(_text(name), _text(made_with), _text(actual))
        for name, made_with, actual in rows
        if _readable(name, made_with, actual)
    )


def visit_questions(visit: Visit, privileged_role: str, server_version: int) -> tuple[Question, ...]:
    """Return what to ask a database that is visited."""
    facts: tuple[Question, ...] = ((_FACTS, (privileged_role.encode(),)), (_SUBSCRIPTIONS, ()))
    if not visit.departing:
        return facts
    shared = _SHARED_GRANTS if visit.shared else b""
    if visit.shared and server_version >= PARAMETER_GRANTS_SINCE:
        shared += _PARAMETER_GRANTS
    departing = msgspec.json.encode(visit.departing)
    return (
        *facts,
        (_HOLDERS, (departing, b"t" if visit.shared else b"f")),
        (_FOREIGN_GRANTS % shared, (departing,)),
    )


def read_facts(answers: Sequence[Sequence[Row]]) -> tuple[str, DatabaseFacts]:
    """Understand the answers to `visit_questions`; the first part is who asked."""
    ((oid, user, public_owner, has_web_access, web_access_creates, default_privileges),) = answers[0]
    targets = _text(default_privileges).split(",") if default_privileges else ()
    holders, grants = answers[2:] or ((), ())
    return _text(user), DatabaseFacts(
        oid=_number(oid),
        public_owner=None if public_owner is None else _text(public_owner),
        has_web_access=_truth(has_web_access),
        web_access_creates=_truth(web_access_creates),
        default_privileges=frozenset(op.DefaultTarget(target) for target in targets),
        holdings=_holdings(holders, grants),
        subscriptions={_text(name): _number(oid) for name, oid in answers[1] if _readable(name)},
    )


def _holdings(holders: Sequence[Row], grants: Sequence[Row]) -> dict[str, Holdings]:
    owns = {_text(role): _truth(is_owner) for role, is_owner in holders}
    foreign: dict[str, set[op.Grant]] = {role: set() for role in owns}
    for role, grantor, target, names, privileges in grants:
        if _readable(grantor, names):
            found = foreign.setdefault(_text(role), set())
            parts = msgspec.json.decode(names or b"[]", type=tuple[str, ...], strict=False)
            words = tuple(_text(privileges).split(","))
            found.add(op.Grant(_text(grantor), op.GrantTarget[_text(target)], parts, words))
    return {role: Holdings(owns.get(role, False), frozenset(found)) for role, found in foreign.items()}


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _truth(value: bytes | None) -> bool:
    return value == b"t"


def _number(value: bytes | None) -> int:
    return int(value or b"0")


def _readable(*values: bytes | None) -> bool:
    try:
        for value in values:
            (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True

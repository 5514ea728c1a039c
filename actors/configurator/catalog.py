"""The questions that the Configurator asks Postgres, and how their answers are read. Pure.

Answers come as text. Names that are not UTF-8 (a database in SQL_ASCII may hold some) cannot be in a spec
and are left out.
"""

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from ...messages.secret import Secret
from . import operations as op
from .model import SHARED, Catalog, CollationDrift, DatabaseFacts, DatabaseState, Holdings, RoleState
from .phases import NEON_SCHEMA, Visit

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
       EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'neon')
"""

_DATABASES: Final = b"""
SELECT d.datname, r.rolname, d.oid, d.datallowconn, d.datconnlimit <> -2, d.datistemplate, d.datacl IS NULL
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
SELECT DISTINCT g.rolname, o.rolname, n.nspname, x.target
FROM (
  SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCES' ELSE 'TABLES' END AS target,
         c.relnamespace AS namespace, c.relowner AS owner, a.grantor, a.grantee
  FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a
  UNION ALL
  SELECT 'TABLES', c.relnamespace, c.relowner, a.grantor, a.grantee
  FROM pg_catalog.pg_attribute t JOIN pg_catalog.pg_class c ON c.oid = t.attrelid, pg_catalog.aclexplode(t.attacl) a
  WHERE t.attacl IS NOT NULL
  UNION ALL
  SELECT 'ROUTINES', p.pronamespace, p.proowner, a.grantor, a.grantee
  FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a
  UNION ALL
  SELECT 'SCHEMA', s.oid, s.nspowner, a.grantor, a.grantee
  FROM pg_catalog.pg_namespace s, pg_catalog.aclexplode(s.nspacl) a
) x
JOIN pg_catalog.pg_authid g ON g.oid = x.grantee
JOIN pg_catalog.pg_authid o ON o.oid = x.grantor
JOIN pg_catalog.pg_namespace n ON n.oid = x.namespace
WHERE x.grantor <> x.owner
  AND g.rolname IN (SELECT pg_catalog.json_array_elements_text($1::pg_catalog.json))
"""


_DRIFTED: Final = b"""
SELECT d.datname, d.datcollversion, pg_catalog.pg_database_collation_actual_version(d.oid)
FROM pg_catalog.pg_database d
WHERE d.datallowconn
  AND d.datcollversion IS DISTINCT FROM pg_catalog.pg_database_collation_actual_version(d.oid)
ORDER BY d.oid
"""
COLLATION_VERSIONS_SINCE: Final = 150000
"""Before, Postgres does not remember with which version a database was made."""
DRIFT_QUESTION: Final[Question] = (_DRIFTED, ())


def snapshot_questions(departing: Iterable[str]) -> tuple[Question, ...]:
    """Return what to ask the maintenance database; the last question only if a role may depart."""
    names = sorted(departing)
    always: tuple[Question, ...] = ((_SESSION, ()), (_DATABASES, ()), (_ROLES, ()))
    return (*always, (_DEPENDENTS, (msgspec.json.encode(names),))) if names else always


def read_snapshot(answers: Sequence[Sequence[Row]]) -> tuple[Session, Catalog]:
    """Understand the answers to `snapshot_questions`."""
    ((user, in_recovery, max_connections, server_version, has_neon),) = answers[0]
    session = Session(_text(user), _truth(in_recovery), _number(max_connections))
    databases = {}
    for name, owner, oid, connectable, valid, template, grants_untouched in answers[1]:
        if _readable(name, owner):
            databases[_text(name)] = DatabaseState(
                _text(owner),
                _number(oid),
                _truth(connectable),
                _truth(valid),
                _truth(template),
                _truth(grants_untouched),
            )
    roles = {
        _text(name): RoleState(None if password is None else Secret(_text(password)))
        for name, password in answers[2]
        if _readable(name, password)
    }
    dependents = frozenset(
        (_text(database) or SHARED, _text(role))
        for rows in answers[3:]
        for database, role in rows
        if _readable(database, role)
    )
    schemas = frozenset({NEON_SCHEMA} if _truth(has_neon) else ())
    return session, Catalog(_number(server_version), roles, databases, schemas, dependents)


def read_drift(rows: Sequence[Row]) -> tuple[CollationDrift, ...]:
    """Understand the answer to `DRIFT_QUESTION`."""
    return tuple(
        CollationDrift(_text(name), _text(made_with), _text(actual))
        for name, made_with, actual in rows
        if _readable(name, made_with, actual)
    )


def visit_questions(visit: Visit, privileged_role: str) -> tuple[Question, ...]:
    """Return what to ask a database that is visited."""
    facts: Question = (_FACTS, (privileged_role.encode(),))
    if not visit.departing:
        return (facts,)
    departing = msgspec.json.encode(visit.departing)
    return (facts, (_HOLDERS, (departing, b"t" if visit.shared else b"f")), (_FOREIGN_GRANTS, (departing,)))


def read_facts(answers: Sequence[Sequence[Row]]) -> tuple[str, DatabaseFacts]:
    """Understand the answers to `visit_questions`; the first part is who asked."""
    ((oid, user, public_owner, has_web_access, web_access_creates, default_privileges),) = answers[0]
    targets = _text(default_privileges).split(",") if default_privileges else ()
    holders, grants = answers[1:] if len(answers) > 1 else ((), ())
    return _text(user), DatabaseFacts(
        oid=_number(oid),
        public_owner=None if public_owner is None else _text(public_owner),
        has_web_access=_truth(has_web_access),
        web_access_creates=_truth(web_access_creates),
        default_privileges=frozenset(op.DefaultTarget(target) for target in targets),
        holdings=_holdings(holders, grants),
    )


def _holdings(holders: Sequence[Row], grants: Sequence[Row]) -> dict[str, Holdings]:
    owns = {_text(role): _truth(is_owner) for role, is_owner in holders}
    foreign: dict[str, set[tuple[str, str, op.GrantTarget]]] = {role: set() for role in owns}
    for role, grantor, schema, target in grants:
        if _readable(grantor, schema):
            found = foreign.setdefault(_text(role), set())
            found.add((_text(grantor), _text(schema), op.GrantTarget[_text(target)]))
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

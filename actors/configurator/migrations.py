"""The migrations: what the privileged role was given over time, and which of it is still to be done. Pure.

New ones go to the end: a migration's number is its place. One that must not be executed any more stays, as
a reason why. Imported late. Source: `startup-and-spec` reference, 7.2.
"""

from typing import Final

import msgspec
from psycopg import sql

INHERITANCE: Final = """\
DO $migration$
DECLARE
  role pg_catalog.name;
BEGIN
  FOR role IN
    SELECT r.rolname FROM pg_catalog.pg_roles r
    WHERE pg_catalog.pg_has_role(r.oid, {name}, 'MEMBER') AND NOT r.rolinherit
  LOOP
    RAISE NOTICE 'EXECUTING ALTER ROLE % INHERIT', pg_catalog.quote_ident(role);
    EXECUTE pg_catalog.format('ALTER ROLE %I INHERIT', role);
  END LOOP;
  FOR role IN
    SELECT r.rolname FROM pg_catalog.pg_roles r
    WHERE NOT pg_catalog.pg_has_role(r.oid, {name}, 'MEMBER') AND r.rolbypassrls
      AND NOT pg_catalog.starts_with(r.rolname, 'pg_')
  LOOP
    RAISE NOTICE 'EXECUTING ALTER ROLE % NOBYPASSRLS', pg_catalog.quote_ident(role);
    EXECUTE pg_catalog.format('ALTER ROLE %I NOBYPASSRLS', role);
  END LOOP;
END
$migration$"""
"""Superusers count as members of every role."""

SNAPSHOT_FUNCTIONS: Final = """\
GRANT EXECUTE ON FUNCTION pg_catalog.pg_export_snapshot() TO {role};
GRANT EXECUTE ON FUNCTION pg_catalog.pg_log_standby_snapshot() TO {role}"""

VISITED: Final = "default privileges are seen to in every database that is visited"


class Migration(msgspec.Struct, frozen=True):
    """One of them. The text's `{role}` is the privileged role, `{name}` the same as a text.

    A text that begins with `-- SKIP` is not executed, and neither is one on a server that is older than `since`.
    """

    text: str
    since: int = 0
    """As `server_version_num` has it; 0: every version that is supported."""


MIGRATIONS: Final = (
    Migration("ALTER ROLE {role} BYPASSRLS"),
    Migration(INHERITANCE),
    Migration("GRANT pg_create_subscription TO {role}", since=160000),
    Migration("GRANT pg_monitor TO {role} WITH ADMIN OPTION"),
    Migration(f"-- SKIP: {VISITED} (tables)"),
    Migration(f"-- SKIP: {VISITED} (sequences)"),
    Migration(f"-- SKIP: {VISITED} (tables, with grant option)"),
    Migration(f"-- SKIP: {VISITED} (sequences, with grant option)"),
    Migration("-- SKIP: roles keep REPLICATION"),
    Migration(SNAPSHOT_FUNCTIONS, since=160000),
    Migration("GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_replication_origin_status() TO {role}"),
    Migration("GRANT pg_signal_backend TO {role} WITH ADMIN OPTION"),
)
SKIP: Final = "-- SKIP"


class Step(msgspec.Struct, frozen=True):
    """A migration that is due: its number, and its text, or None with the reason why nothing is executed."""

    number: int
    text: str | None
    reason: str = ""


def due(done: int, server_version: int, privileged_role: str) -> tuple[Step, ...]:
    """Return what follows after the first `done` migrations; nothing when there are more than are known here."""
    return tuple(
        _step(number, migration, server_version, privileged_role)
        for number, migration in enumerate(MIGRATIONS, start=1)
        if number > done
    )


def _step(number: int, migration: Migration, server_version: int, privileged_role: str) -> Step:
    if migration.text.startswith(SKIP):
        return Step(number, None, migration.text.removeprefix(SKIP).lstrip(": "))
    if server_version < migration.since:
        return Step(number, None, f"it needs Postgres {migration.since // 10_000}")
    text = sql.SQL(migration.text).format(
        role=sql.Identifier(privileged_role), name=sql.Literal(privileged_role)
    )
    return Step(number, text.as_string(None))

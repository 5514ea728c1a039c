"""How each operation is said in SQL: through psycopg's composition only. Imported late.

Everything names its schema, or names what belongs to none, so that no `search_path` can change its meaning.
"""

from collections.abc import Iterable
from typing import Final, assert_never

from psycopg import sql

from ...messages.secret import Secret
from ...messages.spec import GenericOption
from . import operations as op

ORDINARY_ATTRIBUTES: Final = sql.SQL("INHERIT CREATEROLE CREATEDB BYPASSRLS REPLICATION IN ROLE {}")


def statements(operation: op.AnyOperation) -> tuple[sql.Composed, ...]:  # noqa: C901, PLR0911, PLR0912 - one case for each kind
    """Return the statements of an operation, to be run in this order in one transaction."""
    match operation:
        case op.CreatePrivilegedRole(name):
            return _one(
                "CREATE ROLE {} CREATEDB CREATEROLE NOLOGIN REPLICATION BYPASSRLS"
                " IN ROLE pg_read_all_data, pg_write_all_data",
                sql.Identifier(name),
            )
        case op.DropInvalidDatabase(name):
            return _one("DROP DATABASE IF EXISTS {}", sql.Identifier(name))
        case op.RenameRole(name, new_name):
            return _one("ALTER ROLE {} RENAME TO {}", sql.Identifier(name), sql.Identifier(new_name))
        case op.CreateRole(name, password, options, member_of):
            ordinary = () if member_of is None else (ORDINARY_ATTRIBUTES.format(sql.Identifier(member_of)),)
            clauses = (*ordinary, *_options(options), _login(password))
            return _one("CREATE ROLE {} {}", sql.Identifier(name), _joined(clauses))
        case op.AlterRole(name, password, options):
            clauses = (*_options(options), _login(password))
            return _one("ALTER ROLE {} {}", sql.Identifier(name), _joined(clauses))
        case op.ClearTemplateFlag(name):
            return _one("ALTER DATABASE {} IS_TEMPLATE false", sql.Identifier(name))
        case op.DropDatabase(name):
            return _one("DROP DATABASE IF EXISTS {} WITH (FORCE)", sql.Identifier(name))
        case op.RenameDatabase(name, new_name):
            return _one("ALTER DATABASE {} RENAME TO {}", sql.Identifier(name), sql.Identifier(new_name))
        case op.AlterDatabaseOwner(name, owner):
            return _one("ALTER DATABASE {} OWNER TO {}", sql.Identifier(name), sql.Identifier(owner))
        case op.CreateDatabase(name, owner, options):
            clauses = (*_options(options), sql.SQL("OWNER {}").format(sql.Identifier(owner)))
            return _one("CREATE DATABASE {} {}", sql.Identifier(name), _joined(clauses))
        case op.GrantDatabase(name, role):
            return _one(
                "GRANT ALL PRIVILEGES ON DATABASE {} TO {}", sql.Identifier(name), sql.Identifier(role)
            )
        case op.CreateSchema(name):
            return _one("CREATE SCHEMA IF NOT EXISTS {}", sql.Identifier(name))
        case op.DropRole(name):
            return _one("DROP ROLE IF EXISTS {}", sql.Identifier(name))
        case op.ReassignOwned(_, role, owner):
            return _one("REASSIGN OWNED BY {} TO {}", sql.Identifier(role), sql.Identifier(owner))
        case op.RevokeGrants(_, role, grantor, schema, target):
            return (
                *_one("SET ROLE {}", sql.Identifier(grantor)),
                *_one(
                    "REVOKE ALL PRIVILEGES ON {} {} FROM {} GRANTED BY {} CASCADE",
                    sql.SQL(target.value),
                    sql.Identifier(schema),
                    sql.Identifier(role),
                    sql.Identifier(grantor),
                ),
                *_one("RESET ROLE"),
            )
        case op.DropOwned(_, role):
            return _one("DROP OWNED BY {}", sql.Identifier(role))
        case op.SetPublicOwner(_, owner):
            return _one("ALTER SCHEMA public OWNER TO {}", sql.Identifier(owner))
        case op.GrantPublicToWebAccess():
            return _one("GRANT CREATE ON SCHEMA public TO web_access")
        case op.AlterDefaultPrivileges(_, role, target):
            return _one(
                "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON {} TO {} WITH GRANT OPTION",
                sql.SQL(target.value),
                sql.Identifier(role),
            )
        case _:
            assert_never(operation)


def _one(text: str, *parts: sql.Composable) -> tuple[sql.Composed]:
    return (sql.SQL(text).format(*parts),)


def _joined(clauses: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(" ").join(clauses)


def _login(password: Secret | None) -> sql.Composed:
    value = sql.SQL("NULL") if password is None else sql.Literal(password.reveal())
    return sql.SQL("LOGIN PASSWORD {}").format(value)


def _options(options: tuple[GenericOption, ...]) -> Iterable[sql.Composable]:
    """Return the clauses of a spec's options, whose words `desired.unusable_option` has checked."""
    for option in options:
        name = sql.SQL(option.name)  # letters and blanks only
        if option.value is None:
            yield name
        elif option.vartype == "string":
            yield sql.SQL("{} {}").format(name, sql.Literal(option.value))
        else:
            yield sql.SQL("{} {}").format(name, sql.SQL(option.value))  # words and numbers

"""How pg_dump is called: whatever a user has set up for a database, and whatever the database is called."""

from typing import Final

from ...postgres.target import Target, params

APPLICATION_NAME: Final = "compute_ctl:dump_schema"
COMMAND: Final = ("--schema-only", "--no-password", "--lock-wait-timeout=10s")
MAX_SAID: Final = 1_000
"""Characters of what pg_dump said that are repeated."""

_VARIABLES: Final = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "dbname": "PGDATABASE",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "sslmode": "PGSSLMODE",
    "gssencmode": "PGGSSENCMODE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}
"""What libpq knows our keywords by. Not the encoding: a dump is in that of its database."""


def environment(target: Target, database: str) -> dict[str, str]:
    """Return the variables that lead pg_dump to that database; there no name is taken for an option or a URL."""
    keywords = params(target, application_name=APPLICATION_NAME, dbname=database)
    return {_VARIABLES[name]: value for name, value in keywords.items() if name in _VARIABLES} | {
        "LC_MESSAGES": "C"
    }

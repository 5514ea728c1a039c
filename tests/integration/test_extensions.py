"""Installed extensions of real Postgres."""

import psycopg
import pytest
from compute_node.actors.configurator.collecting import installed_extensions
from compute_node.actors.configurator.extensions import summary
from compute_node.actors.configurator.port import AdministrationError
from compute_node.actors.kit.jobs import Cancellation
from compute_node.postgres.binaries import Binaries

from fix_postgres import Cluster, MakeCluster, Ports

pytestmark = pytest.mark.slow


def look(postgres: Cluster) -> dict[tuple[str, str], int]:
    """Return how many databases have an extension, by its name and whether the superuser of initdb owns it."""
    found = summary(installed_extensions(postgres.connstr, Cancellation()))
    return {(one.extname, one.owned_by_superuser): one.n_databases for one in found}


def not_utf8(postgres: Cluster) -> None:
    """Make a database whose name is no UTF-8."""
    postgres.query("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    with psycopg.connect(
        host="localhost",
        port=postgres.port,
        user="cloud_admin",
        dbname="ascii",
        client_encoding="SQL_ASCII",
        autocommit=True,
    ) as session:
        session.execute(b'CREATE DATABASE "\xff"')
    postgres.query("DROP DATABASE ascii")


def test_all_databases_that_can_be_looked_into_count(
    binaries: Binaries, cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    postgres = cluster(binaries)
    postgres.query("CREATE ROLE app")
    for name in ("mine", "closed", "invalid", "broken", "o\"dd 'name'"):
        quoted = name.replace('"', '""')
        postgres.query(f'CREATE DATABASE "{quoted}" OWNER app')
    postgres.query("UPDATE pg_database SET datallowconn = false WHERE datname = 'closed'")
    postgres.query("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'invalid'")
    ((oid,),) = postgres.query("SELECT oid FROM pg_database WHERE datname = 'broken'")
    (postgres.pgdata / "base" / str(oid) / "PG_VERSION").unlink()
    postgres.query("ALTER DATABASE mine SET session_preload_libraries = 'not_there'")
    postgres.query("ALTER DATABASE mine SET search_path = nowhere")
    postgres.query("ALTER DATABASE mine SET statement_timeout = 1")
    not_utf8(postgres)
    assert look(postgres) == {("plpgsql", "1"): 4}
    warning = '1 of 5 databases are left out of the installed extensions; the first one is "broken": '
    assert warning in caplog.text
    assert "PG_VERSION" in caplog.text

    postgres.query("ALTER DATABASE mine RESET session_preload_libraries")
    postgres.query("CREATE EXTENSION hstore", dbname="postgres")
    postgres.query("SET ROLE app; CREATE EXTENSION hstore SCHEMA public", dbname="mine")
    postgres.query("DROP EXTENSION plpgsql", dbname="mine")
    assert look(postgres) == {("hstore", "0"): 1, ("hstore", "1"): 1, ("plpgsql", "1"): 3}


def test_a_postgres_that_is_not_there_is_told_in_one_line(free_port: Ports) -> None:
    url = f"postgresql://cloud_admin@localhost:{free_port()}/postgres"
    with pytest.raises(AdministrationError, match="refused") as told:
        installed_extensions(url, Cancellation())
    assert "\n" not in str(told.value)

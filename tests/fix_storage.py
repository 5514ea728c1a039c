"""Neon's storage for whole nodes: a pageserver over a real cluster, and specs of nodes that live on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from compute_node.postgres.binaries import Binaries

from doubles.archives import compressed, of_cluster
from doubles.pageserver import Pageserver, pageserver
from fix_node import setting, spec
from fix_postgres import Templates

TENANT, TIMELINE = "a" * 32, "b" * 32
NO_CANARY: Final = "token-that-postgres-is-told"
"""Postgres itself needs it for the storage, in its environment."""


@pytest.fixture(scope="session")
def archive15(templates: Templates, binaries15: Binaries) -> bytes:
    """A real cluster, as a pageserver would send it."""
    return compressed(of_cluster(templates.get(binaries15)), 1)


@pytest.fixture
def storage(archive15: bytes) -> Iterator[Pageserver]:
    """A pageserver that serves it."""
    with pageserver(archive15, tenant_id=TENANT, timeline_id=TIMELINE, password=NO_CANARY) as made:
        yield made


@pytest.fixture
def sockets(postgres_folder: Path) -> Path:
    """Where such a node is to put its sockets."""
    return postgres_folder


def stored(server: Pageserver, port: int, sockets: Path, **changes: Any) -> dict[str, Any]:
    """The spec of a node of that branch, with where it is to listen."""
    document = spec(tenant_id=TENANT, timeline_id=TIMELINE, pageserver_connstring=server.url)
    document["cluster"]["settings"] += [
        setting("port", str(port), "integer"),
        setting("listen_addresses", "localhost"),
        setting("unix_socket_directories", str(sockets)),
        setting("max_connections", "100", "integer"),
    ]
    return document | {"storage_auth_token": NO_CANARY} | changes

"""Every test of this folder may use real Postgres, and leaves nothing behind."""

import pytest

from fix_node import make_node
from fix_postgres import (
    account,
    binaries,
    binaries15,
    binaries17,
    cluster,
    free_port,
    nothing_is_left,
    own_shared_memory,
    postgres_folder,
    scratch,
    templates,
    temporary,
)
from fix_process import make_process, mount_point
from fix_storage import archive15, sockets, storage

__all__ = [
    "account",
    "archive15",
    "binaries",
    "binaries15",
    "binaries17",
    "cluster",
    "free_port",
    "make_node",
    "make_process",
    "mount_point",
    "nothing_is_left",
    "own_shared_memory",
    "postgres_folder",
    "scratch",
    "sockets",
    "storage",
    "templates",
    "temporary",
]


@pytest.fixture(autouse=True)
def clean_house(nothing_is_left: None) -> None:
    """Check after each test that no process, port, temporary folder or shared memory of ours is left."""

"""What `global/pg_control` says: whether the cluster was shut down in order, and what a standby of it needs."""

import re
import struct
from enum import IntEnum
from pathlib import Path
from typing import Final

_HEAD: Final = struct.Struct("=QIIi")
"""System identifier, version of the control file, version of the catalog, state: alike in 14 to 18."""


class ClusterState(IntEnum):
    """DBState of pg_control.h."""

    STARTING_UP = 0
    SHUT_DOWN = 1
    SHUT_DOWN_IN_RECOVERY = 2
    SHUTTING_DOWN = 3
    IN_CRASH_RECOVERY = 4
    IN_ARCHIVE_RECOVERY = 5
    IN_PRODUCTION = 6

    @property
    def is_clean(self) -> bool:
        """Whether the next start has nothing to recover."""
        return self in {ClusterState.SHUT_DOWN, ClusterState.SHUT_DOWN_IN_RECOVERY}


def read_state(pgdata: str) -> ClusterState | None:
    """Return the state of a cluster; None when it cannot be told."""
    try:
        return ClusterState(_head(pgdata)[3])
    except (OSError, struct.error, ValueError):
        return None


def system_identifier(pgdata: str) -> int:
    """Return what a cluster and all copies of it have in common. Raises OSError, struct.error."""
    return int(_head(pgdata)[0])


def _head(pgdata: str) -> tuple[int, ...]:
    with Path(pgdata, "global", "pg_control").open("rb") as file:
        return _HEAD.unpack(file.read(_HEAD.size))


_NEEDED: Final = {
    "max_connections": "max_connections",
    "max_worker_processes": "max_worker_processes",
    "max_wal_senders": "max_wal_senders",
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}
"""What pg_controldata calls the settings of which a hot standby needs as much as its primary has."""


def at_least(controldata: str) -> tuple[tuple[str, int], ...]:
    """Return those settings with the primary's values, from what pg_controldata (in English) has printed."""
    found = dict(re.findall(r"^(max_\w+) setting: +(\d+)$", controldata, re.MULTILINE))
    return tuple((setting, int(found[name])) for name, setting in _NEEDED.items() if name in found)

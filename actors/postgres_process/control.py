"""The first bytes of `global/pg_control`: whether the cluster was shut down in order."""

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
        with Path(pgdata, "global", "pg_control").open("rb") as file:
            data = file.read(_HEAD.size)
        return ClusterState(_HEAD.unpack(data)[3])
    except (OSError, struct.error, ValueError):
        return None

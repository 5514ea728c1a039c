"""How many databases are visited at the same time. Pure."""

import re
from typing import Final

from ...messages.spec import ComputeSpec

UNKNOWN_LIMIT: Final = 10
SHARE: Final = 3
"""At the start, one third of a large server's connections."""
SMALL: Final = 10
LARGE: Final = 30
MOST: Final = 100
RESERVED: Final = 3
"""Kept free for the maintenance connection, the monitor and a person."""
DESCRIPTORS_PER_VISIT: Final = 4

_CONF_LINE: Final = re.compile(r"^[ \t]*max_connections[ \t]*=[ \t]*(\d+)[ \t]*$", re.MULTILINE | re.ASCII)
_UNSIGNED: Final = re.compile(r"\d+", re.ASCII)


def described_max_connections(spec: ComputeSpec) -> int | None:
    """Return what the spec says of `max_connections`: its setting, else its conf text, else None."""
    if any(setting.name == "max_connections" for setting in spec.cluster.settings or ()):
        value = spec.cluster.setting("max_connections")
        return int(value) if value is not None and _UNSIGNED.fullmatch(value) else None
    found = _CONF_LINE.search(spec.cluster.postgresql_conf or "")
    return None if found is None else int(found[1])


def visit_limit(spec: ComputeSpec, *, starting: bool, max_connections: int, descriptors: int) -> int:
    """Return how many databases may be visited at a time: at least 1, and less than the server can take.

    `max_connections` is the server's own, `descriptors` how many this process may have (-1: unlimited).
    """
    if starting:
        described = described_max_connections(spec)
        if described is None:
            wanted = UNKNOWN_LIMIT
        elif described < LARGE:
            wanted = min(described, SMALL)
        else:
            wanted = described // SHARE
    else:
        wanted = spec.reconfigure_concurrency
    possible = MOST if descriptors < 0 else descriptors // DESCRIPTORS_PER_VISIT
    return max(1, min(wanted, MOST, max_connections - RESERVED, possible))

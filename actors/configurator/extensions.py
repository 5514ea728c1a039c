"""Which extensions are installed: how often to look, and what is said of what was found. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from ...messages.settings import DEFAULT_COLLECTION_INTERVAL_S

BOOTSTRAP_OID: Final = 10
"""Of the superuser that initdb made."""


class Extension(msgspec.Struct, frozen=True):
    """A version of an extension in one database."""

    name: str
    version: str
    owner: int
    """The oid of its owner."""


class InstalledExtension(msgspec.Struct, frozen=True):
    """A version of an extension; `n_databases` have it. The fields are those of the log line."""

    extname: str
    version: str
    n_databases: int
    owned_by_superuser: str
    """`1` when the owner is the bootstrap superuser, else `0`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its sample in `compute_installed_extensions`."""
        return self.extname, self.version, self.owned_by_superuser


class _Statistics(msgspec.Struct, frozen=True):
    extensions: tuple[InstalledExtension, ...]


def summary(found: Iterable[Extension]) -> tuple[InstalledExtension, ...]:
    """Count the databases of each version, sorted by name; an extension is in a database once at most."""
    counts = Counter((one.name, one.version, "1" if one.owner == BOOTSTRAP_OID else "0") for one in found)
    return tuple(
        InstalledExtension(name, version, counts[name, version, owned], owned)
        for name, version, owned in sorted(counts)
    )


def log_line(extensions: tuple[InstalledExtension, ...]) -> str:
    """Return the line that tools look for."""
    return f"[NEON_EXT_STAT] {msgspec.json.encode(_Statistics(extensions)).decode()}"


def interval_s(wanted_s: int) -> int:
    """Return half of the time between two collections; what is not above 0 stands for the default."""
    return wanted_s if wanted_s > 0 else DEFAULT_COLLECTION_INTERVAL_S


def period_s(interval: int, before_s: int = 0) -> int:
    """Return the time between two collections: it never gets shorter, so that a node that may be suspended is."""
    return max(before_s, 2 * interval)

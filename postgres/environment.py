"""What programs of Postgres get of our environment. Pure."""

from collections.abc import Mapping
from typing import Final

ALLOWED: Final = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "TZDIR", "TMPDIR"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_CONF"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF", "KRB5_CONFIG", "KRB5_KTNAME"),
        *("ICU_DATA", "PROJ_DATA", "PROJ_LIB", "GDAL_DATA"),
    }
)
"""What Postgres and its extensions may see of our environment; SQL users can read all of it."""
ALLOWED_PREFIX: Final = "LC_"


def allowed(ours: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may be passed on."""
    return {name: value for name, value in ours.items() if name in ALLOWED or name.startswith(ALLOWED_PREFIX)}

"""What a pageserver's error means: does another attempt help? Pure.

Most errors bear the SQLSTATE XX000, so that the text has to tell (`protocols` reference, 2.2 and 2.3).
"""

import re
from typing import Final

from . import SourceError

_PERMANENT_STATES: Final = ("28", "42", "0A")
"""Classes of SQLSTATE: authorization, a command that is not understood, or not supported."""
_PERMANENT_CODES: Final = frozenset(
    {
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "NOT_FOUND",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
    }
)
"""Of gRPC."""
_PERMANENT: Final = re.compile(
    r"JWT|authenticat|authoriz|permission denied|no password supplied|Tenant id mismatch"
    r"|\bnot found\b|archived"
    r"|invalid basebackup lsn|GC cutoff|GC horizon|invalid LSN"
    r"|must connect with TLS|neither a URL nor|invalid connection option|invalid port number|unsupported protocol",
    re.IGNORECASE,
)
_PASSING: Final = re.compile(
    r"shutting down|timed? ?out|temporar|try again|not active|loading|cut off|expected authentication request",
    re.IGNORECASE,
)
"""Wins over the one before: a server says so of itself, or somebody else has answered in its place."""


def is_passing(text: str, code: str | None = None) -> bool:
    """Judge by an error's text and code (SQLSTATE, or the name of a gRPC status) whether to try again."""
    if code in _PERMANENT_CODES:
        return False
    if _PASSING.search(text) is not None:
        return True
    return not (code is not None and code.startswith(_PERMANENT_STATES)) and _PERMANENT.search(text) is None


class PageserverError(SourceError):
    """A pageserver gave no base backup; `code` is the SQLSTATE, or the name of a gRPC status."""

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text, passing=is_passing(text, code))
        self.code = code

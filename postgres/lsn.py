"""Positions in the write-ahead log: two hexadecimal 32-bit halves as text, one number inside."""

import re
from typing import Final

_LSN: Final = re.compile(r"0*([0-9a-fA-F]{1,8})/0*([0-9a-fA-F]{1,8})")


def parse_lsn(text: str) -> int:
    """Read `0/169AD58`, in either case and with white space around it. Raises ValueError."""
    found = _LSN.fullmatch(text.strip())
    if found is None:
        msg = f"{text[:80]!r} is not an LSN such as 0/169AD58"
        raise ValueError(msg)
    return int(found[1], 16) << 32 | int(found[2], 16)


def show_lsn(lsn: int) -> str:
    """Write an LSN as Postgres and Neon do: upper case, no leading zeros."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"

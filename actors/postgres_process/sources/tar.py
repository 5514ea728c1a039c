"""The headers of a tar archive, read strictly: pure. Regular files and folders below the root, and nothing else.

Of the standard library's reader nothing is used: in a stream it takes a cut at a member's boundary or in a header,
garbage after a member, or an archive of zeros for a good end (cpython#120740, #84934, #80777).
"""

import re
from enum import Enum
from typing import Final, NoReturn

import msgspec

from . import SourceError

BLOCK: Final = 512
"""An archive is a sequence of blocks: headers, content padded to whole blocks, and two blocks of zeros at the end."""
END: Final = bytes(BLOCK)
MAX_NAME: Final = 255
"""Bytes of one part of a path."""
MAX_DEPTH: Final = 16

_CHECKSUM: Final = slice(148, 156)
_BLANKS: Final = 8 * ord(" ")
_MAGIC: Final = (b"ustar\x0000", b"ustar  \x00", bytes(8))
_OCTAL: Final = re.compile(rb"[ \0]*([0-7]+)[ \0]*")
_FILES: Final = (b"0", b"\0")
_FOLDER: Final = b"5"
_FORBIDDEN: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"7": "a contiguous file",
    b"L": "a record for a long name",
    b"K": "a record for a long link",
    b"S": "a sparse file",
    b"x": "an extended header",
    b"g": "a global extended header",
}


class ArchiveError(SourceError):
    """The archive is not one that a data directory can come from."""


class Kind(Enum):
    """What an entry is."""

    FILE = "file"
    FOLDER = "folder"


class Entry(msgspec.Struct, frozen=True):
    """One entry; `path` is relative and clean, empty for the root itself."""

    path: bytes
    kind: Kind
    size: int = 0


def damaged(what: str) -> NoReturn:
    """Raise ArchiveError: the archive did not arrive as it was sent; the next one may."""
    msg = f"the archive is damaged: {what}"
    raise ArchiveError(msg, passing=True)


def forbidden(what: str) -> NoReturn:
    """Raise ArchiveError: the archive holds what none may; the next one would, too."""
    msg = f"the archive is refused: {what}"
    raise ArchiveError(msg)


def read_header(block: bytes) -> Entry:
    """Read the header of an entry, of old, ustar or GNU form. Raises ArchiveError."""
    found = _OCTAL.fullmatch(block[_CHECKSUM])
    if found is None or int(found[1], 8) != sum(block) - sum(block[_CHECKSUM]) + _BLANKS:
        damaged("a header's checksum is wrong")
    magic = block[257:265]
    if magic not in _MAGIC:
        forbidden(f"a header is of an unknown form ({magic!r})")
    name = _text(block[:100])
    if magic == _MAGIC[0] and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    kind = block[156:157]
    if (other := _FORBIDDEN.get(kind)) is not None:
        forbidden(f"{name!r} is {other}")
    path = clean(name)
    if kind == _FOLDER:
        return Entry(path, Kind.FOLDER)
    if kind not in _FILES:
        forbidden(f"{name!r} is of an unknown kind ({kind!r})")
    if not path or name.endswith(b"/"):
        forbidden(f"{name!r} is not the name of a file")
    size = _OCTAL.fullmatch(block[124:136])
    if size is None:
        forbidden(f"the size of {name!r} is not a number ({block[124:136]!r})")
    return Entry(path, Kind.FILE, int(size[1], 8))


def clean(name: bytes) -> bytes:
    """Return the path below the root that a name means; empty for the root. Raises ArchiveError."""
    path = name.removeprefix(b"./").removesuffix(b"/")
    if not path or path == b".":
        if name in {b".", b"./"}:
            return b""
        forbidden(f"{name!r} is not a path below the root")
    parts = path.split(b"/")
    if any(part in {b"", b".", b".."} for part in parts):
        forbidden(f"{name!r} is not a path below the root")
    if len(parts) > MAX_DEPTH or max(map(len, parts)) > MAX_NAME:
        forbidden(f"{name[:MAX_NAME]!r} is too long")
    return path


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]

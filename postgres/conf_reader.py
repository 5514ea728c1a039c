"""Reads configuration text as Postgres does (guc-file.l), as far as one text without its includes goes."""

import re
from typing import Final

import msgspec

_LETTER: Final = r"[^\x00-@\[-^`{-\x7f]"
"""A to Z, a to z, `_`, and all beyond ASCII; said this way it takes microseconds to compile, not 40 ms."""
_ID: Final = rf"{_LETTER}(?:{_LETTER}|[0-9])*"
_NAME: Final = rf"{_ID}(?:\.{_ID})?"
_QUOTED: Final = r"'(?:[^'\\\n]|\\[^\n]|'')*'"
_NUMBER: Final = r"[-+]?(?:0x[0-9a-fA-F]+|[0-9]+)[A-Za-z]*|[-+]?[0-9]*\.[0-9]*(?:[eE][-+]?[0-9]+)?"
_UNQUOTED: Final = rf"(?!{_ID}\.{_ID}(?:[ \t\r#]|\Z)){_LETTER}(?:{_LETTER}|[0-9]|[-._:/])*"
"""One dot between two names makes a name of it, which is no value."""
_BLANK: Final = r"[ \t\r]*"

_LINE: Final = re.compile(
    rf"{_BLANK}({_NAME})(?=[ \t\r='+]){_BLANK}(?:={_BLANK})?(?:({_QUOTED})|({_NUMBER}|{_UNQUOTED})){_BLANK}(?:#[^\n]*)?"
)
_SETTING_NAME: Final = re.compile(_NAME)
_ESCAPE: Final = re.compile(r"''|\\([0-7]{1,3}|.)", re.DOTALL)
_MAX_CONNECTIONS: Final = re.compile(r"[ \t]*max_connections[ \t]*=[ \t]*([0-9]+)[ \t\r]*")

_LETTER_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Entry(msgspec.Struct, frozen=True):
    """One setting of a configuration text; `value` is unquoted, `line` counts from 1."""

    line: int
    name: str
    value: str


def read(text: str) -> tuple[Entry, ...]:
    """Return the settings in their order; lines that Postgres would refuse are passed over."""
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if (found := _LINE.fullmatch(line)) is not None:
            name, quoted, bare = found.groups()
            entries.append(Entry(number, name, unquote(quoted) if quoted is not None else bare))
    return tuple(entries)


def effective(entries: tuple[Entry, ...], name: str) -> str | None:
    """Return the value that counts, the last one; names are compared as Postgres does."""
    return next((e.value for e in reversed(entries) if e.name.lower() == name.lower()), None)


def is_setting_name(name: str) -> bool:
    """Tell whether Postgres would read this as one name of a setting."""
    return _SETTING_NAME.fullmatch(name) is not None


def unquote(quoted: str) -> str:
    """Return what Postgres makes of a quoted value, quotes included in the argument."""
    return _ESCAPE.sub(_unescape, quoted[1:-1])


def plain_max_connections(text: str) -> int | None:
    """Return the first unquoted `max_connections = <digits>` of a text; None without one."""
    found = next((m for line in text.split("\n") if (m := _MAX_CONNECTIONS.fullmatch(line))), None)
    return int(found[1]) if found else None


def split_libraries(value: str) -> tuple[str, ...]:
    """Split a list such as that of `shared_preload_libraries`; elements may be in double quotes.

    Raises ValueError when Postgres could not read it either.
    """
    if not value.strip():
        return ()
    libraries, rest = [], value
    while True:
        rest = rest.strip()
        if rest.startswith('"'):
            if (found := re.match(r'"((?:[^"]|"")*)"', rest)) is None:
                msg = "a double quote is not closed"
                raise ValueError(msg)
            name, rest = found[1].replace('""', '"'), rest[found.end() :].lstrip()
            if rest and not rest.startswith(","):
                msg = "a comma is missing"
                raise ValueError(msg)
        else:
            name = rest.partition(",")[0].rstrip()
            rest = rest[len(rest.partition(",")[0]) :]
        if not name:
            msg = "an element is empty"
            raise ValueError(msg)
        libraries.append(name)
        if not rest:
            return tuple(libraries)
        rest = rest[1:]


def join_libraries(libraries: tuple[str, ...]) -> str:
    """Write such a list, quoting the elements that need it."""
    return ",".join(
        '"' + name.replace('"', '""') + '"' if re.search(r'[",\s]', name) else name for name in libraries
    )


def _unescape(found: re.Match[str]) -> str:
    after = found[1]
    if after is None:
        return "'"
    if after[0] in "01234567":
        return chr(int(after, 8) & 0xFF)
    return _LETTER_ESCAPES.get(after, after)

"""Failures as a client sees them: one shape, `{"error": "<text>"}`, and nothing of our inside."""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

QUOTED: Final = re.compile(r"(`[^`]*`|'[^']*'|\"[^\"]*\")")
_SHORT_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error."""

    error: str


class ApiError(Exception):
    """Ends a request with this status and text; `headers` are added to the response."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = dict(headers or {})


def escaped(text: str) -> str:
    """Escape a text as the counterpart does inside double quotes (Rust's `{:?}`), without the quotes."""
    return "".join(
        _SHORT_ESCAPES.get(char) or (char if char.isprintable() else f"\\u{{{ord(char):x}}}") for char in text
    )


def lowered(text: str) -> str:
    """Lower-case a parser's message, but for what it quotes: names and paths keep their case."""
    return "".join(part if QUOTED.fullmatch(part) else part.lower() for part in QUOTED.split(text))

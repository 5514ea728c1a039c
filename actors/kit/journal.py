"""The last messages of all actors, for whoever asks what just happened."""

import itertools
from collections import deque
from typing import Final

import msgspec

from ...messages.base import Message, redacted
from ...messages.lifecycle import JournalEntry

CAPACITY: Final = 512
"""Entries kept; older ones go."""
MAX_CONTENT: Final = 2_000
"""Bytes of a message's JSON that are shown; longer ones show their type only."""


class Journal:
    """A bounded ring of handled messages; written by every actor, rendered only when read."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._entries: deque[tuple[int, float, str, Message, float]] = deque(maxlen=capacity)
        self._numbers = itertools.count(1)

    def record(self, at_s: float, actor: str, message: Message, took_s: float) -> None:
        """Remember one handled message; costs no rendering."""
        self._entries.append((next(self._numbers), at_s, actor, message, took_s))

    def read(self) -> tuple[JournalEntry, ...]:
        """Return what is remembered, oldest first, with secrets masked."""
        return tuple(
            JournalEntry(
                number=number,
                at_s=round(at_s, 6),
                actor=actor,
                message=type(message).__name__,
                took_ms=round(took_s * 1000, 3),
                content=_content(message),
            )
            for number, at_s, actor, message, took_s in tuple(self._entries)
        )


def _content(message: Message) -> msgspec.Raw:
    try:
        data = redacted(message)
    except Exception as error:  # noqa: BLE001 - whatever a message holds, the others are still shown
        return msgspec.Raw(msgspec.json.encode(f"(cannot be shown: {type(error).__name__})"))
    return msgspec.Raw(data if len(data) <= MAX_CONTENT else b'"(too long to show)"')

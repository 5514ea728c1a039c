"""A bounded stream of bytes from a job to the edge: the one thing in a message that is no data.

What is too large for a message (a dump) flows through it. The edge makes it and puts it into its request; the
job writes, and waits while the edge does not read.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from typing_extensions import override

CAPACITY: Final = 256 * 1024
"""Bytes that are on their way at most, and one piece more."""


class StreamClosedError(Exception):
    """Nobody reads any more."""


class StreamBrokenError(Exception):
    """What came is not all there is, and no more will come; the text says why."""


class ByteStream:
    """Pieces of bytes in their order, then an end or a failure. For one writer and one reader."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._failure: str | None = None
        self._closed = False
        self._on_close: Callable[[], None] | None = None

    @override
    def __repr__(self) -> str:
        return "ByteStream()"

    # --- For the writer

    def write(self, data: bytes, timeout: float) -> bool:
        """Add a piece once there is room; False when there was none for that long.

        Raises StreamClosedError when the reader has left, or when the stream has failed meanwhile.
        """
        with self._changed:
            there_is_room = self._changed.wait_for(
                lambda: self._size < self._capacity or self._closed or self._failure is not None, timeout
            )
            if self._closed or self._failure is not None:
                raise StreamClosedError
            if there_is_room and data:
                self._pieces.append(data)
                self._size += len(data)
                self._changed.notify_all()
            return there_is_room

    def end(self) -> None:
        """Say that this was all."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """Say that no more will come although there is more; what is on its way is dropped. Never blocks."""
        with self._changed:
            if not self._ended and self._failure is None:
                self._failure = reason
                self._drop()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call this when the reader leaves, at once if it has; on its thread, and it must not block."""
        with self._changed:
            self._on_close = callback
            if not self._closed:
                return
        callback()

    @property
    def closed(self) -> bool:
        """Whether the reader has left."""
        return self._closed

    # --- For the reader

    def read(self, timeout: float) -> bytes | None:
        """Return the next piece; nothing (b"") at the end, None when none came for that long.

        Raises StreamBrokenError.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended or self._failure is not None, timeout)
            if self._failure is not None:
                raise StreamBrokenError(self._failure)
            if self._pieces:
                data = self._pieces.popleft()
                self._size -= len(data)
                self._changed.notify_all()
                return data
            return b"" if self._ended else None

    def close(self) -> None:
        """Leave; the writer learns it at once."""
        with self._changed:
            callback = None if self._closed else self._on_close
            self._closed = True
            self._drop()
        if callback is not None:
            callback()

    def _drop(self) -> None:
        self._pieces.clear()
        self._size = 0
        self._changed.notify_all()

"""What Postgres writes: cut into messages by a pure framer, handed on by a pump that waits for nobody."""

import logging
import math
import os
import re
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from ...postgres.masking import mask_server_words
from ..kit.jobs import Cancellation
from ..kit.wake import Wake
from .disk import is_about_space

MAX_MESSAGE: Final = 65_536
"""Bytes of one message. A line that alone is longer is cut, a message of many lines is divided."""
SILENCE_S: Final = 0.1
"""After this long without output the message so far is complete."""
LAST_MESSAGES: Final = 20
SPACE_REPORT_S: Final = 1.0
JOINT: Final = "\u200b"
"""Stands for the newlines within a message: a zero-width space."""

_CHUNK: Final = 65_536
_BEGINNING: Final = re.compile(rb"\d+-\d{2}-\d{2} \d{2}:\d{2}:\d{2}")

log = logging.getLogger("postgres")


class Framer:
    """Bytes in, whole messages out; however the bytes are divided, the messages are the same.

    A message begins at a line that begins with a timestamp. Bytes that are not UTF-8 are replaced.
    """

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max = max_message
        self._line = bytearray()
        self._cut = 0
        """Bytes of the current line beyond the limit."""
        self._lines: list[bytes] = []
        self._size = 0

    @property
    def holds_message(self) -> bool:
        """Whether `flush` would return something."""
        return bool(self._lines)

    def feed(self, data: bytes) -> list[str]:
        """Take what was read; return the messages that are complete now."""
        messages: list[str] = []
        parts = data.split(b"\n")
        for part in parts[:-1]:
            self._extend(part)
            self._end_line(messages)
        self._extend(parts[-1])
        return messages

    def flush(self) -> list[str]:
        """Return the message so far; a line without its end stays."""
        if not self._lines:
            return []
        message = b"\n".join(self._lines).decode(errors="replace").replace("\n", JOINT)
        self._lines, self._size = [], 0
        return [message]

    def finish(self) -> list[str]:
        """Return all that is left, at the end of the output."""
        messages: list[str] = []
        if self._line or self._cut:
            self._end_line(messages)
        return messages + self.flush()

    def _extend(self, part: bytes) -> None:
        room = max(0, self._max - len(self._line))
        self._line += part[:room]
        self._cut += len(part) - len(part[:room])

    def _end_line(self, messages: list[str]) -> None:
        line = bytes(self._line)
        if self._cut:
            line += f" [{self._cut} bytes cut off]".encode()
        self._line.clear()
        self._cut = 0
        if _BEGINNING.match(line) or self._size + len(line) > self._max:
            messages += self.flush()
        self._lines.append(line)
        self._size += len(line)


class Pump:
    """Reads one pipe until its end and hands each message to the log; one for each postmaster."""

    def __init__(self, emit: Callable[[str], None] | None = None) -> None:
        self._emit = emit or show
        self._given = threading.Condition()
        self._pipe: int | None = None
        self._refused = False
        self._last: deque[str] = deque(maxlen=LAST_MESSAGES)
        self.reading = threading.Event()
        """Set once somebody reads, or would at once."""
        self.ended = threading.Event()
        """Set when all that was written has been read."""

    @property
    def last_messages(self) -> tuple[str, ...]:
        """What was said last, oldest first."""
        return tuple(self._last)

    def open(self, timeout_s: float) -> int | None:
        """Return the end of a new pipe to write to, once there is a reader; None when none came in time."""
        if not self.reading.wait(timeout_s):
            return None
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        with self._given:
            if self._refused:
                os.close(reader)
                os.close(writer)
                return None
            self._pipe = reader
            self._given.notify_all()
        return writer

    def run(self, no_space: Callable[[], None], cancellation: Cancellation) -> None:
        """Read until every writer is gone, or until asked to end; then what is there already is read still.

        `no_space` is called when a message tells of a full disk, at most once in SPACE_REPORT_S.
        """
        cancellation.on_request(self._stop_waiting)
        self.reading.set()
        with self._given:
            self._given.wait_for(lambda: self._pipe is not None or self._refused)
            self._refused = True  # one pipe is all it takes
            pipe = self._pipe
        try:
            if pipe is not None:
                self._drain(pipe, no_space, cancellation)
        finally:
            if pipe is not None:
                os.close(pipe)
            self.ended.set()

    def _stop_waiting(self) -> None:
        with self._given:
            self._refused = True
            self._given.notify_all()

    def _drain(self, pipe: int, no_space: Callable[[], None], cancellation: Cancellation) -> None:
        framer = Framer()
        told_s = -math.inf

        def hand_on(messages: list[str]) -> None:
            nonlocal told_s
            for message in map(mask_server_words, messages):
                self._last.append(message)
                self._emit(message)
                if is_about_space(message) and cancellation.now() - told_s >= SPACE_REPORT_S:
                    told_s = cancellation.now()
                    no_space()

        wake = Wake(cancellation)
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        poll.register(wake.descriptor, select.POLLIN)
        try:
            while True:
                ready = {
                    descriptor
                    for descriptor, _ in poll.poll(SILENCE_S * 1000 if framer.holds_message else None)
                }
                if pipe in ready:
                    data = _read(pipe)
                    if not data:
                        break
                    hand_on(framer.feed(data))
                elif wake.descriptor in ready:
                    break
                else:
                    hand_on(framer.flush())
        finally:
            wake.close()
            hand_on(framer.finish())


def _read(pipe: int) -> bytes:
    return os.read(pipe, _CHUNK)


def show(message: str) -> None:
    """Write a message of Postgres into the log."""
    log.info("PG:%s", message)

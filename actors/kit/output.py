"""What a program says: kept, handed on as it comes, or poured into a stream."""

import contextlib
import os
import select
import subprocess
from collections.abc import Callable
from typing import Final

from ...messages.stream import ByteStream
from .wake import Wake

MAX_OUTPUT: Final = 65_536
"""Bytes of output that are kept: the last ones."""
_AFTER_EXIT_S: Final = 1.0
"""How long what a program has left behind may go on before it is killed, too."""
_CHUNK: Final = 65_536


def read(
    process: subprocess.Popen[bytes],
    wake: Wake | None,
    timeout_s: float,
    now: Callable[[], float],
    heard: Callable[[bytes], None] | None = None,
    said: Callable[[bytes], None] | None = None,
) -> tuple[bool, bytes]:
    """Read until all writers are gone (True), or until woken or out of time, or a while after its own end (False)."""
    assert process.stdout is not None  # noqa: S101 - it was made with a pipe
    pipe = process.stdout.fileno()
    ears = {pipe: heard}
    if said is not None and process.stderr is not None:
        ears[process.stderr.fileno()] = said
    opened = set(ears)
    wakes = () if wake is None else (wake.descriptor,)
    poll = select.poll()
    output = b""
    with contextlib.ExitStack() as stack:
        own = os.pidfd_open(process.pid)
        stack.callback(os.close, own)
        for descriptor in (*opened, *wakes, own):
            poll.register(descriptor, select.POLLIN)
        deadline, last = now() + timeout_s, float("inf")
        while opened and (left_s := min(deadline, last) - now()) > 0:
            ready = {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
            if ready.intersection(wakes):
                return False, output
            if own in ready:
                poll.unregister(own)
                last = now() + _AFTER_EXIT_S
            for descriptor in opened & ready:
                data = os.read(descriptor, _CHUNK)
                if not data:
                    poll.unregister(descriptor)
                    opened.discard(descriptor)
                elif descriptor == pipe:
                    output = (output + data)[-2 * MAX_OUTPUT :]
                    deadline = deadline if heard is None else now() + timeout_s
                if data and (ear := ears[descriptor]) is not None:
                    ear(data)
    return not opened, output


class Pouring:
    """Moves stdout of a process into a stream, and keeps the end of stderr."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        into: ByteStream,
        poured: Callable[[int], None],
        wake: Wake,
        timeout_s: float,
        now: Callable[[], float],
    ) -> None:
        assert process.stdout is not None  # noqa: S101 - it was made with pipes
        assert process.stderr is not None  # noqa: S101 - as above
        self.said = b""
        self._output = process.stdout.fileno()
        self._errors = process.stderr.fileno()
        self._into = into
        self._poured = poured
        self._wake = wake
        self._now = now
        self._deadline = now() + timeout_s

    def run(self) -> bool:
        """Go on until all writers are gone (True), or until woken or out of time. Raises StreamClosedError."""
        poll = select.poll()
        opened = {self._output, self._errors}
        for descriptor in (*opened, self._wake.descriptor):
            poll.register(descriptor, select.POLLIN)
        while opened and (left_s := self._deadline - self._now()) > 0:
            ready = {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
            if self._wake.descriptor in ready:
                return False
            for descriptor in opened & ready:
                data = os.read(descriptor, _CHUNK)
                if not data:
                    poll.unregister(descriptor)
                    opened.discard(descriptor)
                elif descriptor == self._errors:
                    self.said = (self.said + data)[-MAX_OUTPUT:]
                elif not self._pass_on(data):
                    return False
        return not opened

    def _pass_on(self, data: bytes) -> bool:
        written = self._into.write(data, max(0.0, self._deadline - self._now()))
        if written:
            self._poured(len(data))
        return written

"""Bodies that are sent while they come."""

from contextlib import ExitStack
from typing import Self

from ..messages.serving import BrokenBodyError
from ..messages.stream import ByteStream, StreamBrokenError
from .waiting import SLICE_S, Gone


class StreamedBody:
    """The bytes of a stream as they come; `held` is let go of when the last one is sent, or nobody wants more."""

    def __init__(self, stream: ByteStream, gone: Gone, held: ExitStack) -> None:
        self._stream = stream
        self._gone = gone
        self._held = held

    def __iter__(self) -> Self:
        """Return itself: the bytes come once."""
        return self

    def __next__(self) -> bytes:
        """Wait for the next piece. Raises BrokenBodyError when not all comes, or nobody is there for it."""
        try:
            while (data := self._stream.read(SLICE_S)) is None:
                if self._gone():
                    msg = "the client has left"
                    raise BrokenBodyError(msg)
        except StreamBrokenError as error:
            raise BrokenBodyError(str(error)) from None
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """Let go of everything; the second time does nothing."""
        self._stream.close()
        self._held.close()

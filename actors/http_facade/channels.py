"""One connection of waitress: clients that close half of it, that are slow, or that are refused.

Imported late, for waitress.
"""

import contextlib
import socket
import struct
import threading
import time
from typing import Final

from typing_extensions import override
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel

from .requests import DrainingTask, Parser, RefusalTask

IDLE_S: Final = 60
"""How long a connection may be silent between requests or in the middle of one."""
REQUEST_S: Final = 60.0
"""How long a request may take to arrive, from its first byte to its last."""
LINGER_S: Final = 5.0
"""How long what a refused client still sends is read and thrown away, so that it sees the refusal."""

served: Final = threading.local()
"""The channel that this thread is answering on."""


class Channel(HTTPChannel):
    """One connection.

    A client that closes its sending side while its request is under way still gets the answer, and is told
    apart from one that waits: whoever waits for it may stop. After a refusal what else comes is read and
    thrown away for a moment, because closing at once would reset the connection under the answer.
    """

    task_class = DrainingTask
    error_task_class = RefusalTask  # type: ignore[assignment] # any Task will do

    _watched = False
    _client_done = False
    _refused = False
    _lingering = False
    _expires: float | None = None
    _stuck: tuple[float, float] | None = None
    """Since when nothing was sent although there is something: `last_activity`, and when that was first seen."""

    @override
    def parser_class(self, adjustments: Adjustments) -> Parser:  # type: ignore[override] # it is called
        return self.server.parser(adjustments)  # type: ignore[attr-defined,no-any-return] # our listener

    # --- Called by the loop

    @override
    def readable(self) -> bool:
        # Cleared first, so that a thread that changes the state meanwhile sees that it has to wake the loop.
        self._watched = False
        self._watched = wanted = self._wants_to_read()
        return wanted

    def _wants_to_read(self) -> bool:
        if self._lingering:
            return True
        return super().readable() and not (self._client_done and bool(self.requests))

    @override
    def writable(self) -> bool:
        return not self._lingering and super().writable()

    @override
    def handle_read(self) -> None:
        try:
            data = self.socket.recv(self.adj.recv_bytes) if self.socket is not None else b""
        except BlockingIOError:
            return
        except OSError:
            self.drop()
            return
        if self._lingering:
            if not data:
                self.drop()
            return
        if data:
            self.last_activity = time.time()
            self.received(data)
            if self.request is None:
                self._expires = None
            elif self._expires is None:
                self._expires = time.monotonic() + REQUEST_S
        elif self.requests:
            self._client_done = True
        else:
            self.drop()

    @override
    def handle_close(self) -> None:
        if self._refused and not self._lingering and self.connected and self._half_close():
            self._lingering = True
            self._expires = time.monotonic() + LINGER_S
            self.will_close = False
            return
        self.drop()

    def drop(self) -> None:
        """Close the connection now."""
        super().handle_close()

    @property
    def idle(self) -> bool:
        """Whether no request that has arrived is being answered here."""
        return not self.requests and not self.total_outbufs_len

    def retire(self) -> bool:
        """Close the connection unless something is under way on it; returns whether it is closed."""
        if self.requests or self.request is not None or self.total_outbufs_len or self.will_close:
            return False
        self.drop()
        return True

    def expire(self) -> None:
        """Close the connection if a request takes too long to arrive, or an answer too long to be read."""
        now = time.monotonic()
        if not self.total_outbufs_len:
            self._stuck = None
        elif self._stuck is None or self._stuck[0] != self.last_activity:
            self._stuck = (self.last_activity, now)
        elif now - self._stuck[1] >= IDLE_S:
            self.drop()
            return
        if self._expires is not None and now >= self._expires and not self.requests:
            self.drop()

    def reset_at_close(self) -> None:
        """Let the end of the connection be an error for the client."""
        with contextlib.suppress(OSError):
            if self.socket is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _half_close(self) -> bool:
        try:
            if self.socket is not None:
                self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    # --- Called by threads

    @override
    def service(self) -> None:
        self._refused = self.requests[0].error is not None
        served.channel = self
        try:
            super().service()
        finally:
            served.channel = None

    @property
    def at_rest(self) -> bool:
        """Whether the loop is watching for the next request already, and has nothing else to do here."""
        return self._watched and not (self.total_outbufs_len or self.close_when_flushed or self.will_close)

    @override
    def check_client_disconnected(self) -> bool:  # type: ignore[override] # the stub says None
        return self._client_done or not self.connected

"""A line between a client and a server on the loopback, which can stand still or be cut."""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 65_536
_STOP_S: Final = 10.0


class Relay:
    """Passes every connection on to a port; `port` is its own. Use it as a context: at its end no thread of it lives.

    A connection stands still once so many bytes have come from the server: `stall_at`, if any. `stalled` tells that.
    """

    def __init__(self, target: int, *, stall_at: int | None = None) -> None:
        self._target = target
        self._stall_at = stall_at
        self.stalled = threading.Event()
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._begin(self._accept)

    def flow(self) -> None:
        """Let what stands still go on, and nothing stand still any more."""
        with self._changed:
            self._stall_at = None
            self._changed.notify_all()

    def cut(self) -> None:
        """End every connection that is there now."""
        with self._changed:
            for one in self._open:
                _shut(one)
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        _shut(self._server)
        self._server.close()
        self.flow()
        self.cut()
        for thread in self._threads:
            thread.join(_STOP_S)
            assert not thread.is_alive(), "a thread of the relay lives on"

    def _begin(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:  # nobody listens there now
                client.close()
                continue
            server.settimeout(None)
            with self._changed:
                self._open |= {client, server}
            self._begin(self._pass_on, client, server)
            self._begin(self._pass_back, server, client)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                server.sendall(data)
        self._end(client, server)

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK):
                passed += len(data)
                with self._changed:
                    while self._stall_at is not None and passed > self._stall_at and client in self._open:
                        self.stalled.set()
                        self._changed.wait()
                client.sendall(data)
        self._end(client, server)

    def _end(self, *sockets: socket.socket) -> None:
        with self._changed:
            for one in sockets:
                if one in self._open:
                    self._open.discard(one)
                    _shut(one)
                else:
                    one.close()  # the other direction has ended, too
            self._changed.notify_all()


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)

"""An endpoint storage on a port of the loopback: `/<tenant>/<timeline>/<endpoint>/<key>`, with a switch for faults.

It opens for one token; that reads every endpoint of its timeline and writes only its own (protocols, 5.1).
"""

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from compute_node.actors.lfc_manager.packing import pack
from typing_extensions import override

TOKEN: Final = "storage-t0ken"
TENANT: Final = "c9269c359e9a199fad1ea0981246a78f"
TIMELINE: Final = "ece7de74d4b8cbe5433a68ce4d1b97b4"
LIMIT: Final = 2 * 1024 * 1024
"""Bytes of a body above which it says 413."""

_BOMB: Final = pack(bytes(100_000_000), 100_000_000)


class Fault(Enum):
    """What goes wrong."""

    CUT = "half of the body, then the end of the connection"
    RESET = "half of the body, then a reset"
    SHORTENED = "half of the body, as if it were all"
    HTML = "200 with a page for people"
    BOMB = "200 with a frame of 100 MB of zeros"
    SILENCE = "the request is taken, and nothing comes back"
    TRICKLE = "one byte of the headers at a time, for ever"
    NOT_HTTP = "something else is spoken"
    REDIRECT = "307 to itself"
    EMPTY = "200 with nothing"
    HUGE = "200 that announces a terabyte"
    ENDLESS = "200 with a body that does not end"
    DEAF = "nothing of what is sent is read"


class EndpointStorage:
    """Keeps bodies by path. `status`: answer this, and do nothing; `fault`: see there."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.kept: dict[str, bytes] = {}
        self.status: int | None = None
        self.fault: Fault | None = None
        self.asked: list[tuple[str, str]] = []
        self.released = threading.Event()
        """Ends what is silent."""
        self.changed = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"storage": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def path(self, endpoint: str) -> str:
        return f"/{TENANT}/{TIMELINE}/{endpoint}/lfc_state"

    def note(self, method: str, path: str) -> None:
        with self.changed:
            self.asked.append((method, path))
            self.changed.notify_all()

    def wait_until_asked(self, method: str, times: int = 1, timeout_s: float = 30.0) -> None:
        with self.changed:
            assert self.changed.wait_for(
                lambda: sum(one == method for one, _ in self.asked) >= times, timeout_s
            ), self.asked

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do not tell of clients that have gone away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    storage: EndpointStorage
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve("GET")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        storage = self.storage
        with contextlib.suppress(OSError):
            if storage.fault is Fault.DEAF:
                storage.note(method, self.path)
                self._fail(storage.fault)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            storage.note(method, self.path)
            if storage.fault is not None:
                self._fail(storage.fault)
            elif storage.status is not None:
                self._answer(storage.status, b"no")
            elif self.headers.get("Authorization") != f"Bearer {storage.token}":
                self._answer(400, b"bad token")
            elif not self.path.startswith(f"/{TENANT}/{TIMELINE}/"):
                self._answer(401)
            elif method == "PUT":
                self._put(body)
            elif self.path in storage.kept:
                self._answer(200, storage.kept[self.path])
            else:
                self._answer(404, self.path.encode())

    def _put(self, body: bytes) -> None:
        if len(body) > LIMIT:
            self._answer(413, b"length limit exceeded")
            return
        self.storage.kept[self.path] = body
        self._answer(200)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, fault: Fault) -> None:
        self.close_connection = True
        kept = self.storage.kept.get(self.path, pack(bytes(1000)))
        half = kept[: len(kept) // 2]
        if fault in {Fault.HUGE, Fault.ENDLESS}:
            self._say_too_much(2**40 if fault is Fault.HUGE else None)
            return
        bodies = {
            Fault.SHORTENED: half,
            Fault.HTML: b"<html><body>Log in, please</body></html>",
            Fault.BOMB: _BOMB,
            Fault.EMPTY: b"",
        }
        if fault in bodies:
            self._answer(200, bodies[fault])
            return
        match fault:
            case Fault.CUT | Fault.RESET:
                self.send_response(200)
                self.send_header("Content-Length", str(len(kept)))
                self.end_headers()
                self.wfile.write(half)
                if fault is Fault.RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case Fault.SILENCE | Fault.DEAF:
                self.storage.released.wait()
            case Fault.TRICKLE:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not self.storage.released.wait(0.02):
                    self.wfile.write(b"x")
            case Fault.NOT_HTTP:
                self.wfile.write(b"-ERR unknown command\r\n")
            case Fault.REDIRECT:
                self._answer(307, Location=f"http://{self.storage.address}/elsewhere")

    def _say_too_much(self, announced: int | None) -> None:
        self.send_response(200)
        if announced is not None:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        while not self.storage.released.is_set():
            self.wfile.write(bytes(65536))

    @override
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def endpoint_storage(token: str = TOKEN) -> Iterator[EndpointStorage]:
    """Serve one until the end of the block."""
    storage = EndpointStorage(token)
    try:
        yield storage
    finally:
        storage.close()

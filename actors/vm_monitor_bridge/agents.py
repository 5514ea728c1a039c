"""The real server for agents: what the bridge may do from its own thread; the rest is loaded by its job."""

import socket
import threading
from typing import TYPE_CHECKING

from typing_extensions import override

from ...messages.settings import Address
from ...postgres.loading import load_shared
from ..kit.jobs import Cancellation
from .port import Agents, Heard, VmError
from .private import Listening
from .protocol import ToAgent, write

if TYPE_CHECKING:
    from .websocket import Service


class WebsocketAgents(Agents):
    """Serves one address, again and again; port 0 takes a free one."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._service: Service | None = None

    @override
    def serve(self, heard: Heard, cancellation: Cancellation) -> None:
        load_shared()
        from .websocket import Service

        with self._listen() as sock:
            address = Address(self._address.host, sock.getsockname()[1])
            service = Service(sock, heard)
        with self._lock:
            self._service = service
        try:
            heard(Listening(str(address)))
            service.run(cancellation)
        finally:
            with self._lock:
                self._service = None

    @override
    def send(self, connection: int, message: ToAgent) -> None:
        with self._lock:
            if self._service is not None:
                self._service.post(connection, write(message))

    @override
    def close(self, connection: int, code: int, reason: str) -> None:
        with self._lock:
            if self._service is not None:
                self._service.post(connection, (code, reason))

    def _listen(self) -> socket.socket:
        host, port = self._address.host, self._address.port
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            return socket.create_server((host, port), family=family)
        except OSError as error:
            msg = (
                f"{self._address} cannot be listened at: {error.strerror or error}; "
                "free it, or give another address by --vm-monitor-addr"
            )
            raise VmError(msg) from error

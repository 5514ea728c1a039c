"""The websocket server: one event loop for all connections, in one thread; imported late, for its weight.

Of the library it is the asyncio server that is used: its other one starts three threads for each connection, and
here no thread is made after the start of the node. Every wait has a limit: agents and strangers may fall silent.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final, TypeAlias

from typing_extensions import override
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ...messages.settings import Address
from . import protocol
from .port import Heard
from .private import AgentGone, AgentOffered, AgentSaid

PATH: Final = "/monitor"
HANDSHAKE_S: Final = 4.0
"""For the opening of a connection, and for the agent's first message."""
PING_S: Final = 5.0
"""How often a connection is tried, and how long the answer may take: a half-open one is found within twice this."""
CLOSE_S: Final = 0.3
"""How long a peer may take to say goodbye; the end of the server has to wait for it."""
SEND_S: Final = 5.0
"""As long as the agent waits for an answer."""
MAX_SIZE: Final = 32 * 1024
"""Bytes of a message; the agent takes no larger ones either."""
MAX_CONNECTIONS: Final = 16
"""At once; beyond them the oldest goes that has not offered anything yet, or is on its way out."""
MAX_RATE: Final = 50
"""Messages that a peer may send within a second; the agent sends one or two, and what is heard is never refused."""
MAX_UNSENT: Final = 64
"""Messages that wait for a peer that does not read; then its connection is closed."""

Outgoing: TypeAlias = str | tuple[int, str]
"""A text, or the code and the reason of a goodbye."""

log = logging.getLogger("compute_node.vm_monitor_bridge")
_numbers: Final = itertools.count(1)
"""Of all connections in the life of the process."""
_silent: Final = log.getChild("websockets")
"""The library's own log, with a traceback for each stranger; what matters is told in our words."""
_silent.setLevel(logging.CRITICAL + 1)


class _Connection(ServerConnection):
    """One of a bounded number; `connection_made` and `connection_lost` are asyncio's."""

    open_ones: dict["_Connection", None]
    """Oldest first."""
    is_served = False
    """An agent's, from its offer to our goodbye."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.open_ones[self] = None
        if len(self.open_ones) > MAX_CONNECTIONS:
            victim = next(one for one in self.open_ones if not one.is_served)
            del self.open_ones[victim]  # now: it hears of its end only later, when more have come
            victim.transport.abort()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.open_ones.pop(self, None)
        super().connection_lost(exc)


class Service:
    """One server from its beginning to its end. `heard` is called in the thread of the event loop."""

    def __init__(self, sock: socket.socket, heard: Heard) -> None:
        self._sock = sock
        self._heard = heard
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outgoing: dict[int, asyncio.Queue[Outgoing]] = {}

    def post(self, connection: int, outgoing: Outgoing) -> None:
        """Hand something out to a connection; from any thread, never blocks."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._put, connection, outgoing)

    async def run(self) -> None:
        """Serve until cancelled; all connections are closed afterwards."""
        self._loop = asyncio.get_running_loop()
        open_ones: dict[_Connection, None] = {}
        kind = type("Connection", (_Connection,), {"open_ones": open_ones})
        server = await serve(
            self._serve,
            sock=self._sock,
            process_request=_only_our_path,
            create_connection=kind,
            compression=None,
            server_header=None,
            open_timeout=HANDSHAKE_S,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            close_timeout=CLOSE_S,
            max_size=MAX_SIZE,
            max_queue=4,
            logger=_silent,
        )
        try:
            await self._loop.create_future()
        finally:
            server.close()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await server.wait_closed()
            except TimeoutError:
                pass
            finally:
                for connection in tuple(open_ones):
                    connection.transport.abort()
            await server.wait_closed()

    def _put(self, connection: int, outgoing: Outgoing) -> None:
        queue = self._outgoing.get(connection)
        if queue is None:
            return
        try:
            queue.put_nowait(outgoing)
        except asyncio.QueueFull:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait((1008, "the messages sent to it are not read"))

    # --- One connection

    async def _serve(self, websocket: ServerConnection) -> None:
        assert isinstance(websocket, _Connection)  # noqa: S101 - it was made so
        number, address = next(_numbers), _address(websocket)
        try:
            offer = await _offer(websocket)
        except ConnectionClosed:
            return
        except (ValueError, TimeoutError) as error:
            why = str(error) or f"it has offered no version within {HANDSHAKE_S:g} s"
            log.warning("a peer at %s is no autoscaler agent: %s", address, why)
            return
        with self._registered(number) as queue:
            websocket.is_served = True
            self._heard(AgentOffered(number, address, offer))
            sending = asyncio.create_task(_send(websocket, queue))
            try:
                await self._receive(websocket, number)
            finally:
                sending.cancel()
                await asyncio.wait({sending})
        self._heard(AgentGone(number, _why(websocket)))

    @contextlib.contextmanager
    def _registered(self, number: int) -> Iterator[asyncio.Queue[Outgoing]]:
        queue = self._outgoing[number] = asyncio.Queue(MAX_UNSENT)
        try:
            yield queue
        finally:
            del self._outgoing[number]

    async def _receive(self, websocket: ServerConnection, number: int) -> None:
        loop = asyncio.get_running_loop()
        second, count = loop.time(), 0
        with contextlib.suppress(ConnectionClosed):
            async for frame in websocket:
                if loop.time() - second >= 1:
                    second, count = loop.time(), 0
                count += 1
                if count > MAX_RATE:
                    await websocket.close(*_goodbye(1008, f"more than {MAX_RATE} messages within a second"))
                    return
                if isinstance(frame, str):
                    self._heard(AgentSaid(number, protocol.read(frame)))
                else:
                    log.warning("a binary frame of the autoscaler agent is ignored: %d bytes", len(frame))


async def _offer(websocket: ServerConnection) -> protocol.Offer:
    async with asyncio.timeout(HANDSHAKE_S):
        frame = await websocket.recv()
    if not isinstance(frame, str):
        msg = "its first frame is not a text"
        raise ValueError(msg)  # noqa: TRY004 - a fault of the peer, as all others here
    return protocol.read_offer(frame)


async def _send(websocket: _Connection, queue: asyncio.Queue[Outgoing]) -> None:
    try:
        while True:
            outgoing = await queue.get()
            if not isinstance(outgoing, str):
                websocket.is_served = False
                await websocket.close(*_goodbye(*outgoing))
                return
            async with asyncio.timeout(SEND_S):
                await websocket.send(outgoing)
    except ConnectionClosed:
        pass
    except TimeoutError:
        websocket.transport.abort()


def _goodbye(code: int, reason: str) -> tuple[int, str]:
    """Cut a reason to what a close frame holds."""
    return code, reason.encode()[:120].decode(errors="ignore")


def _only_our_path(websocket: ServerConnection, request: Request) -> Response | None:
    if request.path.partition("?")[0] == PATH:
        return None
    return websocket.respond(HTTPStatus.NOT_FOUND, f"{PATH} is what is served here\n")


def _address(websocket: ServerConnection) -> str:
    peer = websocket.remote_address
    return str(Address(peer[0], peer[1])) if peer else "an unknown address"


def _why(websocket: ServerConnection) -> str:
    code = websocket.close_code
    if code is None or code == 1006:  # noqa: PLR2004 - RFC 6455: there was no close frame
        return "the connection broke"
    return f"closed with code {code}" + (f": {websocket.close_reason}" if websocket.close_reason else "")

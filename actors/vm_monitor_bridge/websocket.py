"""The websocket server: the synchronous one of `websockets`; imported late, for its weight.

A connection has threads: the one that reads, the library's two, and for an agent the one that writes. So connections
are counted at the door, before there are any, and one is over when its last thread has ended. Every wait has a
limit: agents and strangers may fall silent.
"""

import contextlib
import itertools
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from typing_extensions import override
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from ...messages.settings import Address
from ..kit.jobs import Cancellation
from ..kit.threads import show_name
from . import protocol
from .port import Heard, VmError
from .private import AgentGone, AgentOffered, AgentSaid

PATH: Final = "/monitor"
HANDSHAKE_S: Final = 4.0
"""For the opening of a connection, and for the agent's first message."""
PING_S: Final = 5.0
"""How often a connection is tried, and how long the answer may take: a half-open one is found within twice this."""
CLOSE_S: Final = 0.3
"""How long a peer may take to say goodbye."""
END_S: Final = 0.8
"""How long the end of the server waits for the goodbyes; a job that is cancelled has a second."""
SEND_S: Final = 5.0
"""As long as the agent waits for an answer."""
ACCEPT_PAUSE_S: Final = 0.5
"""After a failure to accept a connection, such as for want of descriptors."""
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
_GOING_AWAY: Final = (1001, "the monitor ends")

log = logging.getLogger("compute_node.vm_monitor_bridge")
_numbers: Final = itertools.count(1)
"""Of all connections in the life of the process."""
_silent: Final = log.getChild("websockets")
"""The library's own log, with a traceback for each stranger; what matters is told in our words."""
_silent.setLevel(logging.CRITICAL + 1)


class _Peer:
    """One connection, from its acceptance to the end of its last thread."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.number = next(_numbers)
        self.address = address
        self.websocket: ServerConnection | None = None
        self.outgoing: queue.Queue[Outgoing | None] = queue.Queue(MAX_UNSENT)
        """None: there will be no more."""
        self.is_served = False
        """It is an agent, from its offer to our goodbye."""
        self.is_aborted = False
        self._sock = sock

    def abort(self) -> None:
        """End it without a word; its threads wake up by themselves."""
        self.is_aborted = True
        with contextlib.suppress(OSError):  # it was closed already
            self._sock.shutdown(socket.SHUT_RDWR)


class _Door(socket.socket):
    """The listening socket, which lets nobody in before there is room; its `accept` is the server's."""

    def __init__(self, sock: socket.socket, admit: Callable[[socket.socket, Any], bool]) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._admit = admit
        self._closing = threading.Event()

    @override
    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection. Raises OSError once the door is shut: the library's server ends with one."""
        failed = False
        while not self._closing.is_set():
            try:
                sock, address = super().accept()
            except OSError as error:
                if not failed and not self._closing.is_set():
                    log.warning("no connection can be accepted, which is tried again: %s", error)
                failed = True
                self._closing.wait(ACCEPT_PAUSE_S)
                continue
            if self._admit(sock, address):
                return sock, address
            sock.close()
        msg = "the server ends"
        raise OSError(msg)

    def shut(self) -> None:
        """Let nobody in any more, and wake up who waits for them; never blocks."""
        self._closing.set()
        with contextlib.suppress(OSError):  # it was shut before
            self.shutdown(socket.SHUT_RDWR)


class Service:
    """One server from its beginning to its end. `heard` is called in the threads of the connections."""

    def __init__(self, sock: socket.socket, heard: Heard) -> None:
        self._heard = heard
        self._changed = threading.Condition()
        self._open: dict[socket.socket, _Peer] = {}
        """Oldest first."""
        self._agents: dict[int, _Peer] = {}
        """Those that have offered versions."""
        self._ending = False
        self._door = _Door(sock, self._admit)

    def post(self, connection: int, outgoing: Outgoing) -> None:
        """Hand something out to a connection; from any thread, never blocks."""
        with self._changed:
            peer = self._agents.get(connection)
            if peer is not None:
                self._post(peer, outgoing)

    def run(self, cancellation: Cancellation) -> None:
        """Serve until cancelled; all connections, and their threads, are gone afterwards. Raises VmError."""
        server = serve(
            self._serve,
            sock=self._door,
            process_request=_only_our_path,
            create_connection=self._connect,  # type: ignore[arg-type] # a factory will do, says its documentation
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
        server.handler = partial(self._attend, server.handler)
        cancellation.on_request(self._end)
        try:
            server.serve_forever()
        except RuntimeError as error:
            with self._changed:
                sock, _ = self._open.popitem()  # the last one, for which there is no thread
            sock.close()
            msg = f"the machine has no thread to spare for a connection: {error}"
            raise VmError(msg) from error
        finally:
            self._end()
            self._see_all_off()
            with contextlib.suppress(RuntimeError):  # the thread that was not there
                server.shutdown(close_connections=False)
        cancellation.check()

    # --- Who is there

    def _admit(self, sock: socket.socket, address: Any) -> bool:  # noqa: ANN401 - as the socket module has it
        """Wait until there is room, which is made, and take a connection in; False once the server ends."""
        limit = struct.pack("ll", int(SEND_S), int(SEND_S % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)  # the library has none
        with self._changed:
            while len(self._open) >= MAX_CONNECTIONS and not self._ending:
                self._push_out()
                self._changed.wait()
            if self._ending:
                return False
            self._open[sock] = _Peer(sock, str(Address(address[0], address[1])))
            return True

    def _push_out(self) -> None:
        peers = self._open.values()
        if not any(peer.is_aborted for peer in peers):
            victim = next((peer for peer in peers if not peer.is_served), None)
            if victim is not None:
                victim.abort()

    def _connect(self, sock: socket.socket, *args: Any, **options: Any) -> ServerConnection:  # noqa: ANN401 - passed on
        websocket = self._open[sock].websocket = ServerConnection(sock, *args, **options)
        return websocket

    def _attend(
        self,
        handle: Callable[[socket.socket, Any], None],
        sock: socket.socket,
        address: Any,  # noqa: ANN401 - passed on
    ) -> None:
        """See a connection through, in a thread of its own, until the library's threads for it have ended, too."""
        peer = self._open[sock]
        threading.current_thread().name = f"agent-{peer.number}"
        show_name()
        try:
            handle(sock, address)
        finally:
            websocket = peer.websocket
            if websocket is None:
                log.warning("the peer at %s cannot be served: no thread or descriptor to spare", peer.address)
            else:
                for thread in (websocket.recv_events_thread, websocket.keepalive_thread):
                    if thread is not None and thread.is_alive():
                        thread.join()
            with self._changed:
                del self._open[sock]
                self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._door.shut()

    def _see_all_off(self) -> None:
        with self._changed:
            for peer in self._open.values():
                if peer.is_served:
                    self._post(peer, _GOING_AWAY)
                elif peer.number not in self._agents:
                    peer.abort()
            if not self._changed.wait_for(lambda: not self._open, END_S):
                for peer in self._open.values():
                    peer.abort()
                self._changed.wait_for(lambda: not self._open)

    # --- One connection

    def _serve(self, websocket: ServerConnection) -> None:
        peer = self._open[websocket.socket]
        try:
            offer = _offer(websocket)
        except ConnectionClosed:
            return
        except (ValueError, TimeoutError) as error:
            why = str(error) or f"it has offered no version within {HANDSHAKE_S:g} s"
            log.warning("a peer at %s is no autoscaler agent: %s", peer.address, why)
            return
        sending = threading.Thread(
            target=_send, args=(websocket, peer.outgoing), name=f"agent-{peer.number}-out"
        )
        try:
            sending.start()
        except RuntimeError as error:
            log.warning("the peer at %s cannot be served: %s", peer.address, error)
            return
        try:
            with self._changed:
                self._agents[peer.number] = peer
                peer.is_served = True
            self._heard(AgentOffered(peer.number, peer.address, offer))
            self._receive(websocket, peer.number)
        finally:
            with self._changed:
                del self._agents[peer.number]
                peer.is_served = False
            with contextlib.suppress(queue.Full):  # then it is sending, and hears that the connection is over
                peer.outgoing.put_nowait(None)
            sending.join()
        self._heard(AgentGone(peer.number, _why(websocket)))

    def _post(self, peer: _Peer, outgoing: Outgoing) -> None:
        """Do what `post` does; the lock is held."""
        try:
            peer.outgoing.put_nowait(outgoing)
        except queue.Full:
            outgoing = (1008, "the messages sent to it are not read")
            with contextlib.suppress(queue.Empty):
                while True:
                    peer.outgoing.get_nowait()
            peer.outgoing.put_nowait(outgoing)
        if not isinstance(outgoing, str):
            peer.is_served = False
            self._changed.notify_all()

    def _receive(self, websocket: ServerConnection, number: int) -> None:
        second, count = time.monotonic(), 0
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = websocket.recv()
                if time.monotonic() - second >= 1:
                    second, count = time.monotonic(), 0
                count += 1
                if count > MAX_RATE:
                    websocket.close(*_goodbye(1008, f"more than {MAX_RATE} messages within a second"))
                    return
                if isinstance(frame, str):
                    self._heard(AgentSaid(number, protocol.read(frame)))
                else:
                    log.warning("a binary frame of the autoscaler agent is ignored: %d bytes", len(frame))


def _offer(websocket: ServerConnection) -> protocol.Offer:
    frame = websocket.recv(HANDSHAKE_S)
    if not isinstance(frame, str):
        msg = "its first frame is not a text"
        raise ValueError(msg)  # noqa: TRY004 - a fault of the peer, as all others here
    return protocol.read_offer(frame)


def _send(websocket: ServerConnection, queued: "queue.Queue[Outgoing | None]") -> None:
    """Write what is handed out, in a thread of its own: who does not read holds nobody else up."""
    show_name()
    with contextlib.suppress(ConnectionClosed):
        while (outgoing := queued.get()) is not None:
            if isinstance(outgoing, str):
                websocket.send(outgoing)
            else:
                websocket.close(*_goodbye(*outgoing))
                return


def _goodbye(code: int, reason: str) -> tuple[int, str]:
    """Cut a reason to what a close frame holds."""
    return code, reason.encode()[:120].decode(errors="ignore")


def _only_our_path(websocket: ServerConnection, request: Request) -> Response | None:
    if request.path.partition("?")[0] == PATH:
        return None
    return websocket.respond(HTTPStatus.NOT_FOUND, f"{PATH} is what is served here\n")


def _why(websocket: ServerConnection) -> str:
    code = websocket.close_code
    if code is None or code == 1006:  # noqa: PLR2004 - RFC 6455: there was no close frame
        return "the connection broke"
    return f"closed with code {code}" + (f": {websocket.close_reason}" if websocket.close_reason else "")

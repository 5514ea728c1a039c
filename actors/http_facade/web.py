"""One waitress server on sockets that are bound already, and what waitress leaves to its users.

That is: a drain, answers in the application's own form to requests that were not read to their end, body
limits by path, clients that close half of their connection, and queue warnings as numbers.

Imported late: it loads waitress, whose stubs are wrong in places (the `type: ignore` comments here).
"""

import copy
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from typing_extensions import override
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import InternalServerError

from ...messages.serving import FREE_BODY, REFUSAL_KEY
from ..kit.threads import show_name
from .port import WebApp

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

MAX_HEADER: Final = 32 * 1024
NO_SPILL: Final = 1 << 30
"""Bodies stay in memory, where their size is limited: the disk of a temporary file may be full."""
IDLE_S: Final = 60
"""How long a connection may be silent between requests or in the middle of one."""
CLEANUP_S: Final = 5
REQUEST_S: Final = 60.0
"""How long a request may take to arrive, from its first byte to its last."""
LINGER_S: Final = 5.0
"""How long what a refused client still sends is read and thrown away, so that it sees the refusal."""
LOOP_S: Final = 1
DRAIN_LOOP_S: Final = 0.05
LAST_ANSWERS_S: Final = 1.0
"""How long threads whose clients have been cut off may take to notice."""
JOINED: Final = 64 * 1024
"""A body of at most this size is sent with its head in one piece."""
CHUNK_SLACK: Final = 256 * 1024
"""Waitress counts the sizes between chunks as body; the application counts exactly."""
PLAIN_FAULT: Final = b'{"error":"internal error"}'


class WebServer:
    """One server and its threads, all of which start here. `queued` is called when requests had to queue."""

    def __init__(
        self,
        name: str,
        app: WebApp,
        sockets: list[socket.socket],
        *,
        threads: int,
        connections: int,
        queued: Callable[[], None],
    ) -> None:
        self.name = name
        self.draining = False
        self._stop_at: float | None = None
        self._limit = connections
        self._map: dict[int, Any] = {}
        adjustments = Adjustments(
            sockets=sockets,
            threads=threads,
            ident=None,
            server_name="localhost",
            connection_limit=connections,
            channel_timeout=IDLE_S,
            cleanup_interval=CLEANUP_S,
            channel_request_lookahead=1,
            max_request_header_size=MAX_HEADER,
            inbuf_overflow=NO_SPILL,
            outbuf_overflow=NO_SPILL,
            log_socket_errors=False,
            expose_tracebacks=False,
            clear_untrusted_proxy_headers=False,
            asyncore_use_poll=True,
            asyncore_loop_timeout=LOOP_S,
        )
        self._dispatcher = _Dispatcher(name, queued)
        self._listeners = [_Listener(self, app, sock, self._dispatcher, adjustments) for sock in sockets]
        try:
            self._dispatcher.set_thread_count(threads)
        except RuntimeError:  # no more threads to be had
            self.close()
            raise

    def serve(self) -> None:
        """Serve until `stop` was called and what was under way is over, then close everything."""
        try:
            while not self._over():
                wasyncore.poll2(DRAIN_LOOP_S if self.draining else LOOP_S, self._map)
        finally:
            self.close()

    def stop(self, drain_s: float) -> None:
        """Ask `serve` to end; from any thread. Said again, it can only shorten the time."""
        stop_at = time.monotonic() + drain_s
        self._stop_at = stop_at if self._stop_at is None else min(stop_at, self._stop_at)
        for listener in self._listeners:
            listener.pull_trigger()

    def _over(self) -> bool:
        if self._stop_at is None:
            return False
        if not self.draining:
            self.draining = True
            for listener in self._listeners:
                listener.stop_accepting()
        busy = [
            channel for listener in self._listeners for channel in listener.channels() if not channel.retire()
        ]
        return not busy or time.monotonic() >= self._stop_at

    def make_room(self) -> None:
        """When a new connection would be one too many, cut off the one that has been silent for longest.

        Those that are being answered stay. At its own limit waitress would take nobody in.
        """
        if len(self._map) < self._limit - 1:
            return
        idle = [channel for listener in self._listeners for channel in listener.channels() if channel.idle]
        if idle:
            min(idle, key=lambda channel: channel.last_activity).drop()

    def close(self) -> None:
        """Cut off whatever is left, and end the threads; `serve` does it at its end."""
        for listener in self._listeners:
            listener.stop_accepting()
            for channel in listener.channels():
                channel.drop()
        self._dispatcher.end(LAST_ANSWERS_S)
        for listener in self._listeners:
            listener.close()


def _shown(target: Callable[[int], object], thread_no: int) -> None:
    show_name()
    target(thread_no)


class _Dispatcher(ThreadedTaskDispatcher):
    """The threads of one server, named after it; its queue warnings are counted, not logged."""

    def __init__(self, server: str, queued: Callable[[], None]) -> None:
        super().__init__()
        self._server = server
        self._started: list[threading.Thread] = []
        # Outside the tree of loggers, so that each server has its own, and its own filter.
        self.queue_logger = logging.Logger(f"waitress.queue.{server}")  # noqa: LOG001 - see above

        def count(_record: logging.LogRecord) -> bool:
            queued()
            return False

        self.queue_logger.addFilter(count)

    @override
    def start_new_thread(self, target: Callable[[int], object], thread_no: int) -> None:
        name = f"http-{self._server}-{thread_no + 1}"
        thread = threading.Thread(target=_shown, name=name, args=(target, thread_no), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self.threads.discard(thread_no)  # nobody is to wait for its end
            raise
        self._started.append(thread)

    def end(self, timeout_s: float) -> None:
        """End the threads; those that are in the middle of a request that long are left behind."""
        deadline = time.monotonic() + timeout_s
        self.shutdown(timeout=timeout_s)  # type: ignore[arg-type] # a float will do
        for thread in self._started:
            thread.join(max(0.0, deadline - time.monotonic()))


class _Listener(TcpWSGIServer):
    """One listening socket of a server, and the connections that came in by it."""

    def __init__(
        self,
        web: WebServer,
        app: WebApp,
        sock: socket.socket,
        dispatcher: ThreadedTaskDispatcher,
        adjustments: Adjustments,
    ) -> None:
        self.web = web
        self._trigger_lock = threading.Lock()
        self._trigger_open = True

        @cache
        def limited(limit: int, slack: int) -> Adjustments:
            own = copy.copy(adjustments)
            own.max_request_body_size = limit + slack + 1  # waitress refuses a body of exactly its limit
            return own

        def limits(path: str, authorization: str | None, *, chunked: bool) -> Adjustments:
            limit = app.body_limit(path, authorization)
            if limit <= FREE_BODY:
                return limited(FREE_BODY, 0)
            return limited(limit, CHUNK_SLACK if chunked else 0)

        self.parser = partial(_Parser, limits)
        self.channel_class = _Channel
        super().__init__(
            app,
            map=web._map,  # noqa: SLF001 - the two classes are one thing
            _sock=sock,
            dispatcher=dispatcher,
            adj=adjustments,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
            bind_socket=False,
        )

    def channels(self) -> "list[_Channel]":
        """Return the open connections."""
        return list(self.active_channels.values())  # type: ignore[attr-defined] # it is a dict

    @override
    def handle_accept(self) -> None:
        self.web.make_room()
        super().handle_accept()

    def stop_accepting(self) -> None:
        """Close the listening socket; connections live on, and threads can still wake the loop."""
        if self.accepting:
            self.accepting = False
            wasyncore.dispatcher.close(self)

    @override
    def pull_trigger(self) -> None:
        channel: _Channel | None = getattr(_served, "channel", None)
        if channel is not None and channel.at_rest:
            return  # waking the loop after each answer would cost as much as the answer
        # A thread may come here after the end: the descriptor could belong to somebody else by then.
        with self._trigger_lock:
            if self._trigger_open:
                super().pull_trigger()

    @override
    def maintenance(self, now: float) -> None:
        super().maintenance(now)  # type: ignore[arg-type] # it is a float
        for channel in self.channels():
            channel.expire()

    @override
    def close(self) -> None:
        self.stop_accepting()
        with self._trigger_lock:
            if self._trigger_open:
                self._trigger_open = False
                self.trigger.close()  # type: ignore[attr-defined] # it is a trigger


class Limits(Protocol):
    """Knows how much of a body is read."""

    def __call__(self, path: str, authorization: str | None, *, chunked: bool) -> Adjustments:
        """Return the settings with the limit for this path and whoever asks."""
        ...


class _Parser(HTTPRequestParser):
    """Limits a body by its path and sender as soon as the headers are there; refuses what waitress overlooks."""

    path: str

    def __init__(self, limits: Limits, adjustments: Adjustments) -> None:
        super().__init__(adjustments)
        self._limits = limits

    @override
    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # a length of thousands of digits, or half an address in brackets
            msg = "the request line or a length cannot be read"
            raise ParsingError(msg) from None
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            msg = "a body is either chunked or of a given length"
            raise ParsingError(msg)
        if self.chunked or self.content_length > FREE_BODY:
            self.adj = self._limits(self.path, self.headers.get("AUTHORIZATION"), chunked=self.chunked)

    @override
    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.error is not None:
            self.expect_continue = False  # the refusal is the answer
        return consumed


class _DrainingTask(WSGITask):
    """Tells clients that the connection ends when the server is being drained."""

    @override
    def build_response_header(self) -> bytes:
        if self.channel.server.web.draining:  # type: ignore[attr-defined] # our listener
            self.set_close_on_finish()
        return super().build_response_header()

    @override
    def write(self, data: bytes) -> None:
        """Send the head and what follows it in one piece: each piece is a system call and a packet."""
        if self.complete and not self.wrote_header:
            head = self.build_response_header()
            self.wrote_header = True
            if self.has_body and len(data) == self.content_length and len(data) <= JOINED:
                self.content_bytes_written = len(data)
                self.channel.write_soon(head + data)
                return
            self.channel.write_soon(head)
        super().write(data)


class _RefusalTask(_DrainingTask):
    """Lets the application answer a request that was not read to its end."""

    @override
    def execute(self) -> None:
        self.set_close_on_finish()
        if isinstance(self.request.error, InternalServerError):  # type: ignore[attr-defined] # a parser
            # The application itself failed to answer; it is not asked again.
            self.complete = True
            self.status = "500 Internal Server Error"
            self.response_headers.append(("Content-Type", "application/json"))  # type: ignore[attr-defined]
            self.content_length = len(PLAIN_FAULT)
            self.write(PLAIN_FAULT)
            return
        super().execute()

    @override
    def get_environment(self) -> "WSGIEnvironment":
        request: Any = self.request
        for name, value in _UNREAD.items():
            if not hasattr(request, name):
                setattr(request, name, value)
        environ = super().get_environment()
        environ[REFUSAL_KEY] = (request.error.code, f"{request.error.reason}: {request.error.body}")
        return environ


_UNREAD: Final = {"command": "GET", "path": "/", "request_uri": "/", "query": "", "url_scheme": "http"}
"""What stands in for a request line that could not be read."""


_served: Final = threading.local()
"""The channel that this thread is answering on."""


class _Channel(HTTPChannel):
    """One connection.

    A client that closes its sending side while its request is under way still gets the answer, and is told
    apart from one that waits: whoever waits for it may stop. After a refusal what else comes is read and
    thrown away for a moment, because closing at once would reset the connection under the answer.
    """

    task_class = _DrainingTask
    error_task_class = _RefusalTask  # type: ignore[assignment] # any Task will do

    _watched = False
    _client_done = False
    _refused = False
    _lingering = False
    _expires: float | None = None

    @override
    def parser_class(self, adjustments: Adjustments) -> _Parser:  # type: ignore[override] # it is called
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
        """Close the connection if a request takes too long to arrive, or a refusal too long to be seen."""
        if self._expires is not None and time.monotonic() >= self._expires and not self.requests:
            self.drop()

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
        _served.channel = self
        try:
            super().service()
        finally:
            _served.channel = None

    @property
    def at_rest(self) -> bool:
        """Whether the loop is watching for the next request already, and has nothing else to do here."""
        return self._watched and not (self.total_outbufs_len or self.close_when_flushed or self.will_close)

    @override
    def check_client_disconnected(self) -> bool:  # type: ignore[override] # the stub says None
        return self._client_done or not self.connected

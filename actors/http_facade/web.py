"""One waitress server on sockets that are bound already, and what waitress leaves to its users.

That is: a drain, and queue warnings as numbers; what one connection and one request need is in channels.py and
requests.py, with body limits, answers in the application's own form, and clients that close half of their connection.

Imported late: it loads waitress, whose stubs are wrong in places (the `type: ignore` comments here).
"""

import copy
import logging
import socket
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

from typing_extensions import override
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from ...messages.serving import FREE_BODY
from ..kit.threads import show_name
from . import channels
from .channels import Channel, served
from .port import WebApp
from .requests import Parser

MAX_HEADER: Final = 32 * 1024
NO_SPILL: Final = 1 << 30
"""Bodies stay in memory, where their size is limited: the disk of a temporary file may be full."""
HELD: Final = 1 << 20
"""Bytes for one client beyond which whoever writes waits until it has read some."""
CLEANUP_S: Final = 5
LOOP_S: Final = 1
DRAIN_LOOP_S: Final = 0.05
LAST_ANSWERS_S: Final = 1.0
"""How long threads whose clients have been cut off may take to notice."""
CHUNK_SLACK: Final = 256 * 1024
"""Waitress counts the sizes between chunks as body; the application counts exactly."""


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
            channel_timeout=channels.IDLE_S,
            cleanup_interval=CLEANUP_S,
            channel_request_lookahead=1,
            max_request_header_size=MAX_HEADER,
            inbuf_overflow=NO_SPILL,
            outbuf_overflow=NO_SPILL,
            outbuf_high_watermark=HELD,
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

        self.parser = partial(Parser, limits)
        self.channel_class = Channel
        super().__init__(
            app,
            map=web._map,  # noqa: SLF001 - the two classes are one thing
            _sock=sock,
            dispatcher=dispatcher,
            adj=adjustments,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
            bind_socket=False,
        )

    def channels(self) -> "list[Channel]":
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
        channel: Channel | None = getattr(served, "channel", None)
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

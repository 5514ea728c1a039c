"""Autoscaler agents over a real websocket: one that behaves as Neon's does, and peers that do not."""

import contextlib
import json
import queue
import socket
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

MAX_SIZE = 32 * 1024
OPEN_S = 4.0
"""For dialling and the negotiation."""
ANSWERS = {"HealthCheck", "UpscaleConfirmation", "DownscaleResult", "InternalError", "InvalidMessage"}


class CallError(Exception):
    """The monitor could not do what it was asked for."""


class Agent:
    """Dials, offers its versions, numbers its requests 2, 4, 6, ..., and is strict with what comes."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        lowest: int = 1,
        highest: int = 1,
        patience_s: float = 30.0,
    ) -> None:
        self.patience_s = patience_s
        self.wishes: list[int] = []
        """The numbers of the requests for more memory."""
        self._next_id = 2
        self._open = contextlib.ExitStack()
        self._socket: ClientConnection = self._open.enter_context(
            connect(
                f"ws://{host}:{port}/monitor",
                compression=None,
                open_timeout=patience_s,
                close_timeout=patience_s,
                ping_interval=None,
                max_size=MAX_SIZE,
            )
        )
        try:
            self._socket.send(json.dumps({"min": lowest, "max": highest}, separators=(",", ":")))
            self.offered = json.loads(self._socket.recv(patience_s))
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    # --- Requests

    def check_health(self) -> None:
        assert self.call("HealthCheck", {})["type"] == "HealthCheck"

    def upscale(self, mem: int) -> None:
        """Tell of more memory. Raises CallError."""
        answer = self.call("UpscaleNotification", {"granted": {"cpu": 0.5, "mem": mem}})
        assert answer["type"] == "UpscaleConfirmation", answer

    def downscale(self, mem: int) -> tuple[bool, str]:
        """Ask whether the machine may shrink. Raises CallError."""
        answer = self.call("DownscaleRequest", {"target": {"cpu": 0.25, "mem": mem}})
        assert answer["type"] == "DownscaleResult", answer
        return answer["Ok"], answer["Status"]

    def call(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        number, self._next_id = self._next_id, self._next_id + 2
        self.say(json.dumps({"content": content, "type": kind, "id": number}, separators=(",", ":")))
        return self.await_answer(number)

    def say(self, text: str | bytes) -> None:
        self._socket.send(text)

    def await_answer(self, number: int) -> dict[str, Any]:
        """Take messages in until the answer comes. Raises CallError for a failure."""
        while True:
            message = self.hear()
            if message["id"] == number:
                if message["type"] in {"InternalError", "InvalidMessage"}:
                    raise CallError(message["error"])
                return message

    def await_wish(self) -> int:
        """Take messages in until one asks for more memory; returns its number."""
        before = len(self.wishes)
        while len(self.wishes) == before:
            self.hear()
        return self.wishes[-1]

    def hear(self) -> dict[str, Any]:
        """Take one message in, as strictly as the agent does."""
        text = self._socket.recv(self.patience_s)
        assert isinstance(text, str), "the agent takes text frames only"
        message: dict[str, Any] = json.loads(text)
        assert isinstance(message["type"], str)
        assert isinstance(message["id"], int)
        if message["type"] == "UpscaleRequest":
            assert message["id"] % 2 == 1, "the monitor's own numbers are odd"
            self.wishes.append(message["id"])
        return message

    # --- The end

    def await_close(self) -> int | None:
        """Take in what still comes; returns the code of the goodbye."""
        try:
            while True:
                self._socket.recv(self.patience_s)
        except ConnectionClosed as closed:
            return None if closed.rcvd is None else closed.rcvd.code


@dataclass(frozen=True)
class Habits:
    """How the agent behaves, in seconds; tests take shorter pauses and, where nothing is to be late, longer limits."""

    health_s: float = 5.0
    """Between two health checks."""
    reply_s: float = 5.0
    """For an answer; a later one is unknown."""
    dead_s: float = 30.0
    """Without a health check that was answered; then it hangs up and dials again."""
    pause_s: float = 5.0
    """At least, between two times that it dials."""


@dataclass
class _Conversation:
    """One connection, as the agent keeps account of it."""

    socket: ClientConnection
    next_id: int = 2
    waiting: dict[int, tuple[float, Future[dict[str, Any]] | None]] = field(default_factory=dict)
    """By number: until when an answer is waited for, and who waits; a health check is nobody's."""

    def say(self, kind: str, content: dict[str, Any], number: int) -> None:
        self.socket.send(json.dumps({"content": content, "type": kind, "id": number}, separators=(",", ":")))

    def ask(
        self, kind: str, content: dict[str, Any], until_s: float, future: Future[dict[str, Any]] | None = None
    ) -> None:
        self.waiting[self.next_id] = (until_s, future)
        self.say(kind, content, self.next_id)
        self.next_id += 2


class LivingAgent:
    """Lives as the real one: health checks beside its calls, limits for answers, and it dials again and again."""

    def __init__(self, port: int, habits: Habits) -> None:
        self.connections = 0
        self.healthy = 0
        """Health checks that were answered in time."""
        self.late: list[int] = []
        """Answers that nobody waited for any more, of which it has complained."""
        self.wishes: list[int] = []
        self._port = port
        self._habits = habits
        self._calls: queue.SimpleQueue[tuple[str, dict[str, Any], Future[dict[str, Any]]]] = (
            queue.SimpleQueue()
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def call(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """Ask for something. Raises CallError for a failure, and when there is no answer in time."""
        future: Future[dict[str, Any]] = Future()
        self._calls.put((kind, content, future))
        return future.result(60)

    def upscale(self, mem: int) -> dict[str, Any]:
        return self.call("UpscaleNotification", {"granted": {"cpu": 1, "mem": mem}})

    def _live(self) -> None:
        while not self._ending.is_set():
            began_s = time.monotonic()
            with contextlib.suppress(OSError, WebSocketException):
                self._connect()
            self._ending.wait(max(0.0, began_s + self._habits.pause_s - time.monotonic()))

    def _connect(self) -> None:
        with connect(
            f"ws://127.0.0.1:{self._port}/monitor",
            compression=None,
            open_timeout=OPEN_S,
            ping_interval=None,
            max_size=MAX_SIZE,
        ) as socket:
            socket.send('{"min":1,"max":1}')
            if json.loads(socket.recv(OPEN_S)) != {"version": 1}:
                socket.close(1002)
                return
            self.connections += 1
            conversation = _Conversation(socket)
            try:
                self._converse(conversation)
            finally:
                for _, future in conversation.waiting.values():
                    if future is not None:
                        future.set_exception(CallError("the connection is over"))

    def _converse(self, conversation: _Conversation) -> None:
        due_s = healthy_s = time.monotonic()
        while not self._ending.is_set():
            now_s = time.monotonic()
            if now_s - healthy_s > self._habits.dead_s:
                conversation.socket.close(1011)
                return
            if now_s >= due_s:
                conversation.ask("HealthCheck", {}, now_s + self._habits.reply_s)
                due_s = now_s + self._habits.health_s
            if not self._calls.empty():
                kind, content, future = self._calls.get()
                conversation.ask(kind, content, now_s + self._habits.reply_s, future)
            for number, (until_s, waiter) in tuple(conversation.waiting.items()):
                if now_s > until_s:
                    del conversation.waiting[number]
                    if waiter is not None:
                        waiter.set_exception(CallError("there is no answer in time"))
            try:
                text = conversation.socket.recv(0.02)
            except TimeoutError:
                continue
            if self._take(conversation, json.loads(text)):
                healthy_s = time.monotonic()

    def _take(self, conversation: _Conversation, message: dict[str, Any]) -> bool:
        """Take a message in; returns whether it is the answer to a health check."""
        kind, number = message["type"], message["id"]
        if kind == "UpscaleRequest":
            assert number % 2 == 1, "the monitor's own numbers are odd"
            self.wishes.append(number)
        elif kind not in ANSWERS or number not in conversation.waiting:
            self.late.append(number)
            conversation.say("InvalidMessage", {"error": "nobody has asked for it"}, number)
        else:
            _, future = conversation.waiting.pop(number)
            if future is None:
                self.healthy += 1
                return True
            if kind in {"InternalError", "InvalidMessage"}:
                future.set_exception(CallError(message["error"]))
            else:
                future.set_result(message)
        return False


class RawPeer:
    """A TCP client that says what it is told to, byte for byte, and answers nothing by itself."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def upgrade(self, path: str = "/monitor") -> bytes:
        """Open a websocket; returns the head of the response."""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: vm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.socket.recv(1)
            if not piece:
                break
            head += piece
        return head

    def say(self, payload: bytes, *, opcode: int = 1) -> None:
        """Send one frame."""
        self.socket.sendall(_frame(payload, opcode))

    def say_all(self, payloads: list[bytes]) -> None:
        """Send many frames at once; what the other side does not take any more is lost."""
        with contextlib.suppress(OSError):
            self.socket.sendall(b"".join(_frame(payload, 1) for payload in payloads))

    def hears(self) -> bytes:
        """Take one frame in, whatever it is; returns what it holds."""
        length = self._take(2)[1]
        if length >= 126:
            length = int.from_bytes(self._take(2 if length == 126 else 8), "big")
        return self._take(length)

    def _take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            piece = self.socket.recv(size - len(taken))
            assert piece, "the connection is over"
            taken += piece
        return taken

    def offer(self) -> None:
        self.upgrade()
        self.say(b'{"min":1,"max":1}')

    def reset(self) -> None:
        """Go without a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        self.socket.close()

    def is_closed_by_the_other_side(self) -> bool:
        """Read what there is, to its end; False after 30 s."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True


def _frame(payload: bytes, opcode: int) -> bytes:
    """Build a frame, masked with zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))

"""A pageserver's gRPC side: base backups and leases, with a switchboard of faults."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from compute_node.postgres.page_api_call import BASE_BACKUP, LEASE

from fix_postgres import absent, wait_until


def a_message(data: bytes) -> bytes:
    """GetBaseBackupResponseChunk, with a field that nobody knows yet."""
    size = len(data)
    return b"\x0a" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + data + b"\x10\x01"


def a_lease(until_ms: int) -> bytes:
    """LeaseLsnResponse: a Timestamp of seconds and nanoseconds."""
    parts = ((1, until_ms // 1000), (2, until_ms % 1000 * 1_000_000))
    time = b"".join(bytes([number << 3]) + _varint(value) for number, value in parts if value)
    return b"\x0a" + bytes([len(time)]) + time


def _varint(value: int) -> bytes:
    rest, low = divmod(value, 128)
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


class PageApiServer:
    """One server; `answer` is given what to do with a call for a backup, and yields data."""

    def __init__(self, grpc: Any) -> None:
        self.requests: list[tuple[str, bytes]] = []
        """Method and message of each call."""
        self.metadata: dict[str, str] = {}
        """Of the last call."""
        self.answer: Callable[[Any], Iterator[bytes]] = lambda _: iter(())
        self.lease: bytes = a_lease(1789000000500)
        """What a call for a lease is answered with."""
        self.fails: tuple[str, str] | None = None
        """A call for a lease ends with this status and text."""
        self.deaf = False
        """A call for a lease is not answered."""
        self._grpc = grpc
        self._server = grpc.server(ThreadPoolExecutor(2))
        methods = {
            BASE_BACKUP: grpc.unary_stream_rpc_method_handler(self._back_up),
            LEASE: grpc.unary_unary_rpc_method_handler(self._lease),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("page_api.PageService", methods),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def url(self) -> str:
        """What a spec says of it."""
        return f"grpc://127.0.0.1:{self.port}"

    def _heard(self, method: str, asked: bytes, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.requests.append((method, asked))

    def _back_up(self, asked: bytes, context: Any) -> Iterator[bytes]:
        self._heard(BASE_BACKUP, asked, context)
        for data in self.answer(context):
            yield a_message(data)

    def _lease(self, asked: bytes, context: Any) -> bytes:
        self._heard(LEASE, asked, context)
        if self.deaf:
            wait_until(lambda: not context.is_active(), "the caller has left", 50)
        if self.fails is not None:
            status, text = self.fails
            context.abort(self._grpc.StatusCode[status], text)
        return self.lease

    def fail_after(self, data: Iterator[bytes], count: int, status: str, text: str) -> None:
        """Send so many chunks of a backup, and then this."""

        def answer(context: Any) -> Iterator[bytes]:
            for number, part in enumerate(data):
                if number == count:
                    break
                yield part
            context.abort(self._grpc.StatusCode[status], text)

        self.answer = answer

    def close(self) -> None:
        self._server.stop(grace=None).wait(20)


@contextlib.contextmanager
def page_api_server() -> Iterator[PageApiServer]:
    """Serve meanwhile."""
    if importlib.util.find_spec("grpc") is None:
        absent("the library for gRPC (the extra grpc)")
    import grpc

    made = PageApiServer(grpc)
    try:
        yield made
    finally:
        made.close()

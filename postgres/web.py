"""One request over HTTP and its response: ended at once by a cancellation, and limited as a whole in time and size.

For jobs, on whose thread it runs. Redirects and proxies are not followed: a token is for the host that is named.
"""

import io
import os
import re
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from .coroutines import Cancellation, run_async
from .hosts import look_up

if TYPE_CHECKING:
    import socket
    from asyncio import StreamReader, StreamWriter
    from http.client import HTTPResponse
    from ssl import SSLContext
    from urllib.parse import SplitResult

_PIECE: Final = 256 << 10
_HEAD_SIZE: Final = 64 << 10
_HEAD_END: Final = b"\r\n\r\n"
_LINE_END: Final = b"\r\n"
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1(?!01)\d\d[ \r]")
_LOOK_S: Final = 1.0
"""Between two looks at how much of a request is out."""
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;|$)")


class WebError(Exception):
    """There was no response that could be read; the message says why, and never repeats a header.

    `passing`: the next try may succeed. `reading`: its beginning was there.
    """

    def __init__(self, text: str, *, passing: bool = True, reading: bool = False) -> None:
        super().__init__(text)
        self.passing = passing
        self.reading = reading


class Limits(msgspec.Struct, frozen=True):
    """What an exchange may take, in seconds and bytes."""

    total_s: float
    connect_s: float = 5.0
    """For each address of the host."""
    silence_s: float = 30.0
    """While it takes nothing of the request; until its answer begins; between two pieces of that."""
    size: int = 64 << 20


class Request(msgspec.Struct, frozen=True):
    """What is asked; `url` is one of `http` or `https`, without credentials. The certificates are OpenSSL's."""

    url: str
    headers: Mapping[str, str] = {}
    method: str = "GET"
    body: bytes | None = None


class Response(msgspec.Struct, frozen=True):
    """What came back; only with the status 200 the body is read."""

    status: int
    body: bytes = b""

    @property
    def label(self) -> str:
        """Number and usual reason: `404 Not Found`."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return f"{self.status} <unknown status code>"


def exchange(request: Request, limits: Limits, cancellation: Cancellation) -> Response:
    """Send a request, and return the response once it is whole. Raises WebError, and what the cancellation raises."""
    return run_async(lambda: _within(request, limits), cancellation)


async def _within(request: Request, limits: Limits) -> Response:
    import asyncio

    head = _head_of(request)
    try:
        async with asyncio.timeout(limits.total_s):
            return await _exchange(request, head, limits)
    except TimeoutError:
        msg = f"no whole response within {limits.total_s:g} s"
        raise WebError(msg) from None


def _head_of(request: Request) -> bytes:
    parts = _parts_of(request.url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{request.method} {path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    lines += [] if request.body is None else [f"Content-Length: {len(request.body)}"]
    if not all(line.isascii() and line.isprintable() for line in lines):
        msg = "its URL or a header (the token?) has characters that cannot be sent"
        raise WebError(msg, passing=False)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def _parts_of(url: str) -> "SplitResult":
    try:
        parts = urlsplit(url)
        _ = parts.port  # it is judged here
    except ValueError as error:
        msg = f"its URL cannot be used: {error}"
        raise WebError(msg, passing=False) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = "its URL cannot be used: give it as http://host:port or https://host:port"
        raise WebError(msg, passing=False)
    return parts


async def _exchange(request: Request, head: bytes, limits: Limits) -> Response:
    reader, writer = await _connect(urlsplit(request.url), limits)
    try:
        writer.write(head + (request.body or b""))
        response = await _begin(reader, writer, limits.silence_s)
        if response.status != HTTPStatus.OK:
            return Response(response.status)
        return Response(response.status, await _body(response, reader, limits))
    finally:
        writer.transport.abort()


async def _connect(parts: "SplitResult", limits: Limits) -> "tuple[StreamReader, StreamWriter]":
    import asyncio

    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    context = _tls() if parts.scheme == "https" else None
    try:
        addresses = await look_up(host, port)
    except OSError as error:
        msg = f"the host {host!r} cannot be found: {error.strerror or error}"
        raise WebError(msg) from error
    failure = ""
    for address in addresses:
        try:
            async with asyncio.timeout(limits.connect_s):
                return await asyncio.open_connection(
                    address, port, ssl=context, server_hostname=host if context else None, limit=_HEAD_SIZE
                )
        except TimeoutError:
            failure = f"no answer within {limits.connect_s:g} s"
        except OSError as error:
            failure = _why(error)
    msg = f"no connection to {host}, port {port}: {failure}"
    raise WebError(msg)


def _tls() -> "SSLContext":
    import ssl

    return ssl.create_default_context()


async def _begin(reader: "StreamReader", writer: "StreamWriter", silence_s: float) -> "HTTPResponse":
    """Wait for the beginning of the response; it may come before the request is out."""
    import asyncio
    from http.client import HTTPException, HTTPResponse

    now = asyncio.get_running_loop().time
    reading = asyncio.ensure_future(_head(reader))
    unsent, moved_s = writer.transport.get_write_buffer_size(), now()
    try:
        while not (await asyncio.wait({reading}, timeout=min(_LOOK_S, silence_s)))[0]:
            before, unsent = unsent, writer.transport.get_write_buffer_size()
            if unsent != before:
                moved_s = now()
            elif now() - moved_s >= silence_s:
                msg = f"no answer within {silence_s:g} s"
                raise WebError(msg)
        response = HTTPResponse(cast("socket.socket", _Bytes(await reading)))
        response.begin()
    except asyncio.IncompleteReadError as error:
        where = "within the head of a response, if it is one" if error.partial else "without a response"
        msg = f"the connection ended {where}"
        raise WebError(msg) from error
    except (asyncio.LimitOverrunError, HTTPException, ValueError) as error:
        msg = f"what came is no HTTP: {type(error).__name__}: {str(error)[:100]!r}"
        raise WebError(msg) from error
    except OSError as error:
        raise WebError(_lost(error)) from error
    finally:
        reading.cancel()
    return response


async def _head(reader: "StreamReader") -> bytes:
    """Take the head of the response; those that only announce it (`100 Continue`) are left."""
    while _INTERIM.match(head := await reader.readuntil(_HEAD_END)):
        pass
    return head


async def _body(response: "HTTPResponse", reader: "StreamReader", limits: Limits) -> bytes:
    import asyncio

    body = _Body(reader, limits)
    try:
        if response.chunked:
            await body.take_chunks()
        else:
            await body.take(response.length)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        msg = f"its chunks are damaged: {type(error).__name__}"
        raise WebError(msg, reading=True) from error
    except OSError as error:
        raise WebError(_lost(error), reading=True) from error
    return bytes(body.data)


class _Body:
    """Collects the body of a response."""

    def __init__(self, reader: "StreamReader", limits: Limits) -> None:
        self._reader = reader
        self._limits = limits
        self.data = bytearray()

    async def take(self, length: int | None) -> None:
        """Take so many bytes; None: all until the end of the connection."""
        if length is not None:
            self._check(len(self.data) + length)
        end = None if length is None else len(self.data) + length
        while end is None or len(self.data) < end:
            size = _PIECE if end is None else min(_PIECE, end - len(self.data))
            piece = await self._in_time(self._reader.read(size))
            self.data += piece
            self._check(len(self.data))
            if not piece and end is None:
                return
            if not piece:
                msg = f"it ended after {len(self.data)} of {end} bytes"
                raise WebError(msg, reading=True)

    async def take_chunks(self) -> None:
        """Take chunk after chunk until the empty one; what trails it is left."""
        while size := _size(await self._line()):
            await self.take(size)
            if await self._line():
                msg = "the end of a chunk is missing"
                raise ValueError(msg)

    async def _line(self) -> bytes:
        return (await self._in_time(self._reader.readuntil(_LINE_END))).removesuffix(_LINE_END)

    async def _in_time(self, reading: Awaitable[bytes]) -> bytes:
        import asyncio

        try:
            async with asyncio.timeout(self._limits.silence_s):
                return await reading
        except TimeoutError:
            msg = f"it has sent nothing for {self._limits.silence_s:g} s"
            raise WebError(msg, reading=True) from None

    def _check(self, size: int) -> None:
        if size > self._limits.size:
            msg = f"it has {size} bytes or more, and at most {self._limits.size} are taken"
            raise WebError(msg, passing=False, reading=True)


def _size(line: bytes) -> int:
    """Read the line before a chunk. Raises ValueError."""
    found = _CHUNK.match(line)
    if found is None:
        msg = "this is no size"
        raise ValueError(msg)
    return int(found[1], 16)


class _Bytes:
    """What HTTPResponse wants of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:  # noqa: ANN401 - as a socket's
        return io.BytesIO(self._data)


def _lost(error: OSError) -> str:
    return f"the connection was lost: {_why(error)}"


def _why(error: OSError) -> str:
    """Say what happened, which asyncio's own text of an error does not."""
    import ssl

    return str(error) if isinstance(error, ssl.SSLError) or not error.errno else os.strerror(error.errno)

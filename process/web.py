"""One GET over HTTP: ended at once by a cancellation, and limited as a whole in time and size."""

import io
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from ..actors.kit.jobs import Cancellation
from ..postgres.connection import find_addresses, run_async

if TYPE_CHECKING:
    import asyncio
    import socket
    from ssl import SSLContext
    from urllib.parse import SplitResult

MAX_BYTES: Final = 64 << 20
"""A response that is larger is not read."""
_CHUNK: Final = 65_536
_HEADERS_END: Final = b"\r\n\r\n"


class WebError(Exception):
    """There was no response that could be read; the message says why."""


class Response(msgspec.Struct, frozen=True):
    """What came back."""

    status: int
    body: bytes

    @property
    def label(self) -> str:
        """Number and reason: `404 Not Found`."""
        return label_of(self.status)


def label_of(status: int) -> str:
    """Return number and usual reason of a status."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} <unknown status code>"


def get(url: str, headers: Mapping[str, str], cancellation: Cancellation, *, timeout_s: float) -> Response:
    """Ask for an `http` or `https` URL without credentials; redirects and proxies are not followed.

    Raises WebError, which never repeats headers, and CancelledError.
    """
    parts = urlsplit(url)
    try:
        places = find_addresses(parts.hostname or "", _port(parts))
    except OSError as error:
        msg = f"the host {parts.hostname!r} cannot be found: {error.strerror or error}"
        raise WebError(msg) from error
    lines = [f"GET {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "".join(f"{line}\r\n" for line in (*lines, "")).encode()
    return run_async(lambda: _within(timeout_s, parts, places, request), cancellation)


async def _within(
    timeout_s: float, parts: "SplitResult", places: tuple[str, ...], request: bytes
) -> Response:
    import asyncio

    try:
        async with asyncio.timeout(timeout_s):
            return await _get(parts, places, request)
    except TimeoutError:
        msg = f"no whole response within {timeout_s:g} s"
        raise WebError(msg) from None


async def _get(parts: "SplitResult", places: tuple[str, ...], request: bytes) -> Response:
    import asyncio

    context = _context() if parts.scheme == "https" else None
    failure: OSError | None = None
    for place in places:
        try:
            reader, writer = await asyncio.open_connection(
                place, _port(parts), ssl=context, server_hostname=parts.hostname if context else None
            )
        except OSError as error:
            failure = error
            continue
        try:
            writer.write(request)
            return await _read(reader)
        except OSError as error:
            msg = f"the connection was lost: {error}"
            raise WebError(msg) from error
        finally:
            writer.transport.abort()
    msg = f"no connection to {parts.hostname}, port {_port(parts)}: {failure}"
    raise WebError(msg) from failure


async def _read(reader: "asyncio.StreamReader") -> Response:
    """Read until the response is whole; some servers do not close the connection after it."""
    data = b""
    while chunk := await reader.read(_CHUNK):
        data += chunk
        if len(data) > MAX_BYTES:
            msg = f"the response has more than {MAX_BYTES >> 20} MiB"
            raise WebError(msg)
        if (response := parse(data, ended=False)) is not None:
            return response
    response = parse(data, ended=True)
    if response is None:
        msg = f"the response broke off after {len(data)} bytes"
        raise WebError(msg)
    return response


def parse(data: bytes, *, ended: bool) -> Response | None:
    """Read a response from its bytes so far; None while it is not whole. Raises WebError when it is none."""
    from http.client import HTTPException, HTTPResponse, IncompleteRead

    if _HEADERS_END not in data:
        return None
    response = HTTPResponse(cast("socket.socket", _Bytes(data)), method="GET")
    try:
        response.begin()
        if response.length is None and not response.chunked and not ended:
            return None
        if response.chunked and not data.endswith(_HEADERS_END):
            return None  # a size that is cut off may read as the last one
        return Response(response.status, response.read())
    except IncompleteRead:
        return None
    except (HTTPException, ValueError) as error:
        msg = f"what came is no HTTP: {type(error).__name__}: {str(error)[:100]!r}"
        raise WebError(msg) from error


class _Bytes:
    """What HTTPResponse wants of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:  # noqa: ANN401 - as a socket's
        return io.BytesIO(self._data)


def _port(parts: "SplitResult") -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _context() -> "SSLContext":
    import ssl

    return ssl.create_default_context()

"""Where states are kept: endpoint storage over HTTP, or a local folder. Light to import; its libraries come late."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never

from typing_extensions import override

from ..kit.jobs import Cancellation
from .packing import MAX_BODY
from .places import KEY, EndpointPlace, FolderPlace, Place
from .port import Store, StoreError

if TYPE_CHECKING:
    from http.client import HTTPResponse

CONNECT_S: Final = 5.0
"""For each address of the storage."""
SILENCE_S: Final = 30.0
"""Longest wait for the next bytes; the storage tries its own backend up to ten times."""
TOTAL_S: Final = 120.0
PIECE: Final = 256 * 1024

QUERYING: Final = "querying endpoint storage"
"""This text and the next two are the counterpart's."""
READING: Final = "getting request body from endpoint storage"
WRITING: Final = "writing to endpoint storage"
TOO_LARGE: Final = 413
TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
DENIED: Final = frozenset({400, 401, 403})
_NEW: Final = ".new-"

log = logging.getLogger("compute_node.lfc")


class Limits:
    """The time limits of one transfer, in seconds."""

    def __init__(
        self, connect_s: float = CONNECT_S, silence_s: float = SILENCE_S, total_s: float = TOTAL_S
    ) -> None:
        self.connect_s = connect_s
        self.silence_s = silence_s
        self.total_s = total_s


class Stores(Store):
    """Keeps states where each place says."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()

    @override
    def fetch(self, place: Place, cancellation: Cancellation) -> bytes | None:
        cancellation.check()
        match place:
            case EndpointPlace():
                return _get(place, self._limits, cancellation)
            case FolderPlace():
                return _read(place)
            case _:
                assert_never(place)

    @override
    def put(self, place: Place, body: bytes, cancellation: Cancellation) -> None:
        cancellation.check()
        if len(body) > MAX_BODY:
            msg = f"{WRITING}: the state has {len(body)} bytes, and at most {MAX_BODY} are kept"
            raise StoreError(msg)
        match place:
            case EndpointPlace():
                _put(place, body, self._limits, cancellation)
            case FolderPlace():
                _write(place, body)
            case _:
                assert_never(place)


# --- Endpoint storage --------------------------------------------------------------------------------------


class _Socket(socket.socket):
    """Gives no read and no write more time than the transfer has left, whatever trickles in."""

    silence_s: float = SILENCE_S
    deadline_s: float = 0.0
    cancellation: Cancellation

    def limit(self) -> None:
        left_s = self.deadline_s - self.cancellation.now()
        if left_s <= 0:
            msg = "the whole takes too long"
            raise TimeoutError(msg)
        self.settimeout(min(self.silence_s, left_s))

    @override
    def recv_into(self, *args: Any, **options: Any) -> int:
        self.limit()
        return super().recv_into(*args, **options)

    @override
    def sendall(self, data: Any, flags: int = 0) -> None:
        for begin in range(0, len(data), PIECE):
            self.limit()
            super().sendall(memoryview(data)[begin : begin + PIECE], flags)


def _get(place: EndpointPlace, limits: Limits, cancellation: Cancellation) -> bytes | None:
    with _asked("GET", place, None, limits, cancellation) as response:
        if response.status == 404:  # noqa: PLR2004 - not found
            return None
        if response.status != 200:  # noqa: PLR2004 - fine
            raise _status_error(response, f"{_status(response)} {QUERYING}")
        return _body(response)


def _put(place: EndpointPlace, body: bytes, limits: Limits, cancellation: Cancellation) -> None:
    with _asked("PUT", place, body, limits, cancellation) as response:
        if response.status != 200:  # noqa: PLR2004 - fine
            text = f"{WRITING}: Request to endpoint storage failed with status: {_status(response)}"
            if response.status == TOO_LARGE:
                text += f"; the state has {len(body)} bytes: that is more than the storage takes"
            raise _status_error(response, text)


def _body(response: "HTTPResponse") -> bytes:
    """Read a body to its end, as long as was announced. Raises StoreError."""
    from http.client import HTTPException

    announced = response.length
    if announced is not None and announced > MAX_BODY:
        msg = f"{READING}: it has {announced} bytes, and at most {MAX_BODY} are taken"
        raise StoreError(msg)
    body = bytearray()
    try:
        while piece := response.read(PIECE):
            body += piece
            if len(body) > MAX_BODY:
                msg = f"{READING}: it has more than {MAX_BODY} bytes"
                raise StoreError(msg)
    except (OSError, HTTPException) as error:
        msg = f"{READING}: {_cause(error)}"
        raise StoreError(msg, transient=True) from None
    if announced is not None and len(body) != announced:
        msg = f"{READING}: it ended after {len(body)} of {announced} bytes"
        raise StoreError(msg, transient=True)
    return bytes(body)


@contextlib.contextmanager
def _asked(
    method: str, place: EndpointPlace, body: bytes | None, limits: Limits, cancellation: Cancellation
) -> "Iterator[HTTPResponse]":
    """Send a request and give its response; the connection is closed afterwards. Raises StoreError.

    Redirections are not followed: the token is meant for this storage.
    """
    from http.client import HTTPConnection, HTTPException

    doing = QUERYING if body is None else WRITING
    host, _, port = place.address.rpartition(":")
    connection: HTTPConnection = HTTPConnection(host.strip("[]"), int(port))
    deadline_s = cancellation.now() + limits.total_s
    try:
        try:
            connection.sock = _connect(host.strip("[]"), int(port), limits, deadline_s, cancellation)
            headers = {"Authorization": f"Bearer {place.token.reveal()}"}
            connection.request(method, place.path, body, headers)
            response = connection.getresponse()
        except (OSError, HTTPException, ValueError) as error:
            cancellation.check()
            msg = f"{doing}: {_cause(error)}"
            raise StoreError(msg, transient=not isinstance(error, ValueError)) from None
        try:
            yield response
        except StoreError:
            cancellation.check()
            raise
        cancellation.check()
    finally:
        connection.close()


def _connect(
    host: str, port: int, limits: Limits, deadline_s: float, cancellation: Cancellation
) -> socket.socket:
    """Connect to the first address that answers; a cancellation wakes whoever waits on the socket."""
    failure: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        cancellation.check()
        made = _Socket(family, kind, protocol)
        made.silence_s, made.deadline_s, made.cancellation = limits.silence_s, deadline_s, cancellation
        made.settimeout(limits.connect_s)
        cancellation.on_request(lambda made=made: _shut(made))  # type: ignore[misc] # bound at once
        try:
            made.connect(address)
        except OSError as error:
            made.close()
            failure = error
        else:
            return made
    raise failure or OSError("there is no such host")


def _shut(made: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        made.shutdown(socket.SHUT_RDWR)


def _status(response: "HTTPResponse") -> str:
    from http import HTTPStatus

    try:
        return f"{response.status} {HTTPStatus(response.status).phrase}"
    except ValueError:
        return str(response.status)


def _status_error(response: "HTTPResponse", text: str) -> StoreError:
    if response.status in DENIED:
        text += "; is the spec's `endpoint_storage_token` for this tenant, timeline and endpoint, and not expired?"
    return StoreError(text, transient=response.status in TRANSIENT)


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in time ({error})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, ValueError):
        return "the token has characters that cannot be sent"  # its own text would show it
    return f"{type(error).__name__}: what answers does not speak HTTP as it should"


# --- A local folder ----------------------------------------------------------------------------------------


def _read(place: FolderPlace) -> bytes | None:
    path = Path(place.folder, place.name, KEY)
    try:
        with path.open("rb") as file:
            body = file.read(MAX_BODY + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"reading {path}: {error.strerror}"
        raise StoreError(msg) from None
    if len(body) > MAX_BODY:
        msg = f"reading {path}: it has more than {MAX_BODY} bytes"
        raise StoreError(msg)
    return body


def _write(place: FolderPlace, body: bytes) -> None:
    """Put a new file into the place of the old one, which stays until the new one is safe on the disk."""
    import tempfile

    folder = Path(place.folder, place.name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob(f"{_NEW}*"):  # by a node that was killed
            left.unlink(missing_ok=True)
        descriptor, new = tempfile.mkstemp(prefix=_NEW, dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            Path(new).replace(folder / KEY)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(new).unlink(missing_ok=True)
            raise
        _sync_folder(folder)
        _sync_folder(Path(place.folder))
    except OSError as error:
        msg = f"writing {folder / KEY}: {error.strerror}"
        raise StoreError(msg) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Where states are kept: endpoint storage over HTTP, or a local folder. Light to import; its libraries come late."""

import contextlib
import logging
import os
from http import HTTPStatus
from pathlib import Path
from typing import Final, assert_never

from typing_extensions import override

from ...postgres.web import Limits, Request, Response, WebError, exchange
from ..kit.files import make_durable
from ..kit.jobs import Cancellation
from .packing import MAX_BODY
from .places import KEY, EndpointPlace, FolderPlace, Place
from .port import Store, StoreError

LIMITS: Final = Limits(total_s=120.0, silence_s=30.0, size=MAX_BODY)
"""Silent it may be for long: it tries its own backend up to ten times."""

QUERYING: Final = "querying endpoint storage"
"""This text and the next two are the counterpart's."""
READING: Final = "getting request body from endpoint storage"
WRITING: Final = "writing to endpoint storage"
TRANSIENT: Final = frozenset({408, 425, 429, *range(500, 600)})
DENIED: Final = frozenset({400, 401, 403})
_NEW: Final = ".new-"

log = logging.getLogger("compute_node.lfc")


class Stores(Store):
    """Keeps states where each place says."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits

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


def _get(place: EndpointPlace, limits: Limits, cancellation: Cancellation) -> bytes | None:
    response = _ask(place, None, limits, cancellation)
    if response.status == HTTPStatus.NOT_FOUND:
        return None
    if response.status != HTTPStatus.OK:
        raise _refused(response, f"{response.label} {QUERYING}")
    return response.body


def _put(place: EndpointPlace, body: bytes, limits: Limits, cancellation: Cancellation) -> None:
    response = _ask(place, body, limits, cancellation)
    if response.status != HTTPStatus.OK:
        text = f"{WRITING}: Request to endpoint storage failed with status: {response.label}"
        if response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            text += f"; the state has {len(body)} bytes: that is more than the storage takes"
        raise _refused(response, text)


def _ask(place: EndpointPlace, body: bytes | None, limits: Limits, cancellation: Cancellation) -> Response:
    request = Request(
        f"http://{place.address}{place.path}",
        {"Authorization": f"Bearer {place.token.reveal()}"},
        "GET" if body is None else "PUT",
        body,
    )
    try:
        return exchange(request, limits, cancellation)
    except WebError as error:
        doing = READING if error.reading else QUERYING if body is None else WRITING
        msg = f"{doing}: {error}"
        raise StoreError(msg, transient=error.passing) from None


def _refused(response: Response, text: str) -> StoreError:
    if response.status in DENIED:
        text += "; is the spec's `endpoint_storage_token` for this tenant, timeline and endpoint, and not expired?"
    return StoreError(text, transient=response.status in TRANSIENT)


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
        make_durable(str(folder))
        make_durable(place.folder)
    except OSError as error:
        msg = f"writing {folder / KEY}: {error.strerror}"
        raise StoreError(msg) from None

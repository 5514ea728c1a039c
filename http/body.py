"""Bodies and queries: read within limits, decoded exactly, refused in the counterpart's words."""

import re
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from .errors import ApiError, lowered

T = TypeVar("T", bound=msgspec.Struct)

NOT_JSON_TYPE: Final = "expected request with `content-type: application/json`"
NOT_JSON: Final = "failed to parse the request body as json"
WRONG_SHAPE: Final = "failed to deserialize the json body into the target type"
TOO_LARGE: Final = "failed to buffer the request body: length limit exceeded"
BAD_QUERY: Final = "failed to deserialize query string"
BAD_FORM: Final = "failed to deserialize form body"
FORM: Final = "application/x-www-form-urlencoded"

MAX_QUERY_FIELDS: Final = 64

_JSON_TYPE: Final = re.compile(r"\s*application/(?:[^\s;/]+\+)?json\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)


class Stream(Protocol):
    """A request's body."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes; none at its end."""
        ...


def too_large(limit: int) -> ApiError:
    """Make the refusal of a body over the limit (bytes)."""
    return ApiError(413, f"{TOO_LARGE} (at most {limit} bytes are taken here)")


def read_body(stream: Stream, announced: int | None, limit: int) -> bytes:
    """Read a body of at most `limit` bytes; `announced` is its Content-Length. Raises ApiError (413)."""
    if announced is not None and announced > limit:
        raise too_large(limit)
    body = bytearray()
    while len(body) <= limit and (part := stream.read(limit + 1 - len(body))):
        body += part
    if len(body) > limit:
        raise too_large(limit)
    return bytes(body)


def decode_body(
    body: bytes, content_type: str | None, decoder: msgspec.json.Decoder[Any]
) -> tuple[Any, object]:
    """Decode a JSON body; returns it typed, and as it came. Raises ApiError (400, 415, 422)."""
    if _JSON_TYPE.fullmatch(content_type or "") is None:
        raise ApiError(415, NOT_JSON_TYPE)
    try:
        plain = msgspec.json.decode(body)
        return decoder.decode(body), plain
    except RecursionError:
        raise ApiError(400, f"{NOT_JSON}: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ApiError(400, f"{NOT_JSON}: invalid utf-8 ({error.reason})") from None
    except msgspec.ValidationError as error:
        raise ApiError(422, f"{WRONG_SHAPE}: {lowered(str(error))}") from None
    except msgspec.DecodeError as error:
        raise ApiError(400, f"{NOT_JSON}: {lowered(str(error))}") from None


def is_form(content_type: str | None) -> bool:
    """Whether a body says that it is a form."""
    return (content_type or "").partition(";")[0].strip().lower() == FORM


def decode_form(body: bytes, kind: type[T]) -> T:
    """Decode a form; unknown fields are ignored. Raises ApiError (422)."""
    try:
        return _fields(body.decode(), kind)
    except ValueError as error:
        raise ApiError(422, f"{BAD_FORM}: {lowered(str(error))}") from None


def decode_query(query: str, kind: type[T]) -> T:
    """Decode a query string; unknown parameters are ignored. Raises ApiError (400)."""
    try:
        return _fields(query, kind)
    except ValueError as error:
        raise ApiError(400, f"{BAD_QUERY}: {lowered(str(error))}") from None


def _fields(text: str, kind: type[T]) -> T:
    """Read what a query and a form are alike in. Raises ValueError."""
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    values: dict[str, str] = {}
    for name, value in parse_qsl(
        text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
    ):
        if name in values and name in known:
            msg = f"duplicate field `{name}`"
            raise ValueError(msg)
        values[name] = value
    return msgspec.convert(values, kind, strict=False)

"""What every message is: an immutable value that may cross a thread, and how it is written down."""

from typing import Any, Generic, TypeVar

import msgspec

from .secret import Secret
from .stream import ByteStream

R = TypeVar("R")


class Message(msgspec.Struct, frozen=True, tag=True, tag_field="message"):
    """An immutable value that one actor tells another; encodes to JSON and back, but for a ByteStream."""


class Request(Message, Generic[R], frozen=True):
    """A message whose sender waits for an `R`."""


class Summarised(msgspec.Struct, frozen=True):
    """A value too long and too private for logs and journal: there it shows as its `repr`."""


class AskError(Exception):
    """A request got no answer; the message says which and why."""


class AskTimeoutError(AskError):
    """The answer did not come within the time the asker gave; the work may still go on."""


class ActorUnavailableError(AskError):
    """The actor that was asked is not running, or ended before it answered."""


def encode(message: object) -> bytes:
    """Write a message as JSON with its secrets in clear; for the wire and for round trips, never for logs."""
    return msgspec.json.encode(message, enc_hook=_reveal)


def decode(kind: Any, data: bytes) -> Any:  # noqa: ANN401 - msgspec decodes any type it is given
    """Read what `encode` wrote as a `kind` (a message class or a union of them).

    Raises msgspec.ValidationError for the wrong shape and msgspec.DecodeError for what is not JSON.
    """
    return msgspec.json.decode(data, type=kind, dec_hook=decode_hook)


def redacted(message: object) -> bytes:
    """Write a message as JSON with every secret masked and every Summarised field as its summary.

    What journals and logs show.
    """
    if isinstance(message, Summarised):
        message = repr(message)
    elif isinstance(message, msgspec.Struct):
        fields = {name: getattr(message, name) for name in message.__struct_fields__}
        short = {name: repr(value) for name, value in fields.items() if isinstance(value, Summarised)}
        if short:
            kept = {name: value for name, value in fields.items() if value is not msgspec.UNSET}
            config = message.__struct_config__
            message = {**({config.tag_field: config.tag} if config.tag_field else {}), **kept, **short}
    return msgspec.json.encode(message, enc_hook=_mask)


def decode_hook(kind: type, value: object) -> object:
    """Build our own types from JSON values; the `dec_hook` of every decoder of this project."""
    if kind is Secret:
        if not isinstance(value, str):
            msg = f"Expected `str`, got `{type(value).__name__}`"
            raise ValueError(msg)
        return Secret(value)
    msg = f"{kind.__name__} cannot be read from JSON"
    raise NotImplementedError(msg)


def schema_hook(kind: type) -> dict[str, Any]:
    """Describe our own types as JSON Schema; the `schema_hook` of every schema of this project."""
    if kind is Secret:
        return {"type": "string", "writeOnly": True}
    msg = f"{kind.__name__} has no schema"
    raise NotImplementedError(msg)


def _reveal(value: object) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    msg = f"{type(value).__name__} has no JSON form"
    raise NotImplementedError(msg)


def _mask(value: object) -> object:
    return str(value) if isinstance(value, Secret | ByteStream) else _reveal(value)

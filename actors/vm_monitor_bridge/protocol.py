"""The autoscaler agent's protocol, version 1: what is said both ways, and how it is written. Pure.

One message a text frame, JSON. Source: the `protocols` reference, 8.3 and 8.4.
"""

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

VERSION: Final = 1
"""The only one that is spoken here."""
FIRST_ID: Final = 3
ID_STEP: Final = 2
"""Our own requests have odd numbers, the agent's even ones."""
MAX_TEXT: Final = 500
"""Characters that are kept of a text that the agent sends."""
NO_ID: Final = 0
"""The number of an answer to what has none that can be read."""

U8 = Annotated[int, Meta(ge=0, le=255)]
Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Bytes = Annotated[int, Meta(ge=0)]
"""Up to 64 bits; checked where it is used, since msgspec takes no bound beyond 63."""
MAX_BYTES: Final = 2**64 - 1


class Offer(msgspec.Struct, frozen=True):
    """The versions that the agent speaks, both ends included."""

    min: U8
    max: U8


class Chosen(msgspec.Struct, frozen=True):
    """The version that is spoken from here on."""

    version: int


class NoVersion(msgspec.Struct, frozen=True):
    """There is no common version; the connection ends."""

    error: str


def negotiate(offer: Offer) -> Chosen | NoVersion:
    """Choose the highest common version."""
    if offer.min <= VERSION <= offer.max:
        return Chosen(VERSION)
    return NoVersion(
        f"Received protocol version range {offer.min} to {offer.max} which does not overlap with v{VERSION}.0"
    )


class Resources(msgspec.Struct, frozen=True):
    """What a machine has: virtual processors, of which nothing is made here, and bytes of memory."""

    cpu: float
    mem: Bytes

    def __post_init__(self) -> None:
        """Refuse what does not fit into 64 bits."""
        if self.mem > MAX_BYTES:
            msg = f"{self.mem} bytes do not fit into 64 bits"
            raise ValueError(msg)


class _Granted(msgspec.Struct, frozen=True):
    granted: Resources


class _Target(msgspec.Struct, frozen=True):
    target: Resources


class _Error(msgspec.Struct, frozen=True):
    error: str


# --- The agent says ----------------------------------------------------------------------------------------


class _FromAgent(msgspec.Struct, frozen=True, tag_field="type", tag=True):
    id: Id


class HealthCheck(_FromAgent, frozen=True):
    """Ask whether anybody is there."""


class UpscaleNotification(_FromAgent, frozen=True):
    """The machine has grown."""

    content: _Granted


class DownscaleRequest(_FromAgent, frozen=True):
    """Ask whether the machine may shrink."""

    content: _Target


class InvalidMessage(_FromAgent, frozen=True):
    """Something that was sent was not understood."""

    content: _Error


class InternalError(_FromAgent, frozen=True):
    """Something that was asked for could not be done."""

    content: _Error


FromAgent: TypeAlias = HealthCheck | UpscaleNotification | DownscaleRequest | InvalidMessage | InternalError


class Unreadable(msgspec.Struct, frozen=True, tag=True, tag_field="type"):
    """What was sent is no message; `id` is NO_ID when it has none that can be read."""

    error: str
    id: int


_messages: Final = msgspec.json.Decoder(FromAgent)
_offers: Final = msgspec.json.Decoder(Offer)


def read_offer(text: str) -> Offer:
    """Read the agent's first message. Raises ValueError, also for a range without a version."""
    try:
        offer = _offers.decode(text)
    except RecursionError:
        msg = "it is nested too deeply"
        raise ValueError(msg) from None
    if offer.min > offer.max:
        msg = f"the version range {offer.min} to {offer.max} is empty"
        raise ValueError(msg)
    return offer


def read(text: str) -> FromAgent | Unreadable:
    """Read a message of the agent; never raises, whatever the text is."""
    try:
        return _shortened(_messages.decode(text))
    except RecursionError:
        return Unreadable("it is nested too deeply", NO_ID)
    except ValueError as error:
        return Unreadable(str(error)[:MAX_TEXT], _id_of(text))


def _shortened(message: FromAgent) -> FromAgent:
    if isinstance(message, (InvalidMessage, InternalError)) and len(message.content.error) > MAX_TEXT:
        return msgspec.structs.replace(message, content=_Error(message.content.error[:MAX_TEXT]))
    return message


class _Numbered(msgspec.Struct, frozen=True):
    id: Id


_numbered: Final = msgspec.json.Decoder(_Numbered)


def _id_of(text: str) -> int:
    try:
        return _numbered.decode(text).id
    except (ValueError, RecursionError):
        return NO_ID


# --- We say ------------------------------------------------------------------------------------------------


class _ToAgent(msgspec.Struct, frozen=True, tag_field="type", tag=True):
    pass


class HealthAnswer(_ToAgent, frozen=True, tag="HealthCheck"):
    """Yes, I am."""

    id: int


class UpscaleConfirmation(_ToAgent, frozen=True):
    """The additional memory is in use."""

    id: int


class DownscaleResult(_ToAgent, frozen=True):
    """The machine may shrink, or it must not."""

    ok: bool = msgspec.field(name="Ok")
    status: str = msgspec.field(name="Status")
    id: int


class UpscaleRequest(_ToAgent, frozen=True):
    """More memory is needed; a grant comes as a notification of its own."""

    id: int


class Failure(_ToAgent, frozen=True, tag="InternalError"):
    """What was asked for could not be done."""

    error: str
    id: int


class NotUnderstood(_ToAgent, frozen=True, tag="InvalidMessage"):
    """What was sent is no message."""

    error: str
    id: int


ToAgent: TypeAlias = (
    HealthAnswer
    | UpscaleConfirmation
    | DownscaleResult
    | UpscaleRequest
    | Failure
    | NotUnderstood
    | Chosen
    | NoVersion
)


def write(message: ToAgent) -> str:
    """Write a message for the agent."""
    return msgspec.json.encode(message).decode()


def kind_of(message: ToAgent | FromAgent | Unreadable) -> str:
    """Name a message as the protocol does; the negotiation, which has no names, by what it is."""
    tag = type(message).__struct_config__.tag
    return str(tag) if tag else type(message).__name__

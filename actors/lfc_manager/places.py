"""Where the state of a cache is kept, as the spec and the command line say; pure.

Endpoint storage where the spec names one, else the local folder of `--lfc-store`.
"""

import re
from typing import Final, TypeAlias
from urllib.parse import quote

import msgspec

from ...messages.secret import Secret
from ...messages.settings import NodeSettings
from ...messages.spec import ComputeSpec

KEY: Final = "lfc_state"
NO_ENDPOINT: Final = "pspec.endpoint_id missing, other endpoint_id not provided"
"""This text and the two of the counterpart below are its own."""
NO_ADDRESS: Final = "pspec.endpoint_storage_addr missing"
BAD_ADDRESS: Final = "pspec.endpoint_storage_addr is not of the form host:port"
"""Without the address itself: somebody may have put a password into it."""
NO_TOKEN: Final = "pspec.endpoint_storage_token missing"  # noqa: S105 - a text
_DOTS: Final = re.compile(r"\.*")
_ADDRESS: Final = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}")


class EndpointPlace(msgspec.Struct, frozen=True):
    """An object of the endpoint storage."""

    address: str
    """Host and port."""
    path: str
    token: Secret


class FolderPlace(msgspec.Struct, frozen=True):
    """A file of a local folder, in a sub-folder for each node."""

    folder: str
    name: str


Place: TypeAlias = EndpointPlace | FolderPlace


class NoPlaceError(Exception):
    """Nothing can be read or stored; the text says what the spec lacks."""


def place_of(spec: ComputeSpec, settings: NodeSettings, endpoint: str | None = None) -> Place:
    """Return where the node's own state is, or that of another endpoint. Raises NoPlaceError."""
    setting = spec.cluster.setting
    address = spec.endpoint_storage_addr or setting("neon.endpoint_storage_addr")
    if address is None and settings.lfc_store is not None:
        name = endpoint or spec.endpoint_id or settings.compute_id
        return FolderPlace(settings.lfc_store, _part(name, "endpoint_id"))
    of = endpoint or spec.endpoint_id or setting("neon.endpoint_id")
    if of is None:
        raise NoPlaceError(NO_ENDPOINT)
    if address is None:
        raise NoPlaceError(NO_ADDRESS)
    if _ADDRESS.fullmatch(address) is None:
        raise NoPlaceError(BAD_ADDRESS)
    token = spec.endpoint_storage_token
    if token is None:
        text = setting("neon.endpoint_storage_token")
        if text is None:
            raise NoPlaceError(NO_TOKEN)
        token = Secret(text)
    parts = (
        _part(spec.tenant_id or setting("neon.tenant_id"), "tenant_id"),
        _part(spec.branch, "timeline_id"),
        _part(of, "endpoint_id"),
    )
    return EndpointPlace(address, "/" + "/".join((*parts, KEY)), token)


def _part(text: str | None, field: str) -> str:
    """Make one part of a path of it, which never leads anywhere else."""
    if not text:
        msg = f"pspec.{field} missing"
        raise NoPlaceError(msg)
    if _DOTS.fullmatch(text) is not None:
        msg = f"pspec.{field} is {text!r}, which is no name"
        raise NoPlaceError(msg)
    return quote(text, safe="")

"""Configs and bare specs as the command line takes them: JSON text in, a document out."""

import json
from typing import Any

import msgspec

from ..process.configuration import with_position


class NotJsonError(Exception):
    """The file is no JSON document; the message says where."""


class Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came more than once."""

    repeated: tuple[str, ...] = ()


def parse(data: bytes) -> Any:  # noqa: ANN401 - JSON
    """Read a JSON document whose objects are `Object`. Raises NotJsonError."""
    try:
        msgspec.json.decode(data)  # what the node reads with is what judges
        return json.loads(data, object_pairs_hook=_object)
    except (msgspec.DecodeError, ValueError) as error:
        raise NotJsonError(with_position(str(error), data)) from None
    except RecursionError:
        msg = "it is nested too deeply"
        raise NotJsonError(msg) from None


def is_bare(document: object) -> bool:
    """Tell a bare spec from a config."""
    return isinstance(document, dict) and "spec" not in document and "cluster" in document


def request(data: bytes) -> bytes:
    """Return the body of `/configure` and `/plan` for a config, or a bare spec. Raises NotJsonError."""
    document = parse(data)
    if is_bare(document):
        document = {"spec": document}
    if isinstance(document, dict):
        document.setdefault("compute_ctl_config", {"jwks": {"keys": []}})
    return msgspec.json.encode(document)


def _object(pairs: list[tuple[str, Any]]) -> Object:
    made = Object(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        made.repeated = tuple(name for name in made if names.count(name) > 1)
    return made

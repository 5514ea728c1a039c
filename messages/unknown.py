"""What a spec says beyond what is known: it is tolerated, and counted.

Pure: a decoded JSON document and its type in, the JSON paths of unknown fields and features out.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import msgspec

from .spec import ComputeSpec, DeltaOp

KNOWN_FEATURES: Final = frozenset({"activity_monitor_experimental", "tls_experimental"})
"""Features the counterpart knows; others are kept and have no effect."""

KNOWN_ACTIONS: Final = frozenset({"delete_db", "rename_db", "delete_role", "rename_role"})
"""Delta operations that are carried out; others parse and have no effect."""

SCHEMA: Final = "$schema"
"""Where a document names its schema for editors; it is no part of what is described."""


def unknown_parts(document: object, kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type of any form
    """Return the paths (`$.spec.timestamp`) of what decoding `document` as `kind` would ignore.

    `document` is what a JSON decoder makes of the text when it is given no type.
    """
    return tuple(_walk(document, _type_info(kind), "$"))


@cache
def _type_info(kind: Any) -> msgspec.inspect.Type:  # noqa: ANN401 - as above
    return msgspec.inspect.type_info(kind)


def _walk(value: object, kind: msgspec.inspect.Type, path: str) -> Iterator[str]:
    match kind:
        case msgspec.inspect.StructType() if isinstance(value, dict):
            yield from _walk_struct(value, kind, path)
        case msgspec.inspect.UnionType():
            for member in kind.types:
                yield from _walk(value, member, path)
        case msgspec.inspect.VarTupleType() if isinstance(value, list):
            for number, item in enumerate(value):
                yield from _walk(item, kind.item_type, f"{path}[{number}]")
        case msgspec.inspect.DictType() if isinstance(value, dict):
            for key, item in value.items():
                yield from _walk(item, kind.value_type, f"{path}.{key}")
        case _:
            return


def _walk_struct(value: dict[str, object], kind: msgspec.inspect.StructType, path: str) -> Iterator[str]:
    fields = {field.encode_name: field.type for field in kind.fields}
    for key, item in value.items():
        if path == "$" and key == SCHEMA:
            continue
        if key in fields:
            yield from _walk(item, fields[key], f"{path}.{key}")
        else:
            yield f"{path}.{key}"
    features = value.get("features")
    if kind.cls is ComputeSpec and isinstance(features, list):
        for number, feature in enumerate(features):
            if not (isinstance(feature, str) and feature in KNOWN_FEATURES):
                yield f"{path}.features[{number}]"
    if kind.cls is DeltaOp and value.get("action") not in KNOWN_ACTIONS:
        yield f"{path}.action"

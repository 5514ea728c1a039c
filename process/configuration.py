"""Reading the config document from a file, with errors that say where and what."""

from pathlib import Path
from typing import Any

import msgspec

from ..messages.spec import (
    ComputeConfig,
    ComputeCtlConfig,
    ComputeSpec,
    KeySet,
    config_decoder,
    spec_decoder,
)


class ConfigurationError(Exception):
    """The document cannot be used; the message names the file, the place and the reason."""


def read_config(path: str) -> ComputeConfig:
    """Read a ComputeConfig (`--config`). Raises ConfigurationError."""
    config: ComputeConfig = _decode(path, config_decoder)
    return config


def read_bare_spec(path: str) -> ComputeConfig:
    """Read a bare ComputeSpec (`--spec-path`) as a config with an empty key set. Raises ConfigurationError."""
    spec: ComputeSpec = _decode(path, spec_decoder)
    return ComputeConfig(compute_ctl_config=ComputeCtlConfig(jwks=KeySet(keys=())), spec=spec)


def unknown_parts_of(path: str, *, bare: bool) -> tuple[str, ...]:
    """Return the JSON paths in that file which are not known and have no effect. Raises ConfigurationError."""
    document = _decode(path, msgspec.json.Decoder())
    return unknown_parts_in(document, ComputeSpec if bare else ComputeConfig)


def unknown_parts_in(document: object, kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the JSON paths in a decoded document of that kind which are not known and have no effect."""
    from ..messages.unknown import unknown_parts

    return unknown_parts(document, kind)


def _decode(path: str, decoder: msgspec.json.Decoder[Any]) -> Any:  # noqa: ANN401 - the decoder says
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        msg = f"cannot read the configuration file {path}: {error.strerror or error}; give a readable file"
        raise ConfigurationError(msg) from None
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        msg = f"the configuration file {path} has the wrong shape: {error}"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"the configuration file {path} is not valid JSON: {with_position(str(error), data)}"
    except RecursionError:
        msg = f"the configuration file {path} is nested too deeply"
    raise ConfigurationError(msg)


def with_position(text: str, data: bytes) -> str:
    """Turn a decoder's «(byte 123)» into line and column; without one it is the end of the data."""
    head, found, tail = text.partition("(byte ")
    at = int(tail.rstrip(")")) if found and tail.rstrip(")").isdigit() else len(data)
    head = head if found else f"{text} "
    before = data[:at]
    line = before.count(b"\n") + 1
    column = at - (before.rfind(b"\n") + 1) + 1
    return f"{head}(line {line}, column {column})"

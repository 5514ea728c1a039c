"""Whatever is called a password, token or connection string is of the type that does not show itself."""

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_type_hints

import compute_node.messages
import msgspec
import pytest
from compute_node.cli.options import Options
from compute_node.messages.secret import Secret, is_secret_setting
from compute_node.messages.settings import NodeSettings
from compute_node.messages.spec import ComputeSpec, GenericOption, spec_decoder
from compute_node.postgres.target import Target

from doubles import canaries

EXEMPT = {
    "safekeeper_connstrings": "by the reference host:port each; error texts mask user info",
}


def structs() -> Iterator[type[msgspec.Struct]]:
    yield from (NodeSettings, Options, Target)
    for module in pkgutil.iter_modules(compute_node.messages.__path__):
        loaded = import_module(f"compute_node.messages.{module.name}")
        for _, kind in inspect.getmembers(loaded, inspect.isclass):
            if issubclass(kind, msgspec.Struct) and kind.__module__ == loaded.__name__:
                yield kind


@pytest.mark.parametrize("kind", list(structs()), ids=lambda kind: kind.__name__)
def test_fields_with_secret_names_are_secrets(kind: type[msgspec.Struct]) -> None:
    hints = get_type_hints(kind)
    for name in kind.__struct_fields__:
        if is_secret_setting(name) and name not in EXEMPT and hints[name] is not bool:
            assert "Secret" in str(hints[name]), f"{kind.__name__}.{name}"


def test_the_walk_meets_the_secrets_of_the_spec() -> None:
    hints: dict[str, Any] = get_type_hints(ComputeSpec)
    for name in ("pageserver_connstring", "storage_auth_token", "endpoint_storage_token"):
        assert hints[name] == Secret | None
        assert is_secret_setting(name)


def test_a_spec_full_of_canaries_shows_none_of_them() -> None:
    document = {
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": {"roles": canaries.roles(), "databases": [], "settings": canaries.settings()},
        **canaries.fields(),
    }
    spec = spec_decoder.decode(msgspec.json.encode(document))
    assert canaries.leak(f"{spec!r}{spec.cluster!r}") is None


def test_a_setting_shows_what_is_not_secret_of_its_value() -> None:
    shown = repr(GenericOption("archive_command", "string", "TOKEN=canary cp %p /x"))
    assert "canary" not in shown
    assert "cp %p /x" in shown

"""Every message there is: immutable, writable as JSON and readable again, without a word of what is secret."""

import copy
import importlib
import json
import logging
import pickle
import traceback
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import compute_node
import msgspec
import pytest
from compute_node.actors.kit.journal import Journal
from compute_node.messages import spec as spec_module
from compute_node.messages.base import Message, Request, decode, encode, redacted
from compute_node.messages.catalog import ApplySpec
from compute_node.messages.clerk import DumpSchema
from compute_node.messages.secret import MASK, Secret
from compute_node.messages.settings import NodeSettings
from compute_node.messages.spec import (
    Cluster,
    ComputeCtlConfig,
    ComputeSpec,
    DeltaOp,
    GenericOption,
    KeySet,
    StaticMode,
)
from compute_node.messages.stream import ByteStream
from hypothesis import given, settings
from hypothesis import strategies as st

PACKAGE = Path(compute_node.__file__).parent
CANARY = "canary-5ecret"

WITH_STREAMS = {DumpSchema}
WIRE_MAPS = {
    ("ComputeSpec", "pgbouncer_settings"),
    ("PageserverConnectionInfo", "shards"),
    ("RemoteExtSpec", "library_index"),
    ("RemoteExtSpec", "extension_data"),
    ("ExtensionData", "control_data"),
    ("KeySet", "keys"),
}
"""Free-form maps of the spec, whose keys are the caller's: the only containers that could be changed."""


@cache
def message_classes() -> tuple[type[Message], ...]:
    """Import everything that may define a message, and return all that a test did not make."""
    for pattern in ("messages/*.py", "actors/*/**/*.py"):
        for file in sorted(PACKAGE.glob(pattern)):
            parts = file.relative_to(PACKAGE).with_suffix("").parts
            importlib.import_module(".".join(("compute_node", *parts)).removesuffix(".__init__"))
    found: list[type[Message]] = []
    queue: list[type[Message]] = [Message]
    while queue:
        kind = queue.pop()
        found.append(kind)
        queue.extend(kind.__subclasses__())
    return tuple(
        sorted(
            {
                kind
                for kind in found
                if kind.__module__.startswith("compute_node.") and kind not in (Message, Request)
            },
            key=lambda kind: (kind.__module__, kind.__name__),
        )
    )


def structs_within(kind: Any) -> set[type[msgspec.Struct]]:
    """Return all struct classes that a value of this type can hold."""
    found: set[type[msgspec.Struct]] = set()
    queue = [kind]
    while queue:
        kind = queue.pop()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind not in found:
                found.add(kind)
                queue.extend(get_type_hints(kind).values())
        else:
            queue.extend(get_args(kind))
    return found


def mutable_parts(kind: Any) -> list[Any]:
    """Return what within this type could be changed after it was sent; structs are looked at on their own."""
    if kind in (Any, object, list, dict, set, bytearray) or get_origin(kind) in (list, dict, set):
        return [kind]
    if isinstance(kind, TypeVar):
        return [kind]
    return [part for argument in get_args(kind) if argument is not ... for part in mutable_parts(argument)]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)

SPECIAL: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (ComputeSpec, "tenant_id"): st.none() | st.from_regex(r"[0-9a-fA-F]{32}", fullmatch=True),
    (ComputeSpec, "timeline_id"): st.none() | st.from_regex(r"[0-9a-fA-F]{32}", fullmatch=True),
    (ComputeSpec, "upstream_slot_name"): st.none() | st.from_regex(r"[a-z0-9_]{1,63}", fullmatch=True),
    (ComputeSpec, "mode"): st.sampled_from(["Primary", "Replica", StaticMode("0/169AD58")]),
    (StaticMode, "static"): st.just("0/169AD58"),
    (DeltaOp, "action"): st.sampled_from(["delete_db", "delete_role", "something_new"]),
}


def values(kind: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one line a kind of type
    """Return valid values of a type that occurs in messages."""
    match kind:
        case type() if issubclass(kind, msgspec.Struct):
            return structs(kind)
        case type() if issubclass(kind, Enum):
            return st.sampled_from(list(kind))
        case _ if kind in SIMPLE:
            return SIMPLE[kind]
    arguments = get_args(kind)
    match get_origin(kind):
        case origin if origin is Annotated:
            limits = {name: limit for meta in arguments[1:] for name, limit in meta_limits(meta)}
            return st.integers(limits.get("ge", 0), limits.get("le", 2**64 - 1))
        case origin if origin in (Union, UnionType):
            return st.one_of([values(argument) for argument in arguments])
        case origin if origin is tuple and arguments[-1] is ...:
            return st.lists(values(arguments[0]), max_size=3).map(tuple)
        case origin if origin is tuple:
            return st.tuples(*(values(argument) for argument in arguments))
        case origin if origin is frozenset:
            return st.frozensets(values(arguments[0]), max_size=3)
        case origin if origin is dict:
            return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    msg = f"teach this test how to make a {kind!r}"
    raise NotImplementedError(msg)


def meta_limits(meta: object) -> list[tuple[str, int]]:
    limits = [("ge", getattr(meta, "ge", None)), ("le", getattr(meta, "le", None))]
    return [(name, limit) for name, limit in limits if limit is not None]


SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bytes: st.binary(max_size=12),
    NoneType: st.none(),
    None: st.none(),
    Any: TEXT,
    Secret: TEXT.map(Secret),
    msgspec.UnsetType: st.just(msgspec.UNSET),
    ByteStream: st.builds(ByteStream),
    msgspec.Raw: st.just(msgspec.Raw(b'{"a":1}')),
}


@cache
def structs(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Return valid instances of a struct."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {
        name: SPECIAL[kind, name] if (kind, name) in SPECIAL else values(hints[name])
        for name in kind.__struct_fields__
    }
    return st.builds(kind, **fields)


def test_there_are_messages_of_every_family() -> None:
    modules = {kind.__module__ for kind in message_classes()}
    for family in ("lifecycle", "postgres", "catalog", "activity", "serving"):
        assert f"compute_node.messages.{family}" in modules
    assert "compute_node.actors.kit.jobs" in modules


@pytest.mark.parametrize("kind", message_classes(), ids=lambda kind: kind.__qualname__)
class TestEveryMessage:
    def test_is_frozen_and_so_is_all_that_it_holds(self, kind: type[Message]) -> None:
        for struct in structs_within(kind):
            assert struct.__struct_config__.frozen, struct

    def test_holds_nothing_that_could_be_changed_after_it_was_sent(self, kind: type[Message]) -> None:
        for struct in structs_within(kind):
            for field, hint in get_type_hints(struct).items():
                if (struct.__name__, field) in WIRE_MAPS or field.startswith("_"):
                    continue
                if struct.__struct_fields__ and field in struct.__struct_fields__:
                    assert mutable_parts(hint) == [], (struct, field)

    def test_holds_a_spec_only_where_journal_and_logs_mask_it(self, kind: type[Message]) -> None:
        private = {ComputeSpec, Cluster, GenericOption}
        for field, hint in get_type_hints(kind).items():
            direct = set(get_args(hint)) | {hint}
            if structs_within(hint) & private:
                assert ComputeSpec in direct, (kind, field)
                assert structs_within(hint) & private <= structs_within(ComputeSpec)

    @settings(max_examples=10)
    @given(data=st.data())
    def test_is_the_same_after_a_trip_through_json_and_can_be_shown(
        self, kind: type[Message], data: st.DataObject
    ) -> None:
        message = data.draw(values(kind))
        assert json.loads(redacted(message))["message"] == kind.__name__
        assert repr(message)
        if kind in WITH_STREAMS:
            return
        written = encode(message)
        assert json.loads(written)["message"] == kind.__name__
        assert decode(kind, written) == message


def test_a_stream_of_bytes_is_in_one_message_only_and_has_no_other_form() -> None:
    assert {
        kind
        for kind in message_classes()
        if any(ByteStream in {hint, *get_args(hint)} for hint in get_type_hints(kind).values())
    } == WITH_STREAMS
    with pytest.raises(NotImplementedError):
        encode(DumpSchema("d", ByteStream()))


def test_no_two_messages_share_a_name_on_the_wire() -> None:
    names = [
        kind.__name__ for kind in message_classes() if kind.__module__.startswith("compute_node.messages")
    ]
    assert sorted(set(names)) == sorted(names)


def test_the_guard_of_changeable_fields_bites() -> None:
    assert mutable_parts(dict[str, str])
    assert mutable_parts(tuple[list[int], ...])
    assert mutable_parts(tuple[Any, ...] | None)
    assert mutable_parts(object)
    assert not mutable_parts(tuple[tuple[int, str], ...] | None)


def test_a_message_without_frozen_is_refused_by_its_base() -> None:
    """A subclass that forgets `frozen` is frozen all the same, or cannot be made."""
    try:
        kind = type("Forgetful", (Message,), {"__annotations__": {"number": int}})
    except (TypeError, ValueError):
        return
    assert kind.__struct_config__.frozen  # type: ignore[attr-defined] # made by hand


# --- Secrets ---------------------------------------------------------------------------------------------


class Locked(Message, frozen=True):
    key: Secret


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        "{}".format,
        "{!r}".format,
        "{:>40}".format,
        lambda secret: "%s" % secret,  # noqa: UP031 - that is one of the ways
        lambda secret: f"{[secret]}",
        lambda secret: json.dumps(secret, default=str),
        lambda secret: repr(Locked(secret)),
        lambda secret: repr({secret: secret}),
        lambda secret: redacted(Locked(secret)).decode(),
    ],
)
def test_a_secret_is_masked_wherever_it_is_shown(show: Any) -> None:
    shown = show(Secret(CANARY))
    assert CANARY not in shown
    assert MASK in shown or ascii(MASK).strip("'") in shown


def test_a_secret_is_revealed_to_its_consumer_only() -> None:
    assert Secret(CANARY).reveal() == CANARY
    assert encode(Locked(Secret(CANARY))) == b'{"message":"Locked","key":"canary-5ecret"}'


def test_a_secret_compares_by_what_it_is() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


@pytest.mark.parametrize(
    "leave",
    [pickle.dumps, json.dumps, msgspec.json.encode, msgspec.to_builtins, vars, bytes],
)
def test_a_secret_does_not_leave_by_any_other_way(leave: Any) -> None:
    with pytest.raises(TypeError) as error:
        leave(Secret(CANARY))
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_secret_is_the_secret(duplicate: Any) -> None:
    secret = Secret(CANARY)
    assert duplicate(secret) is secret


def test_a_secret_is_not_in_a_traceback_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(CANARY)
    error = ValueError(f"cannot log in with {secret}", secret)
    shown = "".join(traceback.format_exception(error))
    logging.getLogger("test").error("failed with %s", secret, exc_info=error)
    assert CANARY not in shown
    assert CANARY not in caplog.text


def a_spec_full_of_secrets() -> ComputeSpec:
    document = {
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": {
            "roles": [{"name": "r", "encrypted_password": CANARY}],
            "databases": [],
            "settings": [{"name": "neon.endpoint_storage_token", "value": CANARY, "vartype": "string"}],
            "postgresql_conf": f"primary_conninfo = 'password={CANARY}'",
        },
        "pageserver_connstring": f"postgresql://u:{CANARY}@h",
        "storage_auth_token": CANARY,
        "endpoint_storage_token": CANARY,
    }
    return spec_module.spec_decoder.decode(json.dumps(document))


def test_a_spec_shows_as_one_line_without_its_secrets() -> None:
    spec = a_spec_full_of_secrets()
    message = ApplySpec(operation=1, spec=spec, starting=True)
    journal = Journal()
    journal.record(0.0, "configurator", message, 0.0)
    for shown in (
        repr(spec),
        repr(message),
        redacted(message).decode(),
        redacted(spec).decode(),
        repr(journal.read()),
        repr(spec.cluster.roles),
        repr(spec.cluster.settings),
        repr(spec.cluster),
    ):
        assert CANARY not in shown
    assert json.loads(redacted(message)) == {
        "message": "ApplySpec",
        "operation": 1,
        "spec": "ComputeSpec(operation_uuid=None, mode=primary, roles=1, databases=0)",
        "starting": True,
    }
    assert CANARY.encode() in encode(message)


def test_an_ordinary_setting_can_be_read_in_a_log() -> None:
    assert repr(GenericOption("work_mem", "integer", "4MB")) == (
        "GenericOption(name='work_mem', vartype='integer', value='4MB')"
    )


def test_the_settings_of_the_node_do_not_show_the_password_of_their_url() -> None:
    node = NodeSettings(
        compute_id="c",
        pgdata="/p",
        connstr=Secret(f"postgresql://u:{CANARY}@localhost/postgres"),
        postgres_bin="/b/postgres",
        config=ComputeCtlConfig(jwks=KeySet(keys=())),
    )
    assert CANARY not in repr(node)
    assert "compute_id='c'" in repr(node)


@pytest.mark.parametrize(
    "broken",
    [
        {"pageserver_connstring": {CANARY: CANARY}},
        {"storage_auth_token": [CANARY]},
        {"storage_auth_token": CANARY, "tenant_id": "not an id"},
        {"pageserver_connstring": CANARY, "cluster": {"roles": [{"name": "r", "encrypted_password": 7}]}},
    ],
)
def test_an_error_about_a_spec_does_not_tell_its_secrets(broken: dict[str, Any]) -> None:
    document = {
        "format_version": 1,
        "suspend_timeout_seconds": 0,
        "cluster": {"roles": [], "databases": []},
    } | broken
    with pytest.raises(msgspec.ValidationError) as error:
        spec_module.spec_decoder.decode(json.dumps(document))
    assert CANARY not in "".join(traceback.format_exception(error.value))

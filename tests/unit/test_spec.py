"""The spec and the config are read as the counterpart reads them, field for field."""

import json
from typing import Any

import msgspec
import pytest
from compute_node.messages.secret import Secret
from compute_node.messages.spec import (
    MAX_NAME_BYTES,
    Audit,
    ComputeConfig,
    ComputeSpec,
    ConfigurationRequest,
    Mode,
    StaticMode,
    config_decoder,
    invalid_name,
    request_decoder,
    spec_decoder,
)
from hypothesis import given
from hypothesis import strategies as st

ABSENT = object()
BASE: dict[str, Any] = {
    "format_version": 1.0,
    "suspend_timeout_seconds": -1,
    "cluster": {"roles": [], "databases": []},
}
KEYS: dict[str, Any] = {"jwks": {"keys": []}}
EXT = {
    "library_index": {"a": "b"},
    "extension_data": {"b": {"control_data": {"b.control": "x"}, "archive_path": "p"}},
}
HEX = "0123456789abcdef0123456789ABCDEF"
JWKS = {"id": "i", "jwks_url": "u", "provider_name": "p", "role_names": ["r"]}


def document(path: str, value: object) -> bytes:
    """Return a spec in which the dotted path has this value; ABSENT takes it away."""
    spec = json.loads(json.dumps(BASE))
    *parents, last = path.split(".")
    here = spec
    for parent in parents:
        here = here[int(parent)] if parent.isdigit() else here[parent]
    if value is ABSENT:
        here.pop(last, None)
    else:
        here[last] = value
    return json.dumps(spec).encode()


def read(path: str, value: object) -> ComputeSpec:
    return spec_decoder.decode(document(path, value))


def refusal(path: str, value: object) -> str:
    with pytest.raises(msgspec.ValidationError) as error:
        read(path, value)
    return str(error.value)


# --- What must be there, what may be absent or null ------------------------------------------------------


@pytest.mark.parametrize("field", ["format_version", "suspend_timeout_seconds", "cluster"])
def test_a_spec_needs_its_three_required_fields(field: str) -> None:
    assert f"missing required field `{field}`" in refusal(field, ABSENT)
    assert "null" in refusal(field, None)


@pytest.mark.parametrize("field", ["roles", "databases"])
def test_a_cluster_needs_roles_and_databases(field: str) -> None:
    assert f"Object missing required field `{field}` - at `$.cluster`" == refusal(f"cluster.{field}", ABSENT)
    assert refusal(f"cluster.{field}", None) == f"Expected `array`, got `null` - at `$.cluster.{field}`"


OPTIONAL: dict[str, Any] = {
    "operation_uuid": "u",
    "swap_size_bytes": 1,
    "disk_quota_bytes": 1,
    "disable_lfc_resizing": True,
    "delta_operations": [{"action": "delete_db", "name": "x"}],
    "tenant_id": HEX,
    "timeline_id": HEX,
    "pageserver_connstring": "p",
    "pageserver_connection_info": {
        "shard_count": 0,
        "shards": {"0000": {"pageservers": [{"libpq_url": "p"}]}},
    },
    "project_id": "p",
    "branch_id": "b",
    "endpoint_id": "e",
    "safekeepers_generation": 7,
    "storage_auth_token": "t",
    "remote_extensions": EXT,
    "pgbouncer_settings": {"a": "b"},
    "shard_stripe_size": 32768,
    "local_proxy_config": {"jwks": [JWKS], "tls": {"key_path": "k", "cert_path": "c"}},
    "logs_export_host": "h:1",
    "endpoint_storage_addr": "a",
    "endpoint_storage_token": "t",
    "offload_lfc_interval_seconds": 300,
    "upstream_conninfo": "host=h",
    "upstream_slot_name": "s",
    "cluster.cluster_id": "c",
    "cluster.name": "n",
    "cluster.state": "s",
    "cluster.postgresql_conf": "fsync = off",
    "cluster.settings": [{"name": "work_mem", "value": "4MB", "vartype": "string"}],
}


@pytest.mark.parametrize("field", sorted(OPTIONAL))
def test_an_optional_field_may_be_absent_or_null(field: str) -> None:
    absent, null, given_ = read(field, ABSENT), read(field, None), read(field, OPTIONAL[field])
    name = field.removeprefix("cluster.")

    def held(spec: ComputeSpec) -> object:
        return getattr(spec.cluster if field.startswith("cluster.") else spec, name)

    assert held(absent) is None
    assert held(null) is None
    assert held(given_) is not None


DEFAULTS: list[tuple[str, Any, Any]] = [
    ("features", (), ["tls_experimental"]),
    ("skip_pg_catalog_updates", False, True),
    ("safekeeper_connstrings", (), ["a:1"]),
    ("mode", "Primary", "Replica"),
    ("reconfigure_concurrency", 1, 4),
    ("drop_subscriptions_before_start", False, True),
    ("audit_log_level", Audit.DISABLED, "Full"),
    ("autoprewarm", False, True),
]


@pytest.mark.parametrize(("field", "default", "other"), DEFAULTS, ids=[row[0] for row in DEFAULTS])
def test_a_field_with_a_default_may_be_absent_and_not_null(
    field: str, default: object, other: object
) -> None:
    assert getattr(read(field, ABSENT), field) == default
    assert getattr(read(field, other), field) != default
    assert f"at `$.{field}`" in refusal(field, None)


def test_every_field_of_the_spec_is_in_one_of_the_tables() -> None:
    tables = {field for field in OPTIONAL if "." not in field}
    tables |= {row[0] for row in DEFAULTS} | {"format_version", "suspend_timeout_seconds", "cluster"}
    assert tables == set(ComputeSpec.__struct_fields__)


@pytest.mark.parametrize("kind", ["roles", "databases"])
@pytest.mark.parametrize("options", [ABSENT, None, [], [{"name": "a", "vartype": "bool"}]])
def test_options_may_be_absent_null_or_empty(kind: str, options: object) -> None:
    entry: dict[str, object] = {"name": "x", "owner": "y"}
    if options is not ABSENT:
        entry["options"] = options
    spec = read(f"cluster.{kind}", [entry])
    held = getattr(spec.cluster, kind)[0].options
    assert (held is None) == (options is ABSENT or options is None)
    assert len(held or ()) == (len(options) if isinstance(options, list) else 0)


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        ({"vartype": "bool"}, "name"),
        ({"name": "a"}, "vartype"),
    ],
)
def test_an_option_needs_a_name_and_a_kind(entry: dict[str, str], missing: str) -> None:
    assert refusal("cluster.settings", [entry]) == (
        f"Object missing required field `{missing}` - at `$.cluster.settings[0]`"
    )


@pytest.mark.parametrize("value", [ABSENT, None])
def test_an_option_without_a_value_is_its_name_alone(value: object) -> None:
    entry: dict[str, object] = {"name": "a", "vartype": "bool"}
    if value is None:
        entry["value"] = None
    spec = read("cluster.settings", [entry])
    assert (spec.cluster.settings or ())[0].value is None


def test_the_first_setting_of_a_name_counts() -> None:
    entries = [{"name": name, "value": value, "vartype": "string"} for name, value in ABC]
    cluster = read("cluster.settings", entries).cluster
    assert cluster.setting("a") == "1"
    assert cluster.setting("b") is None
    assert cluster.setting("c") is None
    assert read("cluster.settings", None).cluster.setting("a") is None


ABC = [("a", "1"), ("a", "2"), ("b", None), ("b", "3")]


def test_a_password_is_absent_null_or_a_value() -> None:
    def password(role: dict[str, Any]) -> object:
        return read("cluster.roles", [{"name": "r"} | role]).cluster.roles[0].encrypted_password

    assert password({}) is msgspec.UNSET
    assert password({"encrypted_password": None}) is None
    assert password({"encrypted_password": "md5abc"}) == Secret("md5abc")
    assert password({"encrypted_password": ""}) == Secret("")
    assert "at `$.cluster.roles[0].encrypted_password`" in refusal(
        "cluster.roles", [{"name": "r", "encrypted_password": 7}]
    )


# --- Unknown things, repeated keys -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("timestamp", "now"),
        ("cluster.timestamp", ["now"]),
        ("cluster.roles", [{"name": "r", "rolsuper": {"deep": 1}}]),
        (
            "cluster.databases",
            [{"name": "d", "owner": "o", "restrict_conn": "not even a bool", "invalid": 7}],
        ),
        ("features", ["something_new", "tls_experimental", ""]),
        ("local_proxy_config", {"new": 1}),
        ("delta_operations", [{"action": "paint_db", "name": "x"}]),
    ],
)
def test_what_is_unknown_is_tolerated(path: str, value: object) -> None:
    assert isinstance(read(path, value), ComputeSpec)


def test_of_a_repeated_key_the_last_one_counts() -> None:
    text = json.dumps(BASE)[:-1] + ', "endpoint_id": "first", "endpoint_id": "last"}'
    assert spec_decoder.decode(text).endpoint_id == "last"


# --- Types, ranges, enums: wrong ones are named with their path -------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("format_version", "1.0", "Expected `float`, got `str` - at `$.format_version`"),
        ("format_version", True, "Expected `float`, got `bool` - at `$.format_version`"),
        ("suspend_timeout_seconds", "0", "Expected `int`, got `str` - at `$.suspend_timeout_seconds`"),
        ("suspend_timeout_seconds", 1.5, "Expected `int`, got `float` - at `$.suspend_timeout_seconds`"),
        ("suspend_timeout_seconds", 1.0, "Expected `int`, got `float` - at `$.suspend_timeout_seconds`"),
        ("cluster", [], "Expected `object`, got `array` - at `$.cluster`"),
        ("cluster.roles", {}, "Expected `array`, got `object` - at `$.cluster.roles`"),
        ("cluster.roles", ["r"], "Expected `object`, got `str` - at `$.cluster.roles[0]`"),
        ("cluster.roles", [{"name": 1}], "Expected `str`, got `int` - at `$.cluster.roles[0].name`"),
        ("cluster.roles", [{}], "Object missing required field `name` - at `$.cluster.roles[0]`"),
        (
            "cluster.databases",
            [{"name": "d", "owner": "o"}, {"name": "e"}],
            "Object missing required field `owner` - at `$.cluster.databases[1]`",
        ),
        (
            "cluster.settings",
            [{"name": "a", "vartype": "string", "value": 4}],
            "Expected `str | null`, got `int` - at `$.cluster.settings[0].value`",
        ),
        (
            "cluster.postgresql_conf",
            ["a"],
            "Expected `str | null`, got `array` - at `$.cluster.postgresql_conf`",
        ),
        ("skip_pg_catalog_updates", "true", "Expected `bool`, got `str` - at `$.skip_pg_catalog_updates`"),
        ("skip_pg_catalog_updates", 1, "Expected `bool`, got `int` - at `$.skip_pg_catalog_updates`"),
        ("features", "tls", "Expected `array`, got `str` - at `$.features`"),
        ("features", [1], "Expected `str`, got `int` - at `$.features[0]`"),
        ("pgbouncer_settings", {"a": 1}, "Expected `str`, got `int` - at `$.pgbouncer_settings[...]`"),
        (
            "delta_operations",
            [{"name": "x"}],
            "Object missing required field `action` - at `$.delta_operations[0]`",
        ),
        (
            "delta_operations",
            [{"action": "delete_db"}],
            "missing required field `name` - at `$.delta_operations[0]`",
        ),
        ("remote_extensions", {}, "missing required field `library_index` - at `$.remote_extensions`"),
        (
            "remote_extensions",
            EXT | {"extension_data": {"b": {"control_data": {}}}},
            "missing required field `archive_path` - at `$.remote_extensions.extension_data[...]`",
        ),
        (
            "local_proxy_config",
            {"jwks": [{"id": "i"}]},
            "missing required field `jwks_url` - at `$.local_proxy_config.jwks[0]`",
        ),
        (
            "local_proxy_config",
            {"tls": {"key_path": "k"}},
            "missing required field `cert_path` - at `$.local_proxy_config.tls`",
        ),
        ("storage_auth_token", 7, "Expected `str`, got `int` - at `$.storage_auth_token`"),
        ("audit_log_level", "Loud", "Invalid enum value 'Loud' - at `$.audit_log_level`"),
        ("audit_log_level", "disabled", "Invalid enum value 'disabled' - at `$.audit_log_level`"),
        ("upstream_slot_name", "My-Slot", "is not the name of a replication slot"),
        ("offload_lfc_interval_seconds", 0, "Expected `int` >= 1 - at `$.offload_lfc_interval_seconds`"),
    ],
)
def test_a_wrong_type_is_named_with_its_path(path: str, value: object, complaint: str) -> None:
    assert complaint in refusal(path, value)


U64_FIELDS = [
    "swap_size_bytes",
    "disk_quota_bytes",
    "shard_stripe_size",
    "reconfigure_concurrency",
    "offload_lfc_interval_seconds",
]


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        *[(field, 1 if field.startswith("offload") else 0, 2**64 - 1) for field in U64_FIELDS],
        ("safekeepers_generation", 0, 2**32 - 1),
        ("suspend_timeout_seconds", -(2**63), 2**63 - 1),
    ],
)
def test_numbers_fit_into_their_width_or_are_refused(field: str, low: int, high: int) -> None:
    assert getattr(read(field, low), field) == low
    assert getattr(read(field, high), field) == high
    for beyond in (low - 1, high + 1, high * 10**30):
        assert field in refusal(field, beyond)


def test_a_whole_number_is_a_version_too() -> None:
    assert read("format_version", 1).format_version == 1.0


@pytest.mark.parametrize("level", ["Disabled", "Log", "Base", "Hipaa", "Extended", "Full"])
def test_every_audit_level_of_the_counterpart_is_known(level: str) -> None:
    assert read("audit_log_level", level).audit_log_level.value == level


# --- Modes, LSNs, ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "mode"),
    [("Primary", Mode.PRIMARY), ("Replica", Mode.REPLICA), ({"Static": "0/169AD58"}, Mode.STATIC)],
)
def test_a_mode_has_three_forms(value: object, mode: Mode) -> None:
    assert read("mode", value).compute_mode is mode
    assert mode.value in {"primary", "replica", "static"}


@pytest.mark.parametrize(
    "value",
    [
        "primary",
        "Static",
        "",
        {"Static": 1},
        {"Static": None},
        {},
        {"Primary": None},
        {"Static": "0/1", "x": 1},
        7,
        [],
    ],
)
def test_another_mode_is_refused_with_its_path(value: object) -> None:
    assert "mode" in refusal("mode", value)


@pytest.mark.parametrize(
    "lsn",
    ["0/0", "0/169AD58", "0/169ad58", "FFFFFFFF/FFFFFFFF", " 0/1 ", "\t0/1\n", "000000000001/0000000000001"],
)
def test_an_lsn_is_two_hexadecimal_halves(lsn: str) -> None:
    mode = read("mode", {"Static": lsn}).mode
    assert isinstance(mode, StaticMode)
    assert mode.static == lsn


@pytest.mark.parametrize(
    "lsn",
    [
        "",
        "169AD58",
        "/",
        "0/",
        "/0",
        "0/0/0",
        "1FFFFFFFF/0",
        "0/1FFFFFFFF",
        "g/0",
        "0x1/0",
        "0 /0",
        "-1/0",
        "+1/0",
        "٣/0",
    ],
)
def test_a_text_that_is_no_lsn_is_refused(lsn: str) -> None:
    assert "is not an LSN such as 0/169AD58" in refusal("mode", {"Static": lsn})


@pytest.mark.parametrize("field", ["tenant_id", "timeline_id"])
@pytest.mark.parametrize(
    "value", ["", HEX[:-1], HEX + "0", HEX[:-1] + "g", " " + HEX[1:], HEX + "\n", "0x" + HEX[2:]]
)
def test_an_id_is_32_hexadecimal_digits(field: str, value: str) -> None:
    assert f"is not an id of 32 hexadecimal digits (field `{field}`)" in refusal(field, value)
    assert getattr(read(field, HEX.lower()), field) == HEX.lower()
    assert getattr(read(field, HEX.upper()), field) == HEX.upper()
    assert f"at `$.{field}`" in refusal(field, 7)


# --- Deltas and names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["rename_db", "rename_role"])
@pytest.mark.parametrize("new_name", [{}, {"new_name": None}])
def test_a_renaming_needs_its_new_name(action: str, new_name: dict[str, None]) -> None:
    complaint = refusal("delta_operations", [{"action": action, "name": "x"} | new_name])
    assert complaint == f"`{action}` of 'x' needs a `new_name` - at `$.delta_operations[0]`"
    spec = read("delta_operations", [{"action": action, "name": "x", "new_name": "y"}])
    assert (spec.delta_operations or ())[0].new_name == "y"


@pytest.mark.parametrize("action", ["delete_db", "delete_role", "paint_db"])
def test_other_deltas_need_none(action: str) -> None:
    spec = read("delta_operations", [{"action": action, "name": "x"}])
    assert (spec.delta_operations or ())[0].action == action


BAD_NAMES = [
    ("", "must not be empty"),
    ("\0", "must not contain a NUL"),
    ("admin\0x", "must not contain a NUL"),
    ("x" * 64, "at most 63 bytes, this one has 64"),
    ("ü" * 32, "at most 63 bytes, this one has 64"),
    ("€" * 21 + "x", "at most 63 bytes, this one has 64"),
    ("😀" * 16, "at most 63 bytes, this one has 64"),
]
GOOD_NAMES = [
    "x",
    "x" * 63,
    "ü" * 31 + "x",
    "😀" * 15 + "abc",
    'say "hi"',
    "it's",
    "back\\slash",
    "new\nline",
    "100%s %(name)s %",
    "$x$",
    "$$",
    " ",
    "; drop table",
    "Ünïcödé",
    "\u202e",
    "null",
]
PLACES = [
    ("cluster.roles", lambda name: [{"name": name}]),
    ("cluster.databases", lambda name: [{"name": name, "owner": "o"}]),
    ("cluster.databases", lambda name: [{"name": "d", "owner": name}]),
    ("delta_operations", lambda name: [{"action": "delete_db", "name": name}]),
    ("delta_operations", lambda name: [{"action": "rename_role", "name": name, "new_name": "n"}]),
    ("delta_operations", lambda name: [{"action": "rename_role", "name": "n", "new_name": name}]),
    ("local_proxy_config", lambda name: {"jwks": [JWKS | {"role_names": ["r", name]}]}),
]


@pytest.mark.parametrize(("path", "build"), PLACES, ids=range(len(PLACES)))
@pytest.mark.parametrize(("name", "reason"), BAD_NAMES, ids=[row[1] for row in BAD_NAMES])
def test_a_name_that_postgres_would_cut_is_refused(path: str, build: Any, name: str, reason: str) -> None:
    complaint = refusal(path, build(name))
    assert reason in complaint
    assert f"at `$.{path}" in complaint
    assert "(field `" in complaint
    assert "\0" not in complaint


@pytest.mark.parametrize(("path", "build"), PLACES, ids=range(len(PLACES)))
@pytest.mark.parametrize("name", GOOD_NAMES)
def test_any_other_name_is_taken_as_it_is(path: str, build: Any, name: str) -> None:
    assert isinstance(read(path, build(name)), ComputeSpec)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_name_is_not_changed_by_reading_it(name: str) -> None:
    spec = read("cluster.databases", [{"name": name, "owner": name}])
    assert (spec.cluster.databases[0].name, spec.cluster.databases[0].owner) == (name, name)


def test_a_lone_surrogate_is_no_name() -> None:
    assert invalid_name("\ud800") == "a name must be valid Unicode, without lone surrogates"
    with pytest.raises(msgspec.DecodeError):
        spec_decoder.decode(document("cluster.roles", [{"name": "a\ud800b"}]))


@given(st.text())
def test_a_name_is_good_exactly_when_postgres_can_hold_it(name: str) -> None:
    encoded = name.encode("utf-8", "surrogatepass")
    fits = 0 < len(encoded) <= MAX_NAME_BYTES and b"\0" not in encoded
    whole = not any(0xD800 <= ord(letter) <= 0xDFFF for letter in name)
    assert (invalid_name(name) is None) == (fits and whole)


# --- The config around it --------------------------------------------------------------------------------


def test_a_config_without_a_spec_waits_for_one() -> None:
    for text in ({"compute_ctl_config": KEYS}, {"compute_ctl_config": KEYS, "spec": None}):
        assert config_decoder.decode(json.dumps(text)) == ComputeConfig(
            config_decoder.decode(json.dumps({"compute_ctl_config": KEYS})).compute_ctl_config
        )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ({}, "missing required field `compute_ctl_config`"),
        ({"compute_ctl_config": {}}, "missing required field `jwks` - at `$.compute_ctl_config`"),
        (
            {"compute_ctl_config": {"jwks": {}}},
            "missing required field `keys` - at `$.compute_ctl_config.jwks`",
        ),
        (
            {"compute_ctl_config": KEYS | {"tls": {}}},
            "missing required field `key_path` - at `$.compute_ctl_config.tls`",
        ),
        ({"compute_ctl_config": KEYS, "spec": {}}, "missing required field `format_version` - at `$.spec`"),
        (
            {
                "compute_ctl_config": KEYS,
                "spec": BASE | {"cluster": {"roles": [{"name": 1}], "databases": []}},
            },
            "Expected `str`, got `int` - at `$.spec.cluster.roles[0].name`",
        ),
    ],
)
def test_a_config_that_lacks_something_says_where(text: object, complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint.replace("$", r"\$").replace("[", r"\[")):
        config_decoder.decode(json.dumps(text))


def test_a_request_to_configure_needs_both_halves() -> None:
    whole = {"spec": BASE, "compute_ctl_config": KEYS}
    assert isinstance(request_decoder.decode(json.dumps(whole)), ConfigurationRequest)
    for missing in whole:
        half = {name: value for name, value in whole.items() if name != missing}
        with pytest.raises(msgspec.ValidationError, match=f"missing required field `{missing}`"):
            request_decoder.decode(json.dumps(half))
    with pytest.raises(msgspec.ValidationError, match="got `null`"):
        request_decoder.decode(json.dumps(whole | {"spec": None}))


def test_keys_are_kept_as_they_came() -> None:
    key = {"kty": "OKP", "crv": "Ed25519", "x": "abc", "use": "sig", "key_ops": ["verify"], "new": None}
    config = config_decoder.decode(json.dumps({"compute_ctl_config": {"jwks": {"keys": [key]}}}))
    assert config.compute_ctl_config.jwks.keys == (key,)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nul",
        b"\xff",
        b'{"spec": }',
        b"[" * 5000,
        b'{"a": "\xff"}',
        b'{"compute_ctl_config": 1,,}',
    ],
    ids=["empty", "cut", "half a word", "no UTF-8", "no value", "deep", "no UTF-8 in a string", "two commas"],
)
def test_what_is_no_json_is_an_error_that_a_reader_expects(text: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError, RecursionError)):
        config_decoder.decode(text)

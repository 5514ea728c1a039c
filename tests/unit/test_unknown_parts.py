from typing import Any

import pytest
from compute_node.messages.spec import ComputeConfig, ComputeSpec
from compute_node.messages.unknown import unknown_parts

SPEC: dict[str, Any] = {
    "format_version": 1.0,
    "suspend_timeout_seconds": 0,
    "cluster": {"roles": [{"name": "a"}], "databases": []},
}


def test_a_known_document_has_no_unknown_parts() -> None:
    document = {
        "spec": {**SPEC, "features": ["tls_experimental"]},
        "compute_ctl_config": {"jwks": {"keys": []}},
    }
    assert unknown_parts(document, ComputeConfig) == ()


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"timestamp": "now"}, "$.timestamp"),
        ({"delta_operations": [{"action": "polish", "name": "a"}]}, "$.delta_operations[0].action"),
        ({"features": ["activity_monitor_experimental", "warp"]}, "$.features[1]"),
        ({"features": [["odd"]]}, "$.features[0]"),
        (
            {"cluster": {"roles": [{"name": "a"}, {"name": "b", "x": 1}], "databases": []}},
            "$.cluster.roles[1].x",
        ),
        ({"cluster": {**SPEC["cluster"], "settings": [{"name": "a", "y": 1}]}}, "$.cluster.settings[0].y"),
        (
            {"remote_extensions": {"extension_data": {"anon": {"control_data": {"z": ""}, "size": 1}}}},
            "$.remote_extensions.extension_data.anon.size",
        ),
        ({"local_proxy_config": {"jwks": [{"id": "a", "extra": 1}]}}, "$.local_proxy_config.jwks[0].extra"),
    ],
)
def test_unknown_fields_and_features_are_found_at_every_depth(spec: dict[str, Any], path: str) -> None:
    assert unknown_parts({**SPEC, **spec}, ComputeSpec) == (path,)


def test_what_a_key_holds_is_its_own_business() -> None:
    document = {
        "compute_ctl_config": {"jwks": {"keys": [{"kty": "OKP", "anything": {"at": "all"}}], "more": 1}}
    }
    assert unknown_parts(document, ComputeConfig) == ("$.compute_ctl_config.jwks.more",)


def test_a_document_may_name_its_schema_and_only_as_a_whole() -> None:
    document = {"$schema": "x", "spec": SPEC | {"$schema": "x"}, "compute_ctl_config": {"jwks": {"keys": []}}}
    assert unknown_parts(document, ComputeConfig) == ("$.spec.$schema",)

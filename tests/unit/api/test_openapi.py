"""The description served at /openapi.json: well-formed, complete, and the same as the program."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from compute_node.http.app import EXTERNAL
from compute_node.http.table import Scope

from doubles.node import Client

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
SCHEMA_KEYS = {
    "$ref", "type", "properties", "required", "items", "prefixItems", "anyOf", "enum", "const", "default",
    "title", "description", "additionalProperties", "minimum", "maximum", "pattern", "minItems", "maxItems",
    "writeOnly", "discriminator", "format", "minLength", "maxLength",
}  # fmt: skip


@pytest.fixture
def document(client: Client) -> dict[str, Any]:
    """The document as it is served, without a token."""
    result = client("GET", "/openapi.json", token="")
    assert result.headers["content-type"] == "application/json"
    found: dict[str, Any] = result.json
    return found


def _nodes(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _nodes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _schemas(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from document["components"]["schemas"].values()
    for _, _, operation in _operations(document):
        for parameter in operation.get("parameters", []):
            yield parameter["schema"]
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        for body in (*bodies, *operation["responses"].values()):
            for media in body.get("content", {}).values():
                yield media["schema"]


def _check_schema(schema: object) -> None:
    if isinstance(schema, bool):
        return
    assert isinstance(schema, dict)
    assert set(schema) <= SCHEMA_KEYS, schema
    for name in ("items", "additionalProperties"):
        if name in schema:
            _check_schema(schema[name])
    for name in ("anyOf", "prefixItems"):
        for part in schema.get(name, []):
            _check_schema(part)
    for part in schema.get("properties", {}).values():
        _check_schema(part)
    assert set(schema.get("required", [])) <= set(schema.get("properties", {}))


def test_the_document_has_the_form_of_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert {"title", "version"} <= set(document["info"])
    assert set(document) <= {"openapi", "info", "paths", "components"}
    for path, method, operation in _operations(document):
        assert path.startswith("/")
        assert method in METHODS
        assert set(operation) <= {
            "operationId", "summary", "security", "responses", "parameters", "requestBody",
        }  # fmt: skip
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status)
            assert response["description"]
            assert set(response) <= {"description", "content"}
        for parameter in operation.get("parameters", []):
            assert set(parameter) == {"name", "in", "required", "schema"}
            assert parameter["in"] in {"query", "path", "header"}


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(set(ids)) == len(ids)


def test_every_schema_is_well_formed(document: dict[str, Any]) -> None:
    for schema in _schemas(document):
        _check_schema(schema)


def test_every_reference_resolves_and_every_component_is_used(document: dict[str, Any]) -> None:
    found = {node["$ref"] for node in _nodes(document) if "$ref" in node}
    assert found == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def test_the_description_and_the_program_have_the_same_routes(document: dict[str, Any]) -> None:
    described = {(path, method.upper()) for path, method, _ in _operations(document)}
    assert described == {(route.path, route.method) for route in EXTERNAL}
    assert len(described) == len(EXTERNAL)


def test_every_route_but_the_public_ones_asks_for_a_declared_security_scheme(
    document: dict[str, Any],
) -> None:
    public = {route.path for route in EXTERNAL if route.scope is Scope.PUBLIC}
    for path, _, operation in _operations(document):
        schemes = [name for need in operation["security"] for name in need]
        assert schemes == ([] if path in public else ["token"])
        assert set(schemes) <= set(document["components"]["securitySchemes"])
        assert ({"401", "403"} <= set(operation["responses"])) is (path not in public)


def test_secrets_are_texts_that_are_only_written(document: dict[str, Any]) -> None:
    role = document["components"]["schemas"]["Role"]["properties"]["encrypted_password"]
    secret = {"type": "string", "writeOnly": True}
    assert secret in role["anyOf"]
    spec = document["components"]["schemas"]["ComputeSpec"]["properties"]
    for name in ("storage_auth_token", "pageserver_connstring", "endpoint_storage_token"):
        assert secret in spec[name]["anyOf"]


def test_the_statuses_of_configure_and_terminate_are_all_described(document: dict[str, Any]) -> None:
    configure = document["paths"]["/configure"]["post"]["responses"]
    assert {"200", "400", "401", "403", "412", "413", "415", "422", "500", "503", "504"} <= set(configure)
    terminate = document["paths"]["/terminate"]["post"]
    assert {"200", "201", "400", "503", "504"} <= set(terminate["responses"])
    (mode,) = terminate["parameters"]
    assert (mode["name"], mode["required"]) == ("mode", False)
    assert mode["schema"] == {"$ref": "#/components/schemas/ShutdownMode"}


def test_every_error_has_the_one_shape(document: dict[str, Any]) -> None:
    for path, _, operation in _operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and path not in {"/live", "/ready"}:
                (media,) = response["content"].items()
                kind = "PromoteTrouble" if (path, status) == ("/promote", "500") else "ErrorBody"
                assert media == ("application/json", {"schema": {"$ref": f"#/components/schemas/{kind}"}})

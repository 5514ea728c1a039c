"""The OpenAPI 3.1 description, made from the route table and the types that the program itself uses."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ..messages.base import schema_hook
from .body import FORM
from .errors import ErrorBody
from .table import JSON, Route, Scope, Shape

REF: Final = "#/components/schemas/{name}"

EVERY_ROUTE: Final[Mapping[int, Shape]] = {
    400: Shape("The request is malformed, or asks for a protocol upgrade.", ErrorBody),
    413: Shape("The body is larger than this route takes.", ErrorBody),
    431: Shape("The headers are larger than 32 KiB.", ErrorBody),
    500: Shape("A fault of the node; the log has more under the request id that the text names.", ErrorBody),
    501: Shape("The transfer encoding is not supported.", ErrorBody),
    503: Shape("The node cannot answer now.", ErrorBody),
    504: Shape("There was no answer in time.", ErrorBody),
}
TOKEN_ROUTES: Final[Mapping[int, Shape]] = {
    401: Shape("The token was not verified, or lacks the right audience.", ErrorBody),
    403: Shape("The token is for another compute, or for none.", ErrorBody),
}
BODY_ROUTES: Final[Mapping[int, Shape]] = {
    415: Shape("The content type is not JSON.", ErrorBody),
    422: Shape("The JSON has the wrong shape; the text names the path.", ErrorBody),
}


def responses(route: Route) -> dict[int, Shape]:
    """Return every response that a route can give, in the order of their statuses."""
    shapes = dict(EVERY_ROUTE)
    if route.scope is not Scope.PUBLIC:
        shapes |= TOKEN_ROUTES
    if route.body is not None:
        shapes |= BODY_ROUTES
    return dict(sorted((shapes | dict(route.responses)).items()))


def describe(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """Describe these routes; `version` is that of the node."""
    routes = tuple(routes)
    schemas, components = msgspec.json.schema_components(
        _kinds(routes), schema_hook=schema_hook, ref_template=REF
    )
    schema_of = dict(zip(_kinds(routes), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "compute-node",
            "version": version,
            "description": "The control plane of one Postgres compute node. Every response carries `x-request-id`. "
            "`HEAD` is served wherever `GET` is. Unknown paths are 404, wrong methods 405, both without a body.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "Signed with EdDSA (Ed25519) by a key of the node's key set. Either "
                    '`{"compute_id": "<this compute>"}`, or `{"scope": "compute_ctl:admin", "aud": ["compute"]}`.',
                }
            },
        },
    }


def _kinds(routes: tuple[Route, ...]) -> list[Any]:
    kinds: list[Any] = []
    for route in routes:
        found = [shape.kind for shape in responses(route).values()]
        found += [route.body.type] if route.body is not None else []
        found += [route.form]
        found += [field.type for field in msgspec.structs.fields(route.query)] if route.query else []
        kinds += [kind for kind in found if kind is not None and kind not in kinds]
    return list(dict.fromkeys(kinds))


def _operation(route: Route, schema_of: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{route.path.replace('/', '_').replace('.', '_')}",
        "summary": route.summary,
        "security": [] if route.scope is Scope.PUBLIC else [{"token": []}],
        "responses": {str(status): _response(shape, schema_of) for status, shape in responses(route).items()},
    }
    if route.query is not None:
        operation["parameters"] = [
            {
                "name": field.encode_name,
                "in": "query",
                "required": field.required and not route.query_optional,
                "schema": schema_of[field.type],
            }
            for field in msgspec.structs.fields(route.query)
        ]
    if route.body is not None:
        content = {JSON: {"schema": schema_of[route.body.type]}}
        if route.form is not None:
            content[FORM] = {"schema": schema_of[route.form]}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _response(shape: Shape, schema_of: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": shape.text}
    if shape.kind is not None:
        response["content"] = {shape.media: {"schema": schema_of[shape.kind]}}
    return response

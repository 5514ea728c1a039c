"""`GET /openapi.json`: this API, described; public."""

from typing import Any, Final

from ..table import Answer, Call, Route, Scope, Shape


def _description(call: Call) -> Answer:
    return Answer(call.context.description())


ROUTES: Final = (
    Route(
        path="/openapi.json",
        method="GET",
        handler=_description,
        scope=Scope.PUBLIC,
        summary="This description.",
        responses={200: Shape("An OpenAPI 3.1 document.", dict[str, Any])},
    ),
)

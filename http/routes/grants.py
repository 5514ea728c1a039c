"""`POST /grants`, internal: grant a role privileges on a schema."""

from typing import Final

import msgspec

from ...messages.clerk import Privilege, SetGrants
from ...messages.spec import check_name
from ..clerk import NO_POSTGRES, WRONG_STATUS, Name, ask_clerk
from ..errors import ErrorBody
from ..table import Answer, Call, Route, Scope, Shape


class Grants(msgspec.Struct, frozen=True):
    """Which privileges on which schema of which database, for whom; body of request and answer."""

    database: Name
    schema: Name
    privileges: tuple[Privilege, ...]
    role: Name

    def __post_init__(self) -> None:
        """Refuse a name that Postgres would cut."""
        for field in ("database", "schema", "role"):
            check_name(getattr(self, field), field)


def _grant(call: Call) -> Answer:
    wish = call.body(Grants)
    call.require_running()
    request = SetGrants(wish.database, wish.schema, wish.privileges, wish.role)
    prefix = "failed to grant role privileges to the schema: "
    ask_clerk(call, request, SetGrants.limit_s, prefix=prefix)
    return Answer(wish, status=201)


ROUTES: Final = (
    Route(
        path="/grants",
        method="POST",
        handler=_grant,
        scope=Scope.PUBLIC,
        body=msgspec.json.Decoder(Grants),
        waits=True,
        summary="Grant a role those of the privileges on a schema that it does not have.",
        responses={
            201: Shape("It has them.", Grants),
            412: WRONG_STATUS,
            500: Shape(NO_POSTGRES, ErrorBody),
        },
    ),
)

"""`POST /extensions`, internal: have a version of an extension in a database."""

from typing import Final

import msgspec

from ...messages.clerk import InstallExtension
from ...messages.spec import check_name
from ..clerk import NO_POSTGRES, WRONG_STATUS, Name, ask_clerk
from ..errors import ErrorBody
from ..table import Answer, Call, Route, Scope, Shape


class ExtensionRequest(msgspec.Struct, frozen=True):
    """Which extension, in which version, in which database."""

    extension: Name
    database: Name
    version: Name

    def __post_init__(self) -> None:
        """Refuse a name that Postgres would cut."""
        for field in ("extension", "database", "version"):
            check_name(getattr(self, field), field)


class ExtensionAnswer(msgspec.Struct, frozen=True):
    """What is installed now."""

    extension: str
    version: str


def _install(call: Call) -> Answer:
    wish = call.body(ExtensionRequest)
    call.require_running()
    request = InstallExtension(wish.database, wish.extension, wish.version)
    ask_clerk(call, request, InstallExtension.limit_s, prefix="failed to install extension: ")
    return Answer(ExtensionAnswer(wish.extension, wish.version), status=201)


ROUTES: Final = (
    Route(
        path="/extensions",
        method="POST",
        handler=_install,
        scope=Scope.PUBLIC,
        body=msgspec.json.Decoder(ExtensionRequest),
        waits=True,
        summary="Install a version of an extension in a database, or bring an installed one to it.",
        responses={
            201: Shape("It is installed in that version.", ExtensionAnswer),
            412: WRONG_STATUS,
            500: Shape(NO_POSTGRES, ErrorBody),
        },
    ),
)

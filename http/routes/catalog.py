"""`GET /dbs_and_roles`: what roles and databases there are."""

from typing import Final

import msgspec

from ...messages.clerk import ListCatalog, Listing
from ..clerk import NO_POSTGRES, ask_clerk
from ..errors import ErrorBody
from ..table import Answer, Call, Route, Shape


class RoleBody(msgspec.Struct, frozen=True):
    """A role. `encrypted_password` is what Postgres keeps, for tokens of the admin scope only."""

    name: str
    encrypted_password: str | None
    options: None = None


class DatabaseBody(msgspec.Struct, frozen=True):
    """A database; `restrict_conn` when it takes no connections, `invalid` when dropping it was interrupted."""

    name: str
    owner: str
    restrict_conn: bool
    invalid: bool
    options: None = None


class CatalogBody(msgspec.Struct, frozen=True):
    """All roles and databases; `errors` is there when some cannot be shown, and says why."""

    roles: tuple[RoleBody, ...]
    databases: tuple[DatabaseBody, ...]
    errors: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


def body_of(listing: Listing) -> CatalogBody:
    """Put a listing into the form of the API."""
    return CatalogBody(
        roles=tuple(
            RoleBody(role.name, None if (kept := role.encrypted_password) is None else kept.reveal())
            for role in listing.roles
        ),
        databases=tuple(
            DatabaseBody(entry.name, entry.owner, entry.restrict_conn, entry.invalid)
            for entry in listing.databases
        ),
        errors=listing.errors or msgspec.UNSET,
    )


def _catalog(call: Call) -> Answer:
    listed = ask_clerk(call, ListCatalog(with_passwords=call.admin), ListCatalog.limit_s)
    return Answer(body_of(listed.listing))


ROUTES: Final = (
    Route(
        path="/dbs_and_roles",
        method="GET",
        handler=_catalog,
        waits=True,
        summary="The roles and databases that there are.",
        responses={
            200: Shape("All of them, by name.", CatalogBody),
            500: Shape(NO_POSTGRES, ErrorBody),
        },
    ),
)

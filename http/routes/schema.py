"""`GET /database_schema`: the schema of a database as pg_dump writes it, sent while it comes."""

from contextlib import ExitStack
from typing import Final, assert_never

import msgspec

from ...messages.clerk import DumpBegun, DumpSchema, NotDone, Overloaded
from ...messages.stream import ByteStream
from ..errors import ApiError, ErrorBody
from ..streaming import StreamedBody
from ..table import Answer, Call, Route, Shape
from ..waiting import overloaded

SQL: Final = "text/plain"
"""Without a charset: a dump is in the encoding of its database, and says so itself."""


class SchemaQuery(msgspec.Struct, frozen=True):
    """The query of `/database_schema`."""

    database: str


def _schema(call: Call) -> Answer:
    query = call.query(SchemaQuery)
    request = DumpSchema("" if query is None else query.database, ByteStream())
    with ExitStack() as held:
        held.enter_context(call.context.waiters.place(minor=True))
        held.callback(request.stream.close)
        outcome = call.context.waiters.wait_in_place(
            call.node.clerk, request, limit_s=DumpSchema.limit_s, gone=call.gone
        )
        match outcome:
            case DumpBegun():
                return Answer(StreamedBody(request.stream, call.gone, held.pop_all()), media=SQL)
            case NotDone(error, missing):
                raise ApiError(404 if missing else 500, error)
            case Overloaded(error):
                raise overloaded(error)
            case _:
                assert_never(outcome)


ROUTES: Final = (
    Route(
        path="/database_schema",
        method="GET",
        handler=_schema,
        query=SchemaQuery,
        waits=True,
        summary="The schema of a database, as `pg_dump --schema-only` writes it.",
        responses={
            200: Shape(
                "SQL, in the encoding of the database. A dump that breaks off ends without the end of the body.",
                str,
                media=SQL,
            ),
            404: Shape("There is no such database.", ErrorBody),
            500: Shape("pg_dump failed before it wrote anything; the text has its words.", ErrorBody),
        },
    ),
)

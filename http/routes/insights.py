"""`GET /insights`: which statements take longest."""

from typing import Final

import msgspec

from ...messages.clerk import CollectInsights
from ..clerk import NO_POSTGRES, WRONG_STATUS, ask_clerk
from ..errors import ErrorBody
from ..table import Answer, Call, Route, Shape


def _insights(call: Call) -> Answer:
    call.require_running()
    insights = ask_clerk(call, CollectInsights(), CollectInsights.limit_s)
    rows = ", ".join(insights.statements.rows)
    return Answer(msgspec.json.encode(f'{{"pg_stat_statements": [{rows}]}}'))


ROUTES: Final = (
    Route(
        path="/insights",
        method="GET",
        handler=_insights,
        waits=True,
        summary="The statements that take longest, by `pg_stat_statements`.",
        responses={
            200: Shape(
                "A JSON string that contains JSON: an object with the key `pg_stat_statements`, at most 100 rows of "
                "that view; none where its extension is not installed or not loaded.",
                str,
            ),
            412: WRONG_STATUS,
            500: Shape(NO_POSTGRES, ErrorBody),
        },
    ),
)

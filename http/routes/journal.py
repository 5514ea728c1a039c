"""`GET /debug/journal`: the last messages of all actors, secrets masked."""

from typing import Final

from ...messages.lifecycle import GetJournal, JournalEntry
from ..table import Answer, Call, Route, Shape


def _journal(call: Call) -> Answer:
    return Answer(call.ask(GetJournal()))


ROUTES: Final = (
    Route(
        path="/debug/journal",
        method="GET",
        handler=_journal,
        summary="The last messages that the node's actors handled, oldest first.",
        responses={200: Shape("The messages, with secrets masked.", tuple[JournalEntry, ...])},
    ),
)

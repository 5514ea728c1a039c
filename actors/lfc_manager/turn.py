"""One turn of the LfcManager: a message, what it changes, and what is to be done about it."""

from typing import Any

from msgspec.structs import replace

from ...messages.lfc import LfcAccepted, LfcRefusal, LfcRefused
from ..kit.effects import Log
from .effects import Answer, Effect
from .state import LfcState


class Turn:
    """What the decisions about one message share; `now_s` on the monotonic clock."""

    def __init__(self, state: LfcState, now_s: float) -> None:
        self.state = state
        self.now_s = now_s
        self.effects: list[Effect] = []

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - field names are checked by msgspec
        """Change what is known."""
        self.state = replace(self.state, **changes)

    def do(self, *effects: Effect) -> None:
        """Have these done, after what was asked for before."""
        self.effects += effects

    def log(self, level: int, text: str) -> None:
        """Write a line; the level is one of logging's."""
        self.do(Log(level, text))

    def accept(self) -> None:
        """Answer the request that is being decided."""
        self.do(Answer(LfcAccepted()))

    def refuse(self, why: LfcRefusal, error: str) -> None:
        """Answer it with a refusal."""
        self.do(Answer(LfcRefused(why, error)))

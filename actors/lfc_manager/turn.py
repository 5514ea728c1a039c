"""One turn of the LfcManager: a message, what it changes, and what is to be done about it."""

from ...messages.lfc import LfcAccepted, LfcRefusal, LfcRefused
from ..kit import turn
from .effects import Answer, Effect
from .state import LfcState


class Turn(turn.Turn[LfcState, Effect]):
    """What the cache's decisions share."""

    def do(self, *effects: Effect) -> None:
        """Have these done, after what was asked for before."""
        self.effects += effects

    def accept(self) -> None:
        """Answer the request that is being decided."""
        self.do(Answer(LfcAccepted()))

    def refuse(self, why: LfcRefusal, error: str) -> None:
        """Answer it with a refusal."""
        self.do(Answer(LfcRefused(why, error)))

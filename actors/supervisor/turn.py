"""One message's worth of decisions: the state so far and the effects so far.

The status is changed by `Turn.move` alone, through the table in lifecycle.py.
"""

import logging

import msgspec

from ...messages.base import Message
from ...messages.lifecycle import EXIT_FAILED, Status, StatusChanged
from ..kit import turn
from .effects import Answer, DumpJournal, Effect, Publish, Tell
from .lifecycle import Event, Refused, outcome
from .state import Attempt, NodeState


class Decision(msgspec.Struct, frozen=True):
    """The next state, and what is to be done, in order."""

    state: NodeState
    effects: tuple[Effect, ...]


class Turn(turn.Turn[NodeState, Effect]):
    """What the Supervisor's decisions share."""

    def __init__(self, state: NodeState, moment: turn.Moment) -> None:
        super().__init__(state, moment.now_s)
        self.wall_s = moment.wall_s

    def tell(self, to: str, message: Message) -> None:
        """Tell another actor."""
        self.effects.append(Tell(to, message))

    def answer(self, waiters: tuple[int, ...], value: Message) -> None:
        """Answer each of those who wait."""
        self.effects += (Answer(waiter, value) for waiter in waiters)

    def move(self, event: Event) -> Status | Refused:
        """Let an event happen; the only place where the status changes."""
        old = self.state.status
        new = outcome(old, event)
        if isinstance(new, Refused):
            if new is Refused.CANNOT_HAPPEN:
                self.log(logging.WARNING, f"ignored in status {old.text}: {event.value}")
            return new
        if new is not old:
            self.set(status=new)
            self.log(logging.INFO, f"Changing compute status from {old.text} to {new.text}")
            self.effects.append(Publish(StatusChanged(old, new, self.state.error)))
        return new

    @property
    def attempt(self) -> Attempt | None:
        """The spec on its way into force, if there is one."""
        return self.state.attempt

    def broken(self, error: str, *, unexpected: bool = True) -> None:
        """Note that the node failed; it will end with a failure whatever follows."""
        if self.state.exit_code == 0:
            # What a bad spec did needs no history.
            self.effects.append(DumpJournal(logging.INFO if unexpected else logging.DEBUG))
        self.set(error=error, exit_code=EXIT_FAILED, exit_reason=error)

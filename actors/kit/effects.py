"""What the decisions of several actors ask their shells to do."""

import msgspec

from ...messages.base import Message
from .actor import Guard, Timers


class Tell(msgspec.Struct, frozen=True):
    """Tell the Supervisor."""

    message: Message


class Remind(msgspec.Struct, frozen=True):
    """Send oneself a message later, however many there are."""

    after_s: float
    message: Message


class After(msgspec.Struct, frozen=True):
    """Remind oneself later; a second reminder of the same kind of message replaces the first."""

    delay_s: float
    message: Message


class Never(msgspec.Struct, frozen=True):
    """Take a reminder back."""

    kind: type[Message]


class Log(msgspec.Struct, frozen=True):
    """Write a line; the level is one of logging's."""

    level: int
    text: str


class Reminders:
    """Carries out After and Never."""

    def __init__(self) -> None:
        self._guards: dict[type[Message], Guard] = {}

    def carry_out(self, effect: After | Never, timers: Timers) -> None:
        """Set a reminder, or take it back; there is at most one of each kind."""
        kind = effect.kind if isinstance(effect, Never) else type(effect.message)
        guard = self._guards.pop(kind, None)
        if guard is not None:
            guard.cancel()
        if isinstance(effect, After):
            self._guards[kind] = timers.after(effect.delay_s, effect.message)

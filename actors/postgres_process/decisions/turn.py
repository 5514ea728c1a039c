"""One message's worth of decisions: the steps that several of them share."""

from typing import Any

import msgspec

from ....messages.base import Message
from ...kit.effects import Log, Remind, Tell
from ..state import Begin, Cancel, Effect, Phase, ProcessState
from ..work import Work


class Turn:
    """The state so far and the effects so far."""

    def __init__(self, state: ProcessState, now_s: float) -> None:
        self.state = state
        self.now_s = now_s
        self.effects: list[Effect] = []

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - fields of any type
        """Change what is known."""
        self.state = msgspec.structs.replace(self.state, **changes)

    def tell(self, message: Message) -> None:
        """Tell the Supervisor."""
        self.effects.append(Tell(message))

    def log(self, level: int, text: str) -> None:
        """Write a line."""
        self.effects.append(Log(level, text))

    def remind(self, after_s: float, message: Message) -> None:
        """Send oneself a message later."""
        self.effects.append(Remind(after_s, message))

    def begin(self, begin: Begin) -> None:
        """Begin a piece of work, none of whose kind is under way."""
        self.set(work=self.state.work | {begin.work})
        self.effects.append(begin)

    def does(self, *kinds: Work) -> bool:
        """Whether work of one of these kinds is under way."""
        return not self.state.work.isdisjoint(kinds)

    def cancel(self, *kinds: Work) -> None:
        """Ask those of them that are under way to end."""
        self.effects += [Cancel(work) for work in kinds if self.does(work)]

    @property
    def is_stopping(self) -> bool:
        """Whether Postgres is being stopped: outcomes are not told any more."""
        return self.state.phase is Phase.STOPPING

    @property
    def took_ms(self) -> int:
        """How long the preparation or start under way has taken."""
        return round((self.now_s - self.state.began_s) * 1000)

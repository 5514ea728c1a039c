"""One message's worth of decisions: the steps that several of them share."""

from ....messages.base import Message
from ...kit import turn
from ...kit.effects import Remind, Tell
from ..state import Begin, Cancel, Effect, Phase, ProcessState
from ..work import Work


class Turn(turn.Turn[ProcessState, Effect]):
    """What the decisions about Postgres share."""

    def tell(self, message: Message) -> None:
        """Tell the Supervisor."""
        self.effects.append(Tell(message))

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

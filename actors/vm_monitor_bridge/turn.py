"""One message's worth of decisions: the steps that several of them share."""

import logging
from typing import Final

from ...messages.base import Message
from ...messages.vm import Decided, Exchanged
from ..kit import turn
from ..kit.effects import Remind
from . import protocol
from .effects import GOING_AWAY, Close, Count, Effect, Send
from .state import Agent, BridgeState, rfc3339

REMEMBERED: Final = 20
"""Messages, and decisions, that are shown."""


class Turn(turn.Turn[BridgeState, Effect]):
    """What the bridge's decisions share."""

    def __init__(self, state: BridgeState, moment: turn.Moment) -> None:
        super().__init__(state, moment.now_s)
        self.wall_s = moment.wall_s

    def remind(self, after_s: float, message: Message) -> None:
        """Send oneself a message later."""
        self.effects.append(Remind(after_s, message))

    def decided(self, decision: str, reason: str) -> None:
        """Show, count and log a decision."""
        entry = Decided(rfc3339(self.wall_s), decision, reason)
        self.set(decided=(*self.state.decided, entry)[-REMEMBERED:])
        self.effects.append(Count(decision))
        self.log(logging.INFO, f"autoscaling: {decision}: {reason}")

    def set_sizes(self, total: int | None, threshold: int | None, file_cache: int | None) -> None:
        """Take sizes into use; None: not known, or not managed."""
        self.set(total=total, threshold=threshold, file_cache=file_cache)

    # --- The agent

    @property
    def agent(self) -> Agent:
        """The one that is served; callers have looked."""
        assert self.state.agent is not None  # noqa: S101 - as said
        return self.state.agent

    def is_current(self, connection: int) -> bool:
        """Whether it is the connection of the agent that is served."""
        return self.state.agent is not None and self.state.agent.connection == connection

    def send(self, message: protocol.ToAgent) -> None:
        """Send the agent a message."""
        self.exchange("out", message)
        self.effects.append(Send(self.agent.connection, message))

    def exchange(
        self, direction: str, message: protocol.ToAgent | protocol.FromAgent | protocol.Unreadable
    ) -> None:
        """Show that a message came (`in`) or went (`out`)."""
        number: int | None = getattr(message, "id", None)
        entry = Exchanged(rfc3339(self.wall_s), direction, protocol.kind_of(message), number)
        self.set(exchanged=(*self.state.exchanged, entry)[-REMEMBERED:])

    def drop(self, code: int, reason: str) -> None:
        """Close the connection of the agent."""
        level = logging.INFO if code == GOING_AWAY else logging.WARNING
        self.log(level, f"the connection of the autoscaler agent at {self.agent.address} is closed: {reason}")
        self.effects.append(Close(self.agent.connection, code, reason))
        self.forget_agent()

    def forget_agent(self) -> None:
        """Serve it no longer, and do nothing more of what it has asked for."""
        connection = self.agent.connection
        self.set(agent=None, queue=tuple(task for task in self.state.queue if task.connection != connection))

"""What the ActivityMonitor tells itself."""

from ...messages.base import Message
from .reach import Observation


class LookAgain(Message, frozen=True):
    """The pause is over."""


class Observed(Message, frozen=True):
    """A look has ended; it was made for this `generation` of the server."""

    generation: int
    observation: Observation


class JobEnded(Message, frozen=True):
    """A job ended that has nothing to say: the connection was closed, or a look was broken off."""

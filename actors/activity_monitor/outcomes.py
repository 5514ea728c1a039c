"""What the ActivityMonitor tells itself."""

from ...messages.base import Message
from .reach import Observation


class LookAgain(Message, frozen=True):
    """The pause is over."""


class Observed(Message, frozen=True):
    """A look has ended; it was made for this `generation` of the server."""

    generation: int
    observation: Observation


class Disconnected(Message, frozen=True):
    """The connection is closed."""


class JobBrokenOff(Message, frozen=True):
    """A job ended before its work was done, because it was asked to."""

"""One message's worth of decisions, as those of several actors have it."""

from typing import Any, Generic, TypeVar

import msgspec

from .effects import Log

S = TypeVar("S", bound=msgspec.Struct)
E = TypeVar("E")


class Moment(msgspec.Struct, frozen=True):
    """When a message is handled: monotonic and wall clock, seconds."""

    now_s: float
    wall_s: float


class Turn(Generic[S, E]):
    """The state so far and the effects so far; `now_s` on the monotonic clock."""

    def __init__(self, state: S, now_s: float) -> None:
        self.state = state
        self.now_s = now_s
        self.effects: list[E | Log] = []

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - field names are checked by msgspec
        """Change what is known."""
        self.state = msgspec.structs.replace(self.state, **changes)

    def log(self, level: int, text: str) -> None:
        """Write a line; the level is one of logging's."""
        self.effects.append(Log(level, text))

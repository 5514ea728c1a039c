"""What the LfcManager's decisions ask its shell to do."""

from typing import TypeAlias

import msgspec

from ...messages.lfc import LfcAccepted, LfcRefused
from ...messages.metrics import Family
from ..kit.effects import After, Log, Never, Tell
from .places import Place


class Answer(msgspec.Struct, frozen=True):
    """Answer the request that is being decided."""

    value: LfcAccepted | LfcRefused


class StartPrewarm(msgspec.Struct, frozen=True):
    """Start the job that warms the cache."""

    number: int
    place: Place


class StartOffload(msgspec.Struct, frozen=True):
    """Start the job that saves the state, if the cache has still that life, or `life` is None."""

    number: int
    place: Place
    life: str | None


class CancelJob(msgspec.Struct, frozen=True):
    """End the job under way; its outcome still comes."""


class Count(msgspec.Struct, frozen=True):
    """Let a counter grow by one."""

    family: Family


class Observe(msgspec.Struct, frozen=True):
    """Count a value into a histogram of the operation."""

    family: Family
    operation: str
    value: float


Effect: TypeAlias = (
    Answer | StartPrewarm | StartOffload | CancelJob | After | Never | Log | Count | Observe | Tell
)

"""Does Postgres answer? What a probe and a look brought -> one word, and the condition it raises. Pure."""

from enum import Enum
from typing import Final

import msgspec

from ...messages.lifecycle import Condition
from .checks import Readings

PATIENCE_S: Final = 10.0
"""How long logins may come to nothing, while the postmaster answers, before this counts as frozen."""


CRASHED: Final = "one of its processes crashed, and all sessions were ended; its log says which"


class Reach(Enum):
    """How Postgres can be reached."""

    UP = "up"
    SLOW = "slow"
    """Nothing came in time and nothing says that Postgres is down: what was known last still counts."""
    RECOVERING = "recovering"
    UNREACHABLE = "unreachable"
    FROZEN = "frozen"


DOWN: Final = frozenset({Reach.RECOVERING, Reach.UNREACHABLE, Reach.FROZEN})

CONDITIONS: Final = {
    Reach.RECOVERING: Condition.RECOVERING,
    Reach.UNREACHABLE: Condition.POSTGRES_UNREACHABLE,
    Reach.FROZEN: Condition.POSTGRES_FROZEN,
}


class Probe(Enum):
    """What a new connection to the port met, without a login."""

    NOT_MADE = "not_made"
    ANSWERED = "answered"
    SILENT = "silent"
    """It was taken, or hangs in the queue, and no byte came: the postmaster does not run."""
    REFUSED = "refused"
    """Nobody listens, or it was closed without a byte."""


class Answer(Enum):
    """What became of the look itself."""

    CHECKED = "checked"
    ALIVE = "alive"
    """Postgres let us in or answered with a cancelled query, and the look did not end in time."""
    SILENT = "silent"
    NOT_NOW = "not_now"
    """Postgres is starting, recovering or stopping (SQLSTATE 57P03)."""
    FAILED = "failed"


class Observation(msgspec.Struct, frozen=True):
    """The outcome of one look; readings may come from an old connection although new ones hang."""

    reach: Reach
    detail: str = ""
    readings: Readings | None = None


class Health(msgspec.Struct, frozen=True):
    """What is known: `reach` is never SLOW; `known_s` is when it was last confirmed (monotonic)."""

    reach: Reach
    detail: str
    known_s: float
    server_began_s: float | None = None
    """When the processes of the server were started (epoch), once that was seen."""


_BY_PROBE: Final = {Probe.SILENT: Reach.FROZEN, Probe.REFUSED: Reach.UNREACHABLE}
_BY_ANSWER: Final = {
    Answer.CHECKED: Reach.UP,
    Answer.ALIVE: Reach.UP,
    Answer.SILENT: Reach.SLOW,
    Answer.NOT_NOW: Reach.RECOVERING,
    Answer.FAILED: Reach.UNREACHABLE,
}


def judge(probe: Probe, answer: Answer, *, held_up: bool) -> Reach:
    """Put the two together: the probe decides when it met trouble, since users need new connections.

    `held_up`: this process did not get to run itself, so that its time-outs prove nothing.
    """
    if held_up and probe is Probe.SILENT:
        probe = Probe.NOT_MADE
    return _BY_PROBE.get(probe, _BY_ANSWER[answer])


def learn(health: Health, observation: Observation, now_s: float) -> Health:
    """Take an observation in; SLOW keeps what was known until that is older than PATIENCE_S.

    A recovery that was over before anybody looked is shown until the next look: all sessions were lost.
    """
    seen = None if observation.readings is None else observation.readings.server_began_s
    began_s = health.server_began_s if seen is None else seen
    reach, detail = observation.reach, observation.detail
    if reach is Reach.SLOW:
        if health.reach is not Reach.UP or now_s - health.known_s <= PATIENCE_S:
            return health
        reach, detail = Reach.FROZEN, f"for {PATIENCE_S:g} s no login has been answered"
    after = Health(reach, detail, now_s, began_s)
    if reach is Reach.UP and health.reach is Reach.UP and has_crashed(health, after):
        return Health(Reach.RECOVERING, CRASHED, now_s, began_s)
    return after


def has_crashed(before: Health, after: Health) -> bool:
    """Whether Postgres has started all its processes anew since."""
    return before.server_began_s is not None and after.server_began_s != before.server_began_s

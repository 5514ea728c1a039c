"""What the LsnLease decides: whose lease is kept, when it is asked for again, what ends it. Pure.

Source: `protocols` reference, 2.4; renewed at half time and following the spec, unlike the counterpart (P4).
"""

import logging
from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace

from ...messages.base import Message
from ...messages.lease import KeepLease, LeaseRefused, ReleaseLease
from ...messages.spec import ComputeSpec, StaticMode
from ...postgres.lsn import parse_lsn, show_lsn
from ...postgres.storage import StorageError, storage_of
from ..kit.effects import Log, Remind, Tell
from .port import Answer, Failed, Granted, Refused, Wanted

FIRST_PAUSE_S: Final = 0.5
FACTOR: Final = 1.5
LONGEST_PAUSE_S: Final = 60.0
"""Between tries that fail."""
SOONEST_S: Final = 1.0
LATEST_S: Final = 300.0
"""A renewal comes no sooner and no later, however far our clock is from that of the pageservers."""


class LeaseAnswered(Message, frozen=True):
    """What came of the request with that number."""

    number: int
    answer: Answer


class LeaseDue(Message, frozen=True):
    """Time to ask again, unless something else is wanted by now."""

    number: int


class Ask(msgspec.Struct, frozen=True):
    """Ask for the lease, as a job; one under way is broken off."""

    number: int
    wanted: Wanted


class BreakOff(msgspec.Struct, frozen=True):
    """Break the request under way off, if there is one."""


class Show(msgspec.Struct, frozen=True):
    """Count an answer, and show until when the LSN is held: seconds since the epoch, 0: it is not."""

    result: str | None
    valid_until_s: float


Effect: TypeAlias = Ask | BreakOff | Remind | Tell | Show | Log


class LeaseState(msgspec.Struct, frozen=True):
    """What is remembered; `number` changes with what is wanted, so that late answers are known."""

    wanted: Wanted | None = None
    number: int = 0
    failures: int = 0
    """In a row."""
    valid_until_s: float = 0.0
    clock_s: float | None = None
    """What our clock said at the first grant, less the seconds of the kit's: it does not jump."""
    refusal: LeaseRefused | None = None


Decided: TypeAlias = tuple[LeaseState, tuple[Effect, ...]]


def decide(
    state: LeaseState,
    message: KeepLease | ReleaseLease | LeaseAnswered | LeaseDue,
    now_s: float,
    wall_s: float,
) -> Decided:
    """Return the state after a message, and what is to be done; `now_s` is monotonic, `wall_s` since the epoch."""
    match message:
        case KeepLease(spec):
            return _follow(state, spec)
        case ReleaseLease():
            return _hold(state, None)
        case LeaseDue(number) if state.wanted is not None and number == state.number:
            return state, (Ask(number, state.wanted),)
        case LeaseAnswered(number, answer) if state.wanted is not None and number == state.number:
            return _answered(state, answer, now_s, wall_s)
        case _:
            return state, ()


def _follow(state: LeaseState, spec: ComputeSpec) -> Decided:
    if not isinstance(spec.mode, StaticMode):
        return _hold(state, None)
    try:
        lsn = show_lsn(parse_lsn(spec.mode.static))
        return _hold(state, Wanted(storage_of(spec), lsn, spec.storage_auth_token))
    except StorageError as error:
        decided, effects = _hold(state, None)
        return decided, (*effects, Log(logging.WARNING, f"no LSN lease is asked for: {error}"))


def _hold(state: LeaseState, wanted: Wanted | None) -> Decided:
    """Ask for what is wanted now; a lease of the same goes on, and a refusal of the same is told again."""
    if wanted == state.wanted:
        return state, () if state.refusal is None else (Tell(state.refusal),)
    number = state.number + 1
    begin: Effect = BreakOff() if wanted is None else Ask(number, wanted)
    return LeaseState(wanted, number), (begin, Show(None, 0.0))


def _answered(state: LeaseState, answer: Answer, now_s: float, wall_s: float) -> Decided:
    match answer:
        case Granted(valid_until_ms):
            valid_until_s = valid_until_ms / 1000
            clock_s = wall_s - now_s if state.clock_s is None else state.clock_s
            after_s = renewal_s(valid_until_s - wall_s, valid_until_s - (clock_s + now_s))
            text = f"Request succeeded, sleeping for {round(after_s)} seconds"
            return replace(state, failures=0, valid_until_s=valid_until_s, clock_s=clock_s), (
                Show("granted", valid_until_s),
                Log(logging.INFO, text),
                Remind(after_s, LeaseDue(state.number)),
            )
        case Refused(error):
            text = f"Permanent error: lease could not be obtained, LSN is behind the GC cutoff ({error})"
            refusal = LeaseRefused(text)
            return replace(state, valid_until_s=0.0, refusal=refusal), (
                Show("refused", 0.0),
                Log(logging.WARNING, f"Exited with error: {text}"),
                Tell(refusal),
            )
        case Failed(error):
            after_s = pause_s(state.failures)
            return replace(state, failures=state.failures + 1), (
                Show("failed", state.valid_until_s),
                Log(logging.WARNING, f"LSN lease request failed, trying again in {after_s:.1f} s: {error}"),
                Remind(after_s, LeaseDue(state.number)),
            )


def renewal_s(*validities_s: float) -> float:
    """Return how long to wait before a lease is renewed, of which our clocks say that it is valid for so long.

    The shortest counts, but for those that are over: whoever grants a lease grants some time.
    """
    shortest_s = min((one for one in validities_s if one > 0), default=0.0)
    return min(LATEST_S, max(SOONEST_S, shortest_s / 2))


def pause_s(failures: int) -> float:
    """Return how long to wait after a failure with so many before it in a row."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * FACTOR ** min(failures, 20))

"""The stop ladder: fast, immediate, kill, and when each is due; pure."""

from typing import Final

from ....messages.postgres import StopRung

LADDER: Final = (StopRung.FAST, StopRung.IMMEDIATE, StopRung.KILL)
MIN_BUDGET_S: Final = 0.2
"""Less than this cannot be divided; a smaller budget is treated as this one."""

_REAP_SHARE: Final = 0.15
_REAP_MAX_S: Final = 2.0
"""What is left after the kill rung: killing is quick, but the kernel and the clean-up need a moment."""
_IMMEDIATE_SHARE: Final = 0.25
_IMMEDIATE_MAX_S: Final = 6.0
"""An immediate shutdown that works needs well under a second; Postgres itself kills its children after 5 s."""


def rungs(budget_s: float, first: StopRung = StopRung.FAST) -> tuple[tuple[StopRung, float], ...]:
    """Return the rungs from `first` on with the seconds after which each is due; the first is due at once.

    All are due before `budget_s` has passed. Fast, which writes the shutdown checkpoint, gets the most.
    """
    budget_s = max(MIN_BUDGET_S, budget_s)
    kill_s = budget_s - min(_REAP_MAX_S, _REAP_SHARE * budget_s)
    immediate_s = kill_s - min(_IMMEDIATE_MAX_S, _IMMEDIATE_SHARE * budget_s)
    due = {StopRung.FAST: 0.0, StopRung.IMMEDIATE: immediate_s, StopRung.KILL: kill_s}
    steps = LADDER[LADDER.index(first) :]
    return tuple((rung, 0.0 if rung is first else due[rung]) for rung in steps)


def next_rung(reached: StopRung) -> StopRung | None:
    """Return the rung after the one that was reached; None after the last."""
    if reached is StopRung.NOT_RUNNING:
        return StopRung.FAST
    position = LADDER.index(reached) + 1
    return LADDER[position] if position < len(LADDER) else None

"""How a postmaster is ended: rung by rung within a budget; and what follows once it is gone."""

import logging
from typing import Final

from msgspec.structs import replace

from ....messages.postgres import PostgresStopped, StopPostgres, StopRung
from ..private import BudgetSpent, RungDue
from ..state import Begin, Ladder, Phase, Send
from ..work import ENDED_BY_A_STOP, Work
from .ladder import next_rung, rungs
from .turn import Turn

_STEPS: Final = {
    StopRung.FAST: "asking for a fast shutdown",
    StopRung.IMMEDIATE: "asking for an immediate shutdown, without a checkpoint",
    StopRung.KILL: "killing it",
}


def stop(turn: Turn, message: StopPostgres) -> None:
    if turn.is_stopping:
        _join(turn, message)
        return
    ending, never_began = turn.state.ladder, turn.state.phase is Phase.IDLE
    turn.set(phase=Phase.STOPPING, tidied=turn.state.tidied or never_began)
    _raise_ladder(turn, turn.now_s + message.budget_s)
    turn.remind(message.budget_s, BudgetSpent(turn.state.ladders))
    turn.cancel(*sorted(ENDED_BY_A_STOP, key=lambda work: work.value))
    if turn.state.pid is not None:
        climb(turn, next_rung(StopRung.NOT_RUNNING if ending is None else ending.reached))


def _join(turn: Turn, message: StopPostgres) -> None:
    ladder = turn.state.ladder
    if not message.hurry or ladder is None:
        return
    _raise_ladder(turn, min(ladder.deadline_s, turn.now_s + message.budget_s), ladder.reached)
    turn.remind(message.budget_s, BudgetSpent(turn.state.ladders))
    if turn.state.pid is not None:
        climb(turn, next_rung(ladder.reached))


def end_within(turn: Turn, budget_s: float) -> None:
    """End a postmaster that will not do, without a checkpoint."""
    _raise_ladder(turn, turn.now_s + budget_s)
    climb(turn, StopRung.IMMEDIATE)


def _raise_ladder(turn: Turn, deadline_s: float, reached: StopRung = StopRung.NOT_RUNNING) -> None:
    number = turn.state.ladders + 1
    turn.set(ladders=number, ladder=Ladder(number, deadline_s, reached))


def climb(turn: Turn, first: StopRung | None) -> None:
    """Step on this rung now and plan those above it within what is left of the budget."""
    ladder = turn.state.ladder
    if ladder is None or first is None:
        return
    for rung, due_s in rungs(ladder.deadline_s - turn.now_s, first):
        if rung is first:
            _step_on(turn, rung)
        else:
            turn.remind(due_s, RungDue(ladder.number, rung))


def rung_due(turn: Turn, message: RungDue) -> None:
    ladder = turn.state.ladder
    if ladder is not None and ladder.number == message.number and turn.state.pid is not None:
        turn.log(logging.WARNING, f"Postgres has not stopped yet: {_STEPS[message.rung]}")
        _step_on(turn, message.rung)


def budget_spent(turn: Turn, message: BudgetSpent) -> None:
    if turn.state.ladder is not None and turn.state.ladder.number == message.number:
        turn.cancel(Work.CORES)


def _step_on(turn: Turn, rung: StopRung) -> None:
    assert turn.state.ladder is not None  # noqa: S101 - callers have made one
    turn.set(ladder=replace(turn.state.ladder, reached=rung))
    if rung is not StopRung.KILL:
        turn.effects.append(Send(rung))
    elif not turn.does(Work.KILL):
        turn.begin(Begin(Work.KILL))


def finish(turn: Turn) -> None:
    """Once nothing runs any more: clean up, once; then say that it has stopped."""
    state = turn.state
    if state.phase not in {Phase.STOPPING, Phase.GONE} or state.pid is not None:
        return
    if not state.tidied and not state.work - {Work.LOGS, Work.CORES, Work.CHECK, Work.DISK}:
        turn.set(tidied=True)
        turn.begin(Begin(Work.TIDY))
    # A file system that does not answer holds up nothing.
    if turn.is_stopping and turn.state.tidied and not turn.state.work - {Work.DISK}:
        reached = StopRung.NOT_RUNNING if state.ladder is None else state.ladder.reached
        turn.set(phase=Phase.GONE, ladder=None)
        turn.tell(PostgresStopped(reached, state.trouble))

"""What is decided about safekeepers: how long the start needed for them, and the sync after the end of Postgres."""

import logging
from typing import Final

from msgspec.structs import replace

from ...messages.postgres import (
    SafekeepersSynced,
    SyncSafekeepers,
)
from ...messages.settings import SourceName
from ...messages.spec import Mode
from ..kit.effects import After, Never
from .effects import POSTGRES
from .private import SyncOverdue
from .stopping import OVERDUE_S
from .turn import Turn

MIN_S: Final = 1.0
"""What a sync gets even when the stop of Postgres has used the budget up."""
LEFT_S: Final = 0.5
"""How much of the stop budget is kept for what comes after it."""


def begin(turn: Turn) -> bool:
    """Have the safekeepers synced now that Postgres has stopped, if there are any; returns whether that is under way."""
    ending, spec = turn.state.ending, turn.state.spec
    if turn.state.settings.source is not SourceName.PAGESERVER or ending is None or spec is None:
        return False
    if spec.compute_mode is not Mode.PRIMARY:
        turn.log(logging.INFO, "not primary, not syncing safekeepers")
        return False
    turn.log(logging.INFO, "syncing safekeepers on shutdown")
    budget_s = max(MIN_S, ending.deadline_s - turn.now_s - LEFT_S)
    turn.set(ending=replace(ending, syncing=True))
    turn.tell(POSTGRES, SyncSafekeepers(spec, budget_s))
    turn.effects.append(After(budget_s + OVERDUE_S, SyncOverdue()))
    return True


def synced(turn: Turn, message: SafekeepersSynced) -> bool:
    """Take note of a sync; returns whether it is that after the end of Postgres."""
    turn.set(startup=replace(turn.state.startup, sync_safekeepers_ms=message.took_ms))
    turn.log(logging.INFO, f"synced safekeepers at LSN {message.lsn}")
    if not _end(turn):
        return False
    turn.set(synced_lsn=message.lsn)
    return True


def given_up(turn: Turn, error: str) -> bool:
    """End a sync under way without its LSN; returns whether there was one."""
    if not _end(turn):
        return False
    text = f"the safekeepers were not synced after the end of Postgres: {error}; the next start syncs them"
    turn.log(logging.ERROR, text)
    turn.set(error=text)
    return True


def _end(turn: Turn) -> bool:
    ending = turn.state.ending
    if ending is None or not ending.syncing:
        return False
    turn.effects.append(Never(SyncOverdue))
    turn.set(ending=replace(ending, syncing=False))
    return True

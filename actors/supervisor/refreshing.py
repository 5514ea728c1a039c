"""What is decided when Postgres suspects that its spec is outdated: fetch it again, and apply it if anything has moved.

Source: `http-api` reference, 13.4.
"""

import logging
from typing import Final

from ...messages.lifecycle import ConfigureRefused, RefreshConfiguration, RefreshTaken, Status, WrongStatus
from ...messages.spec import ComputeSpec
from ...postgres.storage import StorageError, storage_of
from ..kit.effects import After
from . import attempts, stopping
from .effects import ReadConfiguration
from .lifecycle import Event, Refused, outcome
from .private import ConfigurationReread, RefreshDue
from .state import Cause, Origin, Phase
from .turn import Turn

PAUSE_S: Final = 5.0
"""Between two refreshes of the spec, after one that failed or found nothing new."""
NOT_ATTACHED: Final = "the node is to have no spec any more: it was asked for again, and there was none"


def refresh_configuration(turn: Turn, _: RefreshConfiguration, waiter: int | None) -> None:
    waiters = () if waiter is None else (waiter,)
    status = turn.state.status
    promoting = turn.state.promotion is not None
    if status is Status.INIT or (status is Status.RUNNING and turn.attempt is not None and not promoting):
        turn.answer(waiters, RefreshTaken())  # a spec is on its way already
        return
    refused = isinstance(outcome(status, Event.REFRESH_ASKED), Refused)
    if refused or promoting or turn.state.phase is not Phase.UP:
        turn.answer(waiters, WrongStatus(status))
        return
    turn.answer(waiters, RefreshTaken())
    if status is Status.REFRESH_CONFIGURATION_PENDING:
        return
    turn.move(Event.REFRESH_ASKED)
    left_s = turn.state.refresh_not_before_s - turn.now_s
    if left_s > 0:
        turn.effects.append(After(left_s, RefreshDue()))
    else:
        _begin(turn)


def refresh_due(turn: Turn, _: RefreshDue, __: int | None) -> None:
    if turn.state.status is Status.REFRESH_CONFIGURATION_PENDING:
        _begin(turn)


def _begin(turn: Turn) -> None:
    turn.move(Event.REFRESH_BEGAN)
    turn.effects.append(ReadConfiguration(refreshes=True))


def fetched(turn: Turn, message: ConfigurationReread) -> None:
    """Go on with what was fetched, unless the refresh was broken off meanwhile."""
    if turn.state.status is not Status.REFRESH_CONFIGURATION or turn.attempt is not None:
        return
    if message.error is not None:
        failed(turn, f"the spec could not be fetched again: {message.error}")
    elif message.spec is None and turn.state.settings.control_plane_uri is None:
        turn.log(logging.WARNING, "the configuration file has no spec; the one in force stays")
        _needless(turn)
    elif message.spec is None:
        turn.log(logging.ERROR, NOT_ATTACHED)
        turn.broken(NOT_ATTACHED, unexpected=False)
        stopping.terminate(turn, Cause.FAILURE, immediate=True)
    elif turn.state.error is None and has_not_moved(turn.state.spec, message.spec):
        turn.log(logging.INFO, "the spec was fetched again, and names the same pageservers")
        _needless(turn)
    else:
        attempts.begin(turn, message.spec, Origin.REFRESH)


def _needless(turn: Turn) -> None:
    turn.set(refresh_not_before_s=turn.now_s + PAUSE_S)
    turn.move(Event.REFRESH_ENDED)


def has_not_moved(before: ComputeSpec | None, after: ComputeSpec) -> bool:
    """Whether two specs name the same storage; of those that name none, whether they are equal."""
    if before is None:
        return False
    try:
        return storage_of(before) == storage_of(after)
    except StorageError:
        return before == after


def failed(turn: Turn, error: str) -> None:
    """Try a refresh that came to nothing again, in a while; Postgres serves on."""
    turn.log(logging.WARNING, f"could not refresh the configuration: {error}")
    attempts.end(turn, ConfigureRefused(error, bad_spec=True))
    again(turn)


def again(turn: Turn) -> None:
    """Let it begin again in a while."""
    turn.move(Event.REFRESH_FAILED)
    turn.effects.append(After(PAUSE_S, RefreshDue()))

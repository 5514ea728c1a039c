"""One node's process life: boot, wait in the main thread, end.

The main thread owns signals and the last resort; everything else happens in the actors.
"""

import logging
from collections.abc import Callable
from queue import SimpleQueue
from signal import Signals
from typing import Final

from ..actors.kit.actor import Pending
from ..actors.system import Launch, System
from ..messages.lifecycle import (
    EXIT_FAILED,
    ActorFailed,
    AwaitExit,
    Boot,
    ExitReport,
    RereadConfiguration,
    SignalReceived,
    StatusChanged,
)
from ..messages.metrics import UNKNOWN_FIELDS
from .last_resort import PostmasterRecord
from .limits import raise_core_limit
from .signals import STOPPING, SignalPipe

ACTORS_STOP_S: Final = 2.0
"""How long the actors may take to end once the node's life is over."""

log = logging.getLogger("compute_node")


def run(
    launch: Launch, signals: SignalPipe, *, on_status: Callable[[StatusChanged], None] | None = None
) -> ExitReport:
    """Run the node until its life is over; in the main thread. `on_status` is called in this thread."""
    _announce(launch)
    postmaster = PostmasterRecord()
    news = _News(signals)
    system = System(
        launch,
        postmaster=postmaster,
        abandoned=news.abandoned,
        heard=news.heard if on_status is not None else None,
    )
    try:
        system.start()
        exiting = system.supervisor.request(AwaitExit())
        exiting.on_done(signals.wake)
        system.supervisor.tell(Boot(launch.spec))
        _count_unknown(launch, system)
        while not news.over(exiting):
            _attend(system, signals.wait())
            news.tell(on_status)
        news.tell(on_status)
        return news.report(exiting)
    finally:
        if postmaster.stop(launch.settings.stop_timeout_s):
            log.error("Postgres had to be stopped by the main thread, as a last resort")
        if left := system.stop(ACTORS_STOP_S):
            log.warning("threads that did not end: %s", ", ".join(left))


class _News:
    """What the actors' threads have for the main thread; each piece wakes it."""

    def __init__(self, signals: SignalPipe) -> None:
        self._signals = signals
        self._fatal: SimpleQueue[ActorFailed] = SimpleQueue()
        self._changes: SimpleQueue[StatusChanged] = SimpleQueue()

    def abandoned(self, failure: ActorFailed) -> None:
        self._fatal.put(failure)
        self._signals.wake()

    def heard(self, change: StatusChanged) -> None:
        self._changes.put(change)
        self._signals.wake()

    def over(self, exiting: Pending[ExitReport]) -> bool:
        return exiting.done or not self._fatal.empty()

    def tell(self, on_status: Callable[[StatusChanged], None] | None) -> None:
        while on_status is not None and not self._changes.empty():
            on_status(self._changes.get())

    def report(self, exiting: Pending[ExitReport]) -> ExitReport:
        if self._fatal.empty():
            return exiting.get(0)
        failure = self._fatal.get()
        log.error("the actor %s died and nobody was left to handle it: %s", failure.actor, failure.error)
        return ExitReport(EXIT_FAILED, f"the actor {failure.actor} died: {failure.error}")


def _announce(launch: Launch) -> None:
    for warning in launch.warnings:
        log.warning("%s", warning)
    log.info("compute build_tag: %s", launch.settings.build_tag)
    if (problem := raise_core_limit()) is not None:
        log.warning("%s", problem)


def _count_unknown(launch: Launch, system: System) -> None:
    if unknown := launch.unknown_parts():
        system.runtime.metrics.add(UNKNOWN_FIELDS, len(unknown))
        log.info("not known, and without effect in the configuration: %s", ", ".join(unknown))


def _attend(system: System, came: tuple[Signals, ...]) -> None:
    for signal in came:
        if signal in STOPPING:
            system.supervisor.tell(SignalReceived(signal.name))
        else:
            system.supervisor.tell(RereadConfiguration())

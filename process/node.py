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
    for warning in launch.warnings:
        log.warning("%s", warning)
    log.info("compute build_tag: %s", launch.settings.build_tag)
    if (problem := raise_core_limit()) is not None:
        log.warning("%s", problem)
    postmaster = PostmasterRecord()
    fatal: SimpleQueue[ActorFailed] = SimpleQueue()
    changes: SimpleQueue[StatusChanged] = SimpleQueue()

    def abandoned(failure: ActorFailed) -> None:
        fatal.put(failure)
        signals.wake()

    def heard(change: StatusChanged) -> None:
        changes.put(change)
        signals.wake()

    system = System(
        launch, postmaster=postmaster, abandoned=abandoned, heard=heard if on_status is not None else None
    )
    try:
        system.start()
        exiting = system.supervisor.request(AwaitExit())
        exiting.on_done(signals.wake)
        system.supervisor.tell(Boot(launch.spec))
        if unknown := launch.unknown_parts():
            system.runtime.metrics.add(UNKNOWN_FIELDS, len(unknown))
            log.info(
                "parts of the configuration that are not known, and have no effect: %s", ", ".join(unknown)
            )
        while True:
            over = exiting.done or not fatal.empty()
            while on_status is not None and not changes.empty():
                on_status(changes.get())
            if over:
                return _report(exiting, fatal)
            _attend(system, signals.wait())
    finally:
        if postmaster.stop():
            log.error("Postgres had to be stopped by the main thread, as a last resort")
        if left := system.stop(ACTORS_STOP_S):
            log.warning("threads that did not end: %s", ", ".join(left))


def _attend(system: System, came: tuple[Signals, ...]) -> None:
    for signal in came:
        if signal in STOPPING:
            system.supervisor.tell(SignalReceived(signal.name))
        else:
            system.supervisor.tell(RereadConfiguration())


def _report(exiting: Pending[ExitReport], fatal: "SimpleQueue[ActorFailed]") -> ExitReport:
    if not fatal.empty():
        failure = fatal.get()
        log.error("the actor %s died and nobody was left to handle it: %s", failure.actor, failure.error)
        return ExitReport(EXIT_FAILED, f"the actor {failure.actor} died: {failure.error}")
    return exiting.get(0)

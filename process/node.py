"""One node's process life: boot, wait in the main thread, end.

The main thread owns signals and the last resort; everything else happens in the actors.
"""

import logging
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Final

from ..actors.kit.actor import Pending
from ..actors.system import Launch, System
from ..messages.base import ActorUnavailableError
from ..messages.lifecycle import (
    EXIT_FAILED,
    ActorFailed,
    AwaitExit,
    Boot,
    ConfigureOutcome,
    ExitReport,
    RereadConfiguration,
    SignalReceived,
    StatusChanged,
)
from ..messages.metrics import UNKNOWN_FIELDS
from .last_resort import PostmasterRecord, leave_after, leaving_within
from .limits import lower_oom_score, raise_core_limit
from .notify import Notifier
from .signals import STOPPING, SignalPipe

ACTORS_STOP_S: Final = 2.0
"""How long the actors may take to end once the node's life is over."""
LAST_WORDS_S: Final = 3.0
"""What the end may take beyond all its limits before the process is ended hard."""

log = logging.getLogger("compute_node")


def run(
    launch: Launch,
    signals: SignalPipe,
    *,
    on_status: Callable[[StatusChanged], None] | None = None,
    manager: str | None = None,
) -> ExitReport:
    """Run the node until its life is over; in the main thread. `on_status` is called in this thread.

    `manager` is the address of the service manager's socket (notify.py).
    """
    _announce(launch)
    postmaster = PostmasterRecord()
    notifier = Notifier(manager, stop_timeout_s=launch.settings.stop_timeout_s)
    listeners = (*filter(None, [on_status]), *([notifier.changed] if notifier.speaks else []))
    leave_s = launch.settings.stop_timeout_s + ACTORS_STOP_S + LAST_WORDS_S
    news = _News(signals, listeners, leave_s)
    system = System(
        launch,
        postmaster=postmaster,
        abandoned=news.abandoned,
        heard=news.heard if listeners else None,
    )
    stop_s = launch.settings.stop_timeout_s
    try:
        system.start()
        exiting = system.supervisor.request(AwaitExit())
        exiting.on_done(signals.wake)
        system.supervisor.tell(Boot(launch.spec))
        _count_unknown(launch, system)
        reloads = _Reloads(system, signals, notifier)
        while not news.over(exiting):
            notifier.extend(monotonic())
            for signal in signals.wait(notifier.wait_s(monotonic())):
                if signal in STOPPING:
                    system.supervisor.tell(SignalReceived(signal.name))
                else:
                    reloads.ask()
            reloads.look()
            news.tell()
        news.tell()
        report = news.report(exiting)
        if report.stop_budget_s is not None:
            stop_s = report.stop_budget_s
    finally:
        with leaving_within(leave_s):
            left = end(postmaster.stop, system.stop, stop_s)
    if stuck := system.actors.intersection(left):
        return ExitReport(report.code or EXIT_FAILED, f"actors that hang: {', '.join(sorted(stuck))}")
    return report


def end(
    stop_postgres: Callable[[float], bool], stop_actors: Callable[[float], tuple[str, ...]], budget_s: float
) -> tuple[str, ...]:
    """End what may still be there when the node's life is over: Postgres first, then the actors.

    Then Postgres again: its launch may have been under way at the first look. Returns threads that live on.
    """
    had_to = stop_postgres(budget_s)
    if left := stop_actors(ACTORS_STOP_S):
        log.warning("threads that did not end: %s", ", ".join(left))
    if stop_postgres(budget_s) or had_to:
        log.error("Postgres had to be stopped by the main thread, as a last resort")
    return left


class _News:
    """What the actors' threads have for the main thread; each piece wakes it."""

    def __init__(
        self, signals: SignalPipe, listeners: tuple[Callable[[StatusChanged], None], ...], leave_s: float
    ) -> None:
        self._signals = signals
        self._listeners = listeners
        self._leave_s = leave_s
        self._fatal: SimpleQueue[ActorFailed] = SimpleQueue()
        self._changes: SimpleQueue[StatusChanged] = SimpleQueue()

    def abandoned(self, failure: ActorFailed) -> None:
        leave_after(self._leave_s)  # the main thread may be stuck as well
        self._fatal.put(failure)
        self._signals.wake()

    def heard(self, change: StatusChanged) -> None:
        self._changes.put(change)
        self._signals.wake()

    def over(self, exiting: Pending[ExitReport]) -> bool:
        return exiting.done or not self._fatal.empty()

    def tell(self) -> None:
        while not self._changes.empty():
            change = self._changes.get()
            for listener in self._listeners:
                listener(change)

    def report(self, exiting: Pending[ExitReport]) -> ExitReport:
        if self._fatal.empty():
            try:
                return exiting.get(0)
            except ActorUnavailableError as error:  # it died this moment; `abandoned` is about to be called
                log.error("nobody was left to end the node: %s", error)  # noqa: TRY400 - an actor's death was logged
                return ExitReport(EXIT_FAILED, str(error))
        failure = self._fatal.get()
        log.error("%s died and nobody was left to handle it: %s", failure.actor, failure.error)
        return ExitReport(EXIT_FAILED, f"the actor {failure.actor} died: {failure.error}")


class _Reloads:
    """Has the configuration read again, once at a time: requests that come meanwhile count as one more."""

    def __init__(self, system: System, signals: SignalPipe, notifier: Notifier) -> None:
        self._system = system
        self._signals = signals
        self._notifier = notifier
        self._under_way: Pending[ConfigureOutcome] | None = None
        self._again = False

    def ask(self) -> None:
        """Begin, now or when the one under way is over."""
        if self._under_way is not None:
            self._again = True
            return
        self._notifier.reloading()
        self._under_way = self._system.supervisor.request(RereadConfiguration())
        self._under_way.on_done(self._signals.wake)

    def look(self) -> None:
        """See whether the one under way is over; what came of it is in the log already."""
        if self._under_way is None or not self._under_way.done:
            return
        self._under_way = None
        if self._again:
            self._again = False
            self.ask()
        else:
            self._notifier.reloaded()


def _announce(launch: Launch) -> None:
    for warning in launch.warnings:
        log.warning("%s", warning)
    log.info("compute build_tag: %s", launch.settings.build_tag)
    if (problem := raise_core_limit()) is not None:
        log.warning("%s", problem)
    if (problem := lower_oom_score(launch.settings.oom_score_adj)) is not None:
        log.info("%s", problem)


def _count_unknown(launch: Launch, system: System) -> None:
    if unknown := launch.unknown_parts():
        system.runtime.metrics.add(UNKNOWN_FIELDS, len(unknown))
        log.info("not known, and without effect in the configuration: %s", ", ".join(unknown))

"""What goes on in the background of a running node: the migrations once, collections again and again.

Nothing waits for it; how it ends is in the log and the metrics.
"""

import logging
from functools import partial
from typing import Any, TypeAlias, assert_never

from ...messages.base import Message
from ...messages.catalog import CollectExtensions, RunMigrations, StopUpkeep
from ...messages.failpoints import FailpointError
from ...messages.metrics import FAILED_MIGRATIONS, INSTALLED_EXTENSIONS
from ...messages.settings import NodeSettings
from ..kit.actor import Actor, Guard
from ..kit.jobs import Cancellation, CancelledError, Job, describe
from .extensions import InstalledExtension, interval_s, log_line, period_s, summary
from .port import Administration, AdministrationError

log = logging.getLogger(__name__)


class Migrated(Message, frozen=True):
    """Tells the Configurator how the migrations ended; `failed` is the number of one that went wrong."""

    done: int = 0
    known: int = 0
    failed: int | None = None
    error: str | None = None


class CollectionDue(Message, frozen=True):
    """Tells the Configurator that it is time to look for extensions again."""


class Collected(Message, frozen=True):
    """Tells the Configurator which extensions there are, or why nobody knows."""

    extensions: tuple[InstalledExtension, ...] = ()
    error: str | None = None


UpkeepMessage: TypeAlias = (
    RunMigrations | Migrated | CollectExtensions | CollectionDue | Collected | StopUpkeep
)


class Upkeep:
    """A part of the Configurator: jobs, timers and metrics are the actor's."""

    def __init__(self, actor: Actor[Any], settings: NodeSettings, administration: Administration) -> None:
        self._actor = actor
        self._role = settings.privileged_role_name
        self._administration = administration
        self._migrating: Job | None = None
        self._interval_s = interval_s(settings.installed_extensions_interval_s)
        self._period_s = 0
        self._collects = False
        self._looking: Job | None = None
        self._next_look: Guard | None = None

    def receive(self, message: UpkeepMessage) -> None:
        """Handle what the actor hears of it."""
        match message:
            case RunMigrations():
                work = partial(_migrate, self._administration, self._role)
                self._migrating = self._actor.start_job("run the migrations", work, failed=_not_migrated)
            case Migrated():
                self._migrated(message)
            case CollectExtensions(at_once):
                self._begin_to_collect(at_once=at_once)
            case CollectionDue():
                self._look()
            case Collected():
                self._collected(message)
            case StopUpkeep():
                self._stop()
            case _:
                assert_never(message)

    def take_interval(self, suspend_timeout_s: int) -> None:
        """Take the pace of the collections from a spec; it counts from the next pause on."""
        self._interval_s = interval_s(suspend_timeout_s)

    def _migrated(self, outcome: Migrated) -> None:
        if outcome.failed is not None:
            self._actor.metrics.add(FAILED_MIGRATIONS, 1, str(outcome.failed))
        if outcome.error is not None:
            log.error("Failed to run migrations: %s", outcome.error)
        else:
            log.info("migrations: %d are done, of %d that are known", outcome.done, outcome.known)

    def _begin_to_collect(self, *, at_once: bool) -> None:
        self._collects = True
        self._period_s = period_s(self._interval_s)
        log.info(
            "[NEON_EXT_SPAWN] Spawning background installed extensions worker with Timeout: %d",
            self._period_s,
        )
        if at_once:
            self._look()
        else:
            self._pause()

    def _look(self) -> None:
        work = partial(_collect, self._administration)
        self._looking = self._actor.start_job("collect installed extensions", work, failed=_not_collected)

    def _collected(self, outcome: Collected) -> None:
        """Show what was found, all at once; where nothing could be seen, what was known stays."""
        if outcome.error is not None:
            log.warning("installed extensions could not be collected: %s", outcome.error)
        else:
            log.info("%s", log_line(outcome.extensions))
            counts = {one.labels: float(one.n_databases) for one in outcome.extensions}
            self._actor.metrics.replace(INSTALLED_EXTENSIONS, counts)
        self._pause()

    def _pause(self) -> None:
        if self._collects:
            self._period_s = period_s(self._interval_s, self._period_s)
            log.info("[NEON_EXT_INT_SLEEP]: Interval: %d", self._period_s)
            self._next_look = self._actor.timers.after(self._period_s, CollectionDue())

    def _stop(self) -> None:
        """Break off what is under way, and begin no more."""
        self._collects = False
        if self._next_look is not None:
            self._next_look.cancel()
        for job in (self._migrating, self._looking):
            if job is not None:
                job.cancel()


def _migrate(administration: Administration, role: str, cancellation: Cancellation) -> Migrated:
    report = administration.migrate(role, cancellation)
    error = None
    if report.failed is not None:
        error = (
            f"migration {report.failed} failed; {report.done} of {report.known} are done, "
            "and the next start goes on from there"
        )
    return Migrated(report.done, report.known, report.failed, error)


def _not_migrated(error: Exception) -> Migrated | None:
    if isinstance(error, CancelledError):
        log.info("the migrations were broken off; the next start goes on from there")
        return None
    return Migrated(error=_reason("running the migrations", error))


def _collect(administration: Administration, cancellation: Cancellation) -> Collected:
    return Collected(summary(administration.installed_extensions(cancellation)))


def _not_collected(error: Exception) -> Collected | None:
    if isinstance(error, CancelledError):
        return None
    return Collected(error=_reason("collecting installed extensions", error))


def _reason(what: str, error: Exception) -> str:
    if isinstance(error, AdministrationError | FailpointError):
        return str(error)
    log.error("%s failed in an unexpected way", what, exc_info=error)
    return describe(error)

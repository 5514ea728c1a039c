"""Work that may wait: it runs on a thread of the kit and its outcome is a message."""

import logging
import threading
from collections.abc import Callable
from typing import final

from ...messages.base import Message
from ...messages.failpoints import Failpoint
from .clock import Clock, SystemClock
from .failpoints import NONE_ARMED, Failpoints

log = logging.getLogger(__name__)


class CancelledError(Exception):
    """The job was asked to end before its work was done."""


class Blocked(BaseException):
    """Raised by a double inside a job of the simulated runtime: nothing to report yet.

    The job is tried again, from its beginning. Not an Exception, so that no work handles it by accident.
    """


class Cancellation:
    """How a job learns that its outcome is no longer wanted, and what time it is; it must end within a second."""

    def __init__(self, clock: Clock | None = None, failpoints: Failpoints = NONE_ARMED) -> None:
        self._clock = clock or SystemClock()
        self._failpoints = failpoints
        self._event = threading.Event()
        self._lock = threading.RLock()  # held while callbacks run: none of them outlives its job
        self._callbacks: list[Callable[[], None]] = []

    def now(self) -> float:
        """Return seconds on the kit's clock; what a job's time limits are counted by."""
        return self._clock.now()

    @property
    def requested(self) -> bool:
        """Whether the job has been asked to end."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise CancelledError once the job has been asked to end."""
        if self._event.is_set():
            msg = "cancelled"
            raise CancelledError(msg)

    def reach(self, failpoint: Failpoint, *, cancellable: bool = True) -> None:
        """Say that the job is at this step: `check`, and whatever a test wants to happen here.

        With `cancellable` False the job cannot end here: a request to end only ends a pause. Raises what
        `check` raises, and what Failpoints.act raises where the step is armed.
        """
        if cancellable:
            self.check()
        if self._failpoints.is_armed(failpoint):
            try:
                self._failpoints.act(failpoint, self)
                self.check()
            except CancelledError:
                if cancellable:
                    raise

    def is_armed(self, failpoint: Failpoint) -> bool:
        """Whether `reach` would do more than check."""
        return self._failpoints.is_armed(failpoint)

    def wait(self, seconds: float) -> None:
        """Wait that long; raises CancelledError as soon as the job is asked to end."""
        self._event.wait(seconds)
        self.check()

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call this when the job is asked to end, at once if it already was; it must not block."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def request(self) -> None:
        """Ask the job to end; the second time does nothing."""
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            for callback in self._callbacks:
                try:
                    callback()
                except Exception:
                    log.exception("a job could not be told in full that it is cancelled")
            self._callbacks.clear()

    def forget(self) -> None:
        """Drop the callbacks: what they would end is not there any more."""
        with self._lock:
            self._callbacks.clear()


Work = Callable[[Cancellation], Message | None]
OnFailure = Callable[[Exception], Message | None]


@final
class Job:
    """One piece of work under way.

    `work` returns the message for its own actor, or None when there is nothing to say. `failed` turns an
    exception of the work, CancelledError included, into that message; without it an exception is the
    death of the actor, and a cancellation is silent. What is no Exception (SystemExit) is always that death.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        failed: OnFailure | None,
        clock: Clock | None = None,
        failpoints: Failpoints = NONE_ARMED,
    ) -> None:
        self.name = name
        self.cancellation = Cancellation(clock, failpoints)
        self._work = work
        self._failed = failed

    def cancel(self) -> None:
        """Ask the work to end; its outcome message still comes, if it has one."""
        self.cancellation.request()

    def run(self) -> Message | None:
        """Do the work, on the thread that the runtime chose. Raises what `failed` does not handle."""
        self.cancellation.forget()  # those of an attempt that was Blocked
        try:
            self.cancellation.check()
            return self._work(self.cancellation)
        except CancelledError as error:
            return None if self._failed is None else self._failed(error)
        except Exception as error:
            if self._failed is None:
                raise
            return self._failed(error)


class JobCrashed(Message, frozen=True):
    """Tells a cell that a job of its actor raised an exception that nobody handles."""

    job: str
    error: str


def describe(error: BaseException) -> str:
    """Put an exception into one line: its kind and what it says."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

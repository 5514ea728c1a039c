"""The switchboard of the failpoints: which steps are armed, and what happens to a job that reaches one."""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from ...messages.failpoints import Action, Arming, Deed, Failpoint, FailpointError

log = logging.getLogger(__name__)


class Panic(BaseException):
    """Raised in a job by `panic`; not an Exception, so that no work handles it by accident."""


class Interruptible(Protocol):
    """What a wait needs to know of the job that waits."""

    def wait(self, seconds: float) -> None:
        """Wait that long; raises CancelledError as soon as the job is asked to end."""
        ...

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call this when the job is asked to end, at once if it already was."""
        ...


class Armed:
    """The actions of one failpoint, as they are used up; `released` wakes whoever pauses."""

    def __init__(self, actions: tuple[Action, ...]) -> None:
        self._lock = threading.Lock()
        self._left = [(action, action.times) for action in actions]
        self._wakes: list[threading.Event] = []
        self._released = False

    def take(self) -> Action | None:
        """Return the action that is due; None when all are used up."""
        with self._lock:
            for number, (action, left) in enumerate(self._left):
                if left is None:
                    return action
                if left > 0:
                    self._left[number] = (action, left - 1)
                    return action
        return None

    def give_back(self, action: Action) -> None:
        """Count an action as not done."""
        with self._lock:
            self._left = [
                (one, left + 1 if one is action and left is not None else left) for one, left in self._left
            ]

    def wake_on_release(self, event: threading.Event) -> None:
        """Set the event when the failpoint is given other actions, at once if it already was."""
        with self._lock:
            self._wakes.append(event)
            if self._released:
                event.set()

    def release(self) -> None:
        """Let those go on who pause."""
        with self._lock:
            self._released = True
            for wake in self._wakes:
                wake.set()


class Failpoints:
    """Every job of a runtime passes its steps through here; nothing is armed until `configure`."""

    def __init__(self) -> None:
        self._armed: dict[Failpoint, Armed] = {}

    def configure(self, armings: Iterable[Arming]) -> None:
        """Give failpoints new actions; whoever pauses at one of them goes on."""
        for failpoint, actions in ((arming.failpoint, arming.actions) for arming in armings):
            before = self._armed.pop(failpoint, None)
            if actions and actions[0].deed is not Deed.OFF:
                self._armed[failpoint] = Armed(actions)
            if before is not None:
                before.release()

    def is_armed(self, failpoint: Failpoint) -> bool:
        """Whether something would happen there."""
        return failpoint in self._armed

    def act(self, failpoint: Failpoint, job: Interruptible) -> None:
        """Do what is due at this step. Raises FailpointError, Panic, and CancelledError while it sleeps."""
        armed = self._armed.get(failpoint)
        if armed is None or (action := armed.take()) is None or action.deed is Deed.OFF:
            return
        match action.deed:
            case Deed.PAUSE:
                self._pause(armed, action, failpoint, job)
            case Deed.SLEEP:
                self._say(failpoint, action)
                self._sleep(int(action.argument) / 1000, job)
            case Deed.PRINT:
                self._say(failpoint, action)
            case Deed.RETURN:
                self._say(failpoint, action)
                raise FailpointError(action.argument or f"failpoint {failpoint.value}")
            case Deed.PANIC:
                self._say(failpoint, action)
                raise Panic(action.argument or f"failpoint {failpoint.value}")
            case Deed.EXIT:
                os._exit(int(action.argument))

    def _pause(self, armed: Armed, action: Action, failpoint: Failpoint, job: Interruptible) -> None:
        wake = threading.Event()
        armed.wake_on_release(wake)
        job.on_request(wake.set)
        self._say(failpoint, action)
        wake.wait()
        log.warning("failpoint %s left", failpoint.value)

    def _sleep(self, seconds: float, job: Interruptible) -> None:
        job.wait(seconds)

    @staticmethod
    def _say(failpoint: Failpoint, action: Action) -> None:
        text = f"{action.deed.value}({action.argument})" if action.argument else action.deed.value
        log.warning("failpoint %s reached: %s", failpoint.value, text)


NONE_ARMED: Final = Failpoints()
"""For jobs that run outside of a runtime; never configured."""

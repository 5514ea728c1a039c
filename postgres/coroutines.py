"""Coroutines in jobs: run by the job's clock, and ended when the job is asked to end."""

import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from typing_extensions import override

from .loading import load_shared

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

R = TypeVar("R")

CANCEL_GRACE_S: Final = 0.4
"""How long a cancelled task may take to cancel its statement in the server before it is cut off."""


class Cancellation(Protocol):
    """The part of a job's cancellation that is needed here."""

    def now(self) -> float:
        """Return seconds on a monotonic clock."""
        ...

    def check(self) -> None:
        """Raise once the job has been asked to end."""
        ...

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call this when the job is asked to end."""
        ...


def run_async(factory: Callable[[], Coroutine[Any, Any, R]], cancellation: Cancellation) -> R:
    """Run a coroutine in this thread (not the main one) until it ends or the job is asked to end.

    Its time limits are counted by the clock of the job.
    In the second case the coroutine is cancelled, and cut off when it has not ended by then; what
    `cancellation.check` raises is raised within a second.
    """
    import asyncio

    cancellation.check()
    load_shared()
    try:
        with asyncio.Runner(loop_factory=partial(_event_loop, cancellation.now)) as runner:
            return runner.run(_cancellable(factory, cancellation))
    except (Exception, asyncio.CancelledError):
        cancellation.check()
        raise


def _event_loop(now: Callable[[], float]) -> "AbstractEventLoop":
    import asyncio

    class Loop(asyncio.SelectorEventLoop):
        @override
        def time(self) -> float:
            return now()

    return Loop()


async def _cancellable(factory: Callable[[], Coroutine[Any, Any, R]], cancellation: Cancellation) -> R:
    import asyncio

    loop = asyncio.get_running_loop()
    task = loop.create_task(factory())

    def cancel() -> None:
        if not task.done():
            task.cancel()
            loop.call_later(CANCEL_GRACE_S, cancel)

    def request() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the work was over before
            loop.call_soon_threadsafe(cancel)

    cancellation.on_request(request)
    return await task

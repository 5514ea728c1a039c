"""Requests that wait for an outcome: a fixed number of places, so that they never starve the others."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias, TypeVar

from ..messages.base import AskTimeoutError, Request
from ..messages.metrics import REFUSED_WAITERS, WAITERS
from .errors import ApiError
from .port import Asker, MetricsPort

R = TypeVar("R")
Gone: TypeAlias = Callable[[], bool]
"""Tells whether the client has disconnected."""

MAX_WAITERS: Final = 16
MAX_MINOR: Final = 8
"""Of these for what must not keep configurations and terminations out."""
RETRY_AFTER_S: Final = 5
SLICE_S: Final = 0.25
"""How often a waiting request looks whether its client is still there."""

CONFIGURE_LIMIT_S: Final = 600.0
STOP_MARGIN_S: Final = 10.0
"""Added to the stop budget: a termination may first wait for a configuration under way (5 s)."""


class ClientGoneError(Exception):
    """The client closed its connection, or its sending side, while its request was waiting."""


class Waiters:
    """The places of one node, shared by its servers."""

    def __init__(
        self,
        metrics: MetricsPort,
        *,
        limit: int = MAX_WAITERS,
        minor_limit: int = MAX_MINOR,
        slice_s: float = SLICE_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._now = now
        self._limit = limit
        self._minor_limit = minor_limit
        self._slice_s = slice_s
        self._lock = threading.Lock()
        self._taken = 0
        self._taken_by_minor = 0

    def wait(
        self,
        asker: Asker,
        request: Request[R],
        *,
        limit_s: float,
        gone: Callable[[], bool] = lambda: False,
        minor: bool = False,
    ) -> R:
        """Take a place, send the request and wait for its answer, at most `limit_s` seconds.

        Raises what `place` and `wait_in_place` raise.
        """
        with self.place(minor=minor):
            return self.wait_in_place(asker, request, limit_s=limit_s, gone=gone)

    def wait_in_place(
        self, asker: Asker, request: Request[R], *, limit_s: float, gone: Callable[[], bool]
    ) -> R:
        """Do the same for whoever has a place already.

        Raises ClientGoneError when nobody waits any more, and AskError: what was asked goes on in both cases.
        """
        pending = asker.request(request)
        deadline = self._now() + limit_s
        while True:
            left = deadline - self._now()
            try:
                return pending.get(max(0.0, min(self._slice_s, left)))
            except AskTimeoutError:
                if left <= self._slice_s:
                    raise
                if gone():
                    raise ClientGoneError from None

    @contextmanager
    def place(self, *, minor: bool) -> Iterator[None]:
        """Hold one of the places, or one of the few for what is `minor`. Raises ApiError (503) when all are taken."""
        with self._lock:
            limit = self._limit
            if minor and self._taken_by_minor >= self._minor_limit:
                limit = self._minor_limit
            full = limit < self._limit or self._taken >= limit
            if not full:
                self._taken += 1
                self._taken_by_minor += minor
                self._metrics.set(WAITERS, self._taken)
        if full:
            self._metrics.add(REFUSED_WAITERS, 1)
            msg = f"{limit} requests are waiting already; try again later, and see `/status` meanwhile"
            raise overloaded(msg)
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1
                self._taken_by_minor -= minor
                self._metrics.set(WAITERS, self._taken)


def overloaded(text: str) -> ApiError:
    """Make the refusal of what may be tried again a moment later."""
    return ApiError(503, text, {"Retry-After": str(RETRY_AFTER_S)})

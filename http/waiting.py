"""Requests that wait for an outcome: a fixed number of places, so that they never starve the others."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from ..messages.base import AskTimeoutError, Request
from ..messages.metrics import REFUSED_WAITERS, WAITERS
from .errors import ApiError
from .port import Asker, MetricsPort

R = TypeVar("R")

MAX_WAITERS: Final = 16
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
        slice_s: float = SLICE_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._now = now
        self._limit = limit
        self._slice_s = slice_s
        self._lock = threading.Lock()
        self._taken = 0

    def wait(
        self, asker: Asker, request: Request[R], *, limit_s: float, gone: Callable[[], bool] = lambda: False
    ) -> R:
        """Send the request and wait for its answer, at most `limit_s` seconds.

        Raises ApiError (503) when all places are taken: nothing is sent then; ClientGoneError when nobody
        waits any more, and AskError: what was asked goes on in both cases.
        """
        with self._place():
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
    def _place(self) -> Iterator[None]:
        with self._lock:
            full = self._taken >= self._limit
            if not full:
                self._taken += 1
                self._metrics.set(WAITERS, self._taken)
        if full:
            self._metrics.add(REFUSED_WAITERS, 1)
            raise ApiError(
                503,
                f"{self._limit} requests are waiting already; try again later, and see `/status` meanwhile",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1
                self._metrics.set(WAITERS, self._taken)

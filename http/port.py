"""What the HTTP application may ask of the rest of the node; it knows no actor."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..messages.base import Request
from ..messages.failpoints import Arming
from ..messages.metrics import Family
from ..messages.settings import DEFAULT_STOP_TIMEOUT_S, NodeSettings

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class PendingAnswer(Protocol[R_co]):
    """The answer to a request, once it comes."""

    def get(self, timeout: float) -> R_co:
        """Wait at most `timeout` seconds. Raises AskTimeoutError or ActorUnavailableError."""
        ...


class Asker(Protocol):
    """Whoever answers requests."""

    def request(self, request: Request[R]) -> PendingAnswer[R]:
        """Send a request; its answer may take long."""
        ...

    def ask(self, request: Request[R], timeout: float) -> R:
        """Send a request and wait at most `timeout` seconds for its answer."""
        ...


class MetricsPort(Protocol):
    """The node's numbers."""

    def read(self, family: Family) -> Mapping[tuple[str, ...], float]:
        """Return all samples of a family, by label values."""
        ...

    def set(self, family: Family, value: float, *labels: str) -> None:
        """Give one sample of a gauge its value."""
        ...

    def add(self, family: Family, amount: float, *labels: str) -> None:
        """Let one sample of a counter grow."""
        ...


class FailpointsPort(Protocol):
    """The switchboard of the failpoints."""

    def configure(self, armings: Iterable[Arming]) -> None:
        """Give failpoints new actions; never blocks."""
        ...


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Whose tokens are accepted. `required` is False only for the open API of a `dev` node on loopback."""

    compute_id: str
    keys: tuple[dict[str, Any], ...]
    required: bool = True

    @classmethod
    def of(cls, settings: NodeSettings) -> "AuthSettings":
        """Take what concerns tokens from the node's settings."""
        return cls(settings.compute_id, settings.config.jwks.keys, required=not settings.open_api)


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The node as the application sees it. Times are seconds; `wall` since the epoch, `now` for durations."""

    supervisor: Asker
    postgres_process: Asker
    configurator: Asker
    clerk: Asker
    lfc: Asker
    metrics: MetricsPort
    auth: AuthSettings
    vm_monitor_bridge: Asker | None = None
    """None without autoscaling."""
    stop_timeout_s: float = DEFAULT_STOP_TIMEOUT_S
    version: str = "latest"
    refresh_metrics: Callable[[], None] = _nothing
    failpoints: FailpointsPort | None = None
    """None without `--dev`: then the route is not there."""
    wall: Callable[[], float] = time.time
    now: Callable[[], float] = time.monotonic

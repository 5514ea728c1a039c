"""The control plane: asked for the node's config with `-p`, at the start and whenever it is to be read again.

Pure but for `fetch` and `fetch_first`. Source: `startup-and-spec` reference, section 3.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from string import punctuation
from typing import Final, TypeAlias
from urllib.parse import quote

import msgspec

from ..actors.kit.jobs import Cancellation
from ..messages.secret import Secret
from ..messages.spec import ComputeConfig, ControlPlaneConfig, ControlPlaneStatus, control_plane_decoder
from ..postgres.web import Limits, Request, Response, WebError, exchange
from .configuration import ConfigurationError
from .signals import STOPPING, SignalPipe, StoppedError

ATTEMPTS: Final = 3
PAUSE_S: Final = 0.1
LIMITS: Final = Limits(total_s=30.0)
"""For one attempt."""
NO_RESPONSE: Final = "unknown"
"""The metric's label for an attempt without a response."""
EXHAUSTED: Final = "Exhausted all attempts to retrieve the config from the control plane"
LEAVE_S: Final = 1.0
"""How long a request that was broken off may take to end; then the process goes without it."""
TRY_AGAIN: Final = frozenset({502, 503})

log = logging.getLogger("compute_node.control_plane")


class ControlPlane(msgspec.Struct, frozen=True):
    """Where the control plane is, who asks, and with which token (empty: none was given)."""

    uri: str
    compute_id: str
    token: Secret

    @property
    def url(self) -> str:
        """What is asked for: the parts are put together as they are."""
        return quote(f"{self.uri}/compute/api/v2/computes/{self.compute_id}/spec", safe=punctuation)


class Blame(Enum):
    """What is to be done about an attempt that failed."""

    PASSING = "it may work the next time"
    FINAL = "it would be the same again"


class Failed(msgspec.Struct, frozen=True):
    """An attempt without a config."""

    error: str
    blame: Blame


class Fetched(msgspec.Struct, frozen=True):
    """A config, and the document that it was read from."""

    config: ComputeConfig
    document: bytes


Outcome: TypeAlias = Fetched | Failed


def judge(response: Response) -> Outcome:
    """Say what a response means."""
    if response.status == 200:  # noqa: PLR2004 - the number is the meaning
        return _read(response.body)
    text = {
        503: "control plane is temporarily unavailable",
        502: "control plane request failed with 502",
    }.get(response.status, f"unexpected control plane response status code: {response.label}")
    return Failed(text, Blame.PASSING if response.status in TRY_AGAIN else Blame.FINAL)


def _read(body: bytes) -> Outcome:
    try:
        answer: ControlPlaneConfig = control_plane_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a wrong shape is one, too
        return Failed(f"could not deserialize control plane response: {error}", Blame.PASSING)
    if answer.status is ControlPlaneStatus.ATTACHED and answer.spec is None:
        return Failed("compute is attached, but spec is empty", Blame.FINAL)
    return Fetched(ComputeConfig(answer.compute_ctl_config, answer.spec), body)


def fetch(
    plane: ControlPlane, cancellation: Cancellation, count: Callable[[str], None] = lambda _: None
) -> Fetched:
    """Ask for the config, three times at most; a spec that is None means that the node waits for one.

    `count` is called with each attempt's `http_status`. Raises ConfigurationError and CancelledError.
    """
    log.info("getting config from control plane: %s", plane.url)
    headers = {"Authorization": f"Bearer {plane.token.reveal()}", "Accept": "application/json"}
    error = ""
    for attempt in range(1, ATTEMPTS + 1):
        label, outcome = _attempt(plane.url, headers, cancellation)
        count(label)
        if isinstance(outcome, Fetched):
            return outcome
        error = outcome.error
        if outcome.blame is Blame.FINAL:
            raise ConfigurationError(error)
        log.warning("attempt %d to get config failed with: %s", attempt, error)
        if attempt < ATTEMPTS:
            cancellation.wait(PAUSE_S)
    msg = f"{EXHAUSTED}: {error}"
    raise ConfigurationError(msg)


def _attempt(url: str, headers: dict[str, str], cancellation: Cancellation) -> tuple[str, Outcome]:
    try:
        response = exchange(Request(url, headers), LIMITS, cancellation)
    except WebError as error:
        text = f"could not perform request to control plane: {error}"
        return NO_RESPONSE, Failed(text, Blame.PASSING if error.passing else Blame.FINAL)
    return response.label, judge(response)


def fetch_first(plane: ControlPlane, signals: SignalPipe) -> tuple[Fetched, tuple[str, ...]]:
    """Ask for the config before there are actors, in the main thread, which goes on hearing signals.

    Returns the `http_status` of every attempt, too. Raises ConfigurationError, and StoppedError after a signal
    that asks the process to stop.
    """
    cancellation = Cancellation()
    attempts: list[str] = []
    fetching: Future[Fetched] = Future()

    def work() -> None:
        try:
            fetching.set_result(fetch(plane, cancellation, attempts.append))
        except BaseException as error:  # noqa: BLE001 - it is raised in the main thread
            fetching.set_exception(error)
        signals.wake()

    threading.Thread(target=work, name="control-plane", daemon=True).start()
    while not fetching.done():
        stopping = [signal for signal in signals.wait() if signal in STOPPING]
        if stopping:
            cancellation.request()
            signals.wait(LEAVE_S)
            raise StoppedError(stopping[0].name)
    return fetching.result(), tuple(attempts)

"""Telling the service manager how the node is (sd_notify): datagrams to the socket that NOTIFY_SOCKET names.

Source: sd_notify(3). Only the main thread of the main process sends; the variable is taken out of the
environment, so that nobody whom we start can speak for us.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from ..messages.lifecycle import Status, StatusChanged

VARIABLE: Final = "NOTIFY_SOCKET"
EXTENSION_S: Final = 60.0
"""How much more time a start that goes on asks for, each time."""
EXTEND_EVERY_S: Final = 15.0
STOP_MARGIN_S: Final = 5.0
"""How much longer than the stop budget the end may take before the manager is to lose patience."""
MAX_STATUS: Final = 300
"""Characters of a status line; the rest is cut off."""
_SEND_TIMEOUT_S: Final = 1.0

_READY: Final = frozenset({Status.RUNNING, Status.EMPTY})
_ENDING: Final = frozenset(
    {
        Status.FAILED,
        Status.TERMINATION_PENDING_FAST,
        Status.TERMINATION_PENDING_IMMEDIATE,
        Status.TERMINATED,
    }
)

log = logging.getLogger("compute_node.notify")


class Notifier:
    """What the service manager has been told; silent when there is none. `stop_timeout_s` is the stop budget."""

    def __init__(self, address: str | None, *, stop_timeout_s: float = 0.0) -> None:
        self._address = address
        self._stop_timeout_s = stop_timeout_s
        self._ready = False
        self._ending = False
        self._extend_at_s = 0.0

    @property
    def speaks(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def changed(self, change: StatusChanged) -> None:
        """Tell a change of the node's status; `empty` is told once the control plane serves."""
        text = change.new.text if change.error is None else f"{change.new.text}: {change.error}"
        told = {"STATUS": " ".join(text.split())[:MAX_STATUS]}
        if change.new in _ENDING and not self._ending:
            self._ending = True
            told |= {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": _usec(self._stop_timeout_s + STOP_MARGIN_S)}
        elif change.new in _READY and not self._ready and not self._ending:
            self._ready = True
            told["READY"] = "1"
        self._send(told)

    def wait_s(self, now_s: float) -> float | None:
        """Return after how many seconds `extend` is due again; None when it is not."""
        if not self.speaks or self._ready or self._ending:
            return None
        return max(0.0, self._extend_at_s - now_s)

    def extend(self, now_s: float) -> None:
        """Ask for more time, if it is due: a start may take long (recovery has no limit)."""
        if self.wait_s(now_s) == 0:
            self._extend_at_s = now_s + EXTEND_EVERY_S
            self._send({"EXTEND_TIMEOUT_USEC": _usec(EXTENSION_S)})

    def reloading(self) -> None:
        """Tell that the configuration is being read again; `reloaded` must follow."""
        if self._ready and not self._ending:
            stamp = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._send({"RELOADING": "1", "MONOTONIC_USEC": str(stamp)})

    def reloaded(self) -> None:
        """Tell that reading the configuration again is over, with whatever result."""
        if self._ready and not self._ending:
            self._send({"READY": "1"})

    def _send(self, told: dict[str, str]) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        data = "\n".join(f"{name}={value}" for name, value in told.items()).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_TIMEOUT_S)
                sender.connect(address)
                sender.send(data)
        except OSError as error:
            log.warning(
                "the service manager cannot be told anything by %s=%s: %s", VARIABLE, self._address, error
            )
            self._address = None


def take(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Return the address of the service manager's socket, and take it out of the environment."""
    return environment.pop(VARIABLE, None) or None


def _usec(seconds: float) -> str:
    return str(round(seconds * 1_000_000))

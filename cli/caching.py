"""`compute-node prewarm` and `offload`: begin, wait, and say how it ended."""

import sys
import threading
from typing import Any, Final
from urllib.parse import quote

from .client import Client

PREWARM: Final = "/lfc/prewarm"
OFFLOAD: Final = "/lfc/offload"
LOOK_S: Final = 0.5
UNDER_WAY: Final = frozenset({"prewarming", "offloading"})
BAD: Final = frozenset({"failed", "cancelled"})


def prewarm(client: Client, from_endpoint: str | None, *, wait: bool, narrate: bool) -> dict[str, Any]:
    """Begin a prewarm and return its state, with `wait` the one at its end."""
    query = "" if from_endpoint is None else f"?from_endpoint={quote(from_endpoint, safe='')}"
    client.post(PREWARM + query)
    return _awaited(client, PREWARM, wait=wait, narrate=narrate)


def cancel(client: Client) -> dict[str, Any]:
    """End the prewarm under way and return the state at its end."""
    client.delete(PREWARM)
    return _awaited(client, PREWARM, wait=True, narrate=False)


def offload(client: Client, *, force: bool, wait: bool) -> dict[str, Any]:
    """Begin an offload and return its state, with `wait` the one at its end."""
    client.post(OFFLOAD + ("?force=true" if force else ""))
    return _awaited(client, OFFLOAD, wait=wait, narrate=False)


def is_fine(shown: dict[str, Any]) -> bool:
    """Tell whether nothing has gone wrong, so far, nor is left for an operator to mend."""
    return shown["status"] not in BAD and "reason" not in shown


def prewarm_text(shown: dict[str, Any]) -> str:
    """Say in a line how a prewarm stands."""
    match shown["status"]:
        case "completed":
            ms = sum(value for name, value in shown.items() if name.endswith("_time_ms"))
            return f"completed: {_counts(shown)}, {shown['skipped']} skipped, in {ms / 1000:.1f} s"
        case "prewarming":
            return f"prewarming: {_counts(shown)}"
        case "skipped":
            return "skipped: there is no saved state"
        case status:
            return _with_error(status, shown)


def offload_text(shown: dict[str, Any]) -> str:
    """Say in a line how an offload stands."""
    match shown["status"]:
        case "completed":
            ms = sum(value for name, value in shown.items() if name.endswith("_time_ms"))
            return f"completed in {ms / 1000:.1f} s"
        case "skipped":
            return f"skipped: {shown.get('reason', 'nothing is cached')}"
        case status:
            return _with_error(status, shown)


def _awaited(client: Client, path: str, *, wait: bool, narrate: bool) -> dict[str, Any]:
    """Look again and again until it has ended; with `narrate` tell on stderr how far it has come."""
    pause = threading.Event()
    on_terminal = sys.stderr.isatty()
    told = False
    while True:
        shown: dict[str, Any] = client.get(path)
        if shown["status"] not in UNDER_WAY or not wait:
            break
        if narrate:
            told = True
            end = "" if on_terminal else "\n"
            begin = "\r\x1b[K" if on_terminal else ""
            print(f"{begin}{_counts(shown)}", end=end, file=sys.stderr, flush=True)
        pause.wait(LOOK_S)
    if told and on_terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return shown


def _counts(shown: dict[str, Any]) -> str:
    total, done = shown["total"], shown["prewarmed"]
    percent = f" ({100 * done // total} %)" if total and shown["status"] == "prewarming" else ""
    return f"{done} of {total} blocks{percent}"


def _with_error(status: str, shown: dict[str, Any]) -> str:
    return f"{status}: {shown['error']}" if shown.get("error") else str(status)

"""A control plane that nodes ask for their config, and the switchboard of its faults."""

import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from doubles.web_server import Quiet, web_server


@dataclass
class ControlPlane:
    """May be changed while it serves; `asked` is what came: path and Authorization, in order."""

    url: str
    token: str = ""
    """What a node must bring; empty: nobody looks."""
    spec: dict[str, Any] | None = None
    """The node's spec; without one the node is not attached."""
    config: dict[str, Any] = field(default_factory=lambda: {"jwks": {"keys": []}})
    refusals: deque[int] = field(default_factory=deque)
    """The next requests are answered with these, whatever else holds."""
    garbage: bytes | None = None
    """Is sent in place of the config."""
    cut_at: int | None = None
    """The connection is closed after so many bytes of the config."""
    keeps_open: bool = False
    """The connection stays open after the answer."""
    deaf: bool = False
    """Takes requests and never answers."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)
    """Set once somebody waits for an answer that does not come."""

    def document(self) -> bytes:
        status = "empty" if self.spec is None else "attached"
        return json.dumps({"status": status, "spec": self.spec, "compute_ctl_config": self.config}).encode()


@contextlib.contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Serve on a free loopback port meanwhile."""
    closing = threading.Event()

    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization")
            double.asked.append((self.path, authorization))
            if double.deaf:
                double.waiting.set()
                closing.wait()
                return
            status = double.refusals.popleft() if double.refusals else 200
            if double.token and authorization != f"Bearer {double.token}":
                status = 401
            body = double.document() if double.garbage is None else double.garbage
            if status != 200:
                body = b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: double.cut_at])
            self.wfile.flush()
            if double.keeps_open:
                closing.wait()

    with web_server(Handler) as url:
        double = ControlPlane(f"{url}/prefix")
        try:
            yield double
        finally:
            closing.set()

"""A stub of the node's API: answers what it is told to, remembers what it was asked."""

import contextlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgspec

from doubles.web_server import Quiet, web_server

Asked = tuple[str, str, str | None, bytes]


class ApiServer:
    """`answers` maps "METHOD /path?query" to a status and a JSON value, or to a list of them, one for each request.

    `asked` is what came, in order.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, tuple[int, Any] | list[tuple[int, Any]]] = {}
        self.asked: list[Asked] = []


@contextlib.contextmanager
def api_server() -> Iterator[ApiServer]:
    """Serve on a free loopback port meanwhile."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_DELETE(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            double.asked.append((self.command, self.path, self.headers.get("Authorization"), body))
            answer = double.answers.get(f"{self.command} {self.path}", (404, None))
            status, value = answer.pop(0) if isinstance(answer, list) else answer
            data = b"" if value is None else msgspec.json.encode(value)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with web_server(Handler) as url:
        double = ApiServer(url)
        yield double

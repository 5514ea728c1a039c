"""A small HTTP server on a free loopback port, for doubles."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Quiet:
    """For a handler that logs nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
        return


@contextlib.contextmanager
def web_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve meanwhile; the URL has no slash at its end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

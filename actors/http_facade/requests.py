"""One request of waitress: its body's limit, and answers in the application's own form also to what was not read.

Imported late, for waitress.
"""

from typing import TYPE_CHECKING, Any, Final, Protocol

from typing_extensions import override
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import WSGITask
from waitress.utilities import InternalServerError

from ...messages.serving import FREE_BODY, REFUSAL_KEY, BrokenBodyError

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

JOINED: Final = 64 * 1024
"""A body of at most this size is sent with its head in one piece."""
PLAIN_FAULT: Final = b'{"error":"internal error"}'


class Limits(Protocol):
    """Knows how much of a body is read."""

    def __call__(self, path: str, authorization: str | None, *, chunked: bool) -> Adjustments:
        """Return the settings with the limit for this path and whoever asks."""
        ...


class Parser(HTTPRequestParser):
    """Limits a body by its path and sender as soon as the headers are there; refuses what waitress overlooks."""

    path: str

    def __init__(self, limits: Limits, adjustments: Adjustments) -> None:
        super().__init__(adjustments)
        self._limits = limits

    @override
    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # a length of thousands of digits, or half an address in brackets
            msg = "the request line or a length cannot be read"
            raise ParsingError(msg) from None
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            msg = "a body is either chunked or of a given length"
            raise ParsingError(msg)
        if self.chunked or self.content_length > FREE_BODY:
            self.adj = self._limits(self.path, self.headers.get("AUTHORIZATION"), chunked=self.chunked)

    @override
    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.error is not None:
            self.expect_continue = False  # the refusal is the answer
        return consumed


class DrainingTask(WSGITask):
    """Tells clients that the connection ends when the server is being drained."""

    @override
    def service(self) -> None:
        try:
            super().service()
        except BrokenBodyError:  # who raised it has logged it
            self.close_on_finish = True
            if not self.chunked_response:  # the end of the connection would be the end of the body
                self.channel.reset_at_close()  # type: ignore[attr-defined] # our channel

    @override
    def build_response_header(self) -> bytes:
        if self.channel.server.web.draining:  # type: ignore[attr-defined] # our listener
            self.set_close_on_finish()
        return super().build_response_header()

    @override
    def write(self, data: bytes) -> None:
        """Send the head and what follows it in one piece: each piece is a system call and a packet."""
        if self.complete and not self.wrote_header:
            head = self.build_response_header()
            self.wrote_header = True
            if self.has_body and len(data) == self.content_length and len(data) <= JOINED:
                self.content_bytes_written = len(data)
                self.channel.write_soon(head + data)
                return
            self.channel.write_soon(head)
        super().write(data)


class RefusalTask(DrainingTask):
    """Lets the application answer a request that was not read to its end."""

    @override
    def execute(self) -> None:
        self.set_close_on_finish()
        if isinstance(self.request.error, InternalServerError):  # type: ignore[attr-defined] # a parser
            # The application itself failed to answer; it is not asked again.
            self.complete = True
            self.status = "500 Internal Server Error"
            self.response_headers.append(("Content-Type", "application/json"))  # type: ignore[attr-defined]
            self.content_length = len(PLAIN_FAULT)
            self.write(PLAIN_FAULT)
            return
        super().execute()

    @override
    def get_environment(self) -> "WSGIEnvironment":
        request: Any = self.request
        for name, value in _UNREAD.items():
            if not hasattr(request, name):
                setattr(request, name, value)
        environ = super().get_environment()
        environ[REFUSAL_KEY] = (request.error.code, f"{request.error.reason}: {request.error.body}")
        return environ


_UNREAD: Final = {"command": "GET", "path": "/", "request_uri": "/", "query": "", "url_scheme": "http"}
"""What stands in for a request line that could not be read."""

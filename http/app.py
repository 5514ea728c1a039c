"""The two applications, made from their route tables.

To add routes: one file in `routes/`, one line in a table here.
"""

import logging
import random
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

import falcon
import msgspec

from ..messages.base import ActorUnavailableError, AskTimeoutError, redacted
from ..messages.metrics import UNKNOWN_FIELDS
from ..messages.serving import REFUSAL_KEY
from ..messages.unknown import unknown_parts
from .auth import Authenticator
from .body import decode_body, decode_form, decode_query, is_form, read_body, too_large
from .errors import ApiError, ErrorBody, escaped, lowered
from .openapi import describe
from .port import Node
from .routes import (
    autoscaling,
    catalog,
    configure,
    description,
    extensions,
    failpoints,
    grants,
    insights,
    journal,
    lfc,
    metrics,
    plan,
    probes,
    promote,
    refresh,
    schema,
    status,
    terminate,
    writability,
)
from .streaming import StreamedBody
from .table import Answer, Call, Context, Route, Scope
from .waiting import ClientGoneError, Waiters

EXTERNAL: Final[tuple[Route, ...]] = (
    *status.ROUTES,
    *metrics.ROUTES,
    *configure.ROUTES,
    *plan.ROUTES,
    *terminate.ROUTES,
    *promote.ROUTES,
    *writability.ROUTES,
    *catalog.ROUTES,
    *schema.ROUTES,
    *insights.ROUTES,
    *lfc.ROUTES,
    *probes.ROUTES,
    *description.ROUTES,
    *journal.ROUTES,
    *autoscaling.ROUTES,
)
INTERNAL: Final[tuple[Route, ...]] = (
    probes.LIVE,
    *extensions.ROUTES,
    *grants.ROUTES,
    *refresh.ROUTES,
    *description.ROUTES,
)
"""The internal server serves loopback only and asks for no token, so each of its routes says PUBLIC."""

REQUEST_ID: Final = "x-request-id"
NAMED: Final = 10
"""Unknown fields that one log line names."""
SHOWN: Final = 200
"""Characters of a client's text that one log line shows."""

_VISIBLE: Final = re.compile(r"[\x20-\x7e]+")
_TRACK_KEY: Final = "compute_node.track"
_EMPTY_TYPE: Final = "text/plain; charset=utf-8"

log = logging.getLogger("compute_node.http")

Responder: TypeAlias = Callable[..., None]


class Api(falcon.App[falcon.Request, falcon.Response]):
    """A WSGI application that knows its routes."""

    def __init__(
        self, context: Context, routes: tuple[Route, ...], authenticator: Authenticator | None
    ) -> None:
        super().__init__(middleware=[_Envelope(routes)])
        self.routes = routes
        self.waiters = context.waiters
        self._limits = {route.path: route.largest_body for route in routes}
        self._authenticator = authenticator
        self._resources: dict[str, _Resource] = {}
        self.resp_options.default_media_type = _EMPTY_TYPE
        self.add_error_handler(Exception, _on_fault)
        self.add_error_handler(falcon.HTTPError, self._on_http_error)
        self.add_error_handler(ApiError, _on_api_error)
        self.add_error_handler(AskTimeoutError, _on_timeout)
        self.add_error_handler(ActorUnavailableError, _on_unavailable)
        self.add_error_handler(ClientGoneError, _on_client_gone)
        for path in dict.fromkeys(route.path for route in routes):
            at_path = [route for route in routes if route.path == path]
            self._resources[path] = _Resource(at_path, context, authenticator)
            self.add_route(path, self._resources[path])

    def body_limit(self, path: str, authorization: str | None) -> int:
        """Return how many bytes a body for this path may have; 0 for whoever would be refused anyway."""
        if self._authenticator is None or not self._authenticator.opens(authorization):
            return 0
        return self._limits.get(path, 0)

    def _on_http_error(
        self,
        request: falcon.Request,
        response: falcon.Response,
        error: falcon.HTTPError,
        _path: dict[str, Any],
    ) -> None:
        known = self._resources.get(request.uri_template or request.path)
        strange_method = type(error) is falcon.HTTPBadRequest  # Falcon's answer to one it has never heard of
        if strange_method and known is not None:
            known.refuse(request, response)
        elif strange_method or isinstance(error, falcon.HTTPRouteNotFound):
            response.status = 404
        else:
            text = error.description or error.title or "malformed request"
            _fail(request, response, error.status_code, lowered(text))


def create_external_app(node: Node, waiters: Waiters | None = None) -> Api:
    """Make the application of the external server. `waiters` is shared by the servers of one node."""
    return _create(node, EXTERNAL, Authenticator(node.auth, node.wall), waiters)


def create_internal_app(node: Node, waiters: Waiters | None = None) -> Api:
    """Make the application of the internal server, which asks for no token."""
    routes = INTERNAL if node.failpoints is None else (*INTERNAL, *failpoints.ROUTES)
    return _create(node, routes, None, waiters)


def create_apps(node: Node) -> tuple[Api, Api]:
    """Make both applications of a node, which share its waiting places."""
    waiters = Waiters(node.metrics, now=node.now)
    return create_external_app(node, waiters), create_internal_app(node, waiters)


def _create(
    node: Node, routes: tuple[Route, ...], authenticator: Authenticator | None, waiters: Waiters | None
) -> Api:
    @cache
    def document() -> bytes:
        return msgspec.json.encode(describe(routes, node.version))

    return Api(Context(node, waiters or Waiters(node.metrics, now=node.now), document), routes, authenticator)


# --- One request -------------------------------------------------------------------------------------------


class _Resource:
    """What serves one path: its routes, and 405 for every other method."""

    def __init__(self, routes: list[Route], context: Context, authenticator: Authenticator | None) -> None:
        responders: dict[str, Responder] = {}
        for route in routes:
            responders[route.method] = _Endpoint(route, context, authenticator)
            if route.method == "GET":
                responders["HEAD"] = responders["GET"]
        self.allow = ",".join(sorted(responders))
        for method in falcon.COMBINED_METHODS:
            setattr(self, f"on_{method.lower()}", responders.get(method, self.refuse))

    def refuse(self, _request: falcon.Request, response: falcon.Response, **_path: str) -> None:
        """Answer a method that this path does not have; nobody is asked for a token here."""
        response.status = 405
        response.set_header("Allow", self.allow)


class _Endpoint:
    """Serves one route: token first, then query and body, then its handler."""

    def __init__(self, route: Route, context: Context, authenticator: Authenticator | None) -> None:
        self._route = route
        self._context = context
        self._authenticator = authenticator

    def __call__(self, request: falcon.Request, response: falcon.Response, **path: str) -> None:
        """Answer one request."""
        route = self._route
        admin = route.scope is not Scope.PUBLIC and self._authorize(request)
        if REFUSAL_KEY in request.env:
            raise too_large(route.largest_body)
        call = Call(
            context=self._context,
            gone=request.env.get("waitress.client_disconnected", _never),
            admin=admin,
            decoded_query=self._query(request),
            decoded_body=self._body(request),
            path=path,
        )
        answer = route.handler(call)
        _write(response, answer)
        if request.method == "HEAD" and isinstance(answer.content, StreamedBody):
            answer.content.close()  # nobody will

    def _authorize(self, request: falcon.Request) -> bool:
        if self._authenticator is None:
            msg = f"{self._route.path} needs a token, and this server knows no keys"
            raise RuntimeError(msg)
        return self._authenticator.check(request.get_header("Authorization"))

    def _query(self, request: falcon.Request) -> object:
        if self._route.query is None:
            return None
        # A bare `?` is an empty query, which WSGI does not tell from none; the server's raw target does.
        asked = bool(request.query_string) or "?" in request.env.get("REQUEST_URI", "")
        if not asked and self._route.query_optional:
            return None
        return decode_query(request.query_string, self._route.query)

    def _body(self, request: falcon.Request) -> object:
        decoder = self._route.body
        if decoder is None:
            if (request.content_length or 0) > self._route.largest_body:
                raise too_large(self._route.largest_body)
            return None
        body = read_body(request.bounded_stream, request.content_length, self._route.largest_body)
        if self._route.form is not None and is_form(request.content_type):
            return decode_form(body, self._route.form)
        typed, plain = decode_body(body, request.content_type, decoder)
        unknown = unknown_parts(plain, decoder.type)
        if unknown:
            self._context.node.metrics.add(UNKNOWN_FIELDS, len(unknown))
            log.warning(
                "%s: %d unknown fields or features are ignored: %s%s",
                self._route.path,
                len(unknown),
                ", ".join(map(_shown, unknown[:NAMED])),
                ", …" if len(unknown) > NAMED else "",
            )
        return typed


def _never() -> bool:
    return False


def _write(response: falcon.Response, answer: Answer) -> None:
    response.status = answer.status
    for name, value in answer.headers.items():
        response.set_header(name, value)
    if isinstance(answer.content, StreamedBody):
        response.stream = answer.content
        response.content_type = answer.media
    elif isinstance(answer.content, bytes):
        response.data = answer.content
        response.content_type = answer.media
    elif answer.content is not None:
        response.data = redacted(answer.content)
        response.content_type = answer.media


# --- What surrounds every request --------------------------------------------------------------------------


class _Envelope:
    """Gives every request its id and its two log lines, and refuses what a server could not read."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._quiet = frozenset(route.path for route in routes if route.probe)

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Begin: the id, the first log line, and what no route is asked about."""
        track = _track(request)
        track.quiet = request.path in self._quiet
        log.log(
            logging.DEBUG if track.quiet else logging.INFO,
            "%s %s request_id=%s",
            _shown(request.method),
            _shown(request.path),
            _shown(track.request_id),
        )
        refusal = request.env.get(REFUSAL_KEY)
        if refusal is not None and refusal[0] != falcon.HTTPContentTooLarge().status_code:
            raise ApiError(refusal[0], lowered(refusal[1]))
        if request.path.startswith("//") or request.env.get("REQUEST_URI", "").startswith("//"):
            raise falcon.HTTPRouteNotFound  # Falcon's router, and waitress before it, would strip slashes
        if request.get_header("Upgrade") is not None:
            raise ApiError(400, "protocol upgrades are not served here; send the request without `upgrade`")

    def process_response(
        self, request: falcon.Request, response: falcon.Response, _resource: object, _succeeded: object
    ) -> None:
        """End: the id in the response, and the second log line."""
        track = _track(request)
        response.set_header(REQUEST_ID, track.request_id)
        level = logging.DEBUG if track.quiet else logging.INFO
        log.log(
            level if track.error is None else logging.ERROR,
            "request_id=%s code=%s latency=%dms%s",
            _shown(track.request_id),
            response.status_code,
            (time.monotonic() - track.began) * 1000,
            "" if track.error is None else f' error="{escaped(track.error)}"',
        )


@dataclass(slots=True)
class _Track:
    """What is remembered of one request until its response is logged."""

    request_id: str
    began: float
    quiet: bool = False
    error: str | None = None


def _track(request: falcon.Request) -> _Track:
    track: _Track | None = request.env.get(_TRACK_KEY)
    if track is None:
        given = request.get_header(REQUEST_ID)
        request_id = given if given and _VISIBLE.fullmatch(given) else _new_id()
        track = request.env[_TRACK_KEY] = _Track(request_id, time.monotonic())
    return track


def _new_id() -> str:
    """Make a random UUID without a system call, which would let go of the interpreter at each request."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def _shown(text: str) -> str:
    """Put a client's text into a form that is fit for one line of a log."""
    if len(text) <= SHOWN and text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return text[:SHOWN].encode("unicode_escape").decode("ascii")


# --- Failures ----------------------------------------------------------------------------------------------


def _fail(request: falcon.Request, response: falcon.Response, status: int, text: str) -> None:
    _track(request).error = text
    _write(response, Answer(ErrorBody(text), status))


def _on_api_error(
    request: falcon.Request, response: falcon.Response, error: ApiError, _path: dict[str, Any]
) -> None:
    _fail(request, response, error.status, error.text)
    for name, value in error.headers.items():
        response.set_header(name, value)


def _on_timeout(
    request: falcon.Request, response: falcon.Response, error: AskTimeoutError, _path: dict[str, Any]
) -> None:
    log.error("request_id=%s %s", _shown(_track(request).request_id), error)
    _fail(
        request, response, 504, "there was no answer in time; what was asked may still go on, see `/status`"
    )


def _on_unavailable(
    request: falcon.Request, response: falcon.Response, error: ActorUnavailableError, _path: dict[str, Any]
) -> None:
    log.error("request_id=%s %s", _shown(_track(request).request_id), error)
    _fail(request, response, 503, "the node cannot answer now: it is ending, or a part of it has failed")


def _on_client_gone(
    _request: falcon.Request, response: falcon.Response, _error: ClientGoneError, _path: dict[str, Any]
) -> None:
    # No error of the node: its log line stays an ordinary one.
    _write(
        response, Answer(ErrorBody("the client stopped waiting; what was asked goes on, see `/status`"), 503)
    )


def _on_fault(
    request: falcon.Request, response: falcon.Response, error: Exception, _path: dict[str, Any]
) -> None:
    request_id = _track(request).request_id
    log.error("request_id=%s failed", _shown(request_id), exc_info=error)
    _write(response, Answer(ErrorBody(f"internal error (request {request_id})"), 500))

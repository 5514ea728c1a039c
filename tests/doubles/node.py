"""A node as the HTTP application sees it, that answers what a test says, and a client that checks every answer."""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import falcon.testing
from compute_node.actors.kit.actor import Pending
from compute_node.actors.kit.metrics import Metrics
from compute_node.http.app import Api
from compute_node.http.openapi import responses
from compute_node.http.port import AuthSettings, FailpointsPort, Node
from compute_node.messages.base import Request
from compute_node.messages.lifecycle import NodeStatus, Status

from doubles.tokens import COMPUTE_ID, KEY, NOW_S, OWN

R = TypeVar("R")

RUNNING: Final = NodeStatus(
    start_time="2025-07-17T12:00:00.123456789Z",
    tenant="c9269c359e9a199fad1ea0981246a78f",
    timeline="ece7de74d4b8cbe5433a68ce4d1b97b4",
    status=Status.RUNNING,
    last_active="2025-07-17T12:05:00.500123+00:00",
    error=None,
)
SPEC: Final[Mapping[str, Any]] = {
    "format_version": 1.0,
    "suspend_timeout_seconds": -1,
    "cluster": {"roles": [], "databases": []},
}
CONFIGURE: Final[Mapping[str, Any]] = {"spec": SPEC, "compute_ctl_config": {"jwks": {"keys": []}}}

EXTENSION: Final[Mapping[str, Any]] = {"extension": "citext", "database": "neondb", "version": "1.6"}
GRANTS: Final[Mapping[str, Any]] = {
    "database": "neondb",
    "schema": "public",
    "privileges": ["CREATE", "USAGE"],
    "role": "alice",
}
BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "/configure": CONFIGURE,
    "/plan": CONFIGURE,
    "/promote": {"spec": SPEC, "wal_flush_lsn": "0/28F10D8"},
    "/extensions": EXTENSION,
    "/grants": GRANTS,
}
"""A good body for each route that takes one."""
QUERIES: Final[Mapping[str, str]] = {"/database_schema": "?database=neondb"}
"""A query for each route that must have one."""

NO_ERROR_OBJECT: Final = frozenset({"/live", "/ready", "/promote"})


class StubSupervisor:
    """Answers by the kind of the request: with a value, or by raising an AskError; else it keeps silent."""

    def __init__(self) -> None:
        self.answers: dict[type[Request[Any]], object] = {}
        self.asked: list[tuple[Request[Any], float | None]] = []
        self.changed = threading.Condition()
        self._silent: list[Future[object]] = []

    def request(self, request: Request[R]) -> Pending[R]:
        return self._request(request, None)

    def ask(self, request: Request[R], timeout: float) -> R:
        return self._request(request, timeout).get(timeout)

    def release(self, answer: object) -> None:
        """Answer everybody who waits."""
        with self.changed:
            silent, self._silent = self._silent, []
        for promise in silent:
            promise.set_result(answer)

    def wait_until_asked(self, count: int, timeout: float = 10) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, timeout), self.asked

    def _request(self, request: Request[R], timeout: float | None) -> Pending[R]:
        promise: Future[object] = Future()
        answer = self.answers.get(type(request))
        with self.changed:
            self.asked.append((request, timeout))
            if answer is None:
                self._silent.append(promise)
            self.changed.notify_all()
        if isinstance(answer, Exception):
            promise.set_exception(answer)
        elif answer is not None:
            promise.set_result(answer)
        return Pending(promise, type(request).__name__)


def node(
    supervisor: StubSupervisor,
    metrics: Metrics | None = None,
    *,
    keys: tuple[dict[str, Any], ...] = (KEY.jwk,),
    required: bool = True,
    wall: Callable[[], float] = lambda: NOW_S,
    refresh: Callable[[], None] = lambda: None,
    failpoints: FailpointsPort | None = None,
) -> Node:
    return Node(
        supervisor=supervisor,
        postgres_process=supervisor,
        configurator=supervisor,
        clerk=supervisor,
        lfc=supervisor,
        vm_monitor_bridge=supervisor,
        metrics=metrics or Metrics(),
        auth=AuthSettings(COMPUTE_ID, keys, required=required),
        stop_timeout_s=25.0,
        refresh_metrics=refresh,
        failpoints=failpoints,
        wall=wall,
    )


class Client:
    """Sends requests to an application; what must hold for every response is checked on each."""

    def __init__(self, app: Api, *, token: str | None = None) -> None:
        self.app = app
        self.token = KEY.sign(OWN) if token is None else token
        self._client = falcon.testing.TestClient(app)

    def __call__(
        self,
        method: str,
        target: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        document: object = None,
    ) -> falcon.testing.Result:
        """Send one request. An empty `token` sends none; `document` is sent as JSON."""
        path, _, query = target.partition("?")
        sent = dict(headers or {})
        given = self.token if token is None else token
        if given:
            sent.setdefault("Authorization", f"Bearer {given}")
        if document is not None:
            body = json.dumps(document).encode()
            sent.setdefault("Content-Type", "application/json")
        result = self._client.simulate_request(
            method, path, query_string=query, headers=sent, body=body, extras={"REQUEST_URI": target}
        )
        self._check(method, path, result)
        return result

    def _check(self, method: str, path: str, result: falcon.testing.Result) -> None:
        assert result.headers["x-request-id"]
        routes = {(route.method, route.path): route for route in self.app.routes}
        route = routes.get(("GET" if method == "HEAD" else method, path))
        if route is None:
            assert result.status_code in {400, 404, 405, 413}
        else:
            assert result.status_code in responses(route), f"{result.status} of {path} is not documented"
        if result.status_code >= 400 and result.content and path not in NO_ERROR_OBJECT:
            assert result.headers["content-type"] == "application/json"
            assert list(result.json) == ["error"]
            assert isinstance(result.json["error"], str)

"""Tables 2.1 to 2.4 of the HTTP API: request ids, errors, parse failures, 404 and 405."""

import json
import logging
import uuid
from typing import Any

import falcon.testing
import pytest
from compute_node.actors.kit.metrics import Metrics
from compute_node.http.app import EXTERNAL, Api, create_external_app, create_internal_app
from compute_node.http.body import read_body
from compute_node.http.errors import ApiError, escaped, lowered
from compute_node.http.table import LARGE_BODY, SMALL_BODY, Context, Scope
from compute_node.http.waiting import Waiters
from compute_node.messages.base import ActorUnavailableError, AskTimeoutError
from compute_node.messages.lifecycle import Configure, Configured, GetJournal, GetStatus
from compute_node.messages.metrics import UNKNOWN_FIELDS
from compute_node.messages.serving import FREE_BODY, REFUSAL_KEY

from doubles.node import CONFIGURE, RUNNING, SPEC, Client, StubSupervisor, node
from doubles.tokens import FOREIGN, OWN

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
JSON = {"Content-Type": "application/json"}


# --- 2.1 Request ids


def test_a_request_id_is_given_back_as_it_came(client: Client) -> None:
    result = client("GET", "/status", headers={"X-Request-ID": "any text, {even} this"})
    assert result.headers["x-request-id"] == "any text, {even} this"


@pytest.mark.parametrize("given", [None, "", "caf\u00e9", "tab\there"])
def test_a_missing_or_unfit_request_id_is_replaced_by_a_random_uuid(
    client: Client, given: str | None
) -> None:
    headers = {} if given is None else {"x-request-id": given}
    environ = falcon.testing.create_environ("/metrics", headers=headers)
    seen: dict[str, str] = {}
    b"".join(client.app(environ, lambda _status, sent, _info=None: seen.update(sent)))  # type: ignore[arg-type]
    assert uuid.UUID(seen["x-request-id"]).version == 4


@pytest.mark.parametrize(
    ("method", "target", "token", "status"),
    [("GET", "/status", "x", 401), ("GET", "/nowhere", "", 404), ("POST", "/status", "", 405)],
)
def test_errors_carry_the_request_id_too(
    client: Client, method: str, target: str, token: str, status: int
) -> None:
    result = client(method, target, token=token, headers={"x-request-id": "abc"})
    assert (result.status_code, result.headers["x-request-id"]) == (status, "abc")


def test_every_request_and_its_response_are_logged_with_the_request_id(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "compute_node.http"):
        client("GET", "/status", headers={"x-request-id": "abc"})
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.INFO]
    assert caplog.messages[0] == "GET /status request_id=abc"
    assert caplog.messages[1].startswith("request_id=abc code=200 latency=")


def test_requests_of_probes_are_logged_at_debug_level(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "compute_node.http"):
        client("GET", "/metrics")
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_a_path_with_a_line_break_stays_on_one_line_of_the_log(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "compute_node.http"):
        client("GET", "/nowhere%0Aforged line")
    assert caplog.messages[0].startswith("GET /nowhere\\nforged line request_id=")


# --- 2.2 Errors


def test_each_json_error_is_logged_as_an_error_with_its_text(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client("GET", "/status", token="not-a-token")
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].endswith('error="failed to verify authorization token"')


def test_a_fault_of_ours_tells_the_client_no_more_than_the_request_id(
    client: Client, supervisor: StubSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor.answers[GetJournal] = KeyError("hunter2 at /etc/secret")
    result = client("GET", "/debug/journal", headers={"x-request-id": "r-1"})
    assert result.status_code == 500
    assert result.json == {"error": "internal error (request r-1)"}
    with_traceback = [record for record in caplog.records if record.exc_info]
    assert len(with_traceback) == 1
    assert "r-1" in with_traceback[0].getMessage()


def test_an_actor_that_died_is_503_without_its_last_words(
    client: Client, supervisor: StubSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor.answers[GetStatus] = ActorUnavailableError("supervisor failed: KeyError: hunter2")
    result = client("GET", "/status")
    assert result.status_code == 503
    assert "hunter2" not in result.text
    assert "hunter2" in caplog.text


def test_no_answer_in_time_is_504(client: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[GetStatus] = AskTimeoutError("no answer to GetStatus by supervisor within 5 s")
    result = client("GET", "/status")
    assert result.status_code == 504
    assert "supervisor" not in result.text


# --- 2.3 Parse failures


def _configure(client: Client, body: bytes, headers: dict[str, str] | None = None) -> falcon.testing.Result:
    return client("POST", "/configure", body=body, headers=JSON if headers is None else headers)


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/jsonl", "application/x-www-form-urlencoded"]
)
def test_a_body_that_is_not_called_json_is_415(client: Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    result = _configure(client, json.dumps(CONFIGURE).encode(), headers)
    assert result.status_code == 415
    assert result.json["error"] == "expected request with `content-type: application/json`"


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.neon+json"]
)
def test_each_json_content_type_is_taken(
    client: Client, supervisor: StubSupervisor, content_type: str
) -> None:
    supervisor.answers[Configure] = Configured(RUNNING)
    result = _configure(client, json.dumps(CONFIGURE).encode(), {"Content-Type": content_type})
    assert result.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"spec":{}} trailing',
        b'{"spec":"\xff\xfe"}',
        b'{"unknown":"\xff"}',
        b"[" * 5000,
        b"[" * 5000 + b"]" * 5000,
        b'{"unknown":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
    ids=[
        "empty",
        "cut",
        "words",
        "trailing",
        "utf8",
        "utf8-unknown",
        "open",
        "deep",
        "deep-unknown",
        "objects",
    ],
)
def test_a_body_that_is_not_json_is_400(client: Client, supervisor: StubSupervisor, body: bytes) -> None:
    result = _configure(client, body)
    assert result.status_code == 400
    assert result.json["error"].startswith("failed to parse the request body as json")
    assert supervisor.asked == []


WRONG_SHAPES: list[tuple[Any, str]] = [
    ({}, "`spec`"),
    ([], "`array`"),
    ({"spec": SPEC}, "`compute_ctl_config`"),
    ({**CONFIGURE, "compute_ctl_config": {}}, "`jwks`"),
    ({**CONFIGURE, "spec": {**SPEC, "suspend_timeout_seconds": "1"}}, "`$.spec.suspend_timeout_seconds`"),
    ({**CONFIGURE, "spec": {**SPEC, "audit_log_level": "Loud"}}, "'Loud'"),
    ({**CONFIGURE, "spec": {**SPEC, "cluster": {"roles": [{"name": "A" * 64}], "databases": []}}}, "A" * 64),
    (
        {**CONFIGURE, "spec": {**SPEC, "cluster": {"roles": [{"name": "a\0b"}], "databases": []}}},
        "NUL".lower(),
    ),
]


@pytest.mark.parametrize(("document", "named"), WRONG_SHAPES)
def test_json_of_the_wrong_shape_is_422_and_names_the_place(
    client: Client, supervisor: StubSupervisor, document: object, named: str
) -> None:
    result = client("POST", "/configure", document=document)
    assert result.status_code == 422
    assert result.json["error"].startswith("failed to deserialize the json body into the target type")
    assert named in result.json["error"]
    assert supervisor.asked == []


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_413(
    client: Client, supervisor: StubSupervisor
) -> None:
    supervisor.answers[Configure] = Configured(RUNNING)
    body = json.dumps(CONFIGURE).encode()
    assert _configure(client, body.ljust(LARGE_BODY)).status_code == 200
    result = _configure(client, body.ljust(LARGE_BODY + 1))
    assert result.status_code == 413
    assert result.json["error"].startswith("failed to buffer the request body: length limit exceeded")


def test_only_what_takes_a_spec_takes_more_than_two_mebibytes(client: Client) -> None:
    large = {route.path for route in EXTERNAL if route.body_limit != SMALL_BODY}
    assert large == {"/configure", "/plan", "/promote"}
    token = f"Bearer {client.token}"
    assert client.app.body_limit("/configure", token) == LARGE_BODY == 8 * 1024 * 1024
    assert client.app.body_limit("/terminate", token) == SMALL_BODY == 2 * 1024 * 1024
    assert client("POST", "/terminate", body=b" " * (SMALL_BODY + 1)).status_code == 413


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer x.y.z", f"Bearer {FOREIGN.sign(OWN)}"])
def test_nobody_without_a_token_has_a_large_body_read(
    client: Client, authorization: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    for route in EXTERNAL:
        assert client.app.body_limit(route.path, authorization) == 0
    assert caplog.messages == []


def test_nobody_has_a_large_body_read_by_a_route_that_takes_none(client: Client) -> None:
    token = f"Bearer {client.token}"
    assert client.app.body_limit("/nowhere", token) == 0
    for route in EXTERNAL:
        if route.scope is Scope.PUBLIC:
            assert client.app.body_limit(route.path, token) == FREE_BODY
            assert client(route.method, route.path, body=b" " * (FREE_BODY + 1)).status_code == 413


def test_a_body_that_announces_too_much_is_refused_unread() -> None:
    class Untouchable:
        def read(self, size: int, /) -> bytes:
            raise AssertionError(size)

    with pytest.raises(ApiError) as caught:
        read_body(Untouchable(), announced=1_000_001, limit=1_000_000)
    assert caught.value.status == 413


def test_a_body_that_announces_too_little_is_still_limited() -> None:
    class Endless:
        def read(self, size: int, /) -> bytes:
            return b" " * min(size, 65536)

    with pytest.raises(ApiError) as caught:
        read_body(Endless(), announced=10, limit=1_000_000)
    assert caught.value.status == 413


@pytest.mark.parametrize("target", ["/terminate?", "/terminate?x=1", "/terminate?mode=slow", "/terminate?mode=",
                                    "/terminate?mode=FAST", "/terminate?mode=fast&mode=fast", "/terminate?mode=%ff"])  # fmt: skip
def test_a_bad_query_is_400_in_the_form_of_every_error(
    client: Client, supervisor: StubSupervisor, target: str
) -> None:
    result = client("POST", target)
    assert result.status_code == 400
    assert result.json["error"].startswith("failed to deserialize query string: ")
    assert supervisor.asked == []


def test_unknown_fields_and_features_are_ignored_and_counted(
    client: Client, supervisor: StubSupervisor, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor.answers[Configure] = Configured(RUNNING)
    spec = {**SPEC, "timestamp": "now", "features": ["tls_experimental", "warp_drive"]}
    result = client("POST", "/configure", document={**CONFIGURE, "spec": spec, "extra": 1})
    assert result.status_code == 200
    assert metrics.read(UNKNOWN_FIELDS) == {(): 3.0}
    assert "$.spec.timestamp, $.spec.features[1], $.extra" in caplog.text


def test_parsing_comes_before_any_question_of_state(client: Client, supervisor: StubSupervisor) -> None:
    assert _configure(client, b"{").status_code == 400
    assert supervisor.asked == []


def test_messages_are_lower_cased_but_for_what_they_quote() -> None:
    assert lowered("Expected `Role`, got 'Alice' At `$.Spec`") == "expected `Role`, got 'Alice' at `$.Spec`"


def test_text_in_quotes_is_escaped_as_in_source_code() -> None:
    assert escaped('a "b"\\\n\r\t\0\x1bé') == 'a \\"b\\"\\\\\\n\\r\\t\\0\\u{1b}é'


# --- 2.4 404 and 405


def test_an_unknown_path_is_404_with_an_empty_body_and_without_a_token(client: Client) -> None:
    for path in ("/", "/nowhere", "/status/x", "/Status", "/debug", "/lfc"):
        for method in METHODS:
            result = client(method, path, token="")
            assert (result.status_code, result.content) == (404, b"")


def test_every_route_answers_404_under_a_trailing_slash(client: Client) -> None:
    for route in client.app.routes:
        for method in METHODS:
            assert client(method, f"{route.path}/", token="").status_code == 404


def test_every_other_method_of_a_route_is_405_with_allow_and_without_a_token(client: Client) -> None:
    for route in client.app.routes:
        methods = {one.method for one in client.app.routes if one.path == route.path}
        allowed = sorted(methods | ({"HEAD"} if "GET" in methods else set()))
        for method in set(METHODS) - set(allowed):
            result = client(method, route.path, token="")
            assert (result.status_code, result.content) == (405, b""), (method, route.path)
            assert result.headers["allow"] == ",".join(allowed)


@pytest.mark.parametrize("method", ["BREW", "WEBSOCKET", "PROPFIND", "CONNECT"])
@pytest.mark.parametrize(("path", "status"), [("/status", "405 Method Not Allowed"), ("/x", "404 Not Found")])
def test_methods_nobody_has_heard_of_are_405_or_404(
    client: Client, method: str, path: str, status: str
) -> None:
    environ = falcon.testing.create_environ(path)
    environ["REQUEST_METHOD"] = method
    seen: list[str] = []
    body = b"".join(client.app(environ, lambda line, _headers, _info=None: seen.append(line)))  # type: ignore[arg-type]
    assert (seen, body) == ([status], b"")


def test_head_gives_the_headers_of_get_without_a_body(client: Client) -> None:
    for path in ("/status", "/metrics", "/metrics.json", "/openapi.json"):
        get, head = client("GET", path), client("HEAD", path)
        assert head.content == b""
        assert (head.status_code, head.headers["content-type"], head.headers["content-length"]) == (
            get.status_code,
            get.headers["content-type"],
            get.headers["content-length"],
        )


def test_an_upgrade_request_is_refused(client: Client) -> None:
    result = client("GET", "/live", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
    assert result.status_code == 400


def test_what_a_server_could_not_read_is_answered_in_the_form_of_every_error(client: Client) -> None:
    environ = falcon.testing.create_environ("/", headers={"x-request-id": "abc"})
    environ[REFUSAL_KEY] = (431, "Request Header Fields Too Large: exceeds max_header of 32768")
    seen: dict[str, str] = {}
    body = b"".join(
        client.app(environ, lambda line, sent, _info=None: seen.update(dict(sent), status=line))  # type: ignore[arg-type]
    )
    assert seen["status"].startswith("431 ")
    assert seen["x-request-id"] == "abc"
    assert json.loads(body) == {"error": "request header fields too large: exceeds max_header of 32768"}


# --- The internal server


def test_the_internal_server_has_its_own_routes_and_asks_for_no_token(supervisor: StubSupervisor) -> None:
    internal = Client(create_internal_app(node(supervisor)), token="")
    assert {route.path for route in internal.app.routes} == {
        "/live",
        "/extensions",
        "/grants",
        "/refresh_configuration",
        "/openapi.json",
    }
    for path in ("/status", "/configure", "/metrics", "/dbs_and_roles", "/database_schema"):
        assert internal("POST", path).status_code == 404
    assert internal("POST", "/live").status_code == 405


def test_a_route_that_needs_a_token_fails_closed_on_a_server_without_keys(supervisor: StubSupervisor) -> None:
    context = Context(node(supervisor), Waiters(Metrics()), bytes)
    app = Api(context, EXTERNAL, None)
    assert Client(app)("GET", "/status").status_code == 500


def test_two_applications_live_side_by_side_in_one_process(supervisor: StubSupervisor) -> None:
    first, second = (Client(create_external_app(node(supervisor))) for _ in range(2))
    assert first("GET", "/metrics").text == second("GET", "/metrics").text

"""Sections 7.4 to 7.7, 10.2 and 10.3 of the HTTP API: what is asked about the catalog of the running Postgres."""

import json
from concurrent.futures import Future
from typing import Any

import falcon.testing
import pytest
from compute_node.actors.kit.metrics import Metrics
from compute_node.http.app import Api, create_external_app, create_internal_app
from compute_node.http.routes.schema import SQL
from compute_node.http.table import Scope
from compute_node.http.waiting import MAX_MINOR
from compute_node.messages.base import Request
from compute_node.messages.clerk import (
    CheckWritability,
    CollectInsights,
    DatabaseEntry,
    Done,
    DumpBegun,
    DumpSchema,
    Insights,
    InstallExtension,
    ListCatalog,
    Listed,
    Listing,
    NotDone,
    Overloaded,
    Privilege,
    RoleEntry,
    SetGrants,
    Statements,
    Writable,
)
from compute_node.messages.lifecycle import GetStatus, NodeStatus, Status
from compute_node.messages.metrics import WAITERS
from compute_node.messages.secret import Secret
from compute_node.messages.serving import BrokenBodyError
from typing_extensions import override

from doubles.node import EXTENSION, GRANTS, RUNNING, Client, StubSupervisor, node
from doubles.tokens import ADMIN, KEY

VERIFIER = "SCRAM-SHA-256$4096:salt$stored:server"
LISTED = Listed(
    Listing(
        roles=(RoleEntry("alice", Secret(VERIFIER)), RoleEntry("cloud_admin")),
        databases=(DatabaseEntry("neondb", "alice", restrict_conn=False, invalid=True),),
    )
)
ASKING: dict[str, tuple[str, type[Request[Any]], object]] = {
    "/check_writability": ("POST", CheckWritability, Writable()),
    "/dbs_and_roles": ("GET", ListCatalog, LISTED),
    "/insights": ("GET", CollectInsights, Insights(Statements())),
    "/extensions": ("POST", InstallExtension, Done()),
    "/grants": ("POST", SetGrants, Done()),
}
BODIES = {"/extensions": EXTENSION, "/grants": GRANTS}
GATED = ["/check_writability", "/insights", "/extensions", "/grants"]


@pytest.fixture
def internal(supervisor: StubSupervisor, metrics: Metrics) -> Client:
    """The internal application, which asks for no token."""
    return Client(create_internal_app(node(supervisor, metrics)), token="")


def ask(client: Client, internal: Client, path: str) -> falcon.testing.Result:
    server = internal if path in BODIES else client
    return server(ASKING[path][0], path, document=BODIES.get(path))


# --- What they have in common


@pytest.mark.parametrize("path", GATED)
@pytest.mark.parametrize("status", [status for status in Status if status is not Status.RUNNING])
def test_what_needs_a_running_node_is_412_in_every_other_status(
    client: Client, internal: Client, supervisor: StubSupervisor, path: str, status: Status
) -> None:
    supervisor.answers[GetStatus] = NodeStatus("t", None, None, status, None, None)
    result = ask(client, internal, path)
    assert (result.status_code, result.json) == (412, {"error": f"invalid compute status: {status.text}"})
    assert [type(request) for request, _ in supervisor.asked] == [GetStatus]


@pytest.mark.parametrize("status", list(Status))
def test_the_catalog_is_listed_in_any_status_in_which_postgres_answers(
    client: Client, supervisor: StubSupervisor, status: Status
) -> None:
    supervisor.answers[GetStatus] = NodeStatus("t", None, None, status, None, None)
    supervisor.answers[ListCatalog] = LISTED
    assert client("GET", "/dbs_and_roles").status_code == 200


@pytest.mark.parametrize("path", ASKING)
def test_what_could_not_be_done_is_500_with_the_reason(
    client: Client, internal: Client, supervisor: StubSupervisor, path: str
) -> None:
    supervisor.answers[ASKING[path][1]] = NotDone("Failed to connect to the database: refused")
    result = ask(client, internal, path)
    assert result.status_code == 500
    prefix = {
        "/extensions": "failed to install extension: ",
        "/grants": "failed to grant role privileges to the schema: ",
    }.get(path, "")
    assert result.json == {"error": f"{prefix}Failed to connect to the database: refused"}


@pytest.mark.parametrize("path", ASKING)
def test_what_was_not_begun_is_503_and_says_when_to_come_back(
    client: Client, internal: Client, supervisor: StubSupervisor, path: str
) -> None:
    supervisor.answers[ASKING[path][1]] = Overloaded("too much")
    result = ask(client, internal, path)
    assert (result.status_code, result.json) == (503, {"error": "too much"})
    assert result.headers["retry-after"] == "5"


def test_who_asks_about_the_catalog_leaves_places_for_configurations(
    client: Client, supervisor: StubSupervisor
) -> None:
    supervisor.answers[ListCatalog] = LISTED
    places = [client.app.waiters.place(minor=True) for _ in range(MAX_MINOR)]
    for place in places:
        place.__enter__()
    assert client("GET", "/dbs_and_roles").status_code == 503
    assert client("GET", "/database_schema?database=x").status_code == 503
    places.pop().__exit__(None, None, None)
    assert client("GET", "/dbs_and_roles").status_code == 200
    for place in places:
        place.__exit__(None, None, None)


# --- POST /check_writability


def test_a_write_that_worked_is_true(client: Client, supervisor: StubSupervisor) -> None:
    for answer in (Writable(), Writable(disk_full=True)):
        supervisor.answers[CheckWritability] = answer
        result = client("POST", "/check_writability")
        assert (result.status_code, result.text) == (200, "true")
        assert result.headers["content-type"] == "application/json"


# --- GET /dbs_and_roles


def test_the_catalog_has_the_counterparts_keys_in_their_order(
    client: Client, supervisor: StubSupervisor
) -> None:
    supervisor.answers[ListCatalog] = Listed(Listing((RoleEntry("alice"),), LISTED.listing.databases))
    assert client("GET", "/dbs_and_roles").json == {
        "roles": [{"name": "alice", "encrypted_password": None, "options": None}],
        "databases": [
            {"name": "neondb", "owner": "alice", "restrict_conn": False, "invalid": True, "options": None}
        ],
    }


def test_what_cannot_be_shown_is_told(client: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[ListCatalog] = Listed(Listing(errors=("the role 'caf\\xe9' cannot be shown",)))
    assert client("GET", "/dbs_and_roles").json == {
        "roles": [],
        "databases": [],
        "errors": ["the role 'caf\\xe9' cannot be shown"],
    }


@pytest.mark.parametrize("admin", [False, True])
def test_only_a_token_of_the_admin_scope_is_shown_passwords(
    client: Client,
    supervisor: StubSupervisor,
    admin: bool,  # noqa: FBT001 - both
) -> None:
    supervisor.answers[ListCatalog] = LISTED
    result = client("GET", "/dbs_and_roles", token=KEY.sign(ADMIN) if admin else None)
    assert [request for request, _ in supervisor.asked] == [ListCatalog(with_passwords=admin)]
    assert result.json["roles"][0]["encrypted_password"] == VERIFIER


def test_an_open_api_shows_no_passwords(supervisor: StubSupervisor) -> None:
    supervisor.answers[ListCatalog] = LISTED
    Client(create_external_app(node(supervisor, required=False)), token="")("GET", "/dbs_and_roles")
    assert [request for request, _ in supervisor.asked] == [ListCatalog(with_passwords=False)]


# --- GET /insights


@pytest.mark.parametrize(
    ("rows", "inner"),
    [
        ((), {"pg_stat_statements": []}),
        (
            ('{"query":"select $1, \'\\"\\\\\'","calls":3}', '{"calls":1}'),
            {"pg_stat_statements": [{"query": "select $1, '\"\\'", "calls": 3}, {"calls": 1}]},
        ),
    ],
)
def test_insights_are_a_json_string_that_contains_json(
    client: Client, supervisor: StubSupervisor, rows: tuple[str, ...], inner: object
) -> None:
    supervisor.answers[CollectInsights] = Insights(Statements(rows))
    result = client("GET", "/insights")
    assert result.status_code == 200
    assert isinstance(result.json, str)
    assert json.loads(result.json) == inner


# --- POST /extensions, POST /grants


def test_an_extension_is_201_with_the_version_that_was_asked_for(
    internal: Client, supervisor: StubSupervisor
) -> None:
    supervisor.answers[InstallExtension] = Done()
    result = internal("POST", "/extensions", document=EXTENSION)
    assert (result.status_code, result.text) == (201, '{"extension":"citext","version":"1.6"}')
    assert supervisor.asked[-1][0] == InstallExtension("neondb", "citext", "1.6")


def test_grants_are_201_with_what_was_asked_for(internal: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[SetGrants] = Done()
    result = internal("POST", "/grants", document=GRANTS)
    assert (result.status_code, result.json) == (201, GRANTS)
    assert supervisor.asked[-1][0] == SetGrants(
        "neondb", "public", (Privilege.CREATE, Privilege.USAGE), "alice"
    )


@pytest.mark.parametrize(("path", "body"), BODIES.items())
def test_every_key_is_required_and_no_name_may_be_cut(
    internal: Client, supervisor: StubSupervisor, path: str, body: dict[str, Any]
) -> None:
    for key, value in body.items():
        short = {name: kept for name, kept in body.items() if name != key}
        for bad in (short, {**body, key: 7}):
            assert internal("POST", path, document=bad).status_code == 422
        if isinstance(value, str):
            for name in ("", "a\0b", "x" * 64, "\u00e4" * 32):
                assert internal("POST", path, document={**body, key: name}).status_code == 422
    assert supervisor.asked == []


@pytest.mark.parametrize("privileges", [["create"], ["ALL"], ["SUPERUSER"], "CREATE", [None]])
def test_an_unknown_privilege_is_422(
    internal: Client, supervisor: StubSupervisor, privileges: object
) -> None:
    result = internal("POST", "/grants", document={**GRANTS, "privileges": privileges})
    assert result.status_code == 422
    assert supervisor.asked == []


def test_a_bad_body_is_refused_before_the_status_is_looked_at(
    internal: Client, supervisor: StubSupervisor
) -> None:
    supervisor.answers[GetStatus] = NodeStatus("t", None, None, Status.EMPTY, None, None)
    assert internal("POST", "/grants", document={}).status_code == 422
    assert (
        internal("POST", "/grants", body=b"{", headers={"Content-Type": "application/json"}).status_code
        == 400
    )
    assert internal("POST", "/extensions", document=EXTENSION).status_code == 412


# --- GET /database_schema


class Dumper(StubSupervisor):
    """A Clerk that puts these pieces into the stream, then ends it, or lets it fail."""

    def __init__(self, *pieces: bytes, failure: str | None = None) -> None:
        super().__init__()
        self.answers[GetStatus] = RUNNING
        self.pieces = pieces
        self.failure = failure
        self.requests: list[DumpSchema] = []

    @override
    def _request(self, request: Request[Any], timeout: float | None) -> Any:
        if isinstance(request, DumpSchema) and DumpSchema not in self.answers:
            self.requests.append(request)
            for piece in self.pieces:
                assert request.stream.write(piece, 0)
            if self.failure is None:
                request.stream.end()
            self.answers[DumpSchema] = DumpBegun()
        return super()._request(request, timeout)


def external(clerk: StubSupervisor, metrics: Metrics | None = None) -> Client:
    return Client(create_external_app(node(clerk, metrics)))


def environ(path: str, query: str, client: Client) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {client.token}"}
    return falcon.testing.create_environ(path, query_string=query, headers=headers)


def test_a_dump_is_sent_as_it_comes_and_its_place_is_free_afterwards() -> None:
    metrics = Metrics()
    clerk = Dumper(b"-- PostgreSQL", b" database dump\n")
    client = external(clerk, metrics)
    result = client("GET", "/database_schema?database=neondb")
    assert (result.status_code, result.content) == (200, b"-- PostgreSQL database dump\n")
    assert result.headers["content-type"] == SQL == "text/plain"
    assert "content-length" not in result.headers
    assert clerk.requests[0].database == "neondb"
    assert clerk.requests[0].stream.closed
    assert metrics.read(WAITERS) == {(): 0.0}


def test_a_dump_holds_its_place_as_long_as_it_is_read() -> None:
    metrics = Metrics()
    clerk = Dumper(b"1", b"2")
    client = external(clerk, metrics)
    body = iter(client.app(environ("/database_schema", "database=x", client), _start))  # type: ignore[arg-type]
    assert next(body) == b"1"
    assert metrics.read(WAITERS) == {(): 1.0}
    assert clerk.requests[0].stream.write(b"", 0), "it is open"
    body.close()  # type: ignore[attr-defined] # as servers do
    assert clerk.requests[0].stream.closed
    assert metrics.read(WAITERS) == {(): 0.0}


def _start(status: str, headers: list[tuple[str, str]], _info: object = None) -> None:
    assert status == "200 OK"


def test_a_dump_that_breaks_off_breaks_the_body_off() -> None:
    clerk = Dumper(b"1", failure="pg_dump failed")
    client = external(clerk)
    body = iter(client.app(environ("/database_schema", "database=x", client), _start))  # type: ignore[arg-type]
    assert next(body) == b"1"
    clerk.requests[0].stream.fail("pg_dump failed")
    with pytest.raises(BrokenBodyError, match=r"^pg_dump failed$"):
        next(body)
    body.close()  # type: ignore[attr-defined] # as servers do
    assert clerk.requests[0].stream.closed


def test_a_client_that_leaves_in_the_middle_is_noticed_although_nothing_comes() -> None:
    clerk = Dumper(b"1", failure="not yet")
    client = external(clerk)
    given = environ("/database_schema", "database=x", client)
    gone = Future[bool]()
    given["waitress.client_disconnected"] = gone.done
    body = iter(client.app(given, _start))  # type: ignore[arg-type]
    assert next(body) == b"1"
    gone.set_result(True)
    with pytest.raises(BrokenBodyError, match=r"^the client has left$"):
        next(body)


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (NotDone("database does not exist", missing=True), 404, "database does not exist"),
        (NotDone("failed to execute pg_dump: no"), 500, "failed to execute pg_dump: no"),
        (Overloaded("2 dumps are under way"), 503, "2 dumps are under way"),
    ],
)
def test_a_dump_that_does_not_begin_says_why(answer: object, status: int, error: str) -> None:
    metrics = Metrics()
    clerk = Dumper()
    clerk.answers[DumpSchema] = answer
    result = external(clerk, metrics)("GET", "/database_schema?database=x")
    assert (result.status_code, result.json) == (status, {"error": error})
    request = clerk.asked[0][0]
    assert isinstance(request, DumpSchema)
    assert request.stream.closed
    assert metrics.read(WAITERS) == {(): 0.0}


@pytest.mark.parametrize("query", ["", "?", "?db=x", "?database=a&database=b", "?database=%ff"])
def test_a_dump_needs_exactly_one_database(query: str) -> None:
    clerk = Dumper()
    result = external(clerk)("GET", f"/database_schema{query}")
    assert result.status_code == 400
    assert result.json["error"].startswith("failed to deserialize query string")
    assert clerk.asked == []


def test_the_head_of_a_dump_has_no_body_and_leaves_nothing_behind() -> None:
    metrics = Metrics()
    clerk = Dumper(b"1")
    result = external(clerk, metrics)("HEAD", "/database_schema?database=x")
    assert (result.status_code, result.content) == (200, b"")
    assert clerk.requests[0].stream.closed
    assert metrics.read(WAITERS) == {(): 0.0}


def test_a_name_of_any_kind_arrives_as_it_is() -> None:
    for name, sent in (
        ("a b", "a+b"),
        ("a+b&c=d%", "a%2Bb%26c%3Dd%25"),
        ("\u00fc\U0001f600\t", "%C3%BC%F0%9F%98%80%09"),
    ):
        clerk = Dumper(b"1")
        assert external(clerk)("GET", f"/database_schema?database={sent}").status_code == 200
        assert clerk.requests[0].database == name


def test_the_new_routes_ask_for_a_token_but_for_those_of_the_internal_server(
    client: Client, internal: Client
) -> None:
    def scopes(app: Api) -> set[Scope]:
        return {route.scope for route in app.routes if route.waits}

    assert scopes(client.app) == {Scope.TOKEN}
    assert scopes(internal.app) == {Scope.PUBLIC}
    for path in ("/check_writability", "/dbs_and_roles", "/insights", "/database_schema"):
        method = "POST" if path == "/check_writability" else "GET"
        assert client(method, f"{path}?database=x", token="bad").status_code == 401

"""Replicas that become primaries, whole nodes: of Neon's storage over its doubles, and of an ordinary primary."""

import json
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from compute_node.messages.failpoints import Failpoint
from compute_node.messages.metrics import WAITERS
from compute_node.messages.promotion import PostgresPromoted, PostgresPromotionFailed, PromotePostgres
from compute_node.messages.secret import Secret
from compute_node.messages.settings import SourceName
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.target import parse_connstr
from msgspec.structs import replace

from doubles import canaries
from doubles.archives import compressed, of_cluster
from doubles.endpoint_storage import TENANT, TIMELINE, EndpointStorage, endpoint_storage
from doubles.pageserver import Pageserver, pageserver
from doubles.safekeepers import Sync, SyncProgram
from fix_node import Answer, MakeNode, Node, setting, spec
from fix_postgres import Cluster, MakeCluster, Templates, wait_until
from fix_process import MakeProcess, fast_spec, text

NO_CANARY: Final = "token-that-postgres-is-told"
"""Postgres itself needs it for the storage, in its environment."""
SAFEKEEPERS: Final = ("sk1:5454", "sk2:5454", "sk3:5454")
STEP: Final = Failpoint.PROMOTION


@pytest.fixture
def primary(cluster: MakeCluster, binaries15: Binaries) -> Cluster:
    """The old primary of a branch: its own log stands in for that of the safekeepers."""
    made = cluster(binaries15, conf="wal_keep_size = 64MB")
    made.query("CREATE TABLE t AS SELECT 1 AS a")
    return made


@pytest.fixture
def storage(templates: Templates, binaries15: Binaries) -> Iterator[Pageserver]:
    """A pageserver with the branch as it was when the primary began."""
    archive = compressed(of_cluster(templates.get(binaries15)), 1)
    with pageserver(archive, tenant_id=TENANT, timeline_id=TIMELINE, password=NO_CANARY) as made:
        yield made


@pytest.fixture
def endpoints() -> Iterator[EndpointStorage]:
    with endpoint_storage(canaries.canary("endpoint")) as made:
        yield made


@pytest.fixture
def programs(binaries15: Binaries, postgres_folder: Path) -> SyncProgram:
    return SyncProgram(postgres_folder / "programs", binaries15)


class Branch:
    """A primary, and a node that is its replica from storage; `document` is the replica's spec."""

    def __init__(
        self,
        node: Node,
        primary: Cluster,
        storage: Pageserver,
        endpoints: EndpointStorage,
        sockets: Path,
    ) -> None:
        self.node, self.primary = node, primary
        settings = [
            setting("port", str(node.postgres_port), "integer"),
            setting("listen_addresses", "localhost"),
            setting("unix_socket_directories", str(sockets)),
            setting("max_connections", "100", "integer"),
            setting("primary_conninfo", f"host=127.0.0.1 port={primary.port} user=cloud_admin"),
            setting("synchronous_commit", "local"),  # nobody is there who would be the walproposer
        ]
        base = spec(tenant_id=TENANT, timeline_id=TIMELINE, pageserver_connstring=storage.url)
        base["cluster"]["settings"] += settings
        self.document: dict[str, Any] = base | {
            "mode": "Replica",
            "storage_auth_token": NO_CANARY,
            "endpoint_id": "ep-winter",
            "endpoint_storage_addr": endpoints.address,
        }

    def new(self, **changes: Any) -> dict[str, Any]:
        """Return the spec of the new primary."""
        cluster = self.document["cluster"]
        fields = {"mode": "Primary", "safekeeper_connstrings": SAFEKEEPERS, "safekeepers_generation": 2}
        return self.document | fields | {"cluster": cluster | {"roles": [{"name": "alice"}]}} | changes

    def begin(self) -> None:
        """Start the replica, which follows, and have its cache prewarmed: nothing is stored for it."""
        self.node.run(self.document)
        self.node.look_for_secrets()
        there = "SELECT to_regclass('t') IS NOT NULL"
        wait_until(lambda: self.node.query(there) == [(True,)], "it follows", 30)
        assert self.node.query("SELECT a, pg_is_in_recovery() FROM t") == [(1, True)]

    def prewarm(self) -> None:
        assert self.node.call("POST", "/lfc/prewarm").status == 202
        asked = self.node.call
        wait_until(
            lambda: asked("GET", "/lfc/prewarm").body["status"] == "skipped", "the prewarm is over", 30
        )

    def leave_behind(self) -> str:
        """Let the primary write what the replica does not replay yet, and end; return where it ended."""
        self.node.query("SELECT pg_wal_replay_pause()")
        wait_until(
            lambda: self.node.query("SELECT pg_get_wal_replay_pause_state()") == [("paused",)],
            "the replica stands still",
        )
        self.primary.query("INSERT INTO t VALUES (2)")
        ((end,),) = self.primary.query("SELECT pg_current_wal_flush_lsn()::text")
        self.primary.stop()
        return str(end)


@pytest.fixture
def branch(
    make_node: MakeNode,
    primary: Cluster,
    storage: Pageserver,
    endpoints: EndpointStorage,
    programs: SyncProgram,
    binaries15: Binaries,
    postgres_folder: Path,
) -> Branch:
    node = make_node(replace(binaries15, postgres=str(programs.postgres)), "--source", "pageserver", "--dev")
    return Branch(node, primary, storage, endpoints, postgres_folder)


def by_form(node: Node, **fields: str) -> Answer:
    """Ask as older control planes do."""
    request = urllib.request.Request(
        f"{node.url}/promote",
        data=urllib.parse.urlencode(fields).encode(),
        headers={"Authorization": f"Bearer {node.token()}"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Answer(response.status, json.loads(response.read()), dict(response.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, json.loads(error.read()), dict(error.headers))


def ask_and_leave(node: Node, body: object) -> Callable[[], None]:
    """Ask for a promotion; return what closes the connection without waiting for an answer."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", node.external_port), timeout=30)
    head = (
        f"POST /promote HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {node.token()}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    return connection.close


class Asking:
    """A request on a thread."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(ask()), daemon=True)
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join(60)
        assert self._answers, "there is no answer"
        return self._answers[0]


def await_waiters(node: Node, count: int) -> None:
    wait_until(lambda: node.metric(WAITERS.name) == count, f"{count} clients wait", 30)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_replica_of_storage_catches_up_is_promoted_though_its_client_leaves_and_syncs_at_its_end(
    branch: Branch, programs: SyncProgram
) -> None:
    node = branch.node
    branch.begin()
    end = branch.leave_behind()
    request = {"spec": branch.new(), "wal_flush_lsn": end}
    cold = node.call("POST", "/promote", request)
    assert (cold.status, cold.body) == (500, {"status": "failed", "error": "compute NotPrewarmed"})
    branch.prewarm()
    early = node.call("POST", "/promote", request | {"spec": branch.new(mode="Replica")})
    assert early.status == 400
    assert node.call("POST", "/promote", {"spec": branch.new()}).status == 400, "the position is needed here"

    node.set_failpoint(STEP, "pause")
    leave = ask_and_leave(node, request)
    node.heard("got promotion request")
    node.query("SELECT pg_wal_replay_resume()")
    node.await_failpoint(STEP)
    await_waiters(node, 1)
    leave()
    await_waiters(node, 0)
    joined = Asking(lambda: node.call("POST", "/promote", request))
    await_waiters(node, 1)
    other = node.call("POST", "/promote", request | {"wal_flush_lsn": "0/1"})
    assert (other.status, other.body["error"]) == (412, "another promotion is under way")
    refused = node.configure(branch.new())
    assert (refused.status, refused.body["error"]) == (412, "the node is being promoted")
    assert node.query("SELECT pg_is_in_recovery()") == [(True,)]
    node.set_failpoint(STEP, "off")

    answer = joined.answer()
    assert (answer.status, answer.body["status"]) == (200, "completed"), answer.body
    times = {
        name: answer.body[name] for name in ("lsn_wait_time_ms", "pg_promote_time_ms", "reconfigure_time_ms")
    }
    assert all(isinstance(value, int) and value > 0 for value in times.values()), times
    assert node.call("POST", "/promote", request).body == answer.body, "it is known afterwards, too"
    node.query("INSERT INTO t VALUES (3)")
    assert node.query("SELECT count(*), pg_is_in_recovery() FROM t") == [(3, False)]
    assert node.query("SHOW synchronous_standby_names") == [("walproposer",)]
    assert node.query("SHOW neon.safekeepers") == [(f"g#2:{','.join(SAFEKEEPERS)}",)]
    assert node.query("SHOW neon.compute_mode") == [("primary",)]
    assert node.query("SELECT count(*) FROM pg_roles WHERE rolname = 'alice'") == [(1,)]
    assert "safekeepers" not in (node.pgdata / "postgresql.auto.conf").read_text()

    programs.set(Sync(lsn="0/28F10D8"))
    node.look_for_secrets()
    ended = node.call("POST", "/terminate?mode=immediate")
    assert (ended.status, ended.body, node.wait()) == (200, {"lsn": "0/28F10D8"}, 0)
    assert [call["pgdata"] for call in programs.calls] == [str(node.pgdata)]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_by_form_only_the_safekeepers_and_the_mode_change_and_what_failed_is_asked_for_again(
    branch: Branch,
) -> None:
    node = branch.node
    branch.begin()
    ((end,),) = branch.primary.query("SELECT pg_current_wal_flush_lsn()::text")
    branch.primary.stop()
    fields = {"safekeepers": ",".join(SAFEKEEPERS), "wal_flush_lsn": end}
    cold = by_form(node, **fields)
    assert (cold.status, cold.body) == (500, {"error": "prewarm not requested or pending"})
    branch.prewarm()
    node.set_failpoint(STEP, "1*return(no, thanks)")
    failed = by_form(node, **fields)
    assert (failed.status, failed.body) == (500, {"error": "no, thanks"})
    assert node.query("SELECT pg_is_in_recovery()") == [(True,)]
    done = by_form(node, **fields)
    assert (done.status, done.body) == (200, {"status": "completed"})
    assert by_form(node, **fields).body == done.body
    node.query("INSERT INTO t VALUES (2)")
    assert node.query("SHOW synchronous_standby_names") == [("walproposer",)]
    assert node.query("SHOW neon.safekeepers") == [(",".join(SAFEKEEPERS),)]
    assert node.query("SELECT count(*) FROM pg_roles WHERE rolname = 'alice'") == [(0,)]

    assert node.configure(branch.new()).status == 200
    assert node.query("SELECT count(*) FROM pg_roles WHERE rolname = 'alice'") == [(1,)]
    assert node.query("SHOW synchronous_standby_names") == [("walproposer",)]
    assert node.query("SHOW neon.safekeepers") == [(f"g#2:{','.join(SAFEKEEPERS)}",)]
    assert node.stop() == 0, node.log


def test_a_replica_of_storage_that_was_promoted_by_hand_gets_the_safekeepers_that_a_form_names(
    make_process: MakeProcess, storage: Pageserver, binaries15: Binaries, postgres_folder: Path
) -> None:
    process = make_process(binaries15, source=SourceName.PAGESERVER)
    listening = {
        "port": str(parse_connstr(process.settings.connstr.reveal()).port),
        "listen_addresses": "localhost",
        "unix_socket_directories": str(postgres_folder),
        "max_connections": "100",
        "synchronous_commit": "local",
    }
    replica = fast_spec(
        *(text(name, value) for name, value in listening.items()),
        mode="Replica",
        tenant_id=TENANT,
        timeline_id=TIMELINE,
        pageserver_connstring=Secret(storage.url),
        storage_auth_token=Secret(NO_CANARY),
        safekeeper_connstrings=("sk0:5454",),
    )
    process.start(replica)
    assert process.query("SELECT pg_promote()") == [(True,)]
    order = PromotePostgres(9, replace(replica, safekeeper_connstrings=SAFEKEEPERS), "0/1")
    promoted = process.tell(order, PostgresPromoted, PostgresPromotionFailed)
    assert isinstance(promoted, PostgresPromoted), promoted
    assert process.query("SHOW neon.safekeepers") == [(",".join(SAFEKEEPERS),)]
    assert process.query("SHOW synchronous_standby_names") == [("walproposer",)]
    assert process.query("SHOW neon.compute_mode") == [("primary",)]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_node_that_is_killed_while_it_is_promoted_comes_back_as_what_it_was_or_has_become(
    make_node: MakeNode, primary: Cluster, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--source", "upstream", "--dev")
    fields = {"upstream_conninfo": f"host=127.0.0.1 port={primary.port} user=cloud_admin"}
    follower = spec(mode="Replica", **fields)
    new = spec(cluster={"roles": [{"name": "alice"}]}, **fields)
    node.run(follower)
    node.set_failpoint(STEP, "pause")
    leave = ask_and_leave(node, {"spec": new})
    node.await_failpoint(STEP)
    kill(node)
    leave()

    node.run(follower)
    primary.query("INSERT INTO t VALUES (2)")
    wait_until(lambda: node.query("SELECT count(*) FROM t") == [(2,)], "it follows again", 30)
    primary.stop()
    node.set_failpoint(Failpoint.INSTALL_WRITTEN, "pause")
    leave = ask_and_leave(node, {"spec": new})
    node.await_failpoint(Failpoint.INSTALL_WRITTEN)
    node.query("INSERT INTO t VALUES (3)")
    kill(node)
    leave()

    node.run(new)
    assert node.query("SELECT count(*), pg_is_in_recovery() FROM t") == [(3, False)]
    assert node.query("SELECT count(*) FROM pg_roles WHERE rolname = 'alice'") == [(1,)]
    assert node.stop() == 0, node.log


def kill(node: Node) -> None:
    assert node.process is not None
    node.process.kill()
    node.wait()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_node_that_is_told_to_end_while_it_is_promoted_answers_and_ends_in_order(
    make_node: MakeNode, primary: Cluster, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--source", "upstream", "--dev")
    fields = {"upstream_conninfo": f"host=127.0.0.1 port={primary.port} user=cloud_admin"}
    node.run(spec(mode="Replica", **fields))
    node.set_failpoint(STEP, "pause")
    asking = Asking(lambda: node.call("POST", "/promote", {"spec": spec(**fields)}))
    node.await_failpoint(STEP)
    ended = node.call("POST", "/terminate?mode=immediate")
    assert (ended.status, ended.body, node.wait()) == (200, {"lsn": None}, 0)
    answer = asking.answer()
    assert (answer.status, answer.body) == (500, {"status": "failed", "error": "the node is terminating"})
    assert (node.pgdata / "standby.signal").exists(), "it is still a replica"

"""What is asked about the catalog over HTTP of a whole node, and dumps that end before their end."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, Node, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WAIT_S = 40.0
LARGE = (
    "DO $do$ BEGIN FOR i IN 1..16 LOOP EXECUTE format('CREATE FUNCTION large_%s() RETURNS text LANGUAGE plpgsql AS %L',"
    " i, 'BEGIN RETURN NULL; END /*' || repeat('x', 4 << 20) || '*/'); END LOOP; END $do$"
)
SIZE = 64 << 20
"""Bytes of a dump with all that."""


def dumps(node: Node) -> list[psutil.Process]:
    assert node.process is not None
    with contextlib.suppress(psutil.Error):
        return [c for c in psutil.Process(node.process.pid).children(recursive=True) if c.name() == "pg_dump"]
    return []


def peak_memory(node: Node) -> int:
    """The most that the node's own process has had, in bytes."""
    assert node.process is not None
    lines = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) << 10


@contextlib.contextmanager
def dump_begun(node: Node) -> Iterator[http.client.HTTPResponse]:
    """Ask for a dump and read its beginning; the rest is left."""
    connection = http.client.HTTPConnection("127.0.0.1", node.external_port, timeout=WAIT_S)
    try:
        headers = {"Authorization": f"Bearer {node.token()}"}
        connection.request("GET", "/database_schema?database=postgres", headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.read(100).startswith(b"--\n-- PostgreSQL database dump")
        yield response
    finally:
        connection.close()


def test_the_catalog_of_a_running_node_is_asked_changed_and_dumped(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    cluster = {"roles": [{"name": "alice"}], "databases": [{"name": "a %&=b", "owner": "alice"}]}
    node = make_node(binaries15).run(spec(cluster=cluster))

    def call(method: str, path: str, body: object = None, *, internal: bool = False) -> tuple[int, Any]:
        answer = node.call(method, path, body, internal=internal, token=None if internal else "")
        return answer.status, answer.body

    assert call("POST", "/check_writability") == (200, True)
    status, catalog = call("GET", "/dbs_and_roles")
    assert status == 200
    assert {"name": "alice", "encrypted_password": None, "options": None} in catalog["roles"]
    assert "a %&=b" in {entry["name"] for entry in catalog["databases"]}
    status, insights = call("GET", "/insights")
    assert (status, list(json.loads(insights))) == (200, ["pg_stat_statements"])
    grants = {"database": "a %&=b", "schema": "public", "privileges": ["CREATE", "USAGE"], "role": "alice"}
    for _ in range(2):
        assert call("POST", "/grants", grants, internal=True) == (201, grants)
    wish = {"extension": "citext", "database": "a %&=b", "version": "1.6"}
    installed = {"extension": "citext", "version": "1.6"}
    assert call("POST", "/extensions", wish, internal=True) == (201, installed)
    status, schema = call("GET", "/database_schema?database=a+%25%26%3Db")
    assert status == 200
    assert "CREATE EXTENSION IF NOT EXISTS citext" in schema
    missing = (404, {"error": "database does not exist"})
    assert call("GET", "/database_schema?database=nowhere") == missing
    status, refused = call("POST", "/extensions", {**wish, "version": "7"}, internal=True)
    assert status == 500
    assert refused["error"].startswith(
        "failed to install extension: Failed to execute query: ALTER EXTENSION"
    )
    lines = node.call("GET", "/metrics").body.splitlines()
    assert 'compute_node_catalog_requests_total{request="DumpSchema",result="done"} 1.0' in lines
    assert 'compute_node_catalog_requests_total{request="InstallExtension",result="failed"} 1.0' in lines
    assert call("POST", "/extensions", wish) == (404, None)


def test_a_dump_takes_no_memory_and_whoever_leaves_or_is_left_is_told(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run(spec())
    node.query(LARGE)
    before = peak_memory(node)
    assert len(node.call("GET", "/database_schema?database=postgres").body) > SIZE
    with dump_begun(node):
        (process,) = dumps(node)
        assert process.is_running()
    wait_until(lambda: not dumps(node), "the dump of a client that left is gone", WAIT_S)
    with dump_begun(node) as response:
        (process,) = dumps(node)
        process.kill()
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    told = "is not whole: failed to execute pg_dump: it ended with -9"
    wait_until(lambda: told in node.log, "the log says so", WAIT_S)
    assert peak_memory(node) - before < SIZE // 2
    with dump_begun(node) as response:
        assert dumps(node)
        assert node.call("POST", "/terminate?mode=immediate", timeout_s=WAIT_S).status == 200
        assert node.wait(WAIT_S) == 0
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            response.read()
    assert not dumps(node)

"""The double of the wire protocol: real clients talk to it, and every switch of its faults is seen by them."""

import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Final

import psycopg
import pytest
from psycopg.errors import AdminShutdown, InternalError_

from doubles.pageserver import pageserver
from doubles.safekeepers import safekeepers
from doubles.wire import Client, CopyOut, Done, Refused, Reply, Rows, WireFaults, WireServer
from fix_postgres import wait_until

DATA: Final = bytes(range(256)) * 40
CHUNK: Final = 1000


def answer(_: Client, query: str) -> Reply:
    """Answer as its neighbours do."""
    replies: dict[str, Reply] = {
        "TIMELINE_STATUS": Rows(("flush_lsn", "commit_lsn"), (("0/16B5A50", None),), "TIMELINE_STATUS"),
        "basebackup": CopyOut(DATA[at : at + CHUNK] for at in range(0, len(DATA), CHUNK)),
        "set something": Done("SET"),
    }
    return replies.get(query.rstrip(";"), Refused(f"not known: {query}"))


@pytest.fixture
def server() -> Iterator[WireServer]:
    with WireServer(answer) as made:
        yield made
        wait_until(lambda: made.connected == 0, "every client has left")


def connect(server: WireServer, **keywords: str) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(server.url, autocommit=True, connect_timeout=20, **keywords)  # type: ignore[arg-type] # libpq's


def copy(server: WireServer) -> bytes:
    with connect(server) as connection, connection.cursor() as cursor, cursor.copy("basebackup") as stream:
        return b"".join(bytes(part) for part in stream)


def test_psycopg_asks_for_rows_commands_and_errors_on_one_connection(server: WireServer) -> None:
    with connect(server, options="-c timeline_id=1 tenant_id=2", application_name="me") as connection:
        rows = connection.execute("TIMELINE_STATUS")
        assert [column.name for column in rows.description or ()] == ["flush_lsn", "commit_lsn"]
        assert rows.fetchall() == [("0/16B5A50", None)]
        with pytest.raises(InternalError_, match="not known: SELECT 2"):
            connection.execute("SELECT 2")
        assert connection.execute("set something").statusmessage == "SET"
    assert server.queries == ["TIMELINE_STATUS", "SELECT 2", "set something"]
    (client,) = server.clients
    assert (client.parameters["user"], client.parameters["application_name"]) == ("no_user", "me")
    assert client.options == "-c timeline_id=1 tenant_id=2"


def test_psycopg_reads_a_stream_to_its_end(server: WireServer) -> None:
    assert copy(server) == DATA


def test_psql_reads_rows_and_a_stream(server: WireServer) -> None:
    def psql(query: str) -> bytes:
        command = ["psql", "-XAtd", server.url, "-c", query]
        return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout

    assert psql("TIMELINE_STATUS") == b"0/16B5A50|\n"
    assert psql("basebackup") == DATA


IDS: Final = {"tenant_id": "1" * 32, "timeline_id": "2" * 32}


def test_psycopg_and_psql_talk_to_the_pageserver() -> None:
    place = " ".join(IDS.values())
    with pageserver(DATA, password="token", **IDS) as double:
        double.horizon = "0/20"
        url = double.url.replace("no_user", "no_user:token")
        for number, lsn in enumerate(("0/20", "0/10")):
            lease, backup = f"lease lsn {place} {lsn} ", f"basebackup {place} {lsn} --gzip"
            held = number == 0
            with psycopg.connect(url, autocommit=True, connect_timeout=20) as connection:
                answer = connection.execute(lease.encode())
                assert [column.name for column in answer.description or ()] == ["valid_until"]
                ((until,),) = answer.fetchall()
                assert (until is not None) is held
                psql = ["psql", "-XAtd", url, "-c"]
                said = subprocess.run([*psql, lease], check=True, capture_output=True, timeout=30).stdout
                assert said.strip().isdigit() is held
                ran = subprocess.run([*psql, backup], check=False, capture_output=True, timeout=30)
                assert (ran.stdout, b"invalid basebackup lsn" in ran.stderr) == (
                    DATA if held else b"",
                    not held,
                )
                with pytest.raises(InternalError_, match="was not found"):
                    connection.execute(f"lease lsn {IDS['timeline_id']} {IDS['tenant_id']} 0/20".encode())
        assert double.server.queries[0] == f"lease lsn {place} 0/20 "


def test_psycopg_and_psql_talk_to_the_safekeepers() -> None:
    with safekeepers(2, password="token", **IDS) as (knowing, unknowing):
        unknowing.knows = False
        options = " ".join(f"{name}={value}" for name, value in reversed(IDS.items()))
        for double, rows in ((knowing, [("0/16ABCDE", "0/16ABCDE")]), (unknowing, [])):
            url = f"postgresql://no_user:token@{double.address}"
            with psycopg.connect(
                url, autocommit=True, connect_timeout=20, options=f"-c {options}"
            ) as connection:
                answer = connection.execute("TIMELINE_STATUS")
                assert [column.name for column in answer.description or ()] == ["flush_lsn", "commit_lsn"]
                assert answer.fetchall() == rows
            env = os.environ | {"PGOPTIONS": f"-c {options}"}
            command = ["psql", "-XAtd", url, "-c", "TIMELINE_STATUS"]
            said = subprocess.run(command, check=True, capture_output=True, timeout=30, env=env).stdout
            assert said.decode().splitlines() == ["|".join(row) for row in rows]


def test_a_password_is_asked_for_and_compared() -> None:
    with WireServer(answer, password="right") as server:
        with connect(server, password="right") as connection:
            assert connection.execute("TIMELINE_STATUS").fetchall() == [("0/16B5A50", None)]
        with pytest.raises(psycopg.OperationalError, match="JWT authentication error"):
            connect(server, password="wrong")
        with pytest.raises(psycopg.OperationalError, match="no password"):
            connect(server)
        assert [client.password for client in server.clients] == ["right"]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (WireFaults(hangs_up=True), psycopg.OperationalError),
        (WireFaults(refuses=Refused("no such tenant")), InternalError_),
        (WireFaults(cut_at=0), psycopg.OperationalError),
        (WireFaults(cut_at=1500), psycopg.OperationalError),
        (WireFaults(error_at=1500), AdminShutdown),
        (WireFaults(error_after=Refused("at the very end")), InternalError_),
    ],
    ids=["hangs up", "refuses", "cut at once", "cut", "an error inside", "an error after the end"],
)
def test_a_client_sees_the_fault_and_the_next_one_does_not(
    server: WireServer, faults: WireFaults, expected: type[Exception]
) -> None:
    faults.connections = 1
    server.faults = faults
    with pytest.raises(expected):
        copy(server)
    assert copy(server) == DATA


def test_a_stream_may_end_early_or_damaged_although_the_server_says_that_all_is_well(
    server: WireServer,
) -> None:
    server.faults = WireFaults(done_at=1500, flips={0: 0xFF, 1499: 1}, pause_s=0.01)
    found = copy(server)
    assert len(found) == 1500
    assert [at for at in range(1500) if found[at] != DATA[at]] == [0, 1499]


@pytest.mark.parametrize("faults", [WireFaults(deaf=True), WireFaults(mute=True), WireFaults(stall_at=10)])
def test_a_client_that_waits_in_vain_is_let_go_when_the_server_closes(faults: WireFaults) -> None:
    server = WireServer(answer, faults=faults)
    failures: list[Exception] = []

    def client() -> None:
        try:
            copy(server)
        except psycopg.OperationalError as error:
            failures.append(error)

    waiting = threading.Thread(target=client)
    waiting.start()
    assert server.stalled.wait(20)
    server.close()
    waiting.join(20)
    assert failures
    assert server.connected == 0

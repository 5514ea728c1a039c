"""The quick check of safekeepers, over a real wire: who is asked, how, and who is waited for."""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.postgres_process.port import PostgresError
from compute_node.actors.postgres_process.server import Server
from compute_node.messages.secret import Secret
from compute_node.messages.settings import SourceName
from compute_node.messages.spec import Cluster, GenericOption
from compute_node.postgres.binaries import Binaries

from doubles.safekeepers import Safekeeper, safekeepers, stored_spec
from doubles.specs import settings
from doubles.wire import Refused, Rows
from fix_postgres import wait_until

TENANT, TIMELINE, TOKEN = "1" * 32, "2" * 32, "canary.token"
PATIENT_S = 30.0

Trio = tuple[Safekeeper, ...]
Change = Callable[[Trio], None]


class Nobody:
    """A last resort that is never needed."""

    def started(self, pid: int) -> None: ...

    def ended(self) -> None: ...

    def tidied(self) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """The port of a node of Neon's storage, with patience, and without programs."""
    return make_server(tmp_path)


def make_server(folder: Path, limit_s: float = PATIENT_S) -> Server:
    chosen = settings(
        pgdata=str(folder / "pgdata"), source=SourceName.PAGESERVER, safekeeper_check_timeout_s=limit_s
    )
    return Server(chosen, Binaries("/nowhere/postgres", 15, "15.0"), None, Nobody())


@pytest.fixture
def trio() -> Iterator[Trio]:
    """Three safekeepers at the same place."""
    with safekeepers(3, tenant_id=TENANT, timeline_id=TIMELINE) as trio:
        yield trio


def check(server: Server, trio: Trio, **changes: Any) -> int | None:
    return server.check_safekeepers(
        stored_spec(tuple(one.address for one in trio), **changes), Cancellation()
    )


def test_psycopg_can_talk_to_the_double(trio: Trio) -> None:
    options = f"-c timeline_id={TIMELINE} tenant_id={TENANT}"
    with psycopg.connect(f"{trio[0].server.url}?sslmode=disable", options=options, autocommit=True) as one:
        assert one.execute("TIMELINE_STATUS").fetchall() == [("0/16ABCDE", "0/16ABCDE")]


def test_safekeepers_that_agree_say_where_the_log_ends(server: Server, trio: Trio) -> None:
    assert check(server, trio) == 0x16ABCDE
    told = trio[0].server.clients[0]
    assert told.options == f"-c timeline_id={TIMELINE} tenant_id={TENANT}"
    assert (told.parameters["user"], "application_name" in told.parameters) == ("no_user", False)


def test_the_token_is_the_password(server: Server) -> None:
    with safekeepers(3, tenant_id=TENANT, timeline_id=TIMELINE, password=TOKEN) as trio:
        assert check(server, trio, storage_auth_token=Secret(TOKEN)) == 0x16ABCDE
        assert check(server, trio, storage_auth_token=Secret("another")) is None
        assert check(server, trio) is None


def one_is_deaf(trio: Trio) -> None:
    trio[0].server.faults.deaf = True


def one_is_mute(trio: Trio) -> None:
    trio[1].server.faults.mute = True


def one_hangs_up(trio: Trio) -> None:
    trio[2].server.faults.hangs_up = True


def one_refuses(trio: Trio) -> None:
    trio[2].server.faults.refuses = Refused("timeline was cancelled")


def one_says_nonsense(trio: Trio) -> None:
    trio[0].answers = Rows(("flush_lsn", "commit_lsn"), ((None, "x"),))


def one_is_elsewhere(trio: Trio) -> None:
    trio[0].server.close()


@pytest.mark.parametrize(
    "change", [one_is_deaf, one_is_mute, one_hangs_up, one_refuses, one_says_nonsense, one_is_elsewhere]
)
def test_two_of_three_are_enough_and_nobody_waits_for_the_third(
    server: Server, trio: Trio, change: Change
) -> None:
    change(trio)
    began_s = monotonic()
    assert check(server, trio) == 0x16ABCDE
    assert monotonic() - began_s < PATIENT_S / 2


def two_are_deaf(trio: Trio) -> None:
    trio[0].server.faults.deaf = trio[1].server.faults.mute = True


def all_are_behind(trio: Trio) -> None:
    for one in trio:
        one.commit_lsn = "0/16ABCDD"


def nobody_knows_it(trio: Trio) -> None:
    for one in trio:
        one.knows = False


def all_differ(trio: Trio) -> None:
    for number, one in enumerate(trio):
        one.flush_lsn = one.commit_lsn = f"0/{number + 1}"


@pytest.mark.parametrize("change", [two_are_deaf, all_are_behind, nobody_knows_it, all_differ])
def test_safekeepers_that_do_not_agree_are_to_be_synced_and_the_log_says_why(
    tmp_path: Path, trio: Trio, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    change(trio)
    server = make_server(tmp_path, limit_s=0.3)
    assert check(server, trio) is None
    assert "the safekeepers are to be synced: " in caplog.text


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ((), "safekeeper_connstrings is empty"),
        (("sk1:x",), "safekeeper_connstrings: entry 1 is not of the form host:port"),
        (("sk1:1", "sk1:1"), "duplicate entry in safekeeper_connstrings: sk1:1!"),
    ],
)
def test_a_spec_without_usable_safekeepers_is_told_so_in_the_words_of_preflight(
    server: Server, names: tuple[str, ...], error: str
) -> None:
    empty = GenericOption("neon.safekeepers", "string", "")
    spec = stored_spec(names, cluster=Cluster(roles=(), databases=(), settings=(empty,)))
    with pytest.raises(PostgresError, match=re.escape(error)):
        server.check_safekeepers(spec, Cancellation())


def test_a_check_under_way_ends_within_a_second_of_a_cancellation(server: Server, trio: Trio) -> None:
    for one in trio:
        one.server.faults.mute = True
    cancellation, ended = Cancellation(), []

    def ask() -> None:
        with pytest.raises(CancelledError):
            server.check_safekeepers(stored_spec(tuple(one.address for one in trio)), cancellation)
        ended.append(monotonic())

    thread = threading.Thread(target=ask)
    thread.start()
    assert all(one.server.stalled.wait(20) for one in trio)
    asked_s = monotonic()
    cancellation.request()
    thread.join(20)
    assert ended
    assert ended[0] - asked_s < 1.0
    wait_until(lambda: all(one.server.connected == 0 for one in trio), "no connection is left", 20)

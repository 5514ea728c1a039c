"""`postgres --sync-safekeepers` as a real program."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.postgres_process.port import PostgresError
from compute_node.actors.postgres_process.run_folders import sync_folder
from compute_node.actors.postgres_process.server import Server
from compute_node.messages.secret import Secret
from compute_node.messages.settings import SourceName
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries
from msgspec.structs import replace

from doubles.safekeepers import Sync, SyncProgram, stored_spec
from doubles.specs import settings
from fix_postgres import wait_until
from fix_process import a_false_postgres, in_thread

TOKEN = "canary.token"
PATIENT_S = 30.0


class Nobody:
    """A last resort that is never needed."""

    def started(self, pid: int) -> None: ...

    def ended(self) -> None: ...

    def tidied(self) -> None: ...


@pytest.fixture
def program(postgres_folder: Path, binaries15: Binaries) -> SyncProgram:
    """A real Postgres 15 whose `--sync-safekeepers` does what a test says."""
    return SyncProgram(postgres_folder / "programs", binaries15)


@pytest.fixture
def syncing(
    postgres_folder: Path, account: Account | None, binaries15: Binaries, program: SyncProgram
) -> Iterator[Server]:
    """The port over that program; no folder of a sync is left afterwards."""
    chosen = settings(pgdata=str(postgres_folder / "pgdata"), source=SourceName.PAGESERVER)
    server = Server(chosen, replace(binaries15, postgres=str(program.postgres)), account, Nobody())
    yield server
    assert not os.path.lexists(sync_folder(server.pgdata, account))
    assert not any(Path(f"/proc/{call['pid']}").exists() for call in program.calls)


def sync(server: Server, limit_s: float = PATIENT_S, cancellation: Cancellation | None = None) -> int:
    wanted = stored_spec(("sk1:5454",), storage_auth_token=Secret(TOKEN))
    return server.sync_safekeepers(wanted, limit_s, cancellation or Cancellation())


def test_the_program_gets_a_folder_and_the_token_and_its_words_go_to_the_log(
    syncing: Server, program: SyncProgram, account: Account | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    program.set(Sync(lsn="1/2", says=("connecting", "elected in term 7")))
    assert sync(syncing) == (1 << 32) + 2
    (call,) = program.calls
    assert (call["pgdata"], call["token"]) == (sync_folder(syncing.pgdata, account), TOKEN)
    said = [text for text in caplog.messages if text.startswith("PG:")]
    assert [text.rpartition("LOG:  ")[2] for text in said] == ["connecting", "elected in term 7"]


FAILURES = {
    r"non-zero status: exit code 1\. stdout: 0/16ABCDE": Sync(code=1, says=("FATAL: term 9 was seen",)),
    "a newer node took over": Sync(code=1, says=("a newer node took over",)),
    "printed no LSN: ''": Sync(lsn=""),
    "printed no LSN: 'sorry'": Sync(lsn="sorry"),
}


def test_a_program_that_fails_or_prints_something_else_is_an_error(
    syncing: Server, program: SyncProgram
) -> None:
    for error, wanted in FAILURES.items():
        program.set(wanted)
        with pytest.raises(PostgresError, match=error):
            sync(syncing)


def test_a_program_without_a_quorum_is_ended_at_its_limit(syncing: Server, program: SyncProgram) -> None:
    program.set(Sync(hangs=True, says=("connecting with node sk1:5454",)))
    with pytest.raises(PostgresError, match="had not ended after 2 s and was killed") as caught:
        sync(syncing, limit_s=2.0)
    assert "connecting with node sk1:5454" in str(caught.value).rpartition("its last words:")[2]


def test_a_cancellation_ends_the_program_within_a_second_and_leaves_no_child(
    syncing: Server, program: SyncProgram
) -> None:
    program.set(Sync(hangs=True))
    cancellation, ended = Cancellation(), []

    def work() -> None:
        with pytest.raises(CancelledError):
            sync(syncing, cancellation=cancellation)
        ended.append(monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: program.calls, "the program runs", 30)
    asked_s = monotonic()
    cancellation.request()
    thread.join(30)
    assert ended
    assert ended[0] - asked_s < 1.0


def test_what_a_killed_node_left_syncing_is_ended_by_the_next(
    syncing: Server, postgres_folder: Path, account: Account | None
) -> None:
    """It could still be elected later, and would shut the next primary out."""
    place = Path(sync_folder(syncing.pgdata, account))
    place.mkdir(mode=0o700)
    left = [a_false_postgres(postgres_folder), "-c", "echo up; read line"]
    with subprocess.Popen(left, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == b"up\n"
        reaper = in_thread(orphan.wait)
        try:
            syncing.inspect(Cancellation())
            reaper.join(30)
            assert orphan.returncode == -signal.SIGTERM
        finally:
            orphan.kill()
            syncing.release()

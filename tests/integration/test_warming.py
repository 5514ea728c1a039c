"""An empty node warms the machine's memory with a Postgres of its own, and keeps what its initdb made for the start."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.postgres_process import node, readiness
from compute_node.actors.postgres_process.confining import Confinement
from compute_node.actors.postgres_process.pgdata import TOKEN
from compute_node.actors.postgres_process.sources import SourceError
from compute_node.actors.postgres_process.sources.initdb import InitdbSource
from compute_node.actors.postgres_process.work import Work
from compute_node.messages.postgres import (
    PgdataPrepared,
    PostgresStopped,
    PreparePgdata,
    StopPostgres,
    WarmMemory,
)
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, spec
from fix_postgres import wait_until
from fix_process import MakeProcess, Process, fast_spec

LIMIT_S = 50.0


def warmup(process: Process) -> Path:
    return Path(f"{process.pgdata}.warmup")


def begin(process: Process, place: Path | None = None) -> None:
    process.inspect()
    process.ref.tell(WarmMemory())
    place = place or warmup(process)
    wait_until(lambda: Work.WARM in process.actor.state.work or place.exists(), "it has begun")


def warmed(process: Process) -> bool:
    return Work.WARM not in process.actor.state.work


def identifier(binaries: Binaries, pgdata: Path) -> str:
    said = subprocess.run(
        [binaries.sibling("pg_controldata"), pgdata], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    return next(line for line in said.splitlines() if "system identifier" in line)


def test_what_its_initdb_made_is_what_the_start_serves_and_nothing_else_of_it_is_left(
    make_process: MakeProcess,
    binaries15: Binaries,
    postgres_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered = postgres_folder / "entered"
    enter = Confinement(prefix=("/bin/sh", "-c", f'echo >> {entered}; exec "$@"', "sh"))
    monkeypatch.setattr(node, "plan", lambda *_: enter)
    too_long_for_a_socket = str(postgres_folder / ("p" * 100))
    process = make_process(binaries15, pgdata=too_long_for_a_socket, autoscaling=True, cgroup="postgres")
    begin(process)
    wait_until(lambda: warmed(process), "the memory is warm", LIMIT_S)
    assert "done prewarming vm memory" in caplog.text
    assert entered.read_text() == "\n", "it runs where Postgres is to run"
    assert process.sink.alive == [], "it is waited for"
    made = identifier(binaries15, warmup(process) / "template")
    monkeypatch.setattr(InitdbSource, "build", _no_initdb)
    prepared = process.prepare()
    assert isinstance(prepared, PgdataPrepared), prepared
    process.launch()
    assert process.query("SELECT 1") == [(1,)]
    assert identifier(binaries15, process.pgdata) == made
    assert not warmup(process).exists()


def _no_initdb(*_: object, **__: object) -> None:
    msg = "initdb was run again"
    raise SourceError(msg)


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Postgres that warms the memory is never found ready, and runs until it is broken off."""

    wait = readiness.wait

    def not_there(
        pgdata: str,
        pid: int,
        has_exited: Callable[[], bool],
        limit_s: float | None,
        cancellation: Cancellation,
    ) -> bool:
        if ".warmup/" not in pgdata:
            return wait(pgdata, pid, has_exited, limit_s, cancellation)
        cancellation.wait(LIMIT_S)
        cancellation.check()
        return False

    monkeypatch.setattr(readiness, "wait", not_there)


@pytest.mark.usefixtures("lasting")
@pytest.mark.parametrize("program", ["initdb", "postgres"])
def test_a_spec_that_comes_meanwhile_breaks_it_off_and_is_served(
    make_process: MakeProcess, binaries15: Binaries, program: str
) -> None:
    process = make_process(binaries15)
    begin(process)
    wait_until(lambda: _runs(warmup(process), program), f"its {program} runs", LIMIT_S)
    prepared = process.tell(PreparePgdata(1, fast_spec()), PgdataPrepared)
    assert not prepared.kept
    process.launch()
    assert process.query("SELECT 1") == [(1,)]
    assert not warmup(process).exists()


def _runs(folder: Path, program: str) -> bool:
    for process in psutil.process_iter():
        try:
            if process.name() == program and str(folder) in " ".join(process.cmdline()):
                return True
        except psutil.Error:
            continue
    return False


@pytest.mark.usefixtures("lasting")
def test_a_stop_meanwhile_leaves_nothing_of_it(make_process: MakeProcess, binaries15: Binaries) -> None:
    process = make_process(binaries15)
    begin(process)
    wait_until(lambda: _runs(warmup(process), "postgres"), "its Postgres runs", LIMIT_S)
    process.tell(StopPostgres(20.0), PostgresStopped)
    assert not warmup(process).exists()
    assert not _runs(warmup(process), "postgres")


def in_mount(mount_point: Path) -> list[str]:
    return sorted(path.name for path in mount_point.iterdir())


@pytest.mark.usefixtures("lasting")
def test_in_a_mount_point_a_stop_meanwhile_leaves_it_empty(
    mount_point: Path, make_process: MakeProcess, binaries15: Binaries
) -> None:
    process = make_process(binaries15)
    begin(process, mount_point / ".warmup")
    wait_until(lambda: _runs(mount_point / ".warmup", "postgres"), "its Postgres runs", LIMIT_S)
    process.tell(StopPostgres(20.0), PostgresStopped)
    assert in_mount(mount_point) == []


def test_in_a_mount_point_it_lies_in_the_folder_is_cleared_away_after_a_kill_and_is_taken_over(
    mount_point: Path, make_process: MakeProcess, binaries15: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = make_process(binaries15)
    begin(process, mount_point / ".warmup")
    wait_until(lambda: warmed(process), "the memory is warm", LIMIT_S)
    assert in_mount(mount_point) == [".warmup", TOKEN]
    process.abandon()
    again = make_process(binaries15)
    again.inspect()
    assert in_mount(mount_point) == [TOKEN]
    begin(again, mount_point / ".warmup")
    wait_until(lambda: warmed(again), "the memory is warm again", LIMIT_S)
    made = identifier(binaries15, mount_point / ".warmup" / "template")
    monkeypatch.setattr(InitdbSource, "build", _no_initdb)
    assert isinstance(again.prepare(), PgdataPrepared)
    again.launch()
    assert again.query("SELECT 1") == [(1,)]
    assert identifier(binaries15, mount_point) == made
    assert ".warmup" not in in_mount(mount_point)


def test_what_a_killed_node_was_warming_with_is_cleared_away_by_the_next_and_a_strangers_is_not(
    make_process: MakeProcess, binaries15: Binaries
) -> None:
    process = make_process(binaries15)
    begin(process)
    wait_until(lambda: warmed(process), "the memory is warm", LIMIT_S)
    process.abandon()
    assert warmup(process).exists()
    again = make_process(binaries15)
    again.inspect()
    assert not warmup(again).exists()
    warmup(again).mkdir()
    (warmup(again) / "letter").write_text("dear")
    again.ref.tell(WarmMemory())
    assert isinstance(again.prepare(), PgdataPrepared)
    assert (warmup(again) / "letter").read_text() == "dear"
    again.stop()
    shutil.rmtree(warmup(again))


def test_an_empty_node_serves_at_once_and_starts_from_what_it_has_made(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    made = make_node(binaries15)
    made.warms_memory = True
    made.write_config(None)
    made.start().await_status("empty")
    wait_until(lambda: "done prewarming vm memory" in made.log, "the memory is warm", LIMIT_S)
    document = {"spec": spec(), "compute_ctl_config": {"jwks": {"keys": []}}}
    assert made.call("POST", "/configure", document).status == 200
    assert made.stop() == 0

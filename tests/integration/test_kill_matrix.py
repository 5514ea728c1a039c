"""Every named step of the jobs times everybody who can be killed there; then the next start, and what was promised.

Generated from `Failpoint`: a new step without a way to reach it fails `test_every_step_is_in_the_matrix`.
"""

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
import pytest
from compute_node.actors.postgres_process.pgdata import MARKER
from compute_node.messages.failpoints import Failpoint
from compute_node.postgres.binaries import Binaries

from fix_matrix import Cell, seed
from fix_node import SMALL, MakeNode, Node, setting, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

APPLIED: Final = "compute_node_applied_statements_total"
OWN_FILES: Final = frozenset({"pgdata", "pgdata.lock", "config.json", "key.pem", "stderr"})
END_S: Final = 60.0
"""How long a node may take to end, or to run again, after somebody was killed."""


class Way(Enum):
    """How a step is reached."""

    FIRST = "first start"
    AGAIN = "start on kept data"
    FRESH = "start with --fresh over data"
    CONFIGURE = "reconfiguration"
    STOP = "SIGTERM"
    KILL = "SIGTERM, a backend frozen"


class Victim(Enum):
    """Who is killed."""

    US = "the node"
    POSTMASTER = "the postmaster"
    BACKEND = "a backend"
    INITDB = "initdb"


STARTS: Final = (Way.FIRST, Way.AGAIN)
BUILDS: Final = (Way.FIRST, Way.FRESH)
SERVED: Final = frozenset({Way.AGAIN, Way.CONFIGURE, Way.STOP, Way.KILL})
"""The ways on which data was served before, and is kept."""

REACHED: Final[dict[Failpoint, tuple[Way, ...]]] = {
    Failpoint.INSPECT_LOCKED: STARTS,
    Failpoint.INSPECT_CLEARED: STARTS,
    Failpoint.INSPECT_RECOVERED: STARTS,
    Failpoint.CHECK_WRITTEN: (*STARTS, Way.CONFIGURE),
    Failpoint.CHECK_ASKED: (*STARTS, Way.CONFIGURE),
    Failpoint.PREPARE_BEGUN: BUILDS,
    Failpoint.PREPARE_TOKEN: BUILDS,
    Failpoint.INITDB_RUNNING: BUILDS,
    Failpoint.INITDB_DONE: BUILDS,
    Failpoint.PREPARE_UNSEALED: BUILDS,
    Failpoint.PREPARE_SEALED: BUILDS,
    Failpoint.LAUNCH_CLEARED: (*STARTS, Way.FRESH),
    Failpoint.PLACE_AWAY: (Way.FRESH,),
    Failpoint.PLACE_MOVED: BUILDS,
    Failpoint.LAUNCH_PLACED: (*STARTS, Way.FRESH),
    Failpoint.FILES_CONF: STARTS,
    Failpoint.FILES_WRITTEN: STARTS,
    Failpoint.LAUNCHED: STARTS,
    Failpoint.AWAIT_READY: STARTS,
    Failpoint.READY_SEEN: STARTS,
    Failpoint.EXIT_SEEN: (Way.STOP,),
    Failpoint.INSTALL_WRITTEN: (Way.CONFIGURE,),
    Failpoint.INSTALL_RELOADED: (Way.CONFIGURE,),
    Failpoint.INSTALL_VERIFIED: (Way.CONFIGURE,),
    Failpoint.KILL_BEGUN: (Way.KILL,),
    Failpoint.TIDY_BEGUN: (Way.STOP,),
    Failpoint.TIDY_SWEPT: (Way.STOP,),
    Failpoint.APPLY_CATALOG: (*STARTS, Way.CONFIGURE),
    Failpoint.APPLY_STATEMENT: (Way.FIRST, Way.CONFIGURE),
    Failpoint.APPLY_PHASE: (Way.FIRST, Way.CONFIGURE),
    Failpoint.APPLY_VISIT: (*STARTS, Way.CONFIGURE),
    Failpoint.APPLY_DONE: (*STARTS, Way.CONFIGURE),
    Failpoint.MIGRATION: (Way.FIRST,),
    Failpoint.OBSERVE: (Way.FIRST,),
    Failpoint.REREAD: (Way.CONFIGURE,),
    Failpoint.HTTP_BOUND: (Way.FIRST,),
    Failpoint.HTTP_SERVING: (Way.FIRST,),
}

ELSEWHERE: Final = frozenset({Failpoint.PROMOTION})
"""It takes a primary, too: test_promotion.py."""
NOT_LAUNCHED: Final = frozenset(list(Failpoint)[: list(Failpoint).index(Failpoint.LAUNCHED)])
GONE: Final = frozenset({Failpoint.EXIT_SEEN, Failpoint.TIDY_BEGUN, Failpoint.TIDY_SWEPT})
BESIDE: Final = frozenset({Failpoint.HTTP_BOUND, Failpoint.HTTP_SERVING})
"""Steps that say nothing about how far Postgres is."""
NOT_ANSWERING: Final = frozenset({Failpoint.LAUNCHED, Failpoint.AWAIT_READY, Failpoint.KILL_BEGUN})


def victims(step: Failpoint, way: Way) -> Iterator[Victim]:
    """The rule that leaves impossible pairs out: who is alive at a step."""
    yield Victim.US
    if step is Failpoint.INITDB_RUNNING:
        yield Victim.INITDB
    running = way is Way.CONFIGURE or step not in NOT_LAUNCHED | GONE | BESIDE
    if running:
        yield Victim.POSTMASTER
    if running and step not in NOT_ANSWERING:
        yield Victim.BACKEND


MATRIX: Final = [
    pytest.param(step, way, victim, id=f"{step.value}, {way.value}, {victim.value}")
    for step, ways in REACHED.items()
    for way in ways
    for victim in victims(step, way)
]

BEFORE: Final = spec(
    cluster={
        "roles": [{"name": "app"}, {"name": "old"}],
        "databases": [{"name": "app", "owner": "app"}, {"name": "kept", "owner": "old"}],
    }
)
WANTED: Final = spec(
    cluster={
        "roles": [{"name": "app"}, {"name": "new"}],
        "databases": [{"name": "app", "owner": "new"}, {"name": "kept", "owner": "new"}],
        "settings": [*SMALL, setting("work_mem", "7MB")],
    },
    delta_operations=[{"action": "rename_role", "name": "old", "new_name": "new"}],
)
"""Not idempotent by itself: its renaming must be seen to be done already."""


def test_every_step_is_in_the_matrix() -> None:
    assert set(REACHED) | ELSEWHERE == set(Failpoint)
    assert all(REACHED.values())


@pytest.mark.matrix("kill-matrix", sample=2)
@pytest.mark.parametrize(("step", "way", "victim"), MATRIX)
def test_after_a_kill_at_any_step_the_next_start_keeps_every_promise(
    make_node: MakeNode, binaries15: Binaries, cell: Cell, step: Failpoint, way: Way, victim: Victim
) -> None:
    row = f"`{step.value}`, {way.value}"
    life = Life(make_node(binaries15, "--dev"), step, way)
    life.reach()
    life.kill(victim)
    outcome = life.let_go(victim)
    life.start_again_and_judge()
    cell.say(row, victim.value, f"{outcome}; then fine")


class Life:
    """One node, from before the fault to the end of the life after."""

    def __init__(self, node: Node, step: Failpoint, way: Way) -> None:
        self.node = node
        self.step = step
        self.way = way
        self.foreign = foreign_files(node.folder)
        self.before = snapshot(self.foreign)
        self.frozen: psycopg.Connection[Any] | None = None
        """A session whose backend does not hear signals, so that only the last rung of a stop ends it."""

    # --- Up to the step

    def reach(self) -> None:
        """Bring the node to its step, where it stays."""
        node = self.node
        if self.way is not Way.FIRST:
            node.run(BEFORE, *(("--stop-timeout", "4") if self.way is Way.KILL else ()))
            node.query("create table canary as select 42 as answer")
        if self.way in {Way.AGAIN, Way.FRESH}:
            assert node.stop() == 0, node.log
        node.write_config(WANTED)
        if self.way in {Way.FIRST, Way.AGAIN, Way.FRESH}:
            flags = ("--fresh",) if self.way is Way.FRESH else ()
            node.start(*flags, failpoints={self.step: "pause"})
        else:
            node.set_failpoint(self.step, "pause")
            if self.way is Way.KILL:
                self.frozen = self.session()
                os.kill(self.frozen.info.backend_pid, signal.SIGSTOP)
            node.send_signal(signal.SIGTERM if self.way in {Way.STOP, Way.KILL} else signal.SIGHUP)
        node.await_failpoint(self.step)

    # --- The fault

    def kill(self, victim: Victim) -> None:
        """Kill -9, and see that it is dead."""
        assert self.node.process is not None
        match victim:
            case Victim.US:
                self.node.process.kill()
                self.node.wait()
            case Victim.POSTMASTER:
                murder(self.children("postgres")[0])
            case Victim.INITDB:
                murder(self.children("initdb")[0])
            case Victim.BACKEND:
                self.murder_backend()

    def children(self, program: str) -> list[psutil.Process]:
        """Wait until the node has children that run this program, and return them."""
        assert self.node.process is not None
        us = psutil.Process(self.node.process.pid)
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = [child for child in us.children() if runs(child, program)]
            return bool(found)

        wait_until(there, f"a child that runs {program}", END_S)
        return found

    def murder_backend(self) -> None:
        with self.session() as connection:
            murder(psutil.Process(connection.info.backend_pid))

    def session(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1", port=self.node.postgres_port, user="cloud_admin", dbname="postgres"
        )

    # --- The rest of this life

    def let_go(self, victim: Victim) -> str:
        """Let the job go on where we live; return how it ends: bounded, with a reason, or in a node that runs."""
        node = self.node
        if victim is Victim.US:
            return "dead"
        wait_until(lambda: node.ended() or self.released(), "it goes on, or has ended by itself", END_S)
        stopping = self.way in {Way.STOP, Way.KILL}
        survives = victim is Victim.BACKEND and not stopping
        wait_until(
            lambda: node.ended() or (survives and self.runs_again()), "the end, or a node that runs", END_S
        )
        if not node.ended():
            assert node.stop() == 0, node.log
            return "runs"
        code = node.wait()
        assert code == 1, node.log
        assert self.way is not Way.CONFIGURE or victim is Victim.POSTMASTER, (
            f"the node had to live on:\n{node.log}"
        )
        assert says_why(node), node.log
        assert postgres_in(node.pgdata) == []
        return f"exit {code}"

    def released(self) -> bool:
        """Let the job go on, once the node serves."""
        with contextlib.suppress(OSError):
            self.node.set_failpoint(self.step, "off")
            return True
        return False

    def runs_again(self) -> bool:
        with contextlib.suppress(OSError, psycopg.Error):
            return self.node.status()["status"] == "running" and self.node.query("select 1") == [(1,)]
        return False

    # --- The next life

    def start_again_and_judge(self) -> None:
        """Start in the same folder without the fault, and judge by the invariants of docs/faults.md."""
        node = self.node
        assert snapshot(self.foreign) == self.before, "files of others, after the fault"
        if self.frozen is not None:
            self.frozen.close()
        node.run(WANTED)
        assert (node.pgdata / MARKER).exists(), "what is served is complete"
        assert node.process is not None
        assert parents_in(node.pgdata) == {node.process.pid, node.postmaster()}, (
            "one postmaster, with its children alone"
        )
        if self.way in SERVED:
            assert node.query("select answer from canary") == [(42,)]
        self.judge_catalog()
        self.judge_second_application()
        assert node.stop() == 0, node.log
        assert postgres_in(node.pgdata) == []
        assert snapshot(self.foreign) == self.before, "files of others, after the next life"
        left = {path.name for path in node.folder.iterdir()} - {path.name for path in self.foreign}
        assert left <= OWN_FILES

    def judge_catalog(self) -> None:
        owners = (
            "select datname::text, datdba::regrole::text from pg_database where not datistemplate order by 1"
        )
        assert self.node.query(owners) == [("app", "new"), ("kept", "new"), ("postgres", "cloud_admin")]
        roles = "select rolname::text from pg_roles where rolname in ('app', 'old', 'new') order by 1"
        assert self.node.query(roles) == [("app",), ("new",)]
        assert self.node.query("show work_mem") == [("7MB",)]

    def judge_second_application(self) -> None:
        """Apply the same spec again: no statement."""
        before = self.node.metric(APPLIED)
        assert self.node.configure(WANTED).status == 200
        assert self.node.metric(APPLIED) == before


# --- Between two statements --------------------------------------------------------------------------------

STATEMENTS: Final = 24
"""More than the sample spec takes; a cut beyond the last one is none, and says so."""


@pytest.mark.matrix("kill-matrix", sample=1)
@pytest.mark.parametrize("way", [Way.FIRST, Way.CONFIGURE], ids=lambda way: way.value)
@pytest.mark.parametrize("cut", range(STATEMENTS))
def test_cut_between_two_statements_and_started_again_the_catalog_is_as_without_the_cut(
    make_node: MakeNode, binaries15: Binaries, cell: Cell, cut: int, way: Way
) -> None:
    whole = make_node(binaries15, "--dev")
    node = make_node(binaries15, "--dev")
    for one in (whole, node):
        if way is Way.CONFIGURE:
            one.run(BEFORE)
            one.await_migrations()
    if way is Way.CONFIGURE:
        assert whole.configure(WANTED).status == 200
    else:
        whole.run(WANTED)
        whole.await_migrations()
    expected = catalog(whole)
    assert whole.stop() == 0, whole.log

    actions = f"{cut}*print->exit(137)"
    node.write_config(WANTED)
    if way is Way.CONFIGURE:
        node.set_failpoint(Failpoint.APPLY_STATEMENT, actions)
        node.send_signal(signal.SIGHUP)
    else:
        node.start(failpoints={Failpoint.APPLY_STATEMENT: actions})
    done = "the spec is applied"
    wait_until(
        lambda: node.ended() or node.log[node.log_begins_at :].count(done) > (way is Way.CONFIGURE),
        "the cut",
        END_S,
    )
    if node.ended():
        assert node.wait() == 137
        cell.say(f"after {cut:02} statements, {way.value}", Victim.US.value, "dead; then the same catalog")
    else:
        assert node.stop() == 0, node.log
        cell.say(f"after {cut:02} statements, {way.value}", Victim.US.value, "there are not so many")
    node.run(WANTED)
    node.await_migrations()
    assert catalog(node) == expected
    before = node.metric(APPLIED)
    assert node.configure(WANTED).status == 200
    assert node.metric(APPLIED) == before
    assert node.stop() == 0, node.log


CATALOG: Final = (
    "select rolname, rolsuper, rolcanlogin, rolcreatedb, rolcreaterole, rolpassword from pg_authid order by 1",
    "select roleid::regrole::text, member::regrole::text from pg_auth_members order by 1, 2",
    "select datname, pg_get_userbyid(datdba), datacl::text, datconnlimit from pg_database order by 1",
)
IN_EACH: Final = (
    "select nspname, pg_get_userbyid(nspowner), nspacl::text from pg_namespace where nspname !~ '^pg_' order by 1",
    "select defaclobjtype, defaclacl::text from pg_default_acl order by 1, 2",
)


def catalog(node: Node) -> list[list[Any]]:
    """Return all that an application of a spec may change."""
    return [node.query(question) for question in CATALOG] + [
        node.query(question, dbname=dbname) for dbname in ("postgres", "app", "kept") for question in IN_EACH
    ]


# --- While initdb runs -------------------------------------------------------------------------------------

MOMENTS: Final = 30


@pytest.mark.matrix("kill-matrix", sample=1)
@pytest.mark.parametrize("victim", [Victim.US, Victim.INITDB], ids=lambda victim: victim.value)
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_at_any_moment_of_initdb_the_next_start_serves_a_complete_cluster(
    make_node: MakeNode, binaries15: Binaries, cell: Cell, moment: int, victim: Victim
) -> None:
    """The moment is when so many files are there, which is the same on a slow machine; `random` is seeded."""
    files = random.Random(f"{seed()} {moment}").randrange(1, FILES)  # noqa: S311 - a moment that can be taken again
    node = make_node(binaries15, "--dev")
    built = Path(f"{node.pgdata}.building/data")
    node.write_config(WANTED)
    node.start()
    assert node.process is not None
    us = psutil.Process(node.process.pid)

    def reached() -> bool:
        return count_files(built) >= files or node.pgdata.exists()

    wait_until(reached, f"{files} files", END_S)
    initdbs = [child for child in us.children() if runs(child, "initdb")]
    outcome = "too late"
    if victim is Victim.US:
        node.process.kill()
        node.wait()
        assert not (node.pgdata.exists() and not (node.pgdata / MARKER).exists())
        outcome = "dead; then rebuilt" if not node.pgdata.exists() else "dead; then kept"
    elif initdbs:
        murder(initdbs[0])
        assert node.wait() == 1, node.log
        node.heard("no new cluster could be made: initdb ended with -9")
        assert not node.pgdata.exists()
        assert not built.parent.exists(), "nothing is left of the attempt"
        outcome = "exit 1; then rebuilt"
    else:
        node.await_status("running")
        assert node.stop() == 0, node.log
    node.run(WANTED)
    assert (node.pgdata / MARKER).exists()
    assert node.query("select count(*) > 0 from pg_class") == [(True,)]
    assert node.stop() == 0, node.log
    assert {path.name for path in node.folder.iterdir()} <= OWN_FILES
    cell.say(f"initdb, {files * 10 // FILES}0 % of its files", victim.value, outcome)


def test_attempts_that_are_killed_leave_one_folder_at_most(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15, "--dev")
    node.write_config(WANTED)
    for step in (Failpoint.PREPARE_TOKEN, Failpoint.PREPARE_UNSEALED):
        node.start(failpoints={step: "exit(137)"})
        assert node.wait() == 137, node.log
        assert {path.name for path in node.folder.iterdir()} == OWN_FILES - {"pgdata"} | {"pgdata.building"}
    node.run(WANTED)
    assert node.stop() == 0, node.log
    assert {path.name for path in node.folder.iterdir()} == OWN_FILES


FILES: Final = 960
"""How many initdb makes, roughly."""


def count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


# --- Looking around ----------------------------------------------------------------------------------------


def foreign_files(folder: Path) -> list[Path]:
    """Put things of others beside PGDATA, under names that look like ours."""
    for name in ("pgdata.aside-x", "pgdata-2", "pgdata.olden"):
        (folder / name).mkdir()
        (folder / name / "PG_VERSION").write_text("15\n")
        (folder / name / "data").symlink_to("/nowhere")
    (folder / "pgdata.bak").write_text("precious")
    return sorted(path for path in folder.iterdir() if path.name.startswith("pgdata"))


def snapshot(paths: list[Path]) -> list[tuple[str, str]]:
    found = []
    for path in paths:
        for entry in [path, *sorted(path.rglob("*"))]:
            content = (
                str(entry.readlink())
                if entry.is_symlink()
                else entry.read_text()
                if entry.is_file()
                else "a folder"
            )
            found.append((str(entry), content))
    return found


def runs(process: psutil.Process, program: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.exe()).name == program
    return False


def postgres_in(pgdata: Path) -> list[int]:
    """Return every living Postgres program that works in or beside this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(pgdata)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return sorted(found)


def parents_in(pgdata: Path) -> set[int]:
    """Return the parents of the processes of `postgres_in`."""
    found = set()
    for pid in postgres_in(pgdata):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(psutil.Process(pid).ppid())
    found.discard(0)  # of a session that has just ended
    return found


def murder(process: psutil.Process) -> None:
    process.kill()

    def is_dead() -> bool:
        try:
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(is_dead, f"the end of {process}", END_S)


def says_why(node: Node) -> bool:
    """Whether the log gives a reason for a node that failed."""
    life = node.log[node.log_begins_at :]
    return any(
        said in life
        for said in (
            "Postgres ended",
            "initdb ended",
            "cannot apply the spec",
            "Postgres has not stopped yet",
        )
    )

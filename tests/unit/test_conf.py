"""The text of postgresql.conf: every line of the reference, in order, under its condition."""

import re
import string
from typing import Any

import msgspec
import pytest
from compute_node.messages.base import decode_hook
from compute_node.messages.secret import Secret
from compute_node.messages.spec import ComputeSpec
from compute_node.postgres import conf_reader
from compute_node.postgres.conf import (
    ConfContext,
    ConfError,
    ConfText,
    Listening,
    Standby,
    max_connections,
    preload_libraries,
    quote,
    reconfigure_concurrency,
    render,
    socket_folder_problem,
    start_concurrency,
)
from compute_node.postgres.conf_reader import effective, join_libraries, read, split_libraries, unquote
from hypothesis import given
from hypothesis import strategies as st

CONTEXT = ConfContext(internal_http_port=3081, privileged_role_name="neon_superuser")
PLAIN = ConfContext(internal_http_port=3081, privileged_role_name="neon_superuser", default_preload=())
TENANT = "ABCDEF0123456789abcdef0123456789"


def make_spec(*, cluster: dict[str, Any] | None = None, **fields: Any) -> ComputeSpec:
    document = {
        "format_version": 1.0,
        "suspend_timeout_seconds": -1,
        "cluster": {"roles": [], "databases": [], **(cluster or {})},
        **fields,
    }
    return msgspec.convert(document, ComputeSpec, dec_hook=decode_hook)


def with_settings(*settings: tuple[str, str | None, str]) -> ComputeSpec:
    return make_spec(cluster={"settings": [{"name": n, "value": v, "vartype": t} for n, v, t in settings]})


def lines(spec: ComputeSpec, context: ConfContext = CONTEXT) -> list[str]:
    return render(spec, context).text.removesuffix("\n").split("\n")


MINIMAL = [
    "# Neon storage settings",
    "lc_messages='C.UTF-8'",
    "lc_monetary='C.UTF-8'",
    "lc_time='C.UTF-8'",
    "lc_numeric='C.UTF-8'",
    "neon.compute_mode=primary",
    "neon.privileged_role_name='neon_superuser'",
    "neon.extension_server_port=3081",
    "neon.disable_logical_replication_subscribers=false",
    "include_if_exists = 'compute_ctl_temp_override.conf'",
]


def test_the_smallest_spec_gives_the_lines_that_are_always_there() -> None:
    assert lines(make_spec()) == MINIMAL


def test_the_fullest_spec_gives_every_line_in_order() -> None:
    spec = make_spec(
        cluster={
            "postgresql_conf": "fsync = off\nwork_mem = 8MB",
            "settings": [{"name": "shared_buffers", "value": "16MB", "vartype": "integer"}],
        },
        shard_stripe_size=2048,
        pageserver_connstring="postgresql://no_user@ps:6400",
        safekeeper_connstrings=["sk1:5454", "sk2:5454"],
        safekeepers_generation=3,
        tenant_id=TENANT,
        timeline_id=TENANT.lower(),
        project_id="p'1",
        branch_id="b1",
        endpoint_id="ep-1",
        mode={"Static": " 0/169ad58 "},
        audit_log_level="Base",
        drop_subscriptions_before_start=True,
        logs_export_host="logs:514",
    )
    context = ConfContext(
        internal_http_port=4000,
        privileged_role_name="boss",
        listening=Listening(55432, "/tmp/s"),
        tls=True,
        strict_overcommit=True,
    )
    assert lines(spec, context) == [
        "port = 55432",
        "listen_addresses = 'localhost'",
        "unix_socket_directories = '/tmp/s'",
        "fsync = off",
        "work_mem = 8MB",
        "neon.stripe_size=2048",
        "# Neon storage settings",
        "neon.pageserver_connstring='postgresql://no_user@ps:6400'",
        "neon.safekeepers='g#3:sk1:5454,sk2:5454'",
        f"neon.tenant_id='{TENANT.lower()}'",
        f"neon.timeline_id='{TENANT.lower()}'",
        "neon.project_id='p''1'",
        "neon.branch_id='b1'",
        "neon.endpoint_id='ep-1'",
        "ssl = on",
        "ssl_cert_file = 'server.crt'",
        "ssl_key_file = 'server.key'",
        "lc_messages='C.UTF-8'",
        "lc_monetary='C.UTF-8'",
        "lc_time='C.UTF-8'",
        "lc_numeric='C.UTF-8'",
        "neon.compute_mode=static",
        "hot_standby=on",
        "recovery_target_lsn='0/169AD58'",
        "dynamic_shared_memory_type = mmap",
        "neon.privileged_role_name='boss'",
        "# Managed by compute_ctl: begin",
        "shared_buffers = 16MB",
        "# Managed by compute_ctl: end",
        "# Managed by compute_ctl base audit settings: start",
        "pgaudit.log='ddl,role'",
        "pgaudit.log_catalog=off",
        "shared_preload_libraries='neon,pgaudit'",
        "# Managed by compute_ctl base audit settings: end",
        "neon.extension_server_port=4000",
        "neon.disable_logical_replication_subscribers=true",
        "log_destination='stderr,syslog'",
        "include_if_exists = 'compute_ctl_temp_override.conf'",
    ]


def test_a_replica_is_a_hot_standby_without_a_target() -> None:
    rendered = lines(make_spec(mode="Replica"))
    assert rendered[5:7] == ["neon.compute_mode=replica", "hot_standby=on"]
    assert not any("recovery_target_lsn" in line for line in rendered)


def test_safekeepers_without_a_generation_have_no_prefix() -> None:
    assert "neon.safekeepers='sk1:1'" in lines(make_spec(safekeeper_connstrings=["sk1:1"], mode="Replica"))


def test_an_empty_list_of_settings_gives_a_blank_line_between_the_markers() -> None:
    rendered = lines(with_settings())
    begin = rendered.index("# Managed by compute_ctl: begin")
    assert rendered[begin + 1 : begin + 3] == ["", "# Managed by compute_ctl: end"]


COMPLIANCE = "pgaudit.log_catalog=off", "pgaudit.log_rotation_age=5"


@pytest.mark.parametrize(
    ("level", "block"),
    [
        ("Log", ["pgaudit.log='ddl,role'", "pgaudit.log_catalog=off"]),
        ("Base", ["pgaudit.log='ddl,role'", "pgaudit.log_catalog=off"]),
        ("Hipaa", ["pgaudit.log_parameter=off", "pgaudit.log='all, -misc'", *COMPLIANCE]),
        ("Extended", ["pgaudit.log_parameter=off", "pgaudit.log='all, -misc'", *COMPLIANCE]),
        ("Full", ["pgaudit.log_parameter=on", "pgaudit.log='all'", *COMPLIANCE]),
    ],
)
def test_each_audit_level_has_its_block(level: str, block: list[str]) -> None:
    base = level in {"Log", "Base"}
    rendered = lines(make_spec(audit_log_level=level))
    begin = rendered.index(
        "# Managed by compute_ctl base audit settings: start"
        if base
        else "# Managed by compute_ctl compliance audit settings: begin"
    )
    libraries = "neon,pgaudit" if base else "neon,pgaudit,pgauditlogtofile"
    assert rendered[begin + 1 : begin + 3 + len(block)] == [
        *block,
        f"shared_preload_libraries='{libraries}'",
        f"# Managed by compute_ctl {'base' if base else 'compliance'} audit settings: end",
    ]


@pytest.mark.parametrize(
    ("own_text", "setting", "level", "expected"),
    [
        (None, "neon,pg_stat_statements", "Base", "neon,pg_stat_statements,pgaudit"),
        (None, "pgauditlogtofile", "Base", "pgauditlogtofile,pgaudit"),  # D16: no substring test
        (None, "pgaudit", "Full", "pgaudit,pgauditlogtofile"),
        (None, " pgaudit , pgauditlogtofile ", "Full", "pgaudit,pgauditlogtofile"),
        (None, "$libdir/pgaudit", "Base", "$libdir/pgaudit"),
        (None, "/opt/lib/pgaudit.so", "Base", "/opt/lib/pgaudit.so"),
        (None, "", "Base", "pgaudit"),
        (None, '"a b",it\'s', "Base", "\"a b\",it''s,pgaudit"),  # D16: escaped
        (
            "shared_preload_libraries = 'neon'\nSHARED_PRELOAD_LIBRARIES='mine' # last",
            None,
            "Base",
            "mine,pgaudit",
        ),
        ("shared_preload_libraries = 'neon'", "mine", "Base", "mine,pgaudit"),
        ("# shared_preload_libraries = 'neon'", None, "Base", "pgaudit"),
    ],
)
def test_audit_libraries_join_those_that_the_spec_preloads(
    own_text: str | None, setting: str | None, level: str, expected: str
) -> None:
    settings = [{"name": "shared_preload_libraries", "value": setting, "vartype": "string"}]
    spec = make_spec(
        cluster={"postgresql_conf": own_text, "settings": settings if setting is not None else None},
        audit_log_level=level,
    )
    assert f"shared_preload_libraries='{expected}'" in lines(spec, PLAIN)


def test_a_broken_list_of_libraries_is_refused_by_name() -> None:
    spec = with_settings(("shared_preload_libraries", '"open', "string"))
    with pytest.raises(ConfError, match=r"`shared_preload_libraries` of cluster.settings.*not closed"):
        preload_libraries(spec)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a'b\\c", "'a''b\\\\c'"),
        ("", "''"),
        ("two\nlines\r", "'two\\nlines\\r'"),
        ("ü", "'ü'"),
        ("$x$", "'$x$'"),
    ],
)
def test_values_are_quoted_by_doubling(value: str, expected: str) -> None:
    assert quote(value) == expected


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_quoted_value_is_one_line_that_reads_back(value: str) -> None:
    quoted = quote(value)
    assert "\n" not in quoted
    assert unquote(quoted) == value
    (entry,) = read(f"x.y = {quoted} # not the value")
    assert (entry.name, entry.value) == ("x.y", value)


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAMES = st.from_regex(r"[a-z_][a-z_0-9]{0,8}(\.[a-z_][a-z_0-9]{0,8})?", fullmatch=True)


@given(st.lists(st.tuples(NAMES, TEXTS, st.just("string")), max_size=5), st.none() | TEXTS)
def test_a_string_setting_never_becomes_another_setting(
    settings: list[tuple[str, str, str]], own_text: str | None
) -> None:
    document = [{"name": n, "value": v, "vartype": t} for n, v, t in settings]
    conf = render(make_spec(cluster={"settings": document, "postgresql_conf": own_text}), CONTEXT)
    managed = conf.text.split("# Managed by compute_ctl: begin\n")[-1].split("# Managed by compute_ctl: end")[
        0
    ]
    assert [(entry.name, entry.value) for entry in read(managed)] == [(n, v) for n, v, _ in settings]
    assert conf.text.count("\n") == len(conf.origins)


@pytest.mark.parametrize(
    ("name", "value", "vartype", "reason"),
    [
        ("work_mem", "1MB\nport = 1", "integer", "one line"),
        ("work_mem", "1MB\rport = 1", "integer", "one line"),
        ("work_mem", "1\0", "integer", "one line"),
        ("search_path", "a\0b", "string", "NUL"),
        ("search_path", "\ud800", "string", "surrogate"),
        ("work_mem", None, "integer", "no value"),
    ],
)
def test_what_no_line_can_say_is_refused_with_the_name_of_the_setting(
    name: str, value: str | None, vartype: str, reason: str
) -> None:
    with pytest.raises(ConfError, match=rf"`{name}` of cluster.settings.*{reason}"):
        render(with_settings((name, value, vartype)), CONTEXT)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a=b", "1a", "a.b.c", "a-b", "a'", "#a", "a\0"])
def test_what_is_no_name_of_a_setting_is_refused(name: str) -> None:
    with pytest.raises(ConfError, match="is not the name of a setting"):
        render(with_settings((name, "1", "integer")), CONTEXT)


def test_a_nul_in_the_specs_own_text_is_refused_with_its_line() -> None:
    with pytest.raises(ConfError, match=r"line 2 of cluster.postgresql_conf"):
        render(make_spec(cluster={"postgresql_conf": "a = 1\nb = '\0'"}), CONTEXT)


def test_a_nul_in_a_field_is_refused_with_setting_and_field() -> None:
    with pytest.raises(ConfError, match=r"`neon.branch_id` cannot be written from branch_id"):
        render(make_spec(branch_id="\0"), CONTEXT)


def test_every_line_knows_where_it_comes_from() -> None:
    spec = make_spec(
        cluster={
            "postgresql_conf": "# mine\nwork_mem = 8MB\nbroken =",
            "settings": [{"name": "shared_buffers", "value": "16MB", "vartype": "integer"}],
        },
        tenant_id=TENANT,
    )
    conf = render(spec, CONTEXT)
    origins = {
        line: conf.origin(number) for number, line in enumerate(conf.text.split("\n"), start=1) if line
    }
    assert origins["# mine"] == "line 1 of cluster.postgresql_conf"
    assert origins["work_mem = 8MB"] == "setting `work_mem`, line 2 of cluster.postgresql_conf"
    assert origins["broken ="] == "line 3 of cluster.postgresql_conf"
    assert origins["shared_buffers = 16MB"] == "setting `shared_buffers` of cluster.settings"
    assert origins[f"neon.tenant_id='{TENANT.lower()}'"] == "`neon.tenant_id`, which comes from tenant_id"
    assert origins["lc_time='C.UTF-8'"] == "`lc_time`, which this program writes"
    assert conf.origin(0) == "line 0"
    assert conf.origin(10_000) == "line 10000"


def test_messages_of_postgres_are_told_with_origins() -> None:
    conf = ConfText("a\nb\n", ("line 1 of x", "setting `b` of y"))
    said = 'syntax error in file "/p/postgresql.conf" line 2, near end of line; "/other" line 2'
    assert conf.explain(said, "/p/postgresql.conf") == (
        'syntax error in setting `b` of y, near end of line; "/other" line 2'
    )


def test_a_message_that_names_a_setting_is_told_with_the_last_place_that_sets_it() -> None:
    conf = render(
        make_spec(
            cluster={
                "postgresql_conf": "work_mem = 1\nfsync = maybe",
                "settings": [{"name": "Work_Mem", "value": "-8", "vartype": "integer"}],
            }
        ),
        CONTEXT,
    )
    output = """\
2026-11-22 23:43:07.134 GMT [17194] LOG:  skipping missing configuration file "/p/postgresql.auto.conf"
2026-11-22 23:43:07.134 GMT [17194] LOG:  -8 kB is outside the range of parameter "work_mem"
2026-11-22 23:43:07.134 GMT [17194] HINT:  Try more.
2026-11-22 23:43:07.025 GMT [17180] LOG:  parameter "fsync" requires a Boolean value
2026-11-22 23:43:07.025 GMT [17180] LOG:  parameter "wal_level" is new
2026-11-22 23:43:07.134 GMT [17194] FATAL:  configuration file "/p/postgresql.conf" contains errors
"""
    assert conf.refusal(output, "/p/postgresql.conf").split("; ") == [
        '-8 kB is outside the range of parameter "work_mem" (setting `Work_Mem` of cluster.settings) (Try more.)',
        'parameter "fsync" requires a Boolean value (setting `fsync`, line 2 of cluster.postgresql_conf)',
        'parameter "wal_level" is new',
    ]


def test_an_output_without_a_known_reason_is_told_as_it_is() -> None:
    said = '"root" execution of the PostgreSQL server is not permitted.\n'
    assert ConfText("", ()).refusal(said, "/p") == said.strip()


def test_a_configuration_does_not_show_its_secrets() -> None:
    spec = make_spec(pageserver_connstring="postgresql://u:canary-4711@ps")
    conf = render(spec, CONTEXT)
    assert "canary-4711" in conf.text
    assert "canary-4711" not in repr(conf)


def test_a_socket_folder_that_is_too_long_is_refused() -> None:
    fits = "/" + "s" * (107 - len("/.s.PGSQL.5432") - 1)
    assert socket_folder_problem(fits, 5432) is None
    assert socket_folder_problem(fits, 54321) is not None
    context = ConfContext(3081, "x", Listening(54321, fits))
    with pytest.raises(ConfError, match="shorter folder"):
        render(make_spec(), context)


def test_a_socket_folder_with_a_comma_stays_one_folder() -> None:
    context = ConfContext(3081, "x", Listening(5432, "/tmp/a, b"))
    (entry,) = [e for e in read(render(make_spec(), context).text) if e.name == "unix_socket_directories"]
    assert split_libraries(entry.value) == ("/tmp/a, b",)


@given(st.lists(st.text(alphabet="ab\",. \\'/$", min_size=1).map(str.strip).filter(bool)))
def test_a_list_of_libraries_reads_back(libraries: list[str]) -> None:
    assert split_libraries(join_libraries(tuple(libraries))) == tuple(libraries)


@pytest.mark.parametrize("broken", [",", "a,", ",a", '"a', '"a"b', "a,,b"])
def test_what_is_no_list_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match=r"comma|closed|empty"):
        split_libraries(broken)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a = 1", ("a", "1")),
        ("a 1", ("a", "1")),
        ("\ta='x'\r", ("a", "x")),
        ("a'x'", ("a", "x")),
        ("a = -1.5e3 # c", ("a", "-1.5e3")),
        ("a.b = on", ("a.b", "on")),
        ("a = 8MB", ("a", "8MB")),
        ("a = pg_catalog.x-y:/z", ("a", "pg_catalog.x-y:/z")),
        (r"a = 'b\'c\n\101'", ("a", "b'c\nA")),
        ("abc", None),
        ("a.b-5", None),
        ("a = 1 2", None),
        ("a = 1.5GB", None),
        ("a.b.c = 1", None),
        ("a = 'open", None),
        ("# a = 1", None),
        ("a = x,y", None),
        ("a = b.c", None),
        ("a b.c# c", None),
        ("a = b.c.d", ("a", "b.c.d")),
        ("a = b.c-d", ("a", "b.c-d")),
        ("a = b.", ("a", "b.")),
    ],
)
def test_lines_are_read_as_postgres_reads_them(line: str, expected: tuple[str, str] | None) -> None:
    entries = read(f"first = 0\n{line}")[1:]
    assert [(entry.line, entry.name, entry.value) for entry in entries] == (
        [] if expected is None else [(2, *expected)]
    )


@pytest.mark.parametrize(
    ("own_text", "setting", "known", "concurrency"),
    [
        (None, None, None, 10),
        (None, "0", 0, 1),  # D9
        (None, "1", 1, 1),
        (None, "9", 9, 9),
        (None, "10", 10, 10),
        (None, "29", 29, 10),
        (None, "30", 30, 10),
        (None, "100", 100, 33),
        (None, "1000", 1000, 333),
        (None, "many", None, 10),
        (None, "-5", None, 10),
        ("max_connections = 60", "many", None, 10),
        ("max_connections = 60", None, 60, 20),
        ("x = 1\n  max_connections\t=60 \nmax_connections = 90", None, 60, 20),
        ("#max_connections = 60", None, None, 10),
        ("max_connections = '60'", None, None, 10),
        ("max_connections = 60 # sixty", None, None, 10),
    ],
)
def test_max_connections_bounds_the_work_at_start(
    own_text: str | None, setting: str | None, known: int | None, concurrency: int
) -> None:
    settings = [{"name": "max_connections", "value": setting, "vartype": "integer"}]
    spec = make_spec(
        cluster={"postgresql_conf": own_text, "settings": settings if setting is not None else None}
    )
    assert max_connections(spec) == known
    assert start_concurrency(spec) == concurrency


@pytest.mark.parametrize(("asked", "given_"), [(0, 1), (1, 1), (7, 7)])
def test_reconfiguring_works_on_at_least_one_database(asked: int, given_: int) -> None:
    assert reconfigure_concurrency(make_spec(reconfigure_concurrency=asked)) == given_


def test_a_letter_is_what_the_scanner_of_postgres_calls_one() -> None:
    letters = {code for code in range(0x10000) if re.fullmatch(conf_reader._LETTER, chr(code))}
    ascii_letters = {ord(letter) for letter in string.ascii_letters + "_"}
    assert letters == ascii_letters | set(range(0x80, 0x10000))


def test_a_replica_of_an_upstream_follows_it_whatever_its_settings_say() -> None:
    spec = with_settings(
        ("primary_conninfo", "host=elsewhere", "string"),
        ("max_connections", "30", "integer"),
        ("max_worker_processes", "20", "integer"),
    )
    standby = Standby(
        Secret("host='db' password='it\\'s'"),
        "of_mine",
        (("max_connections", 40), ("max_worker_processes", 8), ("max_wal_senders", 10)),
    )
    context = msgspec.structs.replace(CONTEXT, standby=standby)
    entries = read(render(spec, context).text)
    assert {
        name: effective(entries, name) for name in ("primary_conninfo", "primary_slot_name", "hot_standby")
    } == {
        "primary_conninfo": "host='db' password='it\\'s'",
        "primary_slot_name": "of_mine",
        "hot_standby": "on",
    }
    assert effective(entries, "max_connections") == "40"
    assert effective(entries, "max_worker_processes") == "20", "more than needed is fine"
    assert effective(entries, "max_wal_senders") == "10"

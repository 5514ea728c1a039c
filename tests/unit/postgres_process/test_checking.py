"""What is said about a configuration before anything is changed."""

import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.postgres_process import checking, fields
from compute_node.actors.postgres_process.checking import Surroundings
from compute_node.actors.postgres_process.fields import NOT_BUILT
from compute_node.actors.postgres_process.folder import Paths
from compute_node.actors.postgres_process.lock import FolderLock
from compute_node.actors.postgres_process.port import PgdataRefusedError
from compute_node.actors.postgres_process.run_folders import (
    link_shared_memory,
    make_private,
    remove_private,
    unlink_shared_memory,
)
from compute_node.messages.lifecycle import EXIT_LOCKED
from compute_node.messages.secret import Secret
from compute_node.messages.settings import SourceName
from compute_node.messages.spec import (
    Audit,
    Cluster,
    ComputeSpec,
    GenericOption,
    LocalProxySpec,
    RemoteExtSpec,
    StaticMode,
)
from compute_node.postgres.accounts import Account
from compute_node.postgres.conf import ConfContext, ConfText, Listening, render

from doubles.specs import a_spec

PORT = 5555
ID = "0123456789abcdef0123456789abcdef"

# --- Fields whose feature is not there -------------------------------------------------------------------

GIVEN: dict[str, dict[str, Any]] = {
    "audit_log_level": {"audit_log_level": Audit.FULL},
    "local_proxy_config": {"local_proxy_config": LocalProxySpec()},
    "features: tls_experimental": {"features": ("tls_experimental",)},
    "remote_extensions": {"remote_extensions": RemoteExtSpec(library_index={}, extension_data={})},
    "pgbouncer_settings": {"pgbouncer_settings": {"a": "b"}},
    "logs_export_host": {"logs_export_host": "h:1"},
}


def test_every_row_of_the_table_is_tried_here() -> None:
    assert set(GIVEN) == {entry.field for entry in NOT_BUILT}


@pytest.mark.parametrize("entry", NOT_BUILT, ids=lambda entry: entry.field)
def test_a_field_that_has_no_effect_is_named(entry: fields.NotBuilt) -> None:
    error, warnings = fields.not_built(a_spec(**GIVEN[entry.field]))
    if entry.refuse:
        assert error is not None
        assert f"`{entry.field}`" in error
        assert entry.why in error
        assert warnings == ()
    else:
        assert error is None
        assert warnings == (f"the spec's `{entry.field}` has no effect in this version: {entry.why}",)


@pytest.mark.parametrize(
    ("swap", "quota", "named"),
    [
        (True, True, []),
        (False, True, ["swap"]),
        (True, False, ["disk_quota"]),
        (False, False, ["swap", "disk_quota"]),
    ],
)
def test_swap_and_quota_that_nobody_sets_are_named_with_their_flags(
    named: list[str], *, swap: bool, quota: bool
) -> None:
    spec = a_spec(swap_size_bytes=0, disk_quota_bytes=0)
    warnings = fields.unused_resources(spec, swap=swap, quota=quota)

    assert len(warnings) == len(named)
    assert all(name in warning for name, warning in zip(named, warnings, strict=True))
    assert fields.unused_resources(a_spec(), swap=False, quota=False) == ()


def test_what_could_lose_data_access_control_or_audit_is_refused() -> None:
    assert {entry.field for entry in NOT_BUILT if entry.refuse} == {
        "audit_log_level",
        "local_proxy_config",
    }


def test_an_ordinary_spec_has_neither() -> None:
    assert fields.not_built(a_spec()) == (None, ())


@pytest.mark.parametrize("level", Audit)
def test_levels_of_audit_whose_records_nobody_would_send_on_are_refused(level: Audit) -> None:
    error, _ = fields.not_built(a_spec(audit_log_level=level))
    assert (error is None) is (level in {Audit.DISABLED, Audit.LOG, Audit.BASE})


@pytest.mark.parametrize("mode", ["Replica", StaticMode("0/1")])
def test_a_read_only_node_of_an_empty_cluster_is_refused_by_name(mode: Any) -> None:
    problem = fields.local_problem(a_spec(mode=mode))
    assert problem is not None
    assert "makes an empty cluster" in problem
    assert fields.local_problem(a_spec()) is None


def test_storage_that_will_not_be_used_is_named() -> None:
    assert fields.unused_storage(a_spec()) == ()
    followed = a_spec(upstream_conninfo=Secret("host=h"), upstream_slot_name="s")
    assert fields.unused_upstream(followed, SourceName.UPSTREAM) == ()
    assert fields.unused_upstream(a_spec(), SourceName.INITDB) == ()
    said = fields.unused_upstream(followed, SourceName.PAGESERVER)
    assert [warning.split("`")[1] for warning in said] == ["upstream_conninfo", "upstream_slot_name"]
    assert "this node's is `pageserver`" in said[0]
    (warning,) = fields.unused_storage(
        a_spec(pageserver_connstring=Secret("postgresql://canary"), safekeeper_connstrings=("a:1",))
    )
    assert "`pageserver_connstring`, `safekeeper_connstrings` of the spec is not used" in warning
    assert "canary" not in warning


# --- Storage of Neon -------------------------------------------------------------------------------------


def stored(**changes: Any) -> ComputeSpec:
    fields: dict[str, Any] = {
        "pageserver_connstring": Secret("postgresql://ps"),
        "safekeeper_connstrings": ("a:1", "b:1", "c:1"),
        "tenant_id": ID,
        "timeline_id": ID,
    }
    return a_spec(**(fields | changes))


def with_settings(spec: ComputeSpec, **values: str) -> ComputeSpec:
    options = tuple(GenericOption(f"neon.{name}", "string", value) for name, value in values.items())
    return msgspec.structs.replace(spec, cluster=Cluster(roles=(), databases=(), settings=options))


STORAGE = {
    "complete": (stored(), None),
    "no pageserver": (stored(pageserver_connstring=None), "pageserver connstr should be provided"),
    "pageserver in a setting": (
        with_settings(stored(pageserver_connstring=None), pageserver_connstring="x"),
        None,
    ),
    "no safekeepers": (stored(safekeeper_connstrings=()), "safekeeper connstrings should be provided"),
    "no safekeepers, replica": (stored(safekeeper_connstrings=(), mode="Replica"), None),
    "safekeepers in a setting": (
        with_settings(stored(safekeeper_connstrings=()), safekeepers="a:1,b:1"),
        None,
    ),
    "empty safekeepers in a setting": (
        with_settings(stored(safekeeper_connstrings=()), safekeepers=""),
        "safekeeper_connstrings is empty",
    ),
    "no tenant": (stored(tenant_id=None), "tenant id should be provided"),
    "a bad tenant in a setting": (with_settings(stored(tenant_id=None), tenant_id="x"), "invalid tenant id"),
    "no timeline": (stored(timeline_id=None), "timeline id should be provided"),
    "a bad timeline in a setting": (
        with_settings(stored(timeline_id=None), timeline_id="x"),
        "invalid timeline id",
    ),
    "a safekeeper twice": (
        stored(safekeeper_connstrings=("b:1", "a:1", "b:1")),
        "duplicate entry in safekeeper_connstrings: b:1!",
    ),
    "a safekeeper twice in a setting": (
        with_settings(stored(safekeeper_connstrings=()), safekeepers="a:1,b:1,c:1,a:1"),
        "duplicate entry in safekeeper_connstrings: a:1!",
    ),
    "the first failure is the one reported": (
        stored(pageserver_connstring=None, tenant_id=None),
        "pageserver connstr should be provided",
    ),
}


@pytest.mark.parametrize("case", STORAGE)
def test_storage_is_validated_as_the_counterpart_does(case: str) -> None:
    spec, problem = STORAGE[case]
    assert fields.storage_problem(spec) == problem


# --- What `postgres -C` does not see ---------------------------------------------------------------------


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    folder = tmp_path / "lib"
    (folder / "plugins").mkdir(parents=True)
    for name in ("auto_explain.so", "pg_stat_statements.so", "plugins/plug.so"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("megabytes", "conf", "warned"),
    [
        (64, "", True),
        (65, "", False),
        (64, "dynamic_shared_memory_type = mmap", True),
        (64, "dynamic_shared_memory_type = sysv", False),
    ],
)
def test_a_small_place_for_shared_memory_is_warned_about_with_the_remedy(
    megabytes: int, conf: str, tmp_path: Path, *, warned: bool
) -> None:
    warning = checking.scarce_shared_memory(conf_of(conf), around(tmp_path), megabytes << 20)
    assert (warning is not None) is warned
    assert warning is None or ("has 64 MB" in warning and "--shm-size" in warning)
    assert checking.scarce_shared_memory(conf_of(conf), around(tmp_path), None) is None


def conf_of(text: str) -> ConfText:
    spec = a_spec(cluster=Cluster(roles=(), databases=(), postgresql_conf=text))
    return render(spec, ConfContext(3081, "neon_superuser", Listening(PORT, "/tmp/sockets")))


def around(tmp_path: Path, **changes: Any) -> Surroundings:
    fields: dict[str, Any] = {
        "host": "localhost",
        "port": PORT,
        "major": 17,
        "pgdata": str(tmp_path / "pgdata"),
        "socket_folder": "/tmp/sockets",
        "account": None,
        "library_folder": str(tmp_path / "lib"),
    }
    return Surroundings(**(fields | changes))


FINE = {
    "nothing": "",
    "the same port": f"port = {PORT}",
    "libraries": "shared_preload_libraries = 'auto_explain, pg_stat_statements'",
    "a library with its folder": "shared_preload_libraries = '$libdir/auto_explain.so'",
    "a plugin": "local_preload_libraries = 'plug'",
    "no libraries": "shared_preload_libraries = ''",
    "minimal WAL": "wal_level = minimal\nmax_wal_senders = 0",
    "a few connections": "max_connections = 5",
    "TLS off": "ssl = off\nssl_cert_file = '/nowhere'",
    "every address": "listen_addresses = '*'",
    "among others": "listen_addresses = '10.0.0.1, 127.0.0.1'",
    "an abstract socket": "unix_socket_directories = '@x'",
    "no socket": "unix_socket_directories = ''",
    "overridden later": "max_connections = 2\nmax_connections = 50",
}


@pytest.mark.parametrize("case", FINE)
def test_a_good_configuration_has_no_problems(case: str, tmp_path: Path, libraries: Path) -> None:
    assert checking.problems(conf_of(FINE[case]), around(tmp_path)) == ()


FATAL = {
    "another port": ("port = 6000", ["`port`", "6000", str(PORT)]),
    "another data directory": ("data_directory = '/x'", ["`data_directory`", "-D alone"]),
    "out of our reach": ("listen_addresses = '10.0.0.1'", ["`listen_addresses`", "localhost"]),
    "nowhere": ("listen_addresses = ''", ["`listen_addresses`"]),
    "no such library": (
        "shared_preload_libraries = 'auto_explain,neon'",
        ["`shared_preload_libraries`", "'neon'", "line 1 of cluster.postgresql_conf"],
    ),
    "no such session library": ("session_preload_libraries = 'x'", ["`session_preload_libraries`", "'x'"]),
    "no plugin": ("local_preload_libraries = 'auto_explain'", ["`local_preload_libraries`"]),
    "a broken list": ("shared_preload_libraries = 'a,,b'", ["`shared_preload_libraries`", "not a list"]),
    "another place for libraries": (
        "dynamic_library_path = '/nowhere'\nshared_preload_libraries = auto_explain",
        ["'auto_explain'"],
    ),
    "minimal WAL with senders": ("wal_level = minimal", ["`wal_level`", "max_wal_senders = 0"]),
    "minimal WAL with archiving": (
        "wal_level = MINIMAL\nmax_wal_senders = 0\narchive_mode = always",
        ["archive_mode"],
    ),
    "minimal WAL with summaries": (
        "wal_level = minimal\nmax_wal_senders = 0\nsummarize_wal = on",
        ["summarize_wal"],
    ),
    "too few connections": ("max_connections = 3", ["`max_connections`", "(3)", "reserved"]),
    "all reserved": (
        "max_connections = 10\nsuperuser_reserved_connections = 4\nreserved_connections = 6",
        ["(10)", "reserved_connections 6"],
    ),
    "TLS without a certificate": ("ssl = on", ["`ssl_cert_file`", "server.crt", "`ssl_key_file`"]),
    "no such hba file": ("hba_file = '/nowhere/hba'", ["`hba_file`", "/nowhere/hba"]),
    "no such socket folder": ("unix_socket_directories = '/nowhere'", ["`unix_socket_directories`"]),
    "too long a socket folder": (
        f"unix_socket_directories = '/{'x' * 108}'",
        ["`unix_socket_directories`", "107"],
    ),
}


@pytest.mark.parametrize("case", FATAL)
def test_what_would_be_fatal_is_told_with_the_setting_and_its_origin(
    case: str, tmp_path: Path, libraries: Path
) -> None:
    text, words = FATAL[case]
    said = "; ".join(checking.problems(conf_of(text), around(tmp_path)))
    for word in words:
        assert word in said


def test_reserved_connections_count_only_where_there_are_some(tmp_path: Path) -> None:
    conf = conf_of("max_connections = 10\nreserved_connections = 9")
    assert checking.problems(conf, around(tmp_path, major=17)) != ()
    assert checking.problems(conf, around(tmp_path, major=15)) == ()


def test_an_address_that_this_node_does_not_use_need_not_be_the_loopback(tmp_path: Path) -> None:
    conf = conf_of("listen_addresses = '10.0.0.1'")
    assert checking.problems(conf, around(tmp_path, host="10.0.0.1")) == ()


def test_unknown_library_folders_are_no_reason_to_refuse(tmp_path: Path) -> None:
    conf = conf_of("shared_preload_libraries = 'whatever'")
    assert checking.problems(conf, around(tmp_path, library_folder=None)) == ()


def test_a_private_key_is_judged_as_postgres_does(tmp_path: Path) -> None:
    pgdata = tmp_path / "pgdata"
    pgdata.mkdir()
    (pgdata / "server.crt").touch()
    key = pgdata / "server.key"
    key.touch()
    conf = conf_of("ssl = on")
    key.chmod(0o600)
    assert checking.problems(conf, around(tmp_path)) == ()
    key.chmod(0o644)
    (problem,) = checking.problems(conf, around(tmp_path))
    assert "server.key is open to others (mode 0644)" in problem
    stranger = Account("stranger", 4242, 4242)
    key.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(key, 4343, -1)
    (problem,) = checking.problems(conf, around(tmp_path, account=stranger))
    assert "must belong to stranger or root" in problem


def test_alter_system_counts_is_named_and_overrides_are_told(tmp_path: Path, libraries: Path) -> None:
    conf = conf_of("work_mem = 4MB\nmax_connections = 50")
    spoiled = around(
        tmp_path, auto_conf="# Do not edit\nshared_preload_libraries = 'bad'\nwork_mem = '8MB'\n"
    )
    (problem,) = checking.problems(conf, spoiled)
    assert "line 2 of postgresql.auto.conf (ALTER SYSTEM wrote it)" in problem
    assert "'bad'" in problem
    (warning,) = checking.overridden(conf, spoiled)
    assert "`work_mem` to '8MB', which overrides '4MB'" in warning
    secret = around(tmp_path, auto_conf="primary_conninfo = 'password=canary'\n")
    (warning,) = checking.overridden(conf_of("primary_conninfo = 'host=h password=canary2'"), secret)
    assert "`primary_conninfo`" in warning
    assert "canary" not in warning
    same = around(tmp_path, auto_conf="max_connections = '50'\n")
    assert checking.overridden(conf, same) == ()


def test_a_safekeeper_that_is_named_twice_is_told_without_its_password() -> None:
    safekeepers = ("postgresql://u:canary@sk:1",) * 2
    spec = a_spec(
        pageserver_connstring=Secret("p"),
        tenant_id="0" * 32,
        timeline_id="1" * 32,
        safekeeper_connstrings=safekeepers,
    )
    problem = fields.storage_problem(spec) or ""
    assert "duplicate entry in safekeeper_connstrings" in problem
    assert "canary" not in problem


def test_of_the_lines_of_alter_system_only_those_go_that_do_not_fit() -> None:
    auto_conf = (
        "# Do not edit\ngood = '1'\nbad = '2'\nneeds_later = 'x'\n\nlater = 'y'\nnot a setting at all\n"
    )

    def refuses(text: str) -> str | None:
        if "bad" in text or "at all" in text:
            return "no"
        return "too early" if "needs_later" in text and "later = 'y'" not in text else None

    assert checking.without_refused(auto_conf, refuses) == (
        "# Do not edit\ngood = '1'\n\nneeds_later = 'x'\n\nlater = 'y'\n\n",
        (checking.Refusal(3, "bad", "no"), checking.Refusal(7, "not a setting", "no")),
    )
    assert checking.without_refused("", refuses) == ("", ())
    assert checking.without_refused("a = 1\n", lambda _: None) == ("a = 1\n", ())


# --- What `postgres -C` says -----------------------------------------------------------------------------


def test_line_numbers_become_origins_and_the_closing_remark_goes() -> None:
    conf = conf_of("work_mem = 4MB\nnonsense = 1")
    line = conf.text.split("\n").index("nonsense = 1") + 1
    output = (
        "2026-11-22 23:13:01.123 GMT [7] LOG:  unrecognized configuration parameter "
        f'"nonsense" in file "/tmp/x/postgresql.conf" line {line}\n'
        '2026-11-22 23:13:01.123 GMT [7] LOG:  invalid value for parameter "max_connections": "abc"\n'
        '2026-11-22 23:13:01.123 GMT [7] FATAL:  configuration file "/tmp/x/postgresql.conf" contains errors\n'
    )
    said = checking.explain(output, conf, "/tmp/x", "/pg")
    assert said == (
        'Postgres refuses the configuration: unrecognized configuration parameter "nonsense" in setting '
        '`nonsense`, line 2 of cluster.postgresql_conf; invalid value for parameter "max_connections": "abc"'
    )


def test_whatever_else_postgres_says_is_told_too_and_long_lists_are_cut() -> None:
    conf = conf_of("")
    assert checking.explain("no such library\n", conf, "/tmp/x", "/pg").endswith(": no such library")
    assert checking.explain("", conf, "/tmp/x", "/pg").endswith(": nothing")
    many = "".join(f"LOG:  problem {number}\n" for number in range(20))
    assert checking.explain(many, conf, "/tmp/x", "/pg").endswith("problem 7 (and 12 more)")
    auto = 'LOG:  syntax error in file "/tmp/x/postgresql.auto.conf" line 3, near token "x"'
    assert "/pg/postgresql.auto.conf" in checking.explain(auto, conf, "/tmp/x", "/pg")


# --- The lock --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_mount", [False, True])
def test_a_folder_has_one_holder_at_a_time(tmp_path: Path, *, is_mount: bool) -> None:
    paths = Paths(str(tmp_path / "pgdata"), is_mount=is_mount)
    if is_mount:
        (tmp_path / "pgdata").mkdir()
    first, second = FolderLock(), FolderLock(patience_s=0.05)
    first.take(paths, "me", Cancellation())
    first.take(paths, "me", Cancellation())  # the second time does nothing
    with pytest.raises(PgdataRefusedError, match="another node holds the lock") as refused:
        second.take(paths, "you", Cancellation())
    assert refused.value.exit_code == EXIT_LOCKED
    assert is_mount or "me" in str(refused.value)
    assert not second.held
    first.release()
    second.take(paths, "you", Cancellation())
    second.release()
    if is_mount:
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["pgdata"], "nothing was written"


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "pgdata"), is_mount=False)
    first, second = FolderLock(), FolderLock(patience_s=3600)
    first.take(paths, "me", Cancellation())
    waiting = threading.Thread(target=second.take, args=(paths, "you", Cancellation()))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    first.release()
    waiting.join(30)
    assert second.held
    second.release()


def test_a_lock_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "missing" / "pgdata"), is_mount=False)
    with pytest.raises(PgdataRefusedError, match=r"missing/pgdata.lock cannot be opened"):
        FolderLock().take(paths, "me", Cancellation())


# --- The folders of a run --------------------------------------------------------------------------------


def test_shared_memory_is_linked_to_a_private_folder_and_taken_back(tmp_path: Path) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    for name in ("one", "two"):
        (tmp_path / name / "pg_dynshmem" / "left").mkdir(parents=True)  # D27: it need not be empty
    targets = [
        link_shared_memory(str(tmp_path / name), None, shared_memory=str(shared)) for name in ("one", "two")
    ]
    assert len(set(targets)) == 2
    for name, target in zip(("one", "two"), targets, strict=True):
        assert target is not None
        link = tmp_path / name / "pg_dynshmem"
        assert link.is_symlink()
        assert str(link.readlink()) == target
        assert Path(target).stat().st_mode & 0o777 == 0o700
        (Path(target) / "segment").touch()
        again = link_shared_memory(str(tmp_path / name), None, shared_memory=str(shared))
        assert again == target, "after a crash the same folder is used, and is empty"
        assert list(Path(target).iterdir()) == []
        unlink_shared_memory(str(tmp_path / name), target, None)
        assert link.is_dir()
        assert not link.is_symlink()
    assert list(shared.iterdir()) == []


def test_without_shared_memory_the_folder_is_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "pg_dynshmem").mkdir()
    assert link_shared_memory(str(tmp_path), None, shared_memory=str(tmp_path / "missing")) is None
    assert (tmp_path / "pg_dynshmem").is_dir()


def test_a_private_folder_in_a_strangers_hands_is_not_used(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.symlink_to(tmp_path)
    with pytest.raises(Exception, match="is in the way and belongs to somebody else"):
        make_private(str(taken), None)
    remove_private(str(taken), None)
    assert taken.is_symlink()
    mine = tmp_path / "mine"
    make_private(str(mine), None)
    make_private(str(mine), None)
    (mine / "x").touch()
    remove_private(str(mine), None)
    assert not mine.exists()

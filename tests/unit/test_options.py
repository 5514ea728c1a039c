"""The drop-in command line: every flag of the counterpart, its validation, and what is not built yet."""

import os
from collections.abc import Sequence

import pytest
from compute_node.cli.options import Options, parse
from compute_node.messages.failpoints import Action, Arming, Deed, Failpoint
from compute_node.messages.secret import Secret
from compute_node.messages.settings import Address, SourceName

MINIMAL = (
    "-D",
    "pg",
    "-C",
    "postgresql://cloud_admin@localhost:55432/postgres",
    "-i",
    "node",
    "-c",
    "config.json",
)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTGRES_PATH", raising=False)
    monkeypatch.delenv("AUTOSCALING", raising=False)
    monkeypatch.delenv("FAILPOINTS", raising=False)


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Parse what must be refused with status 2; return what was said."""
    with pytest.raises(SystemExit) as exit_info:
        parse(arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def without(flag: str) -> tuple[str, ...]:
    at = MINIMAL.index(flag)
    return MINIMAL[:at] + MINIMAL[at + 2 :]


def test_the_defaults_are_the_counterparts() -> None:
    options = parse(MINIMAL)
    assert (options.external_http_port, options.internal_http_port) == (3080, 3081)
    assert (options.privileged_role_name, options.source, options.dev) == (
        "neon_superuser",
        SourceName.PAGESERVER,
        False,
    )
    assert (options.pgbin, options.warnings) == (None, ())


def test_every_flag_of_the_counterpart_is_taken_in_its_long_form() -> None:
    options = parse(
        [
            "--pgbin",
            "/pg/bin/postgres",
            "--remote-ext-base-url",
            "https://example.com//",
            "--external-http-port",
            "1",
            "--internal-http-port",
            "2",
            "--pgdata",
            "d",
            "--connstr",
            "postgresql://a@b/c",
            "--privileged-role-name",
            "some_role",
            "--cgroup",
            "c",
            "--filecache-connstr",
            "host=x",
            "--vm-monitor-addr",
            "10.0.0.1:1",
            "--resize-swap-on-bind",
            "--set-disk-quota-for-fs",
            "/mnt",
            "--config",
            "f",
            "--compute-id",
            "i",
            "--installed-extensions-collection-interval",
            "5",
            "--dev",
        ]
    )
    assert (options.pgbin, options.external_http_port, options.internal_http_port) == (
        "/pg/bin/postgres",
        1,
        2,
    )
    assert (options.pgdata, options.privileged_role_name, options.config) == ("d", "some_role", "f")
    assert options.installed_extensions_collection_interval == 5
    assert (options.cgroup, options.vm_monitor_addr) == ("c", Address("10.0.0.1", 1))
    assert options.filecache_connstr == Secret("host=x")
    assert (options.resize_swap_on_bind, options.set_disk_quota_for_fs) == (True, "/mnt")


@pytest.mark.parametrize("flag", ["-D", "-C", "-i"])
def test_a_missing_mandatory_flag_is_a_usage_error(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert flag in refused(without(flag), capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ("postgresql://u:canary@h/db",),
        ("--connstring", "postgresql://u:canary@h/db"),
        ("--filecache=host=h password=canary",),
        ("-r", "//u:canary@h"),
        ("-r", "http://[u:canary@h"),
        ("-C", "mysql://u:canary@h/db"),
    ],
)
def test_a_usage_error_does_not_repeat_a_password(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "canary" not in refused((*MINIMAL, *arguments), capsys)


@pytest.mark.parametrize(
    ("connection", "why"),
    [
        ("host=h port=x password=canary", "its port must be a number from 1 to 65535"),
        ("host=h sslmode=require password=canary", "own connections use no TLS"),
        ("port=5432 password=canary", "it names no host"),
        ("h canary", "it is neither a URL nor a list"),
        ("postgresql://u:canary@h/db#x", "a `#` in it must be written %23"),
        ("", "it names no host"),
    ],
)
def test_a_connection_to_the_file_cache_that_cannot_be_is_a_usage_error_without_its_password(
    connection: str, why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOSCALING", "")
    said = refused((*MINIMAL, f"--filecache-connstr={connection}"), capsys)
    assert "--filecache-connstr" in said
    assert why in said
    assert "canary" not in said


def test_options_do_not_show_the_password_of_their_url() -> None:
    assert "canary" not in repr(parse((*without("-C"), "-C", "postgresql://u:canary@h/db")))


def test_neither_config_nor_control_plane_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "where does the spec come from" in refused(without("-c"), capsys)


def test_both_config_and_control_plane_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "exclude each other" in refused((*MINIMAL, "-p", "http://cplane"), capsys)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "ftp://host",
        "http://",
        "http://host:x",
        "http://u:canary@host",
        "http://h/?a=1",
        "http://h h",
    ],
)
def test_a_control_plane_is_an_url_to_which_a_path_can_be_added(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused([*without("-c"), "-p", url], capsys)
    assert "-p/--control-plane-uri" in said
    assert "canary" not in said


def test_the_control_plane_is_asked_with_the_token_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEON_CONTROL_PLANE_TOKEN", "canary")
    options = parse([*without("-c"), "-p", "https://cplane:8000/a/"])
    assert (options.config, options.control_plane_uri) == (None, "https://cplane:8000/a/")
    assert options.control_plane_token.reveal() == "canary"
    assert "canary" not in repr(options)


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("-C", "host=localhost dbname=postgres", "cannot parse connstr as a URL"),
        ("-C", "mysql://a@b/c", "cannot build postgres config from connstr"),
        ("--privileged-role-name", "Neon", "can only contain lowercase letters and underscores"),
        ("--privileged-role-name", "", "can only contain lowercase letters and underscores"),
        ("--external-http-port", "65536", "65535"),
        ("--external-http-port", "x", "65535"),
        ("--installed-extensions-collection-interval", "-1", "whole number"),
        ("-r", "https://example.com/?a=b", "parameters detected in remote extensions base URL"),
        ("-r", "not a url", "is not a URL"),
        ("-i", "", "must not be empty"),
        ("--stop-timeout", "0", "seconds"),
        ("--source", "tape", "tape"),
        ("--vm-monitor-addr", "10301", "is not an address such as 0.0.0.0:10301"),
        ("--vm-monitor-addr", ":10301", "is not an address"),
        ("--vm-monitor-addr", "0.0.0.0:65536", "65535"),
        ("--cgroup", "../other", "is not the name of a cgroup"),
        ("--cgroup", "a/./b", "is not the name of a cgroup"),
        ("--unknown", "x", "--unknown"),
    ],
)
def test_a_bad_value_is_a_usage_error_that_names_it(
    flag: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused((*MINIMAL, flag, value), capsys)


def test_a_flag_is_not_guessed_from_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--external" in refused((*MINIMAL, "--external", "1"), capsys)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--remote-ext-base-url", "https://example.com"),
    ],
)
def test_a_flag_whose_feature_is_not_built_is_warned_about_by_name(flag: str, value: str | None) -> None:
    warnings = parse((*MINIMAL, flag, *(() if value is None else (value,)))).warnings
    assert len(warnings) == 1
    assert flag in warnings[0]


@pytest.mark.parametrize("value", ["", "0", "true"])
def test_autoscaling_is_turned_on_by_its_variable_whatever_the_value(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOSCALING", value)
    options = parse((*MINIMAL, "--vm-monitor-addr", "[::1]:10302", "--cgroup", ""))

    assert options.warnings == ()
    assert options.autoscaling
    assert options.cgroup == ""
    assert options.vm_monitor_addr == Address("::1", 10302)
    assert str(options.vm_monitor_addr) == "[::1]:10302"


def test_without_autoscaling_its_flags_have_no_effect_and_are_named() -> None:
    assert not parse(MINIMAL).autoscaling
    assert parse(MINIMAL).cgroup == "neon-postgres"
    assert str(parse(MINIMAL).vm_monitor_addr) == "0.0.0.0:10301"
    for flag, value in (("--cgroup", "x"), ("--filecache-connstr", "host=x"), ("--vm-monitor-addr", "a:1")):
        (warning,) = parse((*MINIMAL, flag, value)).warnings
        assert warning.startswith(f"{flag} has no effect: the variable AUTOSCALING is not set")


def test_failpoints_are_taken_out_of_the_environment_and_work_only_with_dev(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    armed = Arming(Failpoint.LAUNCHED, (Action(Deed.PAUSE),))
    for flags, failpoints, warnings in (
        (("--dev",), (armed,), ()),
        ((), (), ("FAILPOINTS has no effect: failpoints work only with --dev",)),
    ):
        monkeypatch.setenv("FAILPOINTS", "launched=pause")
        options = parse([*MINIMAL, *flags])
        assert (options.failpoints, options.warnings) == (failpoints, warnings)
        assert "FAILPOINTS" not in os.environ


def test_failpoints_that_nobody_understands_are_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILPOINTS", "no-such-step=pause")
    assert "FAILPOINTS: there is no failpoint `no-such-step`" in refused([*MINIMAL, "--dev"], capsys)


def test_the_environment_gives_the_postgres_program_and_the_flag_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POSTGRES_PATH", "/env/postgres")
    assert parse(MINIMAL).pgbin == "/env/postgres"
    assert parse((*MINIMAL, "-b", "/flag/postgres")).pgbin == "/flag/postgres"


def test_a_bare_spec_file_is_taken_instead_of_a_config() -> None:
    options: Options = parse((*without("-c"), "-S", "spec.json"))
    assert (options.spec, options.config) == ("spec.json", None)


def test_a_bare_spec_and_a_config_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert "exclude each other" in refused((*MINIMAL, "-S", "spec.json"), capsys)


def test_the_two_servers_do_not_share_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused((*MINIMAL, "--external-http-port", "3081"), capsys)
    assert "both 3081" in said


def test_a_folder_is_not_both_claimed_and_set_aside(capsys: pytest.CaptureFixture[str]) -> None:
    assert "exclude each other" in refused((*MINIMAL, "--claim-pgdata", "--set-aside-pgdata"), capsys)

"""Secrets in the words of Postgres, and in what a person typed."""

import pytest
from compute_node.messages.secret import MASK, is_secret_setting, mask_credentials
from compute_node.messages.spec import ComputeSpec
from compute_node.postgres.conf import ConfContext, ConfText, render
from compute_node.postgres.masking import mask_server_words

from doubles import canaries
from doubles.canaries import canary, leak
from doubles.specs import a_spec


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://u:pw@h:5432/db", f"postgresql://u:{MASK}@h:5432/db"),
        ("postgresql://u:p:w@x@h/db", f"postgresql://u:{MASK}@h/db"),
        ("http://:pw@h", f"http://:{MASK}@h"),
        ("host=h password=pw user=u", f"host=h password={MASK} user=u"),
        ("password = 'two \\' words' user=u", f"password = {MASK} user=u"),
        ("AWS_SECRET_ACCESS_KEY=pw cp %p", f"AWS_SECRET_ACCESS_KEY={MASK} cp %p"),
        ("--filecache-connstr=host=h PASSWORD=pw", f"--filecache-connstr=host=h PASSWORD={MASK}"),
        ('TOKEN="p w" x', f"TOKEN={MASK} x"),
        ("postgresql://u@h:5432/db", "postgresql://u@h:5432/db"),
        ("http://127.0.0.1:3080/status", "http://127.0.0.1:3080/status"),
        ("no password here", "no password here"),
    ],
)
def test_passwords_are_masked_and_all_else_stays(text: str, masked: str) -> None:
    assert mask_credentials(text) == masked


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        (
            'LOG:  parameter "primary_conninfo" changed to "host=h password=pw"',
            f'LOG:  parameter "primary_conninfo" changed to "{MASK}"',
        ),
        (
            'LOG:  invalid value for parameter "neon.console_token": "a "quoted" pw"',
            f'LOG:  invalid value for parameter "neon.console_token": "{MASK}"',
        ),
        (
            'LOG:  parameter "archive_command" changed to "TOKEN=pw cp %p /x"',
            f'LOG:  parameter "archive_command" changed to "TOKEN={MASK} cp %p /x"',
        ),
        (
            "DETAIL:  The failed archive command was: AWS_SECRET_ACCESS_KEY=pw cp pg_wal/1 /x",
            f"DETAIL:  The failed archive command was: AWS_SECRET_ACCESS_KEY={MASK} cp pg_wal/1 /x",
        ),
        ('WARNING:  command "echo pw" failed', f'WARNING:  command "{MASK}" failed'),
        (
            'ERROR:  invalid connection string syntax: missing "=" after "pw" in connection info string',
            f'ERROR:  invalid connection string syntax: missing "=" after "{MASK}" in connection info string',
        ),
        ('LOG:  parameter "work_mem" changed to "4MB"', 'LOG:  parameter "work_mem" changed to "4MB"'),
        ("STATEMENT:  SELECT 'password=pw'", "STATEMENT:  SELECT 'password=pw'"),
    ],
)
def test_what_postgres_repeats_of_settings_is_masked_and_other_messages_stay(
    message: str, masked: str
) -> None:
    assert mask_server_words(message) == masked


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece", ["a", "key", "://a:", "key=", 'parameter "a": "', 'command "', "password = '"]
)
def test_no_text_takes_long(piece: str) -> None:
    mask_server_words("command" + piece * (65_536 // len(piece)))


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("primary_conninfo", True),
        ("neon.pageserver_connstring", True),
        ("neon.Console_Token", True),
        ("ssl_passphrase_command", True),
        ("pg_failover_slots.primary_dsn", True),
        ("password_encryption", False),
        ("work_mem", False),
    ],
)
def test_secret_settings_are_known_by_their_names(name: str, secret: bool) -> None:  # noqa: FBT001 - a table
    assert is_secret_setting(name) is secret


def conf_with(line: str) -> ConfText:
    cluster = a_spec().cluster
    spec: ComputeSpec = a_spec(cluster=type(cluster)(roles=(), databases=(), postgresql_conf=line))
    return render(spec, ConfContext(internal_http_port=1, privileged_role_name="p"))


@pytest.mark.parametrize(
    "line",
    [
        f"primary_conninfo = host=h password={canary('x')}",
        f"neon.console_token = {canary('x')} oops",
        f"archive_command = TOKEN={canary('x')}",
    ],
    ids=["conninfo", "token", "command"],  # not the canary, which differs from process to process
)
def test_a_syntax_error_in_a_line_with_a_secret_names_the_line_and_not_the_token(line: str) -> None:
    said = f'LOG:  syntax error in file "/c/postgresql.conf" line 1, near token "{canary("x")}"'
    told = conf_with(line).explain(said, "/c/postgresql.conf")
    assert leak(told) is None
    assert "line 1 of cluster.postgresql_conf" in told


def test_a_syntax_error_elsewhere_names_its_token() -> None:
    said = 'syntax error in file "/c/postgresql.conf" line 1, near token "much"'
    assert 'near token "much"' in conf_with("work_mem = 4 much").explain(said, "/c/postgresql.conf")


def test_a_canary_is_found_in_every_form() -> None:
    import base64

    secret = canary("place").encode()
    for shift in range(3):
        assert leak(base64.b64encode(b"x" * shift + secret)) is not None
        assert leak(base64.urlsafe_b64encode(b"x" * shift + secret)) is not None
    assert leak(secret.hex()) is not None
    assert leak(secret.upper()) is not None
    assert leak(canaries.md5_digest()) is not None
    assert leak(canaries.scram_verifier()) is not None
    assert leak("ca4a41 is not a marker") is None

"""The command for people: what it prints, and its exit status."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from click.testing import CliRunner, Result
from compute_node.cli.compute_node import main
from compute_node.messages.spec import config_decoder

from doubles.api_server import ApiServer, api_server

RUNNING = {
    "start_time": "2025-07-17T12:00:00Z",
    "tenant": None,
    "timeline": None,
    "status": "running",
    "last_active": None,
    "error": None,
}
READY: dict[str, Any] = {"ready": True, "conditions": []}
NOT_READY = {"ready": False, "conditions": [{"condition": "postgres_frozen", "detail": "for 2 s"}]}
SPEC = {"format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": {"roles": [], "databases": []}}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"COMPUTE_NODE_{name}", raising=False)


@pytest.fixture
def node() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


def run(*arguments: str | Path, **extra: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **extra)


# --- status ------------------------------------------------------------------------------------------------


def test_status_shows_a_table_and_succeeds_when_ready(node: ApiServer) -> None:
    node.answers = {"GET /status": (200, RUNNING), "GET /ready": (200, READY)}
    result = run("status", "--url", node.url)
    assert result.exit_code == 0
    assert "status" in result.stdout
    assert "running" in result.stdout
    assert "ready        yes" in result.stdout


def test_status_says_what_keeps_the_node_from_being_ready_and_fails(node: ApiServer) -> None:
    node.answers = {"GET /status": (200, RUNNING), "GET /ready": (503, NOT_READY)}
    result = run("status", "--url", node.url)
    assert result.exit_code == 1
    assert "no: postgres_frozen (for 2 s)" in result.stdout


def test_status_prints_json_when_asked(node: ApiServer) -> None:
    node.answers = {"GET /status": (200, RUNNING), "GET /ready": (200, READY)}
    result = run("status", "--url", node.url, "--json")
    assert msgspec.json.decode(result.stdout) == RUNNING | {"ready": READY}


def test_the_token_comes_from_a_file_or_the_environment(
    node: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.answers = {"GET /status": (200, RUNNING), "GET /ready": (200, READY)}
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("COMPUTE_NODE_TOKEN", "from-environment")
    run("status", "--url", node.url)
    run("status", "--url", node.url, "--token-file", tmp_path / "token")
    assert [asked[2] for asked in node.asked[::2]] == ["Bearer from-environment", "Bearer from-file"]


def test_the_node_is_found_by_the_environment(node: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    node.answers = {"GET /status": (200, RUNNING), "GET /ready": (200, READY)}
    monkeypatch.setenv("COMPUTE_NODE_URL", node.url)
    assert run("status").exit_code == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "file:///etc/passwd", "foo", "127.0.0.1:3080"])
def test_a_node_that_cannot_be_reached_has_an_exit_status_of_its_own(url: str) -> None:
    result = run("status", "--url", url)
    assert result.exit_code == 4
    assert "--url" in result.stderr


def test_something_else_at_the_address_is_not_a_node(node: ApiServer) -> None:
    node.answers = {"GET /status": (200, None)}
    node.answers["GET /ready"] = (404, None)
    assert run("status", "--url", node.url).exit_code == 1


@pytest.mark.parametrize(
    ("status", "error", "hint"),
    [
        (400, "invalid authorization token", "--token-file"),
        (401, "failed to verify authorization token", "expired"),
        (403, "invalid compute ID in authorization token claims", "--admin"),
    ],
)
def test_a_refused_token_is_explained(node: ApiServer, status: int, error: str, hint: str) -> None:
    node.answers = {"GET /status": (status, {"error": error})}
    result = run("status", "--url", node.url)
    assert result.exit_code == 1
    assert error in result.stderr
    assert hint in result.stderr


# --- configure and terminate -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document", [SPEC, {"spec": SPEC}, {"spec": SPEC, "compute_ctl_config": {"jwks": {"keys": []}}}]
)
def test_configure_takes_a_config_or_a_bare_spec(
    node: ApiServer, tmp_path: Path, document: dict[str, Any]
) -> None:
    node.answers = {"POST /configure": (200, RUNNING)}
    file = tmp_path / "spec.json"
    file.write_bytes(msgspec.json.encode(document))
    result = run("configure", file, "--url", node.url)
    assert result.exit_code == 0
    assert msgspec.json.decode(node.asked[0][3]) == {
        "spec": SPEC,
        "compute_ctl_config": {"jwks": {"keys": []}},
    }


def test_configure_reads_standard_input(node: ApiServer) -> None:
    node.answers = {"POST /configure": (200, RUNNING)}
    result = run("configure", "-", "--url", node.url, "--json", input=msgspec.json.encode(SPEC))
    assert msgspec.json.decode(result.stdout) == RUNNING


def test_a_refused_configuration_fails_with_the_reason(node: ApiServer) -> None:
    node.answers = {"POST /configure": (400, {"error": "setting foo: unknown"})}
    result = run("configure", "-", "--url", node.url, input=msgspec.json.encode(SPEC))
    assert result.exit_code == 1
    assert "setting foo: unknown" in result.stderr


def test_what_is_not_json_is_not_sent(node: ApiServer) -> None:
    result = run("configure", "-", "--url", node.url, input=b"{")
    assert result.exit_code == 5
    assert "is not JSON" in result.stderr
    assert node.asked == []


def test_terminate_asks_for_its_mode(node: ApiServer) -> None:
    node.answers = {
        "POST /terminate?mode=fast": (200, {"lsn": None}),
        "POST /terminate?mode=immediate": (200, {"lsn": "0/1"}),
    }
    assert run("terminate", "--mode", "fast", "--url", node.url).stdout == "terminated\n"
    assert "LSN 0/1" in run("terminate", "--url", node.url).stdout


# --- The cache


WARMED = {
    "status": "completed",
    "total": 100,
    "prewarmed": 90,
    "skipped": 10,
    "state_download_time_ms": 1,
    "uncompress_time_ms": 2,
    "prewarm_time_ms": 1500,
}


def test_prewarm_waits_and_tells_how_far_it_has_come(node: ApiServer) -> None:
    warming = {"status": "prewarming", "total": 100, "prewarmed": 40, "skipped": 0}
    node.answers = {
        "POST /lfc/prewarm?from_endpoint=a%2Fb": (202, None),
        "GET /lfc/prewarm": [(200, warming), (200, WARMED)],
    }
    result = run("prewarm", "--from-endpoint", "a/b", "--url", node.url)
    assert result.exit_code == 0, result.output
    assert "40 of 100 blocks" in result.stderr
    assert result.stdout == "completed: 90 of 100 blocks, 10 skipped, in 1.5 s\n"


@pytest.mark.parametrize(
    ("shown", "text", "code"),
    [
        ({"status": "skipped"}, "skipped: there is no saved state\n", 0),
        ({"status": "failed", "error": "no"}, "failed: no\n", 1),
        ({"status": "cancelled"}, "cancelled\n", 1),
    ],
)
def test_prewarm_says_how_it_ended(node: ApiServer, shown: dict[str, Any], text: str, code: int) -> None:
    counts = {"total": 0, "prewarmed": 0, "skipped": 0}
    node.answers = {"POST /lfc/prewarm": (202, None), "GET /lfc/prewarm": (200, counts | shown)}
    result = run("prewarm", "--url", node.url)
    assert (result.stdout, result.exit_code) == (text, code)


def test_prewarm_can_be_begun_only_and_cancelled(node: ApiServer) -> None:
    warming = {"status": "prewarming", "total": 0, "prewarmed": 0, "skipped": 0}
    node.answers = {
        "POST /lfc/prewarm": (202, None),
        "DELETE /lfc/prewarm": (202, None),
        "GET /lfc/prewarm": (200, warming),
    }
    assert run("prewarm", "--no-wait", "--url", node.url).stdout == "prewarming: 0 of 0 blocks\n"
    node.answers["GET /lfc/prewarm"] = [(200, warming), (200, warming | {"status": "cancelled"})]
    result = run("prewarm", "--cancel", "--url", node.url)
    assert (result.stdout, result.exit_code) == ("cancelled\n", 0)
    assert run("prewarm", "--cancel", "--no-wait", "--url", node.url).exit_code == 2


def test_offload_waits_and_says_how_it_ended(node: ApiServer) -> None:
    times = {"state_query_time_ms": 1, "compress_time_ms": 2, "state_upload_time_ms": 30}
    node.answers = {
        "POST /lfc/offload": (202, None),
        "GET /lfc/offload": [(200, {"status": "offloading"}), (200, {"status": "completed"} | times)],
    }
    result = run("offload", "--url", node.url)
    assert (result.stdout, result.exit_code) == ("completed in 0.0 s\n", 0)
    node.answers["GET /lfc/offload"] = (200, {"status": "skipped"})
    assert run("offload", "--url", node.url).stdout == "skipped: nothing is cached\n"
    node.answers["GET /lfc/offload"] = (200, {"status": "skipped", "reason": "install it"})
    result = run("offload", "--url", node.url)
    assert (result.stdout, result.exit_code) == ("skipped: install it\n", 1)
    node.answers["GET /lfc/offload"] = (200, {"status": "failed", "error": "no"})
    assert run("offload", "--url", node.url).exit_code == 1


def test_a_refused_offload_says_why_and_force_is_passed_on(node: ApiServer) -> None:
    node.answers = {
        "POST /lfc/offload": (409, {"error": "the last prewarm failed"}),
        "POST /lfc/offload?force=true": (202, None),
        "GET /lfc/offload": (200, {"status": "completed"}),
    }
    refused = run("offload", "--url", node.url)
    assert refused.exit_code == 1
    assert "the last prewarm failed" in refused.stderr
    assert run("offload", "--force", "--json", "--url", node.url).exit_code == 0


def test_a_wrong_option_is_a_usage_error() -> None:
    assert run("terminate", "--mode", "slow").exit_code == 2


# --- keys and tokens ---------------------------------------------------------------------------------------


def test_keygen_makes_a_private_key_for_its_owner_alone_and_prints_the_public_set(tmp_path: Path) -> None:
    result = run("keygen", tmp_path / "key.pem")
    assert result.exit_code == 0
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    (key,) = msgspec.json.decode(result.stdout)["keys"]
    assert (key["kty"], key["crv"], key["alg"]) == ("OKP", "Ed25519", "EdDSA")
    assert "d" not in key, "the private part"


def test_keygen_puts_the_set_into_a_config_and_keeps_the_rest(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(msgspec.json.encode({"spec": SPEC, "extra": 1}))
    assert run("keygen", tmp_path / "key.pem", "--config", config).exit_code == 0
    read = config_decoder.decode(config.read_bytes())
    assert len(read.compute_ctl_config.jwks.keys) == 1
    assert read.spec is not None
    assert msgspec.json.decode(config.read_bytes())["extra"] == 1


def test_keygen_never_overwrites_a_key(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    run("keygen", key)
    before = key.read_bytes()
    result = run("keygen", key)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert key.read_bytes() == before


def test_a_broken_config_gets_no_key_and_no_key_is_made(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{")
    result = run("keygen", tmp_path / "key.pem", "--config", config)
    assert result.exit_code == 1
    assert config.read_text() == "{"
    assert not (tmp_path / "key.pem").exists()


@pytest.mark.parametrize(
    ("arguments", "claims"),
    [
        (("--compute-id", "node"), {"compute_id": "node"}),
        (("--admin",), {"scope": "compute_ctl:admin", "aud": ["compute"]}),
    ],
)
def test_a_token_is_verified_by_the_key_set(
    tmp_path: Path, arguments: tuple[str, ...], claims: dict[str, Any]
) -> None:
    made = run("keygen", tmp_path / "key.pem")
    (key,) = msgspec.json.decode(made.stdout)["keys"]
    token = run("token", tmp_path / "key.pem", *arguments, "--valid-for", "60").stdout.strip()
    decoded = jwt.decode(token, jwt.PyJWK(key), algorithms=["EdDSA"], options={"verify_aud": False})
    assert decoded.pop("exp") > 0
    assert decoded == claims


@pytest.mark.parametrize("arguments", [(), ("--admin", "--compute-id", "x")])
def test_a_token_is_for_one_node_or_for_all(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run("keygen", tmp_path / "key.pem")
    assert run("token", tmp_path / "key.pem", *arguments).exit_code == 2


def test_a_file_that_is_no_key_makes_no_token(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("nonsense")
    result = run("token", tmp_path / "key.pem", "--admin")
    assert result.exit_code == 1
    assert "no token was made" in result.stderr


# --- demo --------------------------------------------------------------------------------------------------


def test_the_demo_does_not_touch_a_folder_that_is_not_a_demos(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    before = tmp_path.stat()
    result = run("demo", "--directory", tmp_path)
    assert result.exit_code == 1
    assert "nothing was touched" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    after = tmp_path.stat()
    assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (
        before.st_uid,
        before.st_mode,
        before.st_mtime_ns,
    )


def test_the_demo_says_where_its_config_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / ".compute-node-demo").touch()
    (folder / "config.json").write_text('{\n "spec": }')
    result = run("demo", "--directory", folder)
    assert result.exit_code == 1
    assert str(folder / "config.json") in result.stderr
    assert "line 2" in result.stderr


def test_the_demo_says_that_a_key_is_no_key(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / ".compute-node-demo").touch()
    (folder / "key.pem").write_text("nonsense")
    result = run("demo", "--directory", folder)
    assert result.exit_code == 1
    assert "is no private key" in result.stderr

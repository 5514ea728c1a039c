"""`compute-node plan`, `validate` and `schema`: what they print, and their exit status."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from click.testing import CliRunner, Result
from compute_node.cli import demo
from compute_node.cli.compute_node import main
from compute_node.cli.schema import config_schema
from compute_node.messages.spec import config_decoder

from doubles.api_server import ApiServer, api_server
from doubles.canaries import canary

ROOT = Path(__file__).resolve().parents[2]
SPEC: dict[str, Any] = {
    "format_version": 1.0,
    "suspend_timeout_seconds": -1,
    "cluster": {"roles": [{"name": "app"}], "databases": [{"name": "app", "owner": "app"}], "settings": []},
}
CONFIG: dict[str, Any] = {"spec": SPEC, "compute_ctl_config": {"jwks": {"keys": []}}}
EMPTY: dict[str, Any] = {"changes": False, "settings": [], "operations": [], "refused": [], "warnings": []}


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


def setting(name: str, change: str, before: str | None, after: str | None, *, late: bool = False) -> Any:
    return {"name": name, "change": change, "before": before, "after": after, "needs_restart": late}


def operation(phase: str, database: str | None, action: str) -> dict[str, Any]:
    return {"phase": phase, "database": database, "object": "x", "action": action}


FULL = EMPTY | {
    "changes": True,
    "settings": [
        setting("app.kind", "added", None, "x"),
        setting("log_statement", "removed", "ddl", None),
        setting("max_connections", "changed", "40", "41", late=True),
    ],
    "operations": [
        operation("create and alter roles", None, 'create role "r"'),
        operation("visit databases", "a", "look around"),
        operation("visit databases", "a", "do something"),
        operation("visit databases", 'o"dd\n', "do more"),
        operation("drop roles", None, 'drop role "gone"'),
    ],
}
SHOWN = """\
settings
  + app.kind         'x'
  - log_statement    'ddl'
  ~ max_connections  '40' -> '41'  (at the next start)

create and alter roles
  create role "r"

visit databases
  in "a"
    look around
    do something
  in "o\\"dd\\n"
    do more

drop roles
  drop role "gone"

3 settings (1 at the next start), 5 SQL operations
"""


# --- plan --------------------------------------------------------------------------------------------------


def plan(node: ApiServer, tmp_path: Path, answer: Any, *arguments: str, status: int = 200) -> Result:
    file = tmp_path / "config.json"
    file.write_bytes(msgspec.json.encode(CONFIG))
    node.answers = {"POST /plan": (status, answer)}
    return run("plan", "--url", node.url, *arguments, file)


def test_a_plan_without_changes_says_so_and_succeeds(node: ApiServer, tmp_path: Path) -> None:
    result = plan(node, tmp_path, EMPTY)
    assert (result.exit_code, result.output) == (0, "no changes\n")
    ((method, path, _, body),) = node.asked
    assert (method, path, msgspec.json.decode(body)) == ("POST", "/plan", CONFIG)


def test_a_plan_with_changes_lists_them_and_has_an_exit_status_of_its_own(
    node: ApiServer, tmp_path: Path
) -> None:
    result = plan(node, tmp_path, FULL)
    assert (result.exit_code, result.output) == (3, SHOWN)


@pytest.mark.parametrize("rest", [EMPTY, FULL], ids=["without changes", "with changes"])
def test_a_spec_that_would_be_refused_fails_whatever_else_it_changes(
    node: ApiServer, tmp_path: Path, rest: dict[str, Any]
) -> None:
    refused = {"refused": [{"part": "settings", "reason": "no such thing"}], "warnings": ["take care"]}
    result = plan(node, tmp_path, rest | refused)
    assert result.exit_code == 1
    assert "refused\n  settings: no such thing\n" in result.stdout
    assert result.stderr == "warning: take care\n"
    assert result.stdout.endswith("1 part refused\n")


@pytest.mark.parametrize(("answer", "code"), [(EMPTY, 0), (FULL, 3)])
def test_a_plan_for_scripts_is_the_nodes_own_answer(
    node: ApiServer, tmp_path: Path, answer: dict[str, Any], code: int
) -> None:
    result = plan(node, tmp_path, answer, "--json")
    assert (result.exit_code, msgspec.json.decode(result.output)) == (code, answer)


def test_a_node_that_makes_no_plan_is_a_refusal_and_none_at_all_is_unreachable(
    node: ApiServer, tmp_path: Path
) -> None:
    result = plan(node, tmp_path, {"error": "invalid compute status: empty"}, status=412)
    assert (result.exit_code, "invalid compute status: empty" in result.output) == (1, True)
    assert run("plan", "--url", "http://127.0.0.1:1", tmp_path / "config.json").exit_code == 4


@pytest.mark.parametrize("command", ["plan", "configure", "validate"])
@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot read"), (b'{"a": }', "line 1, column"), (b"[" * 3000, "not JSON"), (b"", "not JSON")],
    ids=["missing", "no JSON", "deep", "empty"],
)
def test_a_bad_file_has_an_exit_status_of_its_own_and_nothing_is_asked(
    node: ApiServer, tmp_path: Path, command: str, content: bytes | None, said: str
) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    where = () if command == "validate" else ("--url", node.url)
    result = run(command, *where, file)
    assert (result.exit_code, node.asked) == (5, [])
    assert said in result.output
    assert str(file) in result.output


# --- validate ----------------------------------------------------------------------------------------------


def judged(document: object) -> tuple[int, list[tuple[str, str]]]:
    """Return the exit status, and path and text of each problem."""
    data = document if isinstance(document, bytes) else msgspec.json.encode(document)
    result = run("validate", "--json", "-", input=data)
    verdict = msgspec.json.decode(result.output)
    assert verdict["valid"] == (result.exit_code == 0)
    return result.exit_code, [(problem["path"], problem["text"]) for problem in verdict["problems"]]


@pytest.mark.parametrize(
    "document",
    [
        CONFIG,
        SPEC,
        demo.SAMPLE_SPEC,
        {"compute_ctl_config": {"jwks": {"keys": []}}},
        CONFIG | {"$schema": "x"},
    ],
)
def test_a_good_config_a_bare_spec_and_a_config_without_one_are_valid(document: object) -> None:
    assert judged(document) == (0, [])


def with_cluster(**changes: Any) -> dict[str, Any]:
    return CONFIG | {"spec": SPEC | {"cluster": SPEC["cluster"] | changes}}


WRONG: dict[str, tuple[object, str, str]] = {
    "unknown field": (CONFIG | {"specs": 1}, "$.specs", "not known"),
    "unknown field, deep": (
        with_cluster(roles=[{"name": "a", "passwrd": "x"}]),
        "$.spec.cluster.roles[0].passwrd",
        "not known",
    ),
    "unknown field of a bare spec": (SPEC | {"timestamp": "x"}, "$.timestamp", "not known"),
    "unknown feature": (
        CONFIG | {"spec": SPEC | {"features": ["warp"]}},
        "$.spec.features[0]",
        "feature is not known",
    ),
    "unknown action": (
        CONFIG | {"spec": SPEC | {"delta_operations": [{"action": "paint", "name": "a"}]}},
        "$.spec.delta_operations[0].action",
        "action is not known",
    ),
    "wrong type": (with_cluster(roles=7), "$.spec.cluster.roles", "Expected `array`"),
    "missing field": (
        with_cluster(databases=[{"name": "d"}]),
        "$.spec.cluster.databases[0]",
        "required field `owner`",
    ),
    "bad name": (with_cluster(roles=[{"name": "a" * 64}]), "$.spec.cluster.roles[0]", "at most 63 bytes"),
    "setting without a value": (
        with_cluster(settings=[{"name": "work_mem", "vartype": "string"}]),
        "$.spec",
        "it has no value",
    ),
    "plain password": (
        with_cluster(roles=[{"name": "a", "encrypted_password": canary("plain")}]),
        "$.spec",
        "plain passwords are not accepted",
    ),
    "a feature that is not built": (
        CONFIG | {"spec": SPEC | {"local_proxy_config": {}}},
        "$.spec",
        "`local_proxy_config`",
    ),
    "reserved role": (with_cluster(roles=[{"name": "pg_mine"}]), "$.spec", "reserves this name"),
    "repeated key": (
        b'{"spec": null, "compute_ctl_config": {"jwks": {"keys": []}}, "spec": null}',
        "$.spec",
        "more than once",
    ),
    "repeated key, deep": (
        b'{"compute_ctl_config": {"jwks": {"keys": [{"kty": "OKP", "kty": "OKP"}]}}}',
        "$.compute_ctl_config.jwks.keys[0].kty",
        "more than once",
    ),
    "not an object": ([1], "$", "Expected `object`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_path(case: str) -> None:
    document, path, text = WRONG[case]
    code, problems = judged(document)
    assert code == 1
    assert any(at == path and text in told for at, told in problems), problems
    assert canary("") not in str(problems)


def test_every_problem_is_told_not_the_first_alone() -> None:
    document = with_cluster(
        roles=[{"name": "pg_mine", "x": 1}], databases=[{"name": "d", "owner": "o", "y": 1}]
    )
    code, problems = judged(document | {"z": 1})
    assert (code, len(problems)) == (1, 4)


def test_for_people_problems_and_warnings_are_lines() -> None:
    keys = [{"kty": "RSA"}]
    document = {
        "spec": SPEC | {"pgbouncer_settings": {"max_client_conn": "9"}},
        "compute_ctl_config": {"jwks": {"keys": keys}},
        "z": 1,
    }
    result = run("validate", "-", input=msgspec.json.encode(document))
    lines = result.output.splitlines()
    assert lines[:2] == ["standard input has 1 problem", "  $.z: the field is not known and has no effect"]
    assert [line.split(": ")[:2] for line in lines[2:]] == [
        ["  warning", "$.compute_ctl_config.jwks.keys"],
        ["  warning", "$.spec"],
    ]
    good = run("validate", "-", input=msgspec.json.encode(CONFIG))
    assert (good.exit_code, good.output) == (0, "standard input is valid\n")


# --- schema ------------------------------------------------------------------------------------------------


def test_the_committed_schema_is_the_one_that_the_types_make() -> None:
    committed = ROOT / "docs" / "config.schema.json"
    assert run("schema").output == committed.read_text(encoding="utf-8"), (
        "write it anew: compute-node schema > docs/config.schema.json"
    )


@pytest.mark.parametrize(
    "document",
    [
        CONFIG,
        CONFIG | {"spec": demo.SAMPLE_SPEC},
        with_cluster(roles=[{"name": "a", "encrypted_password": None}]),
    ],
)
def test_the_schema_takes_what_the_node_takes(document: dict[str, Any]) -> None:
    config_decoder.decode(msgspec.json.encode(document))
    jsonschema_rs.validate(config_schema(), document)


@pytest.mark.parametrize("case", ["wrong type", "missing field", "not an object"])
def test_the_schema_refuses_what_has_the_wrong_shape(case: str) -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(config_schema(), WRONG[case][0])

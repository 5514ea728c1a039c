"""What the documents say that the code also says."""

import re
from pathlib import Path

import pytest
from compute_node.actors.supervisor.lifecycle import diagram
from compute_node.cli.options import parse
from compute_node.messages.metrics import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
COUNTERPART = {
    "--pgbin",
    "--remote-ext-base-url",
    "--external-http-port",
    "--internal-http-port",
    "--pgdata",
    "--connstr",
    "--privileged-role-name",
    "--cgroup",
    "--filecache-connstr",
    "--vm-monitor-addr",
    "--resize-swap-on-bind",
    "--set-disk-quota-for-fs",
    "--config",
    "--compute-id",
    "--control-plane-uri",
    "--installed-extensions-collection-interval",
    "--dev",
    "--help",
    "--spec-path",
}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_state_diagram_is_drawn_from_the_transition_table() -> None:
    drawn = re.search(r"<!-- states: .*? -->\n```mermaid\n(.*?)\n```\n<!-- /states -->", README, re.DOTALL)
    assert drawn is not None
    assert drawn[1] == diagram(), "run: python -m compute_node.actors.supervisor.lifecycle"


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_fault_has_a_test_that_is_there_or_a_reason() -> None:
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", page):
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*range(1, 16), *range(1, 144), 151, 152]


def test_every_option_beyond_the_counterparts_is_in_the_list_of_differences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        parse(["--help"])
    options = set(re.findall(r"(--[a-z-]+)", capsys.readouterr().out)) - COUNTERPART
    assert {option for option in options if option not in listed} == set()


def test_every_metric_is_documented() -> None:
    documents = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    missing = [family.name for family in FAMILIES if family.name not in documents]
    assert not missing

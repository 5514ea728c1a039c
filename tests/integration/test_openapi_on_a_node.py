"""Schemathesis over the descriptions that both servers of a running node serve: every answer is described.

`/terminate` is tested apart (tests/integration/test_http.py, tests/unit/api). SCHEMATHESIS_EXAMPLES makes it longer
(`make schemathesis`), SCHEMATHESIS_SEED another one.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, Node, spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLES: Final = os.environ.get("SCHEMATHESIS_EXAMPLES")
FEW: Final = "12"
SEED: Final = os.environ.get("SCHEMATHESIS_SEED", "1")
CONFIG: Final = """
generation = { database = "none" }

[[operations]]  # what no schema says: names and settings that Postgres refuses, features that are not built
include-path = "/configure"
checks.positive_data_acceptance.expected-statuses = [200, 400, 412, 422]
phases.coverage.enabled = %s  # some 600 cases

[[operations]]
include-path = "/plan"
checks.positive_data_acceptance.expected-statuses = [200, 400, 412, 422]
phases.coverage.enabled = %s

[[operations]]  # databases, roles and extensions that are not there: 500, as with the counterpart
include-path-regex = "^/(extensions|grants)$"
checks.positive_data_acceptance.expected-statuses = [201, 422, 500]
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 500]
"""


def schemathesis(node: Node, port: int, *arguments: str) -> None:
    """Run it from the node's folder; its whole output is shown when it finds something."""
    config = node.folder / "schemathesis.toml"
    config.write_text(CONFIG % (("false" if EXAMPLES is None else "true",) * 2))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "st"),
            *("--config-file", str(config), "--no-color"),
            *("run", f"http://127.0.0.1:{port}/openapi.json"),
            *("--header", f"Authorization: Bearer {node.token()}", "--seed", SEED),
            # They want 401 where the counterpart has 400; tests/unit/api/test_tokens.py knows better.
            *("--checks", "all", "--exclude-checks", "ignored_auth,missing_required_header"),
            *("--max-examples", EXAMPLES or FEW, "--continue-on-failure"),
            *("--request-timeout", "120", "--suppress-health-check", "all", "--warnings", "off"),
            *arguments,
        ],
        cwd=node.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout}\n{done.stderr}"
    assert "No issues found" in done.stdout, done.stdout


def test_every_answer_of_a_running_node_is_described(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15).run(spec())
    postmaster = node.postmaster()
    schemathesis(node, node.external_port, "--exclude-path", "/terminate", "--phases", "coverage,fuzzing")
    schemathesis(node, node.internal_port, "--phases", "coverage,fuzzing")
    assert node.configure(spec()).status == 200
    assert node.status()["status"] == "running"
    assert node.postmaster() == postmaster
    assert node.query("select 1") == [(1,)]
    assert node.stop() == 0, node.log

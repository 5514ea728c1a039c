"""Schemathesis over the descriptions that both servers of a running node serve: every answer is described.

`/terminate` is tested apart (tests/integration/test_http.py, tests/unit/api). SCHEMATHESIS_EXAMPLES makes it longer
(`make schemathesis`), SCHEMATHESIS_SEED another one.
"""

import json
import os
import re
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

[[operations]]  # what no schema says, and a node that is no replica: 500, as with the counterpart
include-path = "/promote"
checks.positive_data_acceptance.expected-statuses = [200, 400, 412, 422, 500]
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 500]
phases.coverage.enabled = %s

[[operations]]  # databases, roles and extensions that are not there: 500, as with the counterpart
include-path-regex = "^/(extensions|grants)$"
checks.positive_data_acceptance.expected-statuses = [201, 422, 500]
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 500]
"""


def schemathesis(node: Node, *arguments: str, internal: bool) -> None:
    """Run it over what a server serves, but for `/terminate`; its whole output is shown when it finds something.

    From a file: of a description that it has fetched itself it leaves out the route that serves it.
    """
    document = node.call("GET", "/openapi.json", internal=internal, token=None).body
    served = node.folder / "openapi.json"
    served.write_text(json.dumps(document))
    port = node.internal_port if internal else node.external_port
    config = node.folder / "schemathesis.toml"
    config.write_text(CONFIG % (("false" if EXAMPLES is None else "true",) * 3))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "st"),
            *("--config-file", str(config), "--no-color"),
            *("run", str(served), "--url", f"http://127.0.0.1:{port}", "--exclude-path", "/terminate"),
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
    tested = sum(path != "/terminate" for path, methods in document["paths"].items() for _ in methods)
    assert re.search(rf"Tested: {tested}$", done.stdout, re.MULTILINE), done.stdout


def test_every_answer_of_a_running_node_is_described(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15).run(spec())
    postmaster = node.postmaster()
    for internal in (False, True):
        schemathesis(node, "--phases", "coverage,fuzzing", internal=internal)
    assert node.configure(spec()).status == 200
    assert node.status()["status"] == "running"
    assert node.postmaster() == postmaster
    assert node.query("select 1") == [(1,)]
    assert node.stop() == 0, node.log

"""A start that fails at any of its steps: whoever waits for it is told, and the node ends or goes on waiting."""

import threading
from typing import Final

import pytest
from compute_node.messages.failpoints import Failpoint
from compute_node.postgres.binaries import Binaries

from fix_matrix import Cell
from fix_node import Answer, MakeNode, spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OWN: Final = {"pgdata", "pgdata.lock", "config.json", "key.pem", "stderr"}
WAIT_S: Final = 90.0
PREFLIGHT: Final = (Failpoint.CHECK_WRITTEN, Failpoint.CHECK_ASKED)
START: Final = (
    Failpoint.PREPARE_BEGUN,
    Failpoint.PREPARE_TOKEN,
    Failpoint.INITDB_RUNNING,
    Failpoint.INITDB_DONE,
    Failpoint.PREPARE_UNSEALED,
    Failpoint.PREPARE_SEALED,
    Failpoint.LAUNCH_CLEARED,
    Failpoint.PLACE_MOVED,
    Failpoint.LAUNCH_PLACED,
    Failpoint.FILES_CONF,
    Failpoint.FILES_WRITTEN,
    Failpoint.LAUNCHED,
    Failpoint.AWAIT_READY,
    Failpoint.READY_SEEN,
    Failpoint.APPLY_CATALOG,
    Failpoint.APPLY_STATEMENT,
    Failpoint.APPLY_PHASE,
    Failpoint.APPLY_VISIT,
    Failpoint.APPLY_DONE,
)
WANTED: Final = spec(
    cluster={"roles": [{"name": "app"}], "databases": [{"name": "app", "owner": "app"}], "settings": []}
)


@pytest.mark.matrix("failing-starts", sample=8)
@pytest.mark.parametrize("deed", ["return", "panic"])
@pytest.mark.parametrize("step", [*PREFLIGHT, *START], ids=lambda step: step.value)
def test_whoever_waits_for_a_start_that_fails_is_told(
    make_node: MakeNode, binaries15: Binaries, cell: Cell, step: Failpoint, deed: str
) -> None:
    node = make_node(binaries15, "--dev")
    node.panics = deed == "panic"
    node.write_config(None)
    node.start(failpoints={step: f"1*{deed}(no luck)"}).await_status("empty")
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.append(node.configure(WANTED)), daemon=True)
    waiting.start()
    waiting.join(WAIT_S)
    assert answers, f"nobody told the one who waits:\n{node.log}"
    (answer,) = answers
    assert "no luck" in answer.body["error"], answer
    if deed == "return" and step in PREFLIGHT:
        assert answer.status == 400
        assert node.status()["status"] == "empty"
        assert not node.pgdata.exists()
        assert node.configure(WANTED).status == 200, "the node takes the next one"
        assert node.stop() == 0, node.log
    else:
        assert answer.status == 500
        assert node.wait() == 1, node.log
        left = {path.name for path in node.folder.iterdir()}
        assert left <= OWN | ({"pgdata.building"} if deed == "panic" else set()), (
            "who is dead cleans up nothing"
        )
        node.run(WANTED)
        assert node.stop() == 0, node.log
        assert {path.name for path in node.folder.iterdir()} <= OWN
    cell.say(f"`{step.value}`", deed, str(answer.status))

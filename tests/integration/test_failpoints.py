"""Failpoints of a whole node that is not given --dev; test_kill_matrix.py uses them with it."""

import pytest
from compute_node.messages.failpoints import Failpoint
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_without_dev_there_are_none(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.start(failpoints={Failpoint.LAUNCHED: "exit(9)"}).await_status("running")
    node.heard("FAILPOINTS has no effect: failpoints work only with --dev")
    answer = node.call("POST", "/failpoints", [], internal=True)
    assert answer.status == 404
    assert node.stop() == 0, node.log

"""Failpoints of a whole node: armed by the environment and by the internal route, and only with --dev."""

import pytest
from compute_node.messages.failpoints import Failpoint
from compute_node.postgres.binaries import Binaries

from fix_node import MakeNode, spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_a_start_pauses_at_a_step_until_it_is_let_go(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15, "--dev")
    node.write_config(spec())
    node.start(failpoints={Failpoint.AWAIT_READY: "pause", Failpoint.APPLY_DONE: "pause"})
    node.await_failpoint(Failpoint.AWAIT_READY)
    node.set_failpoint(Failpoint.AWAIT_READY, "off")
    node.await_failpoint(Failpoint.APPLY_DONE)
    assert node.status()["status"] == "init"
    assert node.stop() == 0, node.log


def test_without_dev_there_are_none(make_node: MakeNode, binaries15: Binaries) -> None:
    node = make_node(binaries15)
    node.write_config(spec())
    node.start(failpoints={Failpoint.LAUNCHED: "exit(9)"}).await_status("running")
    assert "FAILPOINTS has no effect: failpoints work only with --dev" in node.log
    answer = node.call("POST", "/failpoints", [], internal=True)
    assert answer.status == 404
    assert node.stop() == 0, node.log

"""Signals at every moment: whatever comes when, the node ends in bounded time with a documented code, and leaves nothing.

The cases are every signal at every 10 ms from the first log line on, and every signal at every step and status.
"""

import os
import threading
from collections.abc import Callable
from enum import Enum
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals
from typing import Final, NamedTuple

import pytest
from compute_node.messages.failpoints import Failpoint
from compute_node.postgres.binaries import Binaries

from fix_matrix import Cell
from fix_node import MakeNode, Node, setting, spec
from fix_postgres import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

BOUND_S: Final = 60.0
"""The stop budget is 25 s; the rest is for the machine."""
LEFT: Final = {"config.json", "key.pem", "stderr", "pgdata", "pgdata.lock"}

APP = spec(cluster={"roles": [{"name": "app"}], "databases": [{"name": "app", "owner": "app"}]})
MORE = spec(
    cluster={
        "roles": [{"name": "app"}, {"name": "more"}],
        "databases": [{"name": "app", "owner": "app"}],
        "settings": [*spec()["cluster"]["settings"], setting("work_mem", "7MB")],
    }
)
BROKEN = spec(cluster={"settings": [setting("work_mem", "much")]})


class Sent(Enum):
    """What is sent to the node."""

    TERM = (SIGTERM,)
    INT = (SIGINT,)
    TERM_TERM = (SIGTERM, SIGTERM)
    HUP = (SIGHUP,)


def send(node: Node, sent: Sent) -> None:
    """Send them; a second one when the first was heard."""
    for count, number in enumerate(sent.value, start=1):
        node.send_signal(number)
        if count < len(sent.value):
            wait_until(lambda: node.ended() or heard(node, SIGTERM), "the first signal was heard", BOUND_S)


def heard(node: Node, number: Signals) -> bool:
    return f"received {number.name}" in node.log


def assert_nothing_is_left_in(node: Node, *, killed: bool = False) -> None:
    """What else could be left is looked for after every test; a killed Postgres leaves its lock file."""
    assert {path.name for path in node.folder.iterdir()} <= LEFT, node.log
    assert (node.pgdata / "postmaster.pid").exists() is killed, node.log


def end_and_judge(node: Node, sent: Sent, code: int, *, killed: bool = False) -> str:
    """Send what asks the node to end, and look at how it did; returns that in words."""
    send(node, sent)
    assert node.wait(BOUND_S) == code, node.log
    assert_nothing_is_left_in(node, killed=killed)
    return f"exit {code}"


def assert_read_again(node: Node) -> str:
    """Look that a hangup was answered, one way or the other; returns that in words."""
    wait_until(lambda: any(text in node.log for text in ANSWERS), "the hangup was answered", BOUND_S)
    for text, words in ANSWERS.items():
        if text in node.log:
            return words
    raise AssertionError


ANSWERS: Final = {
    "the configuration file was not applied": "refused",
    "finished reconfiguration of compute node": "applied",
    "got spec, continue configuration": "started",
}
"""What the log says of a hangup."""


# --- Moments ---------------------------------------------------------------------------------------------

MOMENTS: Final = range(0, 1501, 10)
"""Milliseconds after the first log line."""


def begun(node: Node) -> None:
    """Return when the node has logged its first line."""
    pause = threading.Event()
    while not node.log and not node.ended():
        pause.wait(0.001)


@pytest.mark.matrix("signals", sample=3)
@pytest.mark.parametrize("sent", Sent)
@pytest.mark.parametrize("moment_ms", MOMENTS)
def test_a_signal_at_any_moment_of_a_start(
    make_node: MakeNode, binaries15: Binaries, cell: Cell, moment_ms: int, sent: Sent
) -> None:
    row = f"{moment_ms // 100 * 100:04d} ms after the first line and later"
    node = make_node(binaries15)
    node.write_config(APP)
    node.start()
    begun(node)
    threading.Event().wait(moment_ms / 1000)
    if sent is Sent.HUP:
        node.write_config(MORE)
        send(node, sent)
        node.await_status("running")
        said = assert_read_again(node)
        if said == "applied":
            assert node.query("select 1 from pg_roles where rolname = 'more'") == [(1,)]
        end_and_judge(node, Sent.TERM, 0)
    else:
        said = end_and_judge(node, sent, 0)
    cell.say(row, sent.name, said)


EARLY: Final = range(0, 501, 10)
"""Milliseconds after the process was started; the handlers come within the first of them."""


@pytest.mark.matrix("signals", sample=1)
@pytest.mark.parametrize("sent", [Sent.TERM, Sent.HUP])
@pytest.mark.parametrize("moment_ms", EARLY)
def test_a_signal_before_or_soon_after_the_handlers_are_there(
    make_node: MakeNode, binaries15: Binaries, cell: Cell, moment_ms: int, sent: Sent
) -> None:
    (number,) = sent.value
    node = make_node(binaries15)
    node.write_config(APP)
    node.start()
    threading.Event().wait(moment_ms / 1000)
    send(node, sent)
    said = "the system's default"
    if sent is Sent.TERM:
        code = node.wait(BOUND_S)
        assert code in {0, -number}, node.log
        said = said if code else "exit 0"
    else:
        wait_until(lambda: node.ended() or "running" in status_of(node), "it ended or runs", 60)
        if node.ended():
            assert node.wait() == -number
        else:
            said = assert_read_again(node)
            end_and_judge(node, Sent.TERM, 0)
    if said == "the system's default":
        assert node.log == "", "the handlers come before everything else"
        assert not node.pgdata.exists()
    assert_nothing_is_left_in(node)
    cell.say(f"{moment_ms // 100 * 100:04d} ms after exec and later", sent.name, said)


def status_of(node: Node) -> str:
    try:
        return str(node.status()["status"])
    except OSError:
        return ""


# --- Steps and statuses ----------------------------------------------------------------------------------


class Phase(NamedTuple):
    """A place in a node's life: how it is reached, the exit code of an end there, what a hangup does there.

    `reach` is given the node and whether it is to go on by itself from there.
    """

    name: str
    reach: Callable[[Node, bool], None]
    code: int = 0
    hangup: str = "refused"
    flags: tuple[str, ...] = ("--dev",)
    killed: bool = False


def actions(*, goes_on: bool) -> str:
    """What a step does: wait until the signal breaks it off, or just long enough for the signal."""
    return "1*sleep(2000)" if goes_on else "pause"


def during_the_start(step: Failpoint, hangup: str = "refused") -> Phase:
    def reach(node: Node, goes_on: bool) -> None:  # noqa: FBT001 - as Phase says
        node.write_config(APP)
        node.start(failpoints={step: actions(goes_on=goes_on)})
        node.await_failpoint(step)
        node.write_config(MORE)

    return Phase(f"start: {step.value}", reach, hangup=hangup)


def while_reconfiguring(step: Failpoint) -> Phase:
    def reach(node: Node, goes_on: bool) -> None:  # noqa: FBT001 - as Phase says
        node.run(APP)
        node.set_failpoint(step, actions(goes_on=goes_on))
        beside(lambda: node.configure(MORE))
        node.await_failpoint(step)
        node.write_config(APP)

    return Phase(f"configure: {step.value}", reach)


def while_stopping(step: Failpoint) -> Phase:
    def reach(node: Node, goes_on: bool) -> None:  # noqa: FBT001 - it goes on in any case
        node.run(APP)
        node.set_failpoint(step, actions(goes_on=True))
        beside(lambda: node.call("POST", "/terminate?mode=immediate"))
        node.await_failpoint(step)

    return Phase(f"stop: {step.value}", reach)


def beside(work: Callable[[], object]) -> None:
    """Ask the node something whose answer nobody waits for."""

    def ask() -> None:
        try:
            work()
        except OSError:
            return  # the node ended under it

    threading.Thread(target=ask, daemon=True).start()


def running(node: Node, _: bool) -> None:  # noqa: FBT001 - as Phase says
    node.run(APP)
    node.write_config(MORE)


def rereading(node: Node, goes_on: bool) -> None:  # noqa: FBT001 - as Phase says
    node.run(APP)
    node.write_config(MORE)
    node.set_failpoint(Failpoint.REREAD, actions(goes_on=goes_on))
    node.send_signal(SIGHUP)
    node.await_failpoint(Failpoint.REREAD)


def empty(node: Node, _: bool) -> None:  # noqa: FBT001 - as Phase says
    node.write_config(None)
    node.start().await_status("empty")
    node.write_config(MORE)


def failed(node: Node, _: bool) -> None:  # noqa: FBT001 - as Phase says
    node.write_config(BROKEN)
    node.start().await_status("failed")
    node.write_config(MORE)


def lost(node: Node, _: bool) -> None:  # noqa: FBT001 - as Phase says
    node.run(APP)
    os.kill(node.postmaster(), SIGKILL)
    node.await_status("failed")


def terminated(node: Node, _: bool) -> None:  # noqa: FBT001 - as Phase says
    node.run(APP)
    assert node.call("POST", "/terminate?mode=fast").status == 200


START_STEPS: Final = (
    *(Failpoint.INSPECT_LOCKED, Failpoint.INSPECT_CLEARED, Failpoint.INSPECT_RECOVERED),
    *(Failpoint.CHECK_WRITTEN, Failpoint.CHECK_ASKED),
    *(Failpoint.PREPARE_BEGUN, Failpoint.PREPARE_TOKEN, Failpoint.INITDB_RUNNING, Failpoint.INITDB_DONE),
    *(Failpoint.PREPARE_UNSEALED, Failpoint.PREPARE_SEALED, Failpoint.LAUNCH_CLEARED, Failpoint.PLACE_MOVED),
    *(Failpoint.LAUNCH_PLACED, Failpoint.FILES_CONF, Failpoint.FILES_WRITTEN, Failpoint.LAUNCHED),
    *(Failpoint.AWAIT_READY, Failpoint.READY_SEEN),
    *(Failpoint.APPLY_CATALOG, Failpoint.APPLY_STATEMENT, Failpoint.APPLY_PHASE, Failpoint.APPLY_VISIT),
    *(Failpoint.APPLY_DONE, Failpoint.HTTP_BOUND, Failpoint.HTTP_SERVING),
)
CONFIGURE_STEPS: Final = (
    *(Failpoint.CHECK_WRITTEN, Failpoint.CHECK_ASKED),
    *(Failpoint.INSTALL_WRITTEN, Failpoint.INSTALL_RELOADED, Failpoint.INSTALL_VERIFIED),
    *(Failpoint.APPLY_CATALOG, Failpoint.APPLY_STATEMENT, Failpoint.APPLY_PHASE, Failpoint.APPLY_DONE),
)
STOP_STEPS: Final = (Failpoint.EXIT_SEEN, Failpoint.TIDY_BEGUN, Failpoint.TIDY_SWEPT)

PHASES: Final = (
    *map(during_the_start, START_STEPS),
    *map(while_reconfiguring, CONFIGURE_STEPS),
    *map(while_stopping, STOP_STEPS),
    during_the_start(Failpoint.MIGRATION, hangup="applied"),
    Phase("running", running, hangup="applied"),
    Phase("rereading", rereading, hangup="applied"),
    Phase("empty", empty, hangup="started"),
    Phase("failed start, lingering", failed, code=1, flags=()),
    Phase("lost Postgres, lingering", lost, code=1, flags=(), killed=True),
    Phase("terminated, lingering", terminated, flags=()),
)


@pytest.mark.matrix("signals", sample=3)
@pytest.mark.parametrize("sent", Sent)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_a_signal_at_any_step(
    make_node: MakeNode, binaries15: Binaries, cell: Cell, phase: Phase, sent: Sent
) -> None:
    node = make_node(binaries15, *phase.flags)
    phase.reach(node, sent is Sent.HUP)
    if sent is not Sent.HUP:
        said = end_and_judge(node, sent, phase.code, killed=phase.killed)
    else:
        send(node, sent)
        said = assert_read_again(node) if phase.name not in ENDED else "ended"
        assert said in {phase.hangup, "ended"}, node.log
        if said in {"applied", "started"}:
            node.await_status("running")
            wait_until(
                lambda: node.query("select 1 from pg_roles where rolname = 'more'"), "it is applied", 60
            )
        end_and_judge(node, Sent.TERM, phase.code, killed=phase.killed)
    cell.say(phase.name, sent.name, said)


ENDED: Final = {phase.name for phase in PHASES if phase.name.startswith("stop:")}
"""Where a hangup may come too late for an answer."""

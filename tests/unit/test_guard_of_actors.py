from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

TESTS = """
import threading

import pytest
from compute_node.actors.kit.actor import Actor
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.messages.base import Message

RELEASE = threading.Event()


class Nudge(Message, frozen=True):
    pass


class Blocking(Actor[Nudge]):
    def __init__(self, seconds):
        self.seconds, self.entered = seconds, threading.Event()

    def receive(self, message):
        self.entered.set()
        RELEASE.wait(self.seconds)


def run(seconds):
    runtime = ThreadedRuntime(watcher="nobody", abandoned=lambda _: None)
    actor = Blocking(seconds)
    runtime.spawn("actor", actor).tell(Nudge())
    assert actor.entered.wait(10)


def test_quick():
    run(0)


def test_slow():
    run(0.06)


@pytest.mark.blocking_handlers
def test_slow_on_purpose():
    run(0.06)


def test_hanging():
    run(60)
"""


@pytest.mark.slow
def test_a_test_fails_when_a_handler_blocks_or_an_actor_lives_on(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CONFTEST.parent))
    pytester.makeconftest(CONFTEST.read_text().replace("STOP_S: Final = 10.0", "STOP_S: Final = 0.3"))
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nmarkers = blocking_handlers\n")
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines_random(
        ["*ERROR at teardown of test_slow *", "*ERROR at teardown of test_hanging *"]
    )
    result.stdout.fnmatch_lines_random(
        ["*handlers took longer than 50 ms: {'actor': 1.0}*", "*threads of the actor kit live on: *'actor'*"]
    )

"""The main thread's own way to stop a postmaster: by identity, with rising force, in bounded time."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from compute_node.process.last_resort import PostmasterRecord

READY = "print('ready', flush=True); import time; time.sleep(600)"


@contextmanager
def a_process(ignoring: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Run something that lives long and ignores the named signals."""
    ignore = "".join(f"signal.signal(signal.{name}, signal.SIG_IGN);" for name in ignoring.split())
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); {ignore} {READY}",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_postmaster_is_stopped_fast_first() -> None:
    record = PostmasterRecord()
    with a_process() as process:
        record.started(process.pid)
        record.tidied()
        assert record.stop(10.0)
        assert process.wait(5) == -signal.SIGINT


def test_one_that_stands_still_is_let_go_on_to_stop() -> None:
    record = PostmasterRecord()
    with a_process() as process:
        record.started(process.pid)
        record.tidied()
        process.send_signal(signal.SIGSTOP)
        assert record.stop(30.0)
        assert process.wait(5) == -signal.SIGINT


def test_one_that_ignores_everything_is_killed_in_time() -> None:
    record = PostmasterRecord()
    with a_process("SIGINT SIGQUIT") as process:
        record.started(process.pid)
        record.tidied()
        assert record.stop(0.5)
        assert process.wait(5) == -signal.SIGKILL


def test_one_that_was_waited_for_is_left_alone() -> None:
    record = PostmasterRecord()
    with a_process() as process:
        record.started(process.pid)
        record.tidied()
        record.ended()
        assert not record.stop(1.0)
        assert process.poll() is None


def test_a_process_that_is_gone_is_no_work() -> None:
    record = PostmasterRecord()
    with a_process() as process:
        record.started(process.pid)
        record.tidied()
        process.kill()
        process.wait()
        assert not record.stop(1.0)
    assert not PostmasterRecord().stop(1.0)

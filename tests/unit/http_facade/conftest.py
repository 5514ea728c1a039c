import logging
import threading
from collections.abc import Iterator

import pytest
from compute_node.messages.lifecycle import Configure, ConfigureFailed, Terminate, Terminated

from doubles.served import Served


@pytest.fixture
def served(caplog: pytest.LogCaptureFixture) -> Iterator[Served]:
    """Both servers at work. Whatever a test does, they close in order and leave nothing behind."""
    before = set(threading.enumerate())
    caplog.set_level(logging.DEBUG)
    node = Served()
    yield node
    node.supervisor.answers[Configure] = ConfigureFailed("the test is over")
    node.supervisor.answers[Terminate] = Terminated(lsn=None)
    node.supervisor.release(ConfigureFailed("the test is over"))
    node.stop(0)
    node.join()
    assert node.failures == []
    assert set(threading.enumerate()) <= before
    assert [
        record
        for record in (*caplog.get_records("call"), *caplog.records)
        if record.name.startswith("waitress")
        and record.levelno >= logging.WARNING
        and record.msg != "Canceling %d pending task(s)"  # a stop within no time may do that
    ] == []

"""What watching the memory of Postgres costs: `python bench/autoscaling.py`."""

import contextlib
import os
import threading
import time
from typing import Final

from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.vm_monitor_bridge.cgroup import CgroupMemory
from compute_node.actors.vm_monitor_bridge.decisions import POLL_S
from compute_node.bench.rig import Row, progress, table
from compute_node.messages.base import Message

SECONDS: Final = 20.0
CPU_AIM: Final = 0.3
"""Percent of one processor."""


def measure() -> list[Row]:
    """Watch the memory of this process's own cgroup, as a job does, and count the thread's time."""
    progress(f"autoscaling: {SECONDS:g} s")
    heard: list[Message] = []
    spent: list[float] = []
    cancellation = Cancellation()

    def watch() -> None:
        began = time.thread_time()
        with contextlib.suppress(CancelledError):
            CgroupMemory().watch(os.getpid(), heard.append, cancellation)
        spent.append(time.thread_time() - began)

    thread = threading.Thread(target=watch)
    thread.start()
    Cancellation().wait(SECONDS)
    cancellation.request()
    thread.join()
    percent = spent[0] / SECONDS * 100
    return [
        Row(
            f"autoscaling: processor for a sample each {POLL_S * 1000:g} ms",
            f"{percent:.2f} % ({spent[0] / SECONDS * POLL_S * 1e6:.0f} µs a sample)",
            "",
            None,
            f"≤ {CPU_AIM} %",
            percent <= CPU_AIM,
        ),
        Row(
            "autoscaling: messages about it, a minute",
            f"{len(heard) / SECONDS * 60:.0f}",
            "",
            None,
            "some 60",
        ),
    ]


if __name__ == "__main__":
    print(table(measure()))

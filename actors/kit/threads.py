"""Names of threads."""

import contextlib
import threading
from typing import Final

LENGTH: Final = 15
"""Bytes of a name that the kernel keeps."""


def show_name() -> None:
    """Show the name of the thread that calls to the system (`top -H`, /proc); from 3.14 on Python does it itself."""
    name = threading.current_thread().name.encode()[:LENGTH]
    with contextlib.suppress(OSError), open("/proc/thread-self/comm", "wb", buffering=0) as file:  # noqa: PTH123 - each thread of a start passes here
        file.write(name)

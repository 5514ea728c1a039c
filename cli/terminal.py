"""Keeping Ctrl-C to ourselves."""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def own_foreground() -> Iterator[None]:
    """Be the terminal's foreground process group meanwhile, so that Ctrl-C reaches this process alone.

    Otherwise `make` gets it too, and reports a run that ended in order as interrupted. Without a
    controlling terminal, or in the background, nothing is changed.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    with contextlib.closing(os.fdopen(terminal, "rb", buffering=0)):
        before = os.tcgetpgrp(terminal)
        if before != os.getpgrp() or os.getpid() == os.getsid(0):
            yield
            return
        handler = signal.signal(
            signal.SIGTTOU, signal.SIG_IGN
        )  # a background group may then take the terminal
        try:
            os.setpgid(0, 0)
            os.tcsetpgrp(terminal, os.getpgrp())
            yield
        finally:
            os.tcsetpgrp(terminal, before)
            signal.signal(signal.SIGTTOU, handler)

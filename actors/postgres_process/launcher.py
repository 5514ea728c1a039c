"""Starting the postmaster: its environment, its process, and the wait for its end."""

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ...messages.postgres import StopRung
from ...messages.secret import Secret
from ...postgres import pidfile
from ...postgres.binaries import Binaries
from ...postgres.environment import allowed
from ..kit.jobs import Cancellation
from ..kit.programs import Starter
from ..kit.wake import Wake
from . import orphans
from .confining import NOT_CONFINED, Confinement, enter

STORAGE_TOKEN: Final = "NEON_AUTH_TOKEN"  # noqa: S105 - the name of a variable
IGNORED_PROCESS: Final = "PG_GRANDPARENT_PID"
"""Postgres takes a lock file that names this process for a leftover; it still checks the shared memory."""

SIGNALS: Final = {
    StopRung.FAST: signal.SIGINT,
    StopRung.IMMEDIATE: signal.SIGQUIT,
    StopRung.KILL: signal.SIGKILL,
}

log = logging.getLogger("compute_node.postgres_process")


def environment(
    ours: Mapping[str, str], *, storage_token: Secret | None = None, ignored_pid: int | None = None
) -> dict[str, str]:
    """Return what Postgres gets of our environment: an allow-list, and what it is told on purpose."""
    env = allowed(ours)
    if storage_token is not None:
        env[STORAGE_TOKEN] = storage_token.reveal()
    if ignored_pid is not None:
        env[IGNORED_PROCESS] = str(ignored_pid)
    return env


def stale_lock_holder(pgdata: str) -> int | None:
    """Return the process that a leftover `postmaster.pid` names, if it lives and is no Postgres of this folder.

    A number that was given to somebody else since; that process is never touched.
    """
    try:
        pid = pidfile.parse(f"{Path(pgdata, 'postmaster.pid').read_text(errors='replace')}\n").pid
    except OSError:
        return None
    if pid is None or pid in orphans.working_in((pgdata,)) or not orphans.is_alive(pid):
        return None
    return pid


class Postmaster:
    """A postmaster that we started: its process, and how it ended once it has."""

    def __init__(self, process: "subprocess.Popen[bytes]", pgdata: str) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._descriptor: int | None = os.pidfd_open(process.pid)
        self.pid: Final = process.pid
        self.pgdata: Final = pgdata
        self.exited = threading.Event()

    def send(self, rung: StopRung) -> None:
        """Send the signal of a rung; to its whole group for the last one. Nothing happens once it was waited for.

        A postmaster that stands still (SIGSTOP) is let go on, so that it can stop in order.
        """
        if rung is StopRung.KILL:
            with self._lock, contextlib.suppress(ProcessLookupError):
                if self._descriptor is not None:
                    os.killpg(self.pid, signal.SIGKILL)
        else:
            self._send(SIGNALS[rung])
            self._send(signal.SIGCONT)

    def reload(self) -> None:
        """Ask it to read its configuration again."""
        self._send(signal.SIGHUP)

    def _send(self, number: signal.Signals) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)

    def wait(self, cancellation: Cancellation) -> int:
        """Wait for its end, as long as that takes; once, by one thread. Raises CancelledError."""
        wake = Wake(cancellation)
        poll = select.poll()
        assert self._descriptor is not None  # noqa: S101 - it is closed here alone
        poll.register(self._descriptor, select.POLLIN)
        poll.register(wake.descriptor, select.POLLIN)
        try:
            ready = {descriptor for descriptor, _ in poll.poll()}
        finally:
            wake.close()
        if self._descriptor not in ready:
            cancellation.check()
        with self._lock:
            code = self._process.wait()
            os.close(self._descriptor)
            self._descriptor = None
        self.exited.set()
        return code


def launch(
    binaries: Binaries,
    pgdata: str,
    *,
    port: int | None,
    starter: Starter,
    storage_token: Secret | None,
    output: int,
    cancellation: Cancellation,
    confinement: Confinement = NOT_CONFINED,
) -> Postmaster:
    """Start the postmaster, its output going to the descriptor `output`. Raises PostgresError, CancelledError.

    The port, which must win over ALTER SYSTEM, is given on the command line. The OOM killer finds the postmaster as
    unattractive as us; its backends give themselves the score that we had before.
    """
    env = environment(os.environ, storage_token=storage_token, ignored_pid=stale_lock_holder(pgdata))
    if starter.oom_score_adj is not None:
        env |= {
            "PG_OOM_ADJUST_FILE": "/proc/self/oom_score_adj",
            "PG_OOM_ADJUST_VALUE": str(starter.oom_score_adj),
        }
    command = [*confinement.prefix, binaries.postgres, "-D", pgdata]
    if port is not None:
        command += ["-p", str(port)]
    cancellation.check()
    process = starter.start(command, env=env, cwd=pgdata, output=output, protected=True)
    if confinement.procs is not None:
        enter(confinement.procs, process.pid)
    return Postmaster(process, pgdata)


def has_failed(code: int, *, clean: bool) -> bool:
    """Whether a postmaster that ended with this code says that something went wrong.

    A fast stop kills one that is so new that it does not handle signals yet: it has not touched the cluster.
    """
    return code != 0 and not (clean and code == -signal.SIGINT)


def describe_code(code: int) -> str:
    """Put what `Popen.returncode` says into words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"

"""Helper programs (initdb, `postgres -C`, debuggers): run to their end, or ended with all they started."""

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from ...messages.failpoints import Failpoint
from ...postgres.accounts import Account
from ..kit.jobs import Cancellation
from .port import PostgresError

MAX_OUTPUT: Final = 65_536
"""Bytes of output that are kept: the last ones."""
_AFTER_KILL_S: Final = 2.0
_CHUNK: Final = 65_536


class Result(msgspec.Struct, frozen=True):
    """How a program ended; `code` as `Popen.returncode`, `output` is stdout and stderr as they came."""

    code: int
    output: str


class Wake:
    """A descriptor that becomes readable when a job is asked to end; close it before leaving."""

    def __init__(self, cancellation: Cancellation) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.descriptor: Final = self._descriptor
        cancellation.on_request(self._wake)

    def _wake(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """Free the descriptor; a cancellation that comes later is harmless."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)


def as_account(account: Account | None) -> dict[str, Any]:
    """Return the keywords with which Popen runs a program as that account."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": account.groups}


def run(
    command: Sequence[str],
    *,
    account: Account | None,
    env: Mapping[str, str],
    cwd: str,
    timeout_s: float,
    cancellation: Cancellation,
    step: Failpoint | None = None,
) -> Result:
    """Run a program in its own session and return when it and all it started have ended.

    On a cancellation or time-out its whole group is killed. `step` is reached once it has been started.
    Raises CancelledError, or PostgresError when it cannot be started or takes too long.
    """
    cancellation.check()
    wake = Wake(cancellation)
    try:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                **as_account(account),
            )
        except OSError as error:
            msg = f"{command[0]} cannot be run: {error.strerror or error}"
            raise PostgresError(msg) from error
        with process:
            try:
                if step is not None:
                    cancellation.reach(step)
                finished, output = _read(process, wake, timeout_s, cancellation.now)
            except BaseException:
                _kill(process)
                raise
            if not finished:
                _kill(process)
                _, rest = _read(process, None, _AFTER_KILL_S, cancellation.now)
                output += rest
            code = process.wait()
        cancellation.check()
        text = output[-MAX_OUTPUT:].decode(errors="replace")
        if not finished:
            msg = f"{command[0]} had not ended after {timeout_s:g} s and was killed; it said: {text.strip()}"
            raise PostgresError(msg)
        return Result(code, text)
    finally:
        wake.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(
    process: subprocess.Popen[bytes], wake: Wake | None, timeout_s: float, now: Callable[[], float]
) -> tuple[bool, bytes]:
    """Read until all writers are gone (True), or until woken or out of time (False)."""
    assert process.stdout is not None  # noqa: S101 - it was made with a pipe
    pipe = process.stdout.fileno()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if wake is not None:
        poll.register(wake.descriptor, select.POLLIN)
    deadline = now() + timeout_s
    output = b""
    while (left_s := deadline - now()) > 0:
        ready = {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
        if wake is not None and wake.descriptor in ready:
            return False, output
        if pipe in ready:
            data = os.read(pipe, _CHUNK)
            if not data:
                return True, output
            output = (output + data)[-2 * MAX_OUTPUT :]
    return False, output

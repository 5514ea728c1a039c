"""The tiny init: reaps everything, forwards signals, keeps the exit code, ends what a dead supervisor left.

As PID 1, or asked for by COMPUTE_NODE_INIT=1, the process becomes two before it has threads: the parent stays
here for the rest of its life, the child goes on as the supervisor. Standard library only. The parent handles no
signal: all that concern it are blocked and waited for. It is the one place that waits for «any child».
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Final

VARIABLE: Final = "COMPUTE_NODE_INIT"
STOPPING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
FORWARDED: Final = STOPPING | {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
LADDER: Final = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 1.0))
"""What is sent to the Postgres that a supervisor left, and how many seconds it may take to work."""
SIGNAL_DEATH: Final = 128
"""A process killed by signal n is told as exit status 128 + n, as shells do."""

_WAITED: Final = FORWARDED | {signal.SIGCHLD}
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


_reaped: memoryview | None = None
"""How many orphans the init has waited for; memory that both processes share."""


def reaped() -> int:
    """Return how many orphans were reaped so far; 0 where there is no init of ours."""
    return 0 if _reaped is None else _reaped[0]


def enter() -> None:
    """Return in the process that is to be the supervisor: this one, or a child where an init is needed.

    To be called before there are threads, by the main thread.
    """
    asked = os.environ.pop(VARIABLE, None) == "1"
    if not asked and os.getpid() != 1:
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored one, inherited, would lose the exit codes
    control = _process_control() if os.getpid() != 1 else None
    if control is not None:
        control(_PR_SET_CHILD_SUBREAPER, 1)
    _share_the_count()
    init = os.getpid()
    supervisor = os.fork()
    if supervisor:
        os._exit(_serve(supervisor))
    # A group of its own: Ctrl-C reaches the init, which forwards it once.
    os.setpgid(0, 0)
    if control is not None:
        # The init has one thread, which lives as long as it does: the signal cannot come too early.
        control(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != init:
            os.kill(os.getpid(), signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _share_the_count() -> None:
    global _reaped  # noqa: PLW0603 - there is one init, as there is one process
    import mmap

    _reaped = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")


def _process_control() -> Callable[[int, int], None] | None:
    """Return prctl; None, and a word to the operator, where there is none."""
    try:
        import ctypes

        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError) as error:
        _say(f"{VARIABLE}=1: orphans are not adopted, prctl cannot be called: {error}")
        return None

    def control(option: int, value: int) -> None:
        if prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            _say(f"{VARIABLE}=1: prctl({option}) failed: {os.strerror(ctypes.get_errno())}")

    return control


def _serve(supervisor: int) -> int:
    """Serve the supervisor until it ends, then end what it left; return the exit status."""
    code = None
    while code is None:
        number = signal.sigwaitinfo(_WAITED).si_signo
        if number != signal.SIGCHLD:
            _send(supervisor, number)  # ours, and not yet waited for: the id is still its own
        ended = _reap()
        code = ended.pop(supervisor, None)
        if _reaped is not None:
            _reaped[0] += len(ended)
    _end_the_rest()
    return code if code >= 0 else SIGNAL_DEATH - code


def _reap() -> dict[int, int]:
    """Wait for every child that has ended; return their exit codes, negative for a signal."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def _end_the_rest() -> None:
    """End what was left to this process, Postgres first of all; another request to stop skips a rung."""
    for number, patience_s in LADDER:
        left = _children()
        if not left:
            return
        _say(f"the supervisor has ended and left {', '.join(map(_describe, left))}: sending {number.name}")
        _signal_all(left, number)
        deadline = monotonic() + patience_s
        while (left_s := deadline - monotonic()) > 0:
            came = signal.sigtimedwait(_WAITED, left_s)
            _reap()
            if not (now := _children()):
                return
            if came is not None and came.si_signo in STOPPING and number is not signal.SIGKILL:
                break
            _signal_all(now - left, number)  # orphaned meanwhile
            left |= now


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Postgres gets the signal itself; what is no Postgres knows TERM rather than INT and QUIT."""
    for pid in pids:
        plain = number is signal.SIGKILL or _name(pid) == "postgres"
        _send(pid, number if plain else signal.SIGTERM)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _children() -> frozenset[int]:
    """Return the children that have not ended."""
    found = set()
    ours = str(os.getpid())
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            state, parent = (_stat(int(entry.name)) or ("", "", ""))[1:]
            if parent == ours and state not in {"Z", "X"}:
                found.add(int(entry.name))
    return frozenset(found)


def _stat(pid: int) -> tuple[str, str, str] | None:
    """Return the name, the state and the parent of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    state, parent = tail.split()[:2]
    return head.partition("(")[2], state, parent


def _name(pid: int) -> str:
    return (_stat(pid) or ("?", "", ""))[0]


def _describe(pid: int) -> str:
    return f"{_name(pid)} ({pid})"


def _say(text: str) -> None:
    sys.stderr.write(f"compute-node init: {text}\n")
    sys.stderr.flush()

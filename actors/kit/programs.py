"""Helper programs (initdb, `postgres -C`, pg_dump, debuggers): run to their end, or ended with all they started."""

import contextlib
import itertools
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from ...messages.failpoints import Failpoint
from ...messages.metrics import SLOW_SPAWNS, SPAWN_SECONDS, SPAWNS
from ...messages.stream import ByteStream, StreamClosedError
from .jobs import Cancellation
from .metrics import Metrics

MAX_OUTPUT: Final = 65_536
"""Bytes of output that are kept: the last ones."""
MARK: Final = "COMPUTE_NODE_HELPER"
"""Tells a helper and all that it starts from everybody else's processes."""
SLOW_SPAWN_S: Final = 0.05
"""A start beyond it is counted: as long as a handler may take, for that is what it holds up."""
BROKEN_OFF: Final = "it was broken off because the node is ending"
_AFTER_KILL_S: Final = 2.0
_AFTER_EXIT_S: Final = 1.0
"""How long what a program has left behind may go on before it is killed, too."""
_CHUNK: Final = 65_536
_numbers: Final = itertools.count()

Leftovers: TypeAlias = Callable[[Sequence[int]], Callable[[], None]]
"""Sees what processes hold that outlives them, and returns what removes it."""


class ProgramError(Exception):
    """A program could not be started or took too long; the message names it and says what it said."""


class Identity(Protocol):
    """An account of the system."""

    @property
    def uid(self) -> int:
        """Its user id."""
        ...

    @property
    def gid(self) -> int:
        """Its group id."""
        ...

    @property
    def groups(self) -> tuple[int, ...]:
        """Its other groups."""
        ...


class Result(msgspec.Struct, frozen=True):
    """How a program ended; `code` as `Popen.returncode`, `output` is stdout and stderr as they came."""

    code: int
    output: str


class Program(msgspec.Struct, frozen=True):
    """A program to be started: its arguments, its environment, and the descriptors that it inherits."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()


class Wake:
    """A descriptor that becomes readable when a job is asked to end; close it before leaving."""

    def __init__(self, cancellation: Cancellation) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.descriptor: Final = self._descriptor
        cancellation.on_request(self.wake)

    def wake(self) -> None:
        """Make it readable; from any thread."""
        with self._lock:
            if self._descriptor is not None:
                os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """Free the descriptor; a cancellation that comes later is harmless."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)


class Starter:
    """Starts programs as the account, each in a session of its own, and measures how long a start takes.

    `oom_score_adj` is what this process had before it made itself unattractive to the OOM killer: what is not
    `protected` gets it back.
    """

    def __init__(
        self, account: Identity | None, *, metrics: Metrics | None = None, oom_score_adj: int | None = None
    ) -> None:
        self.account: Final = account
        self.oom_score_adj: Final = oom_score_adj
        self._metrics = metrics

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        output: int,
        errors: int = subprocess.STDOUT,
        pass_fds: Sequence[int] = (),
        protected: bool = False,
    ) -> "subprocess.Popen[bytes]":
        """Start a program, its output going to the descriptor (or PIPE). Raises ProgramError."""
        keywords: dict[str, Any] = {}
        if self.account is not None:
            keywords = {
                "user": self.account.uid,
                "group": self.account.gid,
                "extra_groups": self.account.groups,
            }
        began_s = monotonic()
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                pass_fds=pass_fds,
                start_new_session=True,
                umask=0o077,
                **keywords,
            )
        except OSError as error:
            msg = f"{command[0]} cannot be run: {error.strerror or error}"
            raise ProgramError(msg) from error
        self._measure(Path(command[0]).name, monotonic() - began_s)
        if not protected and self.oom_score_adj is not None:
            with contextlib.suppress(OSError):  # it has ended, or we were not allowed to lower it either
                Path(f"/proc/{process.pid}/oom_score_adj").write_text(
                    str(self.oom_score_adj), encoding="ascii"
                )
        return process

    def _measure(self, program: str, seconds: float) -> None:
        """Count the start: no thread of ours runs before the program does (Popen holds the interpreter)."""
        if self._metrics is None:
            return
        self._metrics.add(SPAWNS, 1, program)
        self._metrics.add(SPAWN_SECONDS, seconds, program)
        if seconds > SLOW_SPAWN_S:
            self._metrics.add(SLOW_SPAWNS, 1, program)


def run(  # noqa: PLR0913 - all but the command by name
    command: Sequence[str],
    *,
    starter: Starter,
    env: Mapping[str, str],
    cwd: str,
    timeout_s: float,
    cancellation: Cancellation,
    step: Failpoint | None = None,
    leftovers: Leftovers | None = None,
    said: Callable[[bytes], None] | None = None,
) -> Result:
    """Run a program in its own session and return when it and all it started have ended.

    With `said` its stderr is handed on as it comes, and is no part of the output. On a cancellation or time-out it is
    killed with all that it started; what still goes on a second after its own end is, too. `step` is reached once it
    has been started.
    `leftovers` is called with the processes to be killed, and what it returns once they are gone.
    Raises CancelledError, or ProgramError when it cannot be started or takes too long.
    """
    program = Program(tuple(command), env)
    return _run(program, starter, timeout_s, cancellation, cwd=cwd, step=step, leftovers=leftovers, said=said)


def listen(
    program: Program,
    heard: Callable[[bytes], None],
    *,
    starter: Starter,
    cwd: str,
    silence_s: float,
    cancellation: Cancellation,
) -> Result:
    """Do the same for a program that may take long and says how far it is: `heard` gets its output as it comes.

    It is killed when it has said nothing for `silence_s`.
    """
    return _run(program, starter, silence_s, cancellation, cwd=cwd, heard=heard)


def _run(  # noqa: PLR0913 - all but the first by name
    program: Program,
    starter: Starter,
    timeout_s: float,
    cancellation: Cancellation,
    *,
    cwd: str,
    step: Failpoint | None = None,
    leftovers: Leftovers | None = None,
    heard: Callable[[bytes], None] | None = None,
    said: Callable[[bytes], None] | None = None,
) -> Result:
    cancellation.check()
    wake = Wake(cancellation)
    try:
        errors = subprocess.STDOUT if said is None else subprocess.PIPE
        mark = f"{os.getpid()}-{next(_numbers)}"
        marked = f"{MARK}={mark}".encode()
        process = starter.start(
            program.command,
            env={**program.env, MARK: mark},
            cwd=cwd,
            output=subprocess.PIPE,
            pass_fds=program.pass_fds,
            errors=errors,
        )
        with process:
            try:
                if step is not None:
                    cancellation.reach(step)
                finished, output = _read(process, wake, timeout_s, cancellation.now, heard, said)
            except BaseException:
                _kill(process, marked, cancellation.now, leftovers)
                raise
            if not finished:
                finished = _has_exited(process)  # others than itself hold its output
                output += _kill(process, marked, cancellation.now, leftovers)
            code = process.wait()
        cancellation.check()
        text = output[-MAX_OUTPUT:].decode(errors="replace")
        if not finished:
            slow = "had not ended after" if heard is None else "has said nothing for"
            name = program.command[0]
            told = "" if said is not None and not text else f"; it said: {text.strip() or 'nothing'}"
            msg = f"{name} {slow} {timeout_s:g} s and was killed{told}"
            raise ProgramError(msg)
        return Result(code, text)
    finally:
        wake.close()


def pour(
    program: Program,
    *,
    into: ByteStream,
    poured: Callable[[int], None],
    starter: Starter,
    timeout_s: float,
    cancellation: Cancellation,
) -> Result:
    """Run a program whose stdout goes into the stream as fast as it is read; `Result.output` is its stderr.

    `poured` is called with the size of each piece that is in the stream. It is killed with all that it started when the reader leaves, on a cancellation or time-out. How the stream ends is
    left to the caller, but for a cancellation. Raises CancelledError, StreamClosedError, and ProgramError as `run` does.
    """
    cancellation.check()
    wake = Wake(cancellation)
    cancellation.on_request(partial(into.fail, BROKEN_OFF))
    into.on_close(wake.wake)
    try:
        mark = f"{os.getpid()}-{next(_numbers)}"
        process = starter.start(
            program.command,
            env={**program.env, MARK: mark},
            cwd="/",
            output=subprocess.PIPE,
            errors=subprocess.PIPE,
            pass_fds=program.pass_fds,
        )
        with process:
            pouring = _Pouring(process, into, poured, wake, timeout_s, cancellation.now)
            try:
                finished = pouring.run()
            except BaseException:
                _kill(process, f"{MARK}={mark}".encode(), cancellation.now)
                cancellation.check()
                raise
            if not finished:
                _kill(process, f"{MARK}={mark}".encode(), cancellation.now)
            code = process.wait()
        cancellation.check()
        if into.closed:
            raise StreamClosedError
        said = pouring.said.decode(errors="replace")
        if not finished:
            msg = f"{program.command[0]} had not ended after {timeout_s:g} s and was killed; it said: {said.strip()}"
            raise ProgramError(msg)
        return Result(code, said)
    finally:
        wake.close()


class _Pouring:
    """Moves stdout of a process into a stream, and keeps the end of stderr."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        into: ByteStream,
        poured: Callable[[int], None],
        wake: Wake,
        timeout_s: float,
        now: Callable[[], float],
    ) -> None:
        assert process.stdout is not None  # noqa: S101 - it was made with pipes
        assert process.stderr is not None  # noqa: S101 - as above
        self.said = b""
        self._output = process.stdout.fileno()
        self._errors = process.stderr.fileno()
        self._into = into
        self._poured = poured
        self._wake = wake
        self._now = now
        self._deadline = now() + timeout_s

    def run(self) -> bool:
        """Go on until all writers are gone (True), or until woken or out of time. Raises StreamClosedError."""
        poll = select.poll()
        opened = {self._output, self._errors}
        for descriptor in (*opened, self._wake.descriptor):
            poll.register(descriptor, select.POLLIN)
        while opened and (left_s := self._deadline - self._now()) > 0:
            ready = {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
            if self._wake.descriptor in ready:
                return False
            for descriptor in opened & ready:
                data = os.read(descriptor, _CHUNK)
                if not data:
                    poll.unregister(descriptor)
                    opened.discard(descriptor)
                elif descriptor == self._errors:
                    self.said = (self.said + data)[-MAX_OUTPUT:]
                elif not self._pass_on(data):
                    return False
        return not opened

    def _pass_on(self, data: bytes) -> bool:
        written = self._into.write(data, max(0.0, self._deadline - self._now()))
        if written:
            self._poured(len(data))
        return written


def _kill(
    process: subprocess.Popen[bytes],
    marked: bytes,
    now: Callable[[], float],
    leftovers: Leftovers | None = None,
) -> bytes:
    """Kill its group, and what has left that but is marked; return the rest of its output once all are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGSTOP)  # none of them makes more meanwhile
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    members = [pid for pid in pids if _belongs(pid, process.pid, marked)]
    clean_up = None if leftovers is None else leftovers(members)
    with contextlib.ExitStack() as descriptors:
        alive = select.poll()
        count = 0
        for pid in members:
            with contextlib.suppress(OSError):  # it is gone
                descriptor = os.pidfd_open(pid)
                descriptors.callback(os.close, descriptor)
                if _belongs(pid, process.pid, marked):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    alive.register(descriptor, select.POLLIN)
                    count += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _, rest = _read(process, None, _AFTER_KILL_S, now)
        deadline = now() + _AFTER_KILL_S  # some may have closed the output long ago
        while count and (left_s := deadline - now()) > 0:
            for descriptor, _ in alive.poll(left_s * 1000):
                alive.unregister(descriptor)
                count -= 1
    if clean_up is not None:
        clean_up()
    return rest


def _belongs(pid: int, group: int, marked: bytes) -> bool:
    try:
        return os.getpgid(pid) == group or marked in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it is gone, or not ours to look at
        return False


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether it has ended by itself, and leave it to be waited for: its number stays its own."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _read(
    process: subprocess.Popen[bytes],
    wake: Wake | None,
    timeout_s: float,
    now: Callable[[], float],
    heard: Callable[[bytes], None] | None = None,
    said: Callable[[bytes], None] | None = None,
) -> tuple[bool, bytes]:
    """Read until all writers are gone (True), or until woken or out of time, or a while after its own end (False)."""
    assert process.stdout is not None  # noqa: S101 - it was made with a pipe
    pipe = process.stdout.fileno()
    ears = {pipe: heard}
    if said is not None and process.stderr is not None:
        ears[process.stderr.fileno()] = said
    opened = set(ears)
    wakes = () if wake is None else (wake.descriptor,)
    poll = select.poll()
    output = b""
    with contextlib.ExitStack() as stack:
        own = os.pidfd_open(process.pid)
        stack.callback(os.close, own)
        for descriptor in (*opened, *wakes, own):
            poll.register(descriptor, select.POLLIN)
        deadline, last = now() + timeout_s, float("inf")
        while opened and (left_s := min(deadline, last) - now()) > 0:
            ready = {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
            if ready.intersection(wakes):
                return False, output
            if own in ready:
                poll.unregister(own)
                last = now() + _AFTER_EXIT_S
            for descriptor in opened & ready:
                data = os.read(descriptor, _CHUNK)
                if not data:
                    poll.unregister(descriptor)
                    opened.discard(descriptor)
                elif descriptor == pipe:
                    output = (output + data)[-2 * MAX_OUTPUT :]
                    deadline = deadline if heard is None else now() + timeout_s
                if data and (ear := ears[descriptor]) is not None:
                    ear(data)
    return not opened, output

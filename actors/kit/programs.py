"""Helper programs (initdb, `postgres -C`, pg_dump, debuggers): run to their end, or ended with all they started."""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol

import msgspec

from ...messages.failpoints import Failpoint
from ...messages.metrics import SLOW_SPAWNS, SPAWN_SECONDS, SPAWNS
from ...messages.stream import ByteStream, StreamClosedError
from .families import MARK, Family, Leftovers
from .jobs import Cancellation
from .metrics import Metrics
from .output import MAX_OUTPUT, Pouring, read
from .wake import Wake

SLOW_SPAWN_S: Final = 0.05
"""A start beyond it is counted: as long as a handler may take, for that is what it holds up."""
BROKEN_OFF: Final = "it was broken off because the node is ending"
_numbers: Final = itertools.count()


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
    errors = subprocess.STDOUT if said is None else subprocess.PIPE
    with (
        contextlib.closing(Wake(cancellation)) as wake,
        _begun(program, starter, cancellation, cwd=cwd, errors=errors, leftovers=leftovers) as family,
    ):
        if step is not None:
            cancellation.reach(step)
        finished, output = read(family.process, wake, timeout_s, cancellation.now, heard, said)
        if not finished:
            finished = family.has_exited()  # others than itself hold its output
            output += family.kill()
        code = family.process.wait()
    cancellation.check()
    text = output[-MAX_OUTPUT:].decode(errors="replace")
    if not finished:
        slow = "had not ended after" if heard is None else "has said nothing for"
        raise _killed(program, f"{slow} {timeout_s:g} s", None if said is not None and not text else text)
    return Result(code, text)


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

    `poured` is called with the size of each piece that is in the stream. It is killed with all that it started when
    the reader leaves, on a cancellation or time-out. How the stream ends is left to the caller, but for a
    cancellation. Raises CancelledError, StreamClosedError, and ProgramError as `run` does.
    """
    cancellation.check()
    cancellation.on_request(partial(into.fail, BROKEN_OFF))
    try:
        with contextlib.closing(Wake(cancellation)) as wake:
            into.on_close(wake.wake)
            with _begun(program, starter, cancellation, cwd="/", errors=subprocess.PIPE) as family:
                pouring = Pouring(family.process, into, poured, wake, timeout_s, cancellation.now)
                finished = pouring.run()
                if not finished:
                    family.kill()
                code = family.process.wait()
    finally:
        cancellation.check()
    if into.closed:
        raise StreamClosedError
    text = pouring.said.decode(errors="replace")
    if not finished:
        raise _killed(program, f"had not ended after {timeout_s:g} s", text)
    return Result(code, text)


@contextlib.contextmanager
def _begun(
    program: Program,
    starter: Starter,
    cancellation: Cancellation,
    *,
    cwd: str,
    errors: int,
    leftovers: Leftovers | None = None,
) -> Iterator[Family]:
    """Start a helper; whatever is raised while it is under way ends it with all that it has started."""
    mark = f"{os.getpid()}-{next(_numbers)}"
    process = starter.start(
        program.command,
        env={**program.env, MARK: mark},
        cwd=cwd,
        output=subprocess.PIPE,
        errors=errors,
        pass_fds=program.pass_fds,
    )
    with process:
        family = Family(process, mark, cancellation.now, leftovers)
        try:
            yield family
        except BaseException:
            family.kill()
            raise


def _killed(program: Program, why: str, said: str | None) -> ProgramError:
    """Say why a program was killed, and what it had said; None: that was handed on."""
    told = "" if said is None else f"; it said: {said.strip() or 'nothing'}"
    return ProgramError(f"{program.command[0]} {why} and was killed{told}")

"""Putting Postgres into the cgroup that the command line names: by cgexec, else by writing its pid there.

Where neither can be done Postgres runs in the cgroup of the node, and a warning says so.
"""

import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from ...postgres import cgroup
from ...postgres.cgroup import PROC, Group
from ...postgres.environment import allowed
from ..kit.jobs import Cancellation
from ..kit.programs import ProgramError, Starter, run

CGEXEC: Final = "cgexec"
TRIAL_S: Final = 5.0
"""For trying whether the account that runs Postgres may enter the group."""

log = logging.getLogger("compute_node.postgres_process")


class Confinement(msgspec.Struct, frozen=True):
    """How Postgres gets there: what stands before its command, or the file that its pid is written to."""

    prefix: tuple[str, ...] = ()
    procs: str | None = None


NOT_CONFINED: Final = Confinement()


def plan(name: str, starter: Starter, cancellation: Cancellation, *, proc: str = PROC) -> Confinement:
    """Find the way into the group of that name; what is in the way is logged. Raises CancelledError.

    cgexec runs as the account of Postgres and would fail in its place, so it is tried first; the file is written by us.
    """
    try:
        group, places = cgroup.named(name, proc=proc)
    except OSError as error:
        return _outside(name, f"cgroups cannot be read: {error.filename}: {error.strerror or error}")
    if group is None:
        if not places:
            return _outside(name, "no hierarchy with the memory controller is mounted here")
        return _outside(
            name, f"there is no such group: make one (mkdir {places[0]}), or name another by --cgroup"
        )
    if (prefix := _cgexec(group, starter, cancellation)) is not None:
        return Confinement(prefix=prefix)
    procs = f"{group.path}/cgroup.procs"
    if os.access(procs, os.W_OK):
        return Confinement(procs=procs)
    return _outside(name, f"this user may not write to {procs}, and cgexec is not there or refuses")


def _cgexec(group: Group, starter: Starter, cancellation: Cancellation) -> tuple[str, ...] | None:
    program = shutil.which(CGEXEC)
    if program is None:
        return None
    prefix = (program, "-g", f"memory:{group.name}")
    try:
        trial = run(
            [*prefix, "true"],
            starter=starter,
            env=allowed(os.environ),
            cwd="/",
            timeout_s=TRIAL_S,
            cancellation=cancellation,
        )
    except ProgramError as error:
        log.info("%s is not used: %s", program, error)
        return None
    if trial.code != 0:
        log.info("%s is not used: it ends with %d, saying: %s", program, trial.code, trial.output.strip())
        return None
    return prefix


def enter(procs: str, pid: int) -> None:
    """Put a process that was just started into a group, with the children that it may have by now."""
    try:
        Path(procs).write_text(str(pid), encoding="ascii")
        for child in _children(pid):
            with contextlib.suppress(ProcessLookupError):
                Path(procs).write_text(str(child), encoding="ascii")
    except ProcessLookupError:
        pass  # it has ended, which is told elsewhere
    except OSError as error:
        _outside(Path(procs).parent.name, f"{procs} refuses process {pid}: {error.strerror or error}")


def _children(pid: int) -> tuple[int, ...]:
    """Read them once the process itself is in the group: later ones are born there."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return ()
    return tuple(map(int, text.split()))


def _outside(name: str, why: str) -> Confinement:
    log.warning(
        "Postgres is not put into the cgroup %s, but runs in that of the node, whose memory counts then: %s",
        *(name, why),
    )
    return NOT_CONFINED

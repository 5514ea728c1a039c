"""Core dumps of a run: found in PGDATA, shown as a backtrace in the log."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..kit.jobs import Cancellation
from ..kit.programs import ProgramError, Starter, run

TIMEOUT_S: Final = 20.0
"""Of one backtrace."""
SHOWN_OF_STRINGS: Final = 8
"""Characters: arguments of a backtrace hold statements, and those may hold secrets."""
MAX_CORES: Final = 5
"""Of one run; a crash loop of backends leaves many of the same."""

log = logging.getLogger("compute_node.postgres_process")


def find(pgdata: str, since_s: float) -> tuple[str, ...]:
    """Return the core files in the folder that were written since then (seconds since the epoch), oldest first."""
    try:
        entries = [
            (entry.stat().st_mtime, str(entry))
            for entry in Path(pgdata).iterdir()
            if (entry.name == "core" or entry.name.startswith("core.")) and entry.is_file()
        ]
    except FileNotFoundError:
        return ()
    return tuple(path for written_s, path in sorted(entries) if written_s >= since_s)


def debugger(postgres: str, core: str) -> list[str] | None:
    """Return the command that prints a backtrace; None when no debugger is installed."""
    import shutil

    if (gdb := shutil.which("gdb")) is not None:
        shorten = f"set print elements {SHOWN_OF_STRINGS}"
        return [gdb, "--batch", "-q", "-nx", "-ex", shorten, "-ex", "bt", postgres, core]
    if (lldb := shutil.which("lldb")) is not None:
        shorten = f"settings set target.max-string-summary-length {SHOWN_OF_STRINGS}"
        return [lldb, "-c", core, "--batch", "-o", shorten, "-o", "bt all", "-o", "quit"]
    return None


def report(
    paths: Sequence[str],
    postgres: str,
    *,
    starter: Starter,
    env: Mapping[str, str],
    cancellation: Cancellation,
) -> None:
    """Log a backtrace of each, at warning level. Raises CancelledError."""
    for path in paths[:MAX_CORES]:
        command = debugger(postgres, path)
        if command is None:
            log.warning("core dump found: %s; no debugger (gdb, lldb) is installed to look at it", path)
            continue
        log.warning("core dump found: %s, collecting backtrace", path)
        try:
            result = run(
                command, starter=starter, env=env, cwd="/", timeout_s=TIMEOUT_S, cancellation=cancellation
            )
        except ProgramError as error:
            log.warning("error while checking for core dumps: %s", error)
        else:
            log.warning("core dump backtrace: %s", result.output.strip())
    if len(paths) > MAX_CORES:
        log.warning("%d more core dumps were found", len(paths) - MAX_CORES)

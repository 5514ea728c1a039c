"""Limits of the process that Postgres inherits."""

import resource
from pathlib import Path
from typing import Final

OOM_SCORE: Final = -900
"""Short of memory, the kernel is to choose a backend rather than the postmaster or us."""

_OWN_SCORE: Final = Path("/proc/self/oom_score_adj")


def oom_score_adj() -> int | None:
    """Return this process's own; None where the system has none."""
    try:
        return int(_OWN_SCORE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def lower_oom_score(original: int | None) -> str | None:
    """Protect this process, and what inherits from it, from the OOM killer; return what is not permitted."""
    if original is None:
        return None
    problem = None
    for score in (OOM_SCORE, 0):  # without the capability a score that was only raised may be lowered again
        if original <= score:
            break
        try:
            _OWN_SCORE.write_text(str(score), encoding="ascii")
        except OSError as error:
            problem = (
                f"the node and its postmaster are not protected from the OOM killer ({error.strerror}): that takes "
                "CAP_SYS_RESOURCE (containers: --cap-add SYS_RESOURCE; systemd: AmbientCapabilities=CAP_SYS_RESOURCE)"
            )
        else:
            break
    return problem


def raise_core_limit() -> str | None:
    """Allow core dumps up to the hard limit; return a warning where that is not unlimited."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    except OSError as error:
        return f"core dumps of Postgres may be missing: the limit cannot be raised ({error.strerror})"
    if hard == resource.RLIM_INFINITY:
        return None
    what = "not written" if hard == 0 else f"cut at {hard} bytes"
    return (
        f"core dumps of Postgres are {what}: the hard limit is lower than unlimited. "
        "Start with `ulimit -Hc unlimited` (containers: --ulimit core=-1; systemd: LimitCORE=infinity)"
    )

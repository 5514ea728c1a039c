"""Limits of the process that Postgres inherits."""

import resource


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

"""The kinds of work that this actor does in jobs; at most one of each kind is under way."""

from enum import Enum


class Work(Enum):
    """One kind of job; the value is its name in logs."""

    INSPECT = "inspect PGDATA"
    WARM = "warm the memory"
    CHECK = "check the configuration"
    QUORUM = "ask the safekeepers where the log ends"
    SYNC = "sync the safekeepers"
    PREPARE = "prepare PGDATA"
    LOGS = "read the log of Postgres"
    LAUNCH = "launch Postgres"
    AWAIT_READY = "wait until Postgres is ready"
    AWAIT_EXIT = "wait for the exit of Postgres"
    COMPARE = "compare the settings"
    INSTALL = "install the configuration"
    PROMOTE = "promote Postgres"
    SETTLE = "settle the configuration"
    KILL = "kill Postgres"
    TIDY = "clean up after Postgres"
    CORES = "look for core dumps"
    DISK = "look at the disk"


ENDED_BY_A_STOP = frozenset(
    {
        Work.INSPECT,
        Work.WARM,
        Work.CHECK,
        Work.COMPARE,
        Work.QUORUM,
        Work.SYNC,
        Work.PREPARE,
        Work.LAUNCH,
        Work.AWAIT_READY,
        Work.INSTALL,
        Work.PROMOTE,
        Work.SETTLE,
    }
)
"""What an order to stop cancels; the rest belongs to the stop."""

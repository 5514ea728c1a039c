"""What the Supervisor tells itself: its timers and the outcome of its job."""

from ...messages.base import Message
from ...messages.spec import ComputeSpec


class HeadStartEnded(Message, frozen=True):
    """The programs of Postgres are under way; what is heavy to load may follow."""


class ConfigurationGraceEnded(Message, frozen=True):
    """The configuration under way has had its moment; the termination goes on without it."""


class CheckpointOverdue(Message, frozen=True):
    """What is done before the stop, a checkpoint or a last offload, should be done or given up by now."""


class StopOverdue(Message, frozen=True):
    """Postgres should have been reported gone by now."""


class SyncOverdue(Message, frozen=True):
    """The sync of safekeepers after the end of Postgres should have been reported over by now."""


class LingerEnded(Message, frozen=True):
    """The control plane has had its time to read the status."""


class ClosingOverdue(Message, frozen=True):
    """The servers should have been reported closed by now."""


class RefreshDue(Message, frozen=True):
    """The pause is over: a refresh that is pending may begin."""


class ConfigurationReread(Message, frozen=True):
    """The config was read or fetched again; one of the two is set, or none when it holds no spec."""

    spec: ComputeSpec | None = None
    error: str | None = None
    waiters: tuple[int, ...] = ()
    refreshes: bool = False

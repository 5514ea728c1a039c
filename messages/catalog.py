"""What the Configurator hears and says: the SQL administration of a running Postgres."""

from .base import Message
from .spec import ComputeSpec


class MakeReady(Message, frozen=True):
    """Load what applying a spec takes; one is expected."""


class ApplySpec(Message, frozen=True):
    """Bring roles, databases and grants to the described state.

    `starting` tells the first application (many connections) from a reconfiguration (few).
    """

    operation: int
    spec: ComputeSpec
    starting: bool


class CancelApply(Message, frozen=True):
    """Break the application off; its ApplyFailed still comes."""

    operation: int


class Checkpoint(Message, frozen=True):
    """Write what is dirty before a stop, so that less is left for it; given up after `limit_s`."""

    limit_s: float


class CheckpointEnded(Message, frozen=True):
    """The checkpoint is written or not worth it, or `error` says why not; the stop goes on in any case."""

    error: str | None = None


class RunMigrations(Message, frozen=True):
    """Bring the privileged role up to date, in the background; how it ends is in the log and the metrics."""


class CollectExtensions(Message, frozen=True):
    """See again and again which extensions are installed; `at_once` for the first time now."""

    at_once: bool


class StopUpkeep(Message, frozen=True):
    """Postgres is about to be stopped, or is gone: break off what goes on in the background, and begin no more."""


class SpecApplied(Message, frozen=True):
    """The catalog is in the described state; `statements` were needed."""

    operation: int
    statements: int
    took_ms: int
    subscribers: bool = True
    """Whether logical subscribers may work: none that the branch has inherited is left."""


class ApplyFailed(Message, frozen=True):
    """The catalog is not in the described state; `error` lists what failed, by object."""

    operation: int
    error: str
    subscribers: bool = False
    """As in SpecApplied; False when it is not known."""

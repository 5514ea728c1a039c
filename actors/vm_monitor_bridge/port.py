"""What the bridge does to the world, so that doubles can stand in: the agents, the memory, the cache, the machine."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from ...messages.base import Message
from ..kit.jobs import Cancellation
from .decisions import Pressure
from .protocol import ToAgent

Heard: TypeAlias = Callable[[Message], None]
"""Takes what a job that goes on has to say, on the job's thread; never blocks."""


class VmError(Exception):
    """Something could not be done; the message says what, why, and what to do."""


class Agents(Protocol):
    """The websocket server for autoscaler agents. `serve` belongs in a job; the others return at once."""

    def serve(self, heard: Heard, cancellation: Cancellation) -> None:
        """Listen until cancelled. `heard` gets Listening, AgentOffered, AgentSaid and AgentGone.

        Raises VmError when it cannot be listened.
        """
        ...

    def send(self, connection: int, message: ToAgent) -> None:
        """Send a message, after those sent before; nothing happens when the agent is gone."""
        ...

    def close(self, connection: int, code: int, reason: str) -> None:
        """Say goodbye once all that was sent before is out."""
        ...


class Memory(Protocol):
    """The memory of the machine, and of the cgroup that Postgres is in."""

    def watch(self, postmaster: int, heard: Heard, cancellation: Cancellation) -> None:
        """Sample until cancelled. `heard` gets CgroupFound, and MemoryUsed when that is worth telling.

        Raises VmError when there is nothing to be read.
        """
        ...

    def expect(self, pressure: Pressure | None) -> None:
        """Be told what is too much (None: nobody can be asked for more); never blocks."""
        ...

    def total(self, postmaster: int, granted: int | None = None) -> int:
        """Return what was granted, else what the machine has; less where a limit of Postgres's cgroup says so.

        Raises VmError.
        """
        ...


class FileCache(Protocol):
    """The file cache of Neon's extension, through SQL."""

    def resize(self, size: int, cancellation: Cancellation) -> int | None:
        """Make it at most that large; returns the size it has now, or None where there is no file cache.

        Raises VmError.
        """
        ...


class Machine(Protocol):
    """What is set before Postgres starts, by programs of the machine."""

    def resize_swap(self, size: int, cancellation: Cancellation) -> None:
        """Have swap of that many bytes. Raises VmError."""
        ...

    def set_disk_quota(self, size: int, cancellation: Cancellation) -> None:
        """Allow that many bytes on the file system; 0: as many as fit. Raises VmError."""
        ...

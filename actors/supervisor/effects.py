"""What the Supervisor's decisions ask its shell to do."""

from typing import TypeAlias

import msgspec

from ...messages.base import Message
from ..kit.effects import After, Log, Never

POSTGRES = "postgres_process"
CONFIGURATOR = "configurator"
MONITOR = "activity_monitor"
LFC = "lfc_manager"
LEASE = "lsn_lease"
HTTP = "http_facade"
VM = "vm_monitor_bridge"


class Tell(msgspec.Struct, frozen=True):
    """Tell another actor something."""

    to: str
    message: Message


class Publish(msgspec.Struct, frozen=True):
    """Tell everybody who listens."""

    message: Message


class Answer(msgspec.Struct, frozen=True):
    """Answer one who waits."""

    waiter: int
    value: Message


class DumpJournal(msgspec.Struct, frozen=True):
    """Write the last messages of all actors into the log; the level is one of logging's."""

    level: int


class ReadConfiguration(msgspec.Struct, frozen=True):
    """Read the config again, as a job, for those who wait or for a refresh."""

    waiters: tuple[int, ...] = ()
    refreshes: bool = False


Effect: TypeAlias = Tell | Publish | Answer | After | Never | Log | DumpJournal | ReadConfiguration

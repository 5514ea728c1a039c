"""What the VmMonitorBridge's decisions ask its shell to do."""

from typing import Final, TypeAlias

import msgspec

from ...messages.vm import PrepareVm
from ..kit.effects import Log, Remind, Tell
from . import protocol
from .decisions import Pressure

GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
"""Codes of a goodbye, as RFC 6455 has them."""


class Serve(msgspec.Struct, frozen=True):
    """Listen for agents."""

    run: int


class Watch(msgspec.Struct, frozen=True):
    """Watch the memory of Postgres."""

    run: int
    postmaster: int


class Size(msgspec.Struct, frozen=True):
    """Find out how much memory there is to use, of that (None: of the machine's), and set the file cache if `cache`."""

    work: int
    postmaster: int
    total: int | None
    cache: bool


class Prepare(msgspec.Struct, frozen=True):
    """Set swap and quota."""

    wanted: PrepareVm


class Cancel(msgspec.Struct, frozen=True):
    """End the job that such an effect began."""

    of: type[Serve | Watch | Size | Prepare]


class Send(msgspec.Struct, frozen=True):
    """Send the agent a message."""

    connection: int
    message: protocol.ToAgent


class Close(msgspec.Struct, frozen=True):
    """Say goodbye to an agent."""

    connection: int
    code: int
    reason: str


class Expect(msgspec.Struct, frozen=True):
    """Tell those who watch what is too much."""

    pressure: Pressure | None


class Count(msgspec.Struct, frozen=True):
    """Count a decision."""

    decision: str


Effect: TypeAlias = (
    Serve | Watch | Size | Prepare | Cancel | Send | Close | Expect | Tell | Remind | Log | Count
)

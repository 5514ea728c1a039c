"""What `postmaster.pid` says; it may be read while Postgres is writing it, so only whole lines count."""

from enum import Enum
from typing import Final

import msgspec

STATUS_LINE: Final = 8


class PostmasterStatus(Enum):
    """The words of the status line."""

    STARTING = "starting"
    STOPPING = "stopping"
    READY = "ready"
    STANDBY = "standby"

    @property
    def accepts_connections(self) -> bool:
        """Whether clients may connect; `standby` is up and refuses them (not hot, or not consistent yet)."""
        return self is PostmasterStatus.READY


class PidFile(msgspec.Struct, frozen=True):
    """What could be read; None for what is not written yet, or not as Postgres writes it."""

    pid: int | None = None
    data_directory: str | None = None
    start_time: int | None = None
    """Seconds since the epoch."""
    port: int | None = None
    socket_directory: str | None = None
    """Empty when there is no Unix socket."""
    listen_address: str | None = None
    status: PostmasterStatus | None = None
    single_user: bool = False
    """Postgres in single-user mode holds the folder, not a postmaster."""


def parse(text: str) -> PidFile:
    """Read the file's text, whatever it is; never raises."""
    lines = text.split("\n")[:-1]  # what follows the last newline may be half a line
    pid = _number(lines, 1, signed=True)
    return PidFile(
        pid=None if pid is None else abs(pid),
        data_directory=_line(lines, 2),
        start_time=_number(lines, 3),
        port=_number(lines, 4),
        socket_directory=_line(lines, 5),
        listen_address=_line(lines, 6),
        status=_status(_line(lines, STATUS_LINE)),
        single_user=pid is not None and pid < 0,
    )


def _line(lines: list[str], number: int) -> str | None:
    return lines[number - 1] if number <= len(lines) else None


def _number(lines: list[str], number: int, *, signed: bool = False) -> int | None:
    text = _line(lines, number) or ""
    digits = text.removeprefix("-") if signed else text
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < len("1" * 20) else None


def _status(text: str | None) -> PostmasterStatus | None:
    try:
        return PostmasterStatus((text or "").rstrip())
    except ValueError:
        return None

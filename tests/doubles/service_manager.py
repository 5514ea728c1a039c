"""A service manager's notify socket: keeps what it is told, and by which process."""

import contextlib
import os
import socket
import struct
from typing import NamedTuple

_CREDENTIALS = struct.Struct("3i")


class Told(NamedTuple):
    """One datagram."""

    pid: int
    values: dict[str, str]


class ServiceManager:
    """Listens on `address`, a path or an abstract name that begins with `@`; close it at the end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.told: list[Told] = []

    def listen(self) -> list[Told]:
        """Take what has come; return all of it."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
                ((_, _, credentials),) = ancillary
                lines = dict(line.split("=", 1) for line in data.decode().splitlines())
                self.told.append(Told(_CREDENTIALS.unpack(credentials)[0], lines))
        return self.told

    def has(self, name: str, *, times: int = 1) -> bool:
        """Whether that variable was told so often."""
        return sum(name in told.values for told in self.listen()) >= times

    def close(self) -> None:
        self._socket.close()
        if not self.address.startswith("@"):
            os.unlink(self.address)  # noqa: PTH108 - an address, not a path

"""Listening sockets: which addresses, and what to tell when one cannot be had."""

import errno
import socket
from contextlib import ExitStack
from typing import Final

from .port import BindError

LOOPBACK: Final = ("127.0.0.1", "::1")
EVERYWHERE: Final = "::"
BACKLOG: Final = 128
PRIVILEGED: Final = 1024
FREE_PORT_TRIES: Final = 10

_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


def listen(server: str, host: str | None, port: int) -> list[socket.socket]:
    """Bind a server's sockets. `host` None is every interface, of both families where there are two.

    Port 0 takes a free one, the same for all addresses. Raises BindError, and leaves nothing bound.
    """
    if host is None:
        return [_everywhere(server, port)]
    return _all(server, _addresses(server, host, port), port)


def listen_on_loopback(server: str, port: int) -> list[socket.socket]:
    """Bind a server to 127.0.0.1 and, where there is IPv6, to ::1. Raises BindError."""
    return _all(server, LOOPBACK, port)


def is_loopback(host: str) -> bool:
    """Whether all addresses of this host name are loopback ones; False for an unknown name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    addresses = [str(entry[4][0]) for entry in found]
    return all(address == "::1" or address.startswith("127.") for address in addresses)


def shown(address: str, port: int) -> str:
    """Write an address and a port as one text: `[::]:3080`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def bind_error(server: str, address: str, port: int, error: OSError) -> BindError:
    """Say why an address could not be bound, and what to do about it."""
    what = f"cannot serve the {server} HTTP API at {shown(address, port)}"
    flag = f"--{server}-http-port"
    match error.errno:
        case errno.EADDRINUSE:
            todo = f"the port is taken by another process; stop that one, or choose another port with {flag}"
        case errno.EACCES | errno.EPERM:
            todo = f"no permission for this port; choose one of at least {PRIVILEGED} with {flag}"
        case errno.EADDRNOTAVAIL:
            todo = f"this machine has no address {address}; choose another host to listen on"
        case _:
            todo = error.strerror or str(error)
    return BindError(f"{what}: {todo}")


def _everywhere(server: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (EVERYWHERE, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
        )
    except (OSError, ValueError) as error:  # ValueError: no dual stack here
        if isinstance(error, OSError) and error.errno not in _NO_IPV6:
            raise bind_error(server, EVERYWHERE, port, error) from None
    everywhere4 = "0.0.0.0"  # noqa: S104 - every interface is what was asked for
    try:
        return socket.create_server((everywhere4, port), backlog=BACKLOG)
    except OSError as error:
        raise bind_error(server, everywhere4, port, error) from None


def _addresses(server: str, host: str, port: int) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        msg = f"cannot serve the {server} HTTP API at {shown(host, port)}: the host is not known ({error})"
        raise BindError(msg) from None
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def _all(server: str, addresses: tuple[str, ...], port: int) -> list[socket.socket]:
    for left in reversed(range(FREE_PORT_TRIES)):
        try:
            return _bind_each(addresses, port)
        except _AddressError as failure:
            free_elsewhere = port == 0 and failure.cause.errno == errno.EADDRINUSE
            if not (free_elsewhere and left):
                raise bind_error(server, failure.address, port, failure.cause) from None
    raise AssertionError(addresses)  # the last try returns or raises


class _AddressError(Exception):
    def __init__(self, address: str, cause: OSError) -> None:
        super().__init__(address)
        self.address = address
        self.cause = cause


def _bind_each(addresses: tuple[str, ...], port: int) -> list[socket.socket]:
    """Bind the same port of all addresses; those of an absent family may fail, but not all."""
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        absent: list[_AddressError] = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            wanted = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(socket.create_server((address, wanted), family=family, backlog=BACKLOG))
            except OSError as error:
                absent.append(_AddressError(address, error))
                if error.errno not in _NO_IPV6:
                    raise absent[-1] from None
            else:
                stack.callback(sockets[-1].close)
        if not sockets:
            raise absent[0]
        stack.pop_all()
        return sockets

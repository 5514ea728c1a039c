"""Where a host is: its name looked up on the caller's thread, or on one that nobody waits for."""

import contextlib
import errno
import socket
import threading


def find_addresses(host: str, port: int) -> tuple[str, ...]:
    """Look a name up, on the caller's thread. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


async def look_up(host: str, port: int) -> tuple[str, ...]:
    """Look a name up on a thread of its own that nobody waits for: asyncio would wait for its own. Raises OSError."""
    import asyncio

    if _is_address(host):
        return (host,)
    loop = asyncio.get_running_loop()
    found: asyncio.Future[tuple[str, ...]] = loop.create_future()

    def settle(result: tuple[str, ...] | OSError) -> None:
        if found.done():
            return
        if isinstance(result, OSError):
            found.set_exception(result)
        else:
            found.set_result(result)

    def look() -> None:
        try:
            result: tuple[str, ...] | OSError = find_addresses(host, port)
        except OSError as error:
            result = error
        except UnicodeError:
            result = OSError(errno.EINVAL, "it is no name of a host")
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=look, name="look-up", daemon=True).start()
    return await found


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False

"""How a program of Postgres is told a password: neither arguments nor environment of a process are a place for one."""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from ..messages.secret import Secret
from .accounts import Account

PASSFILE: Final = "PGPASSFILE"


@contextlib.contextmanager
def password_file(password: Secret | None, account: Account | None) -> Iterator[int | None]:
    """Lend a file in memory that only that account can read, with the password for everywhere; None without one.

    The program that inherits the descriptor N finds it by PGPASSFILE=/proc/self/fd/N.
    """
    if password is None:
        yield None
        return
    secret = password.reveal().replace("\\", "\\\\").replace(":", "\\:")
    descriptor = os.memfd_create("pgpass", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
        os.write(descriptor, f"*:*:*:*:{secret}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)

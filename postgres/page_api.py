"""The pageserver's gRPC service: the call that a helper process makes (page_api_call.py), and how it is started.

What the library starts and holds ends with the process. The token is in the call, so it is passed in memory.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..messages.secret import Secret
from .environment import allowed
from .page_api_call import BASE_BACKUP, LEASE
from .storage import Pageserver, Shard, Storage

HELPER: Final = str(Path(__file__).with_name("page_api_call.py"))
NO_LIBRARY: Final = (
    "the spec names a pageserver by grpc, and the library for it is not installed: "
    "pip install 'compute-node[grpc]', or give its libpq URL"
)


class Endpoint(msgspec.Struct, frozen=True):
    """A server, and what each of its calls bears."""

    target: str
    metadata: dict[str, str]


class BaseBackup(msgspec.Struct, frozen=True, tag_field="method", tag=BASE_BACKUP):
    """A backup at an LSN (0: the latest); `limit_s` is for the connection."""

    servers: tuple[Endpoint, ...]
    lsn: int
    replica: bool
    limit_s: float


class Lease(msgspec.Struct, frozen=True, tag_field="method", tag=LEASE):
    """A lease of an LSN from each server; `limit_s` is for all of it."""

    servers: tuple[Endpoint, ...]
    lsn: int
    limit_s: float


def is_installed() -> bool:
    """Whether the library is there; it is an optional extra."""
    return importlib.util.find_spec("grpc") is not None


def endpoint(storage: Storage, shard: Shard, server: Pageserver, token: Secret | None) -> Endpoint:
    """Say where a server of a shard is, and who asks it."""
    ids = {
        "neon-tenant-id": storage.tenant_id,
        "neon-timeline-id": storage.timeline_id,
        "neon-shard-id": shard.index,
    }
    bearer = {} if token is None else {"authorization": f"Bearer {token.reveal()}"}
    return Endpoint(server.url.reveal().removeprefix("grpc://").rstrip("/"), ids | bearer)


@contextlib.contextmanager
def described(call: BaseBackup | Lease) -> Iterator[int]:
    """Give a descriptor from which the helper reads the call."""
    descriptor = os.memfd_create("call", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, msgspec.json.encode(call))
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def command(descriptor: int) -> tuple[str, ...]:
    """Return the helper's command line."""
    return (sys.executable, "-P", HELPER, str(descriptor))


def environment() -> dict[str, str]:
    """Return the helper's environment: it finds what this process finds, wherever it was installed."""
    return allowed(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def failure(said: str) -> tuple[str, str | None]:
    """Return the text and the status, where it has one, of what a helper said last."""
    lines = said.strip().splitlines() or ["its helper ended without a word"]
    code, _, text = lines[-1].partition(": ")
    known = code.isupper() and bool(text)
    return (text, code) if known else (lines[-1], None)

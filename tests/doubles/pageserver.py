"""A pageserver that serves an archive and leases: protocols 2.3 and 2.4, and the switchboard of the wire below them."""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from compute_node.postgres.lsn import parse_lsn

from doubles.archives import chunks
from doubles.wire import Client, CopyOut, Refused, Reply, Rows, WireServer

_BACKUP = re.compile(r"basebackup ([0-9a-f]{32}) ([0-9a-f]{32})((?: (?:latest|--gzip|--replica|\w+/\w+))*)")
_LEASE = re.compile(r"lease lsn ([0-9a-f]{32})(-[0-9a-f]{4})? ([0-9a-f]{32}) (\w+/\w+) *")


@dataclass
class Pageserver:
    """One pageserver with one branch; may be changed while it serves. `server.faults` is the switchboard."""

    tenant_id: str
    timeline_id: str
    archive: bytes
    """What it sends, compressed."""
    chunk: int = 8192
    """Bytes of a message."""
    horizon: str = "0/0"
    """What is older was collected."""
    lease_s: float = 600.0
    """How long a lease is valid."""
    server: WireServer = field(init=False)

    @property
    def url(self) -> str:
        """What a spec says of it."""
        return self.server.url

    @property
    def backups(self) -> list[str]:
        """The commands for a base backup, in order."""
        return [query for query in self.server.queries if query.startswith("basebackup")]

    @property
    def leases(self) -> list[str]:
        """The commands for a lease, in order."""
        return [query for query in self.server.queries if query.startswith("lease")]

    def answer(self, _: Client, query: str) -> Reply:
        if (asked := _BACKUP.fullmatch(query)) is not None:
            return self._unknown(asked[1], asked[2]) or self._backup(asked[3].split())
        if (asked := _LEASE.fullmatch(query)) is not None:
            return self._unknown(asked[1], asked[3]) or self._lease(asked[4])
        return Refused(f"unknown command: {query}")

    def _unknown(self, tenant: str, timeline: str) -> Refused | None:
        if (tenant, timeline) == (self.tenant_id, self.timeline_id):
            return None
        return Refused(f"Not found: Timeline {tenant}/{timeline} was not found")

    def _backup(self, flags: list[str]) -> Reply:
        lsn = flags.pop(0) if flags and not flags[0].startswith("--") else "latest"
        if sorted(flags) not in (["--gzip"], ["--gzip", "--replica"]):
            return Refused(f"invalid flags: {flags}")
        if lsn != "latest" and parse_lsn(lsn) < parse_lsn(self.horizon):
            return Refused(f"invalid basebackup lsn: {lsn} is behind the GC cutoff")
        return CopyOut(chunks(self.archive, self.chunk))

    def _lease(self, lsn: str) -> Reply:
        held = parse_lsn(lsn) >= parse_lsn(self.horizon)
        until = str(round((time.time() + self.lease_s) * 1000)) if held else None
        return Rows(("valid_until",), ((until,),))


@contextlib.contextmanager
def pageserver(
    archive: bytes, *, tenant_id: str, timeline_id: str, password: str | None = None
) -> Iterator[Pageserver]:
    """Serve this archive meanwhile."""
    made = Pageserver(tenant_id, timeline_id, archive)
    with WireServer(made.answer, password=password) as server:
        made.server = server
        yield made

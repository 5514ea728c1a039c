"""A pageserver that serves an archive: the commands of protocols 2.3, and the switchboard of the wire below them."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from compute_node.postgres.lsn import parse_lsn

from doubles.archives import chunks
from doubles.wire import Client, CopyOut, Refused, Reply, WireServer

_COMMAND = re.compile(r"basebackup ([0-9a-f]{32}) ([0-9a-f]{32})((?: (?:latest|--gzip|--replica|\w+/\w+))*)")


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
    server: WireServer = field(init=False)

    @property
    def url(self) -> str:
        """What a spec says of it."""
        return self.server.url

    def answer(self, _: Client, query: str) -> Reply:
        found = _COMMAND.fullmatch(query)
        if found is None:
            return Refused(f"unknown command: {query}")
        if (found[1], found[2]) != (self.tenant_id, self.timeline_id):
            return Refused(f"Not found: Timeline {found[1]}/{found[2]} was not found")
        flags = found[3].split()
        lsn = flags.pop(0) if flags and not flags[0].startswith("--") else "latest"
        if sorted(flags) not in (["--gzip"], ["--gzip", "--replica"]):
            return Refused(f"invalid flags: {flags}")
        if lsn != "latest" and parse_lsn(lsn) < parse_lsn(self.horizon):
            return Refused(f"invalid basebackup lsn: {lsn} is behind the GC cutoff")
        return CopyOut(chunks(self.archive, self.chunk))


@contextlib.contextmanager
def pageserver(
    archive: bytes, *, tenant_id: str, timeline_id: str, password: str | None = None
) -> Iterator[Pageserver]:
    """Serve this archive meanwhile."""
    made = Pageserver(tenant_id, timeline_id, archive)
    with WireServer(made.answer, password=password) as server:
        made.server = server
        yield made

"""The real port: every server of every shard is asked at the same time, each by its own protocol."""

from typing import Final

from typing_extensions import override

from ...messages.spec import Wire
from ...postgres.connection import run_async
from ...postgres.neighbours import NeighbourError, Rows, ask
from ...postgres.storage import Pageserver, Shard
from ..kit.jobs import Cancellation
from .port import Answer, Failed, Granted, Pageservers, Refused, Wanted

LIMIT_S: Final = 10.0
"""For one server, from the connection to its answer."""


class StoragePageservers(Pageservers):
    """Speaks to the pageservers of Neon."""

    @override
    def request(self, wanted: Wanted, cancellation: Cancellation) -> Answer:
        return run_async(lambda: _ask_all(wanted), cancellation)


async def _ask_all(wanted: Wanted) -> Answer:
    import asyncio

    asked = [(shard, server) for shard in wanted.storage.shards for server in shard.servers]
    return combine(await asyncio.gather(*(_ask(wanted, shard, server) for shard, server in asked)))


def combine(answers: list[Answer]) -> Answer:
    """Put the answers of all servers into one: a refusal counts, then a failure, then whoever ends first."""
    for kind in (Refused, Failed):
        for answer in answers:
            if isinstance(answer, kind):
                return answer
    return Granted(min(answer.valid_until_ms for answer in answers if isinstance(answer, Granted)))


async def _ask(wanted: Wanted, shard: Shard, server: Pageserver) -> Answer:
    where = f"shard {shard.index}"
    if server.wire is not Wire.LIBPQ:
        return Failed(f"{where}: leases over {server.wire.value} are not built yet")
    tenant = wanted.storage.tenant_shard_id(shard)
    command = f"lease lsn {tenant} {wanted.storage.timeline_id} {wanted.lsn} "
    try:
        return read(await ask(server.url, command, token=wanted.token, limit_s=LIMIT_S), where)
    except NeighbourError as error:
        return Failed(f"{where}: {error}")


def read(rows: Rows, where: str) -> Answer:
    """Read the one value of a server's answer: milliseconds since the epoch, or NULL."""
    if len(rows) != 1 or len(rows[0]) != 1:
        return Failed(f"{where}: it answered {len(rows)} rows")
    value = rows[0][0]
    if value is None:
        return Refused(where)
    if not (value.isascii() and value.isdecimal()):
        return Failed(f"{where}: it answered what is no time: {value[:40]!r}")
    return Granted(int(value))

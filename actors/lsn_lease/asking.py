"""The real port: every server of every shard is asked at the same time, by libpq or, in a helper process, by gRPC."""

from typing import Final, TypeAlias

import msgspec
from typing_extensions import override

from ...messages.spec import Wire
from ...postgres import page_api
from ...postgres.coroutines import run_async
from ...postgres.lsn import parse_lsn
from ...postgres.neighbours import NeighbourError, Rows, ask
from ...postgres.page_api_call import OK
from ...postgres.storage import Pageserver, Shard
from ..kit.jobs import Cancellation
from ..kit.programs import Program, ProgramError, Starter, listen
from .port import Answer, Failed, Granted, Pageservers, Refused, Wanted

LIMIT_S: Final = 10.0
"""For one server, from the connection to its answer."""
HELPER_S: Final = 10.0
"""What a helper process may need beyond that, on a busy machine."""
REFUSED: Final = "FAILED_PRECONDITION"
"""The status by which a pageserver says over gRPC that it cannot hold the LSN."""

Asked: TypeAlias = tuple[Shard, Pageserver]


class StoragePageservers(Pageservers):
    """Speaks to the pageservers of Neon."""

    @override
    def request(self, wanted: Wanted, cancellation: Cancellation) -> Answer:
        asked = [(shard, server) for shard in wanted.storage.shards for server in shard.servers]
        by_wire = {wire: [one for one in asked if one[1].wire is wire] for wire in Wire}
        answers = _over_grpc(wanted, by_wire[Wire.GRPC], cancellation) if by_wire[Wire.GRPC] else []
        if libpq := by_wire[Wire.LIBPQ]:
            answers += run_async(lambda: _over_libpq(wanted, libpq), cancellation)
        return combine(answers)


def combine(answers: list[Answer]) -> Answer:
    """Put the answers of all servers into one: a refusal counts, then a failure, then whoever ends first."""
    for kind in (Refused, Failed):
        for answer in answers:
            if isinstance(answer, kind):
                return answer
    return Granted(min(answer.valid_until_ms for answer in answers if isinstance(answer, Granted)))


# --- libpq


async def _over_libpq(wanted: Wanted, asked: list[Asked]) -> list[Answer]:
    import asyncio

    return await asyncio.gather(*(_ask(wanted, shard, server) for shard, server in asked))


async def _ask(wanted: Wanted, shard: Shard, server: Pageserver) -> Answer:
    where = f"shard {shard.index}"
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


# --- gRPC


def _over_grpc(wanted: Wanted, asked: list[Asked], cancellation: Cancellation) -> list[Answer]:
    if not page_api.is_installed():
        return [Failed(page_api.NO_LIBRARY)]
    servers = tuple(page_api.endpoint(wanted.storage, shard, server, wanted.token) for shard, server in asked)
    try:
        with page_api.described(page_api.Lease(servers, parse_lsn(wanted.lsn), LIMIT_S)) as descriptor:
            result = listen(
                Program(page_api.command(descriptor), page_api.environment(), (descriptor,)),
                lambda _: None,
                starter=Starter(None),
                cwd="/",
                silence_s=LIMIT_S + HELPER_S,
                cancellation=cancellation,
            )
    except ProgramError as error:
        return [Failed(str(error))]
    if result.code != 0:
        return [Failed(page_api.failure(result.output)[0])]
    lines = [line for line in result.output.splitlines() if line.startswith("[")]  # the library may talk, too
    return [_told(line, f"shard {shard.index}") for line, (shard, _) in zip(lines, asked, strict=True)]


def _told(line: str, where: str) -> Answer:
    status, said = msgspec.json.decode(line, type=tuple[str, int | str])
    if status == OK and isinstance(said, int):
        return Granted(said)
    if status == REFUSED:
        return Refused(f"{where}: {said}")
    return Failed(f"{where}: {said} ({status})")

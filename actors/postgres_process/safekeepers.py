"""The safekeepers: do they agree on the end of the log, and how they are brought to.

`judge` and `read_lsn` are pure. Source: `protocols` reference, section 4.
"""

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

import msgspec

from ...messages.secret import Secret
from ...messages.spec import ComputeSpec
from ...postgres.coroutines import run_async
from ...postgres.lsn import parse_lsn, show_lsn
from ...postgres.masking import mask_server_words
from ...postgres.neighbours import USER, NeighbourError, ask
from ...postgres.storage import StorageError, safekeepers_of, storage_of
from ..kit.jobs import Cancellation
from ..kit.programs import ProgramError, run
from . import segments
from .launcher import describe_code
from .logs import Framer, show
from .node import Node
from .port import PostgresError

STATUS_QUERY: Final = "TIMELINE_STATUS"
LAST_WORDS: Final = 3
"""How many log messages of a sync that failed go into its error."""
SHOWN_OUTPUT: Final = 200
"""Characters of a program's output that an error repeats."""

log = logging.getLogger("compute_node.postgres_process")


class Position(msgspec.Struct, frozen=True):
    """What a safekeeper knows of the timeline: how far it has stored the log, and how far a quorum has."""

    flush_lsn: int
    commit_lsn: int


class Unknown(msgspec.Struct, frozen=True):
    """A safekeeper does not know the timeline."""


class Silent(msgspec.Struct, frozen=True):
    """A safekeeper gave no answer, or an error."""

    error: str


Reply: TypeAlias = Position | Unknown | Silent


class Agreed(msgspec.Struct, frozen=True):
    """A quorum is at the same place, and all of it is committed."""

    lsn: int


class Disagreed(msgspec.Struct, frozen=True):
    """The safekeepers must be brought together first."""

    why: str


Verdict: TypeAlias = Agreed | Disagreed


def quorum(count: int) -> int:
    """Return how many of so many safekeepers decide."""
    return count // 2 + 1


def judge(count: int, replies: Mapping[str, Reply]) -> Verdict | None:
    """Say what the replies so far, in the order in which they came, of `count` safekeepers mean; None: wait for more.

    The first quorum of answers counts; later ones are not waited for.
    """
    needed = quorum(count)
    answers = [(name, reply) for name, reply in replies.items() if not isinstance(reply, Silent)][:needed]
    silent = [f"{name}: {reply.error}" for name, reply in replies.items() if isinstance(reply, Silent)]
    if len(answers) < needed:
        if len(silent) < needed and len(replies) < count:
            return None
        return Disagreed(f"{len(answers)} of {count} answered, {needed} are needed ({'; '.join(silent)})")
    if unknown := [name for name, reply in answers if isinstance(reply, Unknown)]:
        return Disagreed(f"the timeline is not known to {', '.join(unknown)}")
    positions = [(name, reply) for name, reply in answers if isinstance(reply, Position)]
    ends = {end for _, reply in positions for end in (reply.flush_lsn, reply.commit_lsn)}
    if len(ends) == 1:
        return Agreed(ends.pop())
    told = (
        f"{name}: flush {show_lsn(reply.flush_lsn)}, commit {show_lsn(reply.commit_lsn)}"
        for name, reply in positions
    )
    return Disagreed(f"they are at different places ({'; '.join(told)})")


def read_lsn(code: str | None, output: str, last_words: tuple[str, ...] = ()) -> int:
    """Read what `postgres --sync-safekeepers` printed; `code` says how it failed, None: it did not.

    Raises PostgresError, with the last words of its log.
    """
    text = output.strip()
    if code is not None:
        msg = (
            f"postgres --sync-safekeepers exited with non-zero status: {code}. stdout: {text[:SHOWN_OUTPUT]}"
        )
        raise PostgresError(msg + _put(last_words))
    try:
        return parse_lsn(text)
    except ValueError:
        msg = f"postgres --sync-safekeepers printed no LSN: {text[:SHOWN_OUTPUT]!r}"
        raise PostgresError(msg) from None


def _put(last_words: Iterable[str]) -> str:
    said = "".join(f"\n  {word[:SHOWN_OUTPUT]}" for word in last_words) or " nothing"
    return f"; its last words:{said}"


def agreed(spec: ComputeSpec, limit_s: float, cancellation: Cancellation) -> int | None:
    """Return the LSN at which a quorum agrees; None when they must be synced first. Raises PostgresError."""
    try:
        verdict = run_async(lambda: check(spec, limit_s), cancellation)
    except StorageError as error:
        raise PostgresError(str(error)) from error
    if isinstance(verdict, Agreed):
        return verdict.lsn
    log.warning("the safekeepers are to be synced: %s", verdict.why)
    return None


def sync(node: Node, where: str, spec: ComputeSpec, limit_s: float, cancellation: Cancellation) -> int:
    """Bring a quorum to the same place and return its LSN; `where` is PGDATA, or stands in for it.

    Raises PostgresError, CancelledError.
    """
    framer = Framer()
    last: deque[str] = deque(maxlen=LAST_WORDS)

    def hand_on(messages: list[str]) -> None:
        for message in map(mask_server_words, messages):
            last.append(message)
            show(message)

    try:
        result = run(
            [node.binaries.postgres, "--sync-safekeepers"],
            starter=node.starter,
            env=node.environment(spec.storage_auth_token) | {"PGDATA": where},
            cwd=where,
            timeout_s=limit_s,
            cancellation=cancellation,
            leftovers=segments.of_servers,
            said=lambda data: hand_on(framer.feed(data)),
        )
    except ProgramError as error:
        hand_on(framer.finish())
        msg = f"{error}{_put(last)}"
        raise PostgresError(msg) from error
    hand_on(framer.finish())
    code = None if result.code == 0 else describe_code(result.code)
    return read_lsn(code, result.output, tuple(last))


async def check(spec: ComputeSpec, limit_s: float) -> Verdict:
    """Ask all safekeepers at once where the timeline ends, each within `limit_s`, until a verdict is possible."""
    import asyncio

    storage, names = storage_of(spec), safekeepers_of(spec)
    options = f"-c timeline_id={storage.timeline_id} tenant_id={storage.tenant_id}"
    token = spec.storage_auth_token
    replies: dict[str, Reply] = {}
    verdict: Verdict | None = None
    asking = {asyncio.create_task(_ask(name, options, token, limit_s)): name for name in names}
    waiting: set[asyncio.Task[Reply]] = set(asking)
    try:
        while verdict is None:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                replies[asking[task]] = task.result()
            verdict = judge(len(names), replies)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return verdict


async def _ask(name: str, options: str, token: Secret | None, limit_s: float) -> Reply:
    url = Secret(f"postgresql://{USER}@{name}")
    try:
        rows = await ask(url, STATUS_QUERY, token=token, options=options, limit_s=limit_s)
        return _reply(rows)
    except NeighbourError as error:
        return Silent(str(error))


def _reply(rows: tuple[tuple[str | None, ...], ...]) -> Reply:
    if not rows:
        return Unknown()
    try:
        flush_lsn, commit_lsn = (parse_lsn(value or "") for value in rows[0])
    except ValueError as error:
        return Silent(f"it answered what is not understood: {error}")
    return Position(flush_lsn, commit_lsn)

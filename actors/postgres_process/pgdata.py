"""Whose folder is it? The judgement over PGDATA and what may be done with it: pure (docs/pgdata.md).

Two small JSON files make a folder ours: the token, written first, allows deletion; the marker, written
last, allows serving. Both say for which node and for which place it was made.
"""

from enum import Enum
from typing import Final, TypeAlias

import msgspec

from ...messages.postgres import PgdataKind
from ...messages.settings import SourceName

TOKEN: Final = "compute_node.token.json"  # noqa: S105 - the name of a file
MARKER: Final = "compute_node.complete.json"
BUILDING: Final = ".building"
OLD: Final = ".old"
PLACING: Final = ".placing"
WARMUP: Final = ".warmup"
TEMPORARY: Final = ".compute_node-"
"""How the names of files begin that we are still writing."""
OWN_NAMES: Final = frozenset({TOKEN, MARKER, BUILDING, OLD, PLACING, WARMUP})
MAX_ASIDE: Final = 5
"""How many folders are kept aside; the next one is refused, so that a loop cannot fill the disk."""


STANDBY_SIGNAL: Final = "standby.signal"
"""Postgres removes it for good when it is promoted, whoever asked for that."""


class Seal(msgspec.Struct, frozen=True):
    """The content of token and marker; `source` is the value of a SourceName."""

    compute_id: str
    path: str
    major: int
    source: str


class Shape(Enum):
    """What kind of thing has that name."""

    ABSENT = "absent"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"


class Facts(msgspec.Struct, frozen=True):
    """What was seen of one folder, in one look."""

    path: str
    shape: Shape = Shape.ABSENT
    link_target: str = ""
    entries: tuple[str, ...] = ()
    """Sorted, without what we were still writing when we died."""
    token: Seal | None = None
    marker: Seal | None = None
    unreadable: str | None = None
    """The name of a token or marker that is there and cannot be read."""
    version: str | None = None
    """The content of PG_VERSION."""
    is_mount: bool = False
    original_there: bool = False
    """At the path in the token, which is another one, lies a folder with the same token."""


class Place(msgspec.Struct, frozen=True):
    """PGDATA with what may stand beside it (or, in a mount point, in it)."""

    pgdata: Facts
    building: Facts
    built: Facts
    """The folder in `building` that is to become PGDATA."""
    old: Facts
    placing: Facts
    """Only in a mount point: what is being moved up."""
    asides: tuple[int, ...] = ()
    """The numbers of the folders that were set aside."""


class Wish(msgspec.Struct, frozen=True):
    """What the node is, and what the command line asked for."""

    compute_id: str
    path: str
    major: int
    fresh: bool = False
    set_aside: bool = False
    claim: bool = False
    source: str = SourceName.INITDB.value


# --- Judgements ------------------------------------------------------------------------------------------


class Usable(msgspec.Struct, frozen=True):
    """It may be used: `kind` says what it is; `claim`: its token and marker are to be written anew."""

    kind: PgdataKind
    claim: bool = False


class SetAside(msgspec.Struct, frozen=True):
    """It is foreign and was given up: it is renamed when the new one is complete."""

    reason: str


class Foreign(msgspec.Struct, frozen=True):
    """It must not be touched."""

    reason: str
    ways_out: tuple[str, ...]

    @property
    def text(self) -> str:
        """What the user is told."""
        ways = "; or ".join(self.ways_out)
        return f"{self.reason}; nothing was touched. {ways[:1].upper()}{ways[1:]}."


Judgement: TypeAlias = Usable | SetAside | Foreign

_SET_ASIDE: Final = "give --set-aside-pgdata to have it renamed and a new one made"
_ELSEWHERE: Final = "give another folder by -D"


def judge(place: Place, wish: Wish) -> Judgement:
    """Say what may be done with PGDATA."""
    facts = place.pgdata
    for leftover in (place.building, place.old):  # in a mount point they are part of the folder itself
        if not facts.is_mount and not is_leftover_of(leftover, wish):
            return Foreign(
                f"{leftover.path} is in the way: this program needs that name, and did not make what is there",
                ("move it away", _ELSEWHERE),
            )
    judgement = _judge_folder(facts, wish)
    if not isinstance(judgement, Foreign) or not wish.set_aside or facts.shape is not Shape.FOLDER:
        return judgement
    if facts.is_mount:
        return Foreign(judgement.reason, ("a mount point cannot be renamed aside: empty it", _ELSEWHERE))
    if len(place.asides) >= MAX_ASIDE:
        reason = f"{facts.path}.aside-N: there are {len(place.asides)} folders set aside already"
        return Foreign(reason, ("remove those that are not needed any more",))
    return SetAside(judgement.reason)


def _judge_folder(facts: Facts, wish: Wish) -> Judgement:
    if facts.shape is Shape.ABSENT:
        return Usable(PgdataKind.ABSENT)
    if facts.shape is Shape.LINK:
        reason = f"{facts.path} is a symbolic link to {facts.link_target}"
        return Foreign(reason, (f"give the folder itself by -D {facts.link_target}",))
    if facts.shape is Shape.OTHER:
        return Foreign(f"{facts.path} is not a folder", (_ELSEWHERE,))
    if "lost+found" in facts.entries:
        reason = f"{facts.path} is the root of a file system (it holds lost+found)"
        return Foreign(reason, (f"give a folder in it: -D {facts.path}/pgdata",))
    if not facts.entries:
        return Usable(PgdataKind.EMPTY)
    return _judge_content(facts, wish)


def _judge_content(facts: Facts, wish: Wish) -> Judgement:
    if facts.unreadable is not None:
        reason = f"{facts.path} is damaged: {facts.unreadable} cannot be read"
        return Foreign(reason, (_SET_ASIDE, _ELSEWHERE))
    if facts.token is None:
        what = (
            "holds files" if facts.version is None else f"is a data directory of PostgreSQL {facts.version}"
        )
        reason = f"{facts.path} {what} that this program did not make"
        return Foreign(reason, (_SET_ASIDE, _ELSEWHERE))
    if (stranger := _stranger(facts, wish)) is not None:
        reason = f"{facts.path} belongs to the compute node {stranger!r}, and this one is {wish.compute_id!r}"
        return Foreign(reason, (f"give that id by --compute-id {stranger}", _SET_ASIDE, _ELSEWHERE))
    if (recorded := _recorded(facts, wish)) is not None:
        return _judge_moved(facts, wish, recorded)
    if facts.marker is None:
        return Usable(PgdataKind.OURS_INCOMPLETE)
    return _judge_complete(facts, wish, facts.marker)


def _judge_complete(facts: Facts, wish: Wish, marker: Seal, *, claim: bool = False) -> Judgement:
    """Let a copy of what is elsewhere go; what is nowhere else goes only if somebody says so."""
    is_copy, same = _is_copy(facts, marker), marker.source == wish.source
    if wish.fresh:
        return Usable(PgdataKind.OURS_COMPLETE, claim=claim)
    if is_copy and same:
        return Usable(PgdataKind.OURS_COPY, claim=claim)
    if not is_copy and (same or wish.source == SourceName.INITDB.value):
        return _judge_version(facts, wish, Usable(PgdataKind.OURS_COMPLETE, claim=claim))
    promoted = not is_copy and marker.source != SourceName.INITDB.value
    since = ", promoted since and holds data of its own" if promoted else ""
    return Foreign(
        f"{facts.path} was made by the source `{marker.source}`{since}, and this node's is `{wish.source}`",
        (f"give --source {marker.source}", "give --fresh to have it replaced", _SET_ASIDE, _ELSEWHERE),
    )


def _is_copy(facts: Facts, marker: Seal) -> bool:
    """Whether all that it holds is elsewhere too: not what was made here, nor a replica that was promoted."""
    if marker.source == SourceName.UPSTREAM.value:
        return STANDBY_SIGNAL in facts.entries
    return marker.source != SourceName.INITDB.value


def _judge_moved(facts: Facts, wish: Wish, recorded: str) -> Judgement:
    reason = f"{facts.path} was made as {recorded} and is a moved or copied folder"
    if facts.marker is None:
        return Foreign(f"{reason}, and incomplete", (_SET_ASIDE, _ELSEWHERE))
    if facts.original_there:
        reason = f"{facts.path} is a copy of {recorded}, which is still there"
        return Foreign(reason, (f"give that folder by -D {recorded}", _SET_ASIDE))
    if wish.claim:
        return _judge_complete(facts, wish, facts.marker, claim=True)
    return Foreign(reason, ("give --claim-pgdata to take it over where it is now", _SET_ASIDE, _ELSEWHERE))


def _judge_version(facts: Facts, wish: Wish, usable: Usable) -> Judgement:
    if facts.version == str(wish.major):
        return usable
    if facts.version is None:
        reason = f"{facts.path} is damaged: it has no PG_VERSION"
        return Foreign(reason, ("give --fresh to rebuild it without its data", _SET_ASIDE))
    return Foreign(
        f"{facts.path} was made by PostgreSQL {facts.version}, and the programs given are of {wish.major}",
        (
            f"give programs of PostgreSQL {facts.version} by --pgbin",
            "move its data over with pg_upgrade or pg_dump",
            "give --fresh to rebuild it without its data",
            _SET_ASIDE,
        ),
    )


def is_leftover_of(facts: Facts, wish: Wish) -> bool:
    """Whether a folder beside PGDATA is absent, empty, or of this node and place: then it may be deleted."""
    if facts.shape is Shape.ABSENT or (facts.shape is Shape.FOLDER and not facts.entries):
        return True
    token = facts.token
    return facts.shape is Shape.FOLDER and token is not None and _is_of(token, wish)


def _is_of(seal: Seal, wish: Wish) -> bool:
    return seal.compute_id == wish.compute_id and seal.path == wish.path


def _recorded(facts: Facts, wish: Wish) -> str | None:
    """Return the other place that token or marker name; None when both name this one."""
    paths = (seal.path for seal in (facts.token, facts.marker) if seal is not None)
    return next((path for path in paths if path != wish.path), None)


def _stranger(facts: Facts, wish: Wish) -> str | None:
    ids = {seal.compute_id for seal in (facts.token, facts.marker) if seal is not None}
    return next(iter(sorted(ids - {wish.compute_id})), None)


# --- After a crash ---------------------------------------------------------------------------------------


class Recovery(msgspec.Struct, frozen=True):
    """What a start finds of an earlier, interrupted one, and does first. The steps are done in this order."""

    move_forward: bool = False
    """The new folder is complete and the old one is out of the way: put the new one in its place."""
    move_back: bool = False
    """The old folder is out of the way and there is no new one: put it back."""
    discard: tuple[str, ...] = ()
    """Folders of ours that nobody needs."""


def recovery(place: Place, wish: Wish) -> Recovery:
    """Say how to finish or undo what an interrupted start left. Only where `is_leftover_of` holds for all."""
    complete = place.built.marker is not None and _is_of(place.built.marker, wish)
    leftovers = tuple(
        facts.path for facts in (place.building, place.old, place.placing) if facts.shape is Shape.FOLDER
    )
    if place.pgdata.is_mount:
        return _recovery_in_mount(place, complete=complete, leftovers=leftovers)
    if place.pgdata.shape is Shape.ABSENT and place.old.marker is not None:
        return Recovery(move_forward=complete, move_back=not complete, discard=leftovers)
    return Recovery(discard=leftovers)


def _recovery_in_mount(place: Place, *, complete: bool, leftovers: tuple[str, ...]) -> Recovery:
    if place.pgdata.marker is not None:
        return Recovery(discard=leftovers)
    if place.placing.marker is not None or (complete and place.old.marker is not None):
        return Recovery(move_forward=True, discard=leftovers)
    if place.old.marker is not None:
        return Recovery(move_back=True, discard=leftovers)
    return Recovery(discard=leftovers)

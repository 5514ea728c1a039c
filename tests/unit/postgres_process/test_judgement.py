"""Whose folder is it? The judgement over PGDATA, as a table, and its rules as properties."""

from typing import Any

import msgspec
import pytest
from compute_node.actors.postgres_process.pgdata import (
    MAX_ASIDE,
    Facts,
    Foreign,
    Judgement,
    Place,
    Recovery,
    Seal,
    SetAside,
    Shape,
    Usable,
    Wish,
    is_leftover_of,
    judge,
    recovery,
)
from compute_node.messages.postgres import PgdataKind
from compute_node.messages.settings import SourceName
from hypothesis import given
from hypothesis import strategies as st

PGDATA = "/srv/pg/data"
OURS = Seal(compute_id="me", path=PGDATA, major=15, source="initdb")
STRANGER = msgspec.structs.replace(OURS, compute_id="other")
MOVED = msgspec.structs.replace(OURS, path="/srv/before")
FETCHED = msgspec.structs.replace(OURS, source="pageserver")
WISH = Wish(compute_id="me", path=PGDATA, major=15)
CLUSTER = ("PG_VERSION", "base")


def a_folder(path: str = PGDATA, **changes: Any) -> Facts:
    return Facts(path, Shape.FOLDER, **changes)


def a_cluster(token: Seal | None = OURS, marker: Seal | None = OURS, **changes: Any) -> Facts:
    return a_folder(**({"entries": CLUSTER, "token": token, "marker": marker, "version": "15"} | changes))


def a_place(pgdata: Facts, **changes: Any) -> Place:
    fields = {
        "building": Facts(f"{PGDATA}.building"),
        "built": Facts(f"{PGDATA}.building/data"),
        "old": Facts(f"{PGDATA}.old"),
        "placing": Facts(f"{PGDATA}/.placing"),
    }
    return Place(pgdata=pgdata, **(fields | changes))


def wish(**changes: Any) -> Wish:
    return msgspec.structs.replace(WISH, **changes)


ABSENT = Facts(PGDATA)
EMPTY = a_folder()
FOREIGN = a_folder(entries=("letter.txt",))
LINK = Facts(PGDATA, Shape.LINK, link_target="/elsewhere")
OTHER = Facts(PGDATA, Shape.OTHER)

COPY = msgspec.structs.replace(OURS, source="upstream")
STANDBY = (*CLUSTER, "standby.signal")
UPSTREAM = SourceName.UPSTREAM.value
PAGESERVER = SourceName.PAGESERVER.value

USABLE = {
    "a copy, to be copied anew": (
        a_cluster(COPY, COPY, entries=STANDBY),
        wish(source=UPSTREAM),
        PgdataKind.OURS_COPY,
    ),
    "a copy of another major": (
        a_cluster(COPY, COPY, entries=STANDBY, version="14"),
        wish(source=UPSTREAM),
        PgdataKind.OURS_COPY,
    ),
    "a copy that was promoted": (
        a_cluster(COPY, COPY),
        wish(source=UPSTREAM),
        PgdataKind.OURS_COMPLETE,
    ),
    "a copy that was promoted, kept as a primary": (a_cluster(COPY, COPY), WISH, PgdataKind.OURS_COMPLETE),
    "a copy that was promoted, to be copied anew": (
        a_cluster(COPY, COPY),
        wish(source=UPSTREAM, fresh=True),
        PgdataKind.OURS_COMPLETE,
    ),
    "a copy, to be made anew by initdb": (
        a_cluster(COPY, COPY, entries=STANDBY),
        wish(fresh=True),
        PgdataKind.OURS_COMPLETE,
    ),
    "absent": (ABSENT, WISH, PgdataKind.ABSENT),
    "empty": (EMPTY, WISH, PgdataKind.EMPTY),
    "ours": (a_cluster(), WISH, PgdataKind.OURS_COMPLETE),
    "ours without a marker": (a_cluster(marker=None), WISH, PgdataKind.OURS_INCOMPLETE),
    "ours without a marker, of another major": (
        a_cluster(marker=None, version="14"),
        WISH,
        PgdataKind.OURS_INCOMPLETE,
    ),
    "ours of another major, to be rebuilt": (
        a_cluster(version="14"),
        wish(fresh=True),
        PgdataKind.OURS_COMPLETE,
    ),
    "a copy of what is in storage, of another major": (
        a_cluster(FETCHED, FETCHED, version="14"),
        wish(source="pageserver"),
        PgdataKind.OURS_COPY,
    ),
    "made by another source, to be rebuilt": (
        a_cluster(),
        wish(source="pageserver", fresh=True),
        PgdataKind.OURS_COMPLETE,
    ),
    "half-made by another source": (
        a_cluster(marker=None),
        wish(source="pageserver"),
        PgdataKind.OURS_INCOMPLETE,
    ),
    "ours, damaged, to be rebuilt": (a_cluster(version=None), wish(fresh=True), PgdataKind.OURS_COMPLETE),
    "ours, although strangers would be set aside": (
        a_cluster(),
        wish(set_aside=True),
        PgdataKind.OURS_COMPLETE,
    ),
    "empty, although strangers would be set aside": (EMPTY, wish(set_aside=True), PgdataKind.EMPTY),
    "empty mount point": (a_folder(is_mount=True), WISH, PgdataKind.EMPTY),
}


@pytest.mark.parametrize("case", USABLE)
def test_what_is_ours_or_nobodys_may_be_used(case: str) -> None:
    facts, asked, kind = USABLE[case]
    assert judge(a_place(facts), asked) == Usable(kind)


REFUSED = {
    "made here, and a copy is asked for": (
        a_cluster(),
        wish(source=UPSTREAM),
        "was made by the source `initdb`",
        "--source initdb",
    ),
    "promoted, and what the pageserver has is asked for": (
        a_cluster(COPY, COPY),
        wish(source=PAGESERVER),
        "promoted since and holds data of its own",
        "--source upstream",
    ),
    "a copy, and one of our own is asked for": (
        a_cluster(COPY, COPY, entries=STANDBY),
        WISH,
        "was made by the source `upstream`, and this node's is `initdb`",
        "--source upstream",
    ),
    "promoted, of another major": (
        a_cluster(COPY, COPY, version="14"),
        wish(source=UPSTREAM),
        "made by PostgreSQL 14",
        "--pgbin",
    ),
    "files of somebody": (FOREIGN, WISH, "holds files that this program did not make", "--set-aside-pgdata"),
    "a cluster of somebody": (
        a_folder(entries=CLUSTER, version="13"),
        WISH,
        "data directory of PostgreSQL 13 that this program did not make",
        "--set-aside-pgdata",
    ),
    "another node's": (
        a_cluster(STRANGER, STRANGER),
        WISH,
        "belongs to the compute node 'other', and this one is 'me'",
        "--compute-id other",
    ),
    "another node's marker on our token": (
        a_cluster(OURS, STRANGER),
        WISH,
        "compute node 'other'",
        "--set-aside",
    ),
    "another node's, claimed": (
        a_cluster(STRANGER, STRANGER),
        wish(claim=True),
        "compute node 'other'",
        "--set-aside",
    ),
    "moved": (a_cluster(MOVED, MOVED), WISH, "was made as /srv/before", "--claim-pgdata"),
    "moved and incomplete": (a_cluster(MOVED, None), wish(claim=True), "and incomplete", "--set-aside"),
    "a copy": (
        a_cluster(MOVED, MOVED, original_there=True),
        wish(claim=True),
        "is a copy of /srv/before, which is still there",
        "-D /srv/before",
    ),
    "moved, of another major, claimed": (
        a_cluster(MOVED, MOVED, version="14"),
        wish(claim=True),
        "was made by PostgreSQL 14, and the programs given are of 15",
        "--pgbin",
    ),
    "a marker without a token": (a_cluster(None, OURS), WISH, "did not make", "--set-aside"),
    "an unreadable token": (
        a_cluster(None, None, unreadable="compute_node.token.json"),
        WISH,
        "damaged: compute_node.token.json cannot be read",
        "--set-aside",
    ),
    "another major": (
        a_cluster(version="14"),
        WISH,
        "was made by PostgreSQL 14, and the programs given are of 15",
        "give programs of PostgreSQL 14 by --pgbin",
    ),
    "made by initdb, and the data is to come from storage": (
        a_cluster(),
        wish(source="pageserver"),
        "was made by the source `initdb`, and this node's is `pageserver`",
        "give --source initdb",
    ),
    "made from storage, and the data is to be in the folder": (
        a_cluster(FETCHED, FETCHED),
        WISH,
        "was made by the source `pageserver`, and this node's is `initdb`",
        "give --fresh",
    ),
    "no PG_VERSION": (a_cluster(version=None), WISH, "it has no PG_VERSION", "--fresh"),
    "a link": (LINK, WISH, "is a symbolic link to /elsewhere", "-D /elsewhere"),
    "a link, although strangers would be set aside": (LINK, wish(set_aside=True), "symbolic link", "-D"),
    "a file": (OTHER, wish(set_aside=True), "is not a folder", "-D"),
    "the root of a file system": (
        a_folder(entries=("lost+found",), is_mount=True),
        WISH,
        "lost+found",
        f"-D {PGDATA}/pgdata",
    ),
    "a foreign mount point to be set aside": (
        a_folder(entries=("x",), is_mount=True),
        wish(set_aside=True),
        "did not make",
        "cannot be renamed aside",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_foreign_is_refused_with_the_reason_and_the_ways_out(case: str) -> None:
    facts, asked, reason, way_out = REFUSED[case]
    judgement = judge(a_place(facts), asked)
    assert isinstance(judgement, Foreign)
    assert reason in judgement.reason
    assert PGDATA in judgement.reason
    assert any(way_out in way for way in judgement.ways_out)
    assert "nothing was touched. " in judgement.text
    assert judgement.reason in judgement.text


@pytest.mark.parametrize(
    "facts",
    [FOREIGN, a_cluster(STRANGER, STRANGER), a_cluster(MOVED, None), a_cluster(version="14")],
    ids=["files", "another node's", "moved and incomplete", "another major"],
)
def test_a_foreign_folder_is_set_aside_only_when_asked_and_only_a_bounded_number_of_times(
    facts: Facts,
) -> None:
    assert isinstance(judge(a_place(facts), WISH), Foreign)
    assert isinstance(judge(a_place(facts), wish(set_aside=True)), SetAside)
    almost = tuple(range(1, MAX_ASIDE))
    assert isinstance(judge(a_place(facts, asides=almost), wish(set_aside=True)), SetAside)
    full = judge(a_place(facts, asides=(*almost, 9)), wish(set_aside=True))
    assert isinstance(full, Foreign)
    assert f"{MAX_ASIDE} folders set aside already" in full.reason


def test_a_moved_complete_folder_is_claimed_only_when_asked() -> None:
    moved = a_place(a_cluster(MOVED, MOVED))
    assert judge(moved, wish(claim=True)) == Usable(PgdataKind.OURS_COMPLETE, claim=True)
    half = a_place(a_cluster(OURS, MOVED))  # a claim that was interrupted after the token
    assert isinstance(judge(half, WISH), Foreign)
    assert judge(half, wish(claim=True)) == Usable(PgdataKind.OURS_COMPLETE, claim=True)


@pytest.mark.parametrize("name", ["building", "old"])
def test_a_foreign_folder_with_a_name_that_we_need_is_refused(name: str) -> None:
    beside = a_folder(f"{PGDATA}.{name}", entries=("letter.txt",))
    judgement = judge(a_place(ABSENT, **{name: beside}), WISH)
    assert isinstance(judgement, Foreign)
    assert f"{PGDATA}.{name} is in the way" in judgement.reason
    ours = msgspec.structs.replace(beside, token=OURS)
    assert judge(a_place(ABSENT, **{name: ours}), WISH) == Usable(PgdataKind.ABSENT)


seals = st.sampled_from([None, OURS, STRANGER, MOVED])
facts = st.builds(
    Facts,
    path=st.just(PGDATA),
    shape=st.sampled_from(Shape),
    entries=st.sampled_from([(), CLUSTER, ("letter.txt",), ("lost+found",)]),
    token=seals,
    marker=seals,
    unreadable=st.sampled_from([None, "compute_node.token.json"]),
    version=st.sampled_from([None, "14", "15"]),
    is_mount=st.booleans(),
    original_there=st.booleans(),
)
wishes = st.builds(
    Wish,
    compute_id=st.just("me"),
    path=st.just(PGDATA),
    major=st.just(15),
    fresh=st.booleans(),
    set_aside=st.booleans(),
    claim=st.booleans(),
)


@given(facts, wishes)
def test_only_what_is_absent_empty_or_bears_our_token_may_be_used(seen: Facts, asked: Wish) -> None:
    judgement: Judgement = judge(a_place(seen), asked)
    if isinstance(judgement, Usable):
        nobodys = seen.shape is Shape.ABSENT or (seen.shape is Shape.FOLDER and not seen.entries)
        assert nobodys or (seen.token is not None and seen.token.compute_id == asked.compute_id)
        if not nobodys and seen.token is not None and seen.token.path != asked.path:
            assert asked.claim
            assert judgement.claim
        if judgement.kind is PgdataKind.OURS_COMPLETE:
            assert seen.marker is not None
            assert seen.marker.compute_id == asked.compute_id
            assert asked.fresh or seen.version == "15"
    elif isinstance(judgement, SetAside):
        assert asked.set_aside
    else:
        assert judgement.ways_out


# --- After a crash ---------------------------------------------------------------------------------------

OLD = a_folder(f"{PGDATA}.old", entries=CLUSTER, token=OURS, marker=OURS)
HALF_OLD = msgspec.structs.replace(OLD, marker=None)
BUILDING = a_folder(f"{PGDATA}.building", entries=("data",), token=OURS)
BUILT = a_folder(f"{PGDATA}.building/data", entries=CLUSTER, token=OURS, marker=OURS)
HALF_BUILT = msgspec.structs.replace(BUILT, marker=None)
MOUNT = a_folder(entries=("compute_node.token.json",), token=OURS, is_mount=True)

CRASHES = {
    "nothing is left": (ABSENT, {}, Recovery()),
    "while building for the first time": (
        ABSENT,
        {"building": BUILDING, "built": HALF_BUILT},
        Recovery(discard=(BUILDING.path,)),
    ),
    "built, not placed": (
        ABSENT,
        {"building": BUILDING, "built": BUILT},
        Recovery(discard=(BUILDING.path,)),
    ),
    "while rebuilding": (
        a_cluster(),
        {"building": BUILDING, "built": HALF_BUILT},
        Recovery(discard=(BUILDING.path,)),
    ),
    "rebuilt, not placed": (
        a_cluster(),
        {"building": BUILDING, "built": BUILT},
        Recovery(discard=(BUILDING.path,)),
    ),
    "between the two renames": (
        ABSENT,
        {"building": BUILDING, "built": BUILT, "old": OLD},
        Recovery(move_forward=True, discard=(BUILDING.path, OLD.path)),
    ),
    "the old one is out of the way and the new one is lost": (
        ABSENT,
        {"building": BUILDING, "built": HALF_BUILT, "old": OLD},
        Recovery(move_back=True, discard=(BUILDING.path, OLD.path)),
    ),
    "placed, the old one not deleted": (a_cluster(), {"old": HALF_OLD}, Recovery(discard=(OLD.path,))),
    "an incomplete old one is no data": (ABSENT, {"old": HALF_OLD}, Recovery(discard=(OLD.path,))),
    "in a mount point, while building": (
        MOUNT,
        {"building": BUILDING, "built": HALF_BUILT},
        Recovery(discard=(BUILDING.path,)),
    ),
    "in a mount point, the old marker moved down": (
        MOUNT,
        {"building": BUILDING, "built": BUILT, "old": OLD},
        Recovery(move_forward=True, discard=(BUILDING.path, OLD.path)),
    ),
    "in a mount point, moving up": (
        MOUNT,
        {"placing": a_folder(f"{PGDATA}/.placing", entries=("base",), marker=OURS), "old": OLD},
        Recovery(move_forward=True, discard=(OLD.path, f"{PGDATA}/.placing")),
    ),
    "in a mount point, moved up, the old one not deleted": (
        msgspec.structs.replace(MOUNT, marker=OURS),
        {"old": HALF_OLD},
        Recovery(discard=(OLD.path,)),
    ),
    "in a mount point, the new one lost": (
        MOUNT,
        {"building": BUILDING, "built": HALF_BUILT, "old": OLD},
        Recovery(move_back=True, discard=(BUILDING.path, OLD.path)),
    ),
}


@pytest.mark.parametrize("case", CRASHES)
def test_an_interrupted_start_is_finished_or_undone(case: str) -> None:
    pgdata, beside, expected = CRASHES[case]
    assert recovery(a_place(pgdata, **beside), WISH) == expected


def test_a_leftover_of_another_node_is_none_of_ours() -> None:
    assert is_leftover_of(BUILDING, WISH)
    assert not is_leftover_of(msgspec.structs.replace(BUILDING, token=STRANGER), WISH)
    assert not is_leftover_of(msgspec.structs.replace(BUILDING, token=MOVED), WISH)
    assert not is_leftover_of(msgspec.structs.replace(BUILDING, shape=Shape.LINK), WISH)

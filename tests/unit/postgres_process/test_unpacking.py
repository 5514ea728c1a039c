"""The strict reader of archives: what is whole arrives as it was, everything else is an error and harms nothing."""

import errno
import os
import random
import shutil
import stat
import subprocess
import tarfile
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from compute_node.actors.postgres_process.pgdata import MARKER, TOKEN
from compute_node.actors.postgres_process.sources.tar import (
    BLOCK,
    ArchiveError,
    Entry,
    Kind,
    clean,
    read_header,
)
from compute_node.actors.postgres_process.sources.unpacking import Limits, Unpacked, unpack
from compute_node.postgres.accounts import Account, resolve_account
from hypothesis import example, given
from hypothesis import strategies as st

from doubles.archives import chunks, compressed, entry, folder, whole
from fix_postgres import wait_until

FILES: Final = {
    "PG_VERSION": b"15\n",
    "base/1/PG_VERSION": b"15\n",
    "base/1/1259": bytes(range(256)) * 40,
    "empty": b"",
    "block": b"x" * BLOCK,
    "pg_wal/000000010000000000000001": bytes(5000),
    "global/pg_control": b"control" * 100,
}
FOLDERS: Final = ("base", "base/1", "base/1", "pg_wal/archive_status", "global")
"""One of them twice, as a pageserver may send it; one whose parent never comes."""
SMALL: Final = whole(*map(folder, FOLDERS), *(entry(name, content) for name, content in FILES.items()))


class Place:
    """A folder to unpack into, beside others that must stay as they are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.target = root / "pgdata.building" / "data"
        (root / "pgdata").mkdir(parents=True)
        (root / "pgdata" / "canary").write_text("untouched")
        (root / "pgdata.building").mkdir()
        (root / "pgdata.building" / "canary").write_text("untouched")
        self.clear()

    def clear(self) -> None:
        if self.target.exists():
            shutil.rmtree(self.target)
        self.target.mkdir(mode=0o700)

    def unpack(self, archive: bytes, account: Account | None = None, **options: Any) -> Unpacked:
        return unpack(chunks(archive), str(self.target), account, **options)

    def around(self) -> dict[str, tuple[int, bytes]]:
        """All that is outside of the target."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path != self.target and self.target not in path.parents:
                content = path.read_bytes() if path.is_file() else b""
                found[str(path)] = (path.lstat().st_mode, content)
        return found

    def content(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.target)): path.read_bytes()
            for path in self.target.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "here")
    before = made.around()
    yield made
    assert made.around() == before
    assert "unpacking" not in {thread.name for thread in threading.enumerate()}


def test_a_whole_archive_arrives_as_it_was_sent(place: Place) -> None:
    data = compressed(SMALL)
    told: list[tuple[int, int]] = []
    found = place.unpack(data, progress=lambda *sizes: told.append(sizes))
    assert place.content() == FILES
    assert (found.files, found.size) == (len(FILES), sum(map(len, FILES.values())))
    assert found.received == len(data)
    assert told[-1] == (len(data), len(SMALL))
    assert (place.target / "pg_wal/archive_status").is_dir()
    for path in place.target.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_everything_belongs_to_the_account_that_runs_postgres(place: Place) -> None:
    account = resolve_account()
    assert account is not None
    place.unpack(compressed(SMALL), account)
    for path in (place.target, *place.target.rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (account.uid, account.gid), path


@pytest.mark.parametrize("form", ["gnu", "ustar", "v7"])
def test_what_the_program_tar_makes_is_read(form: str, place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    deep = source / ("d" * 60) / "f"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"deep")
    (source / "big").write_bytes(os.urandom(300_000))
    made = subprocess.run(
        ["/bin/tar", "-cz", f"--format={form}", "-C", str(source), "."],
        check=True,
        capture_output=True,
        timeout=30,
    )
    place.unpack(made.stdout)
    assert place.content() == {f"{'d' * 60}/f": b"deep", "big": (source / "big").read_bytes()}


def test_a_prefix_of_ustar_belongs_to_the_name(place: Place) -> None:
    info = tarfile.TarInfo("/".join(["part" * 10] * 3) + "/file")
    place.unpack(compressed(whole(info.tobuf(tarfile.USTAR_FORMAT))))
    assert list(place.content()) == [info.name]


# --- Faults 33 and 34: what does not arrive whole


def test_cut_at_every_block_it_is_an_error(place: Place) -> None:
    for end in range(0, len(SMALL), BLOCK):
        place.clear()
        with pytest.raises(ArchiveError, match="damaged") as caught:
            place.unpack(compressed(SMALL[:end], 1))
        assert caught.value.passing, end


def test_cut_at_any_byte_it_is_an_error(place: Place) -> None:
    pick = random.Random(7)  # noqa: S311 - a seed, to be found again
    for end in [*pick.sample(range(1, len(SMALL)), 20), len(SMALL) - 1]:
        place.clear()
        with pytest.raises(ArchiveError, match="damaged"):
            place.unpack(compressed(SMALL[:end], 1))


def test_where_it_was_cut_is_said(place: Place) -> None:
    at = len(entry("first", b"x"))
    data = whole(entry("first", b"x"), entry("second", b"x" * 700))
    for end, text in (
        (at + 100, "within a block"),
        (at + BLOCK + 300, r"within b'second'"),
        (at + BLOCK + 700, "within a block"),
        (len(data) - BLOCK, "its end is missing"),
    ):
        place.clear()
        with pytest.raises(ArchiveError, match=text):
            place.unpack(compressed(data[:end]))


def test_a_compressed_stream_that_is_cut_anywhere_is_an_error(place: Place) -> None:
    data = compressed(SMALL)
    for end in [*range(0, len(data), 40), *range(len(data) - 9, len(data))]:
        place.clear()
        with pytest.raises(ArchiveError, match="its compressed end is missing"):
            place.unpack(data[:end])


def test_every_flipped_bit_of_the_trailer_is_an_error(place: Place) -> None:
    data = compressed(whole(entry("PG_VERSION", b"15\n")))
    for at in range(len(data) - 8, len(data)):
        for bit in range(8):
            place.clear()
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(ArchiveError, match="incorrect"):
                place.unpack(bytes(flipped))


DAMAGED: Final = {
    "garbage in place of an entry": compressed(entry("a", b"x") + b"garbage!" * 64 + bytes(2 * BLOCK)),
    "garbage after the end": compressed(SMALL + b"g" + bytes(BLOCK - 1)),
    "an entry after the end": compressed(SMALL + whole(entry("more"))),
    "one block of zeros, then an entry": compressed(bytes(BLOCK) + SMALL),
    "a part of a block after the end": compressed(SMALL + bytes(7)),
    "something after the compressed end": compressed(SMALL) + b"x",
    "a second compressed stream": compressed(SMALL) * 2,
    "nothing": b"",
    "not compressed": SMALL,
    "zlib in place of gzip": zlib.compress(SMALL),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_refused_and_may_be_tried_again(case: str, place: Place) -> None:
    with pytest.raises(ArchiveError, match="damaged") as caught:
        place.unpack(DAMAGED[case])
    assert caught.value.passing


def test_zeros_after_the_end_are_no_harm(place: Place) -> None:
    place.unpack(compressed(SMALL + bytes(18 * BLOCK)))
    assert place.content() == FILES


# --- Fault 36: what nobody should send


def signed(made: bytes, changes: dict[int, bytes]) -> bytes:
    """The entry with other bytes at these places of its header, and the checksum that belongs to them."""
    header = bytearray(made[:BLOCK])
    for at, data in changes.items():
        header[at : at + len(data)] = data
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + made[BLOCK:]


FORBIDDEN: Final = {
    "above": entry("../canary", b"x"),
    "above, from within": entry("fresh/../../canary", b"x"),
    "absolute": entry("/tmp/canary", b"x"),
    "twice absolute": entry("//canary", b"x"),
    "a folder above": folder(".."),
    "an empty part": entry("fresh//x", b"x"),
    "a dot within": entry("fresh/./x", b"x"),
    "no name": entry("", b"x"),
    "a file that is named as a folder": entry("fresh/", b"x"),
    "a file that is the root": entry("./", b"x"),
    "a header of another form": signed(entry("fresh", b"x"), {257: b"USTAR  \0"}),
    "a symbolic link": entry("link", kind=tarfile.SYMTYPE, linkname="/etc"),
    "a hard link": entry("link", kind=tarfile.LNKTYPE, linkname="PG_VERSION"),
    "a character device": entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a block device": entry("disk", kind=tarfile.BLKTYPE, devmajor=8),
    "a pipe": entry("pipe", kind=tarfile.FIFOTYPE),
    "a long name": entry("././@LongLink", b"x" * 300, kind=tarfile.GNUTYPE_LONGNAME),
    "a sparse file": entry("sparse", kind=tarfile.GNUTYPE_SPARSE),
    "an extended header": entry("pax", b"30 path=../canary\n", kind=tarfile.XHDTYPE),
    "an unknown kind": entry("what", kind=b"Z"),
    "the same file again": entry("PG_VERSION", b"16\n"),
    "a file in place of a folder": entry("base", b"x"),
    "a folder in place of a file": folder("PG_VERSION"),
    "a file below a file": entry("PG_VERSION/x", b"x"),
    "our token": entry(TOKEN, b"{}"),
    "our marker": entry(MARKER, b"{}"),
    "a name of ours": folder(".building"),
    "too deep": entry("/".join("x" * 17), b""),
    "too many bytes": entry("huge", b"", size=(8 << 30) - 1) + entry("huge2", b"", size=(8 << 30) - 1),
    "a size that is no octal number": entry("huge", b"", size=1 << 40),
}


def hostile(case: str) -> bytes:
    """That entry behind good ones, and good ones behind it."""
    return compressed(whole(SMALL[: -2 * BLOCK], FORBIDDEN[case], entry("after", b"x")), 1)


@pytest.mark.parametrize("case", FORBIDDEN)
def test_what_is_forbidden_is_refused_for_good(case: str, place: Place) -> None:
    with pytest.raises(ArchiveError, match=r"refused|damaged") as caught:
        place.unpack(hostile(case), limits=Limits(size=1 << 20))
    assert not caught.value.passing or "sum" in str(caught.value)
    assert not (place.target / "after").exists()


REFUSED: Final = {
    "a header is of an unknown form (b'USTAR  \\x00')": signed(entry("x"), {257: b"USTAR  \0"}),
    "b'link' is a symbolic link": entry("link", kind=tarfile.SYMTYPE, linkname="/etc"),
    "b'what' is of an unknown kind (b'Z')": entry("what", kind=b"Z"),
    "b'fresh/' is not the name of a file": entry("fresh/"),
    "the size of b'huge' is not a number (b'0000000000 8')": signed(entry("huge"), {124: b"0000000000 8"}),
    "b'/x' is not a path below the root": entry("/x"),
    "b'./' is not the name of a file": entry("./"),
    "b'/' is not a path below the root": entry("/"),
    f"{'x/' * 16 + 'x'!r} is too long".replace("'", "b'", 1): entry("/".join("x" * 17)),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_refusal_names_the_entry_and_the_reason(words: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        read_header(REFUSED[words][:BLOCK])
    assert (str(caught.value), caught.value.passing) == (f"the archive is refused: {words}", False)


def test_a_header_with_a_wrong_checksum_says_so() -> None:
    with pytest.raises(ArchiveError) as caught:
        read_header(b"y" + entry("x")[1:BLOCK])
    assert str(caught.value) == "the archive is damaged: a header's checksum is wrong"


def test_the_fields_of_a_header_are_read_to_their_last_byte_and_no_further() -> None:
    name, prefix, beyond = b"n" * 100, b"p" * 155, b"!"
    full = {0: name, 124: b"7" * 12, 257: b"ustar\x0000", 345: prefix, 500: beyond}
    header = signed(entry("x"), full)[:BLOCK]
    assert read_header(header) == Entry(prefix + b"/" + name, Kind.FILE, 8**12 - 1)


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"",
            b"/",
            b"//",
            b"/x",
            b"..",
            b"../x",
            b"a/..",
            b"a/../b",
            b"a/../../x",
            b"./../x",
            b"a//b",
            b"a/./b",
        ),
        *(b"././x", b"x" * 256, b"/".join([b"x"] * 17)),
    ],
)
def test_a_name_that_is_no_path_below_the_root_is_refused_by_itself(name: bytes) -> None:
    """Making each folder anew would stop most of them, too: this is not to depend on that."""
    with pytest.raises(ArchiveError, match="refused"):
        clean(name)


def test_a_name_may_begin_with_a_dot_end_as_a_folder_and_be_as_deep_as_a_cluster() -> None:
    for name, path in (
        (b"./", b""),
        (b".", b""),
        (b"./a/b/", b"a/b"),
        (b"...", b"..."),
        (b"a/..b", b"a/..b"),
    ):
        assert clean(name) == path
    assert clean(b"/".join([b"x" * 255] * 16)).count(b"/") == 15


def test_two_hundred_hostile_archives_change_nothing_outside(place: Place) -> None:
    pick = random.Random(36)  # noqa: S311 - a seed, to be found again
    good = [entry(f"file{number}", pick.randbytes(pick.randrange(2000))) for number in range(6)]
    before = place.around()
    for _ in range(200):
        place.clear()
        entries = [*pick.sample(good, pick.randrange(1, 6)), entry("PG_VERSION", b"15\n"), folder("base")]
        entries += [FORBIDDEN[case] for case in pick.sample(sorted(FORBIDDEN), pick.randrange(1, 4))]
        if pick.random() < 0.5:
            pick.shuffle(entries)
        archive = whole(*entries)
        with pytest.raises(ArchiveError):
            place.unpack(compressed(archive, 1), limits=Limits(size=1 << 20))
        assert place.around() == before


def test_what_is_refused_is_not_taken_to_its_end(place: Place) -> None:
    data, taken = compressed(whole(FORBIDDEN["above"], entry("noise", os.urandom(24 << 20))), 0), []

    def counted() -> Iterator[bytes]:
        for chunk in chunks(data, 1 << 16):
            taken.append(len(chunk))
            yield chunk

    with pytest.raises(ArchiveError, match="refused"):
        unpack(counted(), str(place.target), None)
    assert sum(taken) < len(data)


def test_more_entries_than_allowed_are_refused(place: Place) -> None:
    with pytest.raises(ArchiveError, match="more than 3 entries"):
        place.unpack(compressed(SMALL), limits=Limits(entries=3))


@given(at=st.integers(0, BLOCK - 1), value=st.integers(0, 255))
@example(at=156, value=ord("2"))
def test_a_header_with_any_other_byte_is_an_error(at: int, value: int) -> None:
    block = bytearray(entry("base/1/1259", b"x" * 700)[:BLOCK])
    changed = block[at] != value
    block[at] = value
    if changed and not 148 <= at < 156:
        with pytest.raises(ArchiveError):
            read_header(bytes(block))


@given(st.binary(min_size=BLOCK, max_size=BLOCK))
def test_whatever_a_header_says_it_is_understood_or_refused(block: bytes) -> None:
    with_sum = bytearray(block)
    with_sum[257:265] = b"ustar  \0"
    with_sum[148:156] = b" " * 8
    with_sum[148:156] = b"%06o\0 " % sum(with_sum)
    try:
        found = read_header(bytes(with_sum))
    except ArchiveError:
        return
    assert not found.path.startswith(b"/")
    assert b".." not in found.path.split(b"/")
    assert found.size >= 0


# --- The pipeline


def test_it_writes_while_it_still_reads(place: Place) -> None:
    data = compressed(whole(entry("first", b"x"), entry("noise", os.urandom(4 << 20))), 0)

    def slowly() -> Iterator[bytes]:
        yield data[: 1 << 20]
        wait_until((place.target / "first").exists, "the first file is there while the stream goes on")
        yield data[1 << 20 :]

    unpack(slowly(), str(place.target), None)


def test_memory_does_not_grow_with_the_archive(place: Place) -> None:
    data = compressed(whole(entry("zeros", bytes(32 << 20))), 1)
    tracemalloc.start()
    try:
        place.unpack(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (place.target / "zeros").stat().st_size == 32 << 20
    assert peak < 12 << 20


def test_an_error_of_the_stream_is_raised_as_it_is(place: Place) -> None:
    class Cut(Exception):  # noqa: N818 - made up
        pass

    def cut() -> Iterator[bytes]:
        yield from chunks(compressed(SMALL))
        raise Cut

    with pytest.raises(Cut):
        unpack(cut(), str(place.target), None)


def test_an_error_of_the_disk_ends_it_and_is_raised_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = compressed(whole(*(entry(f"f{n}", os.urandom(1 << 20)) for n in range(12))), 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            place.unpack(data)

"""When the disk counts as full, and what is said of it."""

from pathlib import Path

import pytest
from compute_node.actors.postgres_process.disk import (
    FULL_BYTES,
    HOLD_S,
    MB,
    ROOM_BYTES,
    Area,
    Fullness,
    blamed,
    is_about_space,
    judge,
    look,
)
from hypothesis import given
from hypothesis import strategies as st

FULL = Fullness("full")


def areas(*free: int) -> list[Area]:
    return [Area(f"area{number}", f"/area{number}", bytes_) for number, bytes_ in enumerate(free)]


@pytest.mark.parametrize(
    ("before", "free", "full"),
    [
        (Fullness(), (FULL_BYTES,), False),
        (Fullness(), (FULL_BYTES - 1,), True),
        (Fullness(), (1 << 40, 0), True),
        (FULL, (FULL_BYTES,), True),
        (FULL, (ROOM_BYTES - 1,), True),
        (FULL, (ROOM_BYTES,), False),
        (FULL, (ROOM_BYTES, ROOM_BYTES - 1), True),
    ],
)
def test_a_disk_becomes_full_below_one_limit_and_usable_again_above_another(
    before: Fullness, free: tuple[int, ...], *, full: bool
) -> None:
    assert (judge(before, areas(*free), 100.0).detail is not None) is full


@given(st.lists(st.integers(0, 64 * MB), max_size=40))
def test_free_space_that_moves_within_the_margin_changes_nothing(frees: list[int]) -> None:
    known = Fullness()
    for free in frees:
        after = judge(known, areas(free), 0.0)
        if FULL_BYTES <= free < ROOM_BYTES:
            assert (after.detail is None) == (known.detail is None)
        known = after


def test_the_detail_names_the_place_what_is_left_and_the_remedy() -> None:
    detail = judge(Fullness(), [Area("pg_wal", "/wal", 3 * MB), Area("pgdata", "/data", 1 << 40)], 0.0).detail
    assert detail == "/wal has 3 MB left: free some space or enlarge the volume"


def test_the_word_of_postgres_counts_for_a_while_although_there_seems_to_be_room() -> None:
    said = judge(Fullness(said_s=100.0), areas(1 << 40), 100.0)
    assert said.detail is not None
    assert judge(said, areas(1 << 40), 100.0 + HOLD_S) == said
    assert judge(said, areas(1 << 40), 100.1 + HOLD_S) == Fullness()


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ('PANIC:  could not write to file "x": No space left on device', True),
        ("could not extend file: Disk quota exceeded", True),
        (
            'could not extend file "base/5/1": wrote only 4096 of 8192 bytes at block 36\nHINT:  Check free disk space.',
            True,
        ),
        ("ERROR:  division by zero", False),
    ],
)
def test_a_message_about_space_is_known_and_gets_the_place_and_the_remedy(text: str, *, about: bool) -> None:
    assert is_about_space(text) is about
    told = blamed(text, areas(2 * MB, 1 << 40))
    assert told.startswith(text)
    assert ("the disk is full (/area0 has 2 MB left): free some space" in told) is about


def test_an_error_without_a_measurement_still_has_its_remedy() -> None:
    assert "the disk is full: free some space" in blamed("No space left on device", [])


def test_one_file_system_is_looked_at_once_and_a_missing_folder_through_its_parent(tmp_path: Path) -> None:
    (area,) = look(str(tmp_path / "absent" / "pgdata"))
    assert (area.name, area.path) == ("pgdata", str(tmp_path))
    assert area.free > 0


def test_the_log_is_looked_for_where_its_link_leads(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is but one file system here")
    (tmp_path / "pg_wal").symlink_to(elsewhere)
    assert [(area.name, area.path) for area in look(str(tmp_path))] == [
        ("pgdata", str(tmp_path)),
        ("pg_wal", str(elsewhere)),
    ]

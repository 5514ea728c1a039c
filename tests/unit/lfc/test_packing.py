"""A state is one whole frame, of bounded size, with its checksum."""

import contextlib
import tracemalloc

import pytest
from compute_node.actors.lfc_manager.packing import StateError, pack, unpack
from hypothesis import given
from hypothesis import strategies as st

STATE = bytes(range(256)) * 40
HUGE = bytes(100_000_000)


@given(st.binary(max_size=5_000))
def test_what_is_packed_comes_out_again(state: bytes) -> None:
    assert unpack(pack(state)) == state


def test_a_frame_that_is_cut_anywhere_is_refused() -> None:
    body = pack(STATE)
    for end in range(len(body)):
        with pytest.raises(StateError, match="decoding LFC state"):
            unpack(body[:end])


def test_a_frame_with_a_changed_byte_is_refused() -> None:
    body = pack(STATE)
    for place in range(len(body)):
        changed = bytearray(body)
        changed[place] ^= 0x40
        with contextlib.suppress(StateError):  # some bytes of the head say nothing of the content
            assert unpack(bytes(changed)) == STATE, place


@pytest.mark.parametrize("more", [b"x", b"\0" * 100, pack(STATE)], ids=["a byte", "zeros", "a second frame"])
def test_what_follows_the_frame_is_refused(more: bytes) -> None:
    with pytest.raises(StateError, match="something follows"):
        unpack(pack(STATE) + more)


def test_a_hundred_megabytes_of_zeros_are_refused_before_they_are_there() -> None:
    body = pack(HUGE, len(HUGE))
    assert len(body) < 100_000
    with pytest.raises(StateError, match="more than 67108864 bytes"):
        unpack(body)


def test_what_is_too_large_takes_no_more_memory_than_the_limit() -> None:
    body = pack(HUGE, len(HUGE))
    tracemalloc.start()
    try:
        with pytest.raises(StateError, match="more than 1000000 bytes"):
            unpack(body, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_itself_is_taken() -> None:
    assert unpack(pack(bytes(1000)), 1000) == bytes(1000)
    with pytest.raises(StateError, match="more than 999 bytes"):
        unpack(pack(bytes(1000)), 999)
    assert unpack(pack(b""), 0) == b""


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"\x1f\x8b\x08", b"\x28\xb5\x2f"])
def test_what_is_no_frame_is_refused(body: bytes) -> None:
    with pytest.raises(StateError):
        unpack(body)


def test_what_could_not_be_unpacked_again_is_not_packed() -> None:
    """It would take the place of a state that can be."""
    with pytest.raises(StateError, match="it has 1001 bytes, and at most 1000 can be loaded again"):
        pack(bytes(1001), 1000)
    with pytest.raises(StateError, match="at most 67108864 can be loaded again"):
        pack(HUGE)

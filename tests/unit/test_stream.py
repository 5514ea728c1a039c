"""The bounded stream between a job and the edge: nothing is lost, nothing grows, nobody waits for ever."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from compute_node.messages.stream import ByteStream, StreamBrokenError, StreamClosedError
from hypothesis import given
from hypothesis import strategies as st

WAIT_S = 20.0


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 60))
def test_what_goes_in_comes_out_in_its_order_however_small_the_stream(
    pieces: list[bytes], capacity: int
) -> None:
    stream = ByteStream(capacity)
    seen = []
    for piece in pieces:
        while not stream.write(piece, 0):
            seen.append(stream.read(0))
    stream.end()
    while data := stream.read(0):
        seen.append(data)
    assert seen == pieces
    assert stream.read(0) == b""


def test_a_writer_waits_until_there_is_room_and_a_reader_until_there_is_something() -> None:
    stream = ByteStream(4)
    assert stream.write(b"12345", 0), "an empty stream takes a piece of any size"
    assert not stream.write(b"6", 0.01)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(stream.write, b"6", WAIT_S)
        assert stream.read(WAIT_S) == b"12345"
        assert writing.result(WAIT_S)
        assert stream.read(WAIT_S) == b"6"
        assert stream.read(0.01) is None
        reading = pool.submit(stream.read, WAIT_S)
        stream.write(b"7", 0)
        assert reading.result(WAIT_S) == b"7"


def test_a_failure_is_told_to_the_reader_at_once_and_nothing_comes_after_it() -> None:
    stream = ByteStream()
    stream.write(b"1", 0)
    stream.fail("the first reason")
    stream.fail("another")
    for _ in range(2):
        with pytest.raises(StreamBrokenError, match=r"^the first reason$"):
            stream.read(0)
    with pytest.raises(StreamClosedError):
        stream.write(b"2", 0)


def test_a_failure_after_the_end_is_none() -> None:
    stream = ByteStream()
    stream.write(b"1", 0)
    stream.end()
    stream.fail("too late")
    assert (stream.read(0), stream.read(0)) == (b"1", b"")


@pytest.mark.parametrize("leave", [ByteStream.close, lambda stream: stream.fail("cut off")])
def test_a_writer_that_waits_for_room_learns_that_there_will_be_none(leave: object) -> None:
    stream = ByteStream(1)
    stream.write(b"1", 0)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(stream.write, b"2", WAIT_S)
        assert callable(leave)
        leave(stream)
        with pytest.raises(StreamClosedError):
            writing.result(WAIT_S)


def test_a_writer_that_is_busy_elsewhere_is_told_once_that_the_reader_left() -> None:
    stream, told = ByteStream(), threading.Semaphore(0)
    stream.on_close(told.release)
    assert not told.acquire(blocking=False)
    stream.close()
    stream.close()
    assert stream.closed
    assert told.acquire(blocking=False)
    assert not told.acquire(blocking=False)
    stream.on_close(told.release)
    assert told.acquire(blocking=False), "it is told at once when it asks too late"

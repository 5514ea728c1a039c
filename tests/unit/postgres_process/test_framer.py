"""What Postgres writes becomes messages, however it is cut, and nobody is waited for."""

import os
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.postgres_process.logs import JOINT, LAST_MESSAGES, Framer, Pump
from hypothesis import given
from hypothesis import strategies as st

WAIT_S = 10.0
STAMP = "2026-11-22 23:13:01.123 UTC [7] "


def frame(chunks: list[bytes], max_message: int = 65_536) -> list[str]:
    framer = Framer(max_message)
    messages = [message for chunk in chunks for message in framer.feed(chunk)]
    return messages + framer.finish()


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


lines = st.lists(
    st.one_of(
        st.builds(lambda text: STAMP.encode() + text, st.binary(max_size=30)),
        st.binary(max_size=120),
        st.just("DETAIL:  Schlüssel «ä»".encode()),
    ),
    max_size=12,
)


@given(
    lines,
    st.lists(st.integers(0, 2000), max_size=12),
    st.sampled_from([b"", b"\n"]),
    st.sampled_from([20, 100, 65_536]),
)
def test_any_cutting_into_chunks_gives_the_same_messages(
    written: list[bytes], at: list[int], end: bytes, max_message: int
) -> None:
    data = b"\n".join(written) + end
    whole = frame([data], max_message)
    assert frame(cut(data, at), max_message) == whole
    assert frame([data[i : i + 1] for i in range(len(data))], max_message) == whole


@given(lines)
def test_nothing_is_lost_below_the_limit(written: list[bytes]) -> None:
    written = [line.replace(b"\n", b"") for line in written]
    data = b"".join(line + b"\n" for line in written)
    text = "\n".join(message.replace(JOINT, "\n") for message in frame([data]))
    expected = "\n".join(line.decode(errors="replace").replace(JOINT, "\n") for line in written)
    assert text == expected


@given(lines, st.integers(10, 200))
def test_no_message_is_much_longer_than_the_limit(written: list[bytes], limit: int) -> None:
    for message in frame([b"\n".join(written)], limit):
        assert len(message) <= 2 * limit + len(" [2000 bytes cut off]") + message.count(JOINT)


CASES = {
    "one line": ([f"{STAMP}LOG:  ready\n"], [f"{STAMP}LOG:  ready"]),
    "two messages": ([f"{STAMP}a\n{STAMP}b\n"], [f"{STAMP}a", f"{STAMP}b"]),
    "a message of three lines": (
        [f"{STAMP}ERROR:  x\nDETAIL:  y\nHINT:  z\n{STAMP}next\n"],
        [f"{STAMP}ERROR:  x{JOINT}DETAIL:  y{JOINT}HINT:  z", f"{STAMP}next"],
    ),
    "no newline at the end": ([f"{STAMP}last words"], [f"{STAMP}last words"]),
    "an empty line within": ([f"{STAMP}a\n\nb\n"], [f"{STAMP}a{JOINT}{JOINT}b"]),
    "no timestamp at first": (["initializing\nmore\n"], [f"initializing{JOINT}more"]),
    "nothing": ([""], []),
}


@pytest.mark.parametrize("case", CASES)
def test_lines_become_messages(case: str) -> None:
    chunks, messages = CASES[case]
    assert frame([chunk.encode() for chunk in chunks]) == messages


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert frame([STAMP.encode() + b"a\xff\xfeb\n"]) == [f"{STAMP}a\ufffd\ufffdb"]


def test_a_giant_line_is_cut_with_a_mark_and_the_next_one_is_whole() -> None:
    data = STAMP.encode() + b"x" * 1_000_000 + b"\n" + STAMP.encode() + b"next\n"
    giant, following = frame([data], 1000)
    assert giant == f"{STAMP}{'x' * (1000 - len(STAMP))} [{1_000_000 - 1000 + len(STAMP)} bytes cut off]"
    assert following == f"{STAMP}next"


def test_a_message_of_endless_lines_is_divided_and_nothing_of_it_is_lost() -> None:
    data = b"".join(b"line %d\n" % number for number in range(1000))
    messages = frame([data], 500)
    assert len(messages) > 10
    assert JOINT.join(messages) == JOINT.join(f"line {number}" for number in range(1000))


def test_silence_completes_a_message_and_leaves_a_half_line_alone() -> None:
    framer = Framer()
    assert framer.feed(f"{STAMP}a\nhalf".encode()) == []
    assert framer.holds_message is True
    assert framer.flush() == [f"{STAMP}a"]
    held: bool = framer.holds_message
    assert held is False
    assert framer.flush() == []
    assert framer.feed(b" a line\n") == []
    assert framer.finish() == ["half a line"]


# --- The pump --------------------------------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.messages: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, message: str) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, WAIT_S), self.messages


class Pumping:
    def __init__(self) -> None:
        self.heard = Heard()
        self.pump = Pump(self.heard)
        self.cancellation = Cancellation()
        self.no_space = threading.Semaphore(0)
        self.thread = threading.Thread(
            target=self.pump.run, args=(self.no_space.release, self.cancellation), daemon=True
        )
        self.writers: list[int] = []

    def open(self) -> int:
        self.thread.start()
        writer = self.pump.open(WAIT_S)
        assert writer is not None
        self.writers.append(writer)
        return writer

    def close(self) -> None:
        self.cancellation.request()
        for writer in self.writers:
            os.close(writer)
        if self.thread.ident is not None:
            self.thread.join(WAIT_S)
            assert not self.thread.is_alive()


@pytest.fixture
def pumping() -> Iterator[Pumping]:
    made = Pumping()
    yield made
    made.close()


def test_a_message_arrives_after_a_moment_of_silence(pumping: Pumping) -> None:
    writer = pumping.open()
    os.write(writer, f"{STAMP}ERROR:  x\nDETAIL:  y\n".encode())
    pumping.heard.wait(1)
    assert pumping.heard.messages == [f"{STAMP}ERROR:  x{JOINT}DETAIL:  y"]


def test_the_last_line_arrives_without_a_newline_and_the_last_messages_are_kept(pumping: Pumping) -> None:
    writer = pumping.open()
    for number in range(50):
        os.write(writer, f"{STAMP}{number}\n".encode())
    os.write(writer, f"{STAMP}last words".encode())
    os.close(pumping.writers.pop())
    assert pumping.pump.ended.wait(WAIT_S)
    assert len(pumping.heard.messages) == 51
    assert pumping.pump.last_messages == tuple(pumping.heard.messages[-LAST_MESSAGES:])
    assert pumping.heard.messages[-1] == f"{STAMP}last words"


def test_a_cancelled_pump_reads_what_is_there_and_ends_although_a_writer_lives(pumping: Pumping) -> None:
    writer = pumping.open()
    os.write(writer, f"{STAMP}only this".encode())
    pumping.cancellation.request()
    assert pumping.pump.ended.wait(WAIT_S)
    assert pumping.heard.messages in ([f"{STAMP}only this"], [])  # read if it came first
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"to nobody")


def test_a_pump_that_is_cancelled_before_there_is_a_pipe_ends_and_hands_out_none(pumping: Pumping) -> None:
    pumping.thread.start()
    assert pumping.pump.reading.wait(WAIT_S)
    pumping.cancellation.request()
    assert pumping.pump.ended.wait(WAIT_S)
    assert pumping.pump.open(0.1) is None


def test_without_a_reader_there_is_no_pipe() -> None:
    assert Pump().open(0.01) is None


def test_a_flood_is_read_faster_than_it_fills_the_pipe(pumping: Pumping) -> None:
    writer = pumping.open()
    line = f"{STAMP}{'x' * 200}\n".encode()
    done = threading.Event()

    def flood() -> None:
        for _ in range(5_000):
            os.write(writer, line)
        done.set()

    threading.Thread(target=flood, daemon=True).start()
    assert done.wait(WAIT_S)
    pumping.heard.wait(4_999)

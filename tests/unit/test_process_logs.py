"""Log records on their way to standard error: one line each, nobody waits, the last one arrives."""

import fcntl
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from compute_node.process import logs
from compute_node.process.logs import (
    MAX_TEXT,
    LogFormat,
    LogWriter,
    configure,
    human_line,
    json_line,
    level_from,
)
from hypothesis import given
from hypothesis import strategies as st

HUMAN = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (ERROR|WARN |INFO |DEBUG) [^ ]+: .*\n")
CREATED = 1_795_341_600.1234
"""2026-11-22T10:00:00.123Z"""

log = logging.getLogger("compute_node.actors.supervisor.actor")


def record(
    msg: object, *args: object, name: str = "compute_node.supervisor", **more: Any
) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, "file.py", 1, msg, args, None)
    made.created = CREATED
    vars(made).update(more)
    return made


def raised(text: str) -> Any:
    try:
        raise LookupError(text)  # noqa: TRY301 - a traceback is what is wanted
    except LookupError:
        return sys.exc_info()


class Pipe:
    """A pipe that stands for standard error; it is only read when the test says so."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fileno(self) -> int:
        return self.writer

    def fill(self) -> int:
        """Fill it up, so that the next write blocks; return how many bytes that took."""
        os.set_blocking(self.writer, False)
        size = 0
        try:
            while True:
                size += os.write(self.writer, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)
        return size

    def read_all(self) -> bytes:
        """Read what was written; every writer must have been closed."""
        os.close(self.writer)
        self.writer = -1
        with os.fdopen(os.dup(self.reader), "rb") as file:
            return file.read()

    def close(self) -> None:
        for descriptor in (self.reader, self.writer):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def logged(pipe: Pipe, form: LogFormat, what: Callable[[], None], level: str = "info") -> list[bytes]:
    """Return the lines that logging brought through the pipe."""
    writer = configure(form, level, pipe)
    try:
        what()
    finally:
        assert writer.close()
    return pipe.read_all().splitlines(keepends=True)


# --- The forms


def test_the_human_form_is_time_level_logger_text() -> None:
    assert human_line(record("text %d", 5)) == b"2026-11-22T10:00:00.123Z INFO  supervisor: text 5\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("compute_node.actors.supervisor.actor", b"supervisor"),
        ("compute_node.actors.kit.cell", b"kit.cell"),
        ("compute_node.http", b"http"),
        ("compute_node", b"compute_node"),
        ("waitress.queue", b"waitress.queue"),
    ],
)
def test_loggers_are_shown_by_their_short_names(name: str, shown: bytes) -> None:
    assert human_line(record("text", name=name)) == b"2026-11-22T10:00:00.123Z INFO  %s: text\n" % shown


def test_lines_of_postgres_stand_as_they_are_for_people() -> None:
    text = "PG:2026-11-22 10:00:00 LOG:  ready\u200bDETAIL:  x"

    assert human_line(record("%s", text, name="postgres")) == text.encode() + b"\n"


def test_lines_of_postgres_are_records_for_programs() -> None:
    line = json.loads(json_line(record("PG:ready", name="postgres")))

    assert (line["logger"], line["message"]) == ("postgres", "PG:ready")


def test_the_json_form_has_its_keys() -> None:
    assert json.loads(json_line(record("text"))) == {
        "timestamp": "2026-11-22T10:00:00.123Z",
        "level": "INFO",
        "logger": "supervisor",
        "message": "text",
    }


def test_an_exception_is_a_key_of_its_own_in_json() -> None:
    line = json.loads(json_line(record("failed", exc_info=raised("a\nb"))))

    assert line["message"] == "failed"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("LookupError: a\nb")


def test_an_exception_stays_on_the_line_for_people() -> None:
    line = human_line(record("failed", exc_info=raised("why")))

    assert line.count(b"\n") == 1
    assert b"supervisor: failed | Traceback (most recent call last): |   File " in line
    assert line.endswith(b" | LookupError: why\n")


def test_several_lines_become_one() -> None:
    assert human_line(record("one\ntwo\r\n\nthree\n")).endswith(b": one | two | three\n")


def test_a_call_whose_arguments_do_not_fit_is_logged_nevertheless() -> None:
    assert b"%d apples (its arguments do not fit: " in human_line(record("%d apples", "some"))


@pytest.mark.parametrize("render", [human_line, json_line])
def test_what_is_endless_is_cut(render: Callable[[logging.LogRecord], bytes]) -> None:
    line = render(record("x" * (MAX_TEXT + 5)))

    assert len(line) < MAX_TEXT + 300
    assert b"[5 characters cut off]" in line


@pytest.mark.parametrize("render", [human_line, json_line])
def test_lone_surrogates_are_written_as_their_codes(render: Callable[[logging.LogRecord], bytes]) -> None:
    assert rb"\udc80" in render(record("\udc80"))


any_text = st.text(st.characters(exclude_categories=()))


@given(any_text, any_text, st.none() | any_text)
def test_every_record_is_one_line_without_escape_bytes(text: str, name: str, error: str | None) -> None:
    made = record("%s", text, name=name, exc_info=None if error is None else raised(error))

    human, as_json = human_line(made), json_line(made)

    for line in (human, as_json):
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert b"\x1b" not in line
        line.decode()
    fields = json.loads(as_json)
    assert set(fields) == {"timestamp", "level", "logger", "message"} | (
        set() if error is None else {"exception"}
    )


# --- The level


@pytest.mark.parametrize(
    ("environ", "level"),
    [
        ({}, "info"),
        ({"RUST_LOG": ""}, "info"),
        ({"RUST_LOG": "debug"}, "debug"),
        ({"RUST_LOG": " WARN "}, "warn"),
        ({"RUST_LOG": "debug", "COMPUTE_NODE_LOG": "error"}, "error"),
        ({"COMPUTE_NODE_LOG": "off"}, "off"),
    ],
)
def test_the_environment_sets_the_level(environ: dict[str, str], level: str) -> None:
    assert level_from(environ) == (level, ())


@pytest.mark.parametrize("value", ["compute_ctl=debug,info", "verbose", "1"])
def test_a_level_that_is_not_understood_is_warned_about(value: str) -> None:
    level, warnings = level_from({"RUST_LOG": value})

    assert level == "info"
    assert len(warnings) == 1
    assert f"RUST_LOG={value!r}" in warnings[0]
    assert "give one of off, error, warn, info, debug, trace" in warnings[0]


def test_that_warning_is_logged(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPUTE_NODE_LOG", raising=False)
    monkeypatch.setenv("RUST_LOG", "verbose")
    configure("human", stream=pipe).close()

    assert b"RUST_LOG='verbose' is not understood" in pipe.read_all()


def chatter() -> None:
    for logger in ("compute_node.supervisor", "postgres", "waitress"):
        for say in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger(logger), say)("%s %s", logger, say)


@pytest.mark.parametrize(
    ("level", "ours", "others"),
    [("off", 0, 0), ("error", 1, 1), ("warn", 2, 2), ("info", 3, 2), ("debug", 4, 2), ("trace", 4, 4)],
)
def test_the_level_counts_for_ours_and_libraries_speak_from_warn_on(
    pipe: Pipe, level: str, ours: int, others: int
) -> None:
    lines = b"".join(logged(pipe, "json", chatter, level))

    assert lines.count(b'"compute_node.supervisor ') == ours
    assert lines.count(b'"postgres ') == ours
    assert lines.count(b'"waitress ') == others


# --- The way out


def test_auto_is_json_in_a_pipe(pipe: Pipe) -> None:
    lines = logged(pipe, "auto", lambda: log.info("hello"))

    assert [json.loads(line)["message"] for line in lines] == ["hello"]


def test_the_human_form_in_a_pipe_has_no_escape_bytes(pipe: Pipe) -> None:
    def shout() -> None:
        log.error("\x1b[31mred\x1b[0m")
        log.warning("yellow")
        log.info("line\nline")

    lines = logged(pipe, "human", shout)

    assert len(lines) == 3
    assert all(HUMAN.fullmatch(line) for line in lines)
    assert b"\x1b" not in b"".join(lines)


def test_colour_is_only_for_terminals() -> None:
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal, os.fdopen(slave, "wb", buffering=0) as stream:
        writer = configure("auto", "info", stream)
        log.error("look")
        assert writer.close()
        seen = terminal.read(4096)

    assert b" \x1b[31mERROR\x1b[0m supervisor: look" in seen


def test_the_lines_keep_their_order(pipe: Pipe) -> None:
    def count() -> None:
        for number in range(500):
            log.info("%d", number)

    lines = logged(pipe, "human", count)

    assert [int(line.rsplit(b" ", 1)[1]) for line in lines] == list(range(500))


def test_a_writer_that_rests_is_not_woken_by_each_line(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_PAUSE_S", 1000)
    pieces: list[bytes] = []
    write = LogWriter._write

    def counted(writer: LogWriter, data: bytes) -> bool:
        pieces.append(data)
        return write(writer, data)

    monkeypatch.setattr(LogWriter, "_write", counted)
    writer = LogWriter(pipe.fileno(), human_line)
    resting = threading.Event()
    rest = writer._rest.wait

    def told(limit_s: float) -> bool:
        resting.set()
        return rest(limit_s)

    monkeypatch.setattr(writer._rest, "wait", told)
    writer.install("info")
    log.info("first")
    assert resting.wait(30)
    for number in range(100):
        log.info("line %d", number)
    assert writer.close()
    assert [piece.count(b"\n") for piece in pieces] == [1, 100]


def test_a_full_pipe_blocks_nobody_and_lost_lines_are_counted(pipe: Pipe) -> None:
    stuck = pipe.fill()
    lost: list[int] = []
    writer = LogWriter(pipe.fileno(), human_line, max_waiting_bytes=20_000)
    writer.on_drop(lost.append)
    writer.install("info")
    try:
        began = time.monotonic()
        for number in range(2000):
            log.info("number %d", number)
        took = time.monotonic() - began
        flushed = writer.flush(0.05)
        dropped = writer.dropped
    finally:
        reader = threading.Thread(target=drain, args=(pipe.reader, seen := bytearray()))
        reader.start()
        assert writer.close(10)
        os.close(pipe.writer)
        pipe.writer = -1
        reader.join(10)

    lines = bytes(seen)[stuck:].splitlines()
    assert took < 30  # a call that waits for the pipe would wait for ever
    assert not flushed
    assert dropped == sum(lost) > 1000
    announced = [line for line in lines if b" log lines were lost: " in line]
    assert len(lines) == 2000 - dropped + 1
    assert len(announced) == 1
    assert b" WARN  logs: %d log lines were lost" % dropped in announced[0]


def drain(descriptor: int, into: bytearray) -> None:
    while data := os.read(descriptor, 65536):
        into += data


def test_the_end_does_not_wait_for_a_full_pipe(pipe: Pipe) -> None:
    stuck = pipe.fill()
    writer = configure("human", "info", pipe)
    log.info("the last words")
    began = time.monotonic()

    ended = writer.close(0.1)

    assert not ended
    assert time.monotonic() - began < 1
    os.read(pipe.reader, stuck)
    assert writer.close(10)


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(pipe: Pipe) -> None:
    os.close(pipe.reader)
    pipe.reader = -1
    writer = configure("human", "info", pipe)
    for _ in range(10):
        log.info("to nobody")

    assert writer.close()
    assert writer.dropped == 10


def test_a_descriptor_that_somebody_made_non_blocking_gets_everything(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 4096)
    reader = threading.Thread(target=drain, args=(pipe.reader, seen := bytearray()))
    reader.start()
    writer = configure("human", "info", pipe)
    for _ in range(100):
        log.info("x" * 1000)
    assert writer.close(10)
    os.close(pipe.writer)
    pipe.writer = -1
    reader.join(10)

    assert seen.count(b"\n") == 100
    assert writer.dropped == 0


def test_lines_lost_before_somebody_counts_are_told_too(pipe: Pipe) -> None:
    writer = LogWriter(pipe.fileno(), human_line, max_waiting_bytes=0)
    writer.install("info")
    log.info("too much")
    lost: list[int] = []
    writer.on_drop(lost.append)
    log.info("too much")
    writer.close()

    assert lost == [1, 1]


def test_the_last_line_is_there_every_time() -> None:
    for number in range(100):
        pipe = Pipe()
        lines = logged(pipe, "json", lambda number=number: log.info("last %d", number))  # type: ignore[misc]
        pipe.close()

        assert json.loads(lines[-1])["message"] == f"last {number}"


def test_closing_gives_logging_back_as_it_was(pipe: Pipe) -> None:
    root, ours = logging.getLogger(), logging.getLogger("compute_node")
    before = (root.level, ours.level, list(root.handlers))
    writer = configure("human", "debug", pipe)
    during = (root.level, ours.level)
    writer.close()

    assert during == (logging.WARNING, logging.DEBUG)
    assert (root.level, ours.level, list(root.handlers)) == before
    assert writer.flush(5) is False


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "writer.close(); os._exit(0)"], ids=["ordinary", "hard"])
def test_a_process_leaves_its_last_line_behind(end: str) -> None:
    script = (
        "import logging, os\nfrom compute_node.process import logs\n"
        "writer = logs.configure('human')\n"
        "for number in range(1000): logging.getLogger('compute_node').info('line %d', number)\n" + end
    )
    for _ in range(5):
        result = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=True)

        assert result.stderr.count(b"\n") == 1000
        assert result.stderr.endswith(b": line 999\n")


def test_progress_stands_in_the_last_line_of_a_terminal_until_the_next_record() -> None:
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal, os.fdopen(slave, "wb", buffering=0) as stream:
        writer = configure("auto", "info", stream)
        bar = logging.getLogger(logs.PROGRESS)
        bar.info("one")
        bar.info("two")
        log.info("a record")
        log.info("another")
        bar.info("three")
        assert writer.close()
        seen = terminal.read(4096)

    clear = b"\r\x1b[K"
    first, _, rest = seen.partition(b"a record")
    assert first.startswith(b"one" + clear + b"two" + clear)
    assert clear not in rest
    assert rest.endswith(b"another\r\nthree")


@pytest.mark.parametrize("form", ["auto", "human", "json"])
def test_progress_is_shown_nowhere_but_on_a_terminal(form: LogFormat, pipe: Pipe) -> None:
    writer = configure(form, "info", pipe)
    assert not logging.getLogger(logs.PROGRESS).isEnabledFor(logging.INFO)
    assert writer.close()
    assert logging.getLogger(logs.PROGRESS).level == logging.NOTSET

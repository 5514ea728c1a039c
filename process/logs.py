"""Where log records go: one line each, to standard error, without anybody ever waiting for it.

A log call renders its record and puts it into a bounded queue; one daemon thread writes. When the reader of
standard error stalls, records are dropped and counted. Signal handlers must not log: the queue is safe
there, the locks of `logging` are not.
"""

import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, Literal, Protocol, TypeAlias

import msgspec
from typing_extensions import override

from ..actors.kit.threads import show_name

LogFormat: TypeAlias = Literal["auto", "human", "json"]

MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
"""What may wait for the writer; beyond it records are dropped."""
MAX_TEXT: Final = 256 * 1024
"""Characters of a message or a traceback; the rest is cut off."""
END_TIMEOUT_S: Final = 1.0
"""How long the end of the process may wait for the last lines."""

PROGRESS: Final = "compute_node.progress"
"""The logger of what is shown in one line of a terminal, each record in place of the one before, and nowhere else."""
VARIABLES: Final = ("COMPUTE_NODE_LOG", "RUST_LOG")
"""The first that is set wins."""
LEVELS: Final = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}
"""`trace` also opens the libraries' loggers; they speak from `warn` on otherwise."""
DEFAULT_LEVEL: Final = "info"

_OURS: Final = ("compute_node", "postgres")
_LINE_BYTES: Final = 100
"""What a line in the queue costs beside its text."""
_BATCH_BYTES: Final = 64 * 1024
_PAUSE_S: Final = 0.005
"""After a small batch the writer rests, so that a stream of lines does not wake it for each."""
_SRCFILE: Final = logging._srcfile  # noqa: SLF001 - see install
_JOINT: Final = " | "
_CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != ord("\t")
}
_COLOURS: Final = {"ERROR": "\x1b[31m", "WARN": "\x1b[33m", "DEBUG": "\x1b[2m"}
_PLAIN: Final = "\x1b[0m"
_CLEAR_LINE: Final = b"\r\x1b[K"

log = logging.getLogger("compute_node.logs")


class Stream(Protocol):
    """What has a file descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


def configure(
    form: LogFormat = "auto", level: str | None = None, stream: Stream | None = None
) -> "LogWriter":
    """Send everybody's records to `stream` (standard error); without a `level` the environment decides.

    `auto` is the human form on a terminal and JSON otherwise. Call `close` of the result as the last step.
    """
    warnings: tuple[str, ...] = ()
    if level is None:
        level, warnings = level_from(os.environ)
    descriptor = (stream or sys.stderr).fileno()
    terminal = os.isatty(descriptor)
    render: Callable[[logging.LogRecord], bytes] = human_line
    if form == "json" or (form == "auto" and not terminal):
        render = json_line
    elif terminal:
        render = Terminal()
    writer = LogWriter(descriptor, render)
    writer.install(level)
    for warning in warnings:
        log.warning("%s", warning)
    return writer


def level_from(environ: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the level that the environment asks for, and what is to be warned about."""
    for variable in VARIABLES:
        asked = environ.get(variable, "").strip()
        if asked.lower() in LEVELS:
            return asked.lower(), ()
        if asked:
            known = ", ".join(LEVELS)
            warning = f"{variable}={asked[:80]!r} is not understood and {DEFAULT_LEVEL} is used: give one of {known}"
            return DEFAULT_LEVEL, (warning,)
    return DEFAULT_LEVEL, ()


# --- One record, one line


def human_line(record: logging.LogRecord) -> bytes:
    """Write a record for people: time, level, logger, text; what Postgres said stands as it is."""
    return _human(record, colour=False)


def coloured_line(record: logging.LogRecord) -> bytes:
    """Write a record for people at a terminal."""
    return _human(record, colour=True)


class Terminal:
    """Renders for a person at a terminal; progress stands in the last line until the next record."""

    def __init__(self) -> None:
        self._shows_progress = False

    def __call__(self, record: logging.LogRecord) -> bytes:
        """Write a record, over the progress that may stand there."""
        clear = _CLEAR_LINE if self._shows_progress else b""
        self._shows_progress = record.name == PROGRESS
        if self._shows_progress:
            return clear + _one_line(_message(record)).encode(errors="backslashreplace")
        return clear + coloured_line(record)


def json_line(record: logging.LogRecord) -> bytes:
    """Write a record for programs, as one JSON object."""
    fields = {
        "timestamp": _timestamp(record),
        "level": _level(record),
        "logger": _logger(record),
        "message": _message(record),
    }
    if exception := _exception(record):
        fields["exception"] = exception
    try:
        return msgspec.json.encode(fields) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate: bytes that were no text once
        return msgspec.json.encode({key: _unicode(value) for key, value in fields.items()}) + b"\n"


def _human(record: logging.LogRecord, *, colour: bool) -> bytes:
    text = _message(record)
    if exception := _exception(record):
        text = f"{text}\n{exception}"
    text = _one_line(text)
    if record.name != "postgres":
        level = f"{_level(record):5}"
        if colour and (code := _COLOURS.get(_level(record))) is not None:
            level = f"{code}{level}{_PLAIN}"
        text = f"{_timestamp(record)} {level} {_one_line(_logger(record))}: {text}"
    return text.encode(errors="backslashreplace") + b"\n"


def _one_line(text: str) -> str:
    return _JOINT.join(line.translate(_CONTROLS) for line in text.splitlines() if line)


def _timestamp(record: logging.LogRecord) -> str:
    seconds, ms = divmod(int(record.created * 1000), 1000)
    return f"{_second(seconds)}.{ms:03}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _level(record: logging.LogRecord) -> str:
    if record.levelno >= logging.ERROR:
        return "ERROR"
    if record.levelno >= logging.WARNING:
        return "WARN"
    return "INFO" if record.levelno >= logging.INFO else "DEBUG"


def _logger(record: logging.LogRecord) -> str:
    return record.name.removeprefix("compute_node.").removeprefix("actors.").removesuffix(".actor")


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as error:  # noqa: BLE001 - a log call never fails
        text = f"{record.msg!s} (its arguments do not fit: {error})"
    return _cut(text)


def _exception(record: logging.LogRecord) -> str:
    parts = [record.exc_text] if record.exc_text else []
    if not parts and record.exc_info and record.exc_info[0] is not None:
        parts = [logging.Formatter().formatException(record.exc_info)]
    if record.stack_info:
        parts.append(record.stack_info)
    return _cut("\n".join(parts))


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} [{len(text) - MAX_TEXT} characters cut off]"


def _unicode(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


# --- The queue and its writer


class LogWriter:
    """Takes rendered lines from everybody and writes them to a copy of one descriptor, on its own thread."""

    def __init__(
        self,
        descriptor: int,
        render: Callable[[logging.LogRecord], bytes],
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._descriptor = os.dup(descriptor)
        self._render = render
        self._max_waiting = max_waiting_bytes
        self._queue: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._taken_bytes = 0  # changed under the handler's lock only
        self._written_bytes = 0  # changed by the writer's thread only
        self._refused = 0  # changed under the handler's lock only
        self._failed = 0  # changed by the writer's thread only
        self._announced = 0
        self._on_drop: Callable[[int], None] = lambda _: None
        self._handler = _Handler(self)
        self._levels: dict[str, int] = {}
        self._rest = threading.Event()  # set at the end
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many lines were lost so far."""
        return self._refused + self._failed

    def on_drop(self, callback: Callable[[int], None]) -> None:
        """Call this with the number of lines each time some are lost, those so far at once.

        It runs in the thread that logs or in the writer's, must not block and must not log.
        """
        self._on_drop = callback
        if self.dropped:
            callback(self.dropped)

    def install(self, level: str) -> None:
        """Make this the place where records of that level and above go."""
        number = LEVELS[level]
        of_others = number if level in {"off", "trace"} else max(number, logging.WARNING)
        of_progress = number if isinstance(self._render, Terminal) else LEVELS["off"]
        levels = (("", of_others), *((name, number) for name in _OURS), (PROGRESS, of_progress))
        for name, least in levels:
            logger = logging.getLogger(name)
            self._levels[name] = logger.level
            logger.setLevel(least)
        logging.getLogger().addHandler(self._handler)
        # Nobody shows from which line of code a record came, and to look for it costs a third of the call.
        logging._srcfile = None  # noqa: SLF001 - as the manual of logging says

    def flush(self, timeout_s: float = END_TIMEOUT_S) -> bool:
        """Wait until what has been logged so far is written, at most that long; False when it is not."""
        done = threading.Event()
        self._queue.put(done)
        return self._thread.is_alive() and done.wait(timeout_s)

    def close(self, timeout_s: float = END_TIMEOUT_S) -> bool:
        """Undo `install` and write what is waiting, at most that long; False when something is left."""
        logging.getLogger().removeHandler(self._handler)
        logging._srcfile = _SRCFILE  # noqa: SLF001 - see install
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
        self._levels.clear()
        self._rest.set()
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def take(self, record: logging.LogRecord) -> None:
        """Queue a record, or drop it when too much is waiting; for the handler, under its lock."""
        waiting = self._taken_bytes - self._written_bytes
        if waiting < self._max_waiting:
            line = self._render(record)
            if waiting + len(line) <= self._max_waiting:
                self._taken_bytes += len(line) + _LINE_BYTES
                self._queue.put(line)
                return
        self._refused += 1
        self._on_drop(1)

    # --- On the writer's thread

    def _run(self) -> None:
        show_name()
        ended = False
        while not ended:
            lines, marks, ended = self._collect()
            if lines:
                self._write_lines(lines)
            for mark in marks:
                mark.set()
            if not ended and self._queue.empty():
                self._rest.wait(_PAUSE_S)
        os.close(self._descriptor)

    def _collect(self) -> tuple[list[bytes], list[threading.Event], bool]:
        """Wait for work; return the lines and flush marks that are there, and whether it is the end."""
        lines: list[bytes] = []
        marks: list[threading.Event] = []
        size = 0
        item = self._queue.get()
        while item is not None:
            if isinstance(item, threading.Event):
                marks.append(item)
            else:
                lines.append(item)
                size += len(item)
            if size >= _BATCH_BYTES:
                return lines, marks, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return lines, marks, False
        return lines, marks, True

    def _write_lines(self, lines: list[bytes]) -> None:
        written = self._write(b"".join(lines))
        self._written_bytes += sum(len(line) + _LINE_BYTES for line in lines)
        if not written:
            self._failed += len(lines)
            self._on_drop(len(lines))
            return
        dropped = self.dropped
        if dropped > self._announced:
            text = f"{dropped - self._announced} log lines were lost: standard error did not take them"
            self._announced = dropped
            record = {"name": log.name, "levelno": logging.WARNING, "msg": text}
            self._write(self._render(logging.makeLogRecord(record)))

    def _write(self, data: bytes) -> bool:
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # somebody made the descriptor non-blocking
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    poll.poll()
        except OSError:
            return False
        return True


class _Handler(logging.Handler):
    """The way from `logging` into the queue."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._writer.take(record)

    @override
    def flush(self) -> None:
        """Let an ordinary end of the interpreter, which calls this, not lose the last lines."""
        self._writer.flush()

"""Helper programs: run to their end, or gone with all they started."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from compute_node.actors.kit import programs
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.kit.metrics import Metrics
from compute_node.actors.kit.output import MAX_OUTPUT
from compute_node.actors.kit.programs import ProgramError
from compute_node.actors.postgres_process.orphans import is_alive
from compute_node.messages.metrics import SLOW_SPAWNS, SPAWN_SECONDS, SPAWNS
from compute_node.messages.stream import CAPACITY, ByteStream, StreamBrokenError, StreamClosedError

from fix_postgres import wait_until

WAIT_S = 10.0
STARTER = programs.Starter(None)


def run_shell(
    script: str, cancellation: Cancellation | None = None, timeout_s: float = WAIT_S
) -> programs.Result:
    return programs.run(
        ["/bin/sh", "-c", script],
        starter=STARTER,
        env={"PATH": os.environ["PATH"]},
        cwd="/",
        timeout_s=timeout_s,
        cancellation=cancellation or Cancellation(),
    )


def test_a_program_is_run_to_its_end_with_all_it_says() -> None:
    assert run_shell("echo out; echo err >&2; exit 3") == programs.Result(3, "out\nerr\n")


def test_the_end_of_long_output_is_kept() -> None:
    result = run_shell("yes x | head -c 400000; echo end")
    assert result.output.endswith("end\n")
    assert len(result.output) == MAX_OUTPUT


def test_a_program_that_takes_too_long_is_killed_with_its_group() -> None:
    with pytest.raises(ProgramError, match=r"had not ended after 0.2 s and was killed; it said: busy"):
        run_shell("echo busy; sleep 60 & sleep 60", timeout_s=0.2)


def test_what_a_program_has_left_behind_is_killed_soon_after_its_own_end(tmp_path: Path) -> None:
    left = tmp_path / "left"
    began_s = time.monotonic()
    result = run_shell(f"sleep 300 & echo $! > {left}; echo said; kill -9 $$", timeout_s=50)
    assert result == programs.Result(-9, "said\n")
    assert time.monotonic() - began_s < 30
    assert not is_alive(int(left.read_text()))


def test_a_cancelled_program_is_gone_with_all_it_started_when_the_call_returns(tmp_path: Path) -> None:
    cancellation = Cancellation()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run_shell(f"sh -c 'exec 3>{fifo}; echo up >&3; sleep 60' & wait", cancellation)
        except CancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    import select

    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert poll.poll(WAIT_S * 1000)
    assert os.read(reader, 10) == b"up\n"
    os.set_blocking(reader, True)  # who was killed closes one thing after the other
    cancellation.request()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert os.read(reader, 10) == b"", "the grandchild still holds the other end"
    os.close(reader)


def test_a_helper_that_ignores_signals_and_leaves_its_group_is_gone_too(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    script = f'trap "" TERM HUP INT; (setsid sh -c "exec 3>{fifo}; echo up >&3; exec sleep 60" &) ; sleep 60'
    cancellation = Cancellation()
    thread = threading.Thread(target=run_cancelled, args=(script, cancellation))
    thread.start()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        wait_until(lambda: pipe.read(3) == b"up\n", "the helper's own daemon is there")
        cancellation.request()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert pipe.read(1) == b"", "nobody holds the other end"


SLOW_TO_DIE = """
import os, signal, sys
memory = b"x" * (300 << 20)
with open("new", "w") as file:
    file.write(str(os.getpid()))
os.rename("new", "pid")
signal.pause()
"""
"""What is to be given back takes the kernel a while."""


def test_a_helper_that_has_let_go_of_the_output_is_gone_too_when_the_call_returns(tmp_path: Path) -> None:
    (tmp_path / "program").write_text(SLOW_TO_DIE)
    script = f"cd {tmp_path}; {sys.executable} program > /dev/null 2>&1 & wait"
    cancellation = Cancellation()
    thread = threading.Thread(target=run_cancelled, args=(script, cancellation))
    thread.start()
    wait_until((tmp_path / "pid").exists, "it is there", WAIT_S)
    cancellation.request()
    thread.join(WAIT_S)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def run_cancelled(script: str, cancellation: Cancellation) -> None:
    with pytest.raises(CancelledError):
        run_shell(script, cancellation)


def test_what_is_started_inherits_three_descriptors_and_nothing_else() -> None:
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        # The fourth is the folder that is being listed.
        assert run_shell("ls /proc/self/fd", Cancellation()).output.split() == ["0", "1", "2", "3"]
    finally:
        os.close(leak)


def test_what_is_started_outlives_the_thread_that_started_it() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.append(STARTER.start(["/bin/sleep", "60"], env={}, cwd="/", output=subprocess.DEVNULL))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(WAIT_S)
    (process,) = started
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.kill()
    assert process.wait(WAIT_S) == -9


def test_programs_are_started_beside_busy_threads() -> None:
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            logging.getLogger("busy").debug("%s", [object() for _ in range(100)])

    threads = [threading.Thread(target=busy) for _ in range(20)]
    for thread in threads:
        thread.start()
    try:
        codes = {
            STARTER.start(["/bin/true"], env={}, cwd="/", output=subprocess.DEVNULL).wait(WAIT_S * 3)
            for _ in range(50)
        }
    finally:
        over.set()
        for thread in threads:
            thread.join(WAIT_S)
    assert codes == {0}


def test_the_start_of_a_program_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    starter = programs.Starter(None, metrics=metrics)
    for limit_s in (1000.0, 0.0):
        monkeypatch.setattr(programs, "SLOW_SPAWN_S", limit_s)
        starter.start(["/bin/true"], env={}, cwd="/", output=subprocess.DEVNULL).wait()
    assert metrics.read(SPAWNS) == {("true",): 2}
    assert metrics.read(SLOW_SPAWNS) == {("true",): 1}
    assert metrics.read(SPAWN_SECONDS)["true",] > 0


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ProgramError, match=r"/nowhere/initdb cannot be run: No such file"):
        programs.run(
            ["/nowhere/initdb"], starter=STARTER, env={}, cwd="/", timeout_s=1, cancellation=Cancellation()
        )


def test_a_cancellation_after_the_end_is_harmless() -> None:
    cancellation = Cancellation()
    run_shell("true", cancellation)
    cancellation.request()


# --- Programs whose output goes into a stream


def start_pouring(
    pool: ThreadPoolExecutor,
    script: str,
    stream: ByteStream,
    cancellation: Cancellation | None = None,
    timeout_s: float = WAIT_S,
    poured: Callable[[int], None] = lambda _: None,
) -> "Future[programs.Result]":
    return pool.submit(
        programs.pour,
        programs.Program(("/bin/sh", "-c", script), {"PATH": os.environ["PATH"]}),
        into=stream,
        poured=poured,
        starter=STARTER,
        timeout_s=timeout_s,
        cancellation=cancellation or Cancellation(),
    )


def test_output_goes_into_the_stream_and_errors_are_kept_apart() -> None:
    stream = ByteStream()
    sizes: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        pouring = start_pouring(pool, "echo out; echo err >&2; exit 3", stream, poured=sizes.append)
        assert pouring.result(WAIT_S) == programs.Result(3, "err\n")
    assert stream.read(0) == b"out\n"
    assert sizes == [4]


def test_a_program_whose_output_nobody_reads_stands_still_and_takes_no_memory() -> None:
    stream, total = ByteStream(), 0
    size = 8 << 20
    with ThreadPoolExecutor(1) as pool:
        sizes: list[int] = []
        script = f"head -c {size} /dev/zero; head -c 300000 /dev/zero >&2"
        pouring = start_pouring(pool, script, stream, poured=sizes.append)
        wait_until(lambda: sum(sizes) >= CAPACITY, "the stream is full", WAIT_S)
        assert not pouring.done()
        assert sum(sizes) <= CAPACITY + 65_536
        while total < size:
            total += len(stream.read(WAIT_S) or b"")
        assert len(pouring.result(WAIT_S).output) == MAX_OUTPUT
    assert total == size


STUBBORN = (
    'trap "" TERM HUP INT; (setsid sh -c "exec 3>{fifo}; echo up >&3; exec sleep 60" &) ; echo begin; {then}'
)


@pytest.mark.parametrize(
    ("end", "then"),
    [
        ("close", "sleep 60"),
        ("close", "exec yes"),
        ("cancel", "sleep 60"),
        ("cancel", "exec yes"),
        ("time-out", "exec yes"),
    ],
)
def test_who_pours_for_nobody_is_gone_with_all_it_started(tmp_path: Path, end: str, then: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    stream, cancellation = ByteStream(), Cancellation()
    with ThreadPoolExecutor(1) as pool, os.fdopen(reader, "rb", buffering=0) as pipe:
        pouring = start_pouring(
            pool,
            STUBBORN.format(fifo=fifo, then=then),
            stream,
            cancellation,
            timeout_s=3.0 if end == "time-out" else WAIT_S * 3,
        )
        wait_until(lambda: pipe.read(3) == b"up\n", "its own daemon is there", WAIT_S)
        match end:
            case "close":
                stream.close()
                expected: type[Exception] = StreamClosedError
            case "cancel":
                cancellation.request()
                expected = CancelledError
            case _:
                expected = ProgramError
        with pytest.raises(expected):
            pouring.result(WAIT_S)
        assert pipe.read(1) == b"", "nobody holds the other end"
    if end == "cancel":
        with pytest.raises(StreamBrokenError, match=r"^it was broken off because the node is ending$"):
            stream.read(0)


def test_a_reader_that_has_left_before_the_start_is_noticed_too() -> None:
    stream = ByteStream()
    stream.close()
    with ThreadPoolExecutor(1) as pool, pytest.raises(StreamClosedError):
        start_pouring(pool, "sleep 60", stream).result(WAIT_S)


def test_descriptors_are_passed_on_by_name_only() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"word")
    os.close(writing)
    stream = ByteStream()
    result = programs.pour(
        programs.Program(
            ("/bin/sh", "-c", f"cat /proc/self/fd/{reading}"), {"PATH": os.environ["PATH"]}, (reading,)
        ),
        into=stream,
        poured=lambda _: None,
        starter=STARTER,
        timeout_s=WAIT_S,
        cancellation=Cancellation(),
    )
    os.close(reading)
    assert (result.code, stream.read(0)) == (0, b"word")

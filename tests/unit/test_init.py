"""The tiny init, as PID 1 of a namespace and as a child subreaper: the same promises in both."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from compute_node.process import init

from fix_postgres import wait_until
from fix_process_tree import NAMESPACE, namespaces_are_permitted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WAIT_S = 60.0
BEGIN = "from compute_node.process import init\ninit.enter()\n"


@pytest.fixture(params=["pid namespace", "subreaper"])
def prefix(request: pytest.FixtureRequest) -> list[str]:
    """What a program's command begins with so that the init is needed."""
    if request.param == "pid namespace":
        namespaces_are_permitted()
        return list(NAMESPACE)
    return ["env", "COMPUTE_NODE_INIT=1"]


def command(prefix: list[str], supervisor: str, *arguments: str) -> list[str]:
    return [*prefix, sys.executable, "-c", BEGIN + textwrap.dedent(supervisor), *arguments]


def run(prefix: list[str], supervisor: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(prefix, supervisor, *arguments), capture_output=True, text=True, check=False, timeout=WAIT_S
    )


STORM = """
    import json, os, pathlib, subprocess, threading

    def zombies():
        found = []
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and int(fields[1]) in (os.getpid(), os.getppid()):
                found.append(stat.parent.name)
        return found

    reader, writer = os.pipe()
    for _ in range(200):
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)  # all end at once, among the children below
            os._exit(3)
        os.waitpid(middle, 0)
    os.close(writer)
    codes = {subprocess.run(["/bin/sh", "-c", "exit 7"]).returncode for _ in range(100)}
    pause = threading.Event()
    while (init.reaped() < 200 or zombies()) and not pause.wait(0.01):
        pass
    print(json.dumps({"codes": sorted(codes), "reaped": init.reaped()}), flush=True)
    os._exit(7)
"""


def test_orphans_are_reaped_and_exit_codes_are_right_in_the_middle_of_them(prefix: list[str]) -> None:
    done = run(prefix, STORM)
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout) == {"codes": [7], "reaped": 200}


@pytest.mark.parametrize(
    ("end", "code"), [("os._exit(0)", 0), ("os._exit(75)", 75), ("os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_code_is_the_supervisors(prefix: list[str], end: str, code: int) -> None:
    done = run(prefix, f"import os\n{end}")
    assert (done.returncode, done.stderr) == (code, "")


def test_the_supervisor_is_a_child_that_does_not_see_the_variable(prefix: list[str]) -> None:
    printed = run(
        prefix, "import os; print(os.getpid() != 1, os.getppid(), 'COMPUTE_NODE_INIT' in os.environ)"
    )
    first, parent, seen = printed.stdout.split()
    assert (first, seen) == ("True", "False")
    assert parent == "1" or prefix[0] == "env"


def test_without_need_there_is_one_process() -> None:
    done = run(["env", "COMPUTE_NODE_INIT=0"], "import os; print(os.getppid(), os.getpgid(0))")
    parent, group = map(int, done.stdout.split())
    assert (parent, group) == (os.getpid(), os.getpgid(0))
    assert init.reaped() == 0


# --- Signals ---------------------------------------------------------------------------------------------

ECHO = """
    import os, signal
    numbers = set(init.FORWARDED)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    print("up", flush=True)
    while True:
        number = signal.sigwaitinfo(numbers).si_signo
        more = signal.sigtimedwait(numbers, 0.1)
        print(number if more is None else 0, flush=True)
        if not os.read(0, 1):
            os._exit(4)
"""
"""Says which signals came, 0 for two at once; goes on after each byte of input."""


@contextmanager
def started(line: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """Start an init and wait for the first line of its supervisor."""
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def heard(process: "subprocess.Popen[str]") -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def let_go(process: "subprocess.Popen[str]") -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(WAIT_S)


def test_a_signal_is_forwarded_once() -> None:
    with started(command(["env", "COMPUTE_NODE_INIT=1"], ECHO)) as process:
        for number in sorted(init.FORWARDED):
            process.send_signal(number)
            assert heard(process) == number
            assert process.stdin is not None
            process.stdin.write("x")
            process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        assert heard(process) == signal.SIGTERM
        assert let_go(process) == 4


def test_signals_that_were_blocked_or_ignored_before_us_make_no_difference() -> None:
    strange = ["env", "--block-signal=TERM,CHLD", "--ignore-signal=CHLD", "COMPUTE_NODE_INIT=1"]
    with started(command(strange, ECHO)) as process:
        process.terminate()
        assert heard(process) == signal.SIGTERM
        assert let_go(process) == 4


def test_a_group_signal_reaches_the_supervisor_once() -> None:
    with started(command(["setsid", "env", "COMPUTE_NODE_INIT=1"], ECHO)) as process:
        (supervisor,) = psutil.Process(process.pid).children()
        assert os.getpgid(supervisor.pid) != os.getpgid(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        assert heard(process) == signal.SIGINT
        assert let_go(process) == 4


def test_the_supervisor_is_asked_to_end_when_the_subreaper_is_killed() -> None:
    with started(command(["env", "COMPUTE_NODE_INIT=1"], ECHO)) as process:
        (supervisor,) = psutil.Process(process.pid).children()
        process.kill()
        assert heard(process) == signal.SIGTERM
        let_go(process)
        wait_until(lambda: gone(supervisor), "the supervisor ended", WAIT_S)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# --- What a supervisor leaves ----------------------------------------------------------------------------

LEAVE = """
    import os, subprocess, sys
    script = sys.argv[2]
    for program in sys.argv[1].split():
        child = subprocess.Popen([program, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        child.stdout.readline()
    print("up", flush=True)
    os._exit(9)
"""


def programs(folder: Path, *names: str) -> str:
    """Programs of these names that do what `sh` does."""
    made = [folder / name for name in names]
    for program in made:
        program.write_bytes(Path("/bin/sh").resolve().read_bytes())
        program.chmod(0o755)
    return " ".join(map(str, made))


NOTED = 'trap "echo {0} >> $0.heard; exit" {0}; echo up; while :; do sleep 0.05; done'


@pytest.mark.parametrize(("name", "number"), [("postgres", "INT"), ("other", "TERM")])
def test_what_is_left_is_asked_to_end_in_the_way_that_it_knows(
    prefix: list[str], tmp_path: Path, name: str, number: str
) -> None:
    done = run(prefix, LEAVE, programs(tmp_path, name), NOTED.format(number))
    assert done.returncode == 9, done.stderr
    assert (tmp_path / f"{name}.heard").read_text() == f"{number}\n"
    assert f"{name} (" in done.stderr


DEAF = 'trap "" INT QUIT TERM; echo up; while :; do sleep 1 > /dev/null; done'


def with_ladder(patience_s: float, prefix: list[str], folder: Path) -> list[str]:
    """A supervisor that leaves a deaf Postgres; each rung may take so long."""
    other = f"init.LADDER = [(number, {patience_s}) for number, _ in init.LADDER]\ninit.enter()\n"
    supervisor = BEGIN.replace("init.enter()\n", other) + textwrap.dedent(LEAVE)
    return [*prefix, sys.executable, "-c", supervisor, programs(folder, "postgres"), DEAF]


def test_the_ladder_is_bounded() -> None:
    assert sum(patience_s for _, patience_s in init.LADDER) <= 8
    assert [number for number, _ in init.LADDER] == [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]


def test_what_does_not_listen_is_killed_in_bounded_time(prefix: list[str], tmp_path: Path) -> None:
    with started(with_ladder(0.3, prefix, tmp_path)) as process:
        assert process.wait(WAIT_S) == 9


def test_another_request_to_stop_skips_a_rung(tmp_path: Path) -> None:
    with started(with_ladder(1000.0, ["env", "COMPUTE_NODE_INIT=1"], tmp_path)) as process:
        assert process.stderr is not None
        for rung in ("SIGINT", "SIGQUIT", "SIGKILL"):
            assert f"sending {rung}\n" in process.stderr.readline()
            process.terminate()
        assert process.wait(WAIT_S) == 9

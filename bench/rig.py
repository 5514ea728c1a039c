"""What the measurements share: a folder and ports, a node as a process, a cluster made by hand, and the table."""

import contextlib
import http.client
import json
import os
import platform
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.postgres_process import readiness
from compute_node.actors.postgres_process.launcher import environment
from compute_node.actors.postgres_process.sources.initdb import LOCALE
from compute_node.cli import keys
from compute_node.postgres.accounts import resolve_account
from compute_node.postgres.binaries import discover

ROOT: Final = Path(__file__).resolve().parent.parent
ROUNDS: Final = int(os.environ.get("BENCH_ROUNDS", "7"))
COMPUTE_ID: Final = "bench"
USER: Final = "cloud_admin"
PATIENCE_S: Final = 600.0
NO_BYTECODE: Final = "PYTHONDONTWRITEBYTECODE"
"""Not for nodes: an installed package has its bytecode, and compiling takes longer than all else of a start."""
OK: Final = 200


class Row(msgspec.Struct, frozen=True):
    """One line of the table; `ratio` of medians, None where there is no other side."""

    what: str
    ours: str
    other: str
    ratio: float | None
    aim: str
    is_met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the line's texts."""
        met = "" if self.is_met is None else "yes" if self.is_met else "**no**"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return self.what, self.ours, self.other, ratio, self.aim, met


def table(rows: Iterable[Row]) -> str:
    """Write rows as Markdown."""
    head = ("measurement", "ours", "other side", "ratio", "aim", "met")
    lines = [head, ("---",) * len(head), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compared(what: str, ours: Sequence[float], other: Sequence[float], other_name: str, aim: float) -> Row:
    """Compare two series of seconds; at most `aim` is wanted."""
    ratio = statistics.median(ours) / statistics.median(other)
    return Row(what, shown(ours), f"{shown(other)}, {other_name}", ratio, f"≤ {aim:.2f}", ratio <= aim)


def shown(seconds: Sequence[float]) -> str:
    """Write a series of seconds: its median, least and most, in milliseconds."""
    ms = [value * 1000 for value in seconds]
    return f"{statistics.median(ms):.0f} ms ({min(ms):.0f}-{max(ms):.0f})"


def machine() -> str:
    """Describe where this runs."""
    binaries = discover()
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in facts if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} processors ({model or platform.machine()}), {memory:.0f} GiB of memory, "
        f"{platform.system()} {platform.release()}, {_file_system(tempfile.gettempdir())}, "
        f"Python {platform.python_version()}, PostgreSQL {binaries.version}; load average {load}"
    )


def _file_system(path: str) -> str:
    """Name the kind of file system that a path lies on."""
    best = ("", "?")
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, point, kind, *_ = line.split(" ")
        if Path(path).resolve().is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def progress(text: str) -> None:
    """Say on standard error what is being done."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def rounds(name: str, count: int, *sides: Callable[[], None]) -> None:
    """Let the sides take turns, each first as often as the others."""
    for number in range(count):
        progress(f"{name}: round {number + 1} of {count}")
        for position in range(len(sides)):
            sides[(number + position) % len(sides)]()


# --- Folders and ports -----------------------------------------------------------------------------------


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make a folder that Postgres's account can use; it is gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="compute-node-bench-"))
    account = resolve_account()
    if account is not None:
        os.chown(made, account.uid, account.gid)
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


# --- A node ----------------------------------------------------------------------------------------------


def spec(
    roles: Sequence[Mapping[str, str]] = (), databases: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """Return a spec, without settings of its own: those of Postgres hold."""
    cluster = {"roles": roles, "databases": databases, "settings": []}
    return {"format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": cluster}


def _listening(document: Mapping[str, Any], port: int, sockets: Path) -> dict[str, Any]:
    """Say in a spec where Postgres listens, which only the source `initdb` does by itself."""
    said = {"port": str(port), "listen_addresses": "localhost", "unix_socket_directories": str(sockets)}
    settings = [{"name": name, "value": value, "vartype": "string"} for name, value in said.items()]
    return {**document, "cluster": {**document["cluster"], "settings": settings}}


class Node:
    """A node as a process; `started_s` is when it was executed."""

    def __init__(self, where: Path, document: Mapping[str, Any] | None, *flags: str) -> None:
        self.pgdata = where / "pgdata"
        self.port, self._http_port, internal_port = free_port(), free_port(), free_port()
        key = where / "key.pem"
        config: dict[str, Any] = {"compute_ctl_config": {"jwks": keys.generate(key)}}
        if document is not None:
            elsewhere = "pageserver" in flags
            config["spec"] = _listening(document, self.port, where) if elsewhere else document
        (where / "config.json").write_text(json.dumps(config), encoding="utf-8")
        self._token = keys.make_token(key, compute_id=COMPUTE_ID, valid_s=3600)
        self._lines: list[tuple[float, str]] = []
        self._news = threading.Condition()
        command = [
            *(sys.executable, str(ROOT / "run.py"), "--source", "initdb", "-i", COMPUTE_ID),
            *("-D", str(self.pgdata), "-c", str(where / "config.json"), "-b", discover().postgres),
            *("-C", f"postgresql://{USER}@localhost:{self.port}/postgres"),
            *("--external-http-port", str(self._http_port), "--internal-http-port", str(internal_port)),
            *flags,
        ]
        installed = {name: value for name, value in os.environ.items() if name != NO_BYTECODE}
        self.started_s = time.perf_counter()
        self.process = subprocess.Popen(
            command, env=installed, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """What it has logged."""
        return "".join(line for _, line in self._lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._lines.append((time.perf_counter(), line))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def heard(self, text: str) -> float:
        """Wait for a line with this text; returns when it came."""

        def times() -> list[float]:
            return [at for at, line in self._lines if text in line]

        with self._news:
            there = self._news.wait_for(lambda: times() or not self._reader.is_alive(), PATIENCE_S)
        assert there, f"the node never said {text!r}:\n{self.log}"
        assert times(), f"the node ended without {text!r}:\n{self.log}"
        return times()[0]

    def call(self, method: str, path: str, body: object = None) -> tuple[float, Any]:
        """Make a request; returns how long the answer took and what it says."""
        data = None if body is None else json.dumps(body)
        headers = {"Authorization": f"Bearer {self._token}"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            answer = response.read()
            took = time.perf_counter() - began
        finally:
            connection.close()
        assert response.status == OK, (response.status, answer, self.log)
        return took, json.loads(answer)

    def configure(self, document: Mapping[str, Any]) -> float:
        """Have a spec applied; returns how long the answer took."""
        took, answer = self.call(
            "POST", "/configure", {"spec": document, "compute_ctl_config": {"jwks": {"keys": []}}}
        )
        assert answer["status"] == "running", answer
        return took

    def terminate(self) -> float:
        """Stop at once and in order; returns how long the answer took. The process has ended then, too."""
        took, _ = self.call("POST", "/terminate?mode=immediate")
        assert self.process.wait(PATIENCE_S) == 0, self.log
        self._reader.join()
        return took

    def drop(self) -> None:
        """End it, if it still runs, and its Postgres without a checkpoint."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                lines = (self.pgdata / "postmaster.pid").read_text(encoding="utf-8").split("\n")
                end_at_once(int(lines[0]))
            self.process.terminate()
            self.process.wait()
        self._reader.join()


def end_at_once(postmaster: int) -> None:
    """Have a postmaster shut down immediately, and wait for it; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(postmaster)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGQUIT)
            select.select([descriptor], [], [], PATIENCE_S)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def node(document: Mapping[str, Any] | None, *flags: str) -> Iterator[Node]:
    """Run a node meanwhile."""
    with folder() as where:
        made = Node(where, document, *flags)
        try:
            yield made
        finally:
            made.drop()


# --- A cluster by hand -----------------------------------------------------------------------------------


class ByHand:
    """A cluster as a person would make it: the programs, options, account and configuration of a node."""

    def __init__(self, where: Path, conf: str) -> None:
        self._binaries, self._account = discover(), resolve_account()
        self.where, self.pgdata, self.port = where, where / "pgdata", free_port()
        self._conf = conf
        self._environment = environment(os.environ)
        self._postgres: subprocess.Popen[bytes] | None = None

    def start(self, fetch: tuple[str, str] | None = None) -> float:
        """Run initdb, then Postgres until it is ready; returns how long that took.

        With `fetch`, a URL and a command, the cluster is a standby made of what comes from there.
        """
        began = time.perf_counter()
        if fetch is None:
            self._run(
                *("initdb", "-D", str(self.pgdata), "-A", "trust", "-U", USER),
                *("--encoding=UTF8", f"--locale={LOCALE}", "--no-instructions"),
            )
        else:
            self._fetch(*fetch)
        listening = f"port = {self.port}\nunix_socket_directories = '{self.where}'\n"
        (self.pgdata / "postgresql.conf").write_text(self._conf + listening, encoding="utf-8")
        self.launch()
        return time.perf_counter() - began

    def launch(self) -> None:
        """Start Postgres on what is there, and wait until it is ready."""
        with (self.where / "log").open("wb") as log:
            self._postgres = subprocess.Popen(
                [self._binaries.postgres, "-D", str(self.pgdata)],
                **self._how(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        nothing = Cancellation()
        pidfile = self.pgdata / "postmaster.pid"
        while self._postgres.poll() is None:
            with contextlib.suppress(OSError):
                if readiness.is_ready(pidfile.read_text(encoding="utf-8"), self._postgres.pid):
                    return
            nothing.wait(0.001)
        msg = (self.where / "log").read_text(encoding="utf-8")
        raise RuntimeError(msg)

    def _fetch(self, url: str, command: str) -> None:
        self._shell('mkdir -m 700 "$0" && psql -XAt -d "$1" -c "$2" | tar -xzf - -C "$0"', url, command)
        self._shell('touch "$0/standby.signal"')

    def _shell(self, script: str, *arguments: str) -> None:
        command = ["/bin/sh", "-c", script, str(self.pgdata), *arguments]
        subprocess.run(command, **self._how(), check=True)

    def stop(self) -> float:
        """Have pg_ctl stop it; returns how long that took."""
        began = time.perf_counter()
        self._run("pg_ctl", "stop", "-m", "fast", "-t", f"{PATIENCE_S:.0f}", "-D", str(self.pgdata))
        took = time.perf_counter() - began
        assert self._postgres is not None
        self._postgres.wait(PATIENCE_S)
        return took

    def psql(self, script: Path) -> float:
        """Run a script in one session; returns how long that took."""
        began = time.perf_counter()
        self._run(
            *(
                "psql",
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-p",
                str(self.port),
                "-U",
                USER,
            ),
            *("-d", "postgres", "-f", str(script)),
        )
        return time.perf_counter() - began

    def drop(self) -> None:
        """End it, if it still runs, without a checkpoint."""
        if self._postgres is not None:
            end_at_once(self._postgres.pid)
            self._postgres.wait()

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._binaries.sibling(program), *arguments]
        ended = subprocess.run(command, **self._how(), capture_output=True, check=False)
        assert ended.returncode == 0, ended

    def _how(self) -> dict[str, Any]:
        how: dict[str, Any] = {"cwd": self.where, "env": self._environment, "stdin": subprocess.DEVNULL}
        if (account := self._account) is not None:
            how |= {"user": account.uid, "group": account.gid, "extra_groups": account.groups}
        return how


@contextlib.contextmanager
def by_hand(conf: str) -> Iterator[ByHand]:
    """Give the means to make a cluster; it is gone afterwards."""
    with folder() as where:
        made = ByHand(where, conf)
        try:
            yield made
        finally:
            made.drop()


def conf_of_a_node() -> str:
    """Return the configuration that a node writes for an empty spec, without where it listens."""
    with node(spec()) as made:
        made.heard("to running")
        text = (made.pgdata / "postgresql.conf").read_text(encoding="utf-8")
        made.terminate()
    listening = ("port", "unix_socket_directories", "include")
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(listening))

"""A real node under random operations and faults, with bounds on what it may take: `make soak`."""

import contextlib
import os
import random
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import psutil
import psycopg
from compute_node.postgres.binaries import Binaries

from fix_node import Answer, MakeNode, Node, setting, spec
from fix_postgres import wait_until
from fix_soak import MAX_MORE_MEMORY, MINUTES, drawn_seed, soak_marks

MAX_MORE_THREADS: Final = 6
MAX_MORE_DESCRIPTORS: Final = 20
WARM_UP: Final = 20
"""Operations after which growth is judged."""
READY_S: Final = 90.0
GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /status HTTP/9.9\r\n\r\n",
    b"POST /configure HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST /configure HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"\x00" * 4096,
    b"GET " + b"/a" * 8000 + b" HTTP/1.1\r\n\r\n",
)

pytestmark = soak_marks


@dataclass
class Size:
    """What a process takes."""

    threads: int
    descriptors: int
    memory: int

    @staticmethod
    def of(process: psutil.Process) -> "Size":
        with process.oneshot():
            return Size(process.num_threads(), process.num_fds(), process.memory_info().rss)


class Soak:
    """One node, and what is done to it."""

    def __init__(self, node: Node, chance: random.Random) -> None:
        self.node = node
        self.chance = chance
        self.done: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()
        self.lives = 0
        self.since_start = 0
        self.usual: Size | None = None
        self.largest = Size(0, 0, 0)

    # --- What is done

    def begin(self) -> None:
        """Begin a life, and see it run."""
        self.lives += 1
        self.since_start, self.usual = 0, None
        self.node.start("--dev")
        self.node.await_status("running")

    def step(self) -> None:
        """Do one thing, see the node come right, and look at what it takes."""
        table: list[tuple[int, Callable[[], None]]] = [
            (20, self.configure),
            (6, self.configure_at_once),
            (6, self.configure_badly),
            (8, self.hang_up),
            (12, self.talk_garbage),
            (8, self.ask_much),
            (6, self.kill_a_backend),
            (4, self.freeze_postgres),
            (2, self.freeze_the_node),
            (2, self.terminate),
            (1, self.stop_by_signal),
            (1, self.kill_the_node),
            (1, self.kill_postgres),
        ]
        _, action = self.chance.choices(table, [weight for weight, _ in table])[0]
        self.done[action.__name__] += 1
        action()
        self.await_ready()
        self.since_start += 1
        self.measure()

    def document(self) -> dict[str, Any]:
        names = self.chance.sample("abcdef", self.chance.randrange(4))
        roles = [{"name": name} for name in names]
        databases = [{"name": f"db_{name}", "owner": name} for name in names]
        memory = setting("work_mem", f"{self.chance.randrange(1, 9)}MB")
        settings = [*spec()["cluster"]["settings"], memory]
        return spec(cluster={"roles": roles, "databases": databases, "settings": settings})

    def told(self, answer: Answer, *allowed: int) -> None:
        self.answers[answer.status] += 1
        assert answer.status in allowed, (answer.status, answer.body)

    def configure(self) -> None:
        self.told(self.node.configure(self.document()), 200, 412)

    def configure_at_once(self) -> None:
        callers = [
            threading.Thread(target=lambda: self.told(self.node.configure(self.document()), 200, 412, 503))
            for _ in range(8)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    def configure_badly(self) -> None:
        wrong = setting("no_such_setting", "on")
        settings = [*spec()["cluster"]["settings"], wrong]
        self.told(self.node.configure(spec(cluster={"settings": settings})), 400, 412)

    def hang_up(self) -> None:
        self.node.write_config(self.document())
        self.node.send_signal(signal.SIGHUP)

    def talk_garbage(self) -> None:
        for _ in range(5):
            port = self.chance.choice([self.node.external_port, self.node.internal_port])
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(self.chance.choice(GARBAGE))
                if self.chance.random() < 0.5:
                    connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.2)
                try:
                    connection.recv(4096)
                except OSError:
                    continue

    def ask_much(self) -> None:
        for path in ("/status", "/ready", "/metrics", "/debug/journal", "/openapi.json") * 5:
            self.told(self.node.call("GET", path), 200, 503)

    def kill_a_backend(self) -> None:
        with contextlib.suppress(psycopg.OperationalError), self.connect() as connection:
            (pid,) = connection.execute("select pg_backend_pid()").fetchone() or (0,)
            os.kill(pid, signal.SIGKILL)

    def freeze_postgres(self) -> None:
        postmaster = self.node.postmaster()
        os.kill(postmaster, signal.SIGSTOP)
        try:
            wait_until(lambda: self.node.call("GET", "/ready", token=None).status == 503, "not ready", 30)
        finally:
            os.kill(postmaster, signal.SIGCONT)

    def freeze_the_node(self) -> None:
        self.node.send_signal(signal.SIGSTOP)
        threading.Event().wait(self.chance.choice([0.5, 3.0]))
        self.node.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        mode = self.chance.choice(["fast", "immediate"])
        self.told(self.node.call("POST", f"/terminate?mode={mode}"), 200)
        assert self.node.wait() == 0
        self.begin()

    def stop_by_signal(self) -> None:
        assert self.node.stop() == 0
        self.begin()

    def kill_the_node(self) -> None:
        self.node.send_signal(signal.SIGKILL)
        self.node.wait()
        self.begin()

    def kill_postgres(self) -> None:
        os.kill(self.node.postmaster(), signal.SIGKILL)
        assert self.node.wait() == 1
        self.begin()

    def connect(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(
            host="127.0.0.1", port=self.node.postgres_port, user="cloud_admin", dbname="postgres"
        )

    # --- What must hold

    def await_ready(self) -> None:
        def ready() -> bool:
            assert not self.node.ended(), self.node.log[-4000:]
            try:
                serves = self.node.query("select 1") == [(1,)]
            except psycopg.Error:
                return False
            return serves and self.node.call("GET", "/ready", token=None).status == 200

        wait_until(ready, "ready again", READY_S)

    def measure(self) -> None:
        """Look at what the node takes; it may grow at first, and then only so much."""
        assert self.node.process is not None
        process = psutil.Process(self.node.process.pid)
        wait_until(lambda: not zombies(process), f"no zombies: {zombies(process)}", 10)
        size = Size.of(process)
        self.largest = Size(
            max(size.threads, self.largest.threads),
            max(size.descriptors, self.largest.descriptors),
            max(size.memory, self.largest.memory),
        )
        if self.since_start < WARM_UP:
            return
        usual = self.usual = self.usual or size
        assert size.threads <= usual.threads + MAX_MORE_THREADS, (size, usual)
        assert size.descriptors <= usual.descriptors + MAX_MORE_DESCRIPTORS, (size, usual)
        assert size.memory <= usual.memory + MAX_MORE_MEMORY, (size, usual)


def zombies(process: psutil.Process) -> list[int]:
    found = []
    for child in process.children(recursive=True):
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_node_stays_small_and_well(make_node: MakeNode, binaries15: Binaries) -> None:
    soak = Soak(make_node(binaries15), random.Random(drawn_seed()))  # noqa: S311 - a run that can be told again
    soak.node.write_config(soak.document())
    soak.begin()
    end = monotonic() + MINUTES * 60
    while monotonic() < end:
        soak.step()
    assert soak.node.stop() == 0
    print(f"\n{sum(soak.done.values())} operations in {soak.lives} lives: {dict(soak.done)}")  # noqa: T201
    print(f"answers: {dict(soak.answers)}; largest: {soak.largest}")  # noqa: T201

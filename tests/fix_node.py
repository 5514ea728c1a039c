"""A whole node as a process: `run.py` with real Postgres, spoken to over HTTP and signals."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from compute_node.actors.configurator.migrations import MIGRATIONS
from compute_node.cli import keys
from compute_node.messages.failpoints import Failpoint
from compute_node.postgres.accounts import Account
from compute_node.postgres.binaries import Binaries

from doubles import canaries
from fix_postgres import Ports, as_account, owned_folder, wait_until
from fix_secrets import Secrecy

ROOT = Path(__file__).resolve().parent.parent
STRICT_IMPORTS = ROOT / "tests/doubles/strict_imports"
COMPUTE_ID = "compute-test"
START_S = 60.0
STOP_S = 40.0
LOOK_S = 5.0
MIGRATED = f"migrations: {len(MIGRATIONS)} are done"
LOG_FAULTS = (
    r"Traceback",
    r"died of an exception",
    r"Task exception was never retrieved",
    r"slow handler: \w+ took ([3-9]\d\d|\d{4,}) ms",  # below that it may be the machine; see tests/conftest.py
)
"""What no log of a healthy node ever says."""


def spec(**changes: Any) -> dict[str, Any]:
    """A small spec, as JSON; the keywords replace its fields, `cluster` is merged. Full of canary secrets."""
    cluster = {"roles": [], "databases": [], "settings": list(SMALL)} | changes.pop("cluster", {})
    cluster["roles"] = [*cluster["roles"], *canaries.roles()]
    document = {"format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": cluster}
    return document | canaries.fields() | changes


def setting(name: str, value: str, vartype: str = "string") -> dict[str, str]:
    return {"name": name, "value": value, "vartype": vartype}


SMALL = [
    setting("shared_buffers", "16MB"),
    setting("max_connections", "40", "integer"),
    setting("fsync", "off", "bool"),
    *canaries.settings(),
]


@dataclass
class Answer:
    """What the node said to one request."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass
class Node:
    """One node, not yet started; `start` it, as often as wanted."""

    binaries: Binaries
    account: Account | None
    folder: Path
    postgres_port: int
    external_port: int
    internal_port: int
    key: Path
    flags: list[str] = field(default_factory=list)
    runs_as: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=lambda: [sys.executable, str(ROOT / "run.py")])
    process: "subprocess.Popen[bytes] | None" = None
    control_plane: str | None = None
    """Who is asked for the config in place of the file."""
    log_begins_at: int = 0
    warms_memory: bool = False
    """It takes time, which few tests are about."""
    panics: bool = False
    """On purpose: then its log may say what no log should."""
    secrecy: Secrecy = field(default_factory=Secrecy)

    @property
    def pgdata(self) -> Path:
        return self.folder / "pgdata"

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def log_path(self) -> Path:
        return self.folder / "stderr"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def heard(self, text: str) -> None:
        """Wait until the log, which a thread of its own writes, has this text."""
        wait_until(lambda: text in self.log, f"the log says {text!r}", 30.0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.external_port}"

    # --- The process

    def arguments(self) -> list[str]:
        return [
            *("--source", "initdb", "-D", str(self.pgdata), "-i", COMPUTE_ID),
            *(("-c", str(self.config)) if self.control_plane is None else ("-p", self.control_plane)),
            *(
                "-C",
                f"postgresql://cloud_admin:{canaries.canary('connstr')}@localhost:{self.postgres_port}/postgres",
                "-b",
                self.binaries.postgres,
            ),
            *(
                "--external-http-port",
                str(self.external_port),
                "--internal-http-port",
                str(self.internal_port),
            ),
            *(() if self.warms_memory else ("--no-memory-prewarm",)),
            *self.flags,
        ]

    def write_config(self, document: dict[str, Any] | None) -> None:
        """Write a config with this spec, or without one."""
        config: dict[str, Any] = {"compute_ctl_config": self.own_config()}
        if document is not None:
            config["spec"] = document
        self.config.write_text(json.dumps(config))

    def own_config(self) -> dict[str, Any]:
        """Make what the node itself is configured with: its keys, beside some that it should not have."""
        key_set = keys.key_set(self.key)
        key_set["keys"] += canaries.keys()
        return {"jwks": key_set}

    def start(self, *flags: str, failpoints: Mapping[Failpoint, str] | None = None) -> "Node":
        """Start the process and return at once; with actions by failpoint, which count only with --dev."""
        armed = ";".join(f"{failpoint.value}={actions}" for failpoint, actions in (failpoints or {}).items())
        self.log_begins_at = len(self.log)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *self.arguments(), *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ
                | {"PYTHONPATH": str(STRICT_IMPORTS)}
                | canaries.environment()
                | ({"FAILPOINTS": armed} if armed else {}),
                **self.runs_as,
            )
        return self

    def run(self, document: dict[str, Any] | None = None, *flags: str) -> "Node":
        """Start with this spec and return when the node is running."""
        self.write_config(document if document is not None else spec())
        self.start(*flags).await_status("running")
        return self

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Wait for the process to end and return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def send_signal(self, sign: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(sign)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Ask for an orderly stop and return the exit code."""
        self.look_for_secrets()
        self.send_signal(sign)
        return self.wait()

    def ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    # --- The API

    def token(self, **claims: Any) -> str:
        token = keys.make_token(self.key, compute_id=COMPUTE_ID, valid_s=600)
        self.secrecy.also(token.rpartition(".")[2])
        return token

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = "",
        timeout_s: float = 60.0,
        internal: bool = False,
    ) -> Answer:
        """Make one request; without `token` a good one goes along, with None none."""
        base = f"http://127.0.0.1:{self.internal_port}" if internal else self.url
        data = None if body is None else json.dumps(body).encode()
        if method == "POST" and data is None:
            data = b""
        request = urllib.request.Request(base + path, data=data, method=method)
        if body is not None:
            request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token or self.token()}")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return self._answer(request, response)
        except urllib.error.HTTPError as error:
            with error:
                return self._answer(request, error)

    def _answer(self, request: urllib.request.Request, response: Any) -> Answer:
        data = response.read()
        self.secrecy.look(f"the answer to {request.get_method()} {request.selector}", data)
        self.secrecy.look(f"the headers of {request.get_method()} {request.selector}", str(response.headers))
        try:
            body = json.loads(data) if data else None
        except ValueError:
            body = data.decode()
        return Answer(response.status, body, response.headers)

    def status(self) -> dict[str, Any]:
        answer = self.call("GET", "/status")
        assert answer.status == 200
        body: dict[str, Any] = answer.body
        return body

    def configure(self, document: dict[str, Any]) -> Answer:
        return self.call(
            "POST", "/configure", {"spec": document, "compute_ctl_config": {"jwks": {"keys": []}}}
        )

    def metric(self, name: str) -> float:
        """Return a sample without labels from `/metrics`."""
        lines = self.call("GET", "/metrics", token=None).body.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def await_status(self, wanted: str) -> None:
        """Wait until the node shows this status; fails when it ends, or shows failed instead."""
        seen = {"status": "nothing yet"}

        def reached() -> bool:
            assert not self.ended(), (
                f"the node ended with {self.wait()} while waiting for {wanted}:\n{self.log}"
            )
            with contextlib.suppress(OSError):
                seen.update(self.status())
            assert seen["status"] != "failed" or wanted == "failed", seen
            return seen["status"] == wanted

        wait_until(reached, f"status {wanted}", START_S)

    def await_migrations(self) -> None:
        """Wait until the background has done the migrations of this start."""
        wait_until(lambda: MIGRATED in self.log[self.log_begins_at :], "the migrations are done", START_S)

    # --- Failpoints

    def set_failpoint(self, failpoint: Failpoint, actions: str) -> None:
        """Give a failpoint other actions; whoever pauses there goes on."""
        body = [{"name": failpoint.value, "actions": actions}]
        assert self.call("POST", "/failpoints", body, token=None, internal=True).status == 200

    def await_failpoint(self, failpoint: Failpoint) -> None:
        """Wait until the process that was started last has reached a failpoint."""

        def reached() -> bool:
            assert not self.ended(), f"the node ended before {failpoint.value}:\n{self.log}"
            return f"failpoint {failpoint.value} reached" in self.log[self.log_begins_at :]

        wait_until(reached, f"failpoint {failpoint.value}", START_S)

    # --- Postgres

    def query(
        self, sql: str, *, user: str = "cloud_admin", dbname: str = "postgres", **keywords: Any
    ) -> list[Any]:
        """Run one statement and return its rows."""
        with psycopg.connect(
            host="127.0.0.1", port=self.postgres_port, user=user, dbname=dbname, autocommit=True, **keywords
        ) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def postmaster(self) -> int:
        return int((self.pgdata / "postmaster.pid").read_text().split("\n", 1)[0])

    # --- Secrets

    def look_for_secrets(self) -> None:
        """Search whatever the living node shows; `call` searches each answer, `judge` what stays behind."""
        if self.process is None or self.ended():
            return
        with contextlib.suppress(OSError, http.client.HTTPException):
            for path in ("/metrics", "/metrics.json", "/ready", "/debug/journal"):
                self.call("GET", path, timeout_s=LOOK_S)
            for token in canaries.forged_tokens():
                self.call("GET", "/status", token=token, timeout_s=LOOK_S)
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self.process.pid)
            self.secrecy.look_at_processes(
                child for child in own.children(recursive=True) if not self._is_ours(child)
            )
        with contextlib.suppress(OSError, psycopg.Error), self._session() as session:
            self.secrecy.look_at_views(session)
        self.secrecy.look_at_pgdata(self.pgdata)

    def _is_ours(self, process: psutil.Process) -> bool:
        """Tell a process that runs our program: what it was given is in its arguments and its environment."""
        with contextlib.suppress(psutil.Error):
            return (self.control_plane or str(self.config)) in process.cmdline()
        return True

    def _session(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(
            host="127.0.0.1",
            port=self.postgres_port,
            user="cloud_admin",
            dbname="postgres",
            autocommit=True,
            connect_timeout=2,
            application_name="secrets",
        )


class MakeNode:
    """Makes nodes; after the test they are stopped, their logs judged, their folders removed."""

    def __init__(self, scratch: Path, account: Account | None, ports: Ports) -> None:
        self._scratch = scratch
        self._account = account
        self._ports = ports
        self.nodes: list[Node] = []

    def __call__(self, binaries: Binaries, *flags: str) -> Node:
        folder = owned_folder(self._scratch, self._account, "node-")
        folder.chmod(0o755)
        key = folder / "key.pem"
        keys.generate(key)
        node = Node(
            binaries,
            self._account,
            folder,
            self._ports(),
            self._ports(),
            self._ports(),
            key,
            flags=list(flags),
        )
        self.nodes.append(node)
        return node

    def judge(self) -> None:
        """Stop what still runs; then look for what no log should say."""
        for node in self.nodes:
            if node.process is not None and not node.ended():
                node.send_signal(signal.SIGCONT)
                node.look_for_secrets()
                node.send_signal(signal.SIGTERM)
                try:
                    node.wait()
                except subprocess.TimeoutExpired:
                    node.process.kill()
                    node.wait()
                    pytest.fail(f"the node did not stop:\n{node.log}")
        faults = [
            f"{fault!r} in the log:\n{node.log}"
            for node in self.nodes
            for fault in (() if node.panics else LOG_FAULTS)
            if re.search(fault, node.log)
        ]
        for node in self.nodes:
            node.secrecy.look_at_file(node.log_path)
            node.secrecy.look_at_pgdata(node.pgdata)
            shutil.rmtree(node.folder, ignore_errors=True)
        assert not faults, faults[0]
        for node in self.nodes:
            node.secrecy.judge()


@pytest.fixture
def make_node(scratch: Path, account: Account | None, free_port: Ports) -> Iterator[MakeNode]:
    """Call it with the programs of a Postgres for a node in a folder and on ports of its own."""
    made = MakeNode(scratch, account, free_port)
    yield made
    made.judge()


def system_python() -> str | None:
    """Return a Python of this version that every user can run; None where there is none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (os.path.realpath(sys.executable), f"/usr/bin/python{version}"):
        if Path(candidate).exists() and not candidate.startswith(str(Path("~root").expanduser())):
            return candidate
    return None


__all__ = ["COMPUTE_ID", "MakeNode", "Node", "as_account", "make_node", "setting", "spec", "system_python"]

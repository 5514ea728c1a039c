"""Measures `/status`: requests per second beside a constant Falcon app, and latency beside 64 waiting callers.

`python bench/status.py` starts a node with a Postgres of its own and prints a table, medians of rounds that
take turns. The load comes from processes of its own with bare sockets; everything stays on loopback.
"""

import contextlib
import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
from compute_node.bench import rig
from compute_node.bench.rig import ROUNDS, Row, table
from compute_node.cli import keys
from psycopg import sql

ROOT: Final = Path(__file__).resolve().parent.parent
ROUND_S: Final = 2.0
CONNECTIONS: Final = 8
"""Of the load that counts requests; the latencies are taken on one."""
CALLERS: Final = 64
PLACES: Final = 16
RATE_AIM: Final = 0.7
LATENCY_AIM: Final = 2.0
START_S: Final = 60.0
COMPUTE_ID: Final = "bench"
CONSTANT: Final = (
    b'{"start_time":"2026-11-22T10:00:00.123456Z","tenant":null,"timeline":null,'
    b'"status":"running","last_active":null,"error":null}'
)


# --- The other side: a constant app behind the same token, served with the same settings ---------------------


def constant(config: str, *, remember: bool) -> None:
    """Serve a constant with Falcon and waitress; the port is printed. `remember`: verified tokens are kept."""
    import falcon
    import jwt
    from compute_node.actors.http_facade.servers import EXTERNAL_CONNECTIONS, EXTERNAL_THREADS
    from compute_node.http.auth import Authenticator
    from compute_node.http.port import AuthSettings
    from waitress.server import create_server

    (jwk,) = json.loads(Path(config).read_text(encoding="utf-8"))["compute_ctl_config"]["jwks"]["keys"]
    key = jwt.PyJWK(jwk)
    authenticator = Authenticator(AuthSettings(COMPUTE_ID, (jwk,)), time.time)

    class Verified:
        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            token = request.get_header("Authorization", required=True).removeprefix("Bearer ")
            if jwt.decode(token, key, algorithms=["EdDSA"])["compute_id"] != COMPUTE_ID:
                raise falcon.HTTPForbidden
            response.data, response.content_type = CONSTANT, "application/json"

    class Remembered:
        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            authenticator.check(request.get_header("Authorization"))
            response.data, response.content_type = CONSTANT, "application/json"

    app: Any = falcon.App()
    app.add_route("/status", Remembered() if remember else Verified())
    listening = socket.create_server(("127.0.0.1", 0))
    server = create_server(
        app,
        sockets=[listening],
        threads=EXTERNAL_THREADS,
        connection_limit=EXTERNAL_CONNECTIONS,
        channel_request_lookahead=1,
        asyncore_use_poll=True,
        ident=None,
    )
    print(listening.getsockname()[1], flush=True)
    server.run()


# --- The load ------------------------------------------------------------------------------------------------


def get(token: str) -> bytes:
    """Return a request for the status."""
    return f"GET /status HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def post(token: str, document: object) -> bytes:
    """Return a request to configure."""
    body = json.dumps(document).encode()
    head = (
        f"POST /configure HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Caller:
    """One keep-alive connection that asks the same thing again and again."""

    def __init__(self, port: int, request: bytes) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._buffer = b""
        self.sent_at = 0.0

    def ask(self) -> None:
        """Send the request."""
        self.sent_at = time.perf_counter()
        self.sock.sendall(self._request)

    def read(self) -> bytes | None:
        """Read what there is; returns the head of the response once it is complete."""
        data = self.sock.recv(65536)
        if not data:
            sys.exit("the server closed the connection")
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return None
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return None
        self._buffer = body[length:]
        return head


def load(port: int, token: str, connections: int, seconds: float) -> None:
    """Ask on so many connections at once; prints requests per second and latencies (µs) as JSON."""
    selector = selectors.EpollSelector()
    for _ in range(connections):
        caller = Caller(port, get(token))
        selector.register(caller.sock, selectors.EVENT_READ, caller)
        caller.ask()
    latencies: list[float] = []
    began = now = time.perf_counter()
    while now - began < seconds:
        for key, _ in selector.select():
            caller = key.data
            head = caller.read()
            if head is None:
                continue
            now = time.perf_counter()
            if not head.startswith(b"HTTP/1.1 200 "):
                sys.exit(f"unexpected: {head.decode()}")
            latencies.append(now - caller.sent_at)
            caller.ask()
    latencies.sort()
    result = {"rps": len(latencies) / (now - began)}
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        result[name] = latencies[min(len(latencies) - 1, int(len(latencies) * share))] * 1e6
    print(json.dumps(result))


def wait(port: int, token: str, document: str) -> None:
    """Let 64 callers configure until standard input ends; each comes again when it was told to."""
    selector = selectors.EpollSelector()
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    request = post(token, json.loads(document))
    callers = [Caller(port, request) for _ in range(CALLERS)]
    due: list[tuple[float, Caller]] = []
    for caller in callers:
        selector.register(caller.sock, selectors.EVENT_READ, caller)
        caller.ask()
    refused = 0
    while True:
        for key, _ in selector.select(0.1 if due else None):
            if key.data is None:
                return
            head = key.data.read()
            if head is not None:
                after = float(head.partition(b"Retry-After: ")[2].partition(b"\r\n")[0] or 0)
                due.append((time.perf_counter() + after, key.data))
                refused += 1
                if refused == CALLERS - PLACES:
                    print("ready", flush=True)
        now = time.perf_counter()
        for at, caller in due:
            if at <= now:
                caller.ask()
        due = [(at, caller) for at, caller in due if at > now]


# --- The node ------------------------------------------------------------------------------------------------


def spec(*roles: str) -> dict[str, Any]:
    """Return a spec with these roles."""
    settings = [
        {"name": "shared_buffers", "value": "16MB", "vartype": "string"},
        {"name": "fsync", "value": "off", "vartype": "bool"},
    ]
    cluster = {"roles": [{"name": role} for role in roles], "databases": [], "settings": settings}
    return {"format_version": 1.0, "suspend_timeout_seconds": -1, "cluster": cluster}


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def node(folder: Path, config: Path) -> Iterator[tuple[int, int, int]]:
    """Run a node meanwhile; gives its HTTP port, Postgres's port, and its process id."""
    port, internal, postgres = free_port(), free_port(), free_port()
    arguments = {
        "--source": "initdb",
        "-D": str(folder / "pgdata"),
        "-i": COMPUTE_ID,
        "-c": str(config),
        "-C": f"postgresql://cloud_admin@localhost:{postgres}/postgres",
        "--external-http-port": str(port),
        "--internal-http-port": str(internal),
    }
    flat = [part for pair in arguments.items() for part in pair]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *flat], stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        deadline = time.monotonic() + START_S
        while not ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit((folder / "log").read_text(encoding="utf-8"))
            time.sleep(0.05)
        yield port, postgres, process.pid
    finally:
        process.terminate()
        process.wait()


def ready(port: int) -> bool:
    """Whether the node is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return bool(answer.status == 200)  # noqa: PLR2004 - the statuses of HTTP are what they are
    except OSError:
        return False


@contextlib.contextmanager
def myself(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run this script in another role meanwhile; its first line of output is awaited by the caller."""
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    """Read one line that the other role prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def measured(port: int, token: str, connections: int) -> dict[str, float]:
    """Load a server for one round."""
    with myself("load", str(port), token, str(connections), str(ROUND_S)) as process:
        found: dict[str, float] = json.loads(line(process))
        return found


@contextlib.contextmanager
def held(postgres: int, role: str) -> Iterator[None]:
    """Keep everybody else who would create this role waiting."""
    connstr = f"postgresql://cloud_admin@127.0.0.1:{postgres}/postgres"
    with psycopg.connect(connstr) as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        try:
            yield
        finally:
            connection.rollback()


@contextlib.contextmanager
def waiting(port: int, postgres: int, token: str, number: int) -> Iterator[None]:
    """Have 64 callers of `/configure` meanwhile, of whom 16 wait and the others come again."""
    role = f"waited_for_{number}"
    document = json.dumps({"spec": spec(role), "compute_ctl_config": {"jwks": {"keys": []}}})
    with held(postgres, role), myself("wait", str(port), token, document) as process:
        if line(process) != "ready":
            sys.exit("the callers did not come to wait")
        yield


# --- The tables ----------------------------------------------------------------------------------------------


def measure(count: int = ROUNDS) -> list[Row]:
    """Start both sides and let them take turns."""
    with rig.folder() as folder:
        key, config = folder / "key.pem", folder / "config.json"
        jwks = keys.generate(key)
        token = keys.make_token(key, compute_id=COMPUTE_ID, valid_s=3600)
        config.write_text(json.dumps({"spec": spec(), "compute_ctl_config": {"jwks": jwks}}))
        return rows(folder, config, token, count)


def rows(folder: Path, config: Path, token: str, count: int) -> list[Row]:
    """Load the servers by turns, then compare."""
    sides: dict[str, list[float]] = {"node": [], "constant": [], "constant, token remembered": []}
    quiet: list[float] = []
    crowded: list[float] = []
    with (
        node(folder, config) as (port, postgres, _),
        myself("constant", str(config)) as verified,
        myself("remembered", str(config)) as remembered,
    ):
        ports = dict(zip(sides, (port, int(line(verified)), int(line(remembered))), strict=True))
        for number in range(count):
            rig.progress(f"/status: round {number + 1} of {count}")
            for side, own in ports.items():
                sides[side].append(measured(own, token, CONNECTIONS)["rps"])
            quiet.append(measured(port, token, 1)["p99"])
            with waiting(port, postgres, token, number):
                crowded.append(measured(port, token, 1)["p99"])
    ours, plain, knowing = (statistics.median(rates) for rates in sides.values())
    slow, quick = statistics.median(crowded), statistics.median(quiet)
    what = f"`/status`: requests per second, {CONNECTIONS} connections"
    return [
        Row(
            what,
            f"{ours:.0f}",
            f"{plain:.0f}, constant app",
            ours / plain,
            f"≥ {RATE_AIM:.2f}",
            ours / plain >= RATE_AIM,
        ),
        Row(
            what,
            f"{ours:.0f}",
            f"{knowing:.0f}, constant app that remembers tokens",
            ours / knowing,
            "",
        ),
        Row(
            f"`/status`: latency p99 beside {CALLERS} callers of `/configure`",
            f"{slow:.0f} µs",
            f"{quick:.0f} µs, without them",
            slow / quick,
            f"≤ {LATENCY_AIM:.2f}",
            slow / quick <= LATENCY_AIM,
        ),
    ]


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            print(table(measure()))
        case ["constant", config]:
            constant(config, remember=False)
        case ["remembered", config]:
            constant(config, remember=True)
        case ["load", port, token, connections, seconds]:
            load(int(port), token, int(connections), float(seconds))
        case ["wait", port, token, document]:
            wait(int(port), token, document)
        case _:
            sys.exit(__doc__)

"""`compute-node demo`: a node from a sample spec, with keys and a token of its own."""

import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from ..messages.lifecycle import EXIT_OK, Status, StatusChanged
from ..messages.secret import Secret
from ..messages.settings import SourceName
from ..process.configuration import ConfigurationError, read_config
from . import keys
from .options import Options
from .terminal import own_foreground

COMPUTE_ID: Final = "demo"
MARK: Final = ".compute-node-demo"
"""Says that a folder is a demo's: no other folder with something in it is ever written to."""
DEFAULT_PORT: Final = 55432
"""Not 5432: an installed Postgres may be there."""
DEFAULT_HTTP_PORT: Final = 3080
TOKEN_VALID_S: Final = 30 * 86_400.0
ROLE: Final = "app"
DATABASE: Final = "app"

SAMPLE_SPEC: Final[dict[str, Any]] = {
    "format_version": 1.0,
    "operation_uuid": "demo",
    "suspend_timeout_seconds": -1,
    "autoprewarm": True,
    "offload_lfc_interval_seconds": 300,
    "cluster": {
        "cluster_id": "demo",
        "name": "demo",
        "roles": [{"name": ROLE}],
        "databases": [{"name": DATABASE, "owner": ROLE}],
        "settings": [
            {"name": "max_connections", "value": "50", "vartype": "integer"},
            {"name": "log_line_prefix", "value": "%m [%p] ", "vartype": "string"},
        ],
    },
}


class DemoError(Exception):
    """The demo cannot run here; the message says why and what to do."""


class Demo:
    """One run of the demo in `directory` (None: a folder of this user's)."""

    def __init__(
        self,
        directory: Path | None,
        *,
        port: int | None,
        http_port: int | None,
        pgbin: str | None,
        fresh: bool,
    ) -> None:
        self._directory = (directory or _default_directory()).absolute()
        self._port = port or _free_port(DEFAULT_PORT, "--port")
        self._http_port = http_port or _free_port(DEFAULT_HTTP_PORT, "--http-port")
        self._pgbin = pgbin
        self._fresh = fresh
        self._began_s = time.monotonic()
        self._stopping_s: float | None = None
        self._log = self._directory / "compute-node.log"
        self._config = self._directory / "config.json"

    def run(self) -> int:
        """Run until Ctrl-C or the end of the node; returns the exit code. Raises DemoError."""
        from ..actors.kit.turn import Moment
        from ..process import logs, node
        from ..process.signals import SignalPipe
        from .launching import StartError, prepare

        self._make_files()
        with own_foreground(), self._log.open("ab", buffering=0) as log_file:
            signals = SignalPipe()
            signals.install()
            writer = logs.configure("human", stream=log_file)
            try:
                launch = prepare(self._options(), Moment(self._began_s, time.time()), signals)
                self._binaries = launch.binaries
                say(f"compute-node demo: PostgreSQL {launch.binaries.version} in {self._directory}")
                report = node.run(launch, signals, on_status=self._narrate)
            except StartError as error:
                raise DemoError(str(error)) from None
            finally:
                writer.close()
        if report.code == EXIT_OK:
            took = time.monotonic() - (self._stopping_s or time.monotonic())
            say(f"stopped cleanly in {took:.1f} s; the data is kept in {self._directory}")
        else:
            say(
                f"the node failed: {report.reason}\nits spec: {self._config}\nits log: {self._log}",
                error=True,
            )
        return report.code

    def _narrate(self, change: StatusChanged) -> None:
        if change.new is Status.EMPTY:
            return
        elapsed = time.monotonic() - self._began_s
        started = change.new is Status.RUNNING and change.old is Status.INIT
        say(f"state: {change.new.text}" + (f" ({elapsed:.1f} s)" if started else ""))
        if started:
            self._explain()
        elif change.new in {Status.TERMINATION_PENDING_FAST, Status.TERMINATION_PENDING_IMMEDIATE}:
            self._stopping_s = time.monotonic()

    def _explain(self) -> None:
        url = f"http://127.0.0.1:{self._http_port}"
        psql = "psql" if shutil.which("psql") else self._binaries.sibling("psql")
        command = "compute-node" if shutil.which("compute-node") else str(Path(sys.argv[0]))
        node = f"--url {url} --token-file {self._directory / 'token'}"
        say(
            f"\nconnect:  {psql} 'postgresql://{ROLE}@127.0.0.1:{self._port}/{DATABASE}'\n"
            f"API:      {url}/status  ({command} status {node})\n"
            f"change:   edit {self._config}, then {command} configure {node} {self._config}\n"
            f"log:      {self._log}\n"
            f"stop:     Ctrl-C\n"
        )

    def _options(self) -> Options:
        return Options(
            pgdata=str(self._directory / "pgdata"),
            connstr=Secret(f"postgresql://cloud_admin@localhost:{self._port}/postgres"),
            compute_id=COMPUTE_ID,
            pgbin=self._pgbin or os.environ.get("POSTGRES_PATH"),
            config=str(self._config),
            spec=None,
            source=SourceName.INITDB,
            fresh=self._fresh,
            set_aside_pgdata=False,
            claim_pgdata=False,
            postgres_user=None,
            external_http_port=self._http_port,
            internal_http_port=_free_port(self._http_port + 1, None),
            http_host="127.0.0.1",
            privileged_role_name="neon_superuser",
            dev=True,  # nobody comes to read the status of a demo that has failed; there are keys, so tokens count
            start_timeout_s=60.0,
            stop_timeout_s=25.0,
            log_format="human",
            lfc_store=str(self._directory / "lfc"),
            lfc_offload_on_stop=True,
        )

    def _make_files(self) -> None:
        """Make the folder, a key, a token that will do for a while, and the sample config if there is none."""
        directory, config = self._directory, self._config
        key, token = directory / "key.pem", directory / "token"
        try:
            if directory.exists() and not (directory / MARK).exists() and any(directory.iterdir()):
                msg = (
                    f"the folder {directory} is not empty and not a demo's: nothing was touched; "
                    "give a new or an empty one by --directory"
                )
                raise DemoError(msg)
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            (directory / MARK).touch()
            if not key.exists():
                keys.generate(key)
            if not config.exists():
                config.write_bytes(
                    keys.with_key_set(msgspec.json.encode({"spec": SAMPLE_SPEC}), keys.key_set(key))
                )
            made = keys.make_token(key, compute_id=COMPUTE_ID, valid_s=TOKEN_VALID_S)
            token.unlink(missing_ok=True)
            keys.write_private(token, made.encode() + b"\n")
        except (OSError, ValueError) as error:
            msg = f"the demo's folder {directory} cannot be set up: {error}; mend it, or give another by --directory"
            raise DemoError(msg) from None
        try:
            read_config(str(config))
            config.write_bytes(keys.with_key_set(config.read_bytes(), keys.key_set(key)))
        except (OSError, ValueError, ConfigurationError) as error:
            msg = f"{error}; correct {config}, or delete it for a new sample"
            raise DemoError(msg) from None


def say(text: str, *, error: bool = False) -> None:
    """Print for a person, at once."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


def _default_directory() -> Path:
    """Root's home is closed to the user who runs Postgres, so root gets a folder of the system's."""
    if os.geteuid() == 0:
        return Path("/var/lib/compute-node/demo")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "compute-node" / "demo"


def _free_port(preferred: int, option: str | None) -> int:
    """Return the preferred port if nobody listens there, else one that is free, and say so."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
        if found != preferred and option is not None:
            say(f"port {preferred} is in use: taking {found} ({option} chooses another)")
        return found
    msg = "there is no free port on this machine"
    raise DemoError(msg)

"""What an empty node does while it waits for a spec: a Postgres of its own warms the machine's memory.

It is the counterpart's (`startup-and-spec` 4.2): the machine's memory, and the programs in its file cache, are touched
before anybody waits for them. What its initdb made is kept, untouched, for a start that would run initdb.
"""

import os
from functools import partial
from pathlib import Path
from typing import Final

from ...messages.postgres import StopRung
from ...postgres.conf import CONF_FILE
from ..kit.jobs import Cancellation
from ..kit.programs import run
from . import folder, launcher, orphans, readiness, segments
from .node import Node
from .port import PostgresError, ProcessSink

PORT: Final = 51055
"""The counterpart's; nobody can connect to it, so that several nodes of one machine are not in each other's way."""
SHARED_BUFFERS: Final = 65536
"""Pages of 8 kB: half a gigabyte, of which only what is touched is taken."""
READY_S: Final = 60.0
COPY_S: Final = 60.0
MAX_SAID: Final = 2_000
LOOKS: Final = 50
LOOK_EVERY_S: Final = 0.01
"""How often and when it is looked whether it has ended, before it is killed: half a second."""

TEMPLATE: Final = "template"
WARM: Final = "data"
LOG: Final = "log"


def conf(*, neon: bool) -> str:
    """Return the configuration of that Postgres: the counterpart's three lines, and nowhere to connect to."""
    lines = [
        f"shared_buffers={SHARED_BUFFERS}",
        f"port={PORT}",
        *(["shared_preload_libraries = 'neon'"] if neon else []),
        "listen_addresses = ''",
        "unix_socket_directories = '.'",  # in its PGDATA, however long the path of that is
    ]
    return "".join(f"{line}\n" for line in lines)


class Warmer:
    """Runs one Postgres over a copy of the template in `place`, a folder of ours; `sink` knows of it for the last resort."""

    def __init__(self, node: Node, sink: ProcessSink, place: str) -> None:
        self._node = node
        self._sink = sink
        self._place = place
        self._pgdata = f"{place}/{WARM}"

    def run(self, cancellation: Cancellation) -> None:
        """Start it, wait until it is ready, and end it. Raises PostgresError, CancelledError; nothing of it is left."""
        try:
            self._copy(cancellation)
            text = conf(neon=self._node.has_neon)
            self._node.write(f"{self._pgdata}/{CONF_FILE}", text, sync=False)
            self._live(cancellation)
        finally:
            folder.remove(self._pgdata)

    def _copy(self, cancellation: Cancellation) -> None:
        result = run(
            ["cp", "-a", "--reflink=auto", f"{self._place}/{TEMPLATE}", self._pgdata],
            starter=self._node.starter,
            env=self._node.environment(),
            cwd=self._place,
            timeout_s=COPY_S,
            cancellation=cancellation,
        )
        if result.code != 0:
            msg = f"the new cluster cannot be copied: {result.output.strip()}"
            raise PostgresError(msg)

    def _live(self, cancellation: Cancellation) -> None:
        log_path = f"{self._place}/{LOG}"
        output = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            postmaster = launcher.launch(
                self._node.binaries,
                self._pgdata,
                port=None,
                starter=self._node.starter,
                storage_token=None,
                output=output,
                cancellation=cancellation,
                confinement=self._node.confinement(cancellation),
            )
        finally:
            os.close(output)
        self._sink.started(postmaster.pid)
        try:
            has_exited = partial(_has_exited, postmaster.pid)
            if not readiness.wait(self._pgdata, postmaster.pid, has_exited, READY_S, cancellation):
                said = Path(log_path).read_text(errors="replace").strip()[-MAX_SAID:]
                msg = f"the Postgres that warms it ended by itself: {said or 'it said nothing'}"
                raise PostgresError(msg)
        finally:
            self._end(postmaster)

    def _end(self, postmaster: launcher.Postmaster) -> None:
        """End it and wait for it, which is not broken off."""
        whatever = Cancellation()
        postmaster.send(StopRung.IMMEDIATE)
        for _ in range(LOOKS):
            if _has_exited(postmaster.pid):
                break
            whatever.wait(LOOK_EVERY_S)
        else:
            postmaster.send(StopRung.KILL)
        postmaster.wait(whatever)
        self._sink.ended()
        segments.remove_of((self._pgdata,))


def _has_exited(pid: int) -> bool:
    return not orphans.is_alive(pid)

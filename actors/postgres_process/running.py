"""The Postgres that runs: its postmaster, its log, and what it has outside of PGDATA for one run."""

import os
from time import time
from typing import Final

from ...messages.failpoints import Failpoint
from ...messages.postgres import StopRung
from ...messages.spec import ComputeSpec
from ..kit.jobs import Cancellation
from . import cores, launcher, orphans, readiness
from .control import read_state
from .launcher import Postmaster
from .logs import Pump
from .node import Node
from .port import Exit, Launch, PostgresError, ProcessSink
from .run_folders import link_shared_memory, make_private, remove_private, unlink_shared_memory

PUMP_PATIENCE_S: Final = 5.0
LAST_WORDS_S: Final = 0.3
"""How long the log may take to arrive after the process has gone."""
MAX_LAST_WORDS: Final = 400
"""Characters of each of the last log messages that go into an error."""

KILL: Final = ((launcher.SIGNALS[StopRung.KILL], 3.0),)
SWEEP: Final = ((launcher.SIGNALS[StopRung.IMMEDIATE], 1.0), *KILL)
"""How Postgres processes that outlived their postmaster are ended."""


class Running:
    """One for each node; `sink` hears of its postmaster."""

    def __init__(self, node: Node, sink: ProcessSink) -> None:
        self._node = node
        self._sink = sink
        self.pump = Pump()
        self._postmaster: Postmaster | None = None
        self._launched_wall_s = 0.0
        self._socket_folder: str | None = None
        self._shared_memory: str | None = None

    @property
    def started(self) -> bool:
        """Whether there is, or was, a postmaster."""
        return self._postmaster is not None

    @property
    def postmaster(self) -> Postmaster:
        """Its first process. Raises PostgresError before there is one."""
        if self._postmaster is None:
            msg = "Postgres was not started"
            raise PostgresError(msg)
        return self._postmaster

    def reload(self) -> None:
        """Let it read its configuration again."""
        self.postmaster.reload()

    # --- Starting

    def furnish(self) -> None:
        """Make what it needs outside of PGDATA."""
        node = self._node
        self._socket_folder = node.socket_folder
        remove_private(self._socket_folder, node.account)
        make_private(self._socket_folder, node.account)
        self._shared_memory = link_shared_memory(node.pgdata, node.account)

    def launch(self, spec: ComputeSpec, cancellation: Cancellation) -> Launch:
        """Start the postmaster over a PGDATA that is complete and configured (port.py)."""
        node = self._node
        state = read_state(node.pgdata)  # a copy of a running primary recovers too
        recovering = state is None or not state.is_clean
        confinement = node.confinement(cancellation)
        writer = self.pump.open(PUMP_PATIENCE_S)
        if writer is None:
            msg = "Postgres was not started: nobody reads its log"
            raise PostgresError(msg)
        try:
            self._launched_wall_s = time()
            self._postmaster = launcher.launch(
                node.binaries,
                node.pgdata,
                port=node.target.port if node.is_plain else None,
                starter=node.starter,
                # SQL users can read it; without a pageserver it is of no use.
                storage_token=None if node.is_plain else spec.storage_auth_token,
                output=writer,
                cancellation=cancellation,
                confinement=confinement,
            )
        finally:
            os.close(writer)
        self._sink.started(self._postmaster.pid)
        cancellation.reach(Failpoint.LAUNCHED, cancellable=False)
        return Launch(self._postmaster.pid, recovering)

    def await_ready(self, limit_s: float | None, cancellation: Cancellation) -> bool:
        """Wait until it accepts connections; False when its process ended before."""
        has_exited = self.postmaster.exited.is_set
        cancellation.reach(Failpoint.AWAIT_READY)
        if not readiness.wait(self._node.pgdata, self.postmaster.pid, has_exited, limit_s, cancellation):
            return False
        cancellation.reach(Failpoint.READY_SEEN)
        return True

    # --- Its end

    def await_exit(self, cancellation: Cancellation) -> Exit:
        """Wait for its end, as long as it lives, and say how it ended."""
        code = self.postmaster.wait(cancellation)
        self._sink.ended()
        cancellation.reach(Failpoint.EXIT_SEEN, cancellable=False)
        self.pump.ended.wait(LAST_WORDS_S)
        state = read_state(self._node.pgdata)
        clean = state is not None and state.is_clean
        how = "in an unknown state" if state is None else "shut down in order" if clean else "unclean"
        words = [message[:MAX_LAST_WORDS] for message in self.pump.last_messages]
        said = "".join(f"\n  {word}" for word in words) or " nothing"
        text = f"Postgres ended ({launcher.describe_code(code)}), its cluster is {how}; its last words:{said}"
        return Exit(text, launcher.has_failed(code, clean=clean))

    def signal(self, rung: StopRung) -> None:
        """Send the signal of this rung, if there is anybody to get it."""
        if self._postmaster is not None:
            self._postmaster.send(rung)

    def kill(self, cancellation: Cancellation) -> None:
        """Kill its group and every Postgres process that works in the folder."""
        cancellation.reach(Failpoint.KILL_BEGUN)
        self.signal(StopRung.KILL)
        orphans.end((self._node.pgdata,), cancellation, ladder=KILL)

    def sweep(self, cancellation: Cancellation) -> None:
        """End what outlived the postmaster."""
        if self._postmaster is not None:
            orphans.end((self._node.pgdata,), cancellation, ladder=SWEEP)

    def clear(self) -> None:
        """Remove what it had outside of PGDATA."""
        node = self._node
        if self._shared_memory is not None:
            unlink_shared_memory(node.pgdata, self._shared_memory, node.account)
            self._shared_memory = None
        if self._socket_folder is not None:
            remove_private(self._socket_folder, node.account)
            self._socket_folder = None

    def report_cores(self, cancellation: Cancellation) -> None:
        """Log the backtraces of core dumps of this run."""
        node = self._node
        cores.report(
            cores.find(node.pgdata, self._launched_wall_s),
            node.binaries.postgres,
            starter=node.starter,
            env=node.environment(),
            cancellation=cancellation,
        )

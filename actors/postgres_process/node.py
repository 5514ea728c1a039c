"""What never changes while a node lives: what it was told, and with what programs and as whom it runs Postgres."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from ...messages.secret import Secret
from ...messages.settings import NodeSettings, SourceName
from ...postgres.accounts import Account
from ...postgres.binaries import Binaries
from ...postgres.target import Target, parse_connstr
from ..kit.jobs import Cancellation
from ..kit.metrics import Metrics
from ..kit.programs import Result, Starter, run
from . import folder, run_folders
from .confining import NOT_CONFINED, Confinement, plan
from .launcher import environment
from .pgdata import Seal

ANSWER_S: Final = 30.0
"""How long a program may take that is only asked something."""


class Node(msgspec.Struct, frozen=True):
    """`account` runs Postgres when this process is root; `target` is where Postgres is reached."""

    settings: NodeSettings
    binaries: Binaries
    account: Account | None
    starter: Starter
    metrics: Metrics | None
    target: Target
    pgdata: str
    """Absolute."""

    @classmethod
    def of(
        cls, settings: NodeSettings, binaries: Binaries, account: Account | None, metrics: Metrics | None
    ) -> "Node":
        """Make it of what the command line said and what was found of it."""
        return cls(
            settings,
            binaries,
            account,
            Starter(account, metrics=metrics, oom_score_adj=settings.oom_score_adj),
            metrics,
            parse_connstr(settings.connstr.reveal()),
            os.path.abspath(settings.pgdata),  # noqa: PTH100 - links stay as they were given
        )

    @property
    def source(self) -> SourceName:
        """Where its PGDATA comes from."""
        return self.settings.source

    @property
    def is_plain(self) -> bool:
        """Whether the cluster is of the machine's own Postgres, without Neon's storage below it."""
        return self.source is not SourceName.PAGESERVER

    @property
    def has_neon(self) -> bool:
        """Whether its Postgres has Neon's library."""
        libraries = self.binaries.library_folder
        return libraries is not None and Path(libraries, "neon.so").exists()

    @property
    def socket_folder(self) -> str:
        """Where its Postgres has its sockets."""
        return run_folders.socket_folder(self.pgdata, self.account)

    @property
    def seal(self) -> Seal:
        """What token and marker of a folder of this node say."""
        return Seal(self.settings.compute_id, self.pgdata, self.binaries.major, self.source.value)

    def environment(self, storage_token: Secret | None = None) -> dict[str, str]:
        """Return what its programs get of our environment."""
        return environment(os.environ, storage_token=storage_token)

    def confinement(self, cancellation: Cancellation) -> Confinement:
        """Find the way into the cgroup that the command line names for its Postgres. Raises CancelledError."""
        if not self.settings.autoscaling or not self.settings.cgroup:
            return NOT_CONFINED
        return plan(self.settings.cgroup, self.starter, cancellation)

    def write(self, path: str, text: str, *, sync: bool = True) -> None:
        """Write a file of Postgres, whole or not at all; `sync`: durable."""
        content = text.encode(errors="surrogateescape")
        folder.write_file(path, content, account=self.account, sync=sync)

    def inquire(self, command: Sequence[str], cwd: str, cancellation: Cancellation) -> Result:
        """Run a program of Postgres that only says something, in English. Raises ProgramError, CancelledError."""
        return run(
            list(command),
            starter=self.starter,
            env=self.environment() | {"LC_ALL": "C"},
            cwd=cwd,
            timeout_s=ANSWER_S,
            cancellation=cancellation,
        )

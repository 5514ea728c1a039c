"""The source `pageserver`: a data directory without its relations, which Neon's storage makes at an LSN."""

import logging
import re
from pathlib import Path
from typing import Final

from typing_extensions import override

from ....messages.postgres import PgdataStages
from ....messages.settings import SourceName
from ....messages.spec import ComputeSpec, Mode, StaticMode, Wire
from ....postgres import page_api
from ....postgres.accounts import Account
from ....postgres.lsn import parse_lsn, show_lsn
from ....postgres.storage import Pageserver, Shard, Storage, StorageError, storage_of
from ...kit.jobs import Cancellation
from ...kit.metrics import Metrics
from ...kit.programs import Starter
from .. import folder
from ..pgdata import STANDBY_SIGNAL
from . import Source, SourceError
from .progress import Progress
from .stream import GrpcStream, LibpqStream, Stream
from .tar import forbidden
from .unpacking import unpack

SIGNALS: Final = ("neon.signal", "zenith.signal")
"""Where the log of the branch stood before; the second is the older name."""
CONTROL_FILE: Final = "global/pg_control"
_SEGMENT: Final = re.compile(r"[0-9A-F]{24}")

log = logging.getLogger("compute_node.postgres_process")


def start_lsn(spec: ComputeSpec, synced: int) -> int:
    """Return where the backup is to be taken; 0: at the latest. `synced` is where the safekeepers stand, if asked."""
    if isinstance(spec.mode, StaticMode):
        return parse_lsn(spec.mode.static)
    return synced if spec.compute_mode is Mode.PRIMARY else 0


def command(storage: Storage, lsn: int, *, replica: bool) -> str:
    """Return the command for a backup."""
    words = ["basebackup", storage.tenant_id, storage.timeline_id]
    words += [show_lsn(lsn)] if lsn else []
    words += ["--gzip"]
    words += ["--replica"] if replica else []
    return " ".join(words)


def missing_extra(spec: ComputeSpec) -> str | None:
    """Say what has to be installed before the pageserver of this spec can be spoken to."""
    if _server(spec)[2].wire is Wire.LIBPQ or page_api.is_installed():
        return None
    return page_api.NO_LIBRARY


class PageserverSource(Source):
    """Asks the first server of the first shard. `synced` is where the safekeepers stand; 0: nobody has asked."""

    name = SourceName.PAGESERVER

    def __init__(
        self, account: Account | None, major: int, synced: int, metrics: Metrics | None = None
    ) -> None:
        self._account = account
        self._major = major
        self._synced = synced
        self._metrics = metrics

    @override
    def build(
        self, target: str, spec: ComputeSpec, cancellation: Cancellation, *, sync: bool
    ) -> PgdataStages:
        """As Source says; nothing is synced: the next start makes it anew."""
        lsn = start_lsn(spec, self._synced)
        try:
            return self._build(target, spec, lsn, cancellation)
        except StorageError as error:
            raise SourceError(str(error)) from error
        except SourceError as error:
            msg = f"failed to get basebackup@{show_lsn(lsn)}: {error}"
            raise SourceError(msg, passing=error.passing) from error

    def _build(self, target: str, spec: ComputeSpec, lsn: int, cancellation: Cancellation) -> PgdataStages:
        began_s = cancellation.now()
        Path(target).mkdir(folder.MODE)
        with self._stream(spec, lsn, cancellation) as stream:
            unpacked = unpack(
                stream.chunks(),
                target,
                self._account,
                progress=Progress("base backup", cancellation.now, self._metrics),
            )
        cancellation.check()
        self._finish(Path(target), spec.compute_mode)
        took_ms = round((cancellation.now() - began_s) * 1000)
        log.info(
            "got basebackup@%s: %d files, %d bytes, %d of them on the way, in %d ms",
            show_lsn(lsn),
            unpacked.files,
            unpacked.size,
            unpacked.received,
            took_ms,
        )
        return PgdataStages(
            pageserver_connect_micros=stream.connect_us,
            basebackup_ms=took_ms,
            basebackup_bytes=unpacked.received,
        )

    def _stream(self, spec: ComputeSpec, lsn: int, cancellation: Cancellation) -> Stream:
        storage, shard, server = _server(spec)
        mode = spec.compute_mode
        replica = mode is not Mode.PRIMARY
        if server.wire is Wire.LIBPQ:
            return LibpqStream(
                server.url,
                command(storage, lsn, replica=replica),
                token=spec.storage_auth_token,
                options=f"-c neon.compute_mode={mode.value}",
                cancellation=cancellation,
            )
        if (problem := missing_extra(spec)) is not None:
            raise SourceError(problem)
        return GrpcStream(
            page_api.endpoint(storage, shard, server, spec.storage_auth_token),
            lsn,
            replica=replica,
            starter=Starter(None),
            cancellation=cancellation,
        )

    def _finish(self, target: Path, mode: Mode) -> None:
        """See that this is a cluster of ours, and make the files that the pageserver leaves to us."""
        version = target / "PG_VERSION"
        if not version.is_file() or not (target / CONTROL_FILE).is_file():
            forbidden("it holds no cluster: PG_VERSION or pg_control is missing")
        if not any(_SEGMENT.fullmatch(path.name) for path in (target / "pg_wal").glob("*")):
            forbidden("it holds no segment of the log")
        if (major := version.read_text(encoding="ascii", errors="replace").strip()) != str(self._major):
            msg = (
                f"the branch is of PostgreSQL {major}, and the programs given are of {self._major}: give those of "
                f"{major} by --pgbin"
            )
            raise SourceError(msg)
        new, old = (target / name for name in SIGNALS)
        if old.is_file() and not new.exists():
            self._write(new, old.read_bytes())
        if mode is not Mode.PRIMARY:
            standby = target / STANDBY_SIGNAL
            log.info("%s %s", "reused pre-existing" if standby.exists() else "created", STANDBY_SIGNAL)
            if not standby.exists():
                self._write(standby, b"")

    def _write(self, path: Path, content: bytes) -> None:
        folder.write_file(str(path), content, account=self._account, sync=False)


def _server(spec: ComputeSpec) -> tuple[Storage, Shard, Pageserver]:
    storage = storage_of(spec)
    shard = storage.shards[0]
    return storage, shard, shard.servers[0]

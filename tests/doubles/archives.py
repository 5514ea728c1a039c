"""Archives as a pageserver makes them: of a real cluster, or of anything."""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from compute_node.actors.postgres_process.sources.tar import BLOCK

LAST: Final = "global/pg_control"
"""This and the log come last: a cut stream leaves nothing that could be served."""
LEFT_OUT: Final = frozenset(
    {
        "postgresql.conf",
        "postmaster.pid",
        "postmaster.opts",
        "current_logfiles",
        "compute_ctl_temp_override.conf",
    }
)


def entry(name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    """One entry of GNU form; `fields` are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), 0o600
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % BLOCK)


def folder(name: str) -> bytes:
    return entry(name, kind=tarfile.DIRTYPE, mode=0o755)


def whole(*entries: bytes) -> bytes:
    """An archive with its end, and no more blocks than it needs."""
    return b"".join(entries) + bytes(2 * BLOCK)


def compressed(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


def chunks(data: bytes, size: int = 4096) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def of_cluster(
    pgdata: Path, *, wanted: Callable[[str], bool] = lambda _: True, extra: Iterable[bytes] = ()
) -> bytes:
    """The archive of a cluster that was shut down, in the order of a pageserver; `extra` entries before the last."""
    names = sorted(str(path.relative_to(pgdata)) for path in pgdata.rglob("*"))
    names = [name for name in names if name not in LEFT_OUT and not name.startswith("compute_node.")]
    folders = [name for name in names if (pgdata / name).is_dir() or (pgdata / name).is_symlink()]
    files = [name for name in names if name not in folders and wanted(name)]
    last = [LAST, *(name for name in files if name.startswith("pg_wal/"))]
    out = io.BytesIO()
    for name in folders:
        out.write(folder(name))
    for name in files:
        if name not in last:
            out.write(entry(name, (pgdata / name).read_bytes()))
    out.write(b"".join(extra))
    for name in last:
        out.write(entry(name, (pgdata / name).read_bytes()))
    return whole(out.getvalue())

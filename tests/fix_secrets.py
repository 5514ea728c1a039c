"""The oracle of secrets: looks wherever one could leak to, and remembers what it found."""

import contextlib
import logging
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
from compute_node.actors.postgres_process.pgdata import TEMPORARY
from compute_node.process.logs import json_line
from typing_extensions import override

from doubles import canaries

MAX_FILE: Final = 16 * 1024 * 1024
"""Bytes of one file that are searched: the last ones."""
BELONGS_IN: Final = ("postgresql.conf", "postgresql.auto.conf")
"""Files of PGDATA in which a secret may stand, for the eyes of their owner only."""
LOGGERS: Final = ("compute_node", "postgres")
VIEWS: Final = ("pg_stat_activity", "pg_stat_statements", "pg_stat_replication", "pg_prepared_statements")


class Secrecy:
    """What was found so far; one for each test."""

    def __init__(self) -> None:
        self.leaks: list[str] = []
        self._more: set[str] = set()

    def also(self, secret: str) -> str:
        """Look for this one from now on, too."""
        self._more.add(secret)
        return secret

    def look(self, where: str, data: bytes | str) -> None:
        """Search a text."""
        found = canaries.leak(data)
        if found is None:
            text = data if isinstance(data, str) else data.decode(errors="replace")
            found = next((secret for secret in self._more if secret in text), None)
        if found is not None:
            self.leaks.append(f"a secret leaks into {where}: {found}")

    def look_at_file(self, path: Path) -> None:
        """Search a file; one that is gone holds nothing."""
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MAX_FILE))
            self.look(str(path), file.read())

    def look_at_pgdata(self, pgdata: Path) -> None:
        """Search what Postgres and the node write beside the data; who else may read what belongs there."""
        for path in (*_files(pgdata), *_files(pgdata / "log")):
            if path.name.removeprefix(TEMPORARY) in BELONGS_IN:
                with contextlib.suppress(OSError):
                    if canaries.leak(path.read_bytes()) and stat.S_IMODE(path.stat().st_mode) & 0o077:
                        self.leaks.append(f"{path} holds secrets and is open to others")
            else:
                self.look_at_file(path)

    def look_at_processes(self, processes: Iterable[psutil.Process]) -> None:
        """Search argument lists and environments, as `ps` shows them."""
        for process in processes:
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    self.look(
                        f"{name} of process {process.pid}", Path(f"/proc/{process.pid}/{name}").read_bytes()
                    )

    def look_at_views(self, connection: "psycopg.Connection[Any]") -> None:
        """Search the views that show what others do."""
        found = connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relname = ANY(%s)", [list(VIEWS)]
        )
        for (view,) in found.fetchall():
            with contextlib.suppress(psycopg.Error):
                self.look(view, str(connection.execute(f"TABLE {view}".encode()).fetchall()))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Search what is logged meanwhile in this process, by us and by Postgres."""
        handler = _Listener(self)
        levels = {name: logging.getLogger(name).level for name in LOGGERS}
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)

    def judge(self) -> None:
        """Fail for whatever was found."""
        assert not self.leaks, "\n".join(dict.fromkeys(self.leaks))


class _Listener(logging.Handler):
    def __init__(self, secrecy: Secrecy) -> None:
        super().__init__()
        self._secrecy = secrecy

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._secrecy.look(f"the log of {record.name}", json_line(record))


def _files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())

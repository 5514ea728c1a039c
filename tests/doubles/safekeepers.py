"""Safekeepers as the quick check sees them, and a `postgres` that answers `--sync-safekeepers`."""

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compute_node.messages.secret import Secret
from compute_node.messages.spec import ComputeSpec
from compute_node.postgres.binaries import Binaries

from doubles.specs import a_spec
from doubles.wire import Client, Refused, Reply, Rows, WireServer

QUERY = "TIMELINE_STATUS"
LOG = "2026-01-02 03:04:05.678 UTC [7] LOG:  {}"


def stored_spec(names: tuple[str, ...], **changes: Any) -> ComputeSpec:
    """The spec of a node of Neon's storage with these safekeepers."""
    stored = {
        "tenant_id": "1" * 32,
        "timeline_id": "2" * 32,
        "pageserver_connstring": Secret("postgresql://ps"),
        "safekeeper_connstrings": names,
    }
    return a_spec(**(stored | changes))


@dataclass
class Safekeeper:
    """One safekeeper; may be changed while it serves. `server.faults` is the switchboard of the wire."""

    tenant_id: str
    timeline_id: str
    flush_lsn: str = "0/16ABCDE"
    commit_lsn: str = "0/16ABCDE"
    knows: bool = True
    """False: the timeline was never seen here."""
    answers: Rows | None = None
    """In place of all that."""
    server: WireServer = field(init=False)

    @property
    def address(self) -> str:
        """The entry of `safekeeper_connstrings`."""
        return self.server.address

    def answer(self, client: Client, query: str) -> Reply:
        words = dict(word.partition("=")[::2] for word in client.options.split(" ") if word != "-c")
        if client.parameters.get("user") != "no_user" or query != QUERY:
            return Refused(f"not understood: {query}")
        if words != {"timeline_id": self.timeline_id, "tenant_id": self.tenant_id}:
            return Refused(f"not for here: {client.options}")
        rows = ((self.flush_lsn, self.commit_lsn),) if self.knows else ()
        return self.answers or Rows(("flush_lsn", "commit_lsn"), rows, QUERY)


@contextlib.contextmanager
def safekeepers(
    count: int, *, tenant_id: str, timeline_id: str, password: str | None = None
) -> Iterator[tuple[Safekeeper, ...]]:
    """Serve so many meanwhile, all of them at the same place."""
    with contextlib.ExitStack() as stack:
        made = tuple(Safekeeper(tenant_id, timeline_id) for _ in range(count))
        for one in made:
            one.server = stack.enter_context(WireServer(one.answer, password=password))
        yield made


@dataclass
class Sync:
    """What the program does the next time; `says` goes to stderr as log lines."""

    lsn: str = "0/16ABCDE"
    code: int = 0
    says: tuple[str, ...] = ("synced",)
    hangs: bool = False
    fails_times: int = 0
    """So many of the first calls end with 1 nevertheless."""


class SyncProgram:
    """The programs of a real Postgres, whose `postgres` answers `--sync-safekeepers` as it is told."""

    def __init__(self, folder: Path, real: Binaries) -> None:
        self._folder = folder
        self._calls = folder / "calls"
        bin_folder = folder / "bin"
        bin_folder.mkdir(parents=True)
        for program in Path(real.postgres).parent.iterdir():
            if program.name != "postgres":
                (bin_folder / program.name).symlink_to(program)
        self.postgres = bin_folder / "postgres"
        here, original = shlex.quote(str(folder)), shlex.quote(real.postgres)
        self.postgres.write_text(
            f'#!/bin/sh\n[ "$*" = --sync-safekeepers ] && . {here}/sync\nexec {original} "$@"\n'
        )
        self.postgres.chmod(0o755)
        self._calls.mkdir()
        self._calls.chmod(0o777)  # whoever runs Postgres writes there
        for parent in (folder, bin_folder):
            parent.chmod(0o755)
        self.set(Sync())

    def set(self, sync: Sync) -> None:
        """Say what it does from now on."""
        calls = shlex.quote(str(self._calls))
        lines = [
            f"call=$(mktemp -p {calls})",
            'printf \'{"pid": %s, "pgdata": "%s", "token": "%s"}\' $$ "$PGDATA" "$NEON_AUTH_TOKEN" > "$call"',
            '[ -e "$PGDATA/postgresql.conf" ] || { echo no configuration >&2; exit 3; }',
            *(f"echo {shlex.quote(LOG.format(text))} >&2" for text in sync.says),
            f"[ $(ls {calls} | wc -l) -le {sync.fails_times} ] && exit 1",
            *(["while :; do sleep 0.1; done"] if sync.hangs else []),
            *([f"echo {shlex.quote(sync.lsn)}"] if sync.lsn else []),
            f"exit {sync.code}",
        ]
        for call in self._calls.iterdir():
            call.unlink()
        (self._folder / "sync").write_text("\n".join(lines) + "\n")
        (self._folder / "sync").chmod(0o644)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every call since it was told what to do: pid, pgdata, token."""
        texts = [path.read_text() for path in self._calls.iterdir()]
        return [json.loads(text) for text in texts if text]

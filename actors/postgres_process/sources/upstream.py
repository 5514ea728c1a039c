"""The source `upstream`: a copy of a running primary, made by pg_basebackup, which then follows it as a replica."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from typing_extensions import override

from ....messages.postgres import PgdataStages
from ....messages.settings import SourceName
from ....messages.spec import ComputeSpec
from ....postgres.accounts import Account
from ....postgres.binaries import Binaries
from ....postgres.conf import AUTO_CONF_FILE
from ....postgres.passwords import PASSFILE, password_file
from ....postgres.upstream import Upstream, parse
from ...kit.jobs import Cancellation
from ...kit.metrics import Metrics
from ...kit.programs import Program, ProgramError, Result, Starter, listen
from .. import folder
from ..pgdata import OWN_NAMES, STANDBY_SIGNAL
from . import Source, SourceError
from .progress import Progress

PROBE_TIMEOUT_S: Final = 60.0
SILENCE_S: Final = 600.0
"""How long pg_basebackup may get nothing, the checkpoint of the primary included."""

_PROGRESS: Final = re.compile(rb"(\d+)/(\d+) kB")
_MAX_LINE: Final = 4096
_FACTS: Final = "compute_ctl"
"""How the line with what was asked begins."""
_FACTS_LINE: Final = re.compile(rf"^{_FACTS}\|(.*)\|([0-9]+)$", re.MULTILINE | re.DOTALL)
_NO_REASON: Final = re.compile(
    r"removing (?:contents of )?(?:data|WAL) directory|child (?:process|thread) exited"
)
_PERMANENT: Final = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects"
    r"|REPLICATION attribute|replication role|permission denied"
    r"|role \".*\" does not exist|role \".*\" is not permitted|database \".*\" does not exist"
    r"|invalid (?:connection option|port number|integer value|sslmode value)|SSL was required|SSL is not supported"
    r"|certificate verify failed|certificate file|does not match host name|incompatible server version"
    r"|WAL level not sufficient|exists but is not empty|No space left on device"
)
"""What does not heal by trying again. The server's part is in its own language: what is not known is tried again."""

log = logging.getLogger("compute_node.postgres_process")


def is_permanent(said: str) -> bool:
    """Judge by what a program of Postgres said whether trying again is of no use."""
    return _PERMANENT.search(said) is not None


def progress(output: bytes) -> tuple[int, int] | None:
    """Return how many bytes of how many are copied, as far as pg_basebackup has said; the total is an estimate."""
    found = _PROGRESS.findall(output)
    return (int(found[-1][0]) << 10, int(found[-1][1]) << 10) if found else None


class UpstreamSource(Source):
    """Copies the primary of the spec's `upstream_conninfo`.

    `superuser` is the user of `-C`; `before_copying` is called once the primary has answered.
    """

    name = SourceName.UPSTREAM

    def __init__(
        self,
        binaries: Binaries,
        starter: Starter,
        account: Account | None,
        superuser: str,
        env: Mapping[str, str],
        *,
        before_copying: Callable[[], None],
        metrics: Metrics | None = None,
    ) -> None:
        self._binaries = binaries
        self._starter = starter
        self._account = account
        self._superuser = superuser
        self._env = {**env, "LC_ALL": "C"}
        self._before_copying = before_copying
        self.metrics = metrics

    @override
    def build(
        self, target: str, spec: ComputeSpec, cancellation: Cancellation, *, sync: bool
    ) -> PgdataStages:
        upstream = _upstream_of(spec)
        began_s = cancellation.now()
        try:
            with password_file(upstream.password, self._account) as descriptor:
                copy = _Copy(self, upstream, spec.upstream_slot_name, descriptor, cancellation)
                copy.probe(self._binaries.major, self._superuser)
                self._before_copying()
                copy.make(f"{target}.copy", sync=sync)
        except SourceError as error:
            msg = f"failed to get basebackup from the upstream at {upstream.place}: {error}"
            raise SourceError(msg, passing=error.passing) from error
        # A crash before this leaves nothing that could pass for ours: the copy bears the primary's token, too.
        Path(f"{target}.copy").rename(target)
        took_ms = round((cancellation.now() - began_s) * 1000)
        return PgdataStages(basebackup_ms=took_ms, basebackup_bytes=copy.size)

    def meet(self, spec: ComputeSpec, system_identifier: int, cancellation: Cancellation) -> None:
        """See that a replica which runs can follow the upstream of this spec, and make its slot there.

        Raises SourceError, also for a cluster that is not a copy of the same; CancelledError.
        """
        upstream = _upstream_of(spec)
        try:
            with password_file(upstream.password, self._account) as descriptor:
                copy = _Copy(self, upstream, spec.upstream_slot_name, descriptor, cancellation)
                copy.greet(self._binaries.major, system_identifier)
        except SourceError as error:
            msg = f"the upstream at {upstream.place} cannot be followed: {error}"
            raise SourceError(msg) from error

    # --- What a copy needs

    def run(
        self,
        command: tuple[str, ...],
        descriptor: int | None,
        cancellation: Cancellation,
        heard: Callable[[bytes], None] | None = None,
        *,
        cwd: str = "/",
    ) -> Result:
        """Run a client program of our Postgres, which may find the password at that descriptor."""
        env = self._env if descriptor is None else {**self._env, PASSFILE: f"/proc/self/fd/{descriptor}"}
        passed = () if descriptor is None else (descriptor,)
        program = Program((self._binaries.sibling(command[0]), *command[1:]), env, passed)
        try:
            return listen(
                program,
                heard or (lambda _: None),
                starter=self._starter,
                cwd=cwd,
                silence_s=PROBE_TIMEOUT_S if heard is None else SILENCE_S,
                cancellation=cancellation,
            )
        except ProgramError as error:
            raise SourceError(str(error), passing="cannot be run" not in str(error)) from error

    def finish(self, copy: str, *, sync: bool) -> None:
        """Take out of the copy what is the primary's own affair, and make a standby of it."""
        for name in OWN_NAMES:
            _remove(Path(copy, name))
        for name in (AUTO_CONF_FILE, STANDBY_SIGNAL):  # what ALTER SYSTEM said there is not in the spec
            folder.write_file(f"{copy}/{name}", b"", account=self._account, sync=sync)


def _upstream_of(spec: ComputeSpec) -> Upstream:
    if spec.upstream_conninfo is None:
        msg = "upstream_conninfo should be provided"
        raise SourceError(msg)
    try:
        return parse(spec.upstream_conninfo)
    except ValueError as error:
        raise SourceError(str(error)) from error


class _Copy:
    """One attempt."""

    def __init__(
        self,
        source: UpstreamSource,
        upstream: Upstream,
        slot: str | None,
        descriptor: int | None,
        cancellation: Cancellation,
    ) -> None:
        self._source = source
        self._upstream = upstream
        self._slot = slot
        self._descriptor = descriptor
        self._cancellation = cancellation
        self._progress = Progress("base backup", cancellation.now, source.metrics)
        self._line = b""
        self.size = 0
        """Bytes that were copied."""

    def probe(self, major: int, superuser: str) -> None:
        """See that the primary is there and can be copied; its slot, if one is wanted, is made."""
        self._meet(major)
        self._look_around(superuser)
        self._make_slot()

    def greet(self, major: int, system_identifier: int) -> None:
        """See that this is a server that a copy with that identifier can follow; its slot, if one is wanted, is made."""
        self._meet(major)
        answer = self._ask("IDENTIFY_SYSTEM", replication="true")
        if answer.code != 0:
            what = "it does not say who it is"
            raise self._failed(what, answer)
        if answer.output.partition("|")[0].strip() != str(system_identifier):
            msg = "its cluster is another one, of which the data here is no copy: start the node anew to copy it"
            raise SourceError(msg)
        self._make_slot()

    def _meet(self, major: int) -> None:
        answer = self._ask("SHOW server_version_num", replication="true")
        version = answer.output.strip()
        if answer.code != 0 or not version.isdecimal():
            what = "it cannot be reached"
            raise self._failed(what, answer)
        if int(version) // 10_000 != major:
            msg = (
                f"it is PostgreSQL {int(version) // 10_000}, and the programs given are of {major}: give those of "
                f"{int(version) // 10_000} by --pgbin"
            )
            raise SourceError(msg)

    def _make_slot(self) -> None:
        if self._slot is not None:
            made = self._ask(
                f'CREATE_REPLICATION_SLOT "{self._slot}" PHYSICAL RESERVE_WAL', replication="true"
            )
            if made.code == 0:
                log.info("the replication slot %s is made on the upstream; nobody removes it", self._slot)
            elif "already exists" not in made.output:
                what = f"the replication slot {self._slot} cannot be made"
                raise self._failed(what, made)

    def _look_around(self, superuser: str) -> None:
        """Refuse what would fail later, as far as its account may ask: SQL need not be open to it."""
        name = superuser.replace("'", "''")
        answer = self._ask(
            f"SELECT '{_FACTS}', (SELECT pg_catalog.string_agg(spcname, ', ') FROM pg_catalog.pg_tablespace WHERE "  # noqa: S608 - quoted; a walsender takes no parameters
            f"oid >= 16384), (SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname = '{name}' AND rolsuper)",
            dbname=self._upstream.parameters.get("dbname") or "postgres",
        )
        found = _FACTS_LINE.search(answer.output)  # warnings that sessions begin with stand before it
        if answer.code != 0 or found is None:
            log.debug("the upstream takes no SQL from this account: %s", answer.output.strip())
            return
        tablespaces, administrators = found.groups()
        problem = None
        if tablespaces:
            problem = f"it has tablespaces ({tablespaces}), which would be copied to places outside of PGDATA"
        elif administrators == "0":
            problem = f"it has no superuser {superuser!r}, as whom this node would administer the copy (-C)"
        if problem is not None:
            raise SourceError(problem)

    def make(self, copy: str, *, sync: bool) -> None:
        """Make a complete standby in that folder."""
        _remove(Path(copy))
        self._progress(0)
        slot = () if self._slot is None else ("-S", self._slot)
        command = (
            *("pg_basebackup", "-D", copy, "-d", self._upstream.conninfo(), "--no-password"),
            *("-X", "stream", "-c", "fast", "--no-manifest", "--progress", *slot),
            *(() if sync else ("--no-sync",)),
        )
        result = self._source.run(
            command,
            self._descriptor,
            self._cancellation,
            self._heard,
            cwd=str(Path(copy).parent),  # there the next start finds one whose node was killed
        )
        if result.code != 0:
            what = f"pg_basebackup ended with {result.code}"
            raise self._failed(what, result)
        if outside := folder.tablespaces(copy):
            msg = f"it has tablespaces, which pg_basebackup has copied to {', '.join(outside)}: remove those"
            raise SourceError(msg)
        self._source.finish(copy, sync=sync)

    def _heard(self, output: bytes) -> None:
        lines, _, line = (self._line + output).replace(b"\r", b"\n").rpartition(b"\n")
        self._line = line[-_MAX_LINE:]
        if (seen := progress(lines)) is not None:
            self.size, total = seen
            self._progress(self.size, total=total)

    def _ask(self, question: str, **changes: str) -> Result:
        conninfo = self._upstream.conninfo(**changes)
        command = ("psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", conninfo, "-c", question)
        return self._source.run(command, self._descriptor, self._cancellation)

    def _failed(self, what: str, result: Result) -> SourceError:
        lines = [line.strip() for line in re.split(r"[\r\n]+", result.output)]
        told = [
            line
            for line in lines
            if line and not _PROGRESS.search(line.encode()) and not _NO_REASON.search(line)
        ]
        said = "; ".join(told[-5:]) or "nothing"
        return SourceError(f"{what}: {said}", passing=not is_permanent(said))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        folder.remove_tree(path)
    else:
        path.unlink(missing_ok=True)

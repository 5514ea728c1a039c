"""Would Postgres take the configuration of a spec? Asked before anything is changed; also what would change."""

import os
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from ...messages.failpoints import Failpoint
from ...messages.planning import SettingsCompared
from ...messages.spec import ComputeSpec
from ...postgres.conf import AUTO_CONF_FILE, CONF_FILE, OVERRIDE_FILE, ConfText
from ...postgres.coroutines import run_async
from ...postgres.text import one_line
from ..kit.jobs import Cancellation
from . import checking, fields
from .configuration import REFUSED_AUTO_CONF, Configuration
from .node import Node
from .port import PostgresError
from .run_folders import SHARED_MEMORY, scratch

NOT_STARTED: Final = "it is taken out; the file as it was is kept as " + REFUSED_AUTO_CONF
STARTED: Final = "the next start takes it out"


class Preflight:
    """Leaves nothing behind but, before a start, what of ALTER SYSTEM's file is to stay."""

    def __init__(self, node: Node, configuration: Configuration) -> None:
        self._node = node
        self._configuration = configuration

    def require_source(self, spec: ComputeSpec, *, promoting: bool = False) -> None:
        """Raise PostgresError unless the source can make what the spec asks for."""
        promoted = self._configuration.promoted or promoting
        _refuse(fields.source_problem(spec, self._node.source, promoted=promoted))

    def check(
        self,
        spec: ComputeSpec,
        altered: str,
        place: str,
        cancellation: Cancellation,
        *,
        starting: bool,
        promoting: bool = False,
    ) -> tuple[str, ...]:
        """Raise PostgresError for what Postgres would refuse; returns warnings.

        `altered` is what ALTER SYSTEM has left; `place` a folder that is made for this.
        """
        refused, warnings = fields.not_built(spec)
        _refuse(refused)
        if not promoting:
            _refuse(fields.mode_problem(spec, self._configuration.in_force))
        self.require_source(spec, promoting=promoting)
        conf = self._configuration.render(spec)
        around = self._surroundings()

        def refuses(auto_conf: str) -> str | None:
            found = checking.problems(conf, replace(around, auto_conf=auto_conf))
            if found:
                return f"Postgres would not work with the configuration: {'; '.join(found)}"
            return self._ask_postgres(conf, auto_conf, place, cancellation)

        taken_out: tuple[str, ...] = ()
        if (why := refuses(altered)) is not None:
            _refuse(refuses("") if altered else why)
            altered, taken_out = self._tame(altered, refuses, starting=starting)
        if self._node.is_plain:
            warnings += fields.unused_storage(spec)
        warnings += fields.unused_upstream(spec, self._node.source)
        if self._configuration.standby(spec) is not None:
            warnings += fields.overruled(spec)
        warnings += taken_out + checking.overridden(conf, replace(around, auto_conf=altered))
        if starting:
            settings = self._node.settings
            quota = settings.disk_quota_mount is not None
            warnings += fields.unused_resources(spec, swap=settings.resize_swap, quota=quota)
            scarce = checking.scarce_shared_memory(conf, around, _shared_memory())
            warnings += () if scarce is None else (scarce,)
        return warnings

    def compare(
        self,
        spec: ComputeSpec,
        altered: str,
        refused: str | None,
        warnings: tuple[str, ...],
        cancellation: Cancellation,
    ) -> SettingsCompared:
        """Say how the spec's settings differ from those of the running Postgres; the rest is what `check` said."""
        from psycopg import Error

        from . import comparing

        try:
            described = comparing.values(self._configuration.render(spec).text)
        except PostgresError as error:
            return SettingsCompared(refused=refused or str(error))
        try:
            known = run_async(lambda: comparing.look(self._node.target), cancellation)
        except (Error, TimeoutError) as error:
            msg = f"Postgres cannot be asked for its settings: {one_line(error)}"
            raise PostgresError(msg) from error
        now, changed = comparing.values(self._configuration.text()), comparing.values(altered)
        return SettingsCompared(
            comparing.changes(now, described, changed, known),
            comparing.drift(now, described, changed, known),
            refused,
            warnings,
        )

    def _surroundings(self) -> checking.Surroundings:
        node = self._node
        return checking.Surroundings(
            host=node.target.host,
            port=node.target.port,
            major=node.binaries.major,
            pgdata=node.pgdata,
            socket_folder=node.socket_folder,
            account=node.account,
            library_folder=node.binaries.library_folder,
        )

    def _tame(
        self, auto_conf: str, refuses: Callable[[str], str | None], *, starting: bool
    ) -> tuple[str, tuple[str, ...]]:
        """Find what ALTER SYSTEM has left that keeps Postgres from starting; return the rest, and warnings."""
        rest, refusals = checking.without_refused(auto_conf, refuses)
        if starting:
            self._configuration.tamed = rest
        done = NOT_STARTED if starting else STARTED
        return rest, tuple(
            f"ALTER SYSTEM has set `{one.setting}` (line {one.line} of {AUTO_CONF_FILE}), with which Postgres "
            f"would not start: {done}. {one.why}"
            for one in refusals
        )

    def _ask_postgres(
        self, conf: ConfText, auto_conf: str, place: str, cancellation: Cancellation
    ) -> str | None:
        """Return why Postgres refuses this configuration. Raises PostgresError when it cannot be asked."""
        node = self._node
        with scratch(place, node.account):
            for name, text in {CONF_FILE: conf.text, AUTO_CONF_FILE: auto_conf, OVERRIDE_FILE: ""}.items():
                node.write(f"{place}/{name}", text, sync=False)
            cancellation.reach(Failpoint.CHECK_WRITTEN)
            command = [
                node.binaries.postgres,
                "-C",
                "port",
                "-D",
                place,
                f"--config-file={place}/{CONF_FILE}",
            ]
            result = node.inquire(command, place, cancellation)
        cancellation.reach(Failpoint.CHECK_ASKED)
        return checking.explain(result.output, conf, place, node.pgdata) if result.code != 0 else None


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise PostgresError(problem)


def _shared_memory() -> int | None:
    """Return the size of the place for shared memory; None where it cannot be told."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize

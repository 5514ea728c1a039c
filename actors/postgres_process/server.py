"""The real port: puts together the parts that deal with PGDATA, its configuration and the process of Postgres.

One for each node; its methods run in jobs.
"""

import contextlib
from collections.abc import Callable, Iterator

from msgspec.structs import replace
from typing_extensions import override

from ...messages.failpoints import Failpoint
from ...messages.planning import SettingsCompared
from ...messages.postgres import PgdataKind, StopRung
from ...messages.settings import NodeSettings, SourceName
from ...messages.spec import ComputeSpec
from ...postgres.accounts import Account
from ...postgres.binaries import Binaries
from ...postgres.conf import CONF_FILE, OVERRIDE_FILE
from ..kit.jobs import Cancellation
from ..kit.metrics import Metrics
from ..kit.programs import ProgramError
from .claim import Claim
from .configuration import Configuration
from .disk import Area, blamed, is_about_space, look
from .making import Maker
from .node import Node
from .port import Exit, Launch, PassingError, Port, PostgresError, Preparation, ProcessSink, Promotion
from .preflight import Preflight
from .run_folders import check_folder, plan_folder, scratch, sync_folder
from .running import Running


class Server(Port):
    """Owns the folder and the process. `account` runs Postgres when this process is root; `sink` hears of it."""

    def __init__(
        self,
        settings: NodeSettings,
        binaries: Binaries,
        account: Account | None,
        sink: ProcessSink,
        metrics: Metrics | None = None,
    ) -> None:
        self._sink = sink
        self._node = Node.of(settings, binaries, account, metrics)
        self._claim = Claim(self._node)
        self._configuration = Configuration(self._node)
        self._preflight = Preflight(self._node, self._configuration)
        self._maker = Maker(self._node, self._claim, self._configuration, sink)
        self._postgres = Running(self._node, sink)

    @property
    def pgdata(self) -> str:
        """The absolute path of the data directory."""
        return self._node.pgdata

    def release(self) -> None:
        """Give the lock on the folder back; for whoever makes more than one node in a process."""
        self._claim.lock.release()

    # --- Before the start

    @override
    def inspect(self, cancellation: Cancellation) -> PgdataKind:
        kind = self._claim.inspect(cancellation)
        self._configuration.promoted = self._claim.keeps and self._node.source is SourceName.UPSTREAM
        return kind

    @override
    def check(
        self, spec: ComputeSpec, cancellation: Cancellation, *, promoting: bool = False
    ) -> tuple[str, ...]:
        place = check_folder(self.pgdata, self._node.account)
        return self._check(spec, place, cancellation, promoting=promoting)

    def _check(
        self, spec: ComputeSpec, place: str, cancellation: Cancellation, *, promoting: bool = False
    ) -> tuple[str, ...]:
        starting = not self._postgres.started
        with self._blaming_the_disk():
            return self._preflight.check(
                spec, self._altered(), place, cancellation, starting=starting, promoting=promoting
            )

    @override
    def compare(self, spec: ComputeSpec, cancellation: Cancellation) -> SettingsCompared:
        refused: str | None = None
        warnings: tuple[str, ...] = ()
        try:
            warnings = self._check(spec, plan_folder(self.pgdata, self._node.account), cancellation)
        except PostgresError as error:
            refused = str(error)
        return self._preflight.compare(spec, self._altered(), refused, warnings, cancellation)

    def _altered(self) -> str:
        """Return what ALTER SYSTEM has left in a PGDATA that is kept."""
        return self._configuration.altered() if self._claim.keeps else ""

    @override
    def check_safekeepers(self, spec: ComputeSpec, cancellation: Cancellation) -> int | None:
        from . import safekeepers

        self._preflight.require_source(spec)
        return safekeepers.agreed(spec, self._node.settings.safekeeper_check_timeout_s, cancellation)

    @override
    def sync_safekeepers(self, spec: ComputeSpec, limit_s: float, cancellation: Cancellation) -> int:
        from . import safekeepers

        node = self._node
        if self._postgres.started:
            return safekeepers.sync(node, node.pgdata, spec, limit_s, cancellation)
        place = sync_folder(node.pgdata, node.account)
        with scratch(place, node.account):
            node.write(f"{place}/{CONF_FILE}", self._configuration.render(spec).text, sync=False)
            node.write(f"{place}/{OVERRIDE_FILE}", "", sync=False)
            return safekeepers.sync(node, place, spec, limit_s, cancellation)

    @override
    def warm(self, cancellation: Cancellation) -> None:
        self._maker.warm(cancellation)

    @override
    def prepare(self, spec: ComputeSpec, start_lsn: int, cancellation: Cancellation) -> Preparation:
        with self._blaming_the_disk():
            self._preflight.require_source(spec)
            return self._maker.prepare(spec, start_lsn, cancellation)

    # --- The start

    @override
    def pump_logs(self, no_space: Callable[[], None], cancellation: Cancellation) -> None:
        self._postgres.pump.run(no_space, cancellation)

    @override
    def launch(self, spec: ComputeSpec, cancellation: Cancellation) -> Launch:
        with self._blaming_the_disk():
            conf = self._configuration.render(spec)
            self._claim.place(cancellation)
            self._maker.discard_warmup()
            cancellation.reach(Failpoint.LAUNCH_PLACED)
            self._configuration.write(spec, conf, cancellation)
            self._postgres.furnish()
            cancellation.reach(Failpoint.FILES_WRITTEN)
            return self._postgres.launch(spec, cancellation)

    @override
    def await_ready(self, limit_s: float | None, cancellation: Cancellation) -> bool:
        return self._postgres.await_ready(limit_s, cancellation)

    @override
    def await_exit(self, cancellation: Cancellation) -> Exit:
        ended = self._postgres.await_exit(cancellation)
        return replace(ended, description=blamed(ended.description, self._areas()))

    # --- While it runs

    @override
    def look_at_disk(self) -> tuple[Area, ...]:
        return look(self.pgdata)

    @override
    def install(self, spec: ComputeSpec, cancellation: Cancellation) -> tuple[str, ...]:
        if self._configuration.follows_another(spec):
            self._maker.meet_upstream(spec, cancellation)
        with self._blaming_the_disk():
            return self._configuration.install(spec, self._postgres.reload, cancellation)

    @override
    def promote(self, spec: ComputeSpec, wal_flush_lsn: str | None, cancellation: Cancellation) -> Promotion:
        return self._configuration.promote(spec, wal_flush_lsn, self._postgres.reload, cancellation)

    @override
    def settle(self, spec: ComputeSpec, cancellation: Cancellation, *, subscribers: bool) -> None:
        self._configuration.settle(spec, self._postgres.reload, subscribers=subscribers)

    # --- The end

    @override
    def signal(self, rung: StopRung) -> None:
        self._postgres.signal(rung)

    @override
    def kill(self, cancellation: Cancellation) -> None:
        self._postgres.kill(cancellation)

    @override
    def tidy(self, cancellation: Cancellation) -> None:
        if not self._claim.is_inspected:
            return
        cancellation.reach(Failpoint.TIDY_BEGUN)
        self._postgres.sweep(cancellation)
        cancellation.reach(Failpoint.TIDY_SWEPT)
        self._claim.discard()
        self._maker.discard_warmup()
        self._postgres.clear()
        self._sink.tidied()

    @override
    def report_cores(self, cancellation: Cancellation) -> None:
        self._postgres.report_cores(cancellation)

    # --- A full disk

    @contextlib.contextmanager
    def _blaming_the_disk(self) -> Iterator[None]:
        """Let an error that comes of a full disk say so, and what to do."""
        try:
            yield
        except PassingError:
            raise  # our disk does not heal by another attempt: it is not ours
        except (PostgresError, ProgramError, OSError) as error:
            if not is_about_space(str(error)):
                raise
            raise PostgresError(blamed(str(error), self._areas())) from error

    def _areas(self) -> tuple[Area, ...]:
        """Look at the disk for an error's sake, which must not hide behind another."""
        try:
            return self.look_at_disk()
        except OSError:
            return ()

"""Making a new PGDATA beside the place of the old one; and a cluster in advance, by which the memory is warmed."""

import contextlib
import logging
from typing import Final

from ...messages.failpoints import Failpoint
from ...messages.postgres import PgdataStages
from ...messages.settings import SourceName
from ...messages.spec import Cluster, ComputeSpec
from ...postgres.accounts import missing_passwd_entry
from ..kit.jobs import Cancellation
from . import control, folder, syncing
from .claim import Claim
from .configuration import Configuration
from .node import Node
from .pgdata import TOKEN
from .port import PassingError, PostgresError, Preparation, ProcessSink
from .sources import Source, SourceError
from .sources.initdb import InitdbSource, TemplateSource
from .sources.upstream import UpstreamSource

NO_SPEC: Final = ComputeSpec(
    format_version=1.0, cluster=Cluster(roles=(), databases=()), suspend_timeout_seconds=-1
)
"""For an initdb in advance: none of them looks at it."""

log = logging.getLogger("compute_node.postgres_process")


class Maker:
    """`sink` knows of the Postgres that warms the memory, for the last resort."""

    def __init__(self, node: Node, claim: Claim, configuration: Configuration, sink: ProcessSink) -> None:
        self._node = node
        self._claim = claim
        self._configuration = configuration
        self._sink = sink
        self._template: str | None = None
        """A new cluster that was made in advance, and that nobody has touched."""

    # --- In advance

    def warm(self, cancellation: Cancellation) -> None:
        """Run a Postgres over a new cluster until it is ready, and end it. Raises PostgresError."""
        from . import warming

        place = self._claim.begin_warmup()
        if place is None:
            warmup = self._claim.paths.warmup
            log.info("the memory is not warmed: somebody else has put something at %s", warmup)
            return
        log.info("prewarming VM memory")
        quiet = Cancellation()  # a failpoint of the start that follows is not for this
        cancellation.on_request(quiet.request)
        template = f"{place}/{warming.TEMPLATE}"
        try:
            self._initdb().build(template, NO_SPEC, quiet, sync=True)
        except SourceError as error:
            raise PostgresError(str(error)) from error
        if self._node.source is SourceName.INITDB and not self._claim.keeps:
            self._template = template
        warming.Warmer(self._node, self._sink, place).run(quiet)
        log.info("done prewarming vm memory")

    def discard_warmup(self) -> None:
        """Remove what warming has made, the template too."""
        self._template = None
        self._claim.discard_warmup()

    # --- For a start

    def prepare(self, spec: ComputeSpec, start_lsn: int, cancellation: Cancellation) -> Preparation:
        """Build a complete folder beside its place, or find the one to keep (port.py)."""
        if self._claim.keeps:
            return Preparation(kept=True)
        if self._node.account is None and (problem := missing_passwd_entry()) is not None:
            raise PostgresError(problem)
        self._claim.require_space()
        cancellation.reach(Failpoint.PREPARE_BEGUN)
        try:
            self._claim.begin(cancellation)
            stages = self._build(spec, start_lsn, cancellation)
            self._claim.complete(cancellation)
        except BaseException:
            self._claim.discard()
            raise
        return Preparation(kept=False, stages=stages)

    def _build(self, spec: ComputeSpec, start_lsn: int, cancellation: Cancellation) -> PgdataStages:
        node, paths, configuration = self._node, self._claim.paths, self._configuration
        # What comes from storage is made anew by every start: no crash of the machine lets it be served.
        with syncing.of_all(paths.building) if node.is_plain else contextlib.nullcontext() as whole:
            each = node.is_plain and whole is None
            try:
                stages = self._source(start_lsn).build(paths.built, spec, cancellation, sync=each)
            except SourceError as error:
                kind = PassingError if error.passing else PostgresError
                raise kind(str(error)) from error
            if node.source is SourceName.UPSTREAM:
                configuration.at_least = control.at_least(self._control_data(paths.built, cancellation))
            folder.seal(paths.built, TOKEN, node.seal, node.account, sync=each)
            configuration.write_into(paths.built, configuration.render(spec), cancellation, sync=each)
            if whole is not None:
                whole.sync()
        return stages

    def _source(self, start_lsn: int) -> Source:
        node = self._node
        match node.source:
            case SourceName.PAGESERVER:
                from .sources.pageserver import PageserverSource

                return PageserverSource(node.account, node.binaries.major, start_lsn, node.metrics)
            case SourceName.UPSTREAM:
                return self._upstream()
            case SourceName.INITDB if self._template is not None:
                return TemplateSource(self._template)
            case SourceName.INITDB:
                return self._initdb()

    def meet_upstream(self, spec: ComputeSpec, cancellation: Cancellation) -> None:
        """See that the running replica can follow the upstream of this spec; its slot is made. Raises PostgresError."""
        own = control.system_identifier(self._node.pgdata)
        try:
            self._upstream().meet(spec, own, cancellation)
        except SourceError as error:
            raise PostgresError(str(error)) from error

    def _upstream(self) -> UpstreamSource:
        node = self._node
        return UpstreamSource(
            node.binaries,
            node.starter,
            node.account,
            node.target.user,
            node.environment(),
            before_copying=self._claim.make_room,
            metrics=node.metrics,
        )

    def _initdb(self) -> Source:
        node = self._node
        return InitdbSource(node.binaries, node.starter, node.target.user, node.environment())

    def _control_data(self, pgdata: str, cancellation: Cancellation) -> str:
        command = [self._node.binaries.sibling("pg_controldata"), "-D", pgdata]
        result = self._node.inquire(command, pgdata, cancellation)
        if result.code != 0:
            msg = f"the copy of the upstream cannot be read: {result.output.strip()}"
            raise PostgresError(msg)
        return result.output

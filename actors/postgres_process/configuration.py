"""The configuration of this node's Postgres: its files in PGDATA, and whose they are."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ...messages.failpoints import Failpoint
from ...messages.settings import SourceName
from ...messages.spec import ComputeSpec, Mode
from ...postgres.conf import (
    AUTO_CONF_FILE,
    CONF_FILE,
    OVERRIDE_FILE,
    OVERRIDE_TEXT,
    ConfContext,
    ConfError,
    ConfText,
    Listening,
    Standby,
    render,
)
from ...postgres.hba import open_to_passwords, trusting
from ...postgres.upstream import parse
from ..kit.jobs import Cancellation
from . import folder, reload
from .node import Node
from .port import PostgresError, Promotion

REFUSED_AUTO_CONF: Final = f"{AUTO_CONF_FILE}.refused"

log = logging.getLogger("compute_node.postgres_process")


class Configuration:
    """Written by one job at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.in_force: ComputeSpec | None = None
        """Whose configuration was written last."""
        self.promoted = False
        """It was a replica and has become a primary; of the source `upstream`, perhaps in an earlier life."""
        self.at_least: tuple[tuple[str, int], ...] = ()
        """What a hot standby needs of the settings that its primary has."""
        self.tamed: str | None = None
        """What is to stay of ALTER SYSTEM's file; None: all of it."""
        self._clean_branch: str | None = None
        """The branch of which no inherited subscription is left."""

    # --- What is to be in them

    def render(self, spec: ComputeSpec) -> ConfText:
        """Return the configuration file of this spec. Raises PostgresError."""
        node = self._node
        context = ConfContext(
            internal_http_port=node.settings.internal_http_port,
            privileged_role_name=node.settings.privileged_role_name,
            listening=Listening(node.target.port, node.socket_folder) if node.is_plain else None,
            strict_overcommit=_strict_overcommit(),
            subscribers=self._clean_branch == spec.branch,
            default_preload=("neon",) if node.has_neon else (),
            standby=self.standby(spec),
            promoted=self.promoted and not node.is_plain,
        )
        try:
            return render(spec, context)
        except ConfError as error:
            raise PostgresError(str(error)) from error

    def standby(self, spec: ComputeSpec) -> Standby | None:
        """Say how a replica of the source `upstream` follows its primary; None: it is none. Raises PostgresError."""
        follows = self._node.source is SourceName.UPSTREAM and spec.compute_mode is Mode.REPLICA
        if not follows or spec.upstream_conninfo is None:
            return None
        try:
            conninfo = parse(spec.upstream_conninfo).standby_conninfo(self._node.settings.compute_id)
        except ValueError as error:
            raise PostgresError(str(error)) from error
        return Standby(conninfo, spec.upstream_slot_name, self.at_least)

    def follows_another(self, spec: ComputeSpec) -> bool:
        """Whether a running replica of the source `upstream` is to follow somebody else, or otherwise, than so far."""
        now = None if self.in_force is None else self.standby(self.in_force)
        new = self.standby(spec)
        if now is None or new is None:
            return False
        return (now.conninfo, now.slot) != (new.conninfo, new.slot)

    def _lifted(self, spec: ComputeSpec) -> str:
        """Return what holds while SQL is applied; only Neon's storage has a size limit."""
        return OVERRIDE_TEXT if self._node.has_neon and spec.applies_sql else ""

    # --- What is in them

    def text(self) -> str:
        """Return the configuration file of PGDATA."""
        return self._read(CONF_FILE)

    def altered(self) -> str:
        """Return what ALTER SYSTEM has left in PGDATA."""
        try:
            return self._read(AUTO_CONF_FILE)
        except FileNotFoundError:
            return ""

    def _read(self, name: str) -> str:
        return Path(self._node.pgdata, name).read_text(encoding="utf-8", errors="surrogateescape")

    # --- Before a start

    def write(self, spec: ComputeSpec, conf: ConfText, cancellation: Cancellation) -> None:
        """Write all of them for a start; `conf` is the spec's."""
        pgdata = self._node.pgdata
        if self.tamed is not None:
            before = Path(pgdata, AUTO_CONF_FILE).read_bytes()
            folder.write_file(f"{pgdata}/{REFUSED_AUTO_CONF}", before, account=self._node.account)
            self._node.write(f"{pgdata}/{AUTO_CONF_FILE}", self.tamed)
        self.write_into(pgdata, conf, cancellation, sync=True)
        self._override(self._lifted(spec))
        self.in_force = spec

    def write_into(self, where: str, conf: ConfText, cancellation: Cancellation, *, sync: bool) -> None:
        """Write what we have to say in a PGDATA, as far as it does not stand there yet."""
        hba = Path(where, "pg_hba.conf")
        before = hba.read_text(encoding="utf-8", errors="surrogateescape") if hba.exists() else ""
        after = open_to_passwords(before)
        if self._node.source is SourceName.UPSTREAM:
            after = trusting(
                after, self._node.target.user
            )  # the primary's own rules know nothing of this node
        # The override is empty: a crash may have left the limit lifted, and Postgres logs it when there is none.
        for name, text in {CONF_FILE: conf.text, OVERRIDE_FILE: "", hba.name: after}.items():
            self._bring_to(f"{where}/{name}", text, sync=sync)
            if name == CONF_FILE:
                cancellation.reach(Failpoint.FILES_CONF)
        if after != before:
            log.info("updated pg_hba.conf to allow external connections")
        else:
            log.info("pg_hba.conf is up-to-date")

    def _bring_to(self, path: str, text: str, *, sync: bool = True) -> bool:
        """Write a file unless it is like that already; returns whether it was not."""
        if folder.holds(path, text.encode(errors="surrogateescape")):
            return False
        self._node.write(path, text, sync=sync)
        return True

    # --- While Postgres runs

    def install(
        self, spec: ComputeSpec, load: Callable[[], None], cancellation: Cancellation
    ) -> tuple[str, ...]:
        """Let the running Postgres take this spec's, by `load`; returns the settings that await a restart.

        Raises PostgresError with the configuration before in force again.
        """
        self._override(self._lifted(spec))
        try:
            pending = reload.install(
                self.render(spec),
                self._node.pgdata,
                self._node.target,
                account=self._node.account,
                reload=load,
                cancellation=cancellation,
            )
        except BaseException:
            if self._override(""):
                load()
            raise
        self.in_force = spec
        return pending

    def settle(self, spec: ComputeSpec, load: Callable[[], None], *, subscribers: bool) -> None:
        """End what held only while this spec was applied, unless another one's configuration is in force."""
        if subscribers and spec.drop_subscriptions_before_start:
            self._clean_branch = spec.branch
        if self.in_force != spec:
            return
        changed = self._override("")
        if self._bring_to(f"{self._node.pgdata}/{CONF_FILE}", self.render(spec).text):
            log.info(
                "updated postgresql.conf to set neon.disable_logical_replication_subscribers=%s",
                str(not subscribers).lower(),
            )
            changed = True
        if changed:
            load()

    def promote(
        self,
        spec: ComputeSpec,
        wal_flush_lsn: str | None,
        load: Callable[[], None],
        cancellation: Cancellation,
    ) -> Promotion:
        """Make a primary of the running standby (port.py). Raises PostgresError."""
        from . import promoting

        target = self._node.target
        began_s = cancellation.now()
        standby = promoting.catch_up(target, wal_flush_lsn, cancellation)
        caught_up_s = cancellation.now()
        before, self.promoted = self.promoted, True
        try:
            by_hand = not standby and self.in_force is not None and self.in_force.compute_mode is Mode.REPLICA
            if not self._node.is_plain and (standby or by_hand):
                self.install(spec if standby else replace(spec, mode="Primary"), load, cancellation)
            if standby:
                cancellation.reach(Failpoint.PROMOTION)
                promoting.promote(target, cancellation)
            promoting.see_that_it_writes(target, cancellation)
        except BaseException:
            self.promoted = before
            raise
        self.in_force = replace(spec, mode="Primary")
        done_s = cancellation.now()
        return Promotion(round((caught_up_s - began_s) * 1000), round((done_s - caught_up_s) * 1000))

    def _override(self, text: str) -> bool:
        """Put this into the file that is included last, which is there; returns whether it was something else.

        Raises OSError when it is not: then the volume has vanished, and nothing is to be written in its place.
        """
        path = Path(self._node.pgdata, OVERRIDE_FILE)
        if path.read_bytes() == text.encode():
            return False
        self._node.write(str(path), text)
        return True


def _strict_overcommit() -> bool:
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False

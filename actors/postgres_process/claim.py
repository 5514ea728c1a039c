"""The place of PGDATA, claimed for this node: what lies there, and every step by which another takes its place."""

import logging
import os
import signal
from pathlib import Path
from typing import Final

from ...messages.failpoints import Failpoint
from ...messages.lifecycle import EXIT_FAILED
from ...messages.postgres import PgdataKind
from ...postgres.accounts import Account, first_closed_parent
from ..kit.files import make_durable
from ..kit.jobs import Cancellation
from . import folder, orphans, segments
from .lock import FolderLock
from .node import Node
from .pgdata import (
    MARKER,
    TOKEN,
    Foreign,
    Place,
    SetAside,
    Usable,
    Wish,
    is_leftover_of,
    judge,
    recovery,
)
from .port import PgdataRefusedError, PostgresError
from .run_folders import remove_left_behind, sync_folder

SPACE_NEEDED: Final = 64 << 20
"""Bytes that a new cluster takes, roughly."""
SYNC_LADDER: Final = ((signal.SIGTERM, 1.0), (signal.SIGKILL, 3.0))
"""How a sync of safekeepers is ended: it has nothing of its own to lose."""

log = logging.getLogger("compute_node.postgres_process")


class Claim:
    """Written by one job at a time: inspecting, preparing, launching and tidying follow each other."""

    def __init__(self, node: Node) -> None:
        self._node = node
        settings = node.settings
        self._wish = Wish(
            compute_id=settings.compute_id,
            path=node.pgdata,
            major=node.binaries.major,
            fresh=settings.fresh,
            source=node.source.value,
            set_aside=settings.set_aside_pgdata,
            claim=settings.claim_pgdata,
        )
        self.lock = FolderLock()
        self.paths = folder.Paths(node.pgdata, is_mount=False)
        self.judgement: Usable | SetAside | None = None
        """None until it was inspected."""
        self.keeps = False
        """What lies in the place is what is served."""
        self._begun = False
        self._warms = False
        """The folder for warming is there, and ours."""

    @property
    def is_inspected(self) -> bool:
        """Whether it is locked, and ours or empty or given up."""
        return self.lock.held and self.judgement is not None

    # --- Inspecting

    def inspect(self, cancellation: Cancellation) -> PgdataKind:
        """Lock the folder, end orphans of it, judge it. Raises PgdataRefusedError."""
        try:
            return self._inspect(cancellation)
        except OSError as error:
            where = error.filename or self._node.pgdata
            msg = f"PGDATA cannot be looked at: {where}: {error.strerror or error}"
            raise PgdataRefusedError(msg, EXIT_FAILED) from error
        except PgdataRefusedError:
            raise
        except PostgresError as error:
            raise PgdataRefusedError(str(error), EXIT_FAILED) from error

    def _inspect(self, cancellation: Cancellation) -> PgdataKind:
        pgdata, account = self._node.pgdata, self._node.account
        require_parent(pgdata, account)
        self.paths = paths = folder.Paths(pgdata, folder.is_mount(pgdata))
        self.lock.take(paths, self._wish.compute_id, cancellation)
        cancellation.reach(Failpoint.INSPECT_LOCKED)
        place = folder.look(paths)
        judgement = self._judge(place)
        # A sync that a killed node has left could be elected later, and would shut our primary out.
        orphans.end((sync_folder(pgdata, account),), cancellation, ladder=SYNC_LADDER)
        if isinstance(judgement, SetAside):
            log.warning("%s: it is renamed aside when the new one is complete", judgement.reason)
            # What an earlier life was making beside it.
            orphans.end((paths.built, paths.building), cancellation)
            folder.remove(paths.building)
            self.judgement = judgement
            return PgdataKind.FOREIGN
        if not judgement.claim:
            orphans.end((pgdata, paths.built, paths.building, paths.old), cancellation)
            self._clear_warmup(cancellation)
            cancellation.reach(Failpoint.INSPECT_CLEARED)
            plan = recovery(place, self._wish)
            if plan.move_forward or plan.move_back:
                log.warning("an earlier start was interrupted while it renamed %s: finishing that", pgdata)
            folder.recover(paths, plan, cancellation)
            cancellation.reach(Failpoint.INSPECT_RECOVERED)
            judgement = self._judge(folder.look(paths))
            remove_left_behind(pgdata, account)
        elif orphans.working_in((pgdata,)):
            self._refuse_live()
        assert isinstance(judgement, Usable)  # noqa: S101 - what is ours does not become foreign
        self.judgement = judgement
        self.keeps = judgement.kind is PgdataKind.OURS_COMPLETE and not self._wish.fresh
        return judgement.kind

    def _judge(self, place: Place) -> Usable | SetAside:
        judgement = judge(place, self._wish)
        if isinstance(judgement, Foreign):
            raise PgdataRefusedError(judgement.text, EXIT_FAILED)
        if isinstance(judgement, SetAside) and orphans.working_in((self._node.pgdata,)):
            self._refuse_live()
        return judgement

    def _refuse_live(self) -> None:
        pgdata = self._node.pgdata
        pids = ", ".join(map(str, orphans.working_in((pgdata,))))
        msg = f"{pgdata} is in use by Postgres processes that this node did not start ({pids}): stop them"
        raise PgdataRefusedError(msg, EXIT_FAILED)

    # --- Making another one beside it

    def require_space(self) -> None:
        """Raise PostgresError where a new cluster finds no room."""
        paths = self.paths
        require_space(paths.pgdata if paths.is_mount else str(Path(paths.pgdata).parent))

    def begin(self, cancellation: Cancellation) -> None:
        """Make the folder in which another PGDATA is built: empty, and ours."""
        paths, seal, account = self.paths, self._node.seal, self._node.account
        self._begun = True
        folder.remove(paths.building)
        self._claim_mount()
        folder.make_folder(paths.building, account)
        if not paths.is_mount:
            folder.seal(paths.building, TOKEN, seal, account)
        cancellation.reach(Failpoint.PREPARE_TOKEN)

    def complete(self, cancellation: Cancellation) -> None:
        """Say that what was built is complete: from now on it may be served."""
        cancellation.reach(Failpoint.PREPARE_UNSEALED)
        folder.seal(self.paths.built, MARKER, self._node.seal, self._node.account)
        make_durable(self.paths.building)
        cancellation.reach(Failpoint.PREPARE_SEALED)

    def discard(self) -> None:
        """Remove what was begun and is not in its place."""
        if not self._begun:
            return
        paths = self.paths
        segments.remove_of((paths.built,))
        folder.remove(paths.building)
        self._give_mount_back()
        self._begun = False

    def _claim_mount(self) -> None:
        """Let the token stand in a mount point before anything else does: without it the next start calls that foreign."""
        pgdata = self.paths.pgdata
        if self.paths.is_mount:
            folder.own(pgdata, self._node.account)
            folder.seal(pgdata, TOKEN, self._node.seal, self._node.account)

    def _give_mount_back(self) -> None:
        """Leave a mount point empty in which nothing of ours has come to be."""
        pgdata = self.paths.pgdata
        if self.paths.is_mount and os.listdir(pgdata) == [TOKEN]:  # noqa: PTH208 - names, not paths
            Path(pgdata, TOKEN).unlink()

    def make_room(self) -> None:
        """Delete the copy of an earlier life: it would not be served again, and two may be more than the disk holds."""
        if isinstance(self.judgement, Usable):
            folder.clear_place(self.paths)

    # --- Putting it in its place

    def place(self, cancellation: Cancellation) -> None:
        """Put what was built in the place, unless what lies there is kept."""
        if isinstance(self.judgement, Usable):
            orphans.end((self._node.pgdata,), cancellation)
        cancellation.reach(Failpoint.LAUNCH_CLEARED)
        if self.keeps:
            self._repair()
            return
        paths, aside = self.paths, None
        if isinstance(self.judgement, SetAside):
            numbers = folder.look(paths).asides
            aside = paths.aside(max(numbers, default=0) + 1)
            log.warning("%s is renamed to %s", paths.pgdata, aside)
        elif left := folder.tablespaces(paths.pgdata):
            log.warning("the tablespaces of the PGDATA that is replaced stay behind: %s", ", ".join(left))
        folder.place(paths, cancellation, aside=aside)
        self._begun = False
        self.keeps = True

    def _repair(self) -> None:
        pgdata, account = self._node.pgdata, self._node.account
        if isinstance(self.judgement, Usable) and self.judgement.claim:
            for name in (TOKEN, MARKER):
                folder.seal(pgdata, name, self._node.seal, account)
        if folder.repair_ownership(pgdata, account):
            log.warning("owner or mode of %s was wrong and is repaired", pgdata)

    # --- The folder for warming

    def begin_warmup(self) -> str | None:
        """Make the folder beside in which the memory is warmed, and return it; None where somebody else's is there.

        Raises PostgresError where a new cluster finds no room.
        """
        place = self.paths.warmup
        if not self._may_have_warmup():
            return None
        self.require_space()
        self._warms = True
        if not os.path.lexists(f"{self.paths.pgdata}/{TOKEN}"):
            self._claim_mount()
        folder.remove(place)
        folder.make_folder(place, self._node.account)
        folder.seal(place, TOKEN, self._node.seal, self._node.account, sync=False)
        return place

    def discard_warmup(self) -> None:
        """Remove it."""
        if self._warms:
            folder.remove(self.paths.warmup)
            self._give_mount_back()
            self._warms = False

    def _clear_warmup(self, cancellation: Cancellation) -> None:
        """Remove what a killed life was warming with."""
        place = self.paths.warmup
        if self._may_have_warmup():
            orphans.end((place, f"{place}/data"), cancellation)
            folder.remove(place)

    def _may_have_warmup(self) -> bool:
        return is_leftover_of(folder.facts_of(self.paths.warmup, self.paths), self._wish)


def require_parent(pgdata: str, account: Account | None) -> None:
    """Raise PgdataRefusedError where no folder can be made or entered at that place."""
    parent = Path(pgdata).parent
    problem = None
    if (closed := first_closed_parent(pgdata, account)) is not None:
        who = "this user" if account is None else f"the user {account.name}, who runs Postgres,"
        problem = f"{who} cannot enter {closed}: chmod o+x {closed}, or give another folder by -D"
    elif not parent.is_dir():
        what = "is not a folder" if parent.exists() else "does not exist"
        problem = f"its parent {parent} {what}: make it first (mkdir -p {parent})"
    elif not Path(pgdata).exists() and not os.access(parent, os.W_OK | os.X_OK):
        problem = f"this user may not write to its parent {parent}: open it, or give another folder by -D"
    if problem is not None:
        msg = f"PGDATA {pgdata} cannot be used: {problem}"
        raise PgdataRefusedError(msg, EXIT_FAILED)


def require_space(where: str) -> None:
    """Raise PostgresError where the file system of this folder has no room for a new cluster."""
    status = os.statvfs(where)
    if (free := status.f_bavail * status.f_frsize) < SPACE_NEEDED:
        msg = (
            f"{where} has {free >> 20} MB left, and a new cluster needs {SPACE_NEEDED >> 20}: free some space, "
            "or give another folder by -D"
        )
        raise PostgresError(msg)

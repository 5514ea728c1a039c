"""The real port: PGDATA on disk, Postgres as a process. One for each node; its methods run in jobs."""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from time import time
from typing import Final

from msgspec.structs import replace
from typing_extensions import override

from ...messages.failpoints import Failpoint
from ...messages.lifecycle import EXIT_FAILED
from ...messages.planning import SettingsCompared
from ...messages.postgres import PgdataKind, StopRung
from ...messages.settings import NodeSettings, SourceName
from ...messages.spec import Cluster, ComputeSpec, Mode
from ...postgres.accounts import Account, first_closed_parent, missing_passwd_entry
from ...postgres.binaries import Binaries
from ...postgres.conf import (
    OVERRIDE_FILE,
    OVERRIDE_TEXT,
    ConfContext,
    ConfError,
    ConfText,
    Listening,
    Standby,
    render,
)
from ...postgres.connection import parse_connstr, run_async
from ...postgres.hba import open_to_passwords, trusting
from ...postgres.masking import mask_server_words
from ...postgres.storage import StorageError
from ...postgres.upstream import parse
from ..kit.jobs import Cancellation
from ..kit.metrics import Metrics
from ..kit.programs import ProgramError, Starter, run
from . import (
    checking,
    confining,
    control,
    cores,
    folder,
    launcher,
    orphans,
    readiness,
    reload,
    segments,
    syncing,
)
from .control import read_state
from .disk import Area, blamed, is_about_space, look
from .launcher import Postmaster, environment
from .lock import FolderLock
from .logs import Framer, Pump, show
from .pgdata import (
    MARKER,
    TOKEN,
    Foreign,
    Place,
    Seal,
    SetAside,
    Usable,
    Wish,
    is_leftover_of,
    judge,
    recovery,
)
from .port import (
    Exit,
    Launch,
    PassingError,
    PgdataRefusedError,
    Port,
    PostgresError,
    Preparation,
    ProcessSink,
    Promotion,
)
from .run_folders import (
    SHARED_MEMORY,
    check_folder,
    link_shared_memory,
    make_private,
    plan_folder,
    remove_left_behind,
    remove_private,
    socket_folder,
    sync_folder,
    unlink_shared_memory,
)
from .sources import Source, SourceError
from .sources.initdb import InitdbSource, TemplateSource
from .sources.upstream import UpstreamSource

CHECK_TIMEOUT_S: Final = 30.0
NO_SPEC: Final = ComputeSpec(
    format_version=1.0, cluster=Cluster(roles=(), databases=()), suspend_timeout_seconds=-1
)
"""For an initdb in advance: none of them looks at it."""
REFUSED_AUTO_CONF: Final = f"{checking.AUTO_CONF}.refused"
SPACE_NEEDED: Final = 64 << 20
"""Bytes that a new cluster takes, roughly."""
PUMP_PATIENCE_S: Final = 5.0
LAST_WORDS_S: Final = 0.3
"""How long the log may take to arrive after the process has gone."""
LAST_SYNC_WORDS: Final = 3
"""How many log messages of a sync that failed go into its error."""
MAX_LAST_WORDS: Final = 400
"""Characters of each of the last log messages that go into an error."""

KILL: Final = ((launcher.SIGNALS[StopRung.KILL], 3.0),)
SWEEP: Final = ((launcher.SIGNALS[StopRung.IMMEDIATE], 1.0), *KILL)
"""How Postgres processes that outlived their postmaster are ended."""

log = logging.getLogger("compute_node.postgres_process")


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
        self._settings = settings
        self._binaries = binaries
        self._account = account
        self._starter = Starter(account, metrics=metrics, oom_score_adj=settings.oom_score_adj)
        self._metrics = metrics
        self._sink = sink
        self._target = parse_connstr(settings.connstr.reveal())
        self._pgdata = os.path.abspath(settings.pgdata)  # noqa: PTH100 - links stay as they were given
        self._wish = Wish(
            compute_id=settings.compute_id,
            path=self._pgdata,
            major=binaries.major,
            fresh=settings.fresh,
            source=settings.source.value,
            set_aside=settings.set_aside_pgdata,
            claim=settings.claim_pgdata,
        )
        self._lock = FolderLock()
        self._pump = Pump()
        # Written by one job at a time: inspect, prepare, launch, tidy follow each other.
        self._paths = folder.Paths(self._pgdata, is_mount=False)
        self._judgement: Usable | SetAside | None = None
        self._keeps = False
        self._promoted = False
        """It was a replica and has become a primary; of the source `upstream`, perhaps in an earlier life."""
        self._at_least: tuple[tuple[str, int], ...] = ()
        """What a hot standby needs of the settings that its primary has."""
        self._built = False
        self._template: str | None = None
        """A new cluster that was made in advance, and that nobody has touched."""
        self._warms = False
        """The folder for warming is there, and ours."""
        self._tamed: str | None = None
        """What is to stay of ALTER SYSTEM's file; None: all of it."""
        self._start_lsn = 0
        """Where a base backup is to begin; 0: at the latest."""
        self._in_force: ComputeSpec | None = None
        """Whose configuration was written last."""
        self._clean_branch: str | None = None
        """The branch of which no inherited subscription is left."""
        self._postmaster: Postmaster | None = None
        self._launched_wall_s = 0.0
        self._socket_folder: str | None = None
        self._shared_memory: str | None = None

    @property
    def pgdata(self) -> str:
        """The absolute path of the data directory."""
        return self._pgdata

    def release(self) -> None:
        """Give the lock on the folder back; for whoever makes more than one node in a process."""
        self._lock.release()

    # --- Inspecting

    @override
    def inspect(self, cancellation: Cancellation) -> PgdataKind:
        try:
            return self._inspect(cancellation)
        except OSError as error:
            msg = f"PGDATA cannot be looked at: {error.filename or self._pgdata}: {error.strerror or error}"
            raise PgdataRefusedError(msg, EXIT_FAILED) from error
        except PgdataRefusedError:
            raise
        except PostgresError as error:
            raise PgdataRefusedError(str(error), EXIT_FAILED) from error

    def _inspect(self, cancellation: Cancellation) -> PgdataKind:
        self._require_parent()
        self._paths = folder.Paths(self._pgdata, folder.is_mount(self._pgdata))
        self._lock.take(self._paths, self._settings.compute_id, cancellation)
        cancellation.reach(Failpoint.INSPECT_LOCKED)
        place = folder.look(self._paths)
        judgement = self._judge(place)
        if isinstance(judgement, SetAside):
            log.warning("%s: it is renamed aside when the new one is complete", judgement.reason)
            # What an earlier life was making beside it.
            orphans.end((self._paths.built, self._paths.building), cancellation)
            folder.remove(self._paths.building)
            self._judgement = judgement
            return PgdataKind.FOREIGN
        if not judgement.claim:
            orphans.end(
                (self._pgdata, self._paths.built, self._paths.building, self._paths.old), cancellation
            )
            self._clear_warmup(cancellation)
            cancellation.reach(Failpoint.INSPECT_CLEARED)
            plan = recovery(place, self._wish)
            if plan.move_forward or plan.move_back:
                log.warning(
                    "an earlier start was interrupted while it renamed %s: finishing that", self._pgdata
                )
            folder.recover(self._paths, plan, cancellation)
            cancellation.reach(Failpoint.INSPECT_RECOVERED)
            judgement = self._judge(folder.look(self._paths))
            remove_left_behind(self._pgdata, self._account)
        elif orphans.working_in((self._pgdata,)):
            self._refuse_live()
        assert isinstance(judgement, Usable)  # noqa: S101 - what is ours does not become foreign
        self._judgement = judgement
        self._keeps = judgement.kind is PgdataKind.OURS_COMPLETE and not self._wish.fresh
        self._promoted = self._keeps and self._settings.source is SourceName.UPSTREAM
        return judgement.kind

    def _clear_warmup(self, cancellation: Cancellation) -> None:
        """Remove what a killed life was warming with."""
        place = self._paths.warmup
        if self._warmup_is_taken():
            return
        orphans.end((place, f"{place}/data"), cancellation)
        folder.remove(place)

    def _judge(self, place: Place) -> Usable | SetAside:
        judgement = judge(place, self._wish)
        if isinstance(judgement, Foreign):
            raise PgdataRefusedError(judgement.text, EXIT_FAILED)
        if isinstance(judgement, SetAside) and orphans.working_in((self._pgdata,)):
            self._refuse_live()
        return judgement

    def _refuse_live(self) -> None:
        pids = ", ".join(map(str, orphans.working_in((self._pgdata,))))
        msg = (
            f"{self._pgdata} is in use by Postgres processes that this node did not start ({pids}): stop them"
        )
        raise PgdataRefusedError(msg, EXIT_FAILED)

    def _require_parent(self) -> None:
        parent = Path(self._pgdata).parent
        problem = None
        if (closed := first_closed_parent(self._pgdata, self._account)) is not None:
            who = (
                "this user" if self._account is None else f"the user {self._account.name}, who runs Postgres,"
            )
            problem = f"{who} cannot enter {closed}: chmod o+x {closed}, or give another folder by -D"
        elif not parent.is_dir():
            what = "is not a folder" if parent.exists() else "does not exist"
            problem = f"its parent {parent} {what}: make it first (mkdir -p {parent})"
        elif not Path(self._pgdata).exists() and not os.access(parent, os.W_OK | os.X_OK):
            problem = f"this user may not write to its parent {parent}: open it, or give another folder by -D"
        if problem is not None:
            msg = f"PGDATA {self._pgdata} cannot be used: {problem}"
            raise PgdataRefusedError(msg, EXIT_FAILED)

    # --- Checking

    @override
    def check(
        self, spec: ComputeSpec, cancellation: Cancellation, *, promoting: bool = False
    ) -> tuple[str, ...]:
        with self._blaming_the_disk():
            scratch = check_folder(self._pgdata, self._account)
            return self._check(spec, scratch, cancellation, promoting=promoting)

    def _check(
        self, spec: ComputeSpec, scratch: str, cancellation: Cancellation, *, promoting: bool = False
    ) -> tuple[str, ...]:
        refused, warnings = checking.not_built(spec)
        if refused is not None:
            raise PostgresError(refused)
        self._require_mode(spec, promoting=promoting)
        self._require_source(spec, promoting=promoting)
        conf = self._render(spec)
        around = checking.Surroundings(
            host=self._target.host,
            port=self._target.port,
            major=self._binaries.major,
            pgdata=self._pgdata,
            socket_folder=socket_folder(self._pgdata, self._account),
            account=self._account,
            library_folder=self._binaries.library_folder,
        )

        def refuses(auto_conf: str) -> str | None:
            found = checking.problems(conf, replace(around, auto_conf=auto_conf))
            if found:
                return f"Postgres would not work with the configuration: {'; '.join(found)}"
            return self._ask_postgres(conf, auto_conf, scratch, cancellation)

        auto_conf = self._auto_conf()
        taken_out: tuple[str, ...] = ()
        if (why := refuses(auto_conf)) is not None:
            if (why_anyway := refuses("") if auto_conf else why) is not None:
                raise PostgresError(why_anyway)
            auto_conf, taken_out = self._tame(auto_conf, refuses)
        overridden = checking.overridden(conf, replace(around, auto_conf=auto_conf))
        scarce = checking.scarce_shared_memory(conf, around, _shared_memory())
        unused = checking.unused_resources(
            spec, swap=self._settings.resize_swap, quota=self._settings.disk_quota_mount is not None
        )
        once = (*unused, *filter(None, [scarce])) if self._postmaster is None else ()
        if self._is_plain:
            warnings += checking.unused_storage(spec)
        if self._standby(spec) is not None:
            warnings += checking.overruled(spec)
        return (*warnings, *taken_out, *overridden, *once)

    def _tame(self, auto_conf: str, refuses: Callable[[str], str | None]) -> tuple[str, tuple[str, ...]]:
        """Find what ALTER SYSTEM has left that keeps Postgres from starting; return the rest, and warnings."""
        rest, refusals = checking.without_refused(auto_conf, refuses)
        starting = self._postmaster is None
        if starting:
            self._tamed = rest
        done = (
            f"it is taken out; the file as it was is kept as {REFUSED_AUTO_CONF}"
            if starting
            else "the next start takes it out"
        )
        return rest, tuple(
            f"ALTER SYSTEM has set `{one.setting}` (line {one.line} of {checking.AUTO_CONF}), with which Postgres "
            f"would not start: {done}. {one.why}"
            for one in refusals
        )

    def _require_mode(self, spec: ComputeSpec, *, promoting: bool) -> None:
        """Raise PostgresError for a spec of another mode than that in which Postgres runs."""
        if self._in_force is None or promoting or spec.compute_mode is self._in_force.compute_mode:
            return
        now, asked = self._in_force.compute_mode, spec.compute_mode
        way = (
            "`POST /promote` makes a primary of it" if now is Mode.REPLICA else "start another node for that"
        )
        msg = f"this node runs in the mode {now.value!r}, and a configuration cannot change that to {asked.value!r}: {way}"
        raise PostgresError(msg)

    def _require_source(self, spec: ComputeSpec, *, promoting: bool = False) -> None:
        """Raise PostgresError unless the source can make what the spec asks for."""
        source, problem = self._settings.source, None
        if source is SourceName.INITDB:
            problem = checking.local_problem(spec)
        elif source is SourceName.PAGESERVER:
            from .sources.pageserver import missing_extra

            problem = checking.storage_problem(spec) or missing_extra(spec)
        elif source is SourceName.UPSTREAM:
            problem = checking.upstream_problem(spec, promoted=self._promoted or promoting)
        if problem is not None:
            raise PostgresError(problem)

    def _render(self, spec: ComputeSpec) -> ConfText:
        listening = Listening(self._target.port, socket_folder(self._pgdata, self._account))
        context = ConfContext(
            internal_http_port=self._settings.internal_http_port,
            privileged_role_name=self._settings.privileged_role_name,
            listening=listening if self._is_plain else None,
            strict_overcommit=_strict_overcommit(),
            subscribers=self._clean_branch == spec.branch,
            default_preload=("neon",) if self._is_neon() else (),
            standby=self._standby(spec),
            promoted=self._promoted and not self._is_plain,
        )
        try:
            return render(spec, context)
        except ConfError as error:
            raise PostgresError(str(error)) from error

    @property
    def _is_plain(self) -> bool:
        """Whether the cluster is of the machine's own Postgres, without Neon's storage below it."""
        return self._settings.source is not SourceName.PAGESERVER

    def _standby(self, spec: ComputeSpec) -> Standby | None:
        follows = self._settings.source is SourceName.UPSTREAM and spec.compute_mode is Mode.REPLICA
        if not follows or spec.upstream_conninfo is None:
            return None
        try:
            conninfo = parse(spec.upstream_conninfo).standby_conninfo(self._settings.compute_id)
        except ValueError as error:
            raise PostgresError(str(error)) from error
        return Standby(conninfo, spec.upstream_slot_name, self._at_least)

    def _ask_postgres(
        self, conf: ConfText, auto_conf: str, scratch: str, cancellation: Cancellation
    ) -> str | None:
        """Return why Postgres refuses this configuration. Raises PostgresError when it cannot be asked."""
        remove_private(scratch, self._account)
        make_private(scratch, self._account)
        try:
            texts = {"postgresql.conf": conf.text, checking.AUTO_CONF: auto_conf, OVERRIDE_FILE: ""}
            for name, text in texts.items():
                content = text.encode(errors="surrogateescape")
                folder.write_file(f"{scratch}/{name}", content, account=self._account, sync=False)
            cancellation.reach(Failpoint.CHECK_WRITTEN)
            result = run(
                [
                    self._binaries.postgres,
                    "-C",
                    "port",
                    "-D",
                    scratch,
                    f"--config-file={scratch}/postgresql.conf",
                ],
                starter=self._starter,
                env=environment(os.environ) | {"LC_ALL": "C"},
                cwd=scratch,
                timeout_s=CHECK_TIMEOUT_S,
                cancellation=cancellation,
            )
        finally:
            remove_private(scratch, self._account)
        cancellation.reach(Failpoint.CHECK_ASKED)
        return checking.explain(result.output, conf, scratch, self._pgdata) if result.code != 0 else None

    def _auto_conf(self) -> str:
        if not self._keeps and self._postmaster is None:
            return ""
        try:
            return Path(self._pgdata, checking.AUTO_CONF).read_text(
                encoding="utf-8", errors="surrogateescape"
            )
        except FileNotFoundError:
            return ""

    def _is_neon(self) -> bool:
        libraries = self._binaries.library_folder
        return libraries is not None and Path(libraries, "neon.so").exists()

    # --- Comparing

    @override
    def compare(self, spec: ComputeSpec, cancellation: Cancellation) -> SettingsCompared:
        from psycopg import Error

        from . import comparing

        refused: str | None = None
        warnings: tuple[str, ...] = ()
        try:
            with self._blaming_the_disk():
                warnings = self._check(spec, plan_folder(self._pgdata, self._account), cancellation)
        except PostgresError as error:
            refused = str(error)
        try:
            described = comparing.values(self._render(spec).text)
        except PostgresError as error:
            return SettingsCompared(refused=refused or str(error))
        try:
            known = run_async(lambda: comparing.look(self._target), cancellation)
        except (Error, TimeoutError) as error:
            msg = f"Postgres cannot be asked for its settings: {' '.join(str(error).split())}"
            raise PostgresError(msg) from error
        now, altered = comparing.values(self._conf()), comparing.values(self._auto_conf())
        return SettingsCompared(
            comparing.changes(now, described, altered, known),
            comparing.drift(now, described, altered, known),
            refused,
            warnings,
        )

    def _conf(self) -> str:
        conf = Path(self._pgdata, "postgresql.conf")
        return conf.read_text(encoding="utf-8", errors="surrogateescape")

    # --- Safekeepers

    @override
    def check_safekeepers(self, spec: ComputeSpec, cancellation: Cancellation) -> int | None:
        from . import safekeepers

        try:
            verdict = run_async(
                lambda: safekeepers.check(spec, self._settings.safekeeper_check_timeout_s), cancellation
            )
        except StorageError as error:
            raise PostgresError(str(error)) from error
        if isinstance(verdict, safekeepers.Agreed):
            return verdict.lsn
        log.warning("the safekeepers are to be synced: %s", verdict.why)
        return None

    @override
    def sync_safekeepers(self, spec: ComputeSpec, limit_s: float, cancellation: Cancellation) -> int:
        if self._postmaster is not None:
            return self._sync_in(self._pgdata, spec, limit_s, cancellation)
        scratch = sync_folder(self._pgdata, self._account)
        remove_private(scratch, self._account)
        make_private(scratch, self._account)
        try:
            for name, text in (("postgresql.conf", self._render(spec).text), (OVERRIDE_FILE, "")):
                folder.write_file(f"{scratch}/{name}", text.encode(), account=self._account, sync=False)
            return self._sync_in(scratch, spec, limit_s, cancellation)
        finally:
            remove_private(scratch, self._account)

    def _sync_in(self, where: str, spec: ComputeSpec, limit_s: float, cancellation: Cancellation) -> int:
        from .safekeepers import read_lsn

        framer = Framer()
        last: deque[str] = deque(maxlen=LAST_SYNC_WORDS)

        def hand_on(messages: list[str]) -> None:
            for message in map(mask_server_words, messages):
                last.append(message)
                show(message)

        result = run(
            [self._binaries.postgres, "--sync-safekeepers"],
            starter=self._starter,
            env=environment(os.environ, storage_token=spec.storage_auth_token) | {"PGDATA": where},
            cwd=where,
            timeout_s=limit_s,
            cancellation=cancellation,
            leftovers=segments.of_servers,
            said=lambda data: hand_on(framer.feed(data)),
        )
        hand_on(framer.finish())
        code = None if result.code == 0 else launcher.describe_code(result.code)
        return read_lsn(code, result.output, tuple(last))

    # --- Warming

    @override
    def warm(self, cancellation: Cancellation) -> None:
        from . import warming

        if self._warmup_is_taken():
            log.info("the memory is not warmed: somebody else has put something at %s", self._paths.warmup)
            return
        self._require_space()
        log.info("prewarming VM memory")
        place = self._paths.warmup
        quiet = Cancellation()  # a failpoint of the start that follows is not for this
        cancellation.on_request(quiet.request)
        self._warms = True
        if not os.path.lexists(f"{self._pgdata}/{TOKEN}"):
            self._claim_mount()
        folder.remove(place)
        folder.make_folder(place, self._account)
        folder.seal(place, TOKEN, self._seal(), self._account, sync=False)
        template = f"{place}/{warming.TEMPLATE}"
        env = environment(os.environ)
        initdb = InitdbSource(self._binaries, self._starter, self._target.user, env)
        try:
            initdb.build(template, NO_SPEC, quiet, sync=True)
        except SourceError as error:
            raise PostgresError(str(error)) from error
        if self._settings.source is SourceName.INITDB and not self._keeps:
            self._template = template
        warmer = warming.Warmer(self._binaries, self._starter, self._account, self._sink, env, place)
        warmer.run(quiet, neon=self._is_neon())
        log.info("done prewarming vm memory")

    def _warmup_is_taken(self) -> bool:
        return not is_leftover_of(folder.facts_of(self._paths.warmup, self._paths), self._wish)

    def _discard_warmup(self) -> None:
        """Remove what warming has made, the template too."""
        self._template = None
        if self._warms:
            folder.remove(self._paths.warmup)
            self._give_mount_back()
            self._warms = False

    # --- Preparing

    @override
    def prepare(self, spec: ComputeSpec, start_lsn: int, cancellation: Cancellation) -> Preparation:
        self._start_lsn = start_lsn
        with self._blaming_the_disk():
            return self._prepare(spec, cancellation)

    def _prepare(self, spec: ComputeSpec, cancellation: Cancellation) -> Preparation:
        self._require_source(spec)
        if self._keeps:
            return Preparation(kept=True)
        if self._account is None and (problem := missing_passwd_entry()) is not None:
            raise PostgresError(problem)
        self._require_space()
        cancellation.reach(Failpoint.PREPARE_BEGUN)
        paths, seal = self._paths, self._seal()
        self._built = True
        try:
            folder.remove(paths.building)
            self._claim_mount()
            folder.make_folder(paths.building, self._account)
            if not paths.is_mount:
                folder.seal(paths.building, TOKEN, seal, self._account)
            cancellation.reach(Failpoint.PREPARE_TOKEN)
            # What comes from storage is made anew by every start: no crash of the machine lets it be served.
            durable = self._settings.source is not SourceName.PAGESERVER
            with syncing.of_all(paths.building) if durable else contextlib.nullcontext() as whole:
                each = durable and whole is None
                try:
                    stages = self._source().build(paths.built, spec, cancellation, sync=each)
                except SourceError as error:
                    kind = PassingError if error.passing else PostgresError
                    raise kind(str(error)) from error
                if self._settings.source is SourceName.UPSTREAM:
                    self._at_least = control.at_least(self._control_data(paths.built, cancellation))
                folder.seal(paths.built, TOKEN, seal, self._account, sync=each)
                self._write_texts(paths.built, self._render(spec), cancellation, sync=each)
                if whole is not None:
                    whole.sync()
            cancellation.reach(Failpoint.PREPARE_UNSEALED)
            folder.seal(paths.built, MARKER, seal, self._account)
            folder.sync_folder(paths.building)
            cancellation.reach(Failpoint.PREPARE_SEALED)
        except BaseException:
            self._discard_built()
            raise
        return Preparation(kept=False, stages=stages)

    def _require_space(self) -> None:
        where = self._pgdata if self._paths.is_mount else str(Path(self._pgdata).parent)
        status = os.statvfs(where)
        if (free := status.f_bavail * status.f_frsize) < SPACE_NEEDED:
            msg = (
                f"{where} has {free >> 20} MB left, and a new cluster needs {SPACE_NEEDED >> 20}: free some space, "
                "or give another folder by -D"
            )
            raise PostgresError(msg)

    def _source(self) -> Source:
        if self._settings.source is SourceName.PAGESERVER:
            from .sources.pageserver import PageserverSource

            return PageserverSource(self._account, self._binaries.major, self._start_lsn, self._metrics)
        env, user = environment(os.environ), self._target.user
        if self._settings.source is SourceName.UPSTREAM:
            return UpstreamSource(
                self._binaries,
                self._starter,
                self._account,
                user,
                env,
                before_copying=self._make_room,
                metrics=self._metrics,
            )
        if self._template is not None:
            return TemplateSource(self._template)
        return InitdbSource(self._binaries, self._starter, user, env)

    def _make_room(self) -> None:
        """Delete the copy of an earlier life: it would not be served again, and two may be more than the disk holds."""
        if isinstance(self._judgement, Usable):
            folder.clear_place(self._paths)

    def _control_data(self, pgdata: str, cancellation: Cancellation) -> str:
        command = [self._binaries.sibling("pg_controldata"), "-D", pgdata]
        env = environment(os.environ) | {"LC_ALL": "C"}
        result = run(
            command,
            starter=self._starter,
            env=env,
            cwd=pgdata,
            timeout_s=CHECK_TIMEOUT_S,
            cancellation=cancellation,
        )
        if result.code != 0:
            msg = f"the copy of the upstream cannot be read: {result.output.strip()}"
            raise PostgresError(msg)
        return result.output

    def _seal(self) -> Seal:
        return Seal(
            compute_id=self._settings.compute_id,
            path=self._pgdata,
            major=self._binaries.major,
            source=self._settings.source.value,
        )

    def _discard_built(self) -> None:
        if not self._built:
            return
        segments.remove_of((self._paths.built,))
        folder.remove(self._paths.building)
        self._give_mount_back()
        self._built = False

    def _claim_mount(self) -> None:
        """Let the token stand in a mount point before anything else does: without it the next start calls that foreign."""
        if self._paths.is_mount:
            folder.own(self._pgdata, self._account)
            folder.seal(self._pgdata, TOKEN, self._seal(), self._account)

    def _give_mount_back(self) -> None:
        """Leave a mount point empty in which nothing of ours has come to be."""
        if self._paths.is_mount and os.listdir(self._pgdata) == [TOKEN]:  # noqa: PTH208 - names, not paths
            Path(self._pgdata, TOKEN).unlink()

    # --- Launching

    @override
    def pump_logs(self, no_space: Callable[[], None], cancellation: Cancellation) -> None:
        self._pump.run(no_space, cancellation)

    @override
    def launch(self, spec: ComputeSpec, cancellation: Cancellation) -> Launch:
        with self._blaming_the_disk():
            return self._launch(spec, cancellation)

    def _launch(self, spec: ComputeSpec, cancellation: Cancellation) -> Launch:
        conf = self._render(spec)
        if isinstance(self._judgement, Usable):
            orphans.end((self._pgdata,), cancellation)
        cancellation.reach(Failpoint.LAUNCH_CLEARED)
        self._put_in_place(cancellation)
        self._discard_warmup()
        cancellation.reach(Failpoint.LAUNCH_PLACED)
        self._write_files(spec, conf, cancellation)
        cancellation.reach(Failpoint.FILES_WRITTEN)
        recovering = self._keeps and not _was_shut_down(self._pgdata)  # a copy of a running primary too
        confinement = confining.NOT_CONFINED
        if self._settings.autoscaling and self._settings.cgroup:
            confinement = confining.plan(self._settings.cgroup, self._starter, cancellation)
        writer = self._pump.open(PUMP_PATIENCE_S)
        if writer is None:
            msg = "Postgres was not started: nobody reads its log"
            raise PostgresError(msg)
        try:
            self._launched_wall_s = time()
            self._postmaster = launcher.launch(
                self._binaries,
                self._pgdata,
                port=self._target.port if self._is_plain else None,
                starter=self._starter,
                # SQL users can read it; without a pageserver it is of no use.
                storage_token=None if self._is_plain else spec.storage_auth_token,
                output=writer,
                cancellation=cancellation,
                confinement=confinement,
            )
        finally:
            os.close(writer)
        self._sink.started(self._postmaster.pid)
        cancellation.reach(Failpoint.LAUNCHED, cancellable=False)
        return Launch(self._postmaster.pid, recovering)

    def _put_in_place(self, cancellation: Cancellation) -> None:
        paths = self._paths
        if self._keeps:
            if isinstance(self._judgement, Usable) and self._judgement.claim:
                for name in (TOKEN, MARKER):
                    folder.seal(paths.pgdata, name, self._seal(), self._account)
            if folder.repair_ownership(paths.pgdata, self._account):
                log.warning("owner or mode of %s was wrong and is repaired", paths.pgdata)
            return
        aside = None
        if isinstance(self._judgement, SetAside):
            numbers = folder.look(paths).asides
            aside = paths.aside(max(numbers, default=0) + 1)
            log.warning("%s is renamed to %s", paths.pgdata, aside)
        elif left := folder.tablespaces(paths.pgdata):
            log.warning("the tablespaces of the PGDATA that is replaced stay behind: %s", ", ".join(left))
        folder.place(paths, cancellation, aside=aside)
        self._built = False
        self._keeps = True

    def _write_files(self, spec: ComputeSpec, conf: ConfText, cancellation: Cancellation) -> None:
        pgdata, account = self._pgdata, self._account
        if self._tamed is not None:
            auto_conf = f"{pgdata}/{checking.AUTO_CONF}"
            folder.write_file(f"{pgdata}/{REFUSED_AUTO_CONF}", Path(auto_conf).read_bytes(), account=account)
            folder.write_file(auto_conf, self._tamed.encode(errors="surrogateescape"), account=account)
        self._write_texts(pgdata, conf, cancellation, sync=True)
        self._override(self._lifted(spec))
        self._in_force = spec
        self._socket_folder = socket_folder(pgdata, account)
        remove_private(self._socket_folder, account)
        make_private(self._socket_folder, account)
        self._shared_memory = link_shared_memory(pgdata, account)

    def _write_texts(self, where: str, conf: ConfText, cancellation: Cancellation, *, sync: bool) -> None:
        """Write what we have to say in a PGDATA, as far as it does not stand there yet."""
        hba = Path(where, "pg_hba.conf")
        before = hba.read_text(encoding="utf-8", errors="surrogateescape") if hba.exists() else ""
        after = open_to_passwords(before)
        if self._settings.source is SourceName.UPSTREAM:
            after = trusting(after, self._target.user)  # the primary's own rules know nothing of this node
        # The override is empty: a crash may have left the limit lifted, and Postgres logs it when there is none.
        texts = {"postgresql.conf": conf.text, OVERRIDE_FILE: "", hba.name: after}
        for name, text in texts.items():
            content = text.encode(errors="surrogateescape")
            if not folder.holds(f"{where}/{name}", content):
                folder.write_file(f"{where}/{name}", content, account=self._account, sync=sync)
            if name == "postgresql.conf":
                cancellation.reach(Failpoint.FILES_CONF)
        if after != before:
            log.info("updated pg_hba.conf to allow external connections")
        else:
            log.info("pg_hba.conf is up-to-date")

    @override
    def await_ready(self, limit_s: float | None, cancellation: Cancellation) -> bool:
        postmaster = self._running()
        has_exited = postmaster.exited.is_set
        cancellation.reach(Failpoint.AWAIT_READY)
        if not readiness.wait(self._pgdata, postmaster.pid, has_exited, limit_s, cancellation):
            return False
        cancellation.reach(Failpoint.READY_SEEN)
        return True

    @override
    def await_exit(self, cancellation: Cancellation) -> Exit:
        code = self._running().wait(cancellation)
        self._sink.ended()
        cancellation.reach(Failpoint.EXIT_SEEN, cancellable=False)
        self._pump.ended.wait(LAST_WORDS_S)
        state = read_state(self._pgdata)
        how = (
            "in an unknown state" if state is None else "shut down in order" if state.is_clean else "unclean"
        )
        words = [message[:MAX_LAST_WORDS] for message in self._pump.last_messages]
        said = "".join(f"\n  {word}" for word in words) or " nothing"
        text = f"Postgres ended ({launcher.describe_code(code)}), its cluster is {how}; its last words:{said}"
        clean = state is not None and state.is_clean
        return Exit(blamed(text, self._areas()), launcher.has_failed(code, clean=clean))

    # --- While it runs

    @override
    def look_at_disk(self) -> tuple[Area, ...]:
        return look(self._pgdata)

    def _areas(self) -> tuple[Area, ...]:
        """Look at the disk for an error's sake, which must not hide behind another."""
        try:
            return self.look_at_disk()
        except OSError:
            return ()

    @contextlib.contextmanager
    def _blaming_the_disk(self) -> Iterator[None]:
        """Let an error that comes of a full disk say so, and what to do."""
        try:
            yield
        except (PostgresError, ProgramError, OSError) as error:
            if not is_about_space(str(error)):
                raise
            raise PostgresError(blamed(str(error), self._areas())) from error

    @override
    def install(self, spec: ComputeSpec, cancellation: Cancellation) -> tuple[str, ...]:
        with self._blaming_the_disk():
            return self._install(spec, cancellation)

    def _install(self, spec: ComputeSpec, cancellation: Cancellation) -> tuple[str, ...]:
        load = self._running().reload
        self._override(self._lifted(spec))
        try:
            pending = reload.install(
                self._render(spec),
                self._pgdata,
                self._target,
                account=self._account,
                reload=load,
                cancellation=cancellation,
            )
        except BaseException:
            if self._override(""):
                load()
            raise
        self._in_force = spec
        return pending

    @override
    def promote(self, spec: ComputeSpec, wal_flush_lsn: str | None, cancellation: Cancellation) -> Promotion:
        from . import promoting

        began_s = cancellation.now()
        standby = promoting.catch_up(self._target, wal_flush_lsn, cancellation)
        caught_up_s = cancellation.now()
        before, self._promoted = self._promoted, True
        try:
            if standby and not self._is_plain:
                self._install(spec, cancellation)
            if standby:
                cancellation.reach(Failpoint.PROMOTION)
                promoting.promote(self._target, cancellation)
            promoting.see_that_it_writes(self._target, cancellation)
        except BaseException:
            self._promoted = before
            raise
        self._in_force = replace(spec, mode="Primary")
        done_s = cancellation.now()
        return Promotion(round((caught_up_s - began_s) * 1000), round((done_s - caught_up_s) * 1000))

    @override
    def settle(self, spec: ComputeSpec, cancellation: Cancellation, *, subscribers: bool) -> None:
        if subscribers and spec.drop_subscriptions_before_start:
            self._clean_branch = spec.branch
        if self._in_force != spec:
            return
        changed = self._override("")
        conf, path = self._render(spec).text.encode(), f"{self._pgdata}/postgresql.conf"
        if not folder.holds(path, conf):
            folder.write_file(path, conf, account=self._account)
            log.info(
                "updated postgresql.conf to set neon.disable_logical_replication_subscribers=%s",
                str(not subscribers).lower(),
            )
            changed = True
        if changed:
            self._running().reload()

    def _lifted(self, spec: ComputeSpec) -> str:
        """Return what holds while SQL is applied; only Neon's storage has a size limit."""
        return OVERRIDE_TEXT if self._is_neon() and spec.applies_sql else ""

    def _override(self, text: str) -> bool:
        """Put this into the file that is included last, which is there; returns whether it was something else.

        Raises OSError when it is not: then the volume has vanished, and nothing is to be written in its place.
        """
        path = Path(self._pgdata, OVERRIDE_FILE)
        if path.read_bytes() == text.encode():
            return False
        folder.write_file(str(path), text.encode(), account=self._account)
        return True

    # --- Stopping

    @override
    def signal(self, rung: StopRung) -> None:
        if self._postmaster is not None:
            self._postmaster.send(rung)

    @override
    def kill(self, cancellation: Cancellation) -> None:
        cancellation.reach(Failpoint.KILL_BEGUN)
        self.signal(StopRung.KILL)
        orphans.end((self._pgdata,), cancellation, ladder=KILL)

    @override
    def tidy(self, cancellation: Cancellation) -> None:
        if not self._lock.held or self._judgement is None:
            return
        cancellation.reach(Failpoint.TIDY_BEGUN)
        if self._postmaster is not None:
            orphans.end((self._pgdata,), cancellation, ladder=SWEEP)
        cancellation.reach(Failpoint.TIDY_SWEPT)
        self._discard_built()
        self._discard_warmup()
        if self._shared_memory is not None:
            unlink_shared_memory(self._pgdata, self._shared_memory, self._account)
            self._shared_memory = None
        if self._socket_folder is not None:
            remove_private(self._socket_folder, self._account)
            self._socket_folder = None
        self._sink.tidied()

    @override
    def report_cores(self, cancellation: Cancellation) -> None:
        cores.report(
            cores.find(self._pgdata, self._launched_wall_s),
            self._binaries.postgres,
            starter=self._starter,
            env=environment(os.environ),
            cancellation=cancellation,
        )

    def _running(self) -> Postmaster:
        if self._postmaster is None:
            msg = "Postgres was not started"
            raise PostgresError(msg)
        return self._postmaster


def _was_shut_down(pgdata: str) -> bool:
    state = read_state(pgdata)
    return state is not None and state.is_clean


def _shared_memory() -> int | None:
    """Return the size of the place for shared memory; None where it cannot be told."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize


def _strict_overcommit() -> bool:
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False

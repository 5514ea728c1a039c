"""From the options of the command line to everything that a node needs to know before its first actor."""

import os
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from ..actors.kit.turn import Moment
from ..actors.supervisor.actor import ReadSpec
from ..actors.system import Launch
from ..messages.settings import NodeSettings
from ..messages.spec import ComputeConfig, ControlPlaneConfig
from ..postgres.accounts import AccountError, missing_passwd_entry, resolve_account
from ..postgres.binaries import Binaries, BinariesError, discover, reachable
from ..process import init
from ..process.configuration import (
    ConfigurationError,
    read_bare_spec,
    read_config,
    unknown_parts_in,
    unknown_parts_of,
)
from ..process.limits import oom_score_adj
from ..process.signals import SignalPipe
from .options import Options


class StartError(Exception):
    """The node cannot begin: its files or programs are not usable; the message says what to do."""


def prepare(
    options: Options,
    began: Moment,
    signals: SignalPipe,
    dropped_lines: Callable[[], int] = lambda: 0,
    found: Future[Binaries] | None = None,
) -> Launch:
    """Get the configuration and find Postgres, unless that was begun before.

    Raises StartError; and StoppedError when a signal came while the control plane was asked.
    """
    try:
        described = _ask(options, signals) if options.control_plane_uri is not None else _read(options)
        account = resolve_account(options.postgres_user)
        binaries = reachable(discover(options.pgbin) if found is None else found.result(), account)
    except (ConfigurationError, AccountError, BinariesError) as error:
        raise StartError(str(error)) from None
    if account is None and (problem := missing_passwd_entry()) is not None:
        raise StartError(problem)
    settings = NodeSettings(
        compute_id=options.compute_id,
        pgdata=os.path.abspath(options.pgdata),  # noqa: PTH100 - a link in it is not to be resolved
        connstr=options.connstr,
        postgres_bin=binaries.postgres,
        config=described.config.compute_ctl_config,
        config_path=options.config or options.spec,
        control_plane_uri=options.control_plane_uri,
        source=options.source,
        fresh=options.fresh,
        warms_memory=options.warms_memory,
        set_aside_pgdata=options.set_aside_pgdata,
        claim_pgdata=options.claim_pgdata,
        postgres_user=None if account is None else account.name,
        external_http_port=options.external_http_port,
        internal_http_port=options.internal_http_port,
        http_host=options.http_host,
        privileged_role_name=options.privileged_role_name,
        dev=options.dev,
        start_timeout_s=options.start_timeout_s,
        stop_timeout_s=options.stop_timeout_s,
        lfc_store=options.lfc_store,
        lfc_offload_on_stop=options.lfc_offload_on_stop,
        safekeeper_check_timeout_s=options.safekeeper_check_timeout_s,
        oom_score_adj=oom_score_adj(),
        installed_extensions_interval_s=options.installed_extensions_collection_interval,
        autoscaling=options.autoscaling,
        cgroup=options.cgroup,
        vm_monitor_address=options.vm_monitor_addr,
        file_cache_connstr=options.filecache_connstr,
        resize_swap=options.resize_swap_on_bind,
        disk_quota_mount=options.set_disk_quota_for_fs,
        build_tag=os.environ.get("BUILD_TAG") or "latest",
    )
    return Launch(
        settings=settings,
        spec=described.config.spec,
        binaries=binaries,
        account=account,
        read_spec=described.read_again,
        control_plane_requests=described.attempts,
        began=began,
        dropped_lines=dropped_lines,
        orphans_reaped=init.reaped,
        unknown_parts=described.unknown_parts,
        failpoints=options.failpoints,
        warnings=options.warnings,
    )


class _Described(msgspec.Struct, frozen=True):
    """The node's description, and how to get it again."""

    config: ComputeConfig
    unknown_parts: Callable[[], tuple[str, ...]]
    read_again: ReadSpec
    attempts: tuple[str, ...] = ()
    """What came back of each request to the control plane."""


def _read(options: Options) -> _Described:
    """Read the file. Raises ConfigurationError."""
    bare = options.config is None
    path = options.config or options.spec
    assert path is not None  # noqa: S101 - the command line saw to it
    read = read_bare_spec if bare else read_config
    return _Described(
        config=read(path),
        unknown_parts=lambda: unknown_parts_of(path, bare=bare),
        read_again=lambda _cancellation, _count: read(path).spec,
    )


def _ask(options: Options, signals: SignalPipe) -> _Described:
    """Ask the control plane. Raises ConfigurationError and StoppedError."""
    from ..process.control_plane import ControlPlane, fetch, fetch_first

    plane = ControlPlane(str(options.control_plane_uri), options.compute_id, options.control_plane_token)
    try:
        fetched, attempts = fetch_first(plane, signals)
    except ConfigurationError as error:
        msg = (
            f"cannot get response from control plane: {error}\n"
            "neither spec nor confirmation that compute is in the Empty state was received"
        )
        raise ConfigurationError(msg) from None
    return _Described(
        config=fetched.config,
        unknown_parts=lambda: unknown_parts_in(msgspec.json.decode(fetched.document), ControlPlaneConfig),
        read_again=lambda cancellation, count: fetch(plane, cancellation, count).config.spec,
        attempts=attempts,
    )

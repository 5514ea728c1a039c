"""From the options of the command line to everything that a node needs to know before its first actor."""

import os
from collections.abc import Callable
from concurrent.futures import Future

from ..actors.supervisor.turn import Moment
from ..actors.system import Launch
from ..messages.settings import NodeSettings
from ..messages.spec import ComputeConfig
from ..postgres.accounts import AccountError, missing_passwd_entry, resolve_account
from ..postgres.binaries import Binaries, BinariesError, discover, reachable
from ..process import init
from ..process.configuration import ConfigurationError, read_bare_spec, read_config, unknown_parts_of
from ..process.limits import oom_score_adj
from .options import Options


class StartError(Exception):
    """The node cannot begin: its files or programs are not usable; the message says what to do."""


def prepare(
    options: Options,
    began: Moment,
    dropped_lines: Callable[[], int] = lambda: 0,
    found: Future[Binaries] | None = None,
) -> Launch:
    """Read the configuration and find Postgres, unless that was begun before. Raises StartError."""
    try:
        config = _read(options)
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
        config=config.compute_ctl_config,
        config_path=options.config or options.spec,
        source=options.source,
        fresh=options.fresh,
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
        oom_score_adj=oom_score_adj(),
        installed_extensions_interval_s=options.installed_extensions_collection_interval,
        build_tag=os.environ.get("BUILD_TAG") or "latest",
    )
    return Launch(
        settings=settings,
        spec=config.spec,
        binaries=binaries,
        account=account,
        read_spec=lambda: _read(options).spec,
        began=began,
        dropped_lines=dropped_lines,
        orphans_reaped=init.reaped,
        unknown_parts=lambda: unknown_parts_of(str(settings.config_path), bare=options.config is None),
        failpoints=options.failpoints,
        warnings=options.warnings,
    )


def _read(options: Options) -> ComputeConfig:
    if options.config is not None:
        return read_config(options.config)
    assert options.spec is not None  # noqa: S101 - the command line saw to it
    return read_bare_spec(options.spec)

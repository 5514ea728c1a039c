"""What is decided about specs on their way into force: at boot, by `/configure`, by SIGHUP."""

import logging

import msgspec
from msgspec.structs import replace

from ...messages.activity import StartMonitoring
from ...messages.catalog import ApplyFailed, ApplySpec, CollectExtensions, RunMigrations, SpecApplied
from ...messages.lfc import FollowSpec
from ...messages.lifecycle import (
    Condition,
    Configure,
    Configured,
    ConfigureFailed,
    ConfigureRefused,
    RereadConfiguration,
    Status,
)
from ...messages.postgres import (
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationInstallFailed,
    ConfigurationRefused,
    PgdataFailed,
    PgdataPrepared,
    PostgresReady,
    PostgresStartFailed,
    SettleConfiguration,
)
from ...messages.spec import ComputeSpec, Mode
from ...messages.vm import StartVmMonitor, VmPreparationFailed, VmPrepared
from . import attempts, promoting, refreshing, serving, stopping
from .effects import (
    CONFIGURATOR,
    LFC,
    MONITOR,
    POSTGRES,
    VM,
    ReadConfiguration,
)
from .lifecycle import Event, Refused, outcome
from .private import ConfigurationReread
from .state import Attempt, Origin, Phase, Step, node_status
from .turn import Turn


def configure(turn: Turn, message: Configure, waiter: int | None) -> None:
    waiters = () if waiter is None else (waiter,)
    if (refusal := _take(turn, message.spec, waiters)) is not None:
        turn.answer(waiters, ConfigureRefused(refusal, bad_spec=False))


def _take(turn: Turn, spec: ComputeSpec, waiters: tuple[int, ...]) -> str | None:
    """Begin to bring a spec into force, or join the attempt that does; return why not."""
    attempt = turn.attempt
    if (
        attempt is not None
        and attempt.origin is not Origin.BOOT
        and attempt.spec == spec
        and attempt.step is not Step.ABORTING
    ):
        attempts.advance(turn, waiters=(*attempt.waiters, *waiters))
        return None
    if (
        attempt is not None
        and attempt.origin is not Origin.BOOT
        and turn.state.status in {Status.EMPTY, Status.RUNNING}
    ):
        # The other request is still in preflight: to its asker, and to this one, the node is already taken.
        return f"invalid compute status: {Status.CONFIGURATION_PENDING.text}"
    if turn.state.promotion is not None:
        return "the node is being promoted"
    taken = outcome(turn.state.status, Event.SPEC_TAKEN)
    if isinstance(taken, Refused) or turn.state.phase is not Phase.UP:
        return f"invalid compute status: {turn.state.status.text}"
    turn.log(logging.INFO, "got configuration request")
    attempts.begin(turn, spec, Origin.REQUEST, waiters)
    return None


def reread_configuration(turn: Turn, _: RereadConfiguration, waiter: int | None) -> None:
    waiters = () if waiter is None else (waiter,)
    if turn.state.settings.config_path is None and turn.state.settings.control_plane_uri is None:
        _not_reread(turn, waiters, "there is no --config file to read again")
    elif turn.state.phase is Phase.UP and turn.state.ending is None:
        turn.effects.append(ReadConfiguration(waiters))
    else:
        _not_reread(turn, waiters, f"invalid compute status: {turn.state.status.text}")


def configuration_reread(turn: Turn, message: ConfigurationReread, _: int | None) -> None:
    if message.refreshes:
        refreshing.fetched(turn, message)
    elif message.error is not None:
        _not_reread(turn, message.waiters, f"it could not be read again: {message.error}")
    elif message.spec is None:
        _not_reread(turn, message.waiters, "it has no spec; nothing is changed")
    elif (refusal := _take(turn, message.spec, message.waiters)) is not None:
        _not_reread(turn, message.waiters, refusal)


def _not_reread(turn: Turn, waiters: tuple[int, ...], why: str) -> None:
    is_file = turn.state.settings.config_path is not None
    what = "configuration file" if is_file else "configuration of the control plane"
    turn.log(logging.WARNING, f"the {what} was not applied: {why}")
    turn.answer(waiters, ConfigureRefused(why, bad_spec=False))


def configuration_accepted(turn: Turn, message: ConfigurationAccepted, _: int | None) -> None:
    attempt = attempts.under_way(turn, message.operation, Step.CHECKING)
    if attempt is None:
        promoting.checked(turn, message)
        return
    for warning in message.warnings:
        turn.log(logging.WARNING, warning)
    attempt = attempts.advance(turn, checked=True)
    match attempt.origin:
        case Origin.BOOT:
            attempts.start_postgres_if_ready(turn)
        case Origin.REFRESH:
            attempts.follow_lease(turn, attempt.spec)
            attempts.install(turn, attempt)
        case _:
            _spec_taken(turn, attempt)


def _spec_taken(turn: Turn, attempt: Attempt) -> None:
    turn.move(Event.SPEC_TAKEN)
    turn.set(spec=attempt.spec)
    attempts.follow_lease(turn, attempt.spec)
    if not attempt.starts:
        turn.move(Event.RECONFIGURATION_BEGAN)
        attempts.install(turn, attempt)
        return
    turn.log(logging.INFO, "got spec, continue configuration")
    waited_ms = round((turn.now_s - turn.state.began_s) * 1000)
    turn.set(
        startup=replace(turn.state.startup, wait_for_spec_ms=waited_ms),
        began_s=turn.now_s,
        began_wall_s=turn.wall_s,
    )
    turn.move(Event.START_BEGAN)
    attempts.advance(turn, step=Step.PREPARING)
    attempts.prepare(turn)


def configuration_refused(turn: Turn, message: ConfigurationRefused, _: int | None) -> None:
    attempt = attempts.under_way(turn, message.operation, Step.CHECKING)
    if attempt is None:
        promoting.checked(turn, message)
        return
    match attempt.origin:
        case Origin.BOOT:
            abort_start(turn, message.error)
        case Origin.REFRESH:
            refreshing.failed(turn, f"the spec that was fetched is refused: {message.error}")
        case _:
            turn.log(logging.WARNING, f"a configuration was refused: {message.error}")
            attempts.end(turn, ConfigureRefused(message.error, bad_spec=True))


def pgdata_prepared(turn: Turn, message: PgdataPrepared, _: int | None) -> None:
    attempt = attempts.under_way(turn, message.operation, Step.CHECKING, Step.PREPARING)
    if attempt is None:
        return
    stages = message.stages
    turn.set(
        startup=replace(
            turn.state.startup,
            sync_sk_check_ms=stages.sync_sk_check_ms,
            sync_safekeepers_ms=stages.sync_safekeepers_ms,
            pageserver_connect_micros=stages.pageserver_connect_micros,
            basebackup_ms=stages.basebackup_ms or message.took_ms,
            basebackup_bytes=stages.basebackup_bytes,
        )
    )
    attempts.advance(turn, prepared=True)
    attempts.start_postgres_if_ready(turn)


def pgdata_failed(turn: Turn, message: PgdataFailed, _: int | None) -> None:
    if attempts.under_way(turn, message.operation, Step.CHECKING, Step.PREPARING) is not None:
        abort_start(turn, message.error)


def vm_prepared(turn: Turn, message: VmPrepared, _: int | None) -> None:
    if attempts.under_way(turn, message.operation, Step.CHECKING, Step.PREPARING) is not None:
        attempts.advance(turn, vm_ready=True)
        attempts.start_postgres_if_ready(turn)


def vm_preparation_failed(turn: Turn, message: VmPreparationFailed, _: int | None) -> None:
    if attempts.under_way(turn, message.operation, Step.CHECKING, Step.PREPARING) is not None:
        abort_start(turn, message.error)


def postgres_ready(turn: Turn, message: PostgresReady, _: int | None) -> None:
    attempt = attempts.under_way(turn, message.operation, Step.STARTING)
    if attempt is None:
        return
    turn.set(
        postgres_up=True,
        postmaster=message.pid,
        startup=replace(turn.state.startup, start_postgres_ms=message.took_ms),
    )
    turn.log(logging.INFO, "PostgreSQL is now running, continuing to configure it")
    attempts.advance(turn, step=Step.APPLYING, stage_began_s=turn.now_s)
    serving.serve(turn)
    turn.tell(CONFIGURATOR, ApplySpec(attempt.operation, attempt.spec, starting=True))


def postgres_start_failed(turn: Turn, message: PostgresStartFailed, _: int | None) -> None:
    if attempts.under_way(turn, message.operation, Step.STARTING) is not None:
        abort_start(turn, message.error)


def configuration_installed(turn: Turn, message: ConfigurationInstalled, _: int | None) -> None:
    attempt = attempts.under_way(turn, message.operation, Step.INSTALLING)
    if attempt is None:
        return
    if message.pending_restart:
        names = ", ".join(message.pending_restart)
        turn.log(logging.WARNING, f"these settings take effect at the next start of the node: {names}")
    attempts.advance(turn, step=Step.APPLYING, pending_restart=message.pending_restart)
    turn.tell(CONFIGURATOR, ApplySpec(attempt.operation, attempt.spec, starting=False))


def configuration_install_failed(turn: Turn, message: ConfigurationInstallFailed, _: int | None) -> None:
    if attempts.under_way(turn, message.operation, Step.INSTALLING) is not None:
        reconfiguration_failed(turn, message.error)


def spec_applied(turn: Turn, message: SpecApplied, _: int | None) -> None:
    attempt = attempts.under_way(turn, message.operation, Step.APPLYING)
    if attempt is None:
        return
    turn.set(error=None)
    turn.tell(POSTGRES, SettleConfiguration(attempt.spec, message.subscribers))
    if attempt.starts:
        turn.set(
            startup=replace(
                turn.state.startup,
                config_ms=round((turn.now_s - attempt.stage_began_s) * 1000),
                total_startup_ms=round((turn.now_s - turn.state.began_s) * 1000),
            )
        )
    turn.set(spec=attempt.spec)
    turn.move(Event.REFRESH_ENDED if attempt.origin is Origin.REFRESH else Event.SPEC_APPLIED)
    turn.tell(LFC, FollowSpec(attempt.spec, starting=attempt.starts))
    if attempt.starts:
        stages = msgspec.json.encode(turn.state.startup).decode()
        turn.log(logging.INFO, f"compute start finished: {stages}")
        experimental = "activity_monitor_experimental" in attempt.spec.features
        turn.tell(MONITOR, StartMonitoring(experimental))
        if turn.state.settings.autoscaling and turn.state.postmaster is not None:
            turn.tell(VM, StartVmMonitor(turn.state.postmaster, not attempt.spec.disable_lfc_resizing))
        is_primary = attempt.spec.compute_mode is Mode.PRIMARY
        if is_primary and not attempt.spec.skip_pg_catalog_updates:
            turn.tell(CONFIGURATOR, RunMigrations())
        turn.tell(CONFIGURATOR, CollectExtensions(at_once=is_primary))
    else:
        turn.log(logging.INFO, "compute node configured")
        operation = attempt.spec.operation_uuid or "unknown"
        turn.log(logging.INFO, f"finished reconfiguration of compute node for operation {operation}")
    attempts.end(turn, Configured(node_status(turn.state), attempt.pending_restart))
    stopping.end_queue(turn)


def apply_failed(turn: Turn, message: ApplyFailed, _: int | None) -> None:
    attempt = attempts.under_way(turn, message.operation, Step.APPLYING)
    if attempt is None:
        return
    if attempt.starts:
        abort_start(turn, _blaming_the_disk(turn, message.error, "start the node again"))
    else:
        turn.tell(POSTGRES, SettleConfiguration(attempt.spec, message.subscribers))
        reconfiguration_failed(turn, _blaming_the_disk(turn, message.error, "configure again"))


def _blaming_the_disk(turn: Turn, error: str, then: str) -> str:
    """Add to an error of SQL that the disk is full, where it is: Postgres does not always say so."""
    full = [report for report in turn.state.raised if report.condition is Condition.DISK_FULL]
    return f"{error}; the disk is full: {full[0].detail}, then {then}" if full else error


def abort_start(turn: Turn, error: str) -> None:
    """Stop what a failing start has left; the status becomes `failed` when it is gone."""
    turn.log(logging.ERROR, f"could not start the compute node: {error}")
    turn.broken(error, unexpected=False)
    attempts.advance(turn, step=Step.ABORTING)
    stopping.end_lease(turn)
    stopping.stop_postgres(turn, turn.state.settings.stop_timeout_s)


def reconfiguration_failed(turn: Turn, error: str) -> None:
    """Go back to running with the error kept; Postgres has its last good settings."""
    turn.log(logging.ERROR, f"could not configure compute node: {error}")
    turn.set(error=error)
    if turn.attempt is not None and turn.attempt.origin is Origin.REFRESH:
        refreshing.again(turn)
    else:
        turn.move(Event.RECONFIGURATION_FAILED)
    attempts.end(turn, ConfigureFailed(error))
    stopping.end_queue(turn)

"""Fields of a spec that this node cannot act on, or that have no effect on it: pure."""

from collections.abc import Callable
from typing import Final

import msgspec

from ...messages.settings import SourceName
from ...messages.spec import Audit, ComputeSpec, Mode
from ...postgres.conf import spec_setting
from ...postgres.storage import StorageError, pageservers, safekeeper_problem, safekeepers_of, storage_of


class NotBuilt(msgspec.Struct, frozen=True):
    """A field of the spec that this version cannot act on, and why it is refused or only warned about."""

    field: str
    given: Callable[[ComputeSpec], bool]
    refuse: bool
    why: str


NOT_BUILT: Final = (
    NotBuilt(
        "audit_log_level",
        lambda spec: spec.audit_log_level not in {Audit.DISABLED, Audit.LOG, Audit.BASE},
        refuse=True,
        why="its records go to files of their own, which nothing sends on or clears away: use the level Base, "
        "whose records go to the log of Postgres",
    ),
    NotBuilt(
        "local_proxy_config",
        lambda spec: spec.local_proxy_config is not None,
        refuse=True,
        why="local_proxy would go on with its old keys: access that was taken away would stay",
    ),
    NotBuilt(
        "features: tls_experimental",
        lambda spec: "tls_experimental" in spec.features,
        refuse=False,
        why="Postgres gets no certificate from compute_ctl_config.tls and serves without TLS",
    ),
    NotBuilt(
        "remote_extensions",
        lambda spec: spec.remote_extensions is not None,
        refuse=False,
        why="no extension is downloaded; one that is missing is an error where it is used",
    ),
    NotBuilt(
        "pgbouncer_settings",
        lambda spec: bool(spec.pgbouncer_settings),
        refuse=False,
        why="pgbouncer keeps its own settings",
    ),
    NotBuilt(
        "logs_export_host",
        lambda spec: spec.logs_export_host is not None,
        refuse=False,
        why="Postgres writes to syslog too, and nothing sends it on; the log here is complete",
    ),
)
"""Refused where ignoring it could lose data, access control or audit; else a warning by name."""

FOLLOWING: Final = ("primary_conninfo", "primary_slot_name", "hot_standby")
"""Settings of a replica that come from fields of the spec."""
_STORAGE_FIELDS: Final = ("pageserver_connstring", "pageserver_connection_info", "safekeeper_connstrings")


def not_built(spec: ComputeSpec) -> tuple[str | None, tuple[str, ...]]:
    """Return why the spec must be refused (or None), and warnings about what has no effect."""
    given = [entry for entry in NOT_BUILT if entry.given(spec)]
    refused = [f"`{entry.field}` ({entry.why})" for entry in given if entry.refuse]
    error = None
    if refused:
        error = f"the spec asks for what this version cannot do yet: {'; '.join(refused)}; leave it out"
    return error, tuple(
        f"the spec's `{entry.field}` has no effect in this version: {entry.why}"
        for entry in given
        if not entry.refuse
    )


def source_problem(spec: ComputeSpec, source: SourceName, *, promoted: bool) -> str | None:
    """Say why this source cannot make what the spec asks for; `promoted`: its replica has become, or is to be, a primary."""
    match source:
        case SourceName.INITDB:
            return local_problem(spec)
        case SourceName.UPSTREAM:
            return upstream_problem(spec, promoted=promoted)
        case SourceName.PAGESERVER:
            from .sources.pageserver import missing_extra

            return storage_problem(spec) or missing_extra(spec)


def mode_problem(spec: ComputeSpec, in_force: ComputeSpec | None) -> str | None:
    """Say why a spec does not go with the mode in which Postgres runs; `in_force` is its spec."""
    if in_force is None or spec.compute_mode is in_force.compute_mode:
        return None
    now, asked = in_force.compute_mode, spec.compute_mode
    way = "`POST /promote` makes a primary of it" if now is Mode.REPLICA else "start another node for that"
    return f"this node runs in the mode {now.value!r}, and a configuration cannot change that to {asked.value!r}: {way}"


def local_problem(spec: ComputeSpec) -> str | None:
    """Say why a new, local cluster cannot be what the spec asks for (source `initdb`)."""
    if spec.compute_mode is Mode.PRIMARY:
        return None
    return (
        f"the mode {spec.compute_mode.value!r} needs data to read, and the source `initdb` makes an empty cluster: "
        'give "mode": "Primary", or another --source'
    )


def upstream_problem(spec: ComputeSpec, *, promoted: bool) -> str | None:
    """Say why a copy of a running primary cannot be what the spec asks for (source `upstream`).

    `promoted`: it has become a primary itself, and is kept.
    """
    if promoted:
        if spec.compute_mode is Mode.PRIMARY:
            return None
        return (
            f"the mode {spec.compute_mode.value!r} is not what this node is any more: it was promoted, and its PGDATA "
            'holds data of its own. Give "mode": "Primary", or --fresh to copy the upstream anew and lose that data'
        )
    if spec.compute_mode is not Mode.REPLICA:
        return (
            f"the mode {spec.compute_mode.value!r} does not go with the source `upstream`, which makes replicas of a "
            'running primary: give "mode": "Replica" (and promote it later), or another --source'
        )
    if spec.upstream_conninfo is None:
        return (
            "upstream_conninfo should be provided: it says where the primary is that is copied and followed"
        )
    return None


def overruled(spec: ComputeSpec) -> tuple[str, ...]:
    """Warn about settings by which a replica of the source `upstream` does not go."""
    return tuple(
        f"`{name}` of the spec's settings is not used: with the source `upstream` its field `upstream_conninfo` counts"
        for name in FOLLOWING
        if spec_setting(spec, name) is not None
    )


def unused_storage(spec: ComputeSpec) -> tuple[str, ...]:
    """Warn that data will not go where the spec says."""
    given = [field for field in _STORAGE_FIELDS if getattr(spec, field)]
    if not given:
        return ()
    names = ", ".join(f"`{field}`" for field in given)
    return (
        f"{names} of the spec is not used: without the source `pageserver` the data lives in PGDATA alone",
    )


def unused_upstream(spec: ComputeSpec, source: SourceName) -> tuple[str, ...]:
    """Warn that nobody is followed, where the spec names somebody and the command line has not asked for that."""
    if source is SourceName.UPSTREAM:
        return ()
    return tuple(
        f"`{field}` of the spec is not used: it is for the source `upstream`, and this node's is `{source.value}`"
        for field in ("upstream_conninfo", "upstream_slot_name")
        if getattr(spec, field) is not None
    )


def unused_resources(spec: ComputeSpec, *, swap: bool, quota: bool) -> tuple[str, ...]:
    """Warn that the machine is not set as the spec says, where the command line has not asked for it."""
    found = []
    if spec.swap_size_bytes is not None and not swap:
        found.append("`swap_size_bytes` of the spec has no effect without --resize-swap-on-bind")
    if spec.disk_quota_bytes is not None and not quota:
        found.append("`disk_quota_bytes` of the spec has no effect without --set-disk-quota-for-fs")
    return tuple(found)


def storage_problem(spec: ComputeSpec) -> str | None:
    """Validate what the source `pageserver` needs (`startup-and-spec` 2.9); the first problem, or None."""
    try:
        pageservers(spec)
        safekeepers = safekeepers_of(spec)
        storage_of(spec)
    except StorageError as error:
        return str(error)
    return safekeeper_problem(safekeepers) if spec.compute_mode is Mode.PRIMARY else None

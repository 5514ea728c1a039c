"""Every metric's public name, in one place.

The first group is the counterpart's (`http-api` reference, 7.2), exact in name and label; the second is ours.
"""

from enum import Enum
from typing import Final

import msgspec


class Kind(Enum):
    """What Prometheus calls the type of a metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Family(msgspec.Struct, frozen=True):
    """One metric; without labels it is present from the first scrape with 0.

    A histogram has labels, and the upper bounds of its buckets, without the infinite one.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, text, labels)


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.COUNTER, text, labels)


def _histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Family:
    return Family(name, Kind.HISTOGRAM, text, labels, bounds)


UP: Final = _gauge("compute_ctl_up", "1 for the current status of the node.", "build_tag", "status")
CURRENT_DOWNTIME: Final = _gauge(
    "compute_pg_current_downtime_ms", "Milliseconds since Postgres was last seen up; 0 while it is."
)
DOWNTIME_TOTAL: Final = _counter(
    "compute_pg_downtime_ms_total", "Milliseconds in which Postgres was seen to be down."
)
INSTALLED_EXTENSIONS: Final = _gauge(
    "compute_installed_extensions",
    "Databases that have this version of an extension.",
    "extension_name",
    "version",
    "owned_by_superuser",
)
FAILED_MIGRATIONS: Final = _counter(
    "compute_ctl_db_migration_failed_total", "Migrations that failed, by their number.", "migration_id"
)
CONTROL_PLANE_REQUESTS: Final = _counter(
    "compute_ctl_cplane_requests_total",
    "Requests to the control plane, by what came back.",
    "rpc",
    "http_status",
)
LFC_PREWARMS: Final = _counter("compute_ctl_lfc_prewarms_total", "Prewarms of the cache that were begun.")
LFC_PREWARM_ERRORS: Final = _counter("compute_ctl_lfc_prewarm_errors_total", "Prewarms that failed.")
LFC_OFFLOADS: Final = _counter("compute_ctl_lfc_offloads_total", "Offloads of the cache that were begun.")
LFC_OFFLOAD_ERRORS: Final = _counter("compute_ctl_lfc_offload_errors_total", "Offloads that failed.")

LFC_SECONDS: Final = _histogram(
    "compute_node_lfc_seconds",
    "How long prewarms and offloads took that were carried out.",
    (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0),
    "operation",
)
LFC_STATE_BYTES: Final = _histogram(
    "compute_node_lfc_state_bytes",
    "Size of the states that were read or written, compressed.",
    (1e3, 1e4, 1e5, 1e6, 1e7, 1e8),
    "operation",
)
LFC_OFFLOAD_BLOCKED: Final = _gauge(
    "compute_node_lfc_offload_blocked",
    "1 while nothing is offloaded because the last prewarm is not complete.",
)
PAGESTREAM_ERRORS: Final = _counter(
    "pg_cctl_pagestream_request_errors_total",
    "Times Postgres asked for a refresh of its spec because pageservers rejected it.",
)

CRASH_RESTARTS: Final = _counter(
    "compute_node_postgres_crash_restarts_total",
    "Times Postgres restarted all its processes because one of them crashed.",
)
CONDITION: Final = _gauge("compute_node_condition", "1 for each condition that holds now.", "condition")
DISK_FREE: Final = _gauge(
    "compute_node_disk_free_bytes",
    "Bytes that Postgres may still write to its file systems, while it runs.",
    "area",
)
LEASE_VALID_UNTIL: Final = _gauge(
    "compute_node_lsn_lease_valid_until_seconds",
    "Until when the LSN of a Static node is held, in seconds since the epoch; 0 while it is not.",
)
LEASE_REQUESTS: Final = _counter(
    "compute_node_lsn_lease_requests_total", "Requests for an LSN lease, by what became of them.", "result"
)
BASEBACKUP_RECEIVED: Final = _gauge(
    "compute_node_basebackup_received_bytes",
    "Bytes of the base backup that have come so far, of the last attempt.",
)
HANDLED: Final = _counter("compute_node_messages_total", "Messages handled.", "actor", "message")
HANDLER_SECONDS: Final = _counter(
    "compute_node_handler_seconds_total", "Time spent in message handlers.", "actor", "message"
)
SLOW_HANDLERS: Final = _counter(
    "compute_node_slow_handlers_total", "Handlers that took longer than 50 ms.", "actor"
)
MAILBOX_DEPTH: Final = _gauge("compute_node_mailbox_depth", "Messages waiting now.", "actor")
ACTOR_FAILURES: Final = _counter("compute_node_actor_failures_total", "Actors that died or hung.", "actor")
WAITERS: Final = _gauge("compute_node_waiting_requests", "HTTP requests that wait for an outcome.")
REFUSED_WAITERS: Final = _counter(
    "compute_node_waiting_requests_refused_total", "HTTP requests answered 503 because too many wait."
)
QUEUE_WARNINGS: Final = _counter(
    "compute_node_http_queue_warnings_total",
    "Times a server had more requests than threads.",
    "server",
)
LOG_DROPPED: Final = _counter("compute_node_log_lines_dropped_total", "Log lines lost to a full queue.")
UNKNOWN_FIELDS: Final = _counter(
    "compute_node_unknown_spec_fields_total", "Unknown fields and features seen in specs."
)
APPLIED_STATEMENTS: Final = _counter(
    "compute_node_applied_statements_total", "SQL statements run to bring the catalog to the spec."
)
DRIFTED_COLLATIONS: Final = _gauge(
    "compute_node_drifted_collations",
    "Databases made with another version of their collation than the machine's.",
)
CATALOG_REQUESTS: Final = _counter(
    "compute_node_catalog_requests_total",
    "Single requests about the catalog, by what became of them.",
    "request",
    "result",
)
DUMPED_BYTES: Final = _counter("compute_node_dumped_bytes_total", "Bytes of schemas that were dumped.")
STOP_RUNGS: Final = _counter(
    "compute_node_postgres_stops_total", "Stops of Postgres, by the rung they reached.", "rung"
)
SPAWNS: Final = _counter("compute_node_spawns_total", "Programs started.", "program")
SPAWN_SECONDS: Final = _counter(
    "compute_node_spawn_seconds_total", "Time until the started program ran.", "program"
)
SLOW_SPAWNS: Final = _counter(
    "compute_node_slow_spawns_total", "Starts of programs that took longer than 50 ms.", "program"
)
ORPHANS_REAPED: Final = _counter(
    "compute_node_orphans_reaped_total", "Orphans that the init adopted and waited for."
)
AUTOSCALING_CONNECTED: Final = _gauge(
    "compute_node_autoscaling_connected", "1 while an autoscaler agent is connected."
)
AUTOSCALING_AGENTS: Final = _counter(
    "compute_node_autoscaling_connections_total", "Autoscaler agents that were taken."
)
AUTOSCALING_BYTES: Final = _gauge(
    "compute_node_autoscaling_bytes",
    "Memory of Postgres in use, what there is in all, when more is asked for, and the size of the file cache.",
    "what",
)
AUTOSCALING_MESSAGES: Final = _counter(
    "compute_node_autoscaling_messages_total",
    "Messages from the autoscaler agent and to it.",
    "direction",
    "type",
)
AUTOSCALING_DECISIONS: Final = _counter(
    "compute_node_autoscaling_decisions_total", "Decisions about the machine's size.", "decision"
)

FAMILIES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Family))

"""What the command line fixed for the life of the process."""

from enum import Enum
from typing import Final

import msgspec
from typing_extensions import override

from .secret import Secret
from .spec import ComputeCtlConfig

DEFAULT_STOP_TIMEOUT_S: Final = 25.0
DEFAULT_SAFEKEEPER_CHECK_S: Final = 0.1
"""How long a safekeeper may take to say where the log ends; without a quorum of them a full sync is made."""
DEFAULT_COLLECTION_INTERVAL_S: Final = 3600
"""Half of the time between two collections of the installed extensions."""


class SourceName(Enum):
    """Where a PGDATA comes from."""

    PAGESERVER = "pageserver"
    INITDB = "initdb"
    UPSTREAM = "upstream"


class Address(msgspec.Struct, frozen=True):
    """A host and a port to listen at."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DEFAULT_CGROUP: Final = "neon-postgres"
DEFAULT_VM_MONITOR: Final = Address("0.0.0.0", 10301)  # noqa: S104 - the agent comes from outside


class NodeSettings(msgspec.Struct, frozen=True):
    """The fixed facts of this node. Paths are absolute; times are seconds."""

    compute_id: str
    pgdata: str
    connstr: Secret
    """A `postgresql://` URL; its user is the superuser of this node."""
    postgres_bin: str
    """Path of the `postgres` program; its siblings are found beside it."""
    config: ComputeCtlConfig
    config_path: str | None = None
    """The file that the spec came from; None when it came from the control plane."""
    control_plane_uri: str | None = None
    source: SourceName = SourceName.PAGESERVER
    fresh: bool = False
    set_aside_pgdata: bool = False
    claim_pgdata: bool = False
    postgres_user: str | None = None
    """Who runs Postgres when this process is root; None otherwise."""
    external_http_port: int = 3080
    internal_http_port: int = 3081
    http_host: str | None = None
    """None: every interface (loopback only with `dev` and an empty key set)."""
    privileged_role_name: str = "neon_superuser"
    dev: bool = False
    start_timeout_s: float = 60.0
    stop_timeout_s: float = DEFAULT_STOP_TIMEOUT_S
    safekeeper_check_timeout_s: float = DEFAULT_SAFEKEEPER_CHECK_S
    build_tag: str = "latest"
    installed_extensions_interval_s: int = DEFAULT_COLLECTION_INTERVAL_S
    lfc_store: str | None = None
    """Folder for the states of caches, where the spec names no endpoint storage."""
    lfc_offload_on_stop: bool = False
    warms_memory: bool = True
    """An empty node runs a Postgres of its own while it waits for a spec."""
    oom_score_adj: int | None = None
    """What the OOM killer thought of this process when it started; None where that cannot be known."""
    autoscaling: bool = False
    """Whether an autoscaler agent is served and Postgres runs in a cgroup of its own."""
    cgroup: str = DEFAULT_CGROUP
    """The cgroup of Postgres, by its path below the hierarchy; empty: none, and no memory is watched."""
    vm_monitor_address: Address = DEFAULT_VM_MONITOR
    file_cache_connstr: Secret | None = None
    """How the file cache is spoken to, as a URL or in libpq's other form; None: as in `connstr`."""
    resize_swap: bool = False
    disk_quota_mount: str | None = None
    """The mount point of the file system that gets a quota."""

    @override
    def __repr__(self) -> str:
        return f"NodeSettings(compute_id={self.compute_id!r}, pgdata={self.pgdata!r}, source={self.source.value})"

    @property
    def manages_vm(self) -> bool:
        """Whether anything of the machine is managed, so that there must be somebody to do it."""
        return self.autoscaling or self.resize_swap or self.disk_quota_mount is not None

    @property
    def open_api(self) -> bool:
        """Whether the API asks for no token: only with `dev` and an empty key set, and on loopback only."""
        return self.dev and not self.config.jwks.keys

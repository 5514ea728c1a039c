"""The config document and the compute spec, as `compute_ctl` reads them (field for field).

Unknown fields and features are tolerated, everything else is exact: a wrong type is an error that names
the JSON path. Optional means absent or null; `encrypted_password` alone tells the two apart.
Source: the counterpart's `libs/compute_api/src/spec.rs` and `responses.rs`.
"""

import re
from enum import Enum
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType
from typing_extensions import override

from .base import Summarised, decode_hook
from .secret import MASK, Secret, is_secret_setting, mask_credentials

MAX_NAME_BYTES: Final = 63
"""NAMEDATALEN - 1: Postgres cuts longer names off in silence, so they are refused here."""

U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Meta(ge=0)]
"""Its upper bound is checked by ComputeSpec: msgspec takes no bound beyond 63 bits."""
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_HEX_ID: Final = re.compile(r"[0-9a-fA-F]{32}")
_U64_FIELDS: Final = (
    "swap_size_bytes",
    "disk_quota_bytes",
    "shard_stripe_size",
    "reconfigure_concurrency",
    "offload_lfc_interval_seconds",
)
_LSN: Final = re.compile(r"0*[0-9a-fA-F]{1,8}/0*[0-9a-fA-F]{1,8}")
_SLOT_NAME: Final = re.compile(r"[a-z0-9_]{1,63}")


def invalid_name(name: str) -> str | None:
    """Say why Postgres could not hold this role or database name as it is; None for a good one."""
    if not name:
        return "a name must not be empty"
    if "\0" in name:
        return "a name must not contain a NUL character"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "a name must be valid Unicode, without lone surrogates"
    if size > MAX_NAME_BYTES:
        return f"a name has at most {MAX_NAME_BYTES} bytes, this one has {size}"
    return None


def check_name(name: str, field: str) -> None:
    """Raise ValueError, which names the field, for a name that Postgres could not hold as it is."""
    if (reason := invalid_name(name)) is not None:
        msg = f"{reason} (field `{field}`, {name[:80]!r})"
        raise ValueError(msg)


def check_lsn(text: str, field: str) -> None:
    """Raise ValueError, which names the field, for what is not an LSN (two hexadecimal halves around a slash)."""
    if _LSN.fullmatch(text.strip()) is None:
        msg = f"{text[:80]!r} is not an LSN such as 0/169AD58 (field `{field}`)"
        raise ValueError(msg)


class GenericOption(msgspec.Struct, frozen=True):
    """A setting, or a clause of CREATE ROLE or CREATE DATABASE; vartype `string` means quoted."""

    name: str
    vartype: str
    value: str | None = None

    @override
    def __repr__(self) -> str:
        value = repr(self.value and mask_credentials(self.value))
        if self.value is not None and is_secret_setting(self.name):
            value = MASK
        return f"GenericOption(name={self.name!r}, vartype={self.vartype!r}, value={value})"


class Role(msgspec.Struct, frozen=True):
    """A desired role."""

    name: str
    encrypted_password: Secret | UnsetType | None = UNSET
    options: tuple[GenericOption, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse names that Postgres would cut or misread."""
        check_name(self.name, "name")


class Database(msgspec.Struct, frozen=True):
    """A desired database."""

    name: str
    owner: str
    options: tuple[GenericOption, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse names that Postgres would cut or misread."""
        check_name(self.name, "name")
        check_name(self.owner, "owner")


class DeltaOp(msgspec.Struct, frozen=True):
    """A deletion or renaming; actions other than the four known ones are ignored."""

    action: str
    name: str
    new_name: str | None = None

    def __post_init__(self) -> None:
        """Refuse bad names, and a renaming without its new name."""
        check_name(self.name, "name")
        if self.new_name is not None:
            check_name(self.new_name, "new_name")
        elif self.action in {"rename_db", "rename_role"}:
            msg = f"`{self.action}` of {self.name!r} needs a `new_name`"
            raise ValueError(msg)


class Cluster(msgspec.Struct, frozen=True):
    """The desired roles, databases and settings; what is absent here is left alone."""

    roles: tuple[Role, ...]
    databases: tuple[Database, ...]
    cluster_id: str | None = None
    name: str | None = None
    state: str | None = None
    postgresql_conf: str | None = None
    settings: tuple[GenericOption, ...] | None = None

    def setting(self, name: str) -> str | None:
        """Return the value of the first setting of that name; None when absent or null."""
        return next((s.value for s in self.settings or () if s.name == name), None)

    @override
    def __repr__(self) -> str:
        return f"Cluster(roles={self.roles!r}, databases={self.databases!r}, settings={self.settings!r})"


class TlsConfig(msgspec.Struct, frozen=True):
    """Where certificate and key lie."""

    key_path: str
    cert_path: str


class JwksSettings(msgspec.Struct, frozen=True):
    """A key set that local_proxy accepts, and the roles it opens."""

    id: str
    jwks_url: str
    provider_name: str
    role_names: tuple[str, ...]
    jwt_audience: str | None = None

    def __post_init__(self) -> None:
        """Refuse names that Postgres would cut or misread."""
        for name in self.role_names:
            check_name(name, "role_names")


class LocalProxySpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The configuration of local_proxy."""

    jwks: tuple[JwksSettings, ...] | None = None
    tls: TlsConfig | None = None


class ExtensionData(msgspec.Struct, frozen=True):
    """What is known of one downloadable extension."""

    control_data: dict[str, str]
    archive_path: str


class RemoteExtSpec(msgspec.Struct, frozen=True):
    """The extensions that may be downloaded."""

    library_index: dict[str, str]
    extension_data: dict[str, ExtensionData]
    public_extensions: tuple[str, ...] | None = None
    custom_extensions: tuple[str, ...] | None = None


class Wire(Enum):
    """How a pageserver is spoken to."""

    LIBPQ = "libpq"
    GRPC = "grpc"


class PageserverUrls(msgspec.Struct, frozen=True):
    """Where one pageserver is reached."""

    id: U64 | None = None
    libpq_url: Secret | None = None
    grpc_url: Secret | None = None


class PageserverShard(msgspec.Struct, frozen=True):
    """The servers of one shard; the first is the one that is used."""

    pageservers: tuple[PageserverUrls, ...]


class PageserverConnectionInfo(msgspec.Struct, frozen=True):
    """Where the pageservers are, shard by shard; keys of `shards` are number and count in hexadecimal digits."""

    shard_count: Annotated[int, Meta(ge=0, le=255)]
    """0: the tenant is not sharded."""
    shards: dict[str, PageserverShard]
    stripe_size: U32 | None = None
    """In pages; given exactly when the tenant is sharded."""
    prefer_protocol: Wire = Wire.LIBPQ


class Audit(Enum):
    """How much of what users do is logged for audit; Log and Hipaa are old names of Base and Extended."""

    DISABLED = "Disabled"
    LOG = "Log"
    BASE = "Base"
    HIPAA = "Hipaa"
    EXTENDED = "Extended"
    FULL = "Full"


class Mode(Enum):
    """What the node is for; the values are those of the setting `neon.compute_mode`."""

    PRIMARY = "primary"
    STATIC = "static"
    REPLICA = "replica"


class StaticMode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON object that asks for a read-only node at an LSN."""

    static: str = msgspec.field(name="Static")

    def __post_init__(self) -> None:
        """Refuse what is not an LSN (two hexadecimal 32-bit halves around a slash)."""
        if _LSN.fullmatch(self.static.strip()) is None:
            msg = f"{self.static!r} is not an LSN such as 0/169AD58"
            raise ValueError(msg)


class ComputeSpec(Summarised, frozen=True):
    """The description of one compute node."""

    format_version: float
    cluster: Cluster
    suspend_timeout_seconds: I64
    operation_uuid: str | None = None
    features: tuple[str, ...] = ()
    swap_size_bytes: U64 | None = None
    disk_quota_bytes: U64 | None = None
    disable_lfc_resizing: bool | None = None
    delta_operations: tuple[DeltaOp, ...] | None = None
    skip_pg_catalog_updates: bool = False
    tenant_id: str | None = None
    timeline_id: str | None = None
    pageserver_connstring: Secret | None = None
    pageserver_connection_info: PageserverConnectionInfo | None = None
    project_id: str | None = None
    branch_id: str | None = None
    endpoint_id: str | None = None
    safekeepers_generation: U32 | None = None
    safekeeper_connstrings: tuple[str, ...] = ()
    mode: str | StaticMode = "Primary"
    storage_auth_token: Secret | None = None
    remote_extensions: RemoteExtSpec | None = None
    pgbouncer_settings: dict[str, str] | None = None
    shard_stripe_size: U64 | None = None
    local_proxy_config: LocalProxySpec | None = None
    reconfigure_concurrency: U64 = 1
    drop_subscriptions_before_start: bool = False
    audit_log_level: Audit = Audit.DISABLED
    logs_export_host: str | None = None
    endpoint_storage_addr: str | None = None
    endpoint_storage_token: Secret | None = None
    autoprewarm: bool = False
    offload_lfc_interval_seconds: Annotated[int, Meta(ge=1)] | None = None
    upstream_conninfo: Secret | None = None
    """Ours: how a replica of the source `upstream` reaches its primary, as libpq reads it (keywords or a URL)."""
    upstream_slot_name: str | None = None
    """Ours: the replication slot on that primary; made there when it is missing, and never removed."""

    def __post_init__(self) -> None:
        """Refuse unknown modes and ids that are not 16 bytes in hexadecimal."""
        if isinstance(self.mode, str) and self.mode not in {"Primary", "Replica"}:
            msg = (
                f'the mode is "Primary", "Replica" or {{"Static": "<lsn>"}}, not {self.mode!r} (field `mode`)'
            )
            raise ValueError(msg)
        for field, value in (("tenant_id", self.tenant_id), ("timeline_id", self.timeline_id)):
            if value is not None and _HEX_ID.fullmatch(value) is None:
                msg = f"{value!r} is not an id of 32 hexadecimal digits (field `{field}`)"
                raise ValueError(msg)
        if self.upstream_slot_name is not None and _SLOT_NAME.fullmatch(self.upstream_slot_name) is None:
            msg = (
                f"{self.upstream_slot_name[:80]!r} is not the name of a replication slot: up to 63 of a-z, 0-9 and _ "
                "(field `upstream_slot_name`)"
            )
            raise ValueError(msg)
        for field in _U64_FIELDS:
            if (number := getattr(self, field)) is not None and number >= 2**64:
                msg = f"{number} does not fit into 64 bits (field `{field}`)"
                raise ValueError(msg)

    @property
    def branch(self) -> str:
        """The id of the timeline, of its own field or of the setting; empty where branches have none."""
        return (self.timeline_id or self.cluster.setting("neon.timeline_id") or "").lower()

    @property
    def applies_sql(self) -> bool:
        """Whether the catalog is to be brought to the described state."""
        return self.compute_mode is Mode.PRIMARY and not self.skip_pg_catalog_updates

    @property
    def compute_mode(self) -> Mode:
        """The mode without its LSN."""
        if isinstance(self.mode, StaticMode):
            return Mode.STATIC
        return Mode.PRIMARY if self.mode == "Primary" else Mode.REPLICA

    @override
    def __repr__(self) -> str:
        return (
            f"ComputeSpec(operation_uuid={self.operation_uuid!r}, mode={self.compute_mode.value}, "
            f"roles={len(self.cluster.roles)}, databases={len(self.cluster.databases)})"
        )


class KeySet(msgspec.Struct, frozen=True):
    """A JWK set; each key is kept as it came, and judged where tokens are verified."""

    keys: tuple[dict[str, Any], ...]


class ComputeCtlConfig(msgspec.Struct, frozen=True):
    """What the node itself is configured with, apart from the spec."""

    jwks: KeySet
    tls: TlsConfig | None = None


class ComputeConfig(msgspec.Struct, frozen=True):
    """The content of `--config`: a spec, or none for a node that waits for one."""

    compute_ctl_config: ComputeCtlConfig
    spec: ComputeSpec | None = None


class ControlPlaneStatus(Enum):
    """Whether a node has something to run."""

    EMPTY = "empty"
    ATTACHED = "attached"


class ControlPlaneConfig(msgspec.Struct, frozen=True):
    """The control plane's answer to a node that asks for its config."""

    status: ControlPlaneStatus
    compute_ctl_config: ComputeCtlConfig
    spec: ComputeSpec | None = None


class ConfigurationRequest(msgspec.Struct, frozen=True):
    """The body of `POST /configure`; `compute_ctl_config` must parse and is not used."""

    spec: ComputeSpec
    compute_ctl_config: ComputeCtlConfig


config_decoder: Final = msgspec.json.Decoder(ComputeConfig, dec_hook=decode_hook)
control_plane_decoder: Final = msgspec.json.Decoder(ControlPlaneConfig, dec_hook=decode_hook)
request_decoder: Final = msgspec.json.Decoder(ConfigurationRequest, dec_hook=decode_hook)
spec_decoder: Final = msgspec.json.Decoder(ComputeSpec, dec_hook=decode_hook)

"""Where Neon's storage is, by the spec: tenant, timeline, and the pageservers of each shard. Pure.

Sources, best first: `pageserver_connection_info`; `pageserver_connstring`; the setting `neon.pageserver_connstring`.
"""

import re
from itertools import pairwise
from typing import Final, NoReturn

import msgspec

from ..messages.secret import Secret, mask_credentials
from ..messages.spec import ComputeSpec, Mode, PageserverConnectionInfo, PageserverUrls, Wire

UNSHARDED: Final = "0000"
MISSING: Final = "pageserver connstr should be provided"
_HEX_ID: Final = re.compile(r"[0-9a-fA-F]{32}")
_HOST_AND_PORT: Final = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?", re.ASCII)


class StorageError(ValueError):
    """The spec does not say where the storage is, or contradicts itself; the text never repeats a URL."""


_WIRES: Final = {"postgresql": Wire.LIBPQ, "postgres": Wire.LIBPQ, "grpc": Wire.GRPC}


class Pageserver(msgspec.Struct, frozen=True):
    """One server of a shard."""

    url: Secret
    wire: Wire


class Shard(msgspec.Struct, frozen=True):
    """One shard; `index` is its number and the count in hexadecimal digits (`0104` is number 1 of 4)."""

    index: str
    servers: tuple[Pageserver, ...]
    """At least one; the first is the one that is used, leases go to all."""


class Storage(msgspec.Struct, frozen=True):
    """What a node needs to find its data. Two are equal when nothing moved."""

    tenant_id: str
    timeline_id: str
    shards: tuple[Shard, ...]
    """In the order of their numbers; the base backup comes from the first."""
    stripe_size: int | None = None
    """In pages; None where the spec leaves it to Postgres, or there is one shard."""

    def tenant_shard_id(self, shard: Shard) -> str:
        """Return the tenant's id as commands to that shard name it."""
        return self.tenant_id if shard.index == UNSHARDED else f"{self.tenant_id}-{shard.index}"


def storage_of(spec: ComputeSpec) -> Storage:
    """Read where the storage is. Raises StorageError with the first problem."""
    shards, stripe_size = pageservers(spec)
    ids = []
    for field, what in (("tenant_id", "tenant id"), ("timeline_id", "timeline id")):
        value = getattr(spec, field) or spec.cluster.setting(f"neon.{field}")
        if value is None:
            _refuse(f"{what} should be provided")
        if _HEX_ID.fullmatch(value) is None:
            _refuse(f"invalid {what}")
        ids.append(value.lower())
    return Storage(ids[0], ids[1], shards, stripe_size)


def libpq_urls(info: PageserverConnectionInfo) -> tuple[Secret, ...] | None:
    """Return the first libpq URL of each shard; None when a shard has none. Raises StorageError."""
    urls = tuple(_servers(info, index)[0].libpq_url for index in _indices(info.shard_count))
    return tuple(url for url in urls if url is not None) if None not in urls else None


def safekeepers_of(spec: ComputeSpec) -> tuple[str, ...]:
    """Return the safekeepers as `host:port`; only for a Primary also from the setting. Raises StorageError."""
    if spec.safekeeper_connstrings or spec.compute_mode is not Mode.PRIMARY:
        return spec.safekeeper_connstrings
    listed = spec.cluster.setting("neon.safekeepers")
    if listed is None:
        _refuse("safekeeper connstrings should be provided")
    return tuple(listed.split(",")) if listed else ()


def safekeeper_problem(safekeepers: tuple[str, ...], field: str = "safekeeper_connstrings") -> str | None:
    """Say why no primary can do with the safekeepers that this field names; the first problem, or None."""
    if not safekeepers:
        return f"{field} is empty"
    ordered = sorted(safekeepers)
    for one, next_one in pairwise(ordered):
        if one == next_one:
            return f"duplicate entry in {field}: {mask_credentials(one)}!"
    for number, name in enumerate(safekeepers, start=1):
        found = _HOST_AND_PORT.fullmatch(name)
        if found is None or not 0 < int(found[1] or 1) < 2**16:
            return f"{field}: entry {number} is not of the form host:port"
    return None


def pageservers(spec: ComputeSpec) -> tuple[tuple[Shard, ...], int | None]:
    """Return the shards in their order, and the stripe size. Raises StorageError."""
    info, old = spec.pageserver_connection_info, spec.pageserver_connstring
    if info is not None:
        if old is not None and not _agree(info, old, spec.shard_stripe_size):
            _refuse("`pageserver_connection_info` and `pageserver_connstring` do not agree: give one of them")
        return _of_info(info)
    stripe_size = spec.shard_stripe_size
    if old is None:
        listed = spec.cluster.setting("neon.pageserver_connstring")
        if listed is None:
            _refuse(MISSING)
        old = Secret(listed)
        if (striped := spec.cluster.setting("neon.stripe_size")) is not None:
            if not (striped.isascii() and striped.isdecimal()):
                _refuse("the setting `neon.stripe_size` is not a number of pages")
            stripe_size = int(striped)
    urls = old.reveal().split(",")
    shards = tuple(
        Shard(index, (Pageserver(Secret(url), _wire(url)),))
        for index, url in zip(_indices(len(urls) if len(urls) > 1 else 0), urls, strict=True)
    )
    return shards, stripe_size if len(urls) > 1 else None


def _of_info(info: PageserverConnectionInfo) -> tuple[tuple[Shard, ...], int | None]:
    if (info.stripe_size is None) != (info.shard_count == 0):
        _refuse("`pageserver_connection_info.stripe_size` is given exactly when `shard_count` is not 0")
    wire = info.prefer_protocol
    shards = []
    for number, index in enumerate(_indices(info.shard_count)):
        urls = [getattr(server, f"{wire.value}_url") for server in _servers(info, index)]
        if None in urls:
            _refuse(f"no {wire.value}_url for shard {number}")
        shards.append(Shard(index, tuple(Pageserver(url, wire) for url in urls)))
    return tuple(shards), info.stripe_size


def _servers(info: PageserverConnectionInfo, index: str) -> tuple[PageserverUrls, ...]:
    number = int(index[:2], 16)
    if (shard := info.shards.get(index)) is None:
        _refuse(f"shard connection info missing for shard {number}")
    if not shard.pageservers:
        _refuse(f"must have at least one pageserver (shard {number})")
    return shard.pageservers


def _indices(count: int) -> tuple[str, ...]:
    return tuple(f"{number:02x}{count:02x}" for number in range(max(1, count)))


def _agree(info: PageserverConnectionInfo, old: Secret, stripe_size: int | None) -> bool:
    urls = libpq_urls(info)
    same_stripes = info.shard_count == 0 or stripe_size is None or stripe_size == info.stripe_size
    return urls is not None and [url.reveal() for url in urls] == old.reveal().split(",") and same_stripes


def _wire(url: str) -> Wire:
    scheme, has_scheme, _ = url.partition("://")
    if not has_scheme or "=" in scheme:
        return Wire.LIBPQ  # keywords and values
    if scheme not in _WIRES:
        _refuse(f"invalid protocol scheme: {scheme[:40]}")
    return _WIRES[scheme]


def _refuse(text: str) -> NoReturn:
    raise StorageError(text)

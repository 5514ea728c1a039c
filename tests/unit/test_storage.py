"""Where the storage is, by the spec; and LSNs as text."""

from typing import Any

import pytest
from compute_node.messages.secret import Secret
from compute_node.messages.spec import (
    Cluster,
    ComputeSpec,
    GenericOption,
    PageserverConnectionInfo,
    PageserverShard,
    PageserverUrls,
    Wire,
)
from compute_node.postgres.conf import ConfContext, ConfError, render
from compute_node.postgres.lsn import parse_lsn, show_lsn
from compute_node.postgres.storage import Shard, StorageError, safekeeper_problem, safekeepers_of, storage_of
from hypothesis import given
from hypothesis import strategies as st

from doubles.specs import a_spec

TENANT, TIMELINE = "AB" * 16, "cd" * 16


def spec(**changes: Any) -> ComputeSpec:
    return a_spec(**({"tenant_id": TENANT, "timeline_id": TIMELINE} | changes))


def servers(*urls: str | None, grpc: str | None = None) -> PageserverShard:
    libpq = [None if url is None else Secret(url) for url in urls]
    return PageserverShard(
        tuple(PageserverUrls(libpq_url=url, grpc_url=None if grpc is None else Secret(grpc)) for url in libpq)
    )


def info(count: int = 0, stripe: int | None = None, **changes: Any) -> PageserverConnectionInfo:
    shards = {f"{n:02x}{count:02x}": servers(f"postgresql://ps{n}") for n in range(max(1, count))}
    return PageserverConnectionInfo(
        **({"shard_count": count, "stripe_size": stripe, "shards": shards} | changes)
    )


def shown(shards: tuple[Shard, ...]) -> list[tuple[str, list[tuple[str, Wire]]]]:
    return [(s.index, [(server.url.reveal(), server.wire) for server in s.servers]) for s in shards]


def test_one_string_is_an_unsharded_tenant_and_ids_are_lower_case() -> None:
    storage = storage_of(spec(pageserver_connstring=Secret("postgresql://a"), shard_stripe_size=8))
    assert shown(storage.shards) == [("0000", [("postgresql://a", Wire.LIBPQ)])]
    assert (storage.tenant_id, storage.timeline_id, storage.stripe_size) == ("ab" * 16, TIMELINE, None)
    assert storage.tenant_shard_id(storage.shards[0]) == "ab" * 16


def test_several_strings_are_shards_in_order_each_with_its_own_protocol() -> None:
    urls = "grpc://a:1/?x=y://z,postgres://b,host=c port=5,options='-c x=http://y' host=d"
    storage = storage_of(spec(pageserver_connstring=Secret(urls), shard_stripe_size=8))
    assert shown(storage.shards) == [
        ("0004", [("grpc://a:1/?x=y://z", Wire.GRPC)]),
        ("0104", [("postgres://b", Wire.LIBPQ)]),
        ("0204", [("host=c port=5", Wire.LIBPQ)]),
        ("0304", [("options='-c x=http://y' host=d", Wire.LIBPQ)]),
    ]
    assert storage.tenant_shard_id(storage.shards[1]) == f"{'ab' * 16}-0104"
    assert storage.stripe_size == 8


def test_the_settings_are_the_last_source() -> None:
    names = {
        "pageserver_connstring": "a,b",
        "stripe_size": "16",
        "tenant_id": TENANT,
        "timeline_id": TIMELINE,
    }
    storage = storage_of(a_spec(cluster=settings(**names)))
    assert [index for index, _ in shown(storage.shards)] == ["0002", "0102"]
    assert (storage.stripe_size, storage.tenant_id) == (16, "ab" * 16)


def test_the_connection_info_names_all_servers_of_a_shard_by_the_preferred_protocol() -> None:
    given_info = info(
        2,
        8,
        shards={"0002": servers("postgresql://a", "postgresql://b"), "0102": servers("postgresql://c")},
    )
    storage = storage_of(spec(pageserver_connection_info=given_info))
    assert shown(storage.shards) == [
        ("0002", [("postgresql://a", Wire.LIBPQ), ("postgresql://b", Wire.LIBPQ)]),
        ("0102", [("postgresql://c", Wire.LIBPQ)]),
    ]
    both = info(shards={"0000": servers("postgresql://a", grpc="grpc://a")}, prefer_protocol=Wire.GRPC)
    assert shown(storage_of(spec(pageserver_connection_info=both)).shards) == [
        ("0000", [("grpc://a", Wire.GRPC)])
    ]


def settings(**values: str) -> Cluster:
    return Cluster(
        (),
        (),
        settings=tuple(GenericOption(f"neon.{name}", "string", value) for name, value in values.items()),
    )


def without_the_last(given_info: PageserverConnectionInfo) -> dict[str, PageserverShard]:
    return dict(list(given_info.shards.items())[:-1])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "pageserver connstr should be provided"),
    "another scheme": (
        {"pageserver_connstring": Secret("http://u:canary@h")},
        "invalid protocol scheme: http",
    ),
    "a shard is missing": (
        {"pageserver_connection_info": info(2, 8, shards={"0002": servers("a")})},
        "shard connection info missing for shard 1",
    ),
    "a shard without servers": (
        {"pageserver_connection_info": info(shards={"0000": PageserverShard(())})},
        "must have at least one pageserver (shard 0)",
    ),
    "no url of that protocol": (
        {"pageserver_connection_info": info(prefer_protocol=Wire.GRPC)},
        "no grpc_url for shard 0",
    ),
    "no libpq url": (
        {"pageserver_connection_info": info(shards={"0000": servers(None, grpc="grpc://a")})},
        "no libpq_url for shard 0",
    ),
    "sharded without stripes": (
        {"pageserver_connection_info": info(2)},
        "`pageserver_connection_info.stripe_size` is given exactly when `shard_count` is not 0",
    ),
    "old and new disagree": (
        {"pageserver_connection_info": info(), "pageserver_connstring": Secret("postgresql://other")},
        "`pageserver_connection_info` and `pageserver_connstring` do not agree: give one of them",
    ),
    "old and new disagree about stripes": (
        {
            "pageserver_connection_info": info(2, 8),
            "pageserver_connstring": Secret("postgresql://ps0,postgresql://ps1"),
            "shard_stripe_size": 9,
        },
        "`pageserver_connection_info` and `pageserver_connstring` do not agree: give one of them",
    ),
    "no tenant": (
        {"pageserver_connstring": Secret("a"), "tenant_id": None},
        "tenant id should be provided",
    ),
    "no timeline": (
        {"pageserver_connstring": Secret("a"), "timeline_id": None},
        "timeline id should be provided",
    ),
    "a timeline that is none": (
        {
            "pageserver_connstring": Secret("a"),
            "timeline_id": None,
            "cluster": settings(timeline_id="canary"),
        },
        "invalid timeline id",
    ),
    "one of many shards is missing": (
        {"pageserver_connection_info": info(17, 8, shards=without_the_last(info(17)))},
        "shard connection info missing for shard 16",
    ),
    "stripes of no number": (
        {"cluster": settings(pageserver_connstring="a,b", stripe_size="-8")},
        "the setting `neon.stripe_size` is not a number of pages",
    ),
    "stripes of a foreign number": (
        {"cluster": settings(pageserver_connstring="a,b", stripe_size="\N{ARABIC-INDIC DIGIT EIGHT}")},
        "the setting `neon.stripe_size` is not a number of pages",
    ),
    "a long scheme": (
        {"pageserver_connstring": Secret(f"{'s' * 50}://canary")},
        f"invalid protocol scheme: {'s' * 40}",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_or_contradicts_itself_is_refused_by_name(case: str) -> None:
    changes, problem = REFUSED[case]
    with pytest.raises(StorageError) as caught:
        storage_of(spec(**changes))
    assert str(caught.value) == problem


def test_old_and_new_form_beside_each_other_may_agree() -> None:
    old = Secret("postgresql://ps0,postgresql://ps1")
    both = spec(pageserver_connection_info=info(2, 8), pageserver_connstring=old, shard_stripe_size=8)
    assert storage_of(both) == storage_of(spec(pageserver_connstring=old, shard_stripe_size=8))
    one = Secret("postgresql://ps0")
    alone = spec(pageserver_connection_info=info(), pageserver_connstring=one, shard_stripe_size=9)
    assert storage_of(alone) == storage_of(spec(pageserver_connstring=one)), "one shard has no stripes"


def test_only_a_primary_finds_safekeepers_in_the_setting() -> None:
    cluster = settings(safekeepers="a:1,b:1")
    assert safekeepers_of(a_spec(cluster=settings(safekeepers=""))) == ()
    assert safekeepers_of(a_spec(cluster=cluster)) == ("a:1", "b:1")
    assert safekeepers_of(a_spec(cluster=cluster, mode="Replica")) == ()
    with pytest.raises(StorageError, match="safekeeper connstrings should be provided"):
        safekeepers_of(a_spec())


@pytest.mark.parametrize(
    ("safekeepers", "problem"),
    [
        (("a:1", "b:65535", "10.0.0.1:5454", "[::1]:5454", "c"), None),
        ((), "safekeeper_connstrings is empty"),
        (("b:1", "a:1", "b:1"), "duplicate entry in safekeeper_connstrings: b:1!"),
        (("a:1", "b:0"), "safekeeper_connstrings: entry 2 is not of the form host:port"),
        (("a:65536",), "safekeeper_connstrings: entry 1 is not of the form host:port"),
        (("a:1", ""), "safekeeper_connstrings: entry 2 is not of the form host:port"),
        (("http://a:1",), "safekeeper_connstrings: entry 1 is not of the form host:port"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_safekeepers_are_different_hosts_with_ports(
    safekeepers: tuple[str, ...], problem: str | None
) -> None:
    assert safekeeper_problem(safekeepers) == problem


# --- The lines of postgresql.conf


def conf(changed: PageserverConnectionInfo) -> list[str]:
    text = render(spec(pageserver_connection_info=changed), ConfContext(3081, "neon_superuser")).text
    lines = text.splitlines()
    return lines[: lines.index(f"neon.tenant_id='{'ab' * 16}'")]


def test_the_connection_info_is_written_stripes_first() -> None:
    assert conf(info(2, 8)) == [
        "# Neon storage settings",
        "",
        "# from compute spec's pageserver_connection_info.stripe_size field",
        "neon.stripe_size=8",
        "# derived from compute spec's pageserver_connection_info field",
        "neon.pageserver_connstring='postgresql://ps0,postgresql://ps1'",
    ]


def test_without_a_libpq_url_of_every_shard_there_is_no_connection_string() -> None:
    grpc = info(shards={"0000": servers(None, grpc="grpc://a")})
    assert conf(grpc) == ["# Neon storage settings", "", "# no neon.pageserver_connstring"]
    with pytest.raises(ConfError, match=r"pageserver_connection_info.*missing for shard 0"):
        conf(info(shards={}))


# --- LSNs


@given(st.integers(0, 2**64 - 1))
def test_every_lsn_is_read_as_it_was_shown(lsn: int) -> None:
    assert parse_lsn(show_lsn(lsn)) == lsn


@pytest.mark.parametrize(
    ("text", "shown_as"), [(" 0/169ad58\n", "0/169AD58"), ("0/0", "0/0"), ("00000000001/0000000a", "1/A")]
)
def test_an_lsn_is_shown_in_its_one_form(text: str, shown_as: str) -> None:
    assert show_lsn(parse_lsn(text)) == shown_as


@pytest.mark.parametrize("text", ["", "1", "0/", "/0", "0/g", "1/2/3", "123456789/0", "0/123456789"])
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        parse_lsn(text)

"""How many databases are visited at a time."""

import pytest
from compute_node.actors.configurator.limits import described_max_connections, visit_limit
from compute_node.messages.spec import Cluster, ComputeSpec, GenericOption


def a_spec(setting: str | None = None, conf: str | None = None, concurrency: int = 1) -> ComputeSpec:
    settings = None if setting is None else (GenericOption("max_connections", "integer", setting),)
    cluster = Cluster((), (), postgresql_conf=conf, settings=settings)
    return ComputeSpec(1.0, cluster, 0, reconfigure_concurrency=concurrency)


@pytest.mark.parametrize(
    ("setting", "conf", "expected"),
    [
        ("100", None, 100),
        ("100", "max_connections = 7", 100),
        ("lots", "max_connections = 7", None),
        ("-1", None, None),
        (None, "max_connections = 7", 7),
        (None, "a = 1\n \tmax_connections\t=  40 \nmax_connections = 9", 40),
        (None, "max_connections = '7'\nmax_connections = 8", 8),
        (None, "# max_connections = 7", None),
        (None, "max_connections = 7 # comment", None),
        (None, None, None),
    ],
)
def test_max_connections_is_read_from_the_setting_else_from_the_first_plain_line(
    setting: str | None, conf: str | None, expected: int | None
) -> None:
    assert described_max_connections(a_spec(setting, conf)) == expected


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ("0", 1),
        ("1", 1),
        ("9", 9),
        ("10", 10),
        ("29", 10),
        ("30", 10),
        ("100", 33),
        ("299", 99),
        ("900", 100),
        ("x", 10),
    ],
)
def test_at_the_start_the_limit_follows_max_connections(described: str, expected: int) -> None:
    limit = visit_limit(a_spec(described), starting=True, max_connections=1000, descriptors=4096)
    assert limit == expected


@pytest.mark.parametrize(("concurrency", "expected"), [(0, 1), (1, 1), (7, 7), (5000, 100)])
def test_a_reconfiguration_has_its_own_limit(concurrency: int, expected: int) -> None:
    spec = a_spec("100", concurrency=concurrency)
    assert visit_limit(spec, starting=False, max_connections=1000, descriptors=4096) == expected


@pytest.mark.parametrize(
    ("server", "descriptors", "expected"), [(8, 4096, 5), (3, 4096, 1), (1000, 64, 16), (1000, -1, 33)]
)
def test_neither_the_server_nor_this_process_is_asked_for_more_than_it_has(
    server: int, descriptors: int, expected: int
) -> None:
    assert (
        visit_limit(a_spec("100"), starting=True, max_connections=server, descriptors=descriptors) == expected
    )

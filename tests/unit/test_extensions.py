"""What is told of installed extensions, and how often they are looked for."""

import pytest
from compute_node.actors.configurator.extensions import (
    Extension,
    InstalledExtension,
    interval_s,
    log_line,
    period_s,
    summary,
)

HOUR_S = 3600


def test_databases_are_counted_by_version_and_owner() -> None:
    found = [
        Extension("plpgsql", "1.0", 10),
        Extension("plpgsql", "1.0", 10),
        Extension("hstore", "1.7", 10),
        Extension("hstore", "1.8", 10),
        Extension("hstore", "1.8", 16400),
    ]
    assert summary(found) == (
        InstalledExtension("hstore", "1.7", 1, "1"),
        InstalledExtension("hstore", "1.8", 1, "0"),
        InstalledExtension("hstore", "1.8", 1, "1"),
        InstalledExtension("plpgsql", "1.0", 2, "1"),
    )
    assert summary([]) == ()


def test_the_line_of_the_log_is_that_of_the_counterpart() -> None:
    assert log_line(summary([Extension("plpgsql", "1.0", 10), Extension("plpgsql", "1.0", 10)])) == (
        '[NEON_EXT_STAT] {"extensions":'
        '[{"extname":"plpgsql","version":"1.0","n_databases":2,"owned_by_superuser":"1"}]}'
    )
    assert log_line(()) == '[NEON_EXT_STAT] {"extensions":[]}'


@pytest.mark.parametrize(
    ("wanted", "interval"),
    [(-(2**63), HOUR_S), (-2, HOUR_S), (-1, HOUR_S), (0, HOUR_S), (1, 1), (300, 300), (2**63 - 1, 2**63 - 1)],
)
def test_a_suspend_timeout_is_an_interval_only_above_0(wanted: int, interval: int) -> None:
    assert interval_s(wanted) == interval


@pytest.mark.parametrize(
    ("interval", "before", "period"), [(300, 0, 600), (300, 7200, 7200), (HOUR_S, 600, 7200)]
)
def test_the_time_between_two_looks_is_twice_the_interval_and_never_gets_shorter(
    interval: int, before: int, period: int
) -> None:
    assert period_s(interval, before) == period

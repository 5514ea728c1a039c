"""Which errors of a pageserver are worth another attempt; and how far a backup is, in words."""

import pytest
from compute_node.actors.kit.metrics import Metrics
from compute_node.actors.postgres_process.sources import progress
from compute_node.actors.postgres_process.sources.progress import Progress, amount, bar
from compute_node.actors.postgres_process.sources.refusals import PageserverError, is_passing
from compute_node.messages.metrics import BASEBACKUP_RECEIVED

PERMANENT = [
    ("JWT authentication error", "XX000"),
    ("JWT authentication error", None),
    ("anything", "28000"),
    ("anything", "28P01"),
    ("syntax error", "42601"),
    ("permission denied for this tenant", "XX000"),
    ("Tenant id mismatch. Permission denied", "XX000"),
    ("Not found: Tenant 1/2 was not found", "XX000"),
    ("not found", "XX000"),
    ("Not found: timeline is archived", "XX000"),
    ("invalid basebackup lsn: LSN 0/10 is behind the GC cutoff", "XX000"),
    ("connection failed: fe_sendauth: no password supplied", None),
    ("must connect with TLS", "XX000"),
    ("its connection string is neither a URL nor keywords and values of libpq", None),
    ("timeline is archived", "FAILED_PRECONDITION"),
    ("LSN out of range", "INVALID_ARGUMENT"),
    ("no", "NOT_FOUND"),
    ("no", "UNAUTHENTICATED"),
    ("no", "PERMISSION_DENIED"),
]
PASSING = [
    ("shutting down", "57P01"),
    ("reconnect", "08006"),
    ("connection failed: connection refused", None),
    ("the host 'ps' cannot be found: Temporary failure in name resolution", None),
    ("timed out waiting for LSN 0/10", "XX000"),
    ("tenant not found; it is loading", "XX000"),
    ("server closed the connection unexpectedly", None),
    ("the stream was cut off", None),
    ("connection failed: expected authentication request from server, but received H", None),
    ("something that nobody knows", "XX000"),
    ("no connection within 30 s", "UNAVAILABLE"),
    ("oops", "INTERNAL"),
]


@pytest.mark.parametrize(("text", "code"), PERMANENT)
def test_what_does_not_heal_is_permanent(text: str, code: str | None) -> None:
    assert not is_passing(text, code)
    assert not PageserverError(text, code).passing


@pytest.mark.parametrize(("text", "code"), PASSING)
def test_what_may_heal_or_is_not_known_is_tried_again(text: str, code: str | None) -> None:
    assert is_passing(text, code)
    error = PageserverError(text, code)
    assert (str(error), error.code, error.passing) == (text, code, True)


# --- Progress


def test_the_log_is_told_every_ten_seconds_and_the_metric_always(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    metrics, now = Metrics(), [100.0]
    heard = Progress("base backup", lambda: now[0], metrics)
    for seconds in (1.0, 9.0, 1.0, 8.0, 3.0):
        now[0] += seconds
        heard(round(now[0]) * 10**6, 2 * 10**6)
    said = [record.message for record in caplog.records if record.name != progress.BAR.name]
    assert said == [
        "base backup: 110.0 MB received, 2.0 MB unpacked, 11.0 MB/s",
        "base backup: 122.0 MB received, 2.0 MB unpacked, 5.5 MB/s",
    ]
    assert metrics.read(BASEBACKUP_RECEIVED) == {(): 122e6}


def test_a_bar_fills_up_where_the_end_is_known_and_moves_where_it_is_not() -> None:
    assert bar(50, 100, 0.0) == "[" + "=" * 12 + " " * 12 + "]"
    assert bar(500, 100, 0.0) == "[" + "=" * 24 + "]"
    drawn = [bar(1, None, tick / 10) for tick in range(43)]
    assert {len(one) for one in drawn} == {26}
    assert drawn[0] == drawn[42] == "[<=>" + " " * 21 + "]"
    assert drawn[21] == "[" + " " * 21 + "<=>]"
    assert len(set(drawn)) == 22
    assert amount(10**6, 0, 2.0, 4 * 10**6) == "1.0 of 4.0 MB received, 0.0 MB unpacked, 0.5 MB/s"
    assert amount(10**6, None, 2.0) == "1.0 MB received, 0.5 MB/s", "nothing is unpacked"

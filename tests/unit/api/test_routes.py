"""Sections 7.1, 7.2, 7.3, 8.1 and 8.2 of the HTTP API, and our own routes."""

import msgspec
import pytest
from compute_node.actors.kit.metrics import Metrics
from compute_node.http.app import create_external_app, create_internal_app
from compute_node.http.routes import configure
from compute_node.http.waiting import CONFIGURE_LIMIT_S, STOP_MARGIN_S
from compute_node.messages import metrics as families
from compute_node.messages.base import ActorUnavailableError, AskTimeoutError
from compute_node.messages.lifecycle import (
    Condition,
    ConditionReport,
    Configure,
    Configured,
    ConfigureFailed,
    ConfigureOutcome,
    ConfigureRefused,
    GetJournal,
    GetReadiness,
    GetStatus,
    JournalEntry,
    NodeStatus,
    Readiness,
    ShutdownMode,
    Status,
    Terminate,
    Terminated,
    TerminateFailed,
)

from doubles.node import CONFIGURE, RUNNING, Client, StubSupervisor, node

# --- GET /status, GET /metrics.json


def test_the_status_has_all_six_keys_in_their_order(client: Client) -> None:
    result = client("GET", "/status")
    assert result.status_code == 200
    assert result.headers["content-type"] == "application/json"
    assert result.text == (
        '{"start_time":"2025-07-17T12:00:00.123456789Z",'
        '"tenant":"c9269c359e9a199fad1ea0981246a78f",'
        '"timeline":"ece7de74d4b8cbe5433a68ce4d1b97b4",'
        '"status":"running",'
        '"last_active":"2025-07-17T12:05:00.500123+00:00",'
        '"error":null}'
    )


@pytest.mark.parametrize("status", list(Status))
def test_the_status_is_200_in_every_status(
    client: Client, supervisor: StubSupervisor, status: Status
) -> None:
    supervisor.answers[GetStatus] = NodeStatus("t", None, None, status, None, "gone\n\nCaused by:\n    x")
    result = client("GET", "/status")
    assert result.status_code == 200
    assert result.json["status"] == status.value
    assert result.json["error"] == "gone\n\nCaused by:\n    x"


def test_the_startup_metrics_have_all_thirteen_fields(client: Client) -> None:
    result = client("GET", "/metrics.json")
    assert result.status_code == 200
    assert list(result.json) == [
        "wait_for_spec_ms", "sync_sk_check_ms", "sync_safekeepers_ms", "pageserver_connect_micros",
        "basebackup_ms", "basebackup_bytes", "start_postgres_ms", "config_ms", "total_startup_ms",
        "load_ext_ms", "num_ext_downloaded", "largest_ext_size", "total_ext_download_size",
    ]  # fmt: skip
    assert result.json["start_postgres_ms"] == 210


# --- GET /metrics


def test_metrics_need_no_token_and_have_the_text_type(client: Client) -> None:
    result = client("GET", "/metrics", token="")
    assert result.status_code == 200
    assert result.headers["content-type"] == "text/plain; version=0.0.4"


def test_unlabelled_families_are_there_with_zero_and_labelled_ones_with_their_first_sample(
    client: Client, metrics: Metrics
) -> None:
    before = client("GET", "/metrics").text
    assert "\ncompute_pg_downtime_ms_total 0.0\n" in before
    assert "\ncompute_pg_current_downtime_ms 0.0\n" in before
    assert "compute_ctl_up" not in before
    metrics.replace(families.UP, {("v1", "running"): 1.0})
    metrics.add(families.DOWNTIME_TOTAL, 250)
    after = client("GET", "/metrics").text
    assert '\ncompute_ctl_up{build_tag="v1",status="running"} 1.0\n' in after
    assert "\ncompute_pg_downtime_ms_total 250.0\n" in after


def test_each_family_bears_exactly_its_name_and_type(client: Client, metrics: Metrics) -> None:
    plain = [family for family in families.FAMILIES if family.kind is not families.Kind.HISTOGRAM]
    for family in plain:
        labels = tuple("x" for _ in family.labels)
        metrics.replace(family, {labels: 7.0})
    lines = client("GET", "/metrics").text.splitlines()
    for family in plain:
        shown = ",".join(f'{label}="x"' for label in sorted(family.labels))
        assert f"# TYPE {family.name} {family.kind.value}" in lines
        assert f"# HELP {family.name} {family.help}" in lines
        assert f"{family.name}{{{shown}}} 7.0".replace("{}", "") in lines
    assert len(lines) == 3 * len(plain)
    assert not [line for line in lines if "_created" in line or "_total_total" in line]


def test_a_histogram_is_shown_by_buckets_that_count_all_below_with_count_and_sum(
    client: Client, metrics: Metrics
) -> None:
    for value in (500.0, 5_000.0, 1e9):
        metrics.observe(families.LFC_STATE_BYTES, value, "offload")
    metrics.observe(families.LFC_STATE_BYTES, 1.0, "prewarm")
    text = client("GET", "/metrics").text
    name = families.LFC_STATE_BYTES.name
    assert f"# TYPE {name} histogram\n" in text
    shown = [
        line.removeprefix(name) for line in text.splitlines() if line.startswith(name) and "offload" in line
    ]
    assert shown == [
        *(
            f'_bucket{{le="{le}",operation="offload"}} {count}'
            for le, count in (
                ("1000.0", 1.0),
                ("10000.0", 2.0),
                ("100000.0", 2.0),
                ("1000000.0", 2.0),
                ("10000000.0", 2.0),
                ("100000000.0", 2.0),
                ("+Inf", 3.0),
            )
        ),
        '_count{operation="offload"} 3.0',
        '_sum{operation="offload"} 1.0000055e+09',
    ]
    assert f'{name}_count{{operation="prewarm"}} 1.0\n' in text


def test_label_values_are_escaped(client: Client, metrics: Metrics) -> None:
    metrics.replace(families.CONDITION, {('a"b\\c\nd',): 1.0})
    assert 'compute_node_condition{condition="a\\"b\\\\c\\nd"} 1.0\n' in client("GET", "/metrics").text


def test_numbers_that_must_be_fetched_are_fetched_before_each_scrape(
    supervisor: StubSupervisor, metrics: Metrics
) -> None:
    app = create_external_app(
        node(supervisor, metrics, refresh=lambda: metrics.set(families.MAILBOX_DEPTH, 3, "supervisor"))
    )
    assert 'compute_node_mailbox_depth{actor="supervisor"} 3.0\n' in Client(app)("GET", "/metrics").text


# --- POST /configure


def test_a_spec_that_was_applied_is_200_with_the_status(client: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[Configure] = Configured(RUNNING)
    result = client("POST", "/configure", document=CONFIGURE)
    assert result.status_code == 200
    assert result.json["status"] == "running"
    assert len(result.json) == 6
    (request, _), *rest = supervisor.asked
    assert isinstance(request, Configure)
    assert request.spec.suspend_timeout_seconds == -1
    assert rest == []


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [
        (ConfigureRefused("setting `x`: bad", bad_spec=True), 400, "setting `x`: bad"),
        (
            ConfigureRefused("invalid compute status: init", bad_spec=False),
            412,
            "invalid compute status: init",
        ),
        (ConfigureFailed('role "a"\nfailed'), 500, 'compute configuration failed: "role \\"a\\"\\nfailed"'),
    ],
)
def test_a_spec_that_was_not_applied_says_why(
    client: Client, supervisor: StubSupervisor, outcome: ConfigureOutcome, status: int, error: str
) -> None:
    supervisor.answers[Configure] = outcome
    result = client("POST", "/configure", document=CONFIGURE)
    assert (result.status_code, result.json) == (status, {"error": error})


@pytest.mark.parametrize(
    ("failure", "status"), [(AskTimeoutError("late"), 504), (ActorUnavailableError("dead"), 503)]
)
def test_a_configuration_without_an_answer_says_so(
    client: Client, supervisor: StubSupervisor, failure: Exception, status: int
) -> None:
    supervisor.answers[Configure] = failure
    if status == 504:
        supervisor.answers.pop(Configure)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(configure, "CONFIGURE_LIMIT_S", 0.01)
            result = client("POST", "/configure", document=CONFIGURE)
    else:
        result = client("POST", "/configure", document=CONFIGURE)
    assert result.status_code == status


def test_a_configuration_is_waited_for_ten_minutes_at_most() -> None:
    assert CONFIGURE_LIMIT_S == 600


# --- POST /terminate


@pytest.mark.parametrize(
    ("target", "mode"),
    [
        ("/terminate", ShutdownMode.FAST),
        ("/terminate?mode=fast", ShutdownMode.FAST),
        ("/terminate?mode=immediate", ShutdownMode.IMMEDIATE),
        ("/terminate?else=1&mode=immediate", ShutdownMode.IMMEDIATE),
    ],
)
def test_the_mode_of_a_termination_is_fast_unless_it_says_otherwise(
    client: Client, supervisor: StubSupervisor, target: str, mode: ShutdownMode
) -> None:
    supervisor.answers[Terminate] = Terminated(lsn="0/28F10D8")
    result = client("POST", target)
    assert (result.status_code, result.text) == (200, '{"lsn":"0/28F10D8"}')
    assert [request for request, _ in supervisor.asked] == [Terminate(mode)]


def test_without_safekeepers_the_lsn_is_null(client: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[Terminate] = Terminated(lsn=None)
    assert client("POST", "/terminate").text == '{"lsn":null}'


def test_a_termination_that_had_happened_already_is_201(client: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[Terminate] = Terminated(lsn="0/1", repeated=True)
    result = client("POST", "/terminate")
    assert (result.status_code, result.text) == (201, '{"lsn":"0/1"}')


def test_a_termination_that_is_given_up_is_500(client: Client, supervisor: StubSupervisor) -> None:
    supervisor.answers[Terminate] = TerminateFailed("Postgres was not reported stopped")
    result = client("POST", "/terminate")
    assert (result.status_code, result.json) == (500, {"error": "Postgres was not reported stopped"})


def test_a_termination_is_waited_for_as_long_as_a_stop_may_take(
    supervisor: StubSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    app = create_external_app(node(supervisor))
    supervisor.answers[Terminate] = Terminated(lsn=None)

    def waited(*_: object, limit_s: float, **__: object) -> Terminated:
        limits.append(limit_s)
        return Terminated(lsn=None)

    monkeypatch.setattr(app.waiters, "wait", waited)
    Client(app)("POST", "/terminate")
    assert limits == [25.0 + STOP_MARGIN_S]


# --- GET /live, GET /ready


@pytest.mark.parametrize("path", ["/live", "/ready"])
def test_probes_need_no_token_and_wait_a_second_at_most(
    client: Client, supervisor: StubSupervisor, path: str
) -> None:
    supervisor.answers[GetReadiness] = Readiness(ready=True, conditions=())
    assert client("GET", path, token="").status_code == 200
    assert [timeout for _, timeout in supervisor.asked] == [1.0]


def test_a_node_that_is_not_ready_is_live(client: Client, supervisor: StubSupervisor) -> None:
    conditions = (ConditionReport(Condition.STARTING), ConditionReport(Condition.DISK_FULL, "/pgdata"))
    supervisor.answers[GetReadiness] = Readiness(ready=False, conditions=conditions)
    live, ready = client("GET", "/live"), client("GET", "/ready")
    assert (live.status_code, live.json) == (200, {"live": True, "conditions": []})
    assert ready.status_code == 503
    assert ready.json == {
        "ready": False,
        "conditions": [
            {"condition": "starting", "detail": ""},
            {"condition": "disk_full", "detail": "/pgdata"},
        ],
    }


@pytest.mark.parametrize("failure", [AskTimeoutError("late"), ActorUnavailableError("dead: hunter2")])
@pytest.mark.parametrize("path", ["/live", "/ready"])
def test_a_supervisor_that_does_not_answer_is_503(
    client: Client, supervisor: StubSupervisor, path: str, failure: Exception
) -> None:
    supervisor.answers[GetReadiness] = failure
    result = client("GET", path)
    assert result.status_code == 503
    assert [report["condition"] for report in result.json["conditions"]] == ["supervisor_unresponsive"]
    assert "hunter2" not in result.text


def test_the_internal_server_tells_whether_the_node_is_live(supervisor: StubSupervisor) -> None:
    supervisor.answers[GetReadiness] = Readiness(ready=True, conditions=())
    result = Client(create_internal_app(node(supervisor)), token="")("GET", "/live")
    assert (result.status_code, result.json) == (200, {"live": True, "conditions": []})


# --- GET /debug/journal


def test_the_journal_needs_a_token_and_comes_as_it_was_kept(
    client: Client, supervisor: StubSupervisor
) -> None:
    entry = JournalEntry(1, 1.5, "supervisor", "Boot", 0.1, msgspec.Raw(b'{"message":"Boot"}'))
    supervisor.answers[GetJournal] = (entry,)
    assert client("GET", "/debug/journal", token="").status_code == 400
    result = client("GET", "/debug/journal")
    assert result.status_code == 200
    assert result.json[0]["content"] == {"message": "Boot"}

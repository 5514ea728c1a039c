"""`POST /plan` and `GET /drift`: two actors are asked, and their answers are one body."""

from typing import Any

import pytest
from compute_node.messages.lifecycle import Status
from compute_node.messages.planning import (
    CannotPlan,
    CatalogPlanned,
    Change,
    CompareSettings,
    DriftCause,
    GetSpec,
    PlannedOperation,
    PlanRefusal,
    PlanSpec,
    SettingChange,
    SettingDrift,
    SettingsCompared,
    SpecInForce,
)

from doubles.node import CONFIGURE, Client, StubSupervisor
from doubles.specs import a_spec, with_role

IN_FORCE = with_role("a")
CHANGED = SettingChange("work_mem", Change.CHANGED, "4MB", "8MB", needs_restart=False)
DRIFTED = SettingDrift("fsync", DriftCause.ALTER_SYSTEM, "on", "off")
OPERATION = PlannedOperation("create and alter roles", None, 'role "a"', 'create role "a"')
LEFT_OUT = PlanRefusal('role "pg_a"', "Postgres reserves this name")
ROUTES = [("POST", "/plan"), ("GET", "/drift")]


@pytest.fixture(autouse=True)
def answers(supervisor: StubSupervisor) -> dict[Any, object]:
    """A running node that is as it should be."""
    supervisor.answers |= {
        GetSpec: SpecInForce(Status.RUNNING, IN_FORCE),
        CompareSettings: SettingsCompared(),
        PlanSpec: CatalogPlanned(),
    }
    return supervisor.answers


def ask(client: Client, method: str, path: str) -> Any:
    return client(method, path, document=CONFIGURE if method == "POST" else None)


def test_without_changes_the_plan_is_empty_and_says_so(client: Client, supervisor: StubSupervisor) -> None:
    result = ask(client, "POST", "/plan")
    assert result.status_code == 200
    empty: list[Any] = []
    assert result.json == {
        "changes": False, "settings": empty, "operations": empty, "refused": empty, "warnings": empty,
    }  # fmt: skip
    spec = a_spec()
    assert [request for request, _ in supervisor.asked] == [GetSpec(), CompareSettings(spec), PlanSpec(spec)]


def test_a_plan_joins_what_both_actors_say(client: Client, answers: dict[Any, object]) -> None:
    answers[CompareSettings] = SettingsCompared((CHANGED,), (DRIFTED,), "bad setting", ("first",))
    answers[PlanSpec] = CatalogPlanned((OPERATION,), (LEFT_OUT,), ("second",))
    assert ask(client, "POST", "/plan").json == {
        "changes": True,
        "settings": [
            {
                "name": "work_mem",
                "change": "changed",
                "before": "4MB",
                "after": "8MB",
                "needs_restart": False,
            }
        ],
        "operations": [
            {
                "phase": "create and alter roles",
                "database": None,
                "object": 'role "a"',
                "action": 'create role "a"',
            }
        ],
        "refused": [
            {"part": "settings", "reason": "bad setting"},
            {"part": 'role "pg_a"', "reason": "Postgres reserves this name"},
        ],
        "warnings": ["first", "second"],
    }


@pytest.mark.parametrize(
    "answer", [(CompareSettings, SettingsCompared((CHANGED,))), (PlanSpec, CatalogPlanned((OPERATION,)))]
)
def test_settings_alone_and_operations_alone_are_changes(
    client: Client, answers: dict[Any, object], answer: tuple[Any, object]
) -> None:
    answers |= [answer]
    assert ask(client, "POST", "/plan").json["changes"] is True


def test_a_node_that_is_as_its_spec_says_has_no_drift_and_is_looked_at_everywhere(
    client: Client, supervisor: StubSupervisor
) -> None:
    result = ask(client, "GET", "/drift")
    assert (result.status_code, result.json["drifted"]) == (200, False)
    assert [request for request, _ in supervisor.asked] == [
        GetSpec(),
        CompareSettings(IN_FORCE),
        PlanSpec(IN_FORCE, everywhere=True),
    ]


def test_drift_joins_what_both_actors_say_and_leaves_preflight_out(
    client: Client, answers: dict[Any, object]
) -> None:
    answers[CompareSettings] = SettingsCompared((CHANGED,), (DRIFTED,), "bad setting", ("first",))
    answers[PlanSpec] = CatalogPlanned((), (LEFT_OUT,), ("second",))
    drift = ask(client, "GET", "/drift").json
    assert drift["drifted"] is True
    assert drift["settings"] == [
        {"name": "fsync", "cause": "ALTER SYSTEM", "described": "on", "actual": "off"}
    ]
    assert [refusal["part"] for refusal in drift["refused"]] == ['role "pg_a"']
    assert drift["warnings"] == ["second"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("status", [status for status in Status if status is not Status.RUNNING])
def test_only_a_running_node_is_asked(
    client: Client, supervisor: StubSupervisor, method: str, path: str, status: Status
) -> None:
    supervisor.answers[GetSpec] = SpecInForce(status, IN_FORCE)
    result = ask(client, method, path)
    assert (result.status_code, result.json) == (
        412,
        {"error": f"invalid compute status: {status.text}"},
    )
    assert len(supervisor.asked) == 1


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("question", [CompareSettings, PlanSpec])
@pytest.mark.parametrize(("busy", "status"), [(True, 503), (False, 500)])
def test_a_plan_that_cannot_be_made_says_why_and_whether_to_come_back(
    client: Client, answers: dict[Any, object], method: str, path: str, question: Any, status: int, *, busy: bool
) -> None:  # fmt: skip
    answers[question] = CannotPlan("something is in the way", busy=busy)
    result = ask(client, method, path)
    assert (result.status_code, result.json) == (status, {"error": "something is in the way"})
    assert ("retry-after" in result.headers) is busy


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_plan_needs_a_token(client: Client, supervisor: StubSupervisor, method: str, path: str) -> None:
    assert client(method, path, token="", document=CONFIGURE).status_code == 400
    assert supervisor.asked == []

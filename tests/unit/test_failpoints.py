"""The language of failpoints, and the internal route that speaks it."""

import json

import pytest
from compute_node.actors.kit.failpoints import Failpoints
from compute_node.http.app import create_external_app, create_internal_app
from compute_node.messages.failpoints import (
    Action,
    Arming,
    Deed,
    Failpoint,
    FailpointError,
    parse_actions,
    parse_environment,
)

from doubles.node import Client, StubSupervisor, node


def test_every_failpoint_has_a_name_of_its_own_and_a_meaning() -> None:
    assert all(failpoint.meaning for failpoint in Failpoint)
    theirs = {Failpoint.MIGRATION, Failpoint.PROMOTION}  # the counterpart's
    ours = [failpoint for failpoint in Failpoint if failpoint not in theirs]
    assert all(failpoint.name.lower().replace("_", "-") == failpoint.value for failpoint in ours)


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("off", (Action(Deed.OFF),)),
        ("pause", (Action(Deed.PAUSE),)),
        (" pause ", (Action(Deed.PAUSE),)),
        ("return", (Action(Deed.RETURN),)),
        ("return(a (bad) end)", (Action(Deed.RETURN, "a (bad) end"),)),
        ("2*return(x)", (Action(Deed.RETURN, "x", 2),)),
        ("1*sleep(20)->3*print(y)->exit(7)", (Action(Deed.SLEEP, "20", 1), Action(Deed.PRINT, "y", 3), Action(Deed.EXIT, "7"))),
        ("panic(no)", (Action(Deed.PANIC, "no"),)),
    ],
)  # fmt: skip
def test_actions_are_read(text: str, actions: tuple[Action, ...]) -> None:
    assert parse_actions(text) == actions


@pytest.mark.parametrize(
    "text",
    ["", "pausing", "pause(3)", "sleep", "sleep()", "sleep(-1)", "sleep(999999999)", "sleep(1s)", "exit(256)", "x*pause", "return(x", "pause->"],
)  # fmt: skip
def test_what_is_no_action_is_refused(text: str) -> None:
    with pytest.raises(FailpointError):
        parse_actions(text)


def test_the_environment_names_several_failpoints() -> None:
    assert parse_environment("launched=pause; observe = 1*return(=);;") == (
        Arming(Failpoint.LAUNCHED, (Action(Deed.PAUSE),)),
        Arming(Failpoint.OBSERVE, (Action(Deed.RETURN, "=", 1),)),
    )
    for wrong in ("launched", "nowhere=pause"):
        with pytest.raises(FailpointError):
            parse_environment(wrong)


def test_without_dev_there_is_no_such_route_and_never_an_external_one() -> None:
    supervisor = StubSupervisor()
    body = [{"name": "launched", "actions": "pause"}]
    armed = node(supervisor, failpoints=Failpoints())
    for app in (create_internal_app(node(supervisor)), create_external_app(armed)):
        assert Client(app)("POST", "/failpoints", document=body).status_code == 404


def test_the_route_arms_all_or_none() -> None:
    failpoints = Failpoints()
    client = Client(create_internal_app(node(StubSupervisor(), failpoints=failpoints)), token="")
    good = {"name": "launched", "actions": "pause"}
    for bad, said in (
        (
            {"name": "nowhere", "actions": "pause"},
            "there is no failpoint `nowhere`; there are inspect-locked",
        ),
        ({"name": "observe", "actions": "dance"}, "`dance` is not an action"),
    ):
        refused = client("POST", "/failpoints", document=[good, bad])
        assert refused.status_code == 400
        assert refused.json["error"].startswith(f"failed to configure failpoints: {said}")
        assert not failpoints.is_armed(Failpoint.LAUNCHED)
    taken = client("POST", "/failpoints", document=[good])
    assert (taken.status_code, taken.content) == (200, b"")
    assert failpoints.is_armed(Failpoint.LAUNCHED)
    client("POST", "/failpoints", document=[{"name": "launched", "actions": "off"}])
    assert not failpoints.is_armed(Failpoint.LAUNCHED)


def test_a_body_of_another_shape_is_refused_as_everywhere() -> None:
    client = Client(create_internal_app(node(StubSupervisor(), failpoints=Failpoints())), token="")
    assert client("POST", "/failpoints", document={"name": "launched"}).status_code == 422
    assert (
        client("POST", "/failpoints", body=b"[", headers={"Content-Type": "application/json"}).status_code
        == 400
    )
    assert json.loads(client("POST", "/failpoints", document=[{"name": 1}]).content)["error"]

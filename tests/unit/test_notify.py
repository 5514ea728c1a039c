"""What the service manager is told, and when."""

import os
from collections.abc import Iterator
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns

import pytest
from compute_node.messages.lifecycle import Status, StatusChanged
from compute_node.process import notify
from compute_node.process.notify import Notifier

from doubles.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    made = ServiceManager(
        str(tmp_path / "notify") if request.param == "path" else f"@compute-node-{os.getpid()}"
    )
    yield made
    made.close()


def told(manager: ServiceManager) -> list[dict[str, str]]:
    """Return what has come since the last time."""
    before = len(manager.told)
    return [each.values for each in manager.listen()[before:]]


def change(new: Status, error: str | None = None) -> StatusChanged:
    return StatusChanged(Status.INIT, new, error)


def test_ready_is_told_once_and_the_status_each_time(manager: ServiceManager) -> None:
    notifier = Notifier(manager.address, stop_timeout_s=25)
    for status in (Status.INIT, Status.RUNNING, Status.CONFIGURATION, Status.RUNNING):
        notifier.changed(change(status))
    assert told(manager) == [
        {"STATUS": "init"},
        {"STATUS": "running", "READY": "1"},
        {"STATUS": "configuration"},
        {"STATUS": "running"},
    ]
    assert {each.pid for each in manager.told} == {os.getpid()}


def test_a_node_that_waits_for_its_spec_is_ready(manager: ServiceManager) -> None:
    Notifier(manager.address).changed(StatusChanged(None, Status.EMPTY))
    assert told(manager) == [{"STATUS": "empty", "READY": "1"}]


@pytest.mark.parametrize(
    "status",
    [Status.FAILED, Status.TERMINATION_PENDING_FAST, Status.TERMINATION_PENDING_IMMEDIATE],
)
def test_the_end_is_told_once_with_the_time_that_it_may_take(manager: ServiceManager, status: Status) -> None:
    notifier = Notifier(manager.address, stop_timeout_s=25)
    notifier.changed(change(status, "no\nluck"))
    notifier.changed(change(Status.TERMINATED))
    assert told(manager) == [
        {"STATUS": f"{status.text}: no luck", "STOPPING": "1", "EXTEND_TIMEOUT_USEC": "30000000"},
        {"STATUS": "terminated"},
    ]


def test_a_start_that_takes_long_asks_for_more_time_again_and_again(manager: ServiceManager) -> None:
    notifier = Notifier(manager.address)
    for now_s in (100.0, 101.0, 100.0 + notify.EXTEND_EVERY_S):
        notifier.extend(now_s)
    assert told(manager) == [{"EXTEND_TIMEOUT_USEC": "60000000"}] * 2
    assert notifier.wait_s(116.0) == notify.EXTEND_EVERY_S - 1
    notifier.changed(change(Status.RUNNING))
    assert notifier.wait_s(1000.0) is None
    notifier.extend(1000.0)
    assert told(manager) == [{"STATUS": "running", "READY": "1"}]


def test_a_reload_has_the_monotonic_time_and_ends_in_ready(manager: ServiceManager) -> None:
    notifier = Notifier(manager.address)
    notifier.reloading()
    notifier.reloaded()
    assert told(manager) == [], "a start that is not over is not called ready"
    notifier.changed(change(Status.RUNNING))
    told(manager)
    before = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    notifier.reloaded()
    reloading, ready = told(manager)
    assert reloading.pop("RELOADING") == "1"
    assert before <= int(reloading.pop("MONOTONIC_USEC")) <= clock_gettime_ns(CLOCK_MONOTONIC) // 1000
    assert (reloading, ready) == ({}, {"READY": "1"})
    notifier.changed(change(Status.TERMINATION_PENDING_FAST))
    told(manager)
    notifier.reloading()
    notifier.reloaded()
    assert told(manager) == []


def test_a_socket_that_is_not_there_is_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "absent"))
    notifier.changed(change(Status.RUNNING))
    notifier.changed(change(Status.FAILED))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_without_a_manager_nothing_is_due() -> None:
    assert notify.take({}) is None
    notifier = Notifier(None)
    notifier.extend(1.0)
    notifier.changed(change(Status.RUNNING))
    assert (notifier.speaks, notifier.wait_s(1.0)) == (False, None)


def test_the_variable_is_taken_away() -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "PATH": "/bin"}
    assert notify.take(environment) == "/run/notify"
    assert environment == {"PATH": "/bin"}

"""Watching the memory of Postgres in a made-up cgroup, and what is told of it."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.vm_monitor_bridge.cgroup import CgroupMemory, Sampler
from compute_node.actors.vm_monitor_bridge.decisions import LOG_EVERY, MIB, SAMPLES, Pressure, Summary
from compute_node.actors.vm_monitor_bridge.port import VmError
from compute_node.actors.vm_monitor_bridge.private import CgroupFound, MemoryUsed
from compute_node.messages.base import Message

from fix_postgres import wait_until

WAIT_S = 30.0
PID = 4711


class Group:
    """A cgroup of version 2 with one process in it."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.path = folder / "cgroup" / "neon-postgres"
        self.path.mkdir(parents=True)
        for name, text in {
            "self/mountinfo": f"31 24 0:27 / {self.path.parent} rw - cgroup2 cgroup2 rw\n",
            "self/cgroup": "0::/\n",
            f"{PID}/cgroup": "0::/neon-postgres\n",
            "meminfo": "MemTotal:       4194304 kB\n",
        }.items():
            file = self.proc / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.use(0)
        self.memory = CgroupMemory(proc=str(self.proc))

    def use(self, used: int) -> None:
        (self.path / "memory.stat").write_text(f"inactive_anon {used:020}\nactive_anon {0:020}\n")


class Watch:
    """A watch on a thread, and what was heard of it."""

    def __init__(self, group: Group) -> None:
        self.heard: list[Message] = []
        self.cancellation = Cancellation()
        self.ended: Future[None] = Future()

        def run() -> None:
            try:
                group.memory.watch(PID, self.heard.append, self.cancellation)
            except Exception as error:  # noqa: BLE001 - handed on to whoever waits
                self.ended.set_exception(error)

        threading.Thread(target=run, daemon=True).start()

    @property
    def last(self) -> int | None:
        used = [message.summary.average for message in self.heard if isinstance(message, MemoryUsed)]
        return used[-1] if used else None


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path)


def test_the_memory_is_watched_where_the_postmaster_is(group: Group) -> None:
    group.use(100 * MIB)
    (group.path / "memory.max").write_text(f"{1 << 30}\n")
    watch = Watch(group)
    wait_until(lambda: watch.last == 100 * MIB, "the first samples are told", WAIT_S)
    group.use(500 * MIB)
    wait_until(lambda: watch.last == 500 * MIB, "the average follows", WAIT_S)

    found = watch.heard[0]
    assert isinstance(found, CgroupFound)
    assert (found.cgroup.path, found.cgroup.version, found.cgroup.limit_bytes) == (
        str(group.path),
        2,
        1 << 30,
    )
    watch.cancellation.request()
    with pytest.raises(CancelledError):
        watch.ended.result(WAIT_S)


@pytest.mark.parametrize("text", ["", "inactive_anon 5\n", "nonsense"])
def test_a_statistic_that_does_not_tell_ends_the_watch_and_is_no_zero(text: str, group: Group) -> None:
    watch = Watch(group)
    wait_until(lambda: watch.last == 0, "it is watched", WAIT_S)
    (group.path / "memory.stat").write_text(text)

    with pytest.raises(VmError, match="does not tell of anonymous memory"):
        watch.ended.result(WAIT_S)


def test_a_group_that_is_not_there_is_told(group: Group) -> None:
    (group.path / "memory.stat").unlink()
    with pytest.raises(VmError, match=r"memory.stat cannot be read: No such file"):
        Watch(group).ended.result(WAIT_S)
    (group.proc / str(PID) / "cgroup").unlink()
    with pytest.raises(VmError, match="the cgroup of Postgres cannot be read"):
        Watch(group).ended.result(WAIT_S)
    (group.proc / str(PID) / "cgroup").write_text("")
    with pytest.raises(VmError, match="no cgroup hierarchy with the memory controller"):
        Watch(group).ended.result(WAIT_S)


@pytest.mark.parametrize(
    ("limit", "total"), [("max", 4 << 30), (str(1 << 30), 1 << 30), (str(8 << 30), 4 << 30)]
)
def test_there_is_as_much_as_the_machine_has_or_the_smallest_limit_allows(
    limit: str, total: int, group: Group
) -> None:
    (group.path / "memory.max").write_text(limit)
    assert group.memory.total(PID) == total
    (group.proc / "meminfo").write_text("")
    with pytest.raises(VmError, match="how much memory the machine has is not known"):
        group.memory.total(PID)


def test_where_no_group_can_be_read_there_is_what_the_machine_has(group: Group) -> None:
    (group.proc / str(PID) / "cgroup").write_text("")
    assert group.memory.total(PID) == 4 << 30
    (group.proc / str(PID) / "cgroup").unlink()
    assert group.memory.total(PID) == 4 << 30


def test_what_is_granted_counts_up_to_the_smallest_limit_and_needs_no_look_at_the_machine(
    group: Group,
) -> None:
    (group.proc / "meminfo").unlink()
    assert group.memory.total(PID, 8 << 30) == 8 << 30
    (group.path / "memory.max").write_text(str(2 << 30))
    assert group.memory.total(PID, 8 << 30) == 2 << 30
    assert group.memory.total(PID, 1 << 30) == 1 << 30


def told(
    sampler: Sampler, samples: list[int], pressure: Pressure | None, *, from_s: float = 0.0
) -> list[Summary]:
    found = [sampler.take(sample, from_s + number / 10, pressure) for number, sample in enumerate(samples)]
    return [summary for summary in found if summary is not None]


def test_calm_is_told_once_a_second_and_pressure_with_every_sample() -> None:
    sampler, pressure = Sampler(), Pressure(200 * MIB)
    calm = told(sampler, [100 * MIB] * 100, pressure)
    assert len(calm) <= SAMPLES + 11
    assert calm[-1] == Summary(calm[-1].at_s, 100 * MIB, SAMPLES)
    assert len(told(sampler, [300 * MIB] * 100, pressure, from_s=10.0)) >= 95


def test_pressure_is_news_only_from_when_more_can_be_asked_for_and_at_once_then() -> None:
    sampler = Sampler()
    told(sampler, [300 * MIB] * 10, None)
    quiet = told(sampler, [300 * MIB] * 90, Pressure(200 * MIB, from_s=10.0), from_s=1.0)
    assert len(quiet) <= 11, "as without pressure"
    assert sampler.take(300 * MIB, 10.0, Pressure(200 * MIB, from_s=10.0)) == Summary(
        10.0, 300 * MIB, SAMPLES
    )


def test_no_news_is_ever_older_than_its_step_or_a_second() -> None:
    sampler, known = Sampler(), 0
    for number in range(300):
        summary = sampler.take(number * 3 * MIB, number / 10, None)
        if summary is not None:
            known = summary.average
        window = [max(0, number - back) * 3 * MIB for back in range(min(number + 1, SAMPLES))]
        assert abs(sum(window) // len(window) - known) < 16 * MIB


def test_the_log_has_the_samples_by_twenties(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "compute_node.vm_monitor_bridge")
    sampler = Sampler()
    told(sampler, [100 * MIB] * (LOG_EVERY - 1), None)
    assert caplog.messages == []
    told(sampler, [101 * MIB] * (1 + LOG_EVERY), None, from_s=2.0)
    told(sampler, [300 * MIB] * LOG_EVERY, None, from_s=5.0)

    calm, grown = (", ".join(samples) for samples in (["100.0"] * 19 + ["101.0"], ["300.0"] * LOG_EVERY))
    assert [text.partition("MiB: ")[2] for text in caplog.messages] == [calm, grown]

"""Swap and disk quota, with programs of the test in the place of Neon's."""

import logging
import os
import threading
from pathlib import Path

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.vm_monitor_bridge import machine
from compute_node.actors.vm_monitor_bridge.machine import NeonVm
from compute_node.actors.vm_monitor_bridge.port import VmError

from fix_postgres import wait_until


class Programs:
    """`sudo`, and the two programs, as scripts that write down what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.swap = self._script(folder / "resize-swap", "")
        self.quota = self._script(folder / "set-disk-quota", "")
        self.sudo = self._script(folder / "sudo", 'exec "$@"')

    def _script(self, path: Path, then: str) -> Path:
        path.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> {self.calls}\n{then}\n')
        path.chmod(0o755)
        return path

    def make(self, mount: str | None = "/var/db") -> NeonVm:
        return NeonVm(
            mount, sudo=[str(self.sudo)], resize_swap=str(self.swap), set_disk_quota=str(self.quota)
        )

    def also(self, path: Path, then: str) -> None:
        path.write_text(path.read_text() + then + "\n")

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_swap_is_resized_once_and_by_sudo(programs: Programs) -> None:
    programs.make().resize_swap(123, Cancellation())

    assert programs.called == [f"sudo {programs.swap} --once 123", "resize-swap --once 123"]


@pytest.mark.parametrize(("size", "kib"), [(0, 0), (1023, 0), (1024, 1), (10 * 1024**3 + 5, 10 * 1024**2)])
def test_the_quota_is_given_in_kib_rounded_down(size: int, kib: int, programs: Programs) -> None:
    programs.make().set_disk_quota(size, Cancellation())

    assert programs.called[-1] == f"set-disk-quota {kib} /var/db"


def test_a_failure_names_the_command_its_status_and_its_words(programs: Programs) -> None:
    programs.also(programs.swap, "echo no room; exit 3")
    programs.also(programs.quota, "exit 4")

    with pytest.raises(VmError) as failed:
        programs.make().resize_swap(5, Cancellation())
    assert str(failed.value) == (
        f"failed to resize swap: could not run `{programs.sudo} {programs.swap} --once 5`: "
        "process exited with 3, saying: no room"
    )
    with pytest.raises(
        VmError, match=r"failed to set disk quota: could not run `.*`: process exited with 4$"
    ):
        programs.make().set_disk_quota(5, Cancellation())


def test_a_swap_program_that_has_removed_itself_has_done_its_work_before(
    programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    programs.swap.unlink()
    programs.make().resize_swap(5, Cancellation())

    assert "is gone, as it is after its first run" in caplog.text
    assert "--once 5`: process exited with " in caplog.text, "the reason is told, too"
    caplog.clear()
    caplog.set_level(logging.INFO)
    programs.sudo.unlink()
    programs.make().resize_swap(5, Cancellation())
    assert "swap stays as it is" in caplog.text
    assert f"{programs.sudo} cannot be run: No such file" in caplog.text, (
        "a sudo that is missing is no first run"
    )


def test_a_missing_program_fails_where_it_has_not_removed_itself(programs: Programs) -> None:
    programs.sudo.unlink()

    with pytest.raises(
        VmError, match=r"failed to resize swap: could not run .*: .*sudo cannot be run: No such file"
    ):
        programs.make().resize_swap(5, Cancellation())
    with pytest.raises(VmError, match="failed to set disk quota: no file system was named"):
        programs.make(None).set_disk_quota(5, Cancellation())


def test_programs_that_hang_are_killed_in_the_end_or_when_they_are_cancelled(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.also(programs.quota, "sleep 600")
    cancellation = Cancellation()

    def cancel_once_it_runs() -> None:
        wait_until(programs.calls.exists, "it runs")
        cancellation.request()

    threading.Thread(target=cancel_once_it_runs, daemon=True).start()
    with pytest.raises(CancelledError):
        programs.make().set_disk_quota(5, cancellation)
    monkeypatch.setattr(machine, "LIMIT_S", 0.2)
    with pytest.raises(VmError, match=r"had not ended after 0.2 s and was killed"):
        programs.make().set_disk_quota(5, Cancellation())


def test_programs_of_the_machine_see_none_of_our_secrets(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEON_CONTROL_PLANE_TOKEN", "canary")
    programs.also(programs.swap, f"env > {programs.calls}")
    programs.make().resize_swap(5, Cancellation())

    assert "canary" not in programs.calls.read_text()
    assert f"PATH={os.environ['PATH']}" in programs.called

"""The real machine: swap and disk quota, set by the programs of Neon's virtual machines."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from typing_extensions import override

from ...postgres.environment import allowed
from ..kit.jobs import Cancellation
from ..kit.metrics import Metrics
from ..kit.programs import ProgramError, Starter, run
from .port import Machine, VmError

SUDO: Final = ("/usr/bin/sudo",)
RESIZE_SWAP: Final = "/neonvm/bin/resize-swap"
SET_DISK_QUOTA: Final = "/neonvm/bin/set-disk-quota"
LIMIT_S: Final = 120.0
"""For one program: what is in use of a swap area that becomes smaller must be read back first."""
KIB: Final = 1024

log = logging.getLogger("compute_node.vm_monitor_bridge")


class NeonVm(Machine):
    """Runs the programs as the user of this process, by way of `sudo`. `mount` is whose disk gets the quota."""

    def __init__(
        self,
        mount: str | None,
        *,
        metrics: Metrics | None = None,
        sudo: Sequence[str] = SUDO,
        resize_swap: str = RESIZE_SWAP,
        set_disk_quota: str = SET_DISK_QUOTA,
        oom_score_adj: int | None = None,
    ) -> None:
        self._mount = mount
        self._starter = Starter(None, metrics=metrics, oom_score_adj=oom_score_adj)
        self._sudo = tuple(sudo)
        self._resize_swap = resize_swap
        self._set_disk_quota = set_disk_quota

    @override
    def resize_swap(self, size: int, cancellation: Cancellation) -> None:
        command = (*self._sudo, self._resize_swap, "--once", str(size))  # `--once` must come first
        problem = self._run(command, cancellation)
        if problem is None:
            log.info("swap was resized to %d bytes", size)
        elif not Path(self._resize_swap).exists():
            # It removes itself once it has done its work: this is not the first start of this machine.
            log.warning(
                "swap stays as it is: %s is gone, as it is after its first run (%s)",
                *(self._resize_swap, problem),
            )
        else:
            msg = f"failed to resize swap: {problem}"
            raise VmError(msg)

    @override
    def set_disk_quota(self, size: int, cancellation: Cancellation) -> None:
        if self._mount is None:
            msg = "failed to set disk quota: no file system was named"
            raise VmError(msg)
        command = (*self._sudo, self._set_disk_quota, str(size // KIB), self._mount)
        problem = self._run(command, cancellation)
        if problem is not None:
            msg = f"failed to set disk quota: {problem}"
            raise VmError(msg)
        log.info("the disk quota of %s was set to %d bytes", self._mount, size)

    def _run(self, command: tuple[str, ...], cancellation: Cancellation) -> str | None:
        """Return why a program has not done what it was asked for; None when it has."""
        what = f"could not run `{' '.join(command)}`"
        try:
            result = run(
                command,
                starter=self._starter,
                env=allowed(os.environ),
                cwd="/",
                timeout_s=LIMIT_S,
                cancellation=cancellation,
            )
        except ProgramError as error:
            return f"{what}: {error}"
        if result.code == 0:
            return None
        said = f", saying: {result.output.strip()}" if result.output.strip() else ""
        return f"{what}: process exited with {result.code}{said}"

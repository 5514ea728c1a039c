"""The real memory: what the cgroup of Postgres uses, sampled ten times a second, and what there is in all."""

import logging
import os
import select
from collections import deque
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from ...messages.vm import CgroupSeen
from ...postgres import cgroup
from ...postgres.cgroup import PROC, Group
from ..kit.jobs import Cancellation
from ..kit.wake import Wake
from .decisions import LOG_EVERY, MIB, POLL_S, SAMPLES, Logged, Pressure, Summary, is_worth_telling, summarise
from .port import Heard, Memory, VmError
from .private import CgroupFound, MemoryUsed

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_STAT: Final = 64 * 1024
"""Bytes of `memory.stat`; it has some fifty lines."""

log = logging.getLogger("compute_node.vm_monitor_bridge")


class CgroupMemory(Memory):
    """Reads where the postmaster really is, whatever group it was meant for. `proc` is where /proc is."""

    def __init__(self, *, proc: str = PROC) -> None:
        self._proc = proc
        self._pressure: Pressure | None = None

    @override
    def expect(self, pressure: Pressure | None) -> None:
        self._pressure = pressure

    @override
    def total(self, postmaster: int, granted: int | None = None) -> int:
        total = cgroup.machine_memory(proc=self._proc) if granted is None else granted
        if total is None:
            msg = f"how much memory the machine has is not known: {self._proc}/meminfo does not say"
            raise VmError(msg)
        try:
            limit = cgroup.limit(self._group(postmaster))
        except VmError:  # who watches says so
            return total
        return total if limit is None else min(total, limit.bytes)

    @override
    def watch(self, postmaster: int, heard: Heard, cancellation: Cancellation) -> None:
        group = self._group(postmaster)
        limit = cgroup.limit(group)
        with _opened(f"{group.path}/memory.stat") as descriptor, closing(Wake(cancellation)) as wake:
            self._sample(descriptor)  # where this cannot be read, nothing was found
            heard(CgroupFound(CgroupSeen(group.path, group.version, None if limit is None else limit.bytes)))
            log.info("the memory of Postgres is read in %s", group.path)
            sampler = Sampler()
            pause = select.poll()  # at two thirds of what the cancellation's own wait costs
            pause.register(wake.descriptor, select.POLLIN)
            pause_ms = POLL_S * 1000
            while not pause.poll(pause_ms):
                summary = sampler.take(self._sample(descriptor), cancellation.now(), self._pressure)
                if summary is not None:
                    heard(MemoryUsed(summary))
            cancellation.check()

    def _group(self, postmaster: int) -> Group:
        try:
            group = cgroup.group_of(postmaster, proc=self._proc)
        except OSError as error:
            msg = f"the cgroup of Postgres cannot be read: {error.filename}: {error.strerror or error}"
            raise VmError(msg) from error
        if group is None:
            msg = "no cgroup hierarchy with the memory controller is mounted here"
            raise VmError(msg)
        return group

    @staticmethod
    def _sample(descriptor: int) -> int:
        try:
            used = cgroup.anonymous(os.pread(descriptor, MAX_STAT, 0))
        except OSError as error:
            msg = f"memory.stat of the cgroup of Postgres cannot be read: {error.strerror or error}"
            raise VmError(msg) from error
        if used is None:
            msg = "memory.stat of the cgroup of Postgres does not tell of anonymous memory"
            raise VmError(msg)
        return used


class Sampler:
    """What is made of samples: averages for the bridge, as few as will do, and a history in the log.

    Each sample meets cold caches, where every step costs many times what it does in a loop: what can be done by
    twenties is.
    """

    def __init__(self) -> None:
        self._last: deque[int] = deque(maxlen=SAMPLES)
        self._told: Summary | None = None
        self._logged = Logged()
        self._unlogged: list[int] = []

    def take(self, sample: int, at_s: float, pressure: Pressure | None) -> Summary | None:
        """Take one sample in; return the average where the bridge must hear of it."""
        self._last.append(sample)
        self._unlogged.append(sample)
        if len(self._unlogged) == LOG_EVERY:
            self._log(at_s)
        summary = summarise(self._last, at_s)
        limit = None if pressure is None or at_s < pressure.from_s else pressure.threshold
        if not is_worth_telling(self._told, summary, limit):
            return None
        self._told = summary
        return summary

    def _log(self, at_s: float) -> None:
        history, self._unlogged = self._unlogged, []
        if (logged := self._logged.take(history, at_s)) is not None:
            self._logged = logged
            log.info("memory of Postgres, the last %d samples in MiB: %s", len(history), _history(history))


def _history(samples: list[int]) -> str:
    return ", ".join(f"{sample / MIB:.1f}" for sample in samples)


@contextmanager
def _opened(path: str) -> "Iterator[int]":
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise VmError(msg) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)

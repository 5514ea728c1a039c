"""The LsnLease: interprets its own decisions (rules.py), and asks for leases as jobs."""

import logging
from functools import partial
from typing import Any, ClassVar, TypeAlias

from typing_extensions import override

from ...messages.lease import KeepLease, ReleaseLease
from ...messages.metrics import LEASE_REQUESTS, LEASE_VALID_UNTIL
from ..kit.actor import Actor, Ref
from ..kit.effects import Log, Remind, Tell
from ..kit.jobs import Cancellation, CancelledError, Job, describe
from .port import Failed, Pageservers, Wanted
from .rules import Ask, BreakOff, Effect, LeaseAnswered, LeaseDue, LeaseState, Show, decide

LeaseMessage: TypeAlias = KeepLease | LeaseAnswered | LeaseDue | ReleaseLease

log = logging.getLogger("compute_node.lsn_lease")


class LsnLease(Actor[LeaseMessage]):
    """Keeps the lease of a Static node; `supervisor` hears of a refusal."""

    max_jobs: ClassVar[int] = 2  # one that is being broken off, and the next

    def __init__(self, supervisor: Ref[Any], pageservers: Pageservers) -> None:
        self._state = LeaseState()
        self._supervisor = supervisor
        self._pageservers = pageservers
        self._job: Job | None = None

    @property
    def state(self) -> LeaseState:
        """What the actor knows; frozen."""
        return self._state

    @override
    def receive(self, message: LeaseMessage) -> None:
        self._state, effects = decide(self._state, message, self.clock.now(), self.clock.wall())
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Ask(number, wanted):
                self._break_off()
                self._job = self.start_job(
                    "ask for the LSN lease",
                    partial(self._ask, number, wanted),
                    failed=partial(_failed, number),
                )
            case BreakOff():
                self._break_off()
            case Remind(after_s, reminder):
                self.timers.after(after_s, reminder)
            case Tell(told):
                self._supervisor.tell(told)
            case Show(result, valid_until_s):
                self.metrics.set(LEASE_VALID_UNTIL, valid_until_s)
                if result is not None:
                    self.metrics.add(LEASE_REQUESTS, 1, result)
            case Log(level, text):
                log.log(level, "%s", text)

    def _break_off(self) -> None:
        if self._job is not None:
            self._job.cancel()
            self._job = None

    def _ask(self, number: int, wanted: Wanted, cancellation: Cancellation) -> LeaseAnswered:
        return LeaseAnswered(number, self._pageservers.request(wanted, cancellation))


def _failed(number: int, error: Exception) -> LeaseAnswered | None:
    return None if isinstance(error, CancelledError) else LeaseAnswered(number, Failed(describe(error)))

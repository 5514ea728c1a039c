"""The LfcManager: interprets its own decisions, and runs prewarms and offloads as jobs, one at a time."""

import logging
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias, assert_never

from typing_extensions import override

from ...messages.lfc import (
    CacheLost,
    CancelPrewarm,
    FollowSpec,
    GetOffload,
    GetPrewarm,
    Offload,
    OffloadLast,
    Prewarm,
    PrewarmStatus,
    StopLfc,
)
from ...messages.metrics import LFC_OFFLOAD_BLOCKED
from ...messages.settings import NodeSettings
from ..kit.actor import Actor, Ref
from ..kit.effects import After, Log, Never, Reminders, Tell
from ..kit.jobs import Cancellation, CancelledError, Job, describe
from .decisions import Decided, decide
from .effects import Answer, CancelJob, Count, Effect, Observe, StartOffload, StartPrewarm
from .lifecycle import OffloadEvent, PrewarmEvent
from .packing import StateError, pack, unpack
from .places import Place
from .port import Cache, CacheError, Counts, NoModuleError, Progress, Store, StoreError
from .private import OffloadDue, OffloadEnded, PrewarmEnded, PrewarmProgressed, PrewarmRetry
from .state import LfcState

Heard: TypeAlias = (
    CacheLost
    | CancelPrewarm
    | FollowSpec
    | GetOffload
    | GetPrewarm
    | Offload
    | OffloadDue
    | OffloadEnded
    | OffloadLast
    | Prewarm
    | PrewarmEnded
    | PrewarmProgressed
    | PrewarmRetry
    | StopLfc
)

NOTHING_CACHED: Final = "nothing is cached"
BROKEN_OFF: Final = "it was broken off because the node is ending"
CACHE_LOST: Final = "a crash of Postgres has emptied the cache"

log = logging.getLogger("compute_node.lfc")


class LfcManager(Actor[Heard]):
    """Warms the cache of the running Postgres and saves its state. `supervisor` hears of the last offload only."""

    max_jobs: ClassVar[int] = 1

    def __init__(self, settings: NodeSettings, supervisor: Ref[Any], cache: Cache, store: Store) -> None:
        self._state = LfcState(settings)
        self._supervisor = supervisor
        self._cache = cache
        self._store = store
        self._job: Job | None = None
        self._reminders = Reminders()

    @property
    def state(self) -> LfcState:
        """What the LfcManager knows; frozen."""
        return self._state

    @override
    def receive(self, message: Heard) -> None:
        match message:
            case GetPrewarm():
                self.reply(message, self._state.prewarm)
            case GetOffload():
                self.reply(message, self._state.offload)
            case _:
                self._decide(message)

    def _decide(self, message: Decided) -> None:
        decision = decide(self._state, message, self.clock.now())
        self._state = decision.state
        for effect in decision.effects:
            self._carry_out(effect, message)
        blocked = self._state.incomplete and self._state.prewarm.status is not PrewarmStatus.PREWARMING
        self.metrics.set(LFC_OFFLOAD_BLOCKED, blocked)

    def _carry_out(self, effect: Effect, message: Any) -> None:  # noqa: ANN401 - a request, if it is answered
        match effect:
            case Answer(value):
                self.reply(message, value)
            case StartPrewarm(number, place):
                work = partial(_prewarm, self._store, self._cache, number, place, self._progress(number))
                self._job = self.start_job("prewarm the cache", work, failed=partial(_not_prewarmed, number))
            case StartOffload(number, place, life):
                job = partial(_offload, self._store, self._cache, number, place, life)
                self._job = self.start_job("offload the cache", job, failed=partial(_not_offloaded, number))
            case CancelJob():
                if self._job is not None:
                    self._job.cancel()
            case After() | Never():
                self._reminders.carry_out(effect, self.timers)
            case Tell(ended):
                self._supervisor.tell(ended)
            case _:
                self._note(effect)

    def _note(self, effect: Log | Count | Observe) -> None:
        match effect:
            case Log(level, text):
                log.log(level, "%s", text)
            case Count(family):
                self.metrics.add(family, 1)
            case Observe(family, operation, value):
                self.metrics.observe(family, value, operation)
            case _:
                assert_never(effect)

    def _progress(self, number: int) -> Progress:
        def tell(counts: Counts) -> None:
            self.myself.tell(PrewarmProgressed(number, counts.total, counts.prewarmed, counts.skipped))

        return tell


def _prewarm(
    store: Store, cache: Cache, number: int, place: Place, progress: Progress, cancellation: Cancellation
) -> PrewarmEnded:
    began_s = cancellation.now()
    try:
        body = store.fetch(place, cancellation)
    except StoreError as error:
        return PrewarmEnded(number, PrewarmEvent.FAILED, str(error), transient=error.transient)
    if body is None:
        return PrewarmEnded(number, PrewarmEvent.NOT_FOUND)
    read_s = cancellation.now()
    state = unpack(body)
    cancellation.check()
    unpacked_s = cancellation.now()
    counts = cache.load(state, progress, cancellation)
    return PrewarmEnded(
        number,
        PrewarmEvent.COMPLETED,
        total=counts.total,
        prewarmed=counts.prewarmed,
        skipped=counts.skipped,
        life=counts.life,
        size=len(body),
        download_ms=_ms(read_s - began_s),
        uncompress_ms=_ms(unpacked_s - read_s),
        prewarm_ms=_ms(cancellation.now() - unpacked_s),
    )


def _not_prewarmed(number: int, error: Exception) -> PrewarmEnded:
    if isinstance(error, CancelledError):
        return PrewarmEnded(number, PrewarmEvent.CANCELLED)
    return PrewarmEnded(number, PrewarmEvent.FAILED, _reason(error, "a prewarm failed"))


def _offload(
    store: Store, cache: Cache, number: int, place: Place, life: str | None, cancellation: Cancellation
) -> OffloadEnded:
    began_s = cancellation.now()
    taken = cache.take(cancellation)
    if life is not None and taken.life != life:
        return OffloadEnded(number, OffloadEvent.CACHE_LOST, CACHE_LOST)
    if not taken.state:
        return OffloadEnded(number, OffloadEvent.NOTHING_CACHED, NOTHING_CACHED)
    taken_s = cancellation.now()
    body = pack(taken.state)
    cancellation.check()
    packed_s = cancellation.now()
    store.put(place, body, cancellation)
    return OffloadEnded(
        number,
        OffloadEvent.COMPLETED,
        life=taken.life,
        size=len(body),
        query_ms=_ms(taken_s - began_s),
        compress_ms=_ms(packed_s - taken_s),
        upload_ms=_ms(cancellation.now() - packed_s),
    )


def _not_offloaded(number: int, error: Exception) -> OffloadEnded:
    if isinstance(error, CancelledError):
        return OffloadEnded(number, OffloadEvent.FAILED, BROKEN_OFF, cancelled=True)
    if isinstance(error, NoModuleError):
        return OffloadEnded(number, OffloadEvent.NO_MODULE, str(error))
    return OffloadEnded(number, OffloadEvent.FAILED, _reason(error, "an offload failed"))


def _reason(error: Exception, what: str) -> str:
    if isinstance(error, StoreError | CacheError | StateError):
        return str(error)
    log.error("%s in an unexpected way", what, exc_info=error)
    return describe(error)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)

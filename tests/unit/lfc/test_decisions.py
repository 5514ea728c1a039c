"""What the LfcManager decides: every status with every event, and the rule that a good state is never lost."""

import logging
from typing import Any

import pytest
from compute_node.actors.kit.effects import After, Log, Never, Tell
from compute_node.actors.lfc_manager.decisions import Decided, decide
from compute_node.actors.lfc_manager.effects import Answer, CancelJob, Count, StartOffload, StartPrewarm
from compute_node.actors.lfc_manager.lifecycle import OFFLOADS, PREWARMS, OffloadEvent, PrewarmEvent, Refused
from compute_node.actors.lfc_manager.offloading import why_not_offload
from compute_node.actors.lfc_manager.places import NO_ADDRESS, NO_ENDPOINT
from compute_node.actors.lfc_manager.prewarming import MOST_AGAIN, RETRY_S
from compute_node.actors.lfc_manager.private import (
    OffloadDue,
    OffloadEnded,
    PrewarmEnded,
    PrewarmProgressed,
    PrewarmRetry,
)
from compute_node.actors.lfc_manager.state import LfcState
from compute_node.messages.base import decode, encode
from compute_node.messages.lfc import (
    CacheLost,
    CancelPrewarm,
    FollowSpec,
    LastOffloadEnded,
    LfcAccepted,
    LfcRefusal,
    LfcRefused,
    Offload,
    OffloadLast,
    OffloadStatus,
    Prewarm,
    PrewarmStatus,
    StopLfc,
)
from compute_node.messages.metrics import (
    LFC_OFFLOAD_ERRORS,
    LFC_OFFLOADS,
    LFC_PREWARM_ERRORS,
    LFC_PREWARMS,
)
from hypothesis import given
from hypothesis import strategies as st

from doubles.specs import a_spec, settings

DONE, FAILED, MISSING, CANCELLED = (
    PrewarmEvent.COMPLETED,
    PrewarmEvent.FAILED,
    PrewarmEvent.NOT_FOUND,
    PrewarmEvent.CANCELLED,
)


class Life:
    """One manager: hears messages, remembers what came of them."""

    def __init__(self, *, store: str | None = "/lfc", **spec: Any) -> None:
        self.state = LfcState(settings(lfc_store=store))
        self.now_s = 100.0
        self.effects: tuple[Any, ...] = ()
        self.counts: dict[str, int] = {}
        self.logs: list[tuple[int, str]] = []
        self.follow(starting=True, **spec)

    def follow(self, *, starting: bool = False, **spec: Any) -> "Life":
        return self.hear(FollowSpec(a_spec(**spec), starting=starting))

    def hear(self, *messages: Decided) -> "Life":
        for message in messages:
            decision = decide(self.state, message, self.now_s)
            self.state, self.effects = decision.state, decision.effects
            assert decode(LfcState, encode(self.state)) == self.state
            for effect in self.effects:
                if isinstance(effect, Count):
                    self.counts[effect.family.name] = self.counts.get(effect.family.name, 0) + 1
                elif isinstance(effect, Log):
                    self.logs.append((effect.level, effect.text))
        return self

    def prewarm_ends(self, event: PrewarmEvent, **fields: Any) -> "Life":
        assert self.state.warming is not None
        return self.hear(PrewarmEnded(self.state.warming.number, event, **fields))

    def offload_ends(self, event: OffloadEvent = OffloadEvent.COMPLETED, **fields: Any) -> "Life":
        assert self.state.saving is not None
        return self.hear(OffloadEnded(self.state.saving.number, event, **fields))

    @property
    def answer(self) -> LfcAccepted | LfcRefused:
        (answer,) = self.of(Answer)
        value: LfcAccepted | LfcRefused = answer.value
        return value

    @property
    def refusal(self) -> LfcRefusal | None:
        return self.answer.why if isinstance(self.answer, LfcRefused) else None

    def refused(self, request: Prewarm | Offload) -> LfcRefusal | None:
        return self.hear(request).refusal

    def of(self, kind: type[Any]) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def reminder(self, kind: type[Any]) -> float | None:
        delays = [e.delay_s for e in self.of(After) if isinstance(e.message, kind)]
        return delays[-1] if delays else None


def after(event: PrewarmEvent, **spec: Any) -> Life:
    return Life(**spec).hear(Prewarm()).prewarm_ends(event, error="no")


# --- The tables


def test_the_tables_are_complete() -> None:
    assert set(PREWARMS) == set(PrewarmStatus)
    assert set(OFFLOADS) == set(OffloadStatus)
    assert all(set(row) == set(PrewarmEvent) for row in PREWARMS.values())
    assert all(set(row) == set(OffloadEvent) for row in OFFLOADS.values())


def test_one_prewarm_and_one_offload_are_under_way_at_a_time() -> None:
    for status, row in PREWARMS.items():
        busy = status is PrewarmStatus.PREWARMING
        assert row[PrewarmEvent.ASKED] is (Refused.BUSY if busy else PrewarmStatus.PREWARMING)
        ends = {row[event] for event in (DONE, FAILED, MISSING, CANCELLED)}
        assert (ends == {Refused.CANNOT_HAPPEN}) is not busy
    for offload, outcomes in OFFLOADS.items():
        busy = offload is OffloadStatus.OFFLOADING
        assert outcomes[OffloadEvent.ASKED] is (Refused.BUSY if busy else OffloadStatus.OFFLOADING)


@pytest.mark.parametrize("status", PrewarmStatus)
@pytest.mark.parametrize("incomplete", [False, True])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_incomplete_is_offloaded_only_by_force_and_never_during_a_prewarm(
    status: PrewarmStatus, *, incomplete: bool, force: bool
) -> None:
    may = why_not_offload(status, incomplete=incomplete, force=force) is None
    if status is PrewarmStatus.PREWARMING:
        assert not may
    else:
        assert may is (force or not incomplete)


# --- The rule


def test_no_offload_begins_during_a_prewarm_not_even_by_force() -> None:
    life = Life(offload_lfc_interval_seconds=5).hear(Prewarm())
    for request in (Offload(), Offload(force=True)):
        assert life.hear(request).refusal is LfcRefusal.UNSAFE
        assert not life.of(StartOffload)
    life.hear(OffloadDue())
    assert not life.of(StartOffload)
    assert life.reminder(OffloadDue) == 5, "it waits for its next tick"


@pytest.mark.parametrize("event", [FAILED, CANCELLED])
def test_after_a_prewarm_that_is_not_complete_only_force_offloads(event: PrewarmEvent) -> None:
    life = after(event, offload_lfc_interval_seconds=5)
    life.hear(OffloadDue(), OffloadDue())
    assert not life.of(StartOffload)
    assert sum("not offloaded any more" in text for _, text in life.logs) == 1, "told once"
    assert life.hear(Offload()).refusal is LfcRefusal.UNSAFE
    assert "force=true" in str(life.answer)
    assert life.hear(Offload(force=True)).refusal is None
    assert life.of(StartOffload)
    life.offload_ends().hear(OffloadDue())
    assert not life.of(StartOffload), "the exception is made once"


@pytest.mark.parametrize("event", [DONE, MISSING])
def test_after_a_complete_prewarm_or_without_a_state_offloads_go_on(event: PrewarmEvent) -> None:
    life = after(event, offload_lfc_interval_seconds=5).hear(OffloadDue())
    assert life.of(StartOffload)


def test_a_later_complete_prewarm_lets_offloads_go_on() -> None:
    life = after(FAILED).hear(Prewarm()).prewarm_ends(DONE)
    assert life.hear(Offload()).refusal is None


def test_that_another_endpoint_has_no_state_does_not_make_an_incomplete_cache_complete() -> None:
    """Its own good state could be replaced, and is still there."""
    life = after(FAILED).hear(Prewarm("other")).prewarm_ends(MISSING)
    assert life.state.prewarm.status is PrewarmStatus.SKIPPED
    assert life.hear(Offload()).refusal is LfcRefusal.UNSAFE
    life.hear(Prewarm()).prewarm_ends(MISSING)
    assert life.hear(Offload()).refusal is None, "there is nothing that could be lost"


def test_that_another_endpoint_has_no_state_leaves_a_complete_cache_complete() -> None:
    life = after(DONE).hear(Prewarm("other")).prewarm_ends(MISSING)
    assert life.hear(Offload()).refusal is None


def test_a_prewarm_that_is_asked_for_during_an_offload_begins_at_its_end() -> None:
    life = Life().hear(Offload(), Prewarm())
    assert life.refusal is None
    assert not life.of(StartPrewarm)
    assert life.state.prewarm.status is PrewarmStatus.PREWARMING
    life.offload_ends()
    assert life.of(StartPrewarm)


def test_a_prewarm_that_waits_is_cancelled_at_once() -> None:
    life = Life().hear(Offload(), Prewarm(), CancelPrewarm())
    assert life.state.prewarm.status is PrewarmStatus.CANCELLED
    life.offload_ends()
    assert not life.of(StartPrewarm)
    assert life.state.offload.status is OffloadStatus.COMPLETED


# --- Requests


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Prewarm(), "Multiple requests for prewarm are not allowed"),
        (Offload(), "Multiple requests for prewarm offload are not allowed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_second_request_is_refused_in_the_counterparts_words(
    request_: Prewarm | Offload, text: str
) -> None:
    life = Life().hear(request_, request_)
    assert life.answer == LfcRefused(LfcRefusal.BUSY, text)


@pytest.mark.parametrize("request_", [Prewarm(), Offload(), Offload(force=True)], ids=repr)
def test_nothing_begins_before_postgres_runs_nor_once_it_is_being_stopped(request_: Any) -> None:
    before = LfcState(settings(lfc_store="/lfc"))
    (answer,) = decide(before, request_, 0.0).effects
    assert answer == Answer(LfcRefused(LfcRefusal.NOT_RUNNING, "Postgres is not running"))
    assert Life().hear(StopLfc(), request_).refusal is LfcRefusal.NOT_RUNNING


def test_a_cancellation_ends_the_job_and_one_without_a_prewarm_does_nothing_to_the_next() -> None:
    life = Life().hear(CancelPrewarm())
    assert life.effects == (Answer(LfcAccepted()),)
    life.hear(Prewarm())
    assert life.of(StartPrewarm)
    life.hear(CancelPrewarm())
    assert life.of(CancelJob)
    assert life.refused(Prewarm()) is LfcRefusal.BUSY, "until the job says that it has ended"
    life.prewarm_ends(CANCELLED)
    assert life.state.prewarm.status is PrewarmStatus.CANCELLED


# --- What is told


def test_a_complete_prewarm_tells_its_counts_and_times() -> None:
    life = Life().hear(Prewarm())
    life.hear(PrewarmProgressed(1, 100, 40, 2))
    assert encode(life.state.prewarm) == (b'{"status":"prewarming","total":100,"prewarmed":40,"skipped":2}')
    life.prewarm_ends(
        DONE, total=100, prewarmed=90, skipped=10, download_ms=12, uncompress_ms=3, prewarm_ms=850
    )
    assert encode(life.state.prewarm) == (
        b'{"status":"completed","total":100,"prewarmed":90,"skipped":10,'
        b'"state_download_time_ms":12,"uncompress_time_ms":3,"prewarm_time_ms":850}'
    )
    assert life.counts == {LFC_PREWARMS.name: 1}


def test_a_failed_prewarm_tells_its_error_and_how_far_it_came() -> None:
    life = Life().hear(Prewarm(), PrewarmProgressed(1, 100, 40, 2)).prewarm_ends(FAILED, error="no")
    assert encode(life.state.prewarm) == (
        b'{"status":"failed","error":"no","total":100,"prewarmed":40,"skipped":2}'
    )
    assert life.counts == {LFC_PREWARMS.name: 1, LFC_PREWARM_ERRORS.name: 1}
    assert life.logs[-1] == (logging.ERROR, "the cache could not be prewarmed: no")
    assert b"error" not in encode(life.hear(Prewarm()).state.prewarm)


def test_without_a_prewarm_there_is_no_error_and_nothing_is_counted() -> None:
    life = Life().hear(Offload()).offload_ends(size=7, query_ms=1, compress_ms=2, upload_ms=3)
    assert encode(life.state.prewarm) == b'{"status":"not_prewarmed","total":0,"prewarmed":0,"skipped":0}'
    assert encode(life.state.offload) == (
        b'{"status":"completed","state_query_time_ms":1,"compress_time_ms":2,"state_upload_time_ms":3}'
    )
    assert life.counts == {LFC_OFFLOADS.name: 1}


@pytest.mark.parametrize(
    ("event", "told", "errors"),
    [
        (OffloadEvent.FAILED, b'{"status":"failed","error":"no"}', {LFC_OFFLOAD_ERRORS.name: 1}),
        (OffloadEvent.NOTHING_CACHED, b'{"status":"skipped"}', {}),
        (OffloadEvent.CACHE_LOST, b'{"status":"skipped","reason":"no"}', {}),
        (OffloadEvent.NO_MODULE, b'{"status":"skipped","reason":"no"}', {}),
    ],
)
def test_an_offload_that_saves_nothing_says_why_and_an_empty_cache_is_no_error(
    event: OffloadEvent, told: bytes, errors: dict[str, int]
) -> None:
    life = Life().hear(Offload()).offload_ends(event, error="no")
    assert encode(life.state.offload) == told
    assert life.counts == {LFC_OFFLOADS.name: 1} | errors


def test_outcomes_that_are_late_change_nothing() -> None:
    life = Life().hear(Prewarm()).prewarm_ends(DONE)
    before = life.state
    life.hear(PrewarmEnded(1, FAILED), PrewarmProgressed(1, 9, 9, 9), PrewarmRetry(1))
    life.hear(OffloadEnded(1, OffloadEvent.COMPLETED))
    assert life.state == before


def test_the_outcome_of_an_earlier_one_is_not_that_of_the_one_under_way() -> None:
    life = Life().hear(Prewarm()).prewarm_ends(CANCELLED).hear(Prewarm())
    life.hear(PrewarmEnded(1, DONE))
    assert life.state.prewarm.status is PrewarmStatus.PREWARMING
    life.prewarm_ends(DONE).hear(Offload()).offload_ends(OffloadEvent.FAILED, error="no").hear(Offload())
    life.hear(OffloadEnded(3, OffloadEvent.COMPLETED))
    assert life.state.offload.status is OffloadStatus.OFFLOADING


def test_what_the_spec_lacks_is_told_in_the_counterparts_words() -> None:
    life = Life(store=None).hear(Prewarm())
    assert life.state.prewarm.error == NO_ENDPOINT
    life.follow(endpoint_id="ep").hear(Prewarm())
    assert life.state.prewarm.error == NO_ADDRESS
    life.hear(Offload(force=True))
    assert life.state.offload.error == NO_ADDRESS
    assert life.state.saving is None


# --- The spec


def test_autoprewarm_begins_with_the_first_spec_and_not_again() -> None:
    life = Life(autoprewarm=True)
    assert life.of(StartPrewarm)
    life.prewarm_ends(DONE).follow(autoprewarm=True)
    assert not life.of(StartPrewarm)


def test_a_spec_that_turns_autoprewarm_on_warms_a_node_that_never_was() -> None:
    life = Life().follow(autoprewarm=True)
    assert life.of(StartPrewarm)
    life = after(CANCELLED).follow(autoprewarm=True)
    assert not life.of(StartPrewarm), "somebody has decided otherwise"


def test_the_interval_counts_from_the_end_of_the_last_offload() -> None:
    life = Life(offload_lfc_interval_seconds=7)
    assert life.reminder(OffloadDue) == 7
    life.hear(OffloadDue())
    assert life.of(StartOffload)
    assert life.reminder(OffloadDue) is None
    life.offload_ends(OffloadEvent.FAILED)
    assert life.reminder(OffloadDue) == 7


def test_a_new_interval_holds_at_once_and_one_that_is_gone_ends_the_ticks() -> None:
    life = Life(offload_lfc_interval_seconds=7)
    assert life.follow(offload_lfc_interval_seconds=7).reminder(OffloadDue) is None, "it goes on as it was"
    assert life.follow(offload_lfc_interval_seconds=3).reminder(OffloadDue) == 3
    assert Never(OffloadDue) in life.follow().effects
    life.hear(Offload()).offload_ends()
    assert life.reminder(OffloadDue) is None


def test_an_interval_that_comes_during_an_offload_counts_from_its_end() -> None:
    life = Life().hear(Offload()).follow(offload_lfc_interval_seconds=3)
    assert life.reminder(OffloadDue) is None
    assert life.offload_ends().reminder(OffloadDue) == 3


def test_a_cache_that_a_crash_has_emptied_is_warmed_again_before_anything_is_saved() -> None:
    assert not Life().hear(CacheLost()).of(StartPrewarm), "it was as it had come about"
    assert after(DONE).hear(CacheLost()).of(StartPrewarm)
    assert not after(CANCELLED).hear(CacheLost()).of(StartPrewarm), "somebody has decided otherwise"
    life = Life(autoprewarm=True, offload_lfc_interval_seconds=5).prewarm_ends(DONE).hear(CacheLost())
    assert life.of(StartPrewarm)
    assert not life.hear(OffloadDue()).of(StartOffload)
    life.prewarm_ends(FAILED, error="the connection was lost").hear(CacheLost())
    assert life.of(StartPrewarm)
    assert not life.hear(StopLfc(), CacheLost()).of(StartPrewarm)


def test_a_crash_during_a_prewarm_lets_it_begin_again_when_it_has_failed() -> None:
    life = after(DONE).hear(Prewarm(), CacheLost())
    assert not life.of(StartPrewarm), "one is under way"
    life.prewarm_ends(FAILED, error="the connection was lost")
    assert life.of(StartPrewarm)
    assert life.state.prewarm.status is PrewarmStatus.PREWARMING
    for event in (DONE, MISSING, CANCELLED):
        assert not after(DONE).hear(Prewarm(), CacheLost()).prewarm_ends(event).of(StartPrewarm), event


def test_a_prewarm_of_which_postgres_crashes_is_not_begun_for_ever() -> None:
    life = Life(autoprewarm=True, offload_lfc_interval_seconds=5)
    for _ in range(MOST_AGAIN):
        life.prewarm_ends(FAILED, error="the connection was lost").hear(CacheLost())
        assert life.of(StartPrewarm)
    life.prewarm_ends(FAILED, error="the connection was lost").hear(CacheLost())
    assert not life.of(StartPrewarm)
    assert "is not prewarmed again" in life.logs[-1][1]
    assert not life.hear(OffloadDue()).of(StartOffload)
    assert life.hear(Prewarm()).refusal is None, "somebody may try again"
    life.prewarm_ends(FAILED, error="the connection was lost").hear(CacheLost())
    assert life.of(StartPrewarm), "and counts from the beginning"


def test_a_cache_that_becomes_whole_each_time_is_warmed_again_after_any_number_of_crashes() -> None:
    life = Life(autoprewarm=True).prewarm_ends(DONE)
    for event in (DONE, MISSING) * MOST_AGAIN:
        assert life.hear(CacheLost()).of(StartPrewarm)
        life.prewarm_ends(event)


def test_what_was_whole_is_saved_only_while_the_cache_has_still_the_same_life() -> None:
    """A tick may come between a crash and the moment at which it is noticed."""
    life = Life(offload_lfc_interval_seconds=5)
    assert life.hear(Offload()).of(StartOffload)[0].life is None, "nothing was asked to be warm"
    life.offload_ends(life="1").hear(Offload())
    assert life.of(StartOffload)[0].life is None
    life = Life(offload_lfc_interval_seconds=5).hear(Prewarm()).prewarm_ends(DONE, life="1")
    life.hear(OffloadDue())
    assert life.of(StartOffload)[0].life == "1"
    life.offload_ends(OffloadEvent.CACHE_LOST, error="a crash of Postgres has emptied the cache")
    assert life.state.offload.status is OffloadStatus.SKIPPED
    assert life.of(StartPrewarm)
    life.prewarm_ends(DONE, life="2").hear(Offload())
    assert life.of(StartOffload)[0].life == "2"
    life.offload_ends(OffloadEvent.CACHE_LOST, error="").prewarm_ends(FAILED, error="no")
    assert life.hear(Offload(force=True)).of(StartOffload)[0].life is None, "what is forced is taken as it is"


def test_a_cache_that_was_saved_counts_as_whole_where_a_prewarm_found_nothing() -> None:
    life = after(MISSING).hear(Offload()).offload_ends(life="1").hear(Offload())
    assert life.of(StartOffload)[0].life == "1"


def test_a_last_offload_of_an_emptied_cache_is_not_saved_and_nothing_begins() -> None:
    life = Life().hear(Prewarm()).prewarm_ends(DONE, life="1").hear(OffloadLast())
    life.offload_ends(OffloadEvent.CACHE_LOST, error="a crash")
    assert life.of(Tell) == [Tell(LastOffloadEnded("a crash"))]
    assert not life.of(StartPrewarm)


def test_after_a_crash_the_cache_is_warmed_from_where_it_was_until_it_has_saved_its_own_state() -> None:
    life = Life().hear(Prewarm("other")).prewarm_ends(DONE, life="1").hear(CacheLost())
    assert life.of(StartPrewarm)[0].place.name == "other"
    life.prewarm_ends(DONE, life="2").hear(Offload()).offload_ends(life="2").hear(CacheLost())
    assert life.of(StartPrewarm)[0].place.name == "compute-1"
    life = Life().hear(Prewarm("other"), CacheLost()).prewarm_ends(FAILED, error="the connection was lost")
    assert life.of(StartPrewarm)[0].place.name == "other", "what somebody asked for goes on"
    life.prewarm_ends(MISSING).hear(CacheLost())
    assert life.of(StartPrewarm)[0].place.name == "compute-1", "that state is gone"


def test_a_cold_cache_for_which_there_is_no_state_is_saved_in_the_end() -> None:
    """Nothing is saved that could be lost: so the crash is over, and not looked at again at each tick."""
    life = Life(offload_lfc_interval_seconds=5).hear(Prewarm()).prewarm_ends(DONE, life="1")
    life.hear(CacheLost()).prewarm_ends(MISSING).hear(OffloadDue())
    assert life.of(StartOffload)[0].life is None
    life.offload_ends(life="2").hear(OffloadDue())
    assert life.of(StartOffload)[0].life == "2"


@pytest.mark.parametrize("event", [OffloadEvent.NO_MODULE, OffloadEvent.NOTHING_CACHED])
def test_why_nothing_is_saved_is_told_once_and_again_when_it_is_something_else(event: OffloadEvent) -> None:
    life = Life(offload_lfc_interval_seconds=5)

    def told(event: OffloadEvent, error: str = "") -> int:
        before = len(life.logs)
        life.hear(OffloadDue()).offload_ends(event, error=error)
        return len(life.logs) - before

    assert [told(event, "no") for _ in range(3)] == [1, 0, 0]
    assert told(event, "another") == 1
    assert told(OffloadEvent.COMPLETED) == 1
    assert told(event, "another") == 1
    assert [told(OffloadEvent.FAILED, "another") for _ in range(2)] == [1, 1], "each is counted, too"
    assert life.logs[-3] == (
        logging.WARNING if event is OffloadEvent.NO_MODULE else logging.INFO,
        "the state of the cache is not saved: another",
    )


# --- Trying again


def test_a_state_that_could_not_be_read_for_a_moment_is_asked_for_again_a_few_times() -> None:
    life = Life().hear(Prewarm())
    for pause_s in RETRY_S:
        life.prewarm_ends(FAILED, error="503", transient=True)
        assert life.reminder(PrewarmRetry) == pause_s
        assert life.state.prewarm.status is PrewarmStatus.PREWARMING
        assert life.hear(Offload(force=True)).refusal is LfcRefusal.UNSAFE
        life.hear(PrewarmRetry(1))
        assert life.of(StartPrewarm)
    life.prewarm_ends(FAILED, error="503", transient=True)
    assert life.state.prewarm.error == "503"
    assert life.counts == {LFC_PREWARMS.name: 1, LFC_PREWARM_ERRORS.name: 1}


def test_what_would_be_refused_again_is_not_asked_again() -> None:
    life = Life().hear(Prewarm()).prewarm_ends(FAILED, error="401")
    assert life.state.prewarm.status is PrewarmStatus.FAILED
    assert life.reminder(PrewarmRetry) is None


def test_the_next_attempt_takes_the_token_of_the_newest_spec() -> None:
    life = Life().hear(Prewarm()).prewarm_ends(FAILED, error="503", transient=True)
    life.follow(endpoint_id="new").hear(PrewarmRetry(1))
    (start,) = life.of(StartPrewarm)
    assert start.place.name == "new"


def test_a_prewarm_between_two_attempts_is_cancelled_at_once() -> None:
    life = Life().hear(Prewarm()).prewarm_ends(FAILED, error="503", transient=True)
    life.hear(CancelPrewarm())
    assert life.state.prewarm.status is PrewarmStatus.CANCELLED
    assert Never(PrewarmRetry) in life.effects


# --- The end


def test_a_stop_breaks_everything_off_and_the_ticks_end() -> None:
    life = Life(offload_lfc_interval_seconds=5).hear(Prewarm(), StopLfc())
    assert life.of(CancelJob)
    assert Never(OffloadDue) in life.effects
    life.prewarm_ends(CANCELLED).hear(OffloadDue())
    assert not life.of(StartOffload)
    life = Life().hear(Offload(), StopLfc())
    assert life.of(CancelJob)
    life.offload_ends(OffloadEvent.FAILED, error="broken off", cancelled=True)
    assert life.counts == {LFC_OFFLOADS.name: 1}, "that is no error"


def test_a_tick_or_another_attempt_that_is_late_begins_nothing_once_it_is_being_stopped() -> None:
    life = Life(offload_lfc_interval_seconds=5).hear(StopLfc(), OffloadDue())
    assert not life.of(StartOffload)
    life = Life().hear(Prewarm(), StopLfc()).prewarm_ends(FAILED, error="503", transient=True)
    assert life.reminder(PrewarmRetry) is None
    assert life.state.prewarm.status is PrewarmStatus.FAILED


def test_the_last_offload_is_told_to_the_supervisor() -> None:
    life = Life().hear(OffloadLast())
    assert life.of(StartOffload)
    assert not life.of(Tell)
    life.offload_ends()
    assert life.of(Tell) == [Tell(LastOffloadEnded())]
    assert life.reminder(OffloadDue) is None
    life = Life().hear(OffloadLast()).offload_ends(OffloadEvent.FAILED, error="no")
    assert life.of(Tell) == [Tell(LastOffloadEnded("no"))]


def test_an_offload_under_way_is_the_last_one() -> None:
    life = Life().hear(Offload(), OffloadLast())
    assert not life.of(StartOffload)
    assert life.offload_ends().of(Tell)


@pytest.mark.parametrize("event", [None, FAILED, CANCELLED])
def test_there_is_no_last_offload_of_a_cache_that_is_not_complete(event: PrewarmEvent | None) -> None:
    life = Life().hear(Prewarm()) if event is None else after(event)
    life.hear(OffloadLast())
    assert not life.of(StartOffload)
    (told,) = life.of(Tell)
    assert "prewarm" in told.message.error


def test_nobody_is_told_of_a_last_offload_that_was_given_up() -> None:
    life = Life().hear(OffloadLast(), StopLfc())
    assert life.of(CancelJob)
    life.offload_ends(OffloadEvent.FAILED, error="broken off", cancelled=True)
    assert not life.of(Tell)


# --- Anything

MESSAGES = st.sampled_from(
    [
        *("prewarm", "prewarm other", "cancel", "offload", "due", "retry", "follow", "stop"),
        *(event.name for event in (DONE, FAILED, MISSING, CANCELLED)),
        *("transient", "offloaded", "not offloaded", "last"),
    ]
)


@given(st.lists(MESSAGES, max_size=40))
def test_whatever_happens_without_force_no_offload_begins_while_the_cache_is_incomplete(
    story: list[str],
) -> None:
    """Judged by a model of its own: which prewarm of this node has begun and not come to a good end."""
    life = Life(offload_lfc_interval_seconds=5)
    incomplete, before = False, False
    plain: dict[str, Decided] = {
        "prewarm": Prewarm(),
        "prewarm other": Prewarm("other"),
        "cancel": CancelPrewarm(),
        "offload": Offload(),
        "due": OffloadDue(),
        "follow": FollowSpec(a_spec(offload_lfc_interval_seconds=5), starting=False),
        "stop": StopLfc(),
        "last": OffloadLast(),
    }
    for step in story:
        warming = life.state.warming
        if step in plain:
            life.hear(plain[step])
        elif step == "retry" and warming is not None and not warming.started:
            life.hear(PrewarmRetry(warming.number))
        elif step in PrewarmEvent.__members__ and warming is not None and warming.started:
            event = PrewarmEvent[step]
            life.prewarm_ends(event)
            if event is DONE or (event is MISSING and warming.from_endpoint is None):
                incomplete = False
            elif event is MISSING:
                incomplete = before
        elif step == "transient" and warming is not None and warming.started:
            life.prewarm_ends(FAILED, error="503", transient=True)
        elif step in {"offloaded", "not offloaded"} and life.state.saving is not None:
            life.offload_ends(
                OffloadEvent.COMPLETED if step == "offloaded" else OffloadEvent.FAILED, error="no"
            )
        assert not (life.of(StartOffload) and incomplete), story
        if warming is None and life.state.warming is not None:
            before, incomplete = incomplete, True
        jobs = (life.state.warming is not None and life.state.warming.started, life.state.saving is not None)
        assert not all(jobs), "a prewarm reads while an offload writes"

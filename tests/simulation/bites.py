"""Faults planted into the real code, each small, to see that the simulation finds them.

`python tests/simulation/bites.py` plants one after the other and prints how many seeds it took to find each,
and what the failure said; it fails when one is not found. Names may be given to try only those.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

import msgspec

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from compute_node.actors.activity_monitor.actor import ActivityMonitor
from compute_node.actors.configurator import apply
from compute_node.actors.kit.cell import Cell
from compute_node.actors.kit.effects import After
from compute_node.actors.lfc_manager import actor as lfc
from compute_node.actors.lfc_manager import decisions as lfc_decisions
from compute_node.actors.lfc_manager import offloading, prewarming
from compute_node.actors.lfc_manager.lifecycle import PrewarmEvent
from compute_node.actors.lfc_manager.private import PrewarmEnded
from compute_node.actors.lsn_lease import rules as lease
from compute_node.actors.postgres_process import claim, configuration, safekeepers
from compute_node.actors.postgres_process import decisions as process
from compute_node.actors.postgres_process.pgdata import Recovery, Usable
from compute_node.actors.postgres_process.port import Promotion
from compute_node.actors.postgres_process.state import Phase as ProcessPhase
from compute_node.actors.supervisor import actor as supervisor
from compute_node.actors.supervisor import attempts, configuring, decisions, ending, leaving, state, stopping
from compute_node.actors.supervisor.effects import Answer, Publish
from compute_node.actors.supervisor.lifecycle import Event
from compute_node.actors.supervisor.private import LingerEnded, StopOverdue
from compute_node.actors.supervisor.state import Step
from compute_node.actors.supervisor.turn import Turn
from compute_node.actors.vm_monitor_bridge import decisions as vm_decisions
from compute_node.actors.vm_monitor_bridge import dispatch, effects, sizing
from compute_node.actors.vm_monitor_bridge import turn as bridge
from compute_node.actors.vm_monitor_bridge.decisions import Asking, Denial, Stale
from compute_node.actors.vm_monitor_bridge.private import AgentOffered, Sized
from compute_node.messages.lifecycle import ConfigureFailed, GetStatus, Status, Terminate, Terminated
from compute_node.messages.postgres import (
    ConfigurationAccepted,
    ConfigurationInstalled,
    ConfigurationRefused,
    PgdataKind,
    PostgresReady,
    StartPostgres,
    StopRung,
)
from compute_node.messages.vm import VmPrepared

from simulation.cache_lives import check_cache
from simulation.lives import FoundError, check, check_stored
from simulation.vm_lives import check_bridge, check_scaled

SEEDS: Final = 1_000
NO_GUARD: Final = "the cache is offloaded although a prewarm is not complete"

Planted = contextlib.AbstractContextManager[Any]


@dataclass(frozen=True)
class Bite:
    """One planted fault."""

    name: str
    breaks: str
    """The promise of invariants.py that it breaks."""
    plant: Callable[[], Planted]
    check: Callable[[int], None] = check
    """Lives a seed, of the whole node unless said otherwise."""


@dataclass(frozen=True)
class Found:
    """How a fault was found."""

    seeds: int
    said: str


def find(bite: Bite, *, seeds: int = SEEDS, first: int = 0) -> Found | None:
    """Plant it and live until something is found."""
    with bite.plant():
        for seed in range(first, first + seeds):
            try:
                bite.check(seed)
            except FoundError as error:
                return Found(seed - first + 1, error.said)
    return None


# --- How faults are planted --------------------------------------------------------------------------------


def replaced(where: Any, name: str, wrong: Callable[..., Any]) -> Callable[[], Planted]:
    """Put `wrong` in the place of a function or method; its first argument is the right one."""

    def plant() -> Planted:
        right = getattr(where, name)
        if not isinstance(where, type):
            return mock.patch.object(where, name, functools.partial(wrong, right))

        def method(myself: Any, *args: Any, **options: Any) -> Any:
            return wrong(functools.partial(right, myself), myself, *args, **options)

        return mock.patch.object(where, name, method)

    return plant


def decided(
    message: type[Any], wrong: Callable[..., Any], handlers: dict[type[Any], Any] = decisions._HANDLERS
) -> Callable[[], Planted]:
    """Put `wrong` in the place of what an actor, by default the Supervisor, decides about a message."""

    def plant() -> Planted:
        return mock.patch.dict(handlers, {message: functools.partial(wrong, handlers[message])})

    return plant


def entry(table: dict[Any, Any], key: Any, wrong: Any) -> Callable[[], Planted]:
    """Put `wrong` in the place of an entry of a table."""
    return lambda: mock.patch.dict(table, {key: wrong})


def both(*plants: Callable[[], Planted]) -> Callable[[], Planted]:
    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for one in plants:
                stack.enter_context(one())
            yield

    return plant


def nothing(*_: Any, **__: Any) -> None:
    """Forget to do it."""


def without(myself: Turn, before: int, kind: type[Any], of: type[Any] | None = None) -> None:
    """Drop the effects of a kind that a step of a turn has added."""
    myself.effects[before:] = [
        effect
        for effect in myself.effects[before:]
        if not (isinstance(effect, kind) and (of is None or isinstance(getattr(effect, "message", None), of)))
    ]


# --- The faults --------------------------------------------------------------------------------------------


def forgets_the_waiters(right: Any, myself: Turn, result: Any) -> None:
    if isinstance(result, ConfigureFailed):
        myself.set(attempt=None)
    else:
        right(myself, result)


def publishes_twice(right: Any, myself: Turn, event: Event) -> Any:
    before = len(myself.effects)
    outcome = right(event)
    myself.effects += [effect for effect in myself.effects[before:] if isinstance(effect, Publish)]
    return outcome


def says_running_at_once(right: Any, myself: Turn, message: Any, waiter: int | None) -> None:
    right(myself, message, waiter)
    if myself.attempt is not None:
        myself.move(Event.SPEC_APPLIED)


def says_failed_at_once(right: Any, myself: Turn, error: str) -> None:
    right(myself, error)
    myself.move(Event.START_FAILED)


def accepts_what_is_refused(_: Any, myself: Turn, message: ConfigurationRefused, waiter: int | None) -> None:
    configuring.configuration_accepted(myself, ConfigurationAccepted(message.operation), waiter)


def takes_late_outcomes(_: Any, myself: Turn, __: int, *steps: Step) -> Any:
    return myself.attempt if myself.attempt is not None and myself.attempt.step in steps else None


def without_reminder(kind: type[Any]) -> Callable[..., Any]:
    def wrong(right: Any, myself: Turn, *args: Any, **options: Any) -> None:
        before = len(myself.effects)
        right(myself, *args, **options)
        without(myself, before, After, kind)

    return wrong


def keeps_exit_code_zero(right: Any, myself: Turn, error: str, **options: Any) -> None:
    right(error, **options)
    myself.set(exit_code=0)


def answers_a_termination_at_once(right: Any, myself: Turn, message: Any, waiter: int | None) -> None:
    right(myself, message, None)
    if waiter is not None:
        myself.effects.append(Answer(waiter, Terminated(lsn=None)))


def answers_status_later(right: Any, myself: Any, message: Any) -> None:
    kept = vars(myself).setdefault("kept", [])
    if isinstance(message, GetStatus) and myself.state.attempt is not None:
        kept.append(myself.defer(message))
        return
    right(message)
    while kept and myself.state.attempt is None:
        kept.pop().answer(state.node_status(myself.state))


def dies_in_silence(_: Any, myself: Cell[Any], error: BaseException) -> None:
    myself.stop(f"it died of {error}")


def shows_conditions_for_ever(right: Any, _: ActivityMonitor, raised: Any) -> None:
    if raised is not None:
        right(raised)


def leaves_orphans(right: Any, _: claim.Claim, cancellation: Any) -> Any:
    blind = SimpleNamespace(working_in=lambda _: (), end=lambda *_, **__: 0)
    with mock.patch.object(claim, "orphans", blind):
        return right(cancellation)


def finds_every_folder_empty(_: Any, *__: Any) -> Usable:
    return Usable(PgdataKind.EMPTY)


def takes_halves_for_whole(right: Any, *args: Any) -> Any:
    judgement = right(*args)
    if isinstance(judgement, Usable) and judgement.kind is PgdataKind.OURS_INCOMPLETE:
        return Usable(PgdataKind.OURS_COMPLETE)
    return judgement


def discards_what_waits_for_its_place(right: Any, *args: Any) -> Recovery:
    return Recovery(discard=right(*args).discard)


def starts_twice(right: Any, myself: Turn) -> None:
    right(myself)
    if myself.attempt is not None and myself.attempt.step is Step.STARTING:
        myself.tell("postgres_process", StartPostgres(myself.attempt.operation, myself.attempt.spec))


def does_not_tidy(right: Any, turn: Any) -> None:
    if turn.state.phase is ProcessPhase.STOPPING:
        turn.set(tidied=True)
    right(turn)


def never_kills(right: Any, *args: Any) -> Any:
    return tuple(step for step in right(*args) if step[0] is not StopRung.KILL)


def leaves_the_last_step_out(right: Any, *args: Any) -> Any:
    planned = right(*args)
    return msgspec.structs.replace(planned, steps=planned.steps[:-1])


def takes_for_complete(event: PrewarmEvent) -> Callable[..., None]:
    def wrong(turn: Any, message: PrewarmEnded) -> None:
        prewarming.prewarm_ended(turn, message)
        if message.event is event:
            turn.set(incomplete=False)

    return wrong


def trusts_any_cache(right: Any, *args: Any) -> Any:
    *rest, _, cancellation = args
    return right(*rest, None, cancellation)


def begins_at_the_latest(right: Any, turn: Any, _: int) -> None:
    right(turn, 0)


def takes_the_first_reply(right: Any, count: int, replies: Any) -> Any:
    return right(1, dict(list(replies.items())[:1])) or right(count, replies)


def leaves_syncs() -> Planted:
    return mock.patch.object(claim, "sync_folder", return_value="/nowhere")


def says_promoted_at_once(_: Any, myself: Any, *__: Any) -> Promotion:
    myself.promoted = True
    return Promotion(0, 0)


def answers_no_promotion(right: Any, myself: Turn, outcome: Any) -> None:
    before = len(myself.effects)
    right(myself, outcome)
    without(myself, before, Answer)


def never_renews(_: Any, __: float) -> float:
    return 1e6


def goes_by_the_wall_clock(right: Any, now_s: float, wall_s: float) -> Any:
    return right(wall_s, wall_s)


def starts_without_its_machine(right: Any, myself: Turn) -> None:
    if myself.attempt is not None:
        attempts.advance(myself, vm_ready=True)
    right(myself)


def keeps_the_queue(right: Any, myself: bridge.Turn) -> None:
    queue = myself.state.queue
    right()
    myself.set(queue=queue)


def forgets_when_it_asked(right: Any, memory: Any, limit: int, asking: Asking, now_s: float) -> Any:
    return right(memory, limit, msgspec.structs.replace(asking, asked_s=None), now_s)


def approves(kind: type[Denial | Stale]) -> Callable[..., Any]:
    def wrong(right: Any, *args: Any) -> Any:
        judgement = right(*args)
        return None if isinstance(judgement, kind) else judgement

    return wrong


def judges_once(right: Any, myself: bridge.Turn, message: Any) -> None:
    with replaced(sizing, "may_shrink", lambda *_: True)():
        right(myself, message)


def answers_twice(right: Any, *args: Any) -> None:
    right(*args)
    right(*args)


def takes_late_offers(right: Any, myself: bridge.Turn, message: Any) -> None:
    agent = myself.state.agent
    if agent is not None and message.connection < agent.connection:
        myself.drop(effects.GOING_AWAY, "whoever comes last")
    right(myself, message)


BITES: Final = (
    Bite(
        "a second postmaster is started",
        "1",
        both(
            replaced(attempts, "start_postgres_if_ready", starts_twice),
            entry(process.TAKEN_IN, StartPostgres, frozenset(ProcessPhase)),
        ),
    ),
    Bite("an orphaned postmaster is not ended", "1", replaced(claim.Claim, "_inspect", leaves_orphans)),
    Bite("a half-made folder is served", "2", replaced(claim, "judge", takes_halves_for_whole)),
    Bite(
        "a folder is wiped without a look at whose it is",
        "3",
        replaced(claim, "judge", finds_every_folder_empty),
    ),
    Bite(
        "the old folder is discarded after an interrupted start",
        "2",
        replaced(claim, "recovery", discards_what_waits_for_its_place),
    ),
    Bite("the exit code is 0 after an unasked end", "4", replaced(Turn, "broken", keeps_exit_code_zero)),
    Bite(
        "a queued termination is lost when the configuration ends",
        "5",
        replaced(stopping, "end_queue", nothing),
    ),
    Bite(
        "a termination waits for a configuration for ever",
        "5",
        replaced(ending, "drop_configuration", nothing),
    ),
    Bite(
        "a termination is answered while Postgres lives",
        "5",
        decided(Terminate, answers_a_termination_at_once),
    ),
    Bite("the kill rung is left out", "5", replaced(process.stopping, "rungs", never_kills)),
    Bite(
        "StopOverdue is never sent", "5", replaced(stopping, "stop_postgres", without_reminder(StopOverdue))
    ),
    Bite("lingering never ends", "5", replaced(leaving, "linger", without_reminder(LingerEnded))),
    Bite("what a stop should clean up stays", "5", replaced(process.stopping, "finish", does_not_tidy)),
    Bite(
        "the status waits for the configuration",
        "7",
        replaced(supervisor.Supervisor, "receive", answers_status_later),
    ),
    Bite("ready while the node starts", "7", entry(state._OF_STATUS, Status.INIT, None)),
    Bite("failed while Postgres lives", "7", replaced(configuring, "abort_start", says_failed_at_once)),
    Bite("a status is written twice", "7", replaced(Turn, "move", publishes_twice)),
    Bite(
        "a condition is never cleared",
        "7",
        replaced(ActivityMonitor, "_show_condition", shows_conditions_for_ever),
    ),
    Bite(
        "a waiter is forgotten when a configuration fails",
        "8",
        replaced(attempts, "end", forgets_the_waiters),
    ),
    Bite("an actor dies in silence", "9", replaced(Cell, "_die", dies_in_silence)),
    Bite("running before the spec is applied", "10", decided(PostgresReady, says_running_at_once)),
    Bite(
        "configured before the spec is applied", "10", decided(ConfigurationInstalled, says_running_at_once)
    ),
    Bite("the last step of a plan is left out", "10", replaced(apply, "plan", leaves_the_last_step_out)),
    Bite(
        "a late outcome is taken for the one that is awaited",
        "10",
        replaced(attempts, "under_way", takes_late_outcomes),
    ),
    Bite(NO_GUARD, "11", replaced(offloading, "why_not_offload", nothing), check_cache),
    Bite("the same, in a whole node", "11", replaced(offloading, "why_not_offload", nothing)),
    Bite(
        "a cancelled prewarm counts as a complete one",
        "11",
        entry(lfc_decisions._HANDLERS, PrewarmEnded, takes_for_complete(PrewarmEvent.CANCELLED)),
        check_cache,
    ),
    Bite(
        "a cache that a crash has emptied is saved",
        "11",
        replaced(lfc, "_offload", trusts_any_cache),
        check_cache,
    ),
    Bite(
        "a failed prewarm counts as a complete one",
        "11",
        entry(lfc_decisions._HANDLERS, PrewarmEnded, takes_for_complete(PrewarmEvent.FAILED)),
        check_cache,
    ),
    Bite(
        "the memory is watched without Postgres", "16", replaced(stopping, "stop_vm", nothing), check_scaled
    ),
    Bite(
        "Postgres starts before its machine is ready",
        "16",
        replaced(attempts, "start_postgres_if_ready", starts_without_its_machine),
        check_scaled,
    ),
    Bite("that the machine is ready is lost", "16", decided(VmPrepared, nothing), check_scaled),
    Bite(
        "what an agent that is gone has asked is still done",
        "17",
        replaced(bridge.Turn, "forget_agent", keeps_the_queue),
        check_bridge,
    ),
    Bite(
        "more memory is asked for again and again",
        "17",
        replaced(vm_decisions, "should_ask", forgets_when_it_asked),
        check_bridge,
    ),
    Bite(
        "a downscale is approved although too much is in use",
        "17",
        replaced(vm_decisions, "judge_downscale", approves(Denial)),
        check_bridge,
    ),
    Bite(
        "a downscale is approved against old data",
        "17",
        replaced(vm_decisions, "judge_downscale", approves(Stale)),
        check_bridge,
    ),
    Bite(
        "a downscale is not judged again when its sizes are set",
        "17",
        decided(Sized, judges_once, dispatch._HANDLERS),
        check_bridge,
    ),
    Bite("an agent is answered twice", "17", replaced(sizing, "answer", answers_twice), check_bridge),
    Bite("an agent is not answered", "17", replaced(sizing, "fail", nothing), check_bridge),
    Bite(
        "a late offer takes the place of a newer agent",
        "17",
        decided(AgentOffered, takes_late_offers, dispatch._HANDLERS),
        check_bridge,
    ),
    Bite(
        "a primary begins where the pageserver is, not its safekeepers",
        "18",
        replaced(process.preparing, "_prepare_from", begins_at_the_latest),
        check_stored,
    ),
    Bite(
        "one safekeeper is taken for a quorum",
        "18",
        replaced(safekeepers, "judge", takes_the_first_reply),
        check_stored,
    ),
    Bite("a sync that a killed node has left is not ended", "18", leaves_syncs, check_stored),
    Bite("a lease is not renewed", "19", replaced(lease, "renewal_s", never_renews), check_stored),
    Bite(
        "promoted without a look at whether it writes",
        "20",
        replaced(configuration.Configuration, "promote", says_promoted_at_once),
        check_stored,
    ),
    Bite(
        "a promotion is answered to nobody",
        "20",
        replaced(attempts, "end_promotion", answers_no_promotion),
        check_stored,
    ),
    Bite("the wall clock measures deadlines", "13", replaced(supervisor, "Moment", goes_by_the_wall_clock)),
    Bite(
        "a refused configuration is installed", "15", decided(ConfigurationRefused, accepts_what_is_refused)
    ),
)


def main() -> None:
    """Plant all faults, or those that are named, and print what came of it."""
    chosen = [bite for bite in BITES if not sys.argv[1:] or bite.name in sys.argv[1:]]
    missed = 0
    for bite in chosen:
        found = find(bite)
        missed += found is None
        seeds, said = (str(found.seeds), found.said) if found else ("-", "NOT FOUND")
        print(f"{bite.name:72} {bite.breaks:>5} {seeds:>5}  {said[:110]}", flush=True)  # noqa: T201
    sys.exit(f"{missed} of {len(chosen)} planted faults were not found" if missed else 0)


if __name__ == "__main__":
    main()

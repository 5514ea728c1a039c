import math
import threading

import pytest
from compute_node.actors.kit.actor import Guard
from compute_node.actors.kit.threaded import ThreadedRuntime
from compute_node.messages.lifecycle import ActorFailed

from doubles.scripted import (
    WAIT_S,
    Answer,
    Bench,
    Note,
    Other,
    Question,
    Scripted,
    SimulatedBench,
    ThreadedBench,
)


def test_a_timer_delivers_its_message_once_and_not_early(simulation: SimulatedBench) -> None:
    actor = Scripted(simulation.recorder, on_start=lambda actor: keep(actor.timers.after(5, Note("tick"))))
    simulation.spawn("actor", actor)
    simulation.runtime.advance(4.99)
    assert simulation.recorder.texts == []
    simulation.runtime.advance(0.01)
    assert simulation.recorder.texts == ["tick"]
    simulation.runtime.advance(1000)
    assert simulation.recorder.texts == ["tick"]


def keep(_: Guard) -> None:
    pass


def test_a_timer_of_threads_delivers_and_not_early(threads: ThreadedBench) -> None:
    began = threads.clock.now()
    ended: list[float] = []
    threads.spawn(
        "actor",
        Scripted(
            threads.recorder,
            {Note: lambda actor, _: ended.append(actor.clock.now())},
            on_start=lambda actor: keep(actor.timers.after(0.02, Note("tick"))),
        ),
    )
    threads.wait(lambda: threads.recorder.texts == ["tick"])
    assert ended[0] - began >= 0.02


def test_timers_are_delivered_in_the_order_of_their_times(bench: Bench) -> None:
    def start(actor: Scripted) -> None:
        for delay in (0.03, 0.01, 0.02, 0.0, -1.0):
            actor.timers.after(delay, Note(str(delay)))

    bench.spawn("actor", Scripted(bench.recorder, on_start=start))
    bench.wait(lambda: len(bench.recorder.texts) == 5)
    assert bench.recorder.texts == ["-1.0", "0.0", "0.01", "0.02", "0.03"]


def test_a_timer_that_never_comes_leaves_the_others_alone(bench: Bench) -> None:
    def start(actor: Scripted) -> None:
        actor.timers.after(math.inf, Note("never"))
        actor.timers.after(0.01, Note("soon"))

    bench.spawn("actor", Scripted(bench.recorder, on_start=start))
    bench.wait(lambda: bench.recorder.texts == ["soon"])


def test_a_repeated_timer_comes_again_that_long_after_the_last_one_was_handled(
    simulation: SimulatedBench,
) -> None:
    runtime = simulation.runtime
    times: list[float] = []
    began = runtime.clock.now()

    def tick(actor: Scripted, _: Note) -> None:
        times.append(actor.clock.now() - began)
        if len(times) == 2:
            runtime.clock.move_to(began + 25)  # a handler that took 5 s, seen from outside

    simulation.spawn(
        "actor",
        Scripted(
            simulation.recorder,
            {Note: tick},
            on_start=lambda actor: keep(actor.timers.every(10, Note("tick"))),
        ),
    )
    runtime.advance(50)
    assert times == [10, 20, 35, 45]


@pytest.mark.blocking_handlers
def test_ticks_of_a_busy_actor_do_not_pile_up(threads: ThreadedBench) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold(_: Scripted, __: Other) -> None:
        entered.set()
        assert go_on.wait(WAIT_S)

    actor = Scripted(
        threads.recorder,
        {
            Other: hold,
            Question: lambda actor, question: actor.reply(question, Answer(str(len(threads.recorder.texts)))),
        },
        on_start=lambda actor: keep(actor.timers.every(0.0001, Note("tick"))),
    )
    ref = threads.spawn("actor", actor)
    threads.wait(lambda: len(threads.recorder.texts) > 3)
    ref.tell(Other())
    assert entered.wait(WAIT_S)
    for name in ("a", "b", "c"):  # timers are served in order: when these came, a hundred ticks were due
        threads.spawn(
            name,
            Scripted(
                threads.recorder,
                on_start=lambda actor: keep(actor.timers.after(0.01, Other(actor.myself.name))),
            ),
        )
    threads.wait(lambda: {Other("a"), Other("b"), Other("c")} <= set(threads.recorder.entries))
    before = len(threads.recorder.texts)
    marker = ref.request(Question())
    go_on.set()
    assert int(marker.get(WAIT_S).text) - before <= 1  # counted by the actor: it ticks on after its answer


@pytest.mark.parametrize("period", [0.0, -1.0])
def test_a_period_that_leaves_no_time_between_is_refused(bench: Bench, period: float) -> None:
    script = {Note: lambda actor, _: keep(actor.timers.every(period, Other()))}
    bench.spawn("actor", Scripted(bench.recorder, script)).tell(Note("go"))
    bench.wait(lambda: any(isinstance(entry, ActorFailed) for entry in bench.recorder.entries))
    failure = next(entry for entry in bench.recorder.entries if isinstance(entry, ActorFailed))
    assert "a timer repeats after a positive time" in failure.error


def test_a_cancelled_timer_is_not_delivered(simulation: SimulatedBench) -> None:
    guards: list[Guard] = []

    def start(actor: Scripted) -> None:
        guards.append(actor.timers.after(1, Note("cancelled")))
        guards.append(actor.timers.every(1, Note("cancelled too")))
        actor.timers.after(2, Note("end"))

    simulation.spawn("actor", Scripted(simulation.recorder, on_start=start))
    for guard in guards:
        guard.cancel()
    simulation.runtime.advance(10)
    assert simulation.recorder.texts == ["end"]


def test_no_time_passes_for_a_cancelled_timer_nor_for_one_that_never_comes(
    simulation: SimulatedBench,
) -> None:
    def start(actor: Scripted) -> None:
        actor.timers.after(60, Note("cancelled")).cancel()
        actor.timers.after(math.inf, Note("never"))

    simulation.spawn("actor", Scripted(simulation.recorder, on_start=start))
    began = simulation.clock.now()
    simulation.runtime.run()
    assert simulation.clock.now() == began
    assert simulation.recorder.texts == []


def test_a_timer_that_is_cancelled_while_its_message_waits_is_not_delivered(bench: Bench) -> None:
    guards: list[Guard] = []

    def start(actor: Scripted) -> None:
        guards.append(actor.timers.after(0, Note("first")))
        guards.append(actor.timers.after(0, Note("second")))
        actor.timers.after(0, Note("end"))

    def cancel(_: Scripted, note: Note) -> None:
        if note.text == "first":
            guards[1].cancel()

    bench.spawn("actor", Scripted(bench.recorder, {Note: cancel}, on_start=start))
    bench.wait(lambda: "end" in bench.recorder.texts)
    assert bench.recorder.texts == ["first", "end"]


def test_a_repeated_timer_may_cancel_itself(bench: Bench) -> None:
    guards: list[Guard] = []
    count: list[None] = []

    def tick(actor: Scripted, _: Note) -> None:
        count.append(None)
        if len(count) == 3:
            guards[0].cancel()
            actor.timers.after(0.05, Other("end"))

    actor = Scripted(
        bench.recorder,
        {Note: tick},
        on_start=lambda actor: guards.append(actor.timers.every(0.01, Note("tick"))),
    )
    bench.spawn("actor", actor)
    bench.wait(lambda: Other("end") in bench.recorder.entries)
    assert len(count) == 3


def test_holds_on_timers_do_not_pile_up(simulation: SimulatedBench) -> None:
    def restart(actor: Scripted, _: Note) -> None:
        actor.timers.after(600, Other()).cancel()
        actor.timers.after(0, Other("now"))

    ref = simulation.spawn("actor", Scripted(simulation.recorder, {Note: restart}))
    for _ in range(500):
        ref.tell(Note("again"))
    simulation.runtime.advance(0)
    cell = simulation.runtime.cell("actor")
    assert len(simulation.recorder.entries) == 1000
    assert len(cell.guards) == 0


def test_cancelled_timers_of_threads_are_forgotten_long_before_they_are_due() -> None:
    runtime = ThreadedRuntime(watcher="nobody", abandoned=lambda _: None)
    bench = ThreadedBench()

    def restart(actor: Scripted, _: Note) -> None:
        for _number in range(1000):
            actor.timers.after(3600, Other()).cancel()
        bench.recorder.add("done")

    runtime.spawn("actor", Scripted(bench.recorder, {Note: restart})).tell(Note("go"))
    bench.wait(lambda: "done" in bench.recorder.entries)
    assert len(runtime._timers._due) < 200
    assert runtime.stop(WAIT_S) == ()
    assert bench.stop() == ()


def test_timers_of_a_dead_actor_fall_silent(simulation: SimulatedBench) -> None:
    def die(actor: Scripted, _: Other) -> None:
        actor.timers.after(1, Note("ghost"))
        raise ValueError

    actor = Scripted(
        simulation.recorder, {Other: die}, on_start=lambda actor: keep(actor.timers.every(1, Note("tick")))
    )
    simulation.spawn("actor", actor).tell(Other())
    simulation.runtime.advance(100)
    assert simulation.recorder.texts == []
    assert len(simulation.runtime.cell("actor").guards) == 0


def test_the_simulated_clock_counts_days_and_never_goes_back(simulation: SimulatedBench) -> None:
    clock = simulation.runtime.clock
    now, wall = clock.now(), clock.wall()
    simulation.runtime.advance(86_400)
    assert clock.now() == now + 86_400
    assert clock.wall() == wall + 86_400
    clock.move_to(0)
    assert clock.now() == now + 86_400

import random
from collections.abc import Callable

import pytest
from compute_node.actors.kit import simulated
from compute_node.actors.kit.jobs import Blocked, Cancellation, Job
from compute_node.actors.kit.simulated import EPOCH, NEAR_S, SimulatedRuntime
from compute_node.messages.base import ActorUnavailableError, Message
from compute_node.messages.lifecycle import ActorFailed

from doubles.scripted import Answer, Note, Other, Question, Recorder, Scripted, SimulatedBench, Watcher


def busy_run(seed: int) -> tuple[list[str], list[object]]:
    """Several actors with jobs, timers and a death; the trace and what was handled."""
    bench = SimulatedBench(seed)
    runtime = bench.runtime
    dice = random.Random(7)  # noqa: S311 - a seeded choice is what is wanted

    def work(_: Cancellation) -> Message | None:
        if dice.random() < 0.5:
            raise Blocked
        return Other("done")

    def act(actor: Scripted, note: Note) -> None:
        actor.start_job(f"job of {note.text}", work)
        actor.timers.after(len(note.text), Other(note.text))
        if note.text == "b3":
            msg = "bad luck"
            raise ValueError(msg)

    for name in "abc":
        runtime.spawn(name, Scripted(bench.recorder, {Note: act}))
    for number in range(5):
        for name in "abc":
            runtime.ref(name).tell(Note(f"{name}{number}"))
    runtime.run()
    return runtime.trace, bench.recorder.entries


def test_the_same_seed_runs_the_same() -> None:
    assert busy_run(3) == busy_run(3)


def test_another_seed_finds_another_order() -> None:
    assert len({tuple(busy_run(seed)[0]) for seed in range(5)}) == 5


def test_the_trace_tells_time_actor_and_message(simulation: SimulatedBench) -> None:
    simulation.spawn("actor", Scripted(simulation.recorder)).tell(Note("hello"))
    simulation.runtime.run()
    assert simulation.runtime.trace == ["1000.000 actor <- Note(text='hello')"]


def test_a_blocked_job_is_tried_again_until_it_can_go_on(simulation: SimulatedBench) -> None:
    attempts: list[int] = []
    ready: list[bool] = []

    def work(_: Cancellation) -> Message | None:
        attempts.append(1)
        if not ready:
            raise Blocked
        return Other("done")

    def begin(actor: Scripted, _: Note) -> None:
        actor.start_job("work", work)

    simulation.spawn("actor", Scripted(simulation.recorder, {Note: begin})).tell(Note("go"))
    simulation.runtime.run()
    assert attempts
    assert Other("done") not in simulation.recorder.entries
    ready.append(True)
    simulation.runtime.run()
    assert Other("done") in simulation.recorder.entries


def test_a_blocked_job_that_is_cancelled_ends(simulation: SimulatedBench) -> None:
    jobs: list[Job] = []
    kills: list[str] = []

    def work(cancellation: Cancellation) -> Message | None:
        cancellation.on_request(lambda: kills.append("killed"))
        raise Blocked

    def begin(actor: Scripted, _: Note) -> None:
        jobs.append(actor.start_job("work", work, failed=lambda error: Other(str(error))))

    simulation.spawn("actor", Scripted(simulation.recorder, {Note: begin})).tell(Note("go"))
    for _ in range(3):
        simulation.runtime.settle()
    jobs[0].cancel()
    simulation.runtime.settle()
    assert Other("cancelled") in simulation.recorder.entries
    assert kills == ["killed"]


def test_a_condition_that_a_blocked_job_brings_about_is_seen(simulation: SimulatedBench) -> None:
    seen: list[int] = []

    def work(_: Cancellation) -> Message | None:
        seen.append(1)
        raise Blocked

    def begin(actor: Scripted, _: Note) -> None:
        actor.start_job("work", work)

    simulation.spawn("actor", Scripted(simulation.recorder, {Note: begin})).tell(Note("go"))
    simulation.runtime.run(until=lambda: bool(seen))


def test_a_condition_that_never_holds_is_an_error(simulation: SimulatedBench) -> None:
    with pytest.raises(AssertionError, match="nothing is left to do and the condition does not hold"):
        simulation.runtime.run(until=lambda: False)


def test_an_answer_that_never_comes_is_an_error(simulation: SimulatedBench) -> None:
    ref = simulation.spawn(
        "actor",
        Scripted(simulation.recorder, {Question: lambda actor, question: keep(actor.defer(question))}),
    )
    with pytest.raises(AssertionError, match="nothing is left to do"):
        simulation.runtime.ask(ref, Question())


def keep(_: object) -> None:
    pass


def ping_pong(runtime: SimulatedRuntime) -> None:
    recorder = Recorder()
    for name, other in (("a", "b"), ("b", "a")):
        runtime.spawn(
            name, Scripted(recorder, {Note: lambda _, note, other=other: runtime.ref(other).tell(note)})
        )
    runtime.ref("a").tell(Note("ball"))


@pytest.mark.parametrize(
    "go_on",
    [lambda runtime: runtime.run(max_steps=100), lambda runtime: runtime.settle(max_steps=100)],
    ids=["run", "settle"],
)
def test_what_never_ends_is_an_error(
    simulation: SimulatedBench, go_on: Callable[[SimulatedRuntime], None]
) -> None:
    ping_pong(simulation.runtime)
    with pytest.raises(AssertionError, match="after 100 steps"):
        go_on(simulation.runtime)


def test_settling_lets_no_time_pass(simulation: SimulatedBench) -> None:
    def begin(actor: Scripted, _: Note) -> None:
        actor.timers.after(1, Other("late"))
        actor.start_job("work", lambda _: Other("done"))

    simulation.spawn("actor", Scripted(simulation.recorder, {Note: begin})).tell(Note("go"))
    before = simulation.runtime.clock.now()
    simulation.runtime.settle()
    assert simulation.recorder.entries == [Note("go"), Other("done")]
    assert simulation.runtime.clock.now() == before


def test_time_that_passes_brings_its_timers_in_order_and_what_they_cause(simulation: SimulatedBench) -> None:
    times: list[tuple[str, float]] = []
    began = simulation.runtime.clock.now()

    def note(actor: Scripted, message: Note) -> None:
        times.append((message.text, actor.clock.now() - began))
        if message.text == "second":
            actor.timers.after(3, Note("third"))
            actor.timers.after(30, Note("too late"))

    def start(actor: Scripted) -> None:
        actor.timers.after(2, Note("second"))
        actor.timers.after(1, Note("first"))

    simulation.spawn("actor", Scripted(simulation.recorder, {Note: note}, on_start=start))
    simulation.runtime.advance(10)
    assert times == [("first", 1), ("second", 2), ("third", 5)]
    assert simulation.runtime.clock.now() == began + 10


def test_a_check_after_every_step_sees_every_step(simulation: SimulatedBench) -> None:
    counts: list[int] = []
    simulation.runtime.after_step = lambda: counts.append(len(simulation.recorder.texts))
    ref = simulation.spawn("actor", Scripted(simulation.recorder))
    for text in "abc":
        ref.tell(Note(text))
    simulation.runtime.run()
    assert counts == [1, 2, 3]


def test_a_stop_names_the_jobs_that_do_not_honour_their_cancellation(simulation: SimulatedBench) -> None:
    def begin(actor: Scripted, _: Note) -> None:
        actor.start_job("honest", blocked)
        actor.start_job("waiting", blocked)

    def blocked(_: Cancellation) -> Message | None:
        raise Blocked

    def deaf(error: Exception) -> Message | None:
        raise Blocked from error

    simulation.spawn("actor", Scripted(simulation.recorder, {Note: begin})).tell(Note("go"))
    script = {Note: lambda actor, _: actor.start_job("deaf", blocked, failed=deaf)}
    simulation.spawn("other", Scripted(simulation.recorder, script)).tell(Note("go"))
    simulation.runtime.settle()
    assert simulation.stop() == ("deaf",)


def test_an_answer_is_a_value_of_the_simulation_too(simulation: SimulatedBench) -> None:
    script = {Question: lambda actor, question: actor.reply(question, Answer(question.text))}
    ref = simulation.spawn("actor", Scripted(simulation.recorder, script))
    assert simulation.runtime.ask(ref, Question("x")) == Answer("x")


def test_what_happens_around_the_process_comes_in_its_order_among_the_timers(
    simulation: SimulatedBench,
) -> None:
    runtime = simulation.runtime
    began = runtime.clock.now()
    seen: list[tuple[str, float]] = []

    def happening(name: str) -> Callable[[], None]:
        return lambda: seen.append((name, runtime.clock.now() - began))

    def note(actor: Scripted, message: Note) -> None:
        seen.append((message.text, actor.clock.now() - began))

    def start(actor: Scripted) -> None:
        runtime.later(2, happening("before"))
        actor.timers.after(2, Note("timer"))
        runtime.later(2, happening("after"))

    runtime.later(3, happening("last"))
    runtime.later(1, happening("first"))
    simulation.spawn("actor", Scripted(simulation.recorder, {Note: note}, on_start=start))
    runtime.run()
    assert seen == [("first", 1), ("before", 2), ("timer", 2), ("after", 2), ("last", 3)]
    assert runtime.trace == [
        "1002.000 actor <- timer Note(text='timer')",
        "1002.000 actor <- Note(text='timer')",
    ]


def test_what_happens_around_the_process_outlives_it_and_time_goes_on(simulation: SimulatedBench) -> None:
    seen: list[float] = []
    first = simulation.runtime
    first.later(5, lambda: seen.append(second.clock.now()))
    first.advance(2)
    second = SimulatedRuntime(0, continuing=first)
    second.later(1, lambda: seen.append(0))
    second.run()
    assert seen == [0, 1005.0]
    assert second.clock is first.clock
    assert second.trace is not first.trace


def with_a_timer(seed: int, delay_s: float) -> SimulatedBench:
    """A run of one actor that has a message to handle and a timer."""

    def start(actor: Scripted) -> None:
        actor.timers.after(delay_s, Other("tick"))

    bench = SimulatedBench(seed)
    bench.spawn("actor", Scripted(bench.recorder, on_start=start)).tell(Note("at once"))
    bench.runtime.run()
    assert bench.runtime.clock.now() == 1000.0 + delay_s
    return bench


def test_now_and_then_the_machine_stands_still_until_a_near_timer() -> None:
    stalled = []
    for seed in range(300):
        bench = with_a_timer(seed, 0.5)
        stalled.append("<- timer" in bench.runtime.trace[0])
        assert bench.runtime.stalled_s == 0.5 or not stalled[-1]
    assert 0 < sum(stalled) < 150


def test_standing_still_adds_up_and_ends_at_what_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "TIMER_CHANCE", 1.0)
    assert with_a_timer(1, NEAR_S).runtime.stalled_s == NEAR_S
    bench = SimulatedBench(seed=1)

    def start(actor: Scripted) -> None:
        actor.timers.after(0.25, Other("tick"))
        actor.timers.after(1, Other("tack"))

    bench.spawn("actor", Scripted(bench.recorder, on_start=start)).tell(Note("at once"))
    bench.runtime.run()
    assert bench.runtime.stalled_s == 1


def test_time_that_passes_brings_what_happens_around_before_a_later_timer(simulation: SimulatedBench) -> None:
    seen: list[float] = []

    def start(actor: Scripted) -> None:
        actor.timers.after(5, Note("tick"))

    simulation.spawn("actor", Scripted(simulation.recorder, on_start=start))
    simulation.runtime.later(1, lambda: seen.append(simulation.clock.now()))
    simulation.runtime.advance(2)
    assert seen == [1001.0]
    assert simulation.recorder.texts == []


def test_the_wall_clock_is_right_until_somebody_sets_it(simulation: SimulatedBench) -> None:
    assert simulation.clock.wall() == EPOCH + simulation.clock.now()


def test_deaths_are_told_to_the_supervisor_unless_somebody_else_is_named() -> None:
    recorder = Recorder()

    def die(*_: object) -> None:
        raise ValueError

    runtime = SimulatedRuntime(0)
    runtime.spawn("supervisor", Watcher(recorder))
    runtime.spawn("actor", Scripted(recorder, {Note: die})).tell(Note("go"))
    runtime.run()
    assert recorder.entries == [ActorFailed("actor", "ValueError")]
    assert runtime.abandoned == []


def test_a_stop_refuses_what_was_not_looked_at(simulation: SimulatedBench) -> None:
    pending = simulation.spawn("actor", Scripted(simulation.recorder)).request(Question())
    assert simulation.stop() == ()
    with pytest.raises(ActorUnavailableError, match="actor: it was stopped"):
        pending.get(0)


def test_far_timers_wait_until_there_is_nothing_else_to_do() -> None:
    for seed in range(100):
        bench = with_a_timer(seed, 1.5)
        assert bench.recorder.entries == [Note("at once"), Other("tick")]
        assert bench.runtime.stalled_s == 0


def test_a_run_of_just_so_many_steps_is_done_and_one_more_is_too_many(simulation: SimulatedBench) -> None:
    ref = simulation.spawn("actor", Scripted(simulation.recorder))
    for text in "abc":
        ref.tell(Note(text))
    with pytest.raises(AssertionError, match="not done after 3 steps"):
        simulation.runtime.run(max_steps=3)
    simulation.runtime.run(max_steps=1)


def test_the_end_of_a_job_stands_in_the_trace(simulation: SimulatedBench) -> None:
    script = {Note: lambda actor, _: actor.start_job("work", lambda _: None)}
    simulation.spawn("actor", Scripted(simulation.recorder, script)).tell(Note("go"))
    simulation.runtime.run()
    assert simulation.runtime.trace[-1] == "1000.000 actor <- job 'work' ended"

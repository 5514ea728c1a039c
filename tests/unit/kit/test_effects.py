from compute_node.actors.kit.effects import After, Never, Reminders

from doubles.scripted import Note, Other, Scripted, SimulatedBench


def test_a_second_reminder_of_a_kind_replaces_the_first_and_one_taken_back_does_not_come() -> None:
    bench = SimulatedBench(seed=1)
    reminders = Reminders()

    def start(actor: Scripted) -> None:
        for effect in (
            After(1, Note("replaced")),
            After(2, Other("taken back")),
            After(3, Note("last")),
            Never(Other),
            Never(Other),
        ):
            reminders.carry_out(effect, actor.timers)

    bench.spawn("actor", Scripted(bench.recorder, on_start=start))
    bench.runtime.run()
    assert bench.recorder.entries == [Note("last")]
    assert bench.runtime.clock.now() == 1003.0

"""The system shows the threads of a node by their names."""

import os
from pathlib import Path

from compute_node.actors.kit.jobs import Cancellation
from compute_node.messages.base import Message

from doubles.scripted import Note, Other, Scripted, ThreadedBench


def names() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return {(task / "comm").read_text().strip() for task in tasks}


def test_threads_of_actors_of_jobs_and_of_timers_bear_their_names(threads: ThreadedBench) -> None:
    seen: list[set[str]] = []

    def look(_: Cancellation) -> Message:
        seen.append(names())
        return Note("done")

    def begin(actor: Scripted, _: Other) -> None:
        actor.start_job("look", look)

    actor = Scripted(threads.recorder, {Other: begin})
    threads.spawn("worker", actor).tell(Other())
    threads.wait(lambda: "done" in threads.recorder.texts)
    assert {"worker", "timers"} <= seen[0]
    assert seen[0] & {"worker-job-1", "worker-job-2"}, "the other one may not have begun yet"

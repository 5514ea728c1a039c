"""What a node costs that has nothing to do: `python bench/idle.py`."""

import os
from collections import Counter
from pathlib import Path
from typing import Final

from compute_node.actors.kit.jobs import Cancellation
from compute_node.bench.rig import Node, Row, node, progress, spec, table

SECONDS: Final = 30.0
SETTLING_S: Final = 3.0
CPU_AIM: Final = 0.5
"""Percent of one processor."""
MEMORY_AIM: Final = 65.0
"""MiB."""


def measure() -> list[Row]:
    """Watch a running node for half a minute."""
    progress(f"idle: {SECONDS:g} s")
    with node(spec()) as made:
        made.heard("from init to running")
        pause = Cancellation()
        pause.wait(SETTLING_S)
        before = cpu_seconds(made)
        pause.wait(SECONDS)
        percent = (cpu_seconds(made) - before) / SECONDS * 100
        memory = rollup(made)
        names = threads(made)
        made.terminate()
    rss, pss = memory["Rss"], memory["Pss"]
    listed = ", ".join(f"{count} {name}" for name, count in sorted(names.items()))
    return [
        Row(
            f"idle: processor over {SECONDS:g} s",
            f"{percent:.2f} %",
            "",
            None,
            f"≤ {CPU_AIM} %",
            percent <= CPU_AIM,
        ),
        Row(
            "idle: resident memory of the supervisor",
            f"{rss:.1f} MiB (PSS {pss:.1f})",
            "",
            None,
            f"≤ {MEMORY_AIM:g} MiB",
            rss <= MEMORY_AIM,
        ),
        Row("idle: threads", f"{sum(names.values())}: {listed}", "", None, "counted and named"),
    ]


def cpu_seconds(made: Node) -> float:
    """Return how long the supervisor's process has run, user and system."""
    stat = Path(f"/proc/{made.process.pid}/stat").read_text(encoding="utf-8")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rollup(made: Node) -> dict[str, float]:
    """Return the sums of its memory in MiB, by kind."""
    text = Path(f"/proc/{made.process.pid}/smaps_rollup").read_text(encoding="utf-8")
    rows = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {row[0].rstrip(":"): int(row[1]) / 1024 for row in rows}


def threads(made: Node) -> Counter[str]:
    """Count its threads by name, their numbers left out."""
    tasks = Path(f"/proc/{made.process.pid}/task").iterdir()
    return Counter(
        (task / "comm").read_text(encoding="utf-8").strip().rstrip("0123456789-") for task in tasks
    )


if __name__ == "__main__":
    print(table(measure()))

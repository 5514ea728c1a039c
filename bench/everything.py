"""Runs every measurement, or those named, and prints one table: `python bench/everything.py [life apply ...]`."""

import sys
from collections.abc import Callable
from typing import Final

from compute_node.bench import apply, autoscaling, cache, idle, kit, life, status, storage
from compute_node.bench.rig import ROUNDS, Row, machine, table

MEASUREMENTS: Final[dict[str, Callable[[], list[Row]]]] = {
    "life": life.measure,
    "apply": apply.measure,
    "status": status.measure,
    "cache": cache.measure,
    "idle": idle.measure,
    "kit": kit.measure,
    "autoscaling": autoscaling.measure,
    "storage": storage.measure,
}


def main(names: list[str]) -> None:
    """Print the table as Markdown, after what it was measured on."""
    if unknown := set(names) - set(MEASUREMENTS):
        sys.exit(f"not measured here: {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    where = machine()
    rows = [row for name in names or MEASUREMENTS for row in MEASUREMENTS[name]()]
    print(f"{where}. Medians of {ROUNDS} rounds (least and most).\n\n{table(rows)}")


if __name__ == "__main__":
    main(sys.argv[1:])

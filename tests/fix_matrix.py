"""Matrices: tests with very many cases, generated from lists; an ordinary run takes a seeded sample of each.

`@pytest.mark.matrix(name, sample=N)` marks a parametrized test. A run takes N of its cases, others on another
commit. `MATRIX=all` takes every case (`make matrix`), `MATRIX_SEED` the sample that an earlier run took, and a case
that is named on the command line is always taken. What `Cell` records becomes the table `docs/<name>.md` when
`MATRIX_REPORT` names the folder, and a run of every case a line for each matrix in its `faults.md`.
"""

import os
import random
import re
import subprocess
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

ALL: Final = "MATRIX"
SEED: Final = "MATRIX_SEED"
REPORT: Final = "MATRIX_REPORT"
PROPERTY: Final = "matrix"

_results: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
_failed: dict[str, dict[str, bool]] = defaultdict(dict)
"""By matrix: every case that was run, and whether it or its clean-up failed."""


def seed() -> int:
    """Return the number from which every choice of this run is drawn."""
    return int(os.environ[SEED])


class Cell:
    """The place of one case in its table; `say` writes it, a failure overwrites it."""

    def __init__(self, item: pytest.Item, matrix: str) -> None:
        self._item = item
        self._matrix = matrix

    def say(self, row: str, column: str, text: str) -> None:
        """Write what was seen into the table."""
        properties = self._item.user_properties
        properties[:] = [entry for entry in properties if entry[0] != PROPERTY]
        properties.append((PROPERTY, [self._matrix, row, column, text]))


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Cell:
    """The table's cell of this case."""
    marker = request.node.get_closest_marker("matrix")
    assert marker is not None, "only a test that is marked as a matrix has a cell"
    made = Cell(request.node, marker.args[0])
    made.say(request.node.name, "before it could say anything", "-")
    return made


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed, before there are workers: they inherit it."""
    del config
    if SEED not in os.environ:
        os.environ[SEED] = str(_commit() % 1_000_000)


def _commit() -> int:
    try:
        told = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whatever git there is
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        return int(told, 16)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 0  # not a checkout


def pytest_report_header() -> str:
    """Say how this sample is taken again."""
    if os.environ.get(ALL) == "all":
        return f"matrices: every case; {SEED}={seed()}"
    return f"matrices: a sample; {SEED}={seed()} takes it again, {ALL}=all takes every case"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases that are not in the sample."""
    named = any("[" in str(argument) for argument in config.args) or bool(config.option.keyword)
    if os.environ.get(ALL) == "all" or named:
        return
    by_test: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("matrix") is not None:
            by_test[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for test, cases in by_test.items():
        marker = cases[0].get_closest_marker("matrix")
        assert marker is not None
        draw = random.Random(f"{seed()} {test}")  # noqa: S311 - a sample that can be taken again
        cases.sort(key=lambda item: item.nodeid)
        taken = draw.sample(cases, min(marker.kwargs["sample"], len(cases)))
        left_out |= set(cases) - set(taken)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what the cases say; in the process that hears of all of them."""
    for name, value in report.user_properties:
        if name == PROPERTY and isinstance(value, list):
            matrix, row, column, text = value
            failed, cells = _failed[matrix], _results[matrix]
            failed[report.nodeid] = failed.get(report.nodeid, False) or report.failed
            if report.failed:
                cells[row, column] = f"FAILED ({report.when})"
            elif report.when == "teardown" and not cells.get((row, column), "").startswith("FAILED"):
                cells[row, column] = text


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the tables."""
    folder = os.environ.get(REPORT)
    if folder is None or hasattr(session.config, "workerinput"):
        return
    for matrix, cells in _results.items():
        rows = sorted({row for row, _ in cells})
        columns = sorted({column for _, column in cells})
        write_table(Path(folder, f"{matrix}.md"), rows, columns, cells)
    if os.environ.get(ALL) == "all":
        today = datetime.now(UTC).date().isoformat()
        write_summary(
            Path(folder, "faults.md"), {name: [*cases.values()] for name, cases in _failed.items()}, today
        )


def write_table(path: Path, rows: list[str], columns: list[str], cells: dict[tuple[str, str], str]) -> None:
    """Put a table after the text that stands before the first table of the file."""
    head = path.read_text() if path.exists() else f"# {path.stem}\n"
    head = re.split(r"^\|", head, maxsplit=1, flags=re.MULTILINE)[0].rstrip()
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(cells.get((row, column), "-") for column in columns)] for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path.write_text(f"{head}\n\n{table}\n")


SUMMARY: Final = "## The last whole run of each matrix"


def write_summary(path: Path, matrices: dict[str, list[bool]], day: str) -> None:
    """Put a line for each of these matrices (whether each case failed) into the summary; others stay."""
    text = path.read_text() if path.exists() else "# Faults\n"
    before, _, rest = text.partition(f"{SUMMARY}\n")
    old, following, after = rest.partition("\n## ")
    lines = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("| [")}
    for name, failed in matrices.items():
        link = f"[{name}]({name}.md)"
        lines[link] = f"| {link} | {day} | {len(failed)} | {len(failed) - sum(failed)} | {sum(failed)} |"
    table = "\n".join(
        ["| matrix | run | cases | as promised | failed |", "| - | - | - | - | - |", *sorted(lines.values())]
    )
    path.write_text(f"{before.rstrip()}\n\n{SUMMARY}\n\n{table}\n{following}{after}")


__all__: list[Any] = ["Cell", "cell"]

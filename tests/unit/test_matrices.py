"""The samples of matrices, and their tables."""

from pathlib import Path

import pytest

from fix_matrix import write_summary, write_table

TESTS = Path(__file__).resolve().parents[1]
CASES = """
import os
import pytest


@pytest.mark.matrix("numbers", sample=3)
@pytest.mark.parametrize("number", range(40))
def test_numbers(number, cell):
    assert number != 35 or "MATRIX" not in os.environ
    cell.say(f"row {number // 20}", f"column {number % 20:02}", "fine")
    assert number != 33


def test_ordinary():
    pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("MATRIX", "MATRIX_SEED", "MATRIX_REPORT"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest('pytest_plugins = ["fix_matrix"]')
    pytester.makepyfile(test_numbers=CASES)
    pytester.makeini("[pytest]\nmarkers = matrix\n")
    return pytester


def passed(pytester: pytest.Pytester, *arguments: str) -> list[str]:
    result = pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider", *arguments)
    return sorted(
        line.split()[0] for line in result.outlines if " PASSED " in line or line.endswith(" PASSED")
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_takes_a_sample_that_its_seed_takes_again(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = []
    for seed in ("1", "2", "2"):
        monkeypatch.setenv("MATRIX_SEED", seed)
        samples.append(passed(run))
        assert len(samples[-1]) == 4
        assert "test_numbers.py::test_ordinary" in samples[-1]
    assert samples[0] != samples[1] == samples[2]
    assert passed(run, "test_numbers.py::test_numbers[7]") == ["test_numbers.py::test_numbers[7]"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_cases_make_a_table(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX", "all")
    monkeypatch.setenv("MATRIX_REPORT", str(run.path))
    assert len(passed(run)) == 39
    lines = (run.path / "numbers.md").read_text().splitlines()
    assert lines[0] == "# numbers"
    assert [line.count("fine") for line in lines if line.startswith("| row")] == [20, 18]
    assert [line.count("FAILED (call)") for line in lines if line.startswith("| ")][-3:] == [0, 1, 1]
    assert (run.path / "faults.md").read_text().splitlines()[-1].endswith("| 40 | 38 | 2 |")


def test_a_table_replaces_the_one_before_and_keeps_the_text_above(tmp_path: Path) -> None:
    path = tmp_path / "kills.md"
    path.write_text("# Kills\n\nWhat they mean.\n\n| old |\n|---|\n")
    write_table(path, ["a", "b"], ["x"], {("a", "x"): "fine"})
    assert (
        path.read_text() == "# Kills\n\nWhat they mean.\n\n|  | x |\n| --- | --- |\n| a | fine |\n| b | - |\n"
    )


def test_a_summary_replaces_the_lines_of_the_matrices_that_were_run(tmp_path: Path) -> None:
    path = tmp_path / "faults.md"
    path.write_text("# Faults\n\n## The rest\n\nIt stays.\n")
    write_summary(path, {"kills": [False, True]}, "2026-01-01")
    write_summary(path, {"signals": [False]}, "2026-01-02")
    write_summary(path, {"kills": [False, False, False]}, "2026-01-03")
    assert path.read_text() == (
        "# Faults\n\n## The rest\n\nIt stays.\n\n"
        "## The last whole run of each matrix\n\n"
        "| matrix | run | cases | as promised | failed |\n| - | - | - | - | - |\n"
        "| [kills](kills.md) | 2026-01-03 | 3 | 3 | 0 |\n| [signals](signals.md) | 2026-01-02 | 1 | 1 | 0 |\n"
    )
    path.write_text(path.read_text() + "\n## More\n\nIt stays, too.\n")
    write_summary(path, {"kills": [True]}, "2026-01-04")
    assert path.read_text().endswith("| 2026-01-02 | 1 | 1 | 0 |\n\n## More\n\nIt stays, too.\n")
    assert "| 2026-01-04 | 1 | 0 | 1 |" in path.read_text()

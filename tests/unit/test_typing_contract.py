import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MISTAKES = "tests/typing_contract/mistakes.py"
EXPECTED = re.compile(r"# expect: (?P<codes>[a-z,-]+)$")
FOUND = re.compile(r"mistakes\.py:(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_type_checker_finds_each_mistake_with_the_kit_and_nothing_else() -> None:
    expected = {
        (number, code)
        for number, line in enumerate((ROOT / MISTAKES).read_text().splitlines(), start=1)
        if (mark := EXPECTED.search(line)) is not None
        for code in mark["codes"].split(",")
    }
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", MISTAKES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {
        (int(error["line"]), error["code"])
        for line in done.stdout.splitlines()
        if (error := FOUND.search(line)) is not None
    }
    assert expected, "the file marks no mistakes"
    assert found == expected, done.stdout + done.stderr

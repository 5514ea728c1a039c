"""The core limit, tried in processes of its own: a hard limit never comes back."""

import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
soft, hard = (int(word) for word in sys.argv[1:])
resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
from compute_node.process.limits import raise_core_limit
print(raise_core_limit())
print(*resource.getrlimit(resource.RLIMIT_CORE))
"""


def raised(soft: int, hard: int) -> tuple[str, str]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(soft), str(hard)], capture_output=True, text=True, check=True
    )
    said, limits = result.stdout.splitlines()
    return said, limits


@pytest.mark.parametrize(("hard", "what"), [(0, "are not written"), (4096, "are cut at 4096 bytes")])
def test_a_lower_hard_limit_is_reached_and_warned_about_with_the_remedy(hard: int, what: str) -> None:
    said, limits = raised(0, hard)

    assert limits == f"{hard} {hard}"
    assert what in said
    assert "ulimit -Hc unlimited" in said


def test_an_unlimited_hard_limit_is_reached_in_silence() -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the hard limit of this process is lower")

    assert raised(0, resource.RLIM_INFINITY) == ("None", f"{resource.RLIM_INFINITY} {resource.RLIM_INFINITY}")

"""The simulation bites: it finds faults that are planted into the code, a sample of them in an ordinary run."""

import pytest

from fix_matrix import Cell
from simulation.bites import BITES, Bite, find


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.matrix("simulation-bites", sample=3)
@pytest.mark.parametrize("bite", BITES, ids=lambda bite: bite.name)
def test_a_planted_fault_is_found(bite: Bite, cell: Cell) -> None:
    found = find(bite)
    assert found is not None
    cell.say(bite.name, "found after so many seeds, and what was said", f"{found.seeds}: {found.said}")

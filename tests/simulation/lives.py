"""How seeds are lived, for the tests, the planted faults and the soak."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from doubles.world import HOUR_S, STORED, World

TWICE: Final = 10
"""Each so-manieth seed is lived twice, the second time with a wall clock that jumps at every step."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep thousands of lives from filling the log."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class FoundError(AssertionError):
    """A seed in which a promise is broken; says how to replay it."""

    def __init__(
        self, seed: int, error: AssertionError, trace: list[str], file: str = "test_node.py"
    ) -> None:
        self.said = str(error).partition("\n")[0]
        end = "\n".join(trace[-80:])
        how = f"SIMULATION_SEED={seed} pytest tests/simulation/{file} -k replay"
        super().__init__(f"seed {seed}: {error}\nreplay it by {how}; its end:\n{end}")


def live(seed: int, *, wall_clock_jumps_by_s: float = 0.0) -> World:
    """Live all the lives of a seed. Raises FoundError."""
    with silence(), World(seed, drawn=True) as world:
        world.wall_clock_jumps_by_s = wall_clock_jumps_by_s
        try:
            world.live_all()
        except AssertionError as error:
            raise FoundError(seed, error, world.runtime.trace) from error
    return world


def check(seed: int) -> None:
    """Live a seed and, each so often, see that the wall clock decides nothing. Raises FoundError."""
    world = live(seed)
    if seed % TWICE == 0:
        try:
            again = live(seed, wall_clock_jumps_by_s=HOUR_S)
            # When a lease ends is a time of the wall; that it is kept nevertheless is seen all the same.
            held = world.storage is not None and world.storage.leases
            assert held or told(again) == told(world), "the wall clock decides something"
        except FoundError:
            raise
        except AssertionError as error:
            raise FoundError(seed, error, world.runtime.trace) from error


def check_stored(number: int) -> None:
    """Do the same with the so-manieth seed whose node lives on Neon's storage."""
    check(3 * number + STORED)


def told(world: World) -> tuple[list[str], object]:
    """Return all that happened, without what shows the wall clock or the place of the folder."""
    place = str(world.machine.root)
    story = [line.replace(place, "") for line in world.runtime.trace if "Observed" not in line]
    return story, world.supervisor.state.startup

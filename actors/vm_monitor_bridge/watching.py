"""What is decided about the memory of Postgres: the watch over it, and when the agent is asked for more."""

import logging

from msgspec.structs import replace

from . import decisions, protocol
from .decisions import Asking, Summary, mib
from .effects import Watch
from .private import CgroupFound, MemoryUsed, WatchAgain, WatchEnded
from .state import FIRST_PAUSE_S, longer
from .turn import Turn


def watch(turn: Turn) -> None:
    """Begin to watch, while nobody does."""
    turn.set(watching=turn.state.run)
    turn.effects.append(Watch(turn.state.run, turn.state.postmaster))


def cgroup_found(turn: Turn, message: CgroupFound) -> None:
    if _is_watching(turn):
        turn.set(cgroup=message.cgroup)


def memory_used(turn: Turn, message: MemoryUsed) -> None:
    if _is_watching(turn):
        turn.set(memory=message.summary, watch_error=None, watch_pause_s=FIRST_PAUSE_S)
        ask_if_needed(turn)


def _is_watching(turn: Turn) -> bool:
    return turn.state.on and turn.state.watching == turn.state.run


def watch_ended(turn: Turn, message: WatchEnded) -> None:
    turn.set(watching=None)
    if not turn.state.on:
        return
    if message.run != turn.state.run:
        watch(turn)
        return
    why = message.error or "it was ended"
    if why != turn.state.watch_error:
        text = f"the memory of Postgres is not known, so no downscale is approved: {why}"
        turn.log(logging.ERROR, text)
    turn.remind(turn.state.watch_pause_s, WatchAgain(message.run))
    turn.set(
        cgroup=None,
        memory=Summary(turn.state.memory.at_s),
        watch_error=why,
        watch_pause_s=longer(turn.state.watch_pause_s),
    )


def watch_again(turn: Turn, message: WatchAgain) -> None:
    if turn.state.on and message.run == turn.state.run and turn.state.watching is None:
        watch(turn)


def ask_if_needed(turn: Turn) -> None:
    """Ask the agent for more memory where too much is in use."""
    state = turn.state
    agent, limit = state.agent, state.threshold
    if agent is None or limit is None or not agent.ready or not state.watches_cgroup:
        return
    asking = Asking(agent.since_s, agent.heard > 0, state.asked_s)
    if decisions.should_ask(state.memory, limit, asking, turn.now_s):
        turn.set(asked_s=turn.now_s, agent=replace(agent, next_id=agent.next_id + protocol.ID_STEP))
        turn.send(protocol.UpscaleRequest(agent.next_id))
        reason = f"{mib(state.memory.average)} MiB are in use, and the threshold is {mib(limit)} MiB"
        turn.decided("upscale_requested", reason)

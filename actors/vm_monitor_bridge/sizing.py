"""What is decided about the sizes: one sizing at a time, in the order in which they were asked for.

What the agent asks is answered exactly once, unless its connection is over by then. A downscale is judged before its sizes
are set and, since that takes time, after: then the sizes before it are set again where it must not be.
"""

from typing import Final

from msgspec.structs import replace

from . import decisions, protocol, watching
from .decisions import Denial, Stale, mib
from .effects import INTERNAL_ERROR, Size
from .private import Sized, SizingFailed
from .state import Kind, Task
from .turn import Turn

MAX_QUEUE: Final = 8
"""Sizings that wait; the agent asks for one at a time, so more come of a peer that is none."""
NOBODY: Final = 0
"""The connection of a task that no agent has asked for."""
FAILED: Final = {Kind.UPSCALE: "failed to handle upscale", Kind.DOWNSCALE: "failed to downscale"}
UNMANAGED: Final = "monitor is not managing cgroup or file cache"

# --- Before it -------------------------------------------------------------------------------------------


def take(turn: Turn, task: Task) -> None:
    """Take in what an agent asks for."""
    if len(turn.state.queue) >= MAX_QUEUE:
        fail(turn, task, "too many requests are waiting")
    else:
        turn.set(queue=(*turn.state.queue, task))


def begin_next(turn: Turn) -> None:
    """Begin what is due, until something has to be waited for."""
    while turn.state.on and turn.state.sizing is None and turn.state.queue:
        task, *rest = turn.state.queue
        turn.set(queue=tuple(rest))
        if task.kind is not Kind.SET_UP and not turn.state.manages:
            confirm(turn, task, UNMANAGED)
        elif task.kind is not Kind.DOWNSCALE or may_shrink(turn, task):
            _begin(turn, task)


def _begin(turn: Turn, task: Task) -> None:
    state = turn.state
    cache = state.resizes and (task.kind is Kind.SET_UP or state.has_file_cache is not False)
    turn.set(sizing=task, sizing_run=state.run, works=state.works + 1)
    turn.effects.append(Size(turn.state.works, state.postmaster, task.total, cache))


def may_shrink(turn: Turn, task: Task) -> bool:
    """Judge a downscale; where it must not be it is answered."""
    if not turn.state.watches_cgroup:
        return True
    assert task.total is not None  # noqa: S101 - the agent has said it
    match decisions.judge_downscale(task.total, turn.state.memory, turn.now_s):
        case None:
            return True
        case Denial(reason):
            status = _with_trouble(turn, reason)
            answer(turn, task, protocol.DownscaleResult(ok=False, status=status, id=task.id))
            turn.decided("downscale_denied", status)
        case Stale(reason):
            fail(turn, task, _with_trouble(turn, reason))
    return False


def _with_trouble(turn: Turn, reason: str) -> str:
    """Add to what is not known of the memory why it is not."""
    trouble = turn.state.watch_error
    return reason if trouble is None else f"{reason}: {trouble}"


# --- After it --------------------------------------------------------------------------------------------


def sized(turn: Turn, message: Sized) -> None:
    task = _over(turn, message.work)
    if task is None:
        return
    if task.kind is Kind.SET_UP or message.file_cache is not None:
        turn.set(has_file_cache=message.file_cache is not None if turn.state.resizes else None)
    if task.kind is Kind.DOWNSCALE and not may_shrink(turn, task):  # more memory is in use by now
        restore = Task(Kind.RESTORE, NOBODY, total=turn.state.total)
        turn.set(queue=(restore, *turn.state.queue), file_cache=message.file_cache)
        return
    before, after = turn.state.threshold, decisions.threshold(message.total)
    known = turn.state.file_cache if message.file_cache is None else message.file_cache
    turn.set_sizes(message.total, after, known)
    confirm(turn, task, _describe(turn, task, before, message))
    watching.ask_if_needed(turn)


def sizing_failed(turn: Turn, message: SizingFailed) -> None:
    task = _over(turn, message.work)
    if task is None:
        return
    turn.set(file_cache=None)  # it may have been changed all the same
    if task.kind in FAILED:
        fail(turn, task, message.error)
        return
    turn.decided(f"{task.kind.value}_failed", message.error)
    if task.kind is Kind.SET_UP and turn.is_current(task.connection):
        turn.drop(INTERNAL_ERROR, f"its sizes could not be set: {message.error}")


def _over(turn: Turn, work: int) -> Task | None:
    """Return the sizing that is over; None where nobody waits for it any more."""
    task = turn.state.sizing
    if task is None or work != turn.state.works:
        return None
    turn.set(sizing=None)
    return task if turn.state.on and turn.state.sizing_run == turn.state.run else None


def _describe(turn: Turn, task: Task, before: int | None, sizes: Sized) -> str:
    parts = []
    if sizes.file_cache is not None:
        parts.append(f"set file cache size to {sizes.file_cache // decisions.MIB} MiB")
    if turn.state.watches_cgroup:
        after = decisions.threshold(sizes.total)
        change = f"to {mib(after)} MiB" if before is None else f"from {mib(before)} MiB to {mib(after)} MiB"
        parts.append(f"set cgroup memory threshold {change}, of new total {mib(sizes.total)} MiB")
        if task.total is not None and sizes.total < task.total:
            parts[-1] += ", which is the limit of the cgroup"
    if not turn.state.resizes:
        parts.append("the size of the file cache is left alone, as the spec says")
    elif sizes.file_cache is None:
        parts.append("this Postgres has no file cache")
    return "; ".join(parts)


# --- Answers ---------------------------------------------------------------------------------------------


def confirm(turn: Turn, task: Task, reason: str) -> None:
    """Say that it is done, to whoever asked for it."""
    match task.kind:
        case Kind.SET_UP:
            if turn.is_current(task.connection):
                turn.set(agent=replace(turn.agent, ready=True))
            turn.decided("sizes_set", reason)
        case Kind.UPSCALE:
            answer(turn, task, protocol.UpscaleConfirmation(task.id))
            turn.decided("upscale_confirmed", reason)
        case Kind.DOWNSCALE:
            answer(turn, task, protocol.DownscaleResult(ok=True, status=reason, id=task.id))
            turn.decided("downscale_approved", reason)
        case Kind.RESTORE:
            turn.decided("sizes_restored", reason)


def fail(turn: Turn, task: Task, why: str) -> None:
    """Say that it could not be done, to the agent that asked for it."""
    answer(turn, task, protocol.Failure(f"{FAILED[task.kind]}: {why}", task.id))
    turn.decided(f"{task.kind.value}_failed", why)


def answer(turn: Turn, task: Task, message: protocol.ToAgent) -> None:
    """Answer the agent that asked for it, unless its connection is over."""
    if turn.is_current(task.connection):
        turn.send(message)

"""What is decided about the bridge's own life: the machine before Postgres starts, the beginning and the end."""

from ...messages.vm import PrepareVm, StartVmMonitor, StopVmMonitor, VmPreparationFailed, VmPrepared
from ..kit.effects import Tell
from . import serving, watching
from .decisions import Summary
from .effects import GOING_AWAY, Cancel, Prepare, Serve, Size, Watch
from .private import PreparationEnded
from .state import FIRST_PAUSE_S
from .turn import Turn

# --- Before Postgres starts ------------------------------------------------------------------------------


def prepare(turn: Turn, message: PrepareVm) -> None:
    turn.set(preparing=message.operation)
    turn.effects.append(Prepare(message))


def preparation_ended(turn: Turn, message: PreparationEnded) -> None:
    if turn.state.preparing != message.operation:
        return
    turn.set(preparing=None)
    if message.error is None:
        turn.effects.append(Tell(VmPrepared(message.operation)))
    else:
        turn.effects.append(Tell(VmPreparationFailed(message.operation, message.error)))


# --- Beginning and end -----------------------------------------------------------------------------------


def start(turn: Turn, message: StartVmMonitor) -> None:
    _end(turn)
    turn.set(
        on=True,
        run=turn.state.run + 1,
        postmaster=message.postmaster,
        resizes=message.resizes_file_cache,
        memory=Summary(turn.now_s),
    )
    if turn.state.serving is None:
        serving.serve(turn)
    if turn.state.watches_cgroup and turn.state.watching is None:
        watching.watch(turn)


def stop(turn: Turn, _: StopVmMonitor) -> None:
    if turn.state.preparing is not None:
        turn.set(preparing=None)
        turn.effects.append(Cancel(Prepare))
    _end(turn)


def _end(turn: Turn) -> None:
    """End what goes on while Postgres runs; the outcomes of its jobs are still to come."""
    state = turn.state
    if not state.on:
        return
    if state.agent is not None:
        turn.drop(GOING_AWAY, "Postgres has stopped")
    jobs = ((Serve, state.serving), (Watch, state.watching), (Size, state.sizing))
    turn.effects += [Cancel(job) for job, under_way in jobs if under_way is not None]
    turn.set(
        on=False,
        address=None,
        error=None,
        watch_error=None,
        serve_pause_s=FIRST_PAUSE_S,
        watch_pause_s=FIRST_PAUSE_S,
        cgroup=None,
        memory=Summary(turn.now_s),
        has_file_cache=None,
        queue=(),
    )
    turn.set_sizes(None, None, None)

"""What the VmMonitorBridge decides: pure. A message, and what is to be done about it.

One sizing at a time, in the order in which they were asked for; health checks are answered beside it. What the agent
asks is answered exactly once, unless its connection is over by then. A downscale is judged before its sizes are set and,
since that takes time, after: then the sizes before it are set again where it must not be.
"""

import logging
from typing import Any, Final, TypeAlias

import msgspec
from msgspec.structs import replace

from ...messages.base import Message
from ...messages.vm import (
    Decided,
    Exchanged,
    PrepareVm,
    StartVmMonitor,
    StopVmMonitor,
    VmPreparationFailed,
    VmPrepared,
)
from ..kit.effects import Log, Remind, Tell
from . import decisions, protocol
from .decisions import Asking, Denial, Stale, Summary, mib
from .private import (
    AgentGone,
    AgentOffered,
    AgentSaid,
    CgroupFound,
    Listening,
    MemoryUsed,
    PreparationEnded,
    ServeAgain,
    ServingEnded,
    SettlingEnded,
    SetUpOverdue,
    Sized,
    SizingFailed,
    WatchAgain,
    WatchEnded,
)
from .state import FIRST_PAUSE_S, Agent, BridgeState, Kind, Task, rfc3339

SET_UP_S: Final = 4.0
"""How long an agent waits for its sizes to be set before its connection is dropped."""
MAX_QUEUE: Final = 8
"""Sizings that wait; the agent asks for one at a time, so more come of a peer that is none."""
MAX_UNREADABLE: Final = 16
"""Messages in a row that cannot be read; then the connection is closed."""
REMEMBERED: Final = 20
"""Messages, and decisions, that are shown."""
LONGEST_PAUSE_S: Final = 30.0

GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011


NOBODY: Final = 0
"""The connection of a task that no agent has asked for."""
FAILED: Final = {Kind.UPSCALE: "failed to handle upscale", Kind.DOWNSCALE: "failed to downscale"}


# --- Effects ---------------------------------------------------------------------------------------------


class Serve(msgspec.Struct, frozen=True):
    """Listen for agents."""

    run: int


class Watch(msgspec.Struct, frozen=True):
    """Watch the memory of Postgres."""

    run: int
    postmaster: int


class Size(msgspec.Struct, frozen=True):
    """Find out how much memory there is to use, of that (None: of the machine's), and set the file cache if `cache`."""

    work: int
    postmaster: int
    total: int | None
    cache: bool


class Prepare(msgspec.Struct, frozen=True):
    """Set swap and quota."""

    wanted: PrepareVm


class Cancel(msgspec.Struct, frozen=True):
    """End the job that such an effect began."""

    of: type[Serve | Watch | Size | Prepare]


class Send(msgspec.Struct, frozen=True):
    """Send the agent a message."""

    connection: int
    message: protocol.ToAgent


class Close(msgspec.Struct, frozen=True):
    """Say goodbye to an agent."""

    connection: int
    code: int
    reason: str


class Expect(msgspec.Struct, frozen=True):
    """Tell those who watch what is too much."""

    threshold: int | None


class Count(msgspec.Struct, frozen=True):
    """Count a decision."""

    decision: str


Effect: TypeAlias = (
    Serve | Watch | Size | Prepare | Cancel | Send | Close | Expect | Tell | Remind | Log | Count
)


class Moment(msgspec.Struct, frozen=True):
    """When a message is handled: monotonic and wall clock, seconds."""

    now_s: float
    wall_s: float


def decide(state: BridgeState, message: Message, moment: Moment) -> tuple[BridgeState, tuple[Effect, ...]]:
    """Return the state after a message, and what is to be done, in order."""
    turn = _Turn(state, moment)
    turn.handle(message)
    turn.next_sizing()
    return turn.state, tuple(turn.effects)


class _Turn:
    """One decision in the making."""

    def __init__(self, state: BridgeState, moment: Moment) -> None:
        self.state = state
        self.now_s = moment.now_s
        self.wall_s = moment.wall_s
        self.effects: list[Effect] = []

    def set(self, **changes: Any) -> None:  # noqa: ANN401 - fields of any type
        self.state = replace(self.state, **changes)

    def log(self, level: int, text: str) -> None:
        self.effects.append(Log(level, text))

    def handle(self, message: Message) -> None:  # noqa: C901, PLR0912 - one flat table of messages
        match message:
            case PrepareVm():
                self.set(preparing=message.operation)
                self.effects.append(Prepare(message))
            case PreparationEnded(operation, error):
                self.prepared(operation, error)
            case StartVmMonitor():
                self.start(message)
            case StopVmMonitor():
                self.stop()
            case Listening(address):
                self.listening(address)
            case ServingEnded(run, error):
                self.serving_ended(run, error)
            case ServeAgain(run):
                if self.state.on and run == self.state.run and self.state.serving is None:
                    self.serve()
            case CgroupFound(cgroup):
                if self.is_watching:
                    self.set(cgroup=cgroup)
            case MemoryUsed(summary):
                self.memory_used(summary)
            case WatchEnded(run, error):
                self.watch_ended(run, error)
            case WatchAgain(run):
                if self.state.on and run == self.state.run and self.state.watching is None:
                    self.watch()
            case AgentOffered():
                self.offered(message)
            case AgentSaid(connection, said):
                self.said(connection, said)
            case AgentGone(connection, why):
                self.gone(connection, why)
            case SettlingEnded(connection):
                if self.is_current(connection):
                    self.ask_if_needed()
            case SetUpOverdue(connection):
                if self.is_current(connection) and not self.agent.ready:
                    self.drop(INTERNAL_ERROR, f"its sizes could not be set within {SET_UP_S:g} s")
            case Sized():
                self.sized(message)
            case SizingFailed(work, error):
                self.sizing_failed(work, error)
            case _:
                msg = f"{type(message).__name__} means nothing here"
                raise TypeError(msg)

    # --- Before Postgres starts

    def prepared(self, operation: int, error: str | None) -> None:
        if self.state.preparing != operation:
            return
        self.set(preparing=None)
        outcome = VmPrepared(operation) if error is None else VmPreparationFailed(operation, error)
        self.effects.append(Tell(outcome))

    # --- Beginning and end

    def start(self, message: StartVmMonitor) -> None:
        if self.state.on:
            self.stop()
        self.set(
            on=True,
            run=self.state.run + 1,
            postmaster=message.postmaster,
            resizes=message.resizes_file_cache,
            memory=Summary(self.now_s),
        )
        if self.state.serving is None:
            self.serve()
        if self.state.watches_cgroup and self.state.watching is None:
            self.watch()

    def stop(self) -> None:
        if self.state.preparing is not None:
            self.set(preparing=None)
            self.effects.append(Cancel(Prepare))
        if not self.state.on:
            return
        if self.state.agent is not None:
            self.drop(GOING_AWAY, "Postgres has stopped")
        for job, under_way in (
            (Serve, self.state.serving),
            (Watch, self.state.watching),
            (Size, self.state.sizing),
        ):
            if under_way is not None:
                self.effects.append(Cancel(job))
        self.set(
            on=False,
            address=None,
            error=None,
            watch_error=None,
            serve_pause_s=FIRST_PAUSE_S,
            watch_pause_s=FIRST_PAUSE_S,
            cgroup=None,
            memory=Summary(self.now_s),
            has_file_cache=None,
            queue=(),
        )
        self.set_sizes(None, None, None)

    def serve(self) -> None:
        self.set(serving=self.state.run)
        self.effects.append(Serve(self.state.run))

    def watch(self) -> None:
        self.set(watching=self.state.run)
        self.effects.append(Watch(self.state.run, self.state.postmaster))

    def listening(self, address: str) -> None:
        if self.state.on and self.state.serving == self.state.run:
            self.set(address=address, error=None, serve_pause_s=FIRST_PAUSE_S)
            self.log(logging.INFO, f"the autoscaler agent is waited for at {address}")

    def serving_ended(self, run: int, error: str | None) -> None:
        self.set(serving=None)
        if not self.state.on:
            return
        if run != self.state.run:
            self.serve()
            return
        why = error or "it was ended"
        if why != self.state.error:
            self.log(logging.ERROR, f"no autoscaler agent can connect, which is tried again: {why}")
        if self.state.agent is not None:
            self.forget_agent()
        pause_s = self.state.serve_pause_s
        self.set(address=None, error=why, serve_pause_s=min(2 * pause_s, LONGEST_PAUSE_S))
        self.effects.append(Remind(pause_s, ServeAgain(run)))

    # --- Memory

    @property
    def is_watching(self) -> bool:
        return self.state.on and self.state.watching == self.state.run

    def memory_used(self, summary: Summary) -> None:
        if self.is_watching:
            self.set(memory=summary, watch_error=None, watch_pause_s=FIRST_PAUSE_S)
            self.ask_if_needed()

    def watch_ended(self, run: int, error: str | None) -> None:
        self.set(watching=None)
        if not self.state.on:
            return
        if run != self.state.run:
            self.watch()
            return
        self.set(cgroup=None, memory=Summary(self.state.memory.at_s))
        why = error or "it was ended"
        if why != self.state.watch_error:
            text = f"the memory of Postgres is not known, so no downscale is approved: {why}"
            self.log(logging.ERROR, text)
        pause_s = self.state.watch_pause_s
        self.set(watch_error=why, watch_pause_s=min(2 * pause_s, LONGEST_PAUSE_S))
        self.effects.append(Remind(pause_s, WatchAgain(run)))

    def ask_if_needed(self) -> None:
        """Ask the agent for more memory where too much is in use."""
        state = self.state
        agent, limit = state.agent, state.threshold
        if agent is None or limit is None or not agent.ready or not state.watches_cgroup:
            return
        asking = Asking(agent.since_s, agent.heard > 0, state.asked_s)
        if decisions.should_ask(state.memory, limit, asking, self.now_s):
            self.set(asked_s=self.now_s, agent=replace(agent, next_id=agent.next_id + protocol.ID_STEP))
            self.send(protocol.UpscaleRequest(agent.next_id))
            reason = f"{mib(state.memory.average)} MiB are in use, and the threshold is {mib(limit)} MiB"
            self.decided("upscale_requested", reason)

    # --- Agents

    @property
    def agent(self) -> Agent:
        assert self.state.agent is not None  # noqa: S101 - callers have looked
        return self.state.agent

    def is_current(self, connection: int) -> bool:
        return self.state.agent is not None and self.state.agent.connection == connection

    def offered(self, message: AgentOffered) -> None:
        if not self.state.on:
            self.effects.append(Close(message.connection, GOING_AWAY, "there is no Postgres to speak of"))
            return
        answer = protocol.negotiate(message.offer)
        if isinstance(answer, protocol.NoVersion):
            self.log(logging.WARNING, f"an agent at {message.address} was refused: {answer.error}")
            self.exchange("out", answer)
            self.effects += (
                Send(message.connection, answer),
                Close(message.connection, PROTOCOL_ERROR, "no common version"),
            )
            return
        if self.state.agent is not None and message.connection < self.agent.connection:
            why = "a newer connection is served"  # this one's offer was late
            self.effects.append(Close(message.connection, GOING_AWAY, why))
            return
        if self.state.agent is not None:
            self.drop(GOING_AWAY, f"a newer connection, from {message.address}, takes its place")
        self.set(
            agent=Agent(message.connection, message.address, self.now_s, self.wall_s),
            connections=self.state.connections + 1,
            queue=(*self.state.queue, Task(Kind.SET_UP, message.connection)),
        )
        self.log(logging.INFO, f"the autoscaler agent at {message.address} has connected")
        self.send(answer)
        self.effects += (
            Remind(decisions.SETTLING_S, SettlingEnded(message.connection)),
            Remind(SET_UP_S, SetUpOverdue(message.connection)),
        )

    def said(self, connection: int, said: protocol.FromAgent | protocol.Unreadable) -> None:
        if not self.is_current(connection):
            return
        self.exchange("in", said)
        self.set(agent=replace(self.agent, heard=self.agent.heard + 1))
        if isinstance(said, protocol.Unreadable):
            self.not_understood(said)
            return
        self.set(agent=replace(self.agent, unreadable=0))
        match said:
            case protocol.HealthCheck(id=number):
                self.send(protocol.HealthAnswer(number))
            case protocol.UpscaleNotification(id=number, content=content):
                self.take(Task(Kind.UPSCALE, connection, number, decisions.usable(content.granted.mem)))
            case protocol.DownscaleRequest(id=number, content=content):
                self.take(Task(Kind.DOWNSCALE, connection, number, decisions.usable(content.target.mem)))
            case protocol.InvalidMessage(id=number, content=content):
                text = f"the agent did not understand message {number}: {content.error}"
                self.log(logging.WARNING, text)
            case protocol.InternalError(id=number, content=content):
                text = f"the agent could not do what message {number} asks for: {content.error}"
                self.log(logging.WARNING, text)
        self.ask_if_needed()

    def not_understood(self, said: protocol.Unreadable) -> None:
        self.log(logging.WARNING, f"a message of the agent cannot be read: {said.error}")
        self.set(agent=replace(self.agent, unreadable=self.agent.unreadable + 1))
        self.send(protocol.NotUnderstood(said.error, said.id))
        if self.agent.unreadable >= MAX_UNREADABLE:
            self.drop(POLICY_VIOLATION, f"{MAX_UNREADABLE} messages in a row could not be read")

    def gone(self, connection: int, why: str) -> None:
        if self.is_current(connection):
            self.log(logging.INFO, f"the autoscaler agent at {self.agent.address} is gone: {why}")
            self.forget_agent()

    def drop(self, code: int, reason: str) -> None:
        """Close the connection of the agent."""
        level = logging.INFO if code == GOING_AWAY else logging.WARNING
        self.log(level, f"the connection of the autoscaler agent at {self.agent.address} is closed: {reason}")
        self.effects.append(Close(self.agent.connection, code, reason))
        self.forget_agent()

    def forget_agent(self) -> None:
        connection = self.agent.connection
        self.set(agent=None, queue=tuple(task for task in self.state.queue if task.connection != connection))

    def send(self, message: protocol.ToAgent) -> None:
        self.exchange("out", message)
        self.effects.append(Send(self.agent.connection, message))

    def exchange(
        self, direction: str, message: protocol.ToAgent | protocol.FromAgent | protocol.Unreadable
    ) -> None:
        number: int | None = getattr(message, "id", None)
        entry = Exchanged(rfc3339(self.wall_s), direction, protocol.kind_of(message), number)
        self.set(exchanged=(*self.state.exchanged, entry)[-REMEMBERED:])

    def decided(self, decision: str, reason: str) -> None:
        entry = Decided(rfc3339(self.wall_s), decision, reason)
        self.set(decided=(*self.state.decided, entry)[-REMEMBERED:])
        self.effects.append(Count(decision))
        self.log(logging.INFO, f"autoscaling: {decision}: {reason}")

    # --- Sizing

    def take(self, task: Task) -> None:
        if len(self.state.queue) >= MAX_QUEUE:
            self.fail(task, "too many requests are waiting")
        else:
            self.set(queue=(*self.state.queue, task))

    def next_sizing(self) -> None:
        """Begin what is due, until something has to be waited for."""
        while self.state.on and self.state.sizing is None and self.state.queue:
            task, *rest = self.state.queue
            self.set(queue=tuple(rest))
            if task.kind is not Kind.SET_UP and not self.state.manages:
                self.unmanaged(task)
            elif task.kind is not Kind.DOWNSCALE or self.may_shrink(task):
                self.begin(task)

    def begin(self, task: Task) -> None:
        cache = self.state.resizes and self.state.has_file_cache is not False
        if task.kind is Kind.SET_UP:
            cache = self.state.resizes
        self.set(sizing=task, sizing_run=self.state.run, works=self.state.works + 1)
        self.effects.append(Size(self.state.works, self.state.postmaster, task.total, cache))

    def unmanaged(self, task: Task) -> None:
        reason = "monitor is not managing cgroup or file cache"
        if task.kind is Kind.UPSCALE:
            self.answer(task, protocol.UpscaleConfirmation(task.id))
            self.decided("upscale_confirmed", reason)
        else:
            self.answer(task, protocol.DownscaleResult(ok=True, status=reason, id=task.id))
            self.decided("downscale_approved", reason)

    def may_shrink(self, task: Task) -> bool:
        if not self.state.watches_cgroup:
            return True
        assert task.total is not None  # noqa: S101 - the agent has said it
        match decisions.judge_downscale(task.total, self.state.memory, self.now_s):
            case None:
                return True
            case Denial(reason):
                reason = self.with_trouble(reason)
                self.answer(task, protocol.DownscaleResult(ok=False, status=reason, id=task.id))
                self.decided("downscale_denied", reason)
            case Stale(reason):
                self.fail(task, self.with_trouble(reason))
        return False

    def with_trouble(self, reason: str) -> str:
        """Add to what is not known of the memory why it is not."""
        trouble = self.state.watch_error
        return reason if trouble is None else f"{reason}: {trouble}"

    def sized(self, message: Sized) -> None:
        task = self.state.sizing
        if task is None or message.work != self.state.works:
            return
        self.set(sizing=None)
        if not self.state.on or self.state.sizing_run != self.state.run:
            return
        if task.kind is Kind.SET_UP or message.file_cache is not None:
            self.set(has_file_cache=message.file_cache is not None if self.state.resizes else None)
        if task.kind is Kind.DOWNSCALE and not self.may_shrink(task):  # more memory is in use by now
            restore = Task(Kind.RESTORE, NOBODY, total=self.state.total)
            self.set(queue=(restore, *self.state.queue))
            return
        self.done(task, message.total, message.file_cache)

    def done(self, task: Task, total: int, file_cache: int | None) -> None:
        """Take new sizes into use, and answer who asked for them."""
        before, after = self.state.threshold, decisions.threshold(total)
        self.set_sizes(total, after, self.state.file_cache if file_cache is None else file_cache)
        reason = self.describe(before, after, total, file_cache)
        match task.kind:
            case Kind.SET_UP:
                if self.is_current(task.connection):
                    self.set(agent=replace(self.agent, ready=True))
                self.decided("sizes_set", reason)
            case Kind.UPSCALE:
                self.answer(task, protocol.UpscaleConfirmation(task.id))
                self.decided("upscale_confirmed", reason)
            case Kind.DOWNSCALE:
                self.answer(task, protocol.DownscaleResult(ok=True, status=reason, id=task.id))
                self.decided("downscale_approved", reason)
            case Kind.RESTORE:
                self.decided("sizes_restored", reason)
        self.ask_if_needed()

    def set_sizes(self, total: int | None, threshold: int | None, file_cache: int | None) -> None:
        self.set(total=total, threshold=threshold, file_cache=file_cache)
        self.effects.append(Expect(threshold))

    def describe(self, before: int | None, after: int, total: int, file_cache: int | None) -> str:
        parts = []
        if file_cache is not None:
            parts.append(f"set file cache size to {file_cache // decisions.MIB} MiB")
        if self.state.watches_cgroup:
            change = (
                f"to {mib(after)} MiB" if before is None else f"from {mib(before)} MiB to {mib(after)} MiB"
            )
            parts.append(f"set cgroup memory threshold {change}, of new total {mib(total)} MiB")
        if not self.state.resizes:
            parts.append("the size of the file cache is left alone, as the spec says")
        elif file_cache is None:
            parts.append("this Postgres has no file cache")
        return "; ".join(parts)

    def sizing_failed(self, work: int, error: str) -> None:
        task = self.state.sizing
        if task is None or work != self.state.works:
            return
        self.set(sizing=None)
        if not self.state.on or self.state.sizing_run != self.state.run:
            return
        if task.kind in FAILED:
            self.fail(task, error)
            return
        self.decided(f"{task.kind.value}_failed", error)
        if task.kind is Kind.SET_UP and self.is_current(task.connection):
            self.drop(INTERNAL_ERROR, f"its sizes could not be set: {error}")

    def fail(self, task: Task, why: str) -> None:
        error = f"{FAILED[task.kind]}: {why}"
        self.answer(task, protocol.Failure(error, task.id))
        self.decided(f"{task.kind.value}_failed", why)

    def answer(self, task: Task, message: protocol.ToAgent) -> None:
        if self.is_current(task.connection):
            self.send(message)

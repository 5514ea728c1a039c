"""What is decided about agents: listening for them, which one is served, and what it says.

Sizings are left to `sizing.py`; health checks are answered beside them.
"""

import logging
from typing import Final

from msgspec.structs import replace

from . import decisions, protocol, sizing, watching
from .effects import (
    GOING_AWAY,
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    PROTOCOL_ERROR,
    Close,
    Send,
    Serve,
)
from .private import (
    AgentGone,
    AgentOffered,
    AgentSaid,
    Listening,
    ServeAgain,
    ServingEnded,
    SettlingEnded,
    SetUpOverdue,
)
from .state import FIRST_PAUSE_S, Agent, Kind, Task, longer
from .turn import Turn

SET_UP_S: Final = 4.0
"""How long an agent waits for its sizes to be set before its connection is dropped."""
MAX_UNREADABLE: Final = 16
"""Messages in a row that cannot be read; then the connection is closed."""

# --- Listening -------------------------------------------------------------------------------------------


def serve(turn: Turn) -> None:
    """Begin to listen, while nobody does."""
    turn.set(serving=turn.state.run)
    turn.effects.append(Serve(turn.state.run))


def listening(turn: Turn, message: Listening) -> None:
    if turn.state.on and turn.state.serving == turn.state.run:
        turn.set(address=message.address, error=None, serve_pause_s=FIRST_PAUSE_S)
        turn.log(logging.INFO, f"the autoscaler agent is waited for at {message.address}")


def serving_ended(turn: Turn, message: ServingEnded) -> None:
    turn.set(serving=None)
    if not turn.state.on:
        return
    if message.run != turn.state.run:
        serve(turn)
        return
    why = message.error or "it was ended"
    if why != turn.state.error:
        turn.log(logging.ERROR, f"no autoscaler agent can connect, which is tried again: {why}")
    if turn.state.agent is not None:
        turn.forget_agent()
    turn.remind(turn.state.serve_pause_s, ServeAgain(message.run))
    turn.set(address=None, error=why, serve_pause_s=longer(turn.state.serve_pause_s))


def serve_again(turn: Turn, message: ServeAgain) -> None:
    if turn.state.on and message.run == turn.state.run and turn.state.serving is None:
        serve(turn)


# --- Connections -----------------------------------------------------------------------------------------


def agent_offered(turn: Turn, message: AgentOffered) -> None:
    if not turn.state.on:
        turn.effects.append(Close(message.connection, GOING_AWAY, "there is no Postgres to speak of"))
        return
    answer = protocol.negotiate(message.offer)
    if isinstance(answer, protocol.NoVersion):
        turn.log(logging.WARNING, f"an agent at {message.address} was refused: {answer.error}")
        turn.exchange("out", answer)
        turn.effects += (
            Send(message.connection, answer),
            Close(message.connection, PROTOCOL_ERROR, "no common version"),
        )
        return
    if turn.state.agent is not None and message.connection < turn.agent.connection:
        why = "a newer connection is served"  # this one's offer was late
        turn.effects.append(Close(message.connection, GOING_AWAY, why))
        return
    if turn.state.agent is not None:
        turn.drop(GOING_AWAY, f"a newer connection, from {message.address}, takes its place")
    turn.set(
        agent=Agent(message.connection, message.address, turn.now_s, turn.wall_s),
        connections=turn.state.connections + 1,
        queue=(*turn.state.queue, Task(Kind.SET_UP, message.connection)),
    )
    turn.log(logging.INFO, f"the autoscaler agent at {message.address} has connected")
    turn.send(answer)
    turn.remind(decisions.SETTLING_S, SettlingEnded(message.connection))
    turn.remind(SET_UP_S, SetUpOverdue(message.connection))


def settling_ended(turn: Turn, message: SettlingEnded) -> None:
    if turn.is_current(message.connection):
        watching.ask_if_needed(turn)


def set_up_overdue(turn: Turn, message: SetUpOverdue) -> None:
    if turn.is_current(message.connection) and not turn.agent.ready:
        turn.drop(INTERNAL_ERROR, f"its sizes could not be set within {SET_UP_S:g} s")


def agent_gone(turn: Turn, message: AgentGone) -> None:
    if turn.is_current(message.connection):
        turn.log(logging.INFO, f"the autoscaler agent at {turn.agent.address} is gone: {message.why}")
        turn.forget_agent()


# --- What the agent says ---------------------------------------------------------------------------------


def agent_said(turn: Turn, message: AgentSaid) -> None:
    connection, said = message.connection, message.said
    if not turn.is_current(connection):
        return
    turn.exchange("in", said)
    turn.set(agent=replace(turn.agent, heard=turn.agent.heard + 1))
    if isinstance(said, protocol.Unreadable):
        _not_understood(turn, said)
        return
    turn.set(agent=replace(turn.agent, unreadable=0))
    match said:
        case protocol.HealthCheck(id=number):
            turn.send(protocol.HealthAnswer(number))
        case protocol.UpscaleNotification(id=number, content=content):
            total = decisions.usable(content.granted.mem)
            sizing.take(turn, Task(Kind.UPSCALE, connection, number, total))
        case protocol.DownscaleRequest(id=number, content=content):
            total = decisions.usable(content.target.mem)
            sizing.take(turn, Task(Kind.DOWNSCALE, connection, number, total))
        case protocol.InvalidMessage(id=number, content=content):
            turn.log(logging.WARNING, f"the agent did not understand message {number}: {content.error}")
        case protocol.InternalError(id=number, content=content):
            text = f"the agent could not do what message {number} asks for: {content.error}"
            turn.log(logging.WARNING, text)
    watching.ask_if_needed(turn)


def _not_understood(turn: Turn, said: protocol.Unreadable) -> None:
    turn.log(logging.WARNING, f"a message of the agent cannot be read: {said.error}")
    turn.set(agent=replace(turn.agent, unreadable=turn.agent.unreadable + 1))
    turn.send(protocol.NotUnderstood(said.error, said.id))
    if turn.agent.unreadable >= MAX_UNREADABLE:
        turn.drop(POLICY_VIOLATION, f"{MAX_UNREADABLE} messages in a row could not be read")

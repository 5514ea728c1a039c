"""The transition table: every status, every event, what comes of it. Nothing else changes a status.

Sources: `http-api` reference, section 5, and the project's own decisions (docs/compatibility.md).
"""

from enum import Enum
from typing import Final, TypeAlias

from ...messages.lifecycle import Status


class Event(Enum):
    """What can happen to a node."""

    SPEC_TAKEN = "a spec was accepted"
    START_BEGAN = "the start began"
    RECONFIGURATION_BEGAN = "the spec is being applied to a running Postgres"
    SPEC_APPLIED = "the spec is applied"
    RECONFIGURATION_FAILED = "the spec could not be applied, Postgres runs on"
    START_FAILED = "the start failed"
    POSTGRES_LOST = "Postgres ended unasked"
    TERMINATE_FAST = "termination was asked for, mode fast"
    TERMINATE_IMMEDIATE = "termination was asked for, mode immediate"
    STOPPED = "Postgres is gone, as asked"
    STOPPED_BROKEN = "Postgres is gone after a failure of the node itself"
    REFRESH_ASKED = "a refresh of the spec was asked for"
    REFRESH_BEGAN = "a new spec is being fetched and applied"
    REFRESH_ENDED = "the refreshed spec is in force"
    REFRESH_FAILED = "the refresh failed"


class Refused(Enum):
    """Why an event changes nothing."""

    WRONG_STATUS = "answered 412: the node is not in a status that takes it"
    QUEUED = "taken, and carried out when the configuration under way has ended"
    JOINED = "the asker waits for the termination under way"
    DONE = "answered at once: the node has ended already"
    CANNOT_HAPPEN = "no actor says this in that status; ignored if late, and logged"


Outcome: TypeAlias = Status | Refused

_E = Event
_S = Status
_WRONG = Refused.WRONG_STATUS
_NEVER = Refused.CANNOT_HAPPEN

_NOTHING: Final[dict[Event, Outcome]] = {
    _E.SPEC_TAKEN: _WRONG,
    _E.START_BEGAN: _NEVER,
    _E.RECONFIGURATION_BEGAN: _NEVER,
    _E.SPEC_APPLIED: _NEVER,
    _E.RECONFIGURATION_FAILED: _NEVER,
    _E.START_FAILED: _NEVER,
    _E.POSTGRES_LOST: _NEVER,
    _E.TERMINATE_FAST: _S.TERMINATION_PENDING_FAST,
    _E.TERMINATE_IMMEDIATE: _S.TERMINATION_PENDING_IMMEDIATE,
    _E.STOPPED: _NEVER,
    _E.STOPPED_BROKEN: _NEVER,
    _E.REFRESH_ASKED: _WRONG,
    _E.REFRESH_BEGAN: _NEVER,
    _E.REFRESH_ENDED: _NEVER,
    _E.REFRESH_FAILED: _NEVER,
}
"""What holds in a status unless its row says otherwise: it can be terminated, and nothing else."""

TRANSITIONS: Final[dict[Status, dict[Event, Outcome]]] = {
    _S.EMPTY: _NOTHING
    | {
        _E.SPEC_TAKEN: _S.CONFIGURATION_PENDING,
        _E.START_BEGAN: _S.INIT,
    },
    _S.CONFIGURATION_PENDING: _NOTHING
    | {
        _E.START_BEGAN: _S.INIT,
        _E.RECONFIGURATION_BEGAN: _S.CONFIGURATION,
        _E.START_FAILED: _S.FAILED,
        _E.POSTGRES_LOST: _S.FAILED,
    },
    _S.INIT: _NOTHING
    | {
        _E.SPEC_APPLIED: _S.RUNNING,
        _E.START_FAILED: _S.FAILED,
        _E.POSTGRES_LOST: _S.FAILED,
    },
    _S.RUNNING: _NOTHING
    | {
        _E.SPEC_TAKEN: _S.CONFIGURATION_PENDING,
        _E.POSTGRES_LOST: _S.FAILED,
        _E.REFRESH_ASKED: _S.REFRESH_CONFIGURATION_PENDING,
    },
    _S.CONFIGURATION: _NOTHING
    | {
        _E.SPEC_APPLIED: _S.RUNNING,
        _E.RECONFIGURATION_FAILED: _S.RUNNING,
        _E.POSTGRES_LOST: _S.FAILED,
        _E.TERMINATE_FAST: Refused.QUEUED,
        _E.TERMINATE_IMMEDIATE: Refused.QUEUED,
    },
    _S.FAILED: dict(_NOTHING),
    _S.TERMINATION_PENDING_FAST: _NOTHING
    | {
        _E.TERMINATE_FAST: Refused.JOINED,
        _E.STOPPED: _S.TERMINATED,
        _E.STOPPED_BROKEN: _S.FAILED,
    },
    _S.TERMINATION_PENDING_IMMEDIATE: _NOTHING
    | {
        _E.TERMINATE_FAST: Refused.JOINED,
        _E.TERMINATE_IMMEDIATE: Refused.JOINED,
        _E.STOPPED: _S.TERMINATED,
        _E.STOPPED_BROKEN: _S.FAILED,
    },
    _S.TERMINATED: _NOTHING
    | {
        _E.TERMINATE_FAST: Refused.DONE,
        _E.TERMINATE_IMMEDIATE: Refused.DONE,
    },
    _S.REFRESH_CONFIGURATION_PENDING: _NOTHING
    | {
        _E.POSTGRES_LOST: _S.FAILED,
        _E.REFRESH_ASKED: _S.REFRESH_CONFIGURATION_PENDING,
        _E.REFRESH_BEGAN: _S.REFRESH_CONFIGURATION,
    },
    _S.REFRESH_CONFIGURATION: _NOTHING
    | {
        _E.POSTGRES_LOST: _S.FAILED,
        _E.REFRESH_ENDED: _S.RUNNING,
        _E.REFRESH_FAILED: _S.REFRESH_CONFIGURATION_PENDING,
        _E.TERMINATE_FAST: Refused.QUEUED,
        _E.TERMINATE_IMMEDIATE: Refused.QUEUED,
    },
}


def outcome(status: Status, event: Event) -> Outcome:
    """Look up what an event does in a status."""
    return TRANSITIONS[status][event]


def diagram() -> str:
    """Draw the table as a Mermaid state diagram: one arrow for each pair of statuses, with its events."""
    arrows: dict[tuple[Status, Status], list[str]] = {}
    for status, row in TRANSITIONS.items():
        for event, after in row.items():
            if isinstance(after, Status) and after is not status:
                arrows.setdefault((status, after), []).append(event.name.lower())
    lines = ["stateDiagram-v2", "    [*] --> empty", "    [*] --> init"]
    lines += [
        f"    {before.value} --> {after.value}: {', '.join(events)}"
        for (before, after), events in arrows.items()
    ]
    return "\n".join([*lines, "    terminated --> [*]", "    failed --> [*]"])


if __name__ == "__main__":
    print(diagram())  # noqa: T201 - for the README

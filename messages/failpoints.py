"""The named steps of the node's jobs at which a test can make something happen, and the language that says what.

Pure. The language is that of Rust's `fail` crate (`startup-and-spec` reference, 1.2; `http-api`, 10.4).
"""

import re
from collections.abc import Iterable
from enum import Enum
from typing import Final, Self

import msgspec


class Failpoint(Enum):
    """A step: its name, and what has just been done or is about to be done when it is reached."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        """Let the name be the value."""
        member = object.__new__(cls)
        member._value_ = name
        member.meaning = meaning
        return member

    INSPECT_LOCKED = "inspect-locked", "the lock on PGDATA is ours; nothing was looked at"
    INSPECT_CLEARED = "inspect-cleared", "Postgres processes of an earlier life are gone"
    INSPECT_RECOVERED = "inspect-recovered", "what an interrupted start left is finished or undone"
    CHECK_WRITTEN = "check-written", "the files for `postgres -C` are written"
    CHECK_ASKED = "check-asked", "`postgres -C` has answered, its files are gone"
    PREPARE_BEGUN = "prepare-begun", "a new PGDATA is to be made; nothing was done"
    PREPARE_TOKEN = "prepare-token", "the building folder bears our token; there is nothing else in it"
    INITDB_RUNNING = "initdb-running", "initdb has been started"
    INITDB_DONE = "initdb-done", "initdb has ended well"
    PREPARE_UNSEALED = "prepare-unsealed", "the new PGDATA bears our token and not yet the marker"
    PREPARE_SEALED = "prepare-sealed", "the new PGDATA bears the marker, and is still aside"
    LAUNCH_CLEARED = "launch-cleared", "nobody works in PGDATA; it is to be put in its place"
    PLACE_AWAY = "place-away", "the old PGDATA is out of the way, the new one not yet in its place"
    PLACE_MOVED = "place-moved", "the new PGDATA is in its place, leftovers are still there"
    LAUNCH_PLACED = "launch-placed", "PGDATA is in its place; its files are to be written"
    FILES_CONF = "files-conf", "postgresql.conf is written, the other files are not"
    FILES_WRITTEN = "files-written", "all files and folders of the run are there"
    LAUNCHED = "launched", "the postmaster process exists"
    AWAIT_READY = "await-ready", "the wait for readiness begins"
    READY_SEEN = "ready-seen", "Postgres accepts connections; nobody knows it yet"
    EXIT_SEEN = "exit-seen", "the postmaster was waited for; nobody knows it yet"
    INSTALL_WRITTEN = "install-written", "a running Postgres's new configuration is written and not loaded"
    INSTALL_RELOADED = "install-reloaded", "the postmaster was told to load the new configuration"
    INSTALL_VERIFIED = "install-verified", "Postgres has loaded the new configuration"
    KILL_BEGUN = "kill-begun", "the last rung of a stop is to be taken"
    TIDY_BEGUN = "tidy-begun", "the postmaster is gone; what is left is to be cleaned up"
    TIDY_SWEPT = "tidy-swept", "no process of Postgres is left; folders still are"
    APPLY_CATALOG = "apply-catalog", "the catalog was read"
    APPLY_STATEMENT = "apply-statement", "between two statements; while armed they go out one by one"
    APPLY_PHASE = "apply-phase", "a phase of the application is done"
    APPLY_VISIT = "apply-visit", "a database was connected to and looked into"
    APPLY_DONE = "apply-done", "all statements are done; nobody knows it yet"
    MIGRATION = (
        "compute-migration",
        "a migration is done and not yet counted; `return(<n>)` fails the one of that number only",
    )
    PROMOTION = "compute-promotion", "a standby has caught up, and has loaded what it needs as a primary"
    OBSERVE = "observe", "the monitor is to look at Postgres"
    REREAD = "reread", "the configuration file is to be read again"
    HTTP_BOUND = "http-bound", "both servers hold their ports"
    HTTP_SERVING = "http-serving", "a server is to take requests"


class FailpointError(Exception):
    """What `return` raises in a job; also: failpoints are described in a way that nobody understands."""


class Deed(Enum):
    """What happens when a step is reached."""

    OFF = "off"
    RETURN = "return"
    """The job fails with the argument as its text."""
    PAUSE = "pause"
    """The job waits until its failpoint is given other actions."""
    SLEEP = "sleep"
    """The job waits for so many milliseconds."""
    PRINT = "print"
    """The argument is logged."""
    PANIC = "panic"
    """The job fails in a way that nobody handles: its actor dies."""
    EXIT = "exit"
    """The process ends at once with the argument as its exit code."""


class Action(msgspec.Struct, frozen=True):
    """One deed; `times` is how often (None: for ever), then the next action is due."""

    deed: Deed
    argument: str = ""
    times: int | None = None


class Arming(msgspec.Struct, frozen=True):
    """A failpoint with its actions; one that begins with OFF is disarmed."""

    failpoint: Failpoint
    actions: tuple[Action, ...]


class FailpointSetting(msgspec.Struct, frozen=True):
    """An arming as it comes over the wire."""

    name: str
    actions: str


_ACTION: Final = re.compile(r"\s*(?:(\d+)\*)?([a-z]+)(?:\((.*)\))?\s*", re.DOTALL)
_NUMBERS: Final = frozenset({Deed.SLEEP, Deed.EXIT})
_BARE: Final = frozenset({Deed.OFF, Deed.PAUSE})
MAX_SLEEP_MS: Final = 600_000
MAX_EXIT: Final = 255


def parse_environment(text: str) -> tuple[Arming, ...]:
    """Read `name=actions;name2=actions`. Raises FailpointError."""
    settings = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, found, actions = part.partition("=")
        if not found:
            msg = f"`{part}` is not of the form name=actions"
            raise FailpointError(msg)
        settings.append(FailpointSetting(name.strip(), actions))
    return parse_settings(settings)


def parse_settings(settings: Iterable[FailpointSetting]) -> tuple[Arming, ...]:
    """Understand names and actions, all or none. Raises FailpointError."""
    return tuple(Arming(_failpoint(setting.name), parse_actions(setting.actions)) for setting in settings)


def parse_actions(text: str) -> tuple[Action, ...]:
    """Read `[<times>*]<deed>[(<argument>)]`, several of them with `->` between. Raises FailpointError."""
    return tuple(_action(part) for part in text.split("->"))


def _failpoint(name: str) -> Failpoint:
    for failpoint in Failpoint:
        if failpoint.value == name:
            return failpoint
    msg = f"there is no failpoint `{name}`; there are {', '.join(one.value for one in Failpoint)}"
    raise FailpointError(msg)


def _action(text: str) -> Action:
    found = _ACTION.fullmatch(text)
    deed = None if found is None else next((deed for deed in Deed if deed.value == found[2]), None)
    if found is None or deed is None:
        msg = f"`{text}` is not an action: [<times>*]{'|'.join(deed.value for deed in Deed)}[(<argument>)]"
        raise FailpointError(msg)
    argument = found[3] or ""
    upper = MAX_SLEEP_MS if deed is Deed.SLEEP else MAX_EXIT
    if deed in _NUMBERS and not (argument.isascii() and argument.isdigit() and int(argument) <= upper):
        msg = f"`{text}`: {deed.value} takes a whole number from 0 to {upper}"
        raise FailpointError(msg)
    if deed in _BARE and argument:
        msg = f"`{text}`: {deed.value} takes no argument"
        raise FailpointError(msg)
    return Action(deed, argument, None if found[1] is None else int(found[1]))

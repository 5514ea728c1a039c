"""What the deletions and renamings of a spec amount to. Pure.

A spec is applied again at every start with the same list, so a step must be issued only if the catalog
shows that it was not done before. Where a catalog could not tell, the steps are refused: repeating
«delete b, rename a to b» after a new `a` was made would delete the data it was to keep.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from graphlib import CycleError, TopologicalSorter
from typing import Final, TypeAlias

import msgspec

from .operations import shown

AMBIGUOUS: Final = (
    "the deletions and renamings around this name cannot be told from ones that were done before; "
    "apply them in two specs, one after the other"
)


class Renaming(msgspec.Struct, frozen=True):
    """Rename what has this name, if nothing has the name `target` by then."""

    name: str
    target: str
    only_before: str | None = None
    """Only while this one exists, which is then to take the place that becomes free."""


class Deletion(msgspec.Struct, frozen=True):
    """Delete what has this name."""

    name: str
    only_before: str | None = None
    """Only while this one exists, which is then to take the place that becomes free."""


Change: TypeAlias = Renaming | Deletion


class Step(msgspec.Struct, frozen=True):
    """One entry of the spec's list; without a new name it is a deletion."""

    name: str
    new_name: str | None = None


class Resolved(msgspec.Struct, frozen=True):
    """The changes in the order in which they can be made, and the names that are refused, with the reason."""

    changes: tuple[Change, ...]
    refused: tuple[tuple[str, str], ...] = ()


class _Thing:
    """An object under way through the list: the names it had, first to last, and whether it is deleted."""

    def __init__(self, name: str) -> None:
        self.names = [name]
        self.deleted = False

    @property
    def origin(self) -> str:
        return self.names[0]

    @property
    def target(self) -> str:
        return self.names[-1]

    @property
    def leaves(self) -> list[str]:
        """The names at which it may be met, and must not be in the end."""
        return self.names if self.deleted else self.names[:1]


def resolve(steps: Iterable[Step], wanted: AbstractSet[str]) -> Resolved:
    """Join the steps of each object into one change.

    `wanted` are the names that the spec says are to exist in the end.
    """
    things, refused = _follow(steps)
    renamed = {thing.target: thing for thing in things if not thing.deleted}
    for thing in things:
        for name in thing.leaves:
            successor = renamed.get(name)
            if successor is not None and (successor.origin in wanted or successor.origin in renamed):
                refused |= {name: AMBIGUOUS, successor.origin: AMBIGUOUS}
            elif successor is None and thing.deleted and name in wanted:
                refused[name] = "the spec lists it and asks to delete it; remove one of the two"
        if not thing.deleted and thing.target not in wanted:
            reason = (
                f"the spec lists it and asks to rename it to {shown(thing.target)}, which it does not list"
            )
            refused |= dict.fromkeys((name for name in thing.names if name in wanted), reason)
    things = _without_refused(_ordered(things), refused)
    successors = {thing.target: thing.origin for thing in things if not thing.deleted}
    changes: list[Change] = []
    for thing in things:
        if thing.deleted:
            changes += [Deletion(name, successors.get(name)) for name in thing.names]
        else:
            # In one go: a name in between is another's, where it exists.
            changes.append(Renaming(thing.origin, thing.target, successors.get(thing.origin)))
    return Resolved(tuple(changes), tuple(refused.items()))


def _follow(steps: Iterable[Step]) -> tuple[list[_Thing], dict[str, str]]:
    things: list[_Thing] = []
    present: dict[str, _Thing] = {}
    vacated: set[str] = set()
    refused: dict[str, str] = {}
    for step in steps:
        thing = present.pop(step.name, None)
        if thing is None:
            if step.name in vacated:
                continue  # it speaks of something that an earlier step has taken away
            thing = _Thing(step.name)
            things.append(thing)
        vacated.add(step.name)
        if step.new_name is None:
            thing.deleted = True
        elif step.new_name in present:
            other = present[step.new_name]
            refused[step.name] = (
                f"it cannot be renamed to {shown(step.new_name)}: another renaming of the spec "
                f"({shown(other.origin)}) has that name as its target"
            )
        else:
            thing.names.append(step.new_name)
            present[step.new_name] = thing
    return [thing for thing in things if thing.deleted or thing.origin != thing.target], refused


def _ordered(things: list[_Thing]) -> list[_Thing]:
    """Put each after the one whose place it takes; those that take each other's, refused before, are left out."""
    remaining = list(things)
    while True:
        places: dict[str, list[_Thing]] = {}
        for thing in remaining:
            for name in thing.leaves:
                places.setdefault(name, []).append(thing)
        before = {thing: () if thing.deleted else places.get(thing.target, ()) for thing in remaining}
        try:
            return list(TopologicalSorter(before).static_order())
        except CycleError as error:
            circle = set(error.args[1])
            remaining = [thing for thing in remaining if thing not in circle]


def _without_refused(things: list[_Thing], refused: dict[str, str]) -> list[_Thing]:
    """Leave out what is refused, and what touches a name that is: order and conditions hang together."""
    remaining = list(things)
    while touched := [thing for thing in remaining if any(name in refused for name in thing.names)]:
        refused |= {thing.origin: AMBIGUOUS for thing in touched if thing.origin not in refused}
        remaining = [thing for thing in remaining if thing not in touched]
    return remaining

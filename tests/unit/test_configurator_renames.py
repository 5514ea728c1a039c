"""What a list of deletions and renamings amounts to, and which lists are refused rather than guessed at."""

from collections.abc import Sequence

import pytest
from compute_node.actors.configurator.renames import AMBIGUOUS, Deletion, Renaming, Step, resolve

RESOLVED: list[tuple[str, Sequence[Step], set[str], list[Renaming | Deletion]]] = [
    ("one deletion", [Step("a")], set(), [Deletion("a")]),
    ("one renaming", [Step("a", "b")], {"b"}, [Renaming("a", "b")]),
    ("the old name listed anew", [Step("a", "b")], {"a", "b"}, [Renaming("a", "b")]),
    ("a chain is one renaming", [Step("a", "b"), Step("b", "c")], {"c"}, [Renaming("a", "c")]),
    ("there and back", [Step("a", "b"), Step("b", "a")], {"a"}, []),
    ("renamed, then deleted", [Step("a", "b"), Step("b")], set(), [Deletion("a"), Deletion("b")]),
    ("deleted twice", [Step("a"), Step("a")], set(), [Deletion("a")]),
    ("deleted twice, and another", [Step("a"), Step("a"), Step("z")], set(), [Deletion("a"), Deletion("z")]),
    ("deleted, then renamed", [Step("a"), Step("a", "b")], set(), [Deletion("a")]),
    (
        "a place is made free first, and only as long as its heir is still to come",
        [Step("b"), Step("a", "b")],
        {"b"},
        [Deletion("b", only_before="a"), Renaming("a", "b")],
    ),
    (
        "everybody moves up by one",
        [Step("b", "c"), Step("a", "b")],
        {"b", "c"},
        [Renaming("b", "c", only_before="a"), Renaming("a", "b")],
    ),
    (
        "the order of the list is not always one that can be followed in single steps",
        [Step("a", "t"), Step("b", "c"), Step("t", "b")],
        {"b", "c"},
        [Renaming("b", "c", only_before="a"), Renaming("a", "b")],
    ),
]


@pytest.mark.parametrize(
    ("steps", "wanted", "changes"), [case[1:] for case in RESOLVED], ids=[c[0] for c in RESOLVED]
)
def test_the_steps_of_one_object_become_one_change(
    steps: Sequence[Step], wanted: set[str], changes: list[Renaming | Deletion]
) -> None:
    resolved = resolve(steps, wanted)
    assert (list(resolved.changes), resolved.refused) == (changes, ())


LISTED = "the spec lists it and asks to delete it; remove one of the two"
REFUSED: list[tuple[str, Sequence[Step], set[str], dict[str, str]]] = [
    ("listed and deleted", [Step("a")], {"a"}, {"a": LISTED}),
    ("listed, renamed and deleted", [Step("a", "b"), Step("b")], {"a"}, {"a": LISTED}),
    (
        "listed under the old name only",
        [Step("a", "b")],
        {"a"},
        {"a": 'the spec lists it and asks to rename it to "b", which it does not list'},
    ),
    (
        "two with one new name",
        [Step("a", "c"), Step("b", "c")],
        {"c"},
        {"b": 'it cannot be renamed to "c": another renaming of the spec ("a") has that name as its target'},
    ),
    (
        "places are exchanged",
        [Step("a", "t"), Step("b", "a"), Step("t", "b")],
        {"a", "b"},
        {"a": AMBIGUOUS, "b": AMBIGUOUS},
    ),
    (
        "places are exchanged, and something else is amiss",
        [Step("d", "c"), Step("e", "c"), Step("a", "t"), Step("b", "a"), Step("t", "b"), Step("f", "g")],
        {"a", "b", "c", "f"},
        {
            "e": 'it cannot be renamed to "c": another renaming of the spec ("d") has that name as its target',
            "a": AMBIGUOUS,
            "b": AMBIGUOUS,
            "f": 'the spec lists it and asks to rename it to "g", which it does not list',
        },
    ),
    (
        "into the place of one that is refused",
        [Step("a", "c"), Step("b", "c"), Step("z", "b")],
        {"b", "c"},
        {
            "b": 'it cannot be renamed to "c": another renaming of the spec ("a") has that name as its target',
            "z": AMBIGUOUS,
        },
    ),
    (
        "replaced, and the old name made anew",
        [Step("b"), Step("a", "b")],
        {"a", "b"},
        {"a": AMBIGUOUS, "b": AMBIGUOUS},
    ),
]


@pytest.mark.parametrize(
    ("steps", "wanted", "refused"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_a_list_that_would_do_harm_when_repeated_is_refused(
    steps: Sequence[Step], wanted: set[str], refused: dict[str, str]
) -> None:
    resolved = resolve(steps, wanted)
    assert dict(resolved.refused) == refused
    touched = {change.name for change in resolved.changes}
    assert touched.isdisjoint(refused)


def test_what_is_refused_does_not_hold_up_the_rest() -> None:
    resolved = resolve([Step("a"), Step("x", "y"), Step("z")], {"a", "y"})
    assert list(resolved.changes) == [Renaming("x", "y"), Deletion("z")]
    assert dict(resolved.refused) == {"a": LISTED}
    exchange = [Step("a", "t"), Step("b", "a"), Step("t", "b")]
    resolved = resolve([*exchange, Step("x", "y"), Step("z")], {"a", "b", "y"})
    assert set(resolved.changes) == {Renaming("x", "y"), Deletion("z")}
    assert dict(resolved.refused) == {"a": AMBIGUOUS, "b": AMBIGUOUS}


def test_refusals_come_in_the_order_of_the_list() -> None:
    passing_by = [step for i in range(20) for step in (Step(f"a{i:02}", "x"), Step("x", f"b{i:02}"))]
    wanted = {"x", *(f"b{i:02}" for i in range(20))}
    refused = [name for name, _ in resolve([Step("x"), *passing_by], wanted).refused]
    assert refused == ["x", *(f"a{i:02}" for i in range(20))]

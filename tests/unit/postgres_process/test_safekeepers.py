"""The quorum of safekeepers: which replies agree, when it is too early to say, and what the sync program prints."""

from itertools import permutations, product

import pytest
from compute_node.actors.postgres_process.fields import storage_problem
from compute_node.actors.postgres_process.port import PostgresError
from compute_node.actors.postgres_process.safekeepers import (
    Agreed,
    Disagreed,
    Position,
    Reply,
    Silent,
    Unknown,
    judge,
    quorum,
    read_lsn,
)
from compute_node.messages.secret import Secret

from doubles.specs import a_spec

HERE, THERE = Position(7, 7), Position(9, 9)
UNCOMMITTED = Position(7, 6)
GONE = Silent("no answer within 0.1 s")
KINDS: tuple[Reply, ...] = (HERE, THERE, UNCOMMITTED, Unknown(), GONE)


def judged(count: int, *replies: Reply) -> str:
    """Judge replies in that order, in one word."""
    verdict = judge(count, {f"sk{number}": reply for number, reply in enumerate(replies)})
    return {Agreed: "agreed", Disagreed: "disagreed", type(None): "wait"}[type(verdict)]


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_a_quorum_is_more_than_half(count: int, needed: int) -> None:
    assert quorum(count) == needed


@pytest.mark.parametrize(
    ("count", "replies", "verdict"),
    [
        (1, (HERE,), "agreed"),
        (3, (), "wait"),
        (3, (HERE,), "wait"),
        (3, (HERE, HERE), "agreed"),
        (3, (HERE, HERE, THERE), "agreed"),
        (3, (HERE, THERE, HERE), "disagreed"),
        (3, (HERE, GONE), "wait"),
        (3, (HERE, GONE, HERE), "agreed"),
        (3, (GONE, GONE), "disagreed"),
        (3, (GONE, GONE, HERE), "disagreed"),
        (3, (HERE, Unknown()), "disagreed"),
        (3, (Unknown(), Unknown()), "disagreed"),
        (3, (UNCOMMITTED, UNCOMMITTED), "disagreed"),
        (2, (HERE, GONE), "disagreed"),
        (2, (HERE, HERE), "agreed"),
        (4, (HERE, HERE), "wait"),
        (4, (HERE, HERE, GONE), "wait"),
        (4, (HERE, HERE, GONE, GONE), "disagreed"),
        (4, (HERE, HERE, HERE), "agreed"),
    ],
)
def test_which_replies_agree(count: int, replies: tuple[Reply, ...], verdict: str) -> None:
    assert judged(count, *replies) == verdict


def test_it_is_told_at_which_place_they_agree_or_why_they_do_not() -> None:
    assert judge(3, {"a": HERE, "b": GONE, "c": HERE}) == Agreed(7)
    apart = judge(3, {"a:1": HERE, "b:2": Position(9, 8)})
    assert apart == Disagreed(
        "they are at different places (a:1: flush 0/7, commit 0/7; b:2: flush 0/9, commit 0/8)"
    )
    assert judge(1, {"a:1": GONE}) == Disagreed("0 of 1 answered, 1 are needed (a:1: no answer within 0.1 s)")
    assert judge(1, {"a:1": Unknown()}) == Disagreed("the timeline is not known to a:1")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_once_judged_later_replies_change_nothing_and_all_replies_are_always_enough(count: int) -> None:
    for replies in product(KINDS, repeat=count):
        seen = [judged(count, *replies[:number]) for number in range(count + 1)]
        assert seen[-1] != "wait", replies
        first = next(number for number, word in enumerate(seen) if word != "wait")
        assert set(seen[first:]) == {seen[first]}, replies


def test_nothing_is_agreed_that_a_quorum_has_not_said() -> None:
    for replies in product(KINDS, repeat=3):
        for order in permutations(replies):
            if judged(3, *order) == "agreed":
                assert max(order.count(HERE), order.count(THERE)) >= 2, order


# --- The program ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "lsn"), [("0/16ABCDE\n", 0x16ABCDE), ("0/0\n", 0), (" 1/2 ", (1 << 32) + 2)]
)
def test_the_program_prints_one_lsn(output: str, lsn: int) -> None:
    assert read_lsn(None, output) == lsn


@pytest.mark.parametrize("output", ["", "16ABCDE", "0/1 0/2", "0/1\n0/2\n", "WARNING: 0/1"])
def test_anything_else_on_its_output_is_an_error(output: str) -> None:
    with pytest.raises(PostgresError, match="printed no LSN"):
        read_lsn(None, output)


def test_a_program_that_fails_is_told_with_status_output_and_last_words() -> None:
    with pytest.raises(PostgresError) as error_info:
        read_lsn("exit code 1", "0/7\n", ("FATAL:  a higher term was seen",))
    assert str(error_info.value) == (
        "postgres --sync-safekeepers exited with non-zero status: exit code 1. stdout: 0/7; its last words:"
        "\n  FATAL:  a higher term was seen"
    )


# --- Their names ---------------------------------------------------------------------------------------------


def problem_with(*safekeepers: str) -> str | None:
    return storage_problem(
        a_spec(
            pageserver_connstring=Secret("postgresql://ps"),
            tenant_id="1" * 32,
            timeline_id="2" * 32,
            safekeeper_connstrings=safekeepers,
        )
    )


@pytest.mark.parametrize("name", ["sk1:5454", "127.0.0.1:1", "[::1]:65535", "sk-1.example"])
def test_a_safekeeper_is_a_host_with_a_port(name: str) -> None:
    assert problem_with(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "sk 1:5454", "sk:port", "sk:0", "sk:65536", "sk:1/db", "u:canary@sk:1", "::1:5454", "sk:1,sk:2"],
)
def test_any_other_name_is_refused_before_anything_is_asked(name: str) -> None:
    problem = problem_with("sk1:5454", name)
    assert problem is not None
    assert problem.startswith("safekeeper_connstrings: ")
    assert "canary" not in problem

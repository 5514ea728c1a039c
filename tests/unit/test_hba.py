import pytest
from compute_node.postgres.hba import MD5_LINE, open_to_passwords, trusting, with_line
from hypothesis import given
from hypothesis import strategies as st

THREE = "line1\nline2.1\t line2.2\nline3"


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        (THREE, "line4", f"{THREE}\nline4"),
        ("", "line4", "line4"),
        (THREE, "line2.1\t line2.2", THREE),
        (THREE, "line2.1 line2.2", f"{THREE}\nline2.1 line2.2"),
        ("a\n", "b", "a\n\nb"),
        ("a\r\nb", "a", "a\r\nb"),
        ("\n", "a", "\n\na"),
    ],
)
def test_a_line_is_appended_where_it_is_missing(text: str, line: str, expected: str) -> None:
    assert with_line(text, line) == expected


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="\r\n"), min_size=1))
def test_asking_twice_changes_nothing_more(text: str, line: str) -> None:
    once = with_line(text, line)
    assert once.startswith(text)
    assert with_line(once, line) == once


def test_everybody_else_needs_a_password() -> None:
    trusting = "host all all 127.0.0.1/32 trust\n"
    opened = open_to_passwords(trusting)
    assert opened == f"{trusting}\n{MD5_LINE}"
    assert open_to_passwords(opened) == opened
    assert MD5_LINE.split() == ["host", "all", "all", "all", "md5"]


def test_the_nodes_own_user_comes_in_before_any_rule_of_the_primary() -> None:
    text = trusting("host all all all reject\n", 'odd "one"')
    rules = [line.split("\t") for line in text.splitlines()[:3]]
    assert [[field for field in rule if field] for rule in rules] == [
        ["local", "all", '"odd ""one"""', "trust"],
        ["host", "all", '"odd ""one"""', "127.0.0.1/32", "trust"],
        ["host", "all", '"odd ""one"""', "::1/128", "trust"],
    ]
    assert text.endswith("\nhost all all all reject\n")
    assert trusting(text, 'odd "one"') == text

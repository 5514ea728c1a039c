"""What a conninfo says, what becomes of it, and what no program is ever given as an argument."""

import pytest
from compute_node.messages.secret import Secret
from compute_node.postgres.upstream import parse
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from doubles import canaries

URL = "postgresql://follower:{}@db.example:5433/app?sslmode=require"


@pytest.mark.parametrize("text", ["host=db user=u password={}", URL, "host=db sslmode=require password='{}'"])
def test_programs_get_all_but_the_password_and_the_standby_gets_it_too(text: str) -> None:
    secret = canaries.canary("upstream")
    upstream = parse(Secret(text.format(secret)))
    assert upstream.password == Secret(secret)
    for shown in (repr(upstream), upstream.place, upstream.conninfo(replication="true")):
        assert canaries.leak(shown) is None
    read = conninfo_to_dict(upstream.standby_conninfo("me").reveal())
    assert read["password"] == secret
    assert read["application_name"] == "me"
    assert conninfo_to_dict(upstream.conninfo(replication="true"))["replication"] == "true"


def test_a_password_counts_more_than_a_file_of_them_for_programs_too() -> None:
    """As in libpq, whose own order would be the other way round where both came as files."""
    both, alone = parse(Secret("host=h password=p passfile=/f")), parse(Secret("host=h passfile=/f"))
    assert "passfile" not in conninfo_to_dict(both.conninfo())
    assert conninfo_to_dict(alone.conninfo())["passfile"] == "/f"


def test_a_primary_that_vanishes_is_noticed_unless_the_conninfo_says_otherwise() -> None:
    assert conninfo_to_dict(parse(Secret("host=h")).conninfo())["tcp_user_timeout"] == "60000"
    own = parse(Secret("host=h tcp_user_timeout=1 application_name=mine"))
    assert conninfo_to_dict(own.conninfo())["tcp_user_timeout"] == "1"
    assert conninfo_to_dict(own.standby_conninfo("me").reveal())["application_name"] == "mine"


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"]), min_size=1, max_size=20))
def test_values_come_through_as_they_are(value: str) -> None:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    upstream = parse(Secret(f"host=h password='{escaped}' user='{escaped}'"))
    assert conninfo_to_dict(upstream.conninfo())["user"] == value
    assert conninfo_to_dict(upstream.standby_conninfo("me").reveal())["password"] == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("postgresql://[", "give it as libpq reads it"),
        ("hostname=h password={}", "give it as libpq reads it"),
        ("user=u password={}", "it names no host"),
        ("host=h password='{}\n'", "control characters"),
        ("service={} host=h", "leave `service` out"),
        ("host=h replication=true", "leave `replication` out"),
        ("host=h sslpassword={}", "`sslpassword` would have to be told"),
    ],
)
def test_what_cannot_be_used_is_refused_without_being_repeated(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        parse(Secret(text.format(canaries.canary("upstream"))))
    assert canaries.leak(str(refused.value)) is None

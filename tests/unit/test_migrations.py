"""Which migrations are due, on which server, and what they say."""

import pytest
from compute_node.actors.configurator.migrations import MIGRATIONS, due

ROLE = "neon_superuser"
EVERYWHERE = [1, 2, 4, 11, 12]
"""Those that are executed on every version; 5 to 9 are on none."""
VERSIONS = {
    140000: EVERYWHERE,
    140022: EVERYWHERE,
    150018: EVERYWHERE,
    160000: sorted([*EVERYWHERE, 3, 10]),
    170005: sorted([*EVERYWHERE, 3, 10]),
    180000: sorted([*EVERYWHERE, 3, 10]),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_server_lacks_is_counted_and_not_executed(version: int) -> None:
    steps = due(0, version, ROLE)
    assert [step.number for step in steps] == list(range(1, 13))
    assert [step.number for step in steps if step.text is not None] == VERSIONS[version]
    assert all((step.text is None) == bool(step.reason) for step in steps)


@pytest.mark.parametrize(
    ("done", "left"),
    [
        (-3, range(1, 13)),
        (0, range(1, 13)),
        (1, range(2, 13)),
        (11, [12]),
        (12, []),
        (99, []),
    ],
)
def test_what_is_done_is_not_due(done: int, left: list[int]) -> None:
    assert [step.number for step in due(done, 170000, ROLE)] == list(left)


@pytest.mark.parametrize("role", [ROLE, "other_role"])
def test_they_are_about_the_privileged_role_whatever_its_name(role: str) -> None:
    texts = {step.number: step.text for step in due(0, 180000, role) if step.text is not None}
    assert texts[1] == f'ALTER ROLE "{role}" BYPASSRLS'
    assert texts[4] == f'GRANT pg_monitor TO "{role}" WITH ADMIN OPTION'
    assert texts[12] == f'GRANT pg_signal_backend TO "{role}" WITH ADMIN OPTION'
    assert texts[3] == f'GRANT pg_create_subscription TO "{role}"'
    for number, text in texts.items():
        assert text.count(role) == (2 if number in {2, 10} else 1)
        assert "{" not in text


def test_why_something_is_skipped_is_told() -> None:
    reasons = {step.number: step.reason for step in due(0, 150000, ROLE) if step.text is None}
    assert reasons[3] == reasons[10] == "it needs Postgres 16"
    assert reasons[9] == "roles keep REPLICATION"
    assert not any(reason.startswith("-- SKIP") for reason in reasons.values())


def test_there_are_as_many_as_the_counterpart_has() -> None:
    assert len(MIGRATIONS) == 12

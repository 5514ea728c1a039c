"""Which settings a spec would change, and which are not as it says."""

import pytest
from compute_node.actors.postgres_process.comparing import Known, changes, drift, meaning, values
from compute_node.messages.planning import Change, DriftCause, SettingChange, SettingDrift
from compute_node.messages.secret import MASK

BOOL = Known("bool", None, at_start_only=False, setting="on")
MEMORY = Known("integer", "8kB", at_start_only=True, setting="2048")
KILOBYTES = Known("integer", "kB", at_start_only=False, setting="4096")
PAUSE = Known("integer", "ms", at_start_only=False, setting="0")
COST = Known("real", None, at_start_only=False, setting="1.1")
DELAY = Known("real", "ms", at_start_only=False, setting="2")
LEVEL = Known("enum", None, at_start_only=True, setting="replica")
TEXT = Known("string", None, at_start_only=False, setting="")
CONNECTIONS = Known("integer", None, at_start_only=True, setting="40")
KNOWN = {
    "shared_buffers": MEMORY,
    "work_mem": KILOBYTES,
    "fsync": BOOL,
    "wal_level": LEVEL,
    "max_connections": CONNECTIONS,
    "search_path": TEXT,
}


@pytest.mark.parametrize(
    ("one", "other", "known"),
    [
        ("on", "TRUE", BOOL),
        ("t", "1", BOOL),
        ("yes", "y", BOOL),
        ("of", "no", BOOL),
        ("0", "f", BOOL),
        ("16MB", "2048", MEMORY),
        ("16384kB", "16 MB", MEMORY),
        ("0.015625GB", "16MB", MEMORY),
        ("4MB", "4096", KILOBYTES),
        ("1min", "60s", PAUSE),
        ("60000", "1min", PAUSE),
        ("2.5", "2", CONNECTIONS),  # rounded to even, as Postgres does
        ("1.1", "1.10", COST),
        ("1e1", "10.0", COST),
        ("2ms", "2000us", DELAY),
        ("REPLICA", "replica", LEVEL),
        ("Same", "Same", None),
    ],
)
def test_texts_that_postgres_takes_for_the_same_value_are_equal(one: str, other: str, known: Known) -> None:
    assert meaning(one, known) == meaning(other, known)


@pytest.mark.parametrize(
    ("one", "other", "known"),
    [
        ("on", "off", BOOL),
        ("o", "on", BOOL),
        ("16MB", "16kB", MEMORY),
        ("16MB", "16", MEMORY),
        ("1.1", "1.2", COST),
        ("16", "sixteen", CONNECTIONS),
        ("5MB", "5 apples", KILOBYTES),
        ("5s", "5", CONNECTIONS),
        ("replica", "logical", LEVEL),
        ("a", "A", TEXT),
        ("16MB", "16384kB", None),
    ],
)
def test_texts_that_mean_something_else_differ(one: str, other: str, known: Known) -> None:
    assert meaning(one, known) != meaning(other, known)


def test_of_a_text_the_last_line_of_a_name_counts_and_includes_are_no_settings() -> None:
    text = "Work_Mem = 1MB\nwork_mem = '2MB'\ninclude_if_exists = 'x.conf'\ninclude = 'y'\n# fsync = off\n"
    assert values(text) == {"work_mem": "2MB"}


def test_settings_are_added_changed_and_removed() -> None:
    now = {"work_mem": "4MB", "fsync": "on", "search_path": "a"}
    then = {"work_mem": "8MB", "fsync": "true", "app.kind": "x"}
    assert changes(now, then, {}, KNOWN) == (
        SettingChange("app.kind", Change.ADDED, None, "x", needs_restart=False),
        SettingChange("search_path", Change.REMOVED, "a", None, needs_restart=False),
        SettingChange("work_mem", Change.CHANGED, "4MB", "8MB", needs_restart=False),
    )


@pytest.mark.parametrize(
    ("now", "then", "needs_restart"),
    [
        ({}, {"max_connections": "50"}, True),
        ({"max_connections": "50"}, {"max_connections": "60"}, True),
        ({"max_connections": "40"}, {}, True),
        ({}, {"max_connections": "40"}, False),
        ({"max_connections": "50"}, {"max_connections": "40"}, False),
        ({}, {"shared_buffers": "16MB"}, False),
        ({}, {"work_mem": "8MB"}, False),
        ({}, {"unheard.of": "8MB"}, False),
    ],
    ids=[
        "added",
        "changed",
        "removed",
        "added as it is in force",
        "back to what is in force",
        "in force in other words",
        "taken by a reload",
        "unknown",
    ],
)
def test_a_restart_is_needed_for_what_is_read_at_the_start_and_not_in_force(
    now: dict[str, str], then: dict[str, str], *, needs_restart: bool
) -> None:
    (change,) = changes(now, then, {}, KNOWN)
    assert change.needs_restart is needs_restart


def test_what_alter_system_holds_needs_no_restart_for_the_spec() -> None:
    (change,) = changes({}, {"max_connections": "50"}, {"max_connections": "40"}, KNOWN)
    assert not change.needs_restart


def test_a_node_that_is_as_described_does_not_drift() -> None:
    described = {"work_mem": "4MB", "max_connections": "40"}
    same = {"work_mem": "4096kB", "max_connections": "40"}
    assert drift(same, described, {"search_path": "users own"}, KNOWN) == ()
    assert drift(described, described, {"work_mem": "4096"}, KNOWN) == ()


def test_an_edited_file_alter_system_and_an_awaited_restart_are_drift() -> None:
    known = KNOWN | {"max_connections": Known("integer", None, True, "40", awaited="40")}
    described = {"work_mem": "4MB", "max_connections": "50", "fsync": "on"}
    edited = {"work_mem": "4MB", "max_connections": "50", "fsync": "off", "app.mine": "1"}
    both = edited | {"max_connections": "60"}
    told = [entry.cause for entry in drift(both, described, {}, known) if entry.name == "max_connections"]
    assert told == [DriftCause.FILE], "each setting is told once"
    assert drift(edited, described, {"work_mem": "1GB"}, known) == (
        SettingDrift("app.mine", DriftCause.FILE, None, "1"),
        SettingDrift("fsync", DriftCause.FILE, "on", "off"),
        SettingDrift("max_connections", DriftCause.RESTART, "50", "40"),
        SettingDrift("work_mem", DriftCause.ALTER_SYSTEM, "4MB", "1GB"),
    )


def test_secrets_are_masked_on_both_sides() -> None:
    now = {"app.api_token": "old secret", "archive_command": "put --password=abc"}
    then = {"app.api_token": "new secret", "archive_command": "put --password=def"}
    found = changes(now, then, {}, {})
    shown = [(change.before, change.after) for change in found]
    assert shown == [(MASK, MASK), (f"put --password={MASK}", f"put --password={MASK}")]
    told = [(entry.described, entry.actual) for entry in drift(now, then, {}, {})]
    assert told == shown

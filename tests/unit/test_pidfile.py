import pytest
from compute_node.postgres.pidfile import PidFile, PostmasterStatus, parse
from hypothesis import given
from hypothesis import strategies as st

READY = (
    "12345\n/var/lib/pg data\n1732312345\n55432\n/tmp/sockets\nlocalhost\n  55432001     65538\nready   \n"
)
NO_SOCKET = "7\n/pg\n1732312345\n5432\n\n\n  5432001     1\nstopping\n"
STANDBY = "7\n/pg\n1732312345\n5432\n/tmp\n*\n  5432001     1\nstandby \n"
SINGLE_USER = "-99\n/pg\n1732312345\n5432\n\n"


def test_a_whole_file_is_read() -> None:
    assert parse(READY) == PidFile(
        pid=12345,
        data_directory="/var/lib/pg data",
        start_time=1732312345,
        port=55432,
        socket_directory="/tmp/sockets",
        listen_address="localhost",
        status=PostmasterStatus.READY,
    )


@pytest.mark.parametrize("whole", [READY, NO_SOCKET, STANDBY, SINGLE_USER])
def test_a_cut_file_says_nothing_wrong(whole: str) -> None:
    full = parse(whole)
    for length in range(len(whole)):
        cut = parse(whole[:length])
        for field in ("pid", "data_directory", "start_time", "port", "socket_directory", "listen_address"):
            assert getattr(cut, field) in {None, getattr(full, field)}
        assert cut.status is None, "the status is the last to be written"


def test_the_word_ready_counts_on_the_eighth_line_only() -> None:
    lines = READY.splitlines()
    for number in range(len(lines)):
        moved = [*lines[:number], "ready", *lines[number : len(lines) - 1]][:7]
        assert parse("\n".join(moved) + "\n").status is None


@pytest.mark.parametrize(
    ("text", "status", "accepts"),
    [
        (READY, PostmasterStatus.READY, True),
        (NO_SOCKET, PostmasterStatus.STOPPING, False),
        (STANDBY, PostmasterStatus.STANDBY, False),
        (READY.replace("ready   ", "starting"), PostmasterStatus.STARTING, False),
    ],
)
def test_only_ready_takes_connections(text: str, status: PostmasterStatus, *, accepts: bool) -> None:
    assert parse(text).status is status
    assert status.accepts_connections is accepts


def test_a_new_word_is_no_status() -> None:
    assert parse(READY.replace("ready   ", "dancing ")).status is None


def test_single_user_mode_is_told_apart() -> None:
    seen = parse(SINGLE_USER)
    assert (seen.pid, seen.single_user) == (99, True)


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    parse(text)


@given(st.text(alphabet="0123456789-\nready ", max_size=200))
def test_text_that_nearly_fits_is_read_without_an_error(text: str) -> None:
    seen = parse(text)
    assert seen.pid is None or seen.pid >= 0

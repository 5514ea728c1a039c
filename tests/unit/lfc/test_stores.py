"""Both stores: whatever happens, what is read is whole and what is kept stays whole."""

import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.actors.lfc_manager import stores
from compute_node.actors.lfc_manager.packing import MAX_BODY, StateError, pack, unpack
from compute_node.actors.lfc_manager.places import EndpointPlace, FolderPlace
from compute_node.actors.lfc_manager.port import StoreError
from compute_node.actors.lfc_manager.stores import LIMITS, Stores
from compute_node.messages.secret import Secret
from compute_node.postgres.web import Limits

from doubles.endpoint_storage import LIMIT, TENANT, TOKEN, EndpointStorage, Fault, endpoint_storage

BODY = pack(b"state" * 1000)
IN_TIME = Limits(silence_s=0.5, total_s=1.5, size=MAX_BODY)


@pytest.fixture(scope="module")
def serving() -> Iterator[EndpointStorage]:
    with endpoint_storage() as storage:
        yield storage


@pytest.fixture
def storage(serving: EndpointStorage) -> Iterator[EndpointStorage]:
    serving.kept.clear()
    serving.asked.clear()
    yield serving
    serving.fault = serving.status = None


def place(storage: EndpointStorage, endpoint: str = "ep", token: str = TOKEN) -> EndpointPlace:
    return EndpointPlace(storage.address, storage.path(endpoint), Secret(token))


def fetch(storage: EndpointStorage, limits: Limits = LIMITS, **of: Any) -> bytes | None:
    return Stores(limits).fetch(place(storage, **of), Cancellation())


def put(storage: EndpointStorage, body: bytes = BODY, limits: Limits = LIMITS) -> None:
    Stores(limits).put(place(storage), body, Cancellation())


# --- Endpoint storage


def test_what_was_put_is_fetched_and_what_was_not_is_none(storage: EndpointStorage) -> None:
    assert fetch(storage) is None
    put(storage)
    assert fetch(storage) == BODY
    assert fetch(storage, endpoint="another") is None
    put(storage, pack(b"newer"))
    assert fetch(storage) == pack(b"newer")


@pytest.mark.parametrize(
    ("status", "text", "transient"),
    [
        (500, "500 Internal Server Error querying endpoint storage", True),
        (503, "503 Service Unavailable querying endpoint storage", True),
        (522, "522 <unknown status code> querying endpoint storage", True),
        (429, "429 Too Many Requests querying endpoint storage", True),
        (400, "400 Bad Request querying endpoint storage; is the spec's `endpoint_storage_token`", False),
        (401, "401 Unauthorized querying endpoint storage; is the spec's `endpoint_storage_token`", False),
        (403, "403 Forbidden querying endpoint storage; is the spec's `endpoint_storage_token`", False),
        (410, "410 Gone querying endpoint storage", False),
        (204, "204 No Content querying endpoint storage", False),
        (799, "799 <unknown status code> querying endpoint storage", False),
    ],
)
def test_a_status_is_told_and_only_what_may_pass_is_worth_another_try(
    storage: EndpointStorage, status: int, text: str, *, transient: bool
) -> None:
    storage.status = status
    with pytest.raises(StoreError) as error:
        fetch(storage)
    assert str(error.value).startswith(text)
    assert error.value.transient is transient


def test_a_state_that_is_too_large_for_the_storage_says_so(storage: EndpointStorage) -> None:
    body = os.urandom(LIMIT + 1)
    with pytest.raises(StoreError, match=rf"413 .*the state has {LIMIT + 1} bytes") as error:
        put(storage, body)
    assert not error.value.transient
    with pytest.raises(StoreError, match="at most"):
        put(storage, bytes(MAX_BODY + 1))


@pytest.mark.parametrize(
    ("fault", "text", "transient"),
    [
        (Fault.CUT, "getting request body from endpoint storage: it ended after", True),
        (Fault.RESET, "getting request body from endpoint storage: ", True),
        (Fault.SILENCE, "querying endpoint storage: no answer within 0.5 s", True),
        (Fault.TRICKLE, "querying endpoint storage: no answer within 0.5 s", True),
        (
            Fault.NOT_HTTP,
            "querying endpoint storage: the connection ended within the head of a response",
            True,
        ),
        (Fault.REDIRECT, "307 Temporary Redirect querying endpoint storage", False),
    ],
)
def test_a_fault_of_the_storage_is_told_in_time(
    storage: EndpointStorage, fault: Fault, text: str, *, transient: bool
) -> None:
    put(storage)
    storage.fault = fault
    began_s = time.monotonic()
    with pytest.raises(StoreError) as error:
        fetch(storage, IN_TIME)
    assert str(error.value).startswith(text)
    assert error.value.transient is transient
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault.SHORTENED, "its end is missing"),
        (Fault.HTML, "it does not begin as a Zstandard frame"),
        (Fault.BOMB, "it has more than"),
        (Fault.EMPTY, "it is empty"),
    ],
)
def test_a_body_that_is_no_whole_state_is_found_when_it_is_unpacked(
    storage: EndpointStorage, fault: Fault, text: str
) -> None:
    put(storage)
    storage.fault = fault
    body = fetch(storage)
    assert body is not None
    with pytest.raises(StateError, match=text):
        unpack(body)


@pytest.mark.parametrize("fault", [Fault.HUGE, Fault.ENDLESS])
def test_a_body_that_is_too_large_is_not_read_to_its_end(storage: EndpointStorage, fault: Fault) -> None:
    storage.fault = fault
    with pytest.raises(
        StoreError, match=r"from endpoint storage: it has .* at most 1000000 are taken"
    ) as error:
        fetch(storage, Limits(total_s=120.0, size=1_000_000))
    assert not error.value.transient


def test_a_storage_that_reads_nothing_is_given_up_and_the_transfer_can_be_cancelled(
    storage: EndpointStorage,
) -> None:
    storage.fault = Fault.DEAF
    more_than_is_on_the_way = bytes(64 * 1024 * 1024)
    began_s = time.monotonic()
    with pytest.raises(StoreError, match=r"writing to endpoint storage: no answer within 0\.5 s"):
        put(storage, more_than_is_on_the_way, Limits(connect_s=50.0, silence_s=0.5, total_s=50.0))
    assert time.monotonic() - began_s < 25
    cancellation = Cancellation()
    timer = threading.Timer(0.5, cancellation.request)
    timer.start()
    began_s = time.monotonic()
    with pytest.raises(CancelledError):
        Stores().put(place(storage), more_than_is_on_the_way, cancellation)
    assert time.monotonic() - began_s < 20, "the limits alone are 30 s"
    timer.join()


def test_a_storage_that_is_silent_while_it_is_written_to_is_given_up(storage: EndpointStorage) -> None:
    storage.fault = Fault.SILENCE
    with pytest.raises(StoreError, match=r"writing to endpoint storage: no answer within 0\.5 s"):
        put(storage, limits=IN_TIME)


@pytest.mark.parametrize("fault", [Fault.SILENCE, Fault.TRICKLE])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_transfer_is_cancelled_within_a_second(storage: EndpointStorage, fault: Fault, method: str) -> None:
    storage.fault = fault
    cancellation, cancelled_s = Cancellation(), 0.0

    def cancel() -> None:
        nonlocal cancelled_s
        storage.wait_until_asked(method)
        cancelled_s = time.monotonic()
        cancellation.request()

    thread = threading.Thread(target=cancel)
    thread.start()
    transfers: dict[str, Callable[[], object]] = {
        "GET": partial(Stores().fetch, place(storage), cancellation),
        "PUT": partial(Stores().put, place(storage), BODY, cancellation),
    }
    with pytest.raises(CancelledError):
        transfers[method]()
    ended_s = time.monotonic()
    thread.join()
    assert ended_s - cancelled_s < 5, "the limits alone are 30 s"


def test_a_connection_that_does_not_come_about_is_given_up_and_can_be_cancelled() -> None:
    """A queue that is full drops whoever else knocks."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        first.connect(address)
        second.setblocking(False)
        second.connect_ex(address)
        full = EndpointPlace(f"127.0.0.1:{address[1]}", "/x", Secret(TOKEN))
        began_s = time.monotonic()
        with pytest.raises(StoreError, match=r"no answer within 0\.3 s") as error:
            Stores(Limits(connect_s=0.3, total_s=60.0)).fetch(full, Cancellation())
        assert time.monotonic() - began_s < 20, "the system tries for minutes"
        assert error.value.transient
        cancellation = Cancellation()
        timer = threading.Timer(0.3, cancellation.request)
        timer.start()
        began_s = time.monotonic()
        with pytest.raises(CancelledError):
            Stores(Limits(connect_s=55.0, total_s=60.0)).fetch(full, cancellation)
        assert time.monotonic() - began_s < 20
        timer.join()


def test_nobody_there_is_worth_another_try(unused_address: str) -> None:
    with pytest.raises(
        StoreError, match=r"querying endpoint storage: no connection to .*: Connection refused"
    ) as error:
        Stores().fetch(EndpointPlace(unused_address, "/x", Secret(TOKEN)), Cancellation())
    assert error.value.transient


@pytest.fixture
def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_token_that_cannot_be_sent_is_not_told(storage: EndpointStorage) -> None:
    for token in ("se cret\r\nX: y", "se\N{SNOWMAN}cret"):
        with pytest.raises(StoreError, match="characters that cannot be sent") as error:
            fetch(storage, token=token)
        assert "cret" not in str(error.value)
        assert not error.value.transient


def test_a_foreign_place_and_a_foreign_token_open_nothing(storage: EndpointStorage) -> None:
    """Fault 139: the token is bound to the path."""
    foreign = EndpointPlace(storage.address, f"/{TENANT[::-1]}/t/ep/lfc_state", Secret(TOKEN))
    with pytest.raises(StoreError, match="401"):
        Stores().fetch(foreign, Cancellation())
    with pytest.raises(StoreError, match="400"):
        fetch(storage, token="other")


# --- A local folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_keeps_one_file_for_each_name(tmp_path: Path) -> None:
    one, other = FolderPlace(str(tmp_path / "lfc"), "one"), FolderPlace(str(tmp_path / "lfc"), "other")
    store, job = Stores(), Cancellation()
    assert store.fetch(one, job) is None
    store.put(one, b"first", job)
    store.put(one, b"second", job)
    store.put(other, b"third", job)
    assert files(tmp_path / "lfc") == {"one/lfc_state": b"second", "other/lfc_state": b"third"}
    assert store.fetch(one, job) == b"second"
    assert stat.S_IMODE((tmp_path / "lfc/one/lfc_state").stat().st_mode) == 0o600


STEPS: list[tuple[Any, str]] = [
    (tempfile, "mkstemp"),
    (os, "fdopen"),
    (os, "fsync"),
    (Path, "replace"),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1])
def test_whatever_step_of_writing_fails_the_last_state_is_kept_whole(
    tmp_path: Path, step: tuple[Any, str]
) -> None:
    where, store, job = FolderPlace(str(tmp_path), "one"), Stores(), Cancellation()
    store.put(where, b"good", job)
    full = OSError(28, "No space left on device")
    with mock.patch.object(*step, side_effect=full), pytest.raises(StoreError, match="No space left"):
        store.put(where, b"new", job)
    assert files(tmp_path) == {"one/lfc_state": b"good"}
    store.put(where, b"newer", job)
    assert files(tmp_path) == {"one/lfc_state": b"newer"}, "and nothing is left of what failed"


def test_what_a_killed_node_was_writing_is_neither_read_nor_kept(tmp_path: Path) -> None:
    where, store, job = FolderPlace(str(tmp_path), "one"), Stores(), Cancellation()
    store.put(where, b"good", job)
    with (
        mock.patch.object(Path, "replace", side_effect=SystemExit),
        mock.patch.object(Path, "unlink"),
        pytest.raises(SystemExit),
    ):
        store.put(where, b"half", job)
    assert len(files(tmp_path)) == 2
    assert store.fetch(where, job) == b"good"
    store.put(where, b"new", job)
    assert files(tmp_path) == {"one/lfc_state": b"new"}


def test_the_new_file_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path: Path) -> None:
    done: list[str] = []

    def noting(name: str, right: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any, **options: Any) -> Any:
            done.append(name)
            return right(*args, **options)

        return note

    replace = noting("replace", Path.replace)

    def noted(path: Path, target: Path) -> Path:
        placed: Path = replace(path, target)
        return placed

    with (
        mock.patch.object(os, "fsync", noting("sync", os.fsync)),
        mock.patch.object(Path, "replace", noted),
    ):
        Stores().put(FolderPlace(str(tmp_path), "one"), b"x", Cancellation())
    assert done == ["sync", "replace", "sync", "sync"]


def test_a_file_that_is_no_state_of_ours_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, job = FolderPlace(str(tmp_path), "one"), Cancellation()
    Stores().put(where, bytes(1001), job)
    monkeypatch.setattr(stores, "MAX_BODY", 1000)
    with pytest.raises(StoreError, match=r"reading .*/one/lfc_state: it has more than 1000 bytes"):
        Stores().fetch(where, job)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    where = FolderPlace(str(tmp_path / "file"), "one")
    with pytest.raises(StoreError, match=r"writing .*/file/one/lfc_state: Not a directory"):
        Stores().put(where, b"x", Cancellation())
    with pytest.raises(StoreError, match=r"reading .*: Not a directory"):
        Stores().fetch(where, Cancellation())

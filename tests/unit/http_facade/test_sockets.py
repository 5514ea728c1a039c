"""Which addresses the servers bind, and what is said when they cannot."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from compute_node.actors.http_facade import sockets
from compute_node.actors.http_facade.port import BindError
from compute_node.actors.http_facade.servers import WaitressServers
from compute_node.actors.http_facade.sockets import bind_error, is_loopback, listen, listen_on_loopback, shown
from compute_node.actors.kit.jobs import Cancellation
from compute_node.actors.kit.metrics import Metrics
from compute_node.http.app import create_apps
from compute_node.messages.spec import ComputeCtlConfig, KeySet

from doubles.node import StubSupervisor, node
from doubles.served import settings

EVERYWHERE_4 = "0.0.0.0"  # noqa: S104 - an expected value


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
NO_KEYS = ComputeCtlConfig(KeySet(()))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test bound."""
    with ExitStack() as stack:
        yield stack


def _addresses(stack: ExitStack, bound: list[socket.socket]) -> list[tuple[str, int]]:
    for sock in bound:
        stack.enter_context(sock)
    return [sock.getsockname()[:2] for sock in bound]


def _without_ipv6(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    create = socket.create_server

    def refused(address: Any, *, family: int = socket.AF_INET, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, "no IPv6 here")
        return create(address, family=family, **options)

    monkeypatch.setattr(socket, "create_server", refused)


@needs_ipv6
def test_everywhere_is_one_socket_for_both_families(stack: ExitStack) -> None:
    ((address, port),) = _addresses(stack, listen("external", None, 0))
    assert address == "::"
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port), timeout=10).close()


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_the_servers_make_do_with_ipv4(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    _without_ipv6(monkeypatch, number)
    assert _addresses(stack, listen("external", None, 0))[0][0] == EVERYWHERE_4
    assert [address for address, _ in _addresses(stack, listen_on_loopback("internal", 0))] == ["127.0.0.1"]


def test_a_machine_without_dual_stack_makes_do_with_ipv4(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert _addresses(stack, listen("external", None, 0))[0][0] == EVERYWHERE_4


@needs_ipv6
def test_loopback_is_both_families_on_the_same_port(stack: ExitStack) -> None:
    (first, port), (second, same) = _addresses(stack, listen_on_loopback("internal", 0))
    assert (first, second) == ("127.0.0.1", "::1")
    assert port == same != 0


@needs_ipv6
def test_a_free_port_that_only_one_family_has_is_tried_again(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = socket.create_server
    refusals = iter([True, True, False])

    def sometimes(address: Any, *, family: int = socket.AF_INET, **options: Any) -> socket.socket:
        if family == socket.AF_INET6 and next(refusals):
            raise OSError(errno.EADDRINUSE, "taken")
        return create(address, family=family, **options)

    monkeypatch.setattr(socket, "create_server", sometimes)
    (_, port), (_, same) = _addresses(stack, listen_on_loopback("internal", 0))
    assert port == same


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        pytest.param("::1", marks=needs_ipv6),
        pytest.param("[::1]", marks=needs_ipv6),
    ],
)
def test_a_given_host_is_what_is_bound(stack: ExitStack, host: str) -> None:
    addresses = {address for address, _ in _addresses(stack, listen("external", host, 0))}
    assert addresses
    assert addresses <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_a_taken_port_is_named_with_what_to_do(host: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=rf":{port}: the port is taken .* --external-http-port"):
            listen("external", host, port)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (
            errno.EACCES,
            "cannot serve the external HTTP API at [::]:80: no permission for this port; choose one of at least 1024 with --external-http-port",
        ),
        (
            errno.EADDRNOTAVAIL,
            "cannot serve the external HTTP API at [::]:80: this machine has no address ::",
        ),
        (errno.EMFILE, "cannot serve the external HTTP API at [::]:80: Too many open files"),
    ],
)
def test_each_reason_not_to_be_bound_says_what_to_do(number: int, text: str) -> None:
    error = bind_error("external", "::", 80, OSError(number, "Too many open files"))
    assert str(error).startswith(text)


def test_an_address_of_another_machine_and_an_unknown_host_are_named() -> None:
    with pytest.raises(BindError, match=r"192\.0\.2\.1:0: this machine has no address"):
        listen("external", "192.0.2.1", 0)
    with pytest.raises(BindError, match="the host is not known"):
        listen("external", "no.such.host.invalid", 0)


@needs_ipv6
def test_nothing_stays_bound_when_one_address_of_several_fails() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError):
            listen_on_loopback("internal", port)
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), (EVERYWHERE_4, False),
     ("::", False), ("192.0.2.1", False), ("no.such.host.invalid", False)],
)  # fmt: skip
def test_loopback_hosts_are_known(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_addresses_are_written_as_in_a_url() -> None:
    assert (shown("::", 3080), shown("127.0.0.1", 3080)) == ("[::]:3080", "127.0.0.1:3080")


# --- What the settings make of it


def _bound(monkeypatch: pytest.MonkeyPatch, stack: ExitStack, **changes: Any) -> dict[str, list[str]]:
    """Bind by the settings; returns the addresses of each server."""
    found: dict[str, list[str]] = {}
    made = WaitressServers._make

    def noted(self: WaitressServers, external: list[socket.socket], internal: list[socket.socket]) -> None:
        found["external"] = [sock.getsockname()[0] for sock in external]
        found["internal"] = [sock.getsockname()[0] for sock in internal]
        made(self, external, internal)

    monkeypatch.setattr(WaitressServers, "_make", noted)
    real = WaitressServers(settings(**changes), lambda: create_apps(node(StubSupervisor())), Metrics())
    real.bind(Cancellation())
    real.stop(0)
    for server in ("external", "internal"):
        real.serve(server, Cancellation())
    return found


@needs_ipv6
def test_the_external_server_is_for_everybody_and_the_internal_one_for_loopback(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert _bound(monkeypatch, stack, http_host=None) == {
        "external": ["::"],
        "internal": ["127.0.0.1", "::1"],
    }
    assert caplog.messages[:2] == ["Launching the external server", "Launching the internal server"]
    assert caplog.messages[2].startswith("compute_ctl external HTTP server listening at [::]:")
    assert caplog.messages[3].startswith("compute_ctl internal HTTP server listening at 127.0.0.1:")


@needs_ipv6
def test_an_open_api_is_for_loopback_only_and_says_so(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    found = _bound(monkeypatch, stack, http_host=None, dev=True, config=NO_KEYS)
    assert found["external"] == ["127.0.0.1", "::1"]
    assert "the HTTP API is open" in caplog.text


def test_an_open_api_is_never_bound_beyond_loopback(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    with pytest.raises(BindError, match="stays on loopback"):
        _bound(monkeypatch, stack, http_host=EVERYWHERE_4, dev=True, config=NO_KEYS)


@pytest.mark.parametrize("changes", [{"dev": True}, {"config": NO_KEYS}])
def test_only_dev_together_with_an_empty_key_set_is_open(changes: dict[str, Any]) -> None:
    assert not settings(**changes).open_api
    assert settings(dev=True, config=NO_KEYS).open_api


def test_a_cancelled_binding_leaves_nothing_bound() -> None:
    cancellation = Cancellation()
    cancellation.request()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    real = WaitressServers(
        settings(external_http_port=port), lambda: create_apps(node(StubSupervisor())), Metrics()
    )
    with pytest.raises(Exception, match="cancelled"):
        real.bind(cancellation)
    socket.create_server(("127.0.0.1", port)).close()
    assert sockets.LOOPBACK == ("127.0.0.1", "::1")

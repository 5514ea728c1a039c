"""Requests over HTTP, against a server that says exactly what a test gives it, byte by byte."""

import contextlib
import datetime as dt
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic

import pytest
from compute_node.actors.kit.clock import SystemClock
from compute_node.actors.kit.jobs import Cancellation, CancelledError
from compute_node.postgres import hosts
from compute_node.postgres.web import Limits, Request, Response, WebError, exchange
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typing_extensions import override

LIMITS = Limits(total_s=50.0)
BY_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
IN_CHUNKS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3 \r\nllo\r\n0\r\nT: x\r\n\r\n"
)
TO_THE_END = b"HTTP/1.0 200 OK\r\n\r\nhello"
HELLO = Response(200, b"hello")

Conversation = Callable[[socket.socket], None]


class SetClock(SystemClock):
    """Stands still until it is set on."""

    def __init__(self) -> None:
        self._now_s = 0.0

    @override
    def now(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds


class Server:
    """Has a conversation with each client, and closes the connection after it."""

    def __init__(self, conversation: Conversation, context: ssl.SSLContext | None = None) -> None:
        self.closing = threading.Event()
        self._conversation = conversation
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}/a?b=c"

    def close(self) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._talk, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _talk(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self._context is None:
                self._conversation(client)
            else:
                with self._context.wrap_socket(client, server_side=True) as wrapped:
                    self._conversation(wrapped)


@contextlib.contextmanager
def serving(conversation: Conversation, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(conversation, context)
    try:
        yield server
    finally:
        server.close()


def hear(client: socket.socket) -> bytes:
    """Take the head of a request."""
    heard = b""
    while not heard.endswith(b"\r\n\r\n"):
        heard += client.recv(1)
    return heard


def says(data: bytes) -> Conversation:
    def conversation(client: socket.socket) -> None:
        hear(client)
        client.sendall(data)

    return conversation


def request_after(event: threading.Event, cancellation: Cancellation) -> None:
    event.wait(20)
    cancellation.request()


def asked(data: bytes, limits: Limits = LIMITS) -> Response:
    with serving(says(data)) as server:
        return exchange(Request(server.url), limits, Cancellation())


def test_what_is_asked_goes_out_as_it_is() -> None:
    heard: list[bytes] = []

    def conversation(client: socket.socket) -> None:
        heard.append(hear(client) + client.recv(4, socket.MSG_WAITALL))
        client.sendall(BY_LENGTH)

    with serving(conversation) as server:
        request = Request(server.url, {"Authorization": "Bearer abc"}, "PUT", b"body")
        assert exchange(request, LIMITS, Cancellation()) == HELLO
        host = server.url.split("/")[2]
    assert heard == [
        f"PUT /a?b=c HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer abc\r\n"
        "Content-Length: 4\r\n\r\nbody".encode()
    ]


@pytest.mark.parametrize("data", [BY_LENGTH, IN_CHUNKS, TO_THE_END], ids=["length", "chunks", "to-the-end"])
def test_a_response_is_read_whole_however_it_ends(data: bytes) -> None:
    assert asked(data) == HELLO


@pytest.mark.parametrize("data", [BY_LENGTH, IN_CHUNKS], ids=["length", "chunks"])
def test_a_response_that_is_cut_off_at_any_byte_is_an_error(data: bytes) -> None:
    cuts = iter(range(len(data)))

    def conversation(client: socket.socket) -> None:
        hear(client)
        client.sendall(data[: next(cuts)])

    end_of_body = data.index(b"0\r\nT:") + len(b"0\r\n") if data is IN_CHUNKS else len(data)
    with serving(conversation) as server:
        for cut in range(len(data)):
            if cut >= end_of_body:  # what is missing is nobody's
                assert exchange(Request(server.url), LIMITS, Cancellation()) == HELLO
                continue
            with pytest.raises(WebError) as error:
                exchange(Request(server.url), LIMITS, Cancellation())
            assert error.value.passing
            assert error.value.reading is (cut >= data.index(b"\r\n\r\n") + 4), cut


def test_a_connection_that_stays_open_after_the_response_is_not_waited_for() -> None:
    def conversation(client: socket.socket) -> None:
        hear(client)
        client.sendall(BY_LENGTH)
        server.closing.wait()

    with serving(conversation) as server:
        assert exchange(Request(server.url), LIMITS, Cancellation()) == HELLO


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"SSH-2.0\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 xx\r\n\r\n", "no HTTP"),
        (b"HTTP/9.1 200 OK\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000 + b"\r\n\r\n", "no HTTP"),
        (b"", "ended without a response"),
        (b"-ERR\r\n", "ended within the head"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nhe\r\n0\r\n\r\n", "chunks are damaged"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhell\r\n0\r\n\r\n",
            "chunks are damaged",
        ),
    ],
)
def test_what_is_no_response_is_said_to_be_none(data: bytes, text: str) -> None:
    with pytest.raises(WebError, match=text):
        asked(data)


@pytest.mark.parametrize("data", [BY_LENGTH, IN_CHUNKS, TO_THE_END], ids=["length", "chunks", "to-the-end"])
def test_a_body_that_is_too_large_is_not_taken(data: bytes) -> None:
    assert asked(data, Limits(total_s=50.0, size=5)) == HELLO
    with pytest.raises(WebError, match="at most 4 are taken") as error:
        asked(data, Limits(total_s=50.0, size=4))
    assert not error.value.passing


def test_only_the_status_counts_of_an_answer_that_is_no_success() -> None:
    assert asked(b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 9\r\n\r\n") == Response(302)
    assert Response(302).label == "302 Found"
    assert Response(799).label == "799 <unknown status code>"


# --- Limits


@pytest.mark.parametrize(
    ("before", "text"),
    [
        (b"", r"no answer within 0\.2 s"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", r"it has sent nothing for 0\.2 s"),
    ],
)
def test_a_silent_server_is_given_up_and_so_is_one_that_is_silent_in_between(
    before: bytes, text: str
) -> None:
    def conversation(client: socket.socket) -> None:
        hear(client)
        client.sendall(before)
        server.closing.wait()

    with serving(conversation) as server:
        with pytest.raises(WebError, match=text) as error:
            exchange(Request(server.url), Limits(total_s=50.0, silence_s=0.2), Cancellation())
        assert error.value.reading is bool(before)


def test_a_server_that_trickles_is_given_up_when_the_whole_takes_too_long() -> None:
    def conversation(client: socket.socket) -> None:
        hear(client)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not server.closing.wait(0.02):
            client.sendall(b"x")

    with (
        serving(conversation) as server,
        pytest.raises(WebError, match=r"no whole response within 0\.5 s"),
    ):
        exchange(Request(server.url), Limits(total_s=0.5, silence_s=0.4), Cancellation())


def test_a_slow_taker_of_a_large_body_is_not_silent_and_one_that_stops_is() -> None:
    """Each 250 ms it takes a piece; what the kernel holds of the 32 MiB is by far less."""
    body = bytes(32 << 20)

    def conversation(client: socket.socket) -> None:
        hear(client)
        taken = 0
        while not (stops and taken > 4 << 20) and taken < len(body):
            server.closing.wait(0.25)
            taken += len(client.recv(2 << 20, socket.MSG_WAITALL))
        if stops:
            server.closing.wait()
        client.sendall(BY_LENGTH)

    limits = Limits(total_s=50.0, silence_s=3.0)
    for stops in (False, True):
        with serving(conversation) as server:
            request = Request(server.url, {}, "PUT", body)
            if not stops:
                assert exchange(request, limits, Cancellation()) == HELLO
                continue
            with pytest.raises(WebError, match="no answer within 3 s"):
                exchange(request, limits, Cancellation())


def test_the_silence_begins_when_the_last_of_the_body_is_taken() -> None:
    """By a clock that the server sets: it takes the body for nearly as long as it may be silent, then answers."""
    clock = SetClock()
    body = bytes(32 << 20)

    def conversation(client: socket.socket) -> None:
        hear(client)
        half = len(body) // 2
        client.recv(half, socket.MSG_WAITALL)
        clock.advance(29.0)
        client.recv(half, socket.MSG_WAITALL)
        clock.advance(2.0)
        client.sendall(BY_LENGTH[:9])
        client.settimeout(0.3)
        with contextlib.suppress(TimeoutError):  # whoever thinks that 30 s are over goes
            client.recv(1)
        client.sendall(BY_LENGTH[9:])

    with serving(conversation) as server:
        request = Request(server.url, {}, "PUT", body)
        limits = Limits(total_s=120.0, silence_s=30.0)
        assert exchange(request, limits, Cancellation(clock)) == HELLO


@pytest.mark.parametrize("interim", [b"100 Continue", b"103 Early Hints\r\nLink: </x>", b"102 "])
def test_what_only_announces_a_response_is_none(interim: bytes) -> None:
    announced = b"HTTP/1.1 " + interim + b"\r\n\r\n"
    assert asked(announced * 2 + BY_LENGTH) == HELLO


def test_a_refusal_is_heard_before_the_whole_body_is_out() -> None:
    def conversation(client: socket.socket) -> None:
        hear(client)
        client.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        server.closing.wait()

    with serving(conversation) as server:
        request = Request(server.url, {}, "PUT", bytes(64 << 20))
        assert exchange(request, LIMITS, Cancellation()).status == 413


# --- What the request needs


@pytest.mark.parametrize("token", ["se cret\r\nX: y", "se\N{SNOWMAN}cret", "secret\x7f"])
def test_a_header_that_would_be_more_than_one_is_not_sent_and_not_told(token: str) -> None:
    with serving(says(BY_LENGTH)) as server:
        with pytest.raises(WebError, match="characters that cannot be sent") as error:
            exchange(Request(server.url, {"Authorization": f"Bearer {token}"}), LIMITS, Cancellation())
        assert "cret" not in str(error.value)
        assert not error.value.passing


@pytest.mark.parametrize(
    "url", ["http://host:99999/", "http://[::1/", "host:80/", "ftp://host/", "http:///", "//host/"]
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(WebError, match="its URL cannot be used") as error:
        exchange(Request(url), LIMITS, Cancellation())
    assert not error.value.passing


def test_a_host_that_cannot_be_found_is_named() -> None:
    with pytest.raises(WebError, match=r"the host 'nobody\.invalid' cannot be found: "):
        exchange(Request("http://nobody.invalid/"), LIMITS, Cancellation())
    with pytest.raises(WebError, match="cannot be found: it is no name of a host"):
        exchange(Request(f"http://{'x' * 70}.invalid/"), LIMITS, Cancellation())


def test_a_name_server_that_is_silent_is_neither_waited_for_nor_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered, asked_for = threading.Event(), threading.Event()

    def look(_host: str, _port: int) -> tuple[str, ...]:
        asked_for.set()
        answered.wait(50)
        return ()

    monkeypatch.setattr(hosts, "find_addresses", look)
    ask = partial(exchange, Request("http://some.host/"))
    try:
        with pytest.raises(WebError, match=r"no whole response within 0\.2 s"):
            ask(Limits(total_s=0.2), Cancellation())
        cancellation = Cancellation()
        asked_for.clear()
        cancelling = threading.Thread(target=request_after, args=(asked_for, cancellation))
        cancelling.start()
        began_s = monotonic()
        with pytest.raises(CancelledError):
            ask(LIMITS, cancellation)
        assert monotonic() - began_s < 10, "its own limit is 50 s"
        cancelling.join()
    finally:
        answered.set()


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own authority, for 127.0.0.1; key and certificate in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "control plane")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def context_of(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_an_authority_that_the_environment_names_is_believed_and_no_other(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(says(BY_LENGTH), context_of(certificate)) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert exchange(Request(server.url), LIMITS, Cancellation()) == HELLO
        monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
        with pytest.raises(WebError, match=r"no connection to .*CERTIFICATE_VERIFY_FAILED"):
            exchange(Request(server.url), LIMITS, Cancellation())
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(WebError, match=r"no connection to .*(mismatch|not valid for)"):
            exchange(Request(server.url.replace("127.0.0.1", "localhost")), LIMITS, Cancellation())


def test_whoever_stands_still_in_the_handshake_is_given_up_and_can_be_left(certificate: Path) -> None:
    def conversation(_client: socket.socket) -> None:
        knocked.set()
        server.closing.wait()

    knocked = threading.Event()
    with serving(conversation) as server:
        url = server.url.replace("http:", "https:")
        with pytest.raises(WebError, match=r"no answer within 0\.3 s"):
            exchange(Request(url), Limits(total_s=50.0, connect_s=0.3), Cancellation())
        cancellation = Cancellation()
        knocked.clear()
        cancelling = threading.Thread(target=request_after, args=(knocked, cancellation))
        cancelling.start()
        began_s = monotonic()
        with pytest.raises(CancelledError):
            exchange(Request(url), Limits(total_s=55.0, connect_s=55.0), cancellation)
        assert monotonic() - began_s < 10, "its own limit is 55 s"
        cancelling.join()
    assert certificate.exists()

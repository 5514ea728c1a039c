"""Makes one call of the pageserver's gRPC service: a program of its own, run by whoever needs the answer.

Its argument is a descriptor with the call as JSON (page_api.py). A base backup goes to standard output; a lease is
asked of all servers at once, and each answer is a line of JSON, in their order. It ends with 0, or else with 1 and one
line on standard error: the status, a colon, the text. For a base backup another one comes before, once it is connected.
The messages of the protocol that it needs have a few fields in all (`protocols` reference, section 3), so they are
put together here.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

SERVICE: Final = "/page_api.PageService/"
BASE_BACKUP: Final = "GetBaseBackup"
LEASE: Final = "LeaseLsn"
GZIP: Final = 2
MAX_MESSAGE: Final = 64 << 20
OK: Final = "OK"
CONNECTED: Final = "CONNECTED"
"""The line that says so."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(Exception):
    """A message is not of the protocol."""


def backup_request(lsn: int, *, replica: bool) -> bytes:
    """Encode GetBaseBackupRequest; fields with their default are left out."""
    return _encoded({1: lsn, 2: int(replica), 4: GZIP})


def chunk(message: bytes) -> bytes:
    """Decode GetBaseBackupResponseChunk; unknown fields are passed over. Raises WireError."""
    found = b""
    for number, kind, value in _fields(message):
        if number == 1 and kind == _BYTES:
            found = value
    return found


def lease_request(lsn: int) -> bytes:
    """Encode LeaseLsnRequest."""
    return _encoded({1: lsn})


def expires_ms(message: bytes) -> int:
    """Decode LeaseLsnResponse: milliseconds since the epoch. Raises WireError."""
    for number, kind, value in _fields(message):
        if number == 1 and kind == _BYTES:
            parts = {part: _read_varint(data, 0)[0] for part, of, data in _fields(value) if of == _VARINT}
            return parts.get(1, 0) * 1000 + parts.get(2, 0) // 1_000_000
    msg = "it answered without a time"
    raise WireError(msg)


def _encoded(fields: dict[int, int]) -> bytes:
    return b"".join(_varint(number << 3) + _varint(value) for number, value in fields.items() if value)


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            begin = at
            _, at = _read_varint(message, at)
        elif kind == _BYTES:
            size, begin = _read_varint(message, at)
            at = begin + size
        elif kind in {_FIXED64, _FIXED32}:
            begin, at = at, at + (8 if kind == _FIXED64 else 4)
        else:
            msg = f"a field of the unknown kind {kind}"
            raise WireError(msg)
        if at > len(message):
            msg = "a message is cut off"
            raise WireError(msg)
        yield key >> 3, kind, message[begin:at]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits each
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
    msg = "a number is cut off"
    raise WireError(msg)


def main() -> int:
    """Make the call; return the exit code."""
    with open(int(sys.argv[1]), "rb") as file:  # noqa: PTH123 - of a descriptor
        asked: dict[str, Any] = json.load(file)
    import grpc

    try:
        if asked["method"] == LEASE:
            _lease(asked)
        else:
            _back_up(asked)
    except grpc.FutureTimeoutError:
        print(f"UNAVAILABLE: no connection within {asked['limit_s']:g} s", file=sys.stderr)  # noqa: T201 - a program
        return 1
    except grpc.RpcError as error:
        print(": ".join(_told(error)), file=sys.stderr)  # noqa: T201 - a program
        return 1
    except WireError as error:
        print(f"INTERNAL: {error}", file=sys.stderr)  # noqa: T201 - a program
        return 1
    return 0


def _back_up(asked: dict[str, Any]) -> None:
    import grpc

    server = asked["servers"][0]
    options = [("grpc.max_receive_message_length", MAX_MESSAGE)]
    with grpc.insecure_channel(server["target"], options) as channel:
        grpc.channel_ready_future(channel).result(timeout=asked["limit_s"])
        print(CONNECTED, file=sys.stderr, flush=True)  # noqa: T201 - a program
        call = channel.unary_stream(SERVICE + BASE_BACKUP)(
            backup_request(asked["lsn"], replica=asked["replica"]), metadata=list(server["metadata"].items())
        )
        for message in call:
            left = memoryview(chunk(message))
            while left:
                left = left[os.write(1, left) :]


def _lease(asked: dict[str, Any]) -> None:
    import grpc

    calls = []
    for server in asked["servers"]:
        channel = grpc.insecure_channel(server["target"])
        call = channel.unary_unary(SERVICE + LEASE)
        metadata = list(server["metadata"].items())
        calls.append(call.future(lease_request(asked["lsn"]), timeout=asked["limit_s"], metadata=metadata))
    for call in calls:
        answer: tuple[str, int | str]
        try:
            answer = OK, expires_ms(call.result())
        except grpc.RpcError as error:
            answer = _told(error)
        except WireError as error:
            answer = "INTERNAL", str(error)
        print(json.dumps(answer))  # noqa: T201 - a program


def _told(error: Any) -> tuple[str, str]:  # noqa: ANN401 - the library has no types
    return error.code().name, " ".join(str(error.details()).split())


if __name__ == "__main__":
    sys.exit(main())

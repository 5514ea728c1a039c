"""Fetches a base backup over gRPC and writes it to standard output: a program of its own, run by stream.py.

Its argument is a descriptor with the request as JSON. It ends with 0 after the whole stream, else with 1 and one line
on standard error: the status, a colon, the text. The two messages of the protocol that it needs have five fields in
all (`protocols` reference, section 3), so they are put together here.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

METHOD: Final = "/page_api.PageService/GetBaseBackup"
GZIP: Final = 2
MAX_MESSAGE: Final = 64 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(Exception):
    """A message is not of the protocol."""


def request(lsn: int, *, replica: bool) -> bytes:
    """Encode GetBaseBackupRequest; fields with their default are left out."""
    fields = {1: lsn, 2: int(replica), 4: GZIP}
    return b"".join(_varint(number << 3) + _varint(value) for number, value in fields.items() if value)


def chunk(message: bytes) -> bytes:
    """Decode GetBaseBackupResponseChunk; unknown fields are passed over. Raises WireError."""
    found = b""
    for number, kind, value in _fields(message):
        if number == 1 and kind == _BYTES:
            found = value
    return found


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
    """Do what the request says; return the exit code."""
    with open(int(sys.argv[1]), "rb") as file:  # noqa: PTH123 - of a descriptor
        asked: dict[str, Any] = json.load(file)
    import grpc

    options = [("grpc.max_receive_message_length", MAX_MESSAGE)]
    try:
        with grpc.insecure_channel(asked["target"], options) as channel:
            grpc.channel_ready_future(channel).result(timeout=asked["connect_s"])
            call = channel.unary_stream(METHOD)(
                request(asked["lsn"], replica=asked["replica"]), metadata=list(asked["metadata"].items())
            )
            for message in call:
                left = memoryview(chunk(message))
                while left:
                    left = left[os.write(1, left) :]
    except grpc.FutureTimeoutError:
        print(f"UNAVAILABLE: no connection within {asked['connect_s']:g} s", file=sys.stderr)  # noqa: T201 - a program
        return 1
    except grpc.RpcError as error:
        text = " ".join(str(error.details()).split())
        print(f"{error.code().name}: {text}", file=sys.stderr)  # noqa: T201 - a program
        return 1
    except WireError as error:
        print(f"INTERNAL: {error}", file=sys.stderr)  # noqa: T201 - a program
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

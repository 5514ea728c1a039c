"""How a state travels: one Zstandard frame, judged by its end, its checksum and its size. Pure."""

import sys
from typing import Final

MAX_BODY: Final = 100 * 1024 * 1024
"""Bytes of a body that is read or written: the configured limit of endpoint storage."""
MAX_STATE: Final = 64 * 1024 * 1024
"""Bytes of a state: that of a Neon cache of 1.7 TB, or of some 250 GB of shared buffers."""
PIECE: Final = 1024 * 1024
MAGIC: Final = b"\x28\xb5\x2f\xfd"
ENCODING: Final = "compressing LFC state"
DECODING: Final = "decoding LFC state"


class StateError(Exception):
    """What was read, or is to be kept, is no state that could be used."""


def pack(state: bytes, limit: int = MAX_STATE) -> bytes:
    """Compress a state of at most `limit` bytes, else nobody could unpack it, with its checksum. Raises StateError."""
    if len(state) > limit:
        msg = f"{ENCODING}: it has {len(state)} bytes, and at most {limit} can be loaded again"
        raise StateError(msg)
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    return zstd.compress(state, options={zstd.CompressionParameter.checksum_flag: 1})


def unpack(body: bytes, limit: int = MAX_STATE) -> bytes:
    """Decompress one whole frame of at most `limit` bytes of content, with nothing after it. Raises StateError."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    if not body.startswith(MAGIC):
        kind = "it is empty" if not body else "it does not begin as a Zstandard frame"
        msg = f"{DECODING}: {kind}"
        raise StateError(msg)
    decompressor = zstd.ZstdDecompressor()
    pieces: list[bytes] = []
    size, given = 0, body
    try:
        while not decompressor.eof:
            piece = decompressor.decompress(given, max_length=min(PIECE, limit - size + 1))
            if not piece and decompressor.needs_input and not decompressor.eof:
                break
            given = b""
            size += len(piece)
            if size > limit:
                msg = f"{DECODING}: it has more than {limit} bytes"
                raise StateError(msg)
            pieces.append(piece)
    except zstd.ZstdError as error:
        msg = f"{DECODING}: {error}"
        raise StateError(msg) from None
    if not decompressor.eof:
        msg = f"{DECODING}: its end is missing"
        raise StateError(msg)
    if decompressor.unused_data:
        msg = f"{DECODING}: something follows its end"
        raise StateError(msg)
    return b"".join(pieces)

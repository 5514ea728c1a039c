"""From a gzip stream to a folder: one thread takes and inflates, another writes, and little is ever in between.

What is written is the account's and nobody else's; until the end its folders are closed to the account, too, so that
nothing is put into the way of a process of root.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from ....postgres.accounts import Account
from ..pgdata import OWN_NAMES, TEMPORARY
from .tar import BLOCK, END, Entry, Kind, damaged, forbidden, read_header

GATHERED: Final = 64 << 10
"""Compressed bytes that are inflated at once: messages of a server may be small."""
PIECE: Final = 512 << 10
"""Inflated bytes that are passed on at once."""
WAITING: Final = 8
"""Pieces that may wait for the writer."""
OURS: Final = tuple(name.encode() for name in (*OWN_NAMES, TEMPORARY, "compute_node."))
"""How no name at the top of an archive begins: these files say whose a folder is."""


class Limits(msgspec.Struct, frozen=True):
    """Beyond these an archive is refused, before the disk is full."""

    entries: int = 1_000_000
    size: int = 64 << 30
    """Bytes of all files."""


class Unpacked(msgspec.Struct, frozen=True):
    """What an archive held."""

    files: int
    size: int
    received: int
    """Compressed bytes."""


class Unpacker:
    """Writes the archive that it is fed into an empty folder; `close` it in any case."""

    def __init__(self, folder: str, account: Account | None, limits: Limits) -> None:
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._account = account
        self._limits = limits
        self._folders: dict[bytes, None] = {}
        """Those that were made, in their order."""
        self._entered = (b"", self._root)
        """The folder of the last file."""
        self._file: int | None = None
        self._name = b""
        self._left = 0
        """Bytes of the content that are still to come."""
        self._padding = 0
        self._partial = b""
        """The beginning of a block."""
        self._end_blocks = 0
        self._entries = 0
        self.files = 0
        self.size = 0

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. Raises ArchiveError, OSError."""
        data = memoryview(piece)
        while data:
            if self._left:
                data = self._write(data)
            elif self._padding:
                skipped = min(self._padding, len(data))
                self._padding -= skipped
                data = data[skipped:]
            else:
                missing = BLOCK - len(self._partial)
                block, data = self._partial + bytes(data[:missing]), data[missing:]
                self._partial = b""
                if len(block) < BLOCK:
                    self._partial = block
                else:
                    self._block(block)

    def finish(self) -> None:
        """Hear that nothing more comes. Raises ArchiveError unless the archive is whole."""
        if self._left:
            damaged(f"it ends within {self._name!r}")
        if self._padding or self._partial:
            damaged("it ends within a block")
        if self._end_blocks < 2:  # noqa: PLR2004 - two blocks of zeros
            damaged("its end is missing")
        if self._account is not None:
            for folder in reversed(self._folders):
                self._give(folder)
            os.fchown(self._root, self._account.uid, self._account.gid)

    def close(self) -> None:
        """Close what is open."""
        self._close_file()
        self._leave()
        os.close(self._root)

    def _block(self, block: bytes) -> None:
        if block == END:
            self._end_blocks += 1
            return
        if self._end_blocks:
            damaged("something follows its end")
        entry = read_header(block)
        self._entries += 1
        self.size += entry.size
        if self._entries > self._limits.entries or self.size > self._limits.size:
            forbidden(
                f"it has more than {self._limits.entries} entries, or {self._limits.size} bytes of files"
            )
        if entry.path.startswith(OURS):
            forbidden(f"{entry.path!r} is a name of this program")
        if entry.kind is Kind.FOLDER:
            self._make(entry.path)
        else:
            self._begin(entry)

    def _begin(self, entry: Entry) -> None:
        folder, _, name = entry.path.rpartition(b"/")
        if folder != self._entered[0]:
            self._make(folder)
            self._leave()
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._entered = (folder, os.open(folder, flags, dir_fd=self._root) if folder else self._root)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.open(name, flags, 0o600, dir_fd=self._entered[1])
        except FileExistsError:
            forbidden(f"{entry.path!r} comes twice")
        if self._account is not None:
            os.fchown(self._file, self._account.uid, self._account.gid)
        self.files += 1
        self._name, self._left = entry.path, entry.size
        self._padding = -entry.size % BLOCK
        if not entry.size:
            self._close_file()

    def _write(self, data: memoryview) -> memoryview:
        assert self._file is not None  # noqa: S101 - there is content left, so there is its file
        written = os.write(self._file, data[: self._left])
        self._left -= written
        if not self._left:
            self._close_file()
        return data[written:]

    def _make(self, folder: bytes) -> None:
        """Make a folder and those above it, as far as they are not there."""
        if not folder or folder in self._folders:
            return
        self._make(folder.rpartition(b"/")[0])
        try:
            os.mkdir(folder, 0o700, dir_fd=self._root)
        except FileExistsError:
            forbidden(f"{folder!r} is a file and a folder")
        self._folders[folder] = None

    def _give(self, folder: bytes) -> None:
        assert self._account is not None  # noqa: S101 - asked before
        os.chown(folder, self._account.uid, self._account.gid, dir_fd=self._root, follow_symlinks=False)

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def _leave(self) -> None:
        if self._entered[1] != self._root:
            os.close(self._entered[1])
            self._entered = (b"", self._root)


def unpack(
    chunks: Iterable[bytes | memoryview],
    folder: str,
    account: Account | None,
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    progress: Callable[[int, int], None] = lambda _received, _unpacked: None,
) -> Unpacked:
    """Unpack one gzip member into an empty folder and give that to the account; `chunks` are taken to their end.

    `progress` hears, on this thread, how many bytes came and how many they were inflated. An error of the chunks'
    own comes before one of the archive that they made: it says why. Raises ArchiveError, OSError, and what the
    chunks raise; then the folder is for the caller to remove.
    """
    unpacker = Unpacker(folder, account, limits)
    try:
        writer = _Writer(unpacker)
        try:
            inflating = _Inflating(writer.put, progress)
            for chunk in chunks:
                inflating.take(chunk)
            inflating.finish()
        except BaseException:
            writer.abandon()
            raise
        writer.finish()
        unpacker.finish()
    finally:
        unpacker.close()
    return Unpacked(unpacker.files, unpacker.size, inflating.received)


class _Inflating:
    """Gathers what comes, and passes on what it inflates to."""

    def __init__(self, put: Callable[[bytes], None], progress: Callable[[int, int], None]) -> None:
        import zlib

        self._inflater = zlib.decompressobj(
            wbits=zlib.MAX_WBITS | 16
        )  # a gzip header; its trailer is verified
        self._error = zlib.error
        self._put = put
        self._progress = progress
        self._gathered: list[bytes | memoryview] = []
        self._size = 0
        self.received = 0
        self.unpacked = 0

    def take(self, chunk: bytes | memoryview) -> None:
        """Take the next compressed bytes."""
        self._gathered.append(chunk)
        self._size += len(chunk)
        if self._size >= GATHERED:
            self._inflate()

    def finish(self) -> None:
        """Hear that nothing more comes."""
        self._inflate()
        if not self._inflater.eof:
            damaged("its compressed end is missing")

    def _inflate(self) -> None:
        data = b"".join(self._gathered)
        self._gathered.clear()
        self.received += self._size
        self._size = 0
        full = True
        while data or full:
            if self._inflater.eof and data:
                damaged("something follows its compressed end")
            try:
                piece = self._inflater.decompress(data, PIECE)
            except self._error as error:
                damaged(f"it cannot be inflated ({error})")
            data = self._inflater.unconsumed_tail or self._inflater.unused_data
            full = len(piece) == PIECE  # then more may be inflated of what it has
            self.unpacked += len(piece)
            if piece:
                self._put(piece)
        self._progress(self.received, self.unpacked)


class _Writer:
    """The thread that feeds the unpacker; after a failure it takes what comes and drops it."""

    def __init__(self, unpacker: Unpacker) -> None:
        self._unpacker = unpacker
        self._pieces: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._failure: Exception | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="unpacking", daemon=True)
        self._thread.start()

    def put(self, piece: bytes) -> None:
        """Pass a piece on, waiting while too many wait. Raises what the unpacker raised."""
        if self._failure is not None:
            raise self._failure
        self._pieces.put(piece)

    def finish(self) -> None:
        """Wait until all is written. Raises what the unpacker raised."""
        self._pieces.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Drop what waits, and wait for the thread."""
        self._abandoned = True
        self._pieces.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            if self._failure is None and not self._abandoned:
                try:
                    self._unpacker.feed(piece)
                except Exception as error:  # noqa: BLE001 - raised again by whoever waits for it
                    self._failure = error

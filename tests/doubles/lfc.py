"""A cache and a store in memory, that do what a test says.

The state of a cache is the list of its pages; that of a cache whose loading was begun and not ended, or which a
crash has emptied after it was warm, bears a mark, so that a store knows when a complete state is replaced by an
incomplete one.
"""

import json
from collections.abc import Iterable
from typing import Final

from compute_node.actors.kit.jobs import Blocked, Cancellation
from compute_node.actors.lfc_manager.packing import StateError, pack, unpack
from compute_node.actors.lfc_manager.places import EndpointPlace, FolderPlace, Place
from compute_node.actors.lfc_manager.port import (
    Cache,
    CacheError,
    Counts,
    Progress,
    Store,
    StoreError,
    Taken,
)
from typing_extensions import override

MARK: Final = -1
"""A page that shows that the rest is not all."""


def key_of(place: Place) -> str:
    """Return what the double keeps a state under."""
    match place:
        case EndpointPlace(_, path):
            return path
        case FolderPlace(_, name):
            return name


class FakeStore(Store):
    """Keeps bodies by place. `failure` is raised by whatever is asked; with `held` nothing ends."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.puts: list[bytes] = []
        self.fetches = 0
        self.missed: set[str] = set()
        """What was asked for and not there."""
        self.violations: list[str] = []
        self.failure: StoreError | None = None
        self.held = False

    @override
    def fetch(self, place: Place, cancellation: Cancellation) -> bytes | None:
        self._meet(cancellation)
        self.fetches += 1
        key = key_of(place)
        if key not in self.kept:
            self.missed.add(key)
        return self.kept.get(key)

    @override
    def put(self, place: Place, body: bytes, cancellation: Cancellation) -> None:
        self._meet(cancellation)
        before = self.pages(key_of(place))
        if before is not None and MARK not in before and MARK in pages_of(unpack(body)):
            self.violations.append(f"a complete state of {key_of(place)} was replaced by an incomplete one")
        self.kept[key_of(place)] = body
        self.puts.append(body)

    def _meet(self, cancellation: Cancellation) -> None:
        cancellation.check()
        if self.failure is not None:
            raise self.failure
        if self.held:
            raise Blocked

    def pages(self, key: str) -> list[int] | None:
        """Return the pages that are kept."""
        body = self.kept.get(key)
        return None if body is None else pages_of(unpack(body))


class FakeCache(Cache):
    """Holds pages; loads them a few at a time, as often as it is tried: see `Blocked`."""

    def __init__(self, pages: Iterable[int] = ()) -> None:
        self.pages = set(pages)
        self.incomplete = False
        """Loading was begun and has not come to its end, or what was loaded is gone."""
        self.crashes = 0
        self._loading: tuple[Cancellation, int] | None = None
        """Of which job, begun after how many crashes."""
        self.failure: CacheError | None = None
        self.held = False
        self.at_once = 1_000_000
        """Pages that one try loads; the next try goes on."""
        self.fails_after: int | None = None
        """Pages after which loading fails."""

    @property
    def was_loaded(self) -> bool:
        """Whether a load has begun, ever."""
        return self._loading is not None

    @override
    def take(self, cancellation: Cancellation) -> Taken:
        self._meet(cancellation)
        marked = self.pages | ({MARK} if self.incomplete else set())
        return Taken(json.dumps(sorted(marked)).encode() if self.pages else None, str(self.crashes))

    @override
    def load(self, state: bytes, progress: Progress, cancellation: Cancellation) -> Counts:
        if self._loading is None or self._loading[0] is not cancellation:
            self._loading = (cancellation, self.crashes)
        self._meet(cancellation)
        if self._loading[1] != self.crashes:
            msg = "loading LFC state into postgres: the connection was lost"
            raise CacheError(msg)
        wanted = [page for page in pages_of(state) if page != MARK]
        self.incomplete = True
        missing = [page for page in wanted if page not in self.pages]
        loaded = len(wanted) - len(missing)
        if self.fails_after is not None and loaded >= self.fails_after:
            msg = "loading LFC state into postgres: no"
            raise CacheError(msg)
        self.pages |= set(missing[: self.at_once])
        if len(missing) > self.at_once:
            progress(Counts(len(wanted), loaded + self.at_once, 0))
            raise Blocked
        self.incomplete = False
        return Counts(len(wanted), len(wanted), 0, str(self.crashes))

    def crash(self, pages: Iterable[int] = (), *, was_warmed: bool) -> None:
        """Let a process of Postgres crash: the others are started anew, with a cold cache.

        `was_warmed`: a state was loaded in this life of the node, or it had none of its own; else its cache was
        as it had come about, and so it is now.
        """
        self.crashes += 1
        self.pages = set(pages)
        self.incomplete = was_warmed

    def _meet(self, cancellation: Cancellation) -> None:
        cancellation.check()
        if self.failure is not None:
            raise self.failure
        if self.held:
            raise Blocked


def body_of(pages: Iterable[int]) -> bytes:
    """Return what a store keeps of a cache with these pages."""
    return pack(json.dumps(sorted(pages)).encode())


def pages_of(state: bytes) -> list[int]:
    """Read a state."""
    try:
        pages: list[int] = json.loads(state)
    except ValueError:
        msg = "decoding LFC state: it is no list"
        raise StateError(msg) from None
    return pages

"""The state of the extension neon is known by its head and its length; one of no pages is none."""

import asyncio
from typing import Any

import pytest
from compute_node.actors.lfc_manager import neon
from compute_node.actors.lfc_manager.blocks import MAGIC
from compute_node.actors.lfc_manager.neon import Size, size_of
from compute_node.actors.lfc_manager.packing import StateError


def neon_state(chunks: int, pages: int = 1, chunk_log: int = 7) -> bytes:
    head = (0xFCFCFCFC).to_bytes(4, "little") + chunks.to_bytes(4, "little") + pages.to_bytes(4, "little")
    body = bytes(20 * chunks) + bytes(-(-(chunks << chunk_log) // 8))
    return head + chunk_log.to_bytes(2, "little") + bytes(2) + body


@pytest.mark.parametrize(("chunks", "chunk_log"), [(0, 7), (1, 7), (3, 0), (1000, 7), (5, 3)])
def test_a_state_of_the_extension_has_the_length_that_its_head_tells(chunks: int, chunk_log: int) -> None:
    state = neon_state(chunks, chunk_log=chunk_log)
    assert size_of(state) == Size(chunks, pages=1)
    for wrong in (state[:-1], state + b"\0"):
        with pytest.raises(StateError, match="decoding LFC state"):
            size_of(wrong)


@pytest.mark.parametrize("state", [b"", bytes(16), bytes(15), MAGIC + bytes(16), neon_state(1, chunk_log=8)])
def test_what_is_no_state_of_the_extension_is_refused(state: bytes) -> None:
    with pytest.raises(StateError, match="decoding LFC state"):
        size_of(state)


@pytest.mark.parametrize("state", [None, neon_state(0, pages=0), neon_state(2, pages=0)])
def test_a_cache_without_a_page_has_no_state(state: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the place of a good one."""

    async def ask(*_: Any, **__: Any) -> list[list[bytes | None]]:
        return [[state]]

    monkeypatch.setattr(neon, "ask", ask)
    nobody: Any = None
    assert asyncio.run(neon.take(nobody)) is None

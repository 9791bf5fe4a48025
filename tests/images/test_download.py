"""Downloads from a source that sends more than requested, fails for a while, or stalls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent.images.download import Downloader, TransferTools
from agent.images.errors import BadImageError, TransferError
from agent.images.liblz4 import best_codec
from agent.images.manifest import Blob, digest_of
from agent.images.plan import MAX_RANGE_BYTES
from agent.images.pull_progress import PullProgressTracker
from tests.images.disks import QUICK

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from agent.images.sources.contract import Write

CONTENT = bytes(range(256)) * 16
BLOB = Blob(digest_of(CONTENT), len(CONTENT))


class Source:
    """A source of one blob. It sends `surplus` after each range."""

    name = "tests"
    ranged = True

    def __init__(self, surplus: bytes = b"") -> None:
        self.surplus = surplus
        self.reads = 0

    async def read(self, _blob: Blob, start: int, size: int, write: Write) -> None:
        self.reads += 1
        await write(memoryview(CONTENT[start : start + size] + self.surplus))

    def distrust(self, _blob: Blob) -> None:
        """There is no other source."""


def downloader(source: Source, executor: Executor) -> Downloader:
    tools = TransferTools(executor, best_codec(), QUICK, streams=2)
    return Downloader(source, tools, PullProgressTracker("tests", "sha256:x"))  # type: ignore[arg-type]


async def ignore(_piece: memoryview) -> None:
    """Consume a piece."""


async def test_source_cannot_write_past_the_end_of_a_buffer(executor: Executor) -> None:
    fetch = downloader(Source(surplus=b"x"), executor)
    with pytest.raises(TransferError, match="more than"):
        await fetch.into_memory(BLOB)
    with pytest.raises(TransferError, match="more than"):
        await fetch.ranges(BLOB, [(0, 100)], ignore)


async def test_range_beyond_a_buffer_is_refused_without_a_request(executor: Executor) -> None:
    source = Source()
    with pytest.raises(BadImageError, match="larger than"):
        await downloader(source, executor).ranges(BLOB, [(0, MAX_RANGE_BYTES + 1)], ignore)
    assert source.reads == 0

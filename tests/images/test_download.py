"""Downloads from a source that sends more than requested, fails for a while, or stalls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from agent.images.download import Downloader, TransferTools
from agent.images.errors import BadImageError, TransferError
from agent.images.liblz4 import best_codec
from agent.images.manifest import Blob, digest_of
from agent.images.plan import MAX_RANGE_BYTES
from agent.images.pull_progress import PullProgressTracker
from agent.images.transfer_limits import RetryPolicy
from tests.images.disks import QUICK

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from agent.images.sources.contract import Write

CONTENT = bytes(range(256)) * 16
BLOB = Blob(digest_of(CONTENT), len(CONTENT))
SLOW = Blob(f"sha256:{'5' * 64}", len(CONTENT))


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


class Time:
    """A clock that advances only in `sleep`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.before_sleep: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.before_sleep()
        self.now_s += delay_s


class Straggling(Source):
    """A source in which one blob fails `failures` times, without a byte."""

    def __init__(self, failures: float) -> None:
        super().__init__()
        self.failures = failures

    async def read(self, blob: Blob, start: int, size: int, write: Write) -> None:
        if blob.digest == SLOW.digest and self.failures > 0:
            self.failures -= 1
            raise TransferError("no response in time")
        await super().read(blob, start, size, write)


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


def patient(source: Source, executor: Executor) -> tuple[Downloader, PullProgressTracker, Time]:
    time = Time()
    retry = RetryPolicy(attempts=3, patience_s=60.0, jitter=lambda: 1.0, sleep=time.sleep)
    tracker = PullProgressTracker("tests", "sha256:x", clock=time.clock)
    tools = TransferTools(executor, best_codec(), retry, streams=2)
    return Downloader(source, tools, tracker), tracker, time  # type: ignore[arg-type]


async def test_straggler_is_retried_while_the_pull_made_progress_lately(executor: Executor) -> None:
    fetch, _, _ = patient(Straggling(failures=7), executor)
    await fetch.into_memory(BLOB)
    assert await fetch.into_memory(SLOW) == CONTENT


async def test_dead_straggler_ends_the_pull_when_its_patience_is_over(executor: Executor) -> None:
    fetch, tracker, time = patient(Straggling(failures=math.inf), executor)
    await fetch.into_memory(BLOB)
    with pytest.raises(TransferError, match="no response in time"):
        await fetch.into_memory(SLOW)
    assert 60 <= time.now_s <= 90
    assert tracker.snapshot().waiting == ""


async def test_registry_without_any_progress_is_not_waited_for(executor: Executor) -> None:
    source = Straggling(failures=math.inf)
    fetch, _, time = patient(source, executor)
    with pytest.raises(TransferError):
        await fetch.into_memory(SLOW)
    assert time.now_s < 60


async def test_progress_names_the_blob_that_is_retried(executor: Executor) -> None:
    fetch, tracker, time = patient(Straggling(failures=2), executor)
    seen: list[str] = []
    time.before_sleep = lambda: seen.append(tracker.snapshot().waiting)
    await fetch.into_memory(SLOW)
    assert seen == [f"{SLOW.digest[:19]}: no response in time ({count} times)" for count in (1, 2)]
    assert tracker.snapshot().waiting == ""

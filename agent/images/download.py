"""Moves bytes of blobs into memory, in order, with a fixed amount of memory for all streams of a pull.

A blob of common size is one plain request, streamed through the buffers: that is what caches in front of registries
can serve and keep. A very large one is read in ranges, several ahead. When decoding is slower than the network, the
network waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.images.errors import TransferError
from agent.images.plan import MAX_RANGE_BYTES
from agent.images.transfer_limits import StreamLimiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Executor

    from agent.images.liblz4 import BlockCodec
    from agent.images.manifest import Blob
    from agent.images.pull_progress import PullProgressTracker
    from agent.images.sources.contract import Source, Write
    from agent.images.transfer_limits import RetryPolicy

    Consume = Callable[[memoryview], Awaitable[None]]
    Filled = tuple[bytearray, int]

WHOLE_BYTES: Final = 64 << 20
"""Largest blob that is one request."""
RANGES_AHEAD: Final = 4
"""Ranges of one blob under way at once."""
SPARE_BUFFERS: Final = 4
PROGRESS_BYTES: Final = 64 << 10
"""A try that brought less than this before it failed brought nothing."""
_MAX_FAILURES: Final = 40
"""Failures of one request, even if each try brought something."""


@dataclass(frozen=True, slots=True)
class TransferTools:
    """What a transfer works with. `streams` is the most chunks, and the most requests, under way at once."""

    executor: Executor
    codec: BlockCodec
    retry: RetryPolicy
    streams: int


class BufferPool:
    """A fixed set of buffers of `MAX_RANGE_BYTES`, made when first needed and used again. First come, first served."""

    def __init__(self, count: int) -> None:
        self._free: asyncio.LifoQueue[bytearray | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._free.put_nowait(None)

    async def take(self) -> bytearray:
        """Wait for a free buffer."""
        return await self._free.get() or bytearray(MAX_RANGE_BYTES)

    def give(self, buffer: bytearray) -> None:
        """Put a buffer back."""
        self._free.put_nowait(buffer)


class Downloader:
    """Reads from one source for one pull."""

    def __init__(self, source: Source, tools: TransferTools, tracker: PullProgressTracker) -> None:
        self.source = source
        self._retry = tools.retry
        self._tracker = tracker
        self._buffers = BufferPool(tools.streams + SPARE_BUFFERS)
        self._streams = StreamLimiter(tools.streams)

    async def whole(self, blob: Blob, consume: Consume) -> None:
        """Read a blob from its first byte to its last, and have each piece consumed in order."""
        if blob.size > WHOLE_BYTES and self.source.ranged:
            parts = ((at, min(MAX_RANGE_BYTES, blob.size - at)) for at in range(0, blob.size, MAX_RANGE_BYTES))
            await self.ranges(blob, parts, consume)
            return
        ready: asyncio.Queue[Filled | None] = asyncio.Queue()
        flow = asyncio.create_task(self._flow(blob, ready))
        try:
            while (filled := await ready.get()) is not None:
                await self._consume(filled, consume)
            await flow
        finally:
            flow.cancel()
            await asyncio.gather(flow, return_exceptions=True)
            while not ready.empty():
                if (left := ready.get_nowait()) is not None:
                    self._buffers.give(left[0])

    async def ranges(self, blob: Blob, ranges: Iterable[tuple[int, int]], consume: Consume) -> None:
        """Read `(start, size)` ranges of at most `MAX_RANGE_BYTES` each, and have each consumed in order."""
        left = iter(ranges)
        ahead: deque[asyncio.Task[Filled]] = deque()
        try:
            while True:
                while len(ahead) < RANGES_AHEAD and (part := next(left, None)) is not None:
                    ahead.append(asyncio.create_task(self._range(blob, *part)))
                if not ahead:
                    return
                filled = await ahead[0]
                ahead.popleft()
                await self._consume(filled, consume)
        finally:
            await self._abandon(tuple(ahead))

    async def into_memory(self, blob: Blob) -> bytearray:
        """Return a small blob. Its digest is the caller's to check."""
        content = bytearray(blob.size)
        at = 0

        async def write(piece: memoryview) -> None:
            nonlocal at
            content[at : at + len(piece)] = piece
            at += len(piece)

        await self._read(blob, 0, blob.size, write)
        return content

    async def _flow(self, blob: Blob, ready: asyncio.Queue[Filled | None]) -> None:
        """Read a whole blob through as many buffers as it takes; None ends it, also when it fails."""
        buffer: bytearray | None = None
        at = 0

        async def write(piece: memoryview) -> None:
            nonlocal buffer, at
            while piece:
                if buffer is None:
                    buffer, at = await self._buffers.take(), 0
                size = min(len(piece), len(buffer) - at)
                buffer[at : at + size] = piece[:size]
                at += size
                piece = piece[size:]
                if at == len(buffer):
                    ready.put_nowait((buffer, at))
                    buffer = None

        try:
            async with self._streams.slot():
                await self._read(blob, 0, blob.size, write)
            if buffer is not None:
                ready.put_nowait((buffer, at))
                buffer = None
        finally:
            if buffer is not None:
                self._buffers.give(buffer)
            ready.put_nowait(None)

    async def _range(self, blob: Blob, start: int, size: int) -> Filled:
        buffer = await self._buffers.take()
        at = 0

        async def write(piece: memoryview) -> None:
            nonlocal at
            buffer[at : at + len(piece)] = piece
            at += len(piece)

        try:
            async with self._streams.slot():
                await self._read(blob, start, size, write)
        except BaseException:
            self._buffers.give(buffer)
            raise
        return buffer, size

    async def _read(self, blob: Blob, start: int, size: int, write: Write) -> None:
        """Read a range, going on after each failure where the one before it got to."""
        got = failures = failures_in_all = 0

        async def count(piece: memoryview) -> None:
            nonlocal got
            await write(piece)
            got += len(piece)
            self._tracker.add_fetched(len(piece))

        while got < size:
            before = got
            try:
                await self.source.read(blob, start + got, size - got, count)
                self._streams.record_success()
            except TransferError as error:
                if error.overloaded:
                    self._streams.record_overload()
                failures = 1 if got - before >= PROGRESS_BYTES else failures + 1
                failures_in_all += 1
                if failures_in_all >= _MAX_FAILURES:
                    raise
                await self._retry.wait_before_retry(failures, error)

    async def _consume(self, filled: Filled, consume: Consume) -> None:
        buffer, size = filled
        try:
            with memoryview(buffer) as view:
                await consume(view[:size])
        finally:
            self._buffers.give(buffer)

    async def _abandon(self, tasks: tuple[asyncio.Task[Filled], ...]) -> None:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, tuple):
                self._buffers.give(outcome[0])

"""Downloads of blobs, in order, with a fixed amount of memory for all streams of a pull.

A blob of common size is one plain request, streamed through the buffers, because caches in front of registries can
store such responses. A very large blob is read in ranges, several in parallel. If decoding is slower than the network,
the download waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.errors import BadImageError, TransferError
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
"""Largest blob that is fetched with one request."""
RANGES_AHEAD: Final = 4
"""Parallel range requests of one blob."""
SPARE_BUFFERS: Final = 4
PROGRESS_BYTES: Final = 64 << 10
"""An attempt that received less than this counts as one without progress."""
_MAX_FAILURES: Final = 40
"""Largest number of failures of one request, even if each attempt made progress."""


@dataclass(frozen=True, slots=True)
class TransferTools:
    """Resources of all transfers. `streams` is the largest number of parallel chunks, and of parallel requests."""

    executor: Executor
    codec: BlockCodec
    retry: RetryPolicy
    streams: int


class BufferPool:
    """A fixed number of buffers of `MAX_RANGE_BYTES`, created on first use and reused. Waiters are served in order."""

    def __init__(self, count: int) -> None:
        self._free: asyncio.LifoQueue[bytearray | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._free.put_nowait(None)

    async def take(self) -> bytearray:
        """Wait for a free buffer."""
        return await self._free.get() or bytearray(MAX_RANGE_BYTES)

    def release(self, buffer: bytearray) -> None:
        """Return a buffer to the pool."""
        self._free.put_nowait(buffer)


class Downloader:
    """Reads blobs from one source for one pull."""

    def __init__(self, source: Source, tools: TransferTools, tracker: PullProgressTracker) -> None:
        self.source = source
        self._retry = tools.retry
        self._tracker = tracker
        self._buffers = BufferPool(tools.streams + SPARE_BUFFERS)
        self._streams = StreamLimiter(tools.streams)

    async def whole(self, blob: Blob, consume: Consume) -> None:
        """Read a whole blob, and await `consume` for each piece, in order."""
        if blob.size > WHOLE_BYTES and self.source.ranged:
            parts = ((at, min(MAX_RANGE_BYTES, blob.size - at)) for at in range(0, blob.size, MAX_RANGE_BYTES))
            await self.ranges(blob, parts, consume)
            return
        ready: asyncio.Queue[Filled | None] = asyncio.Queue()
        stream = asyncio.create_task(self._stream_whole(blob, ready))
        try:
            while (filled := await ready.get()) is not None:
                await self._consume(filled, consume)
            await stream
        finally:
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
            while not ready.empty():
                if (left := ready.get_nowait()) is not None:
                    self._buffers.release(left[0])

    async def ranges(self, blob: Blob, ranges: Iterable[tuple[int, int]], consume: Consume) -> None:
        """Read `(start, size)` ranges of at most `MAX_RANGE_BYTES`, and await `consume` for each, in order.

        Raises `BadImageError` for a longer range: it would not fit into a buffer.
        """
        left = iter(ranges)
        ahead: deque[asyncio.Task[Filled]] = deque()
        try:
            while True:
                while len(ahead) < RANGES_AHEAD and (part := next(left, None)) is not None:
                    ahead.append(asyncio.create_task(self._read_range(blob, *part)))
                if not ahead:
                    return
                filled = await ahead[0]
                ahead.popleft()
                await self._consume(filled, consume)
        finally:
            await self._cancel(tuple(ahead))

    async def into_memory(self, blob: Blob) -> bytearray:
        """Return a small blob. The caller must check its digest."""
        content = bytearray(blob.size)
        with memoryview(content) as view:
            await self._read(blob, 0, blob.size, _writer(view))
        return content

    async def _stream_whole(self, blob: Blob, ready: asyncio.Queue[Filled | None]) -> None:
        """Read a whole blob into buffers and queue them in `ready`. None marks the end, also after a failure."""
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
                self._buffers.release(buffer)
            ready.put_nowait(None)

    async def _read_range(self, blob: Blob, start: int, size: int) -> Filled:
        if size > MAX_RANGE_BYTES:
            raise BadImageError(f"a range of {size} bytes of the blob {blob.digest} is larger than {MAX_RANGE_BYTES}")
        buffer = await self._buffers.take()
        try:
            async with self._streams.slot():
                with memoryview(buffer) as view:
                    await self._read(blob, start, size, _writer(view[:size]))
        except BaseException:
            self._buffers.release(buffer)
            raise
        return buffer, size

    async def _read(self, blob: Blob, start: int, size: int, write: Write) -> None:
        """Read a range. After a failure, resume at the first byte that was not received."""
        got = failures = total_failures = 0

        async def count(piece: memoryview) -> None:
            nonlocal got
            await write(piece)
            got += len(piece)
            self._tracker.add_fetched(len(piece))

        try:
            while got < size:
                before = got
                try:
                    await self.source.read(blob, start + got, size - got, count)
                    self._streams.record_success()
                    self._tracker.record_advance()
                except TransferError as error:
                    if error.overloaded:
                        self._streams.record_overload()
                    failures += 1
                    if got - before >= PROGRESS_BYTES:
                        failures = 1
                        self._tracker.record_advance()
                    total_failures += 1
                    self._tracker.set_waiting(blob.digest, f"{error.message} ({total_failures} times)")
                    if total_failures >= _MAX_FAILURES:
                        raise
                    with structlog.contextvars.bound_contextvars(blob=blob.digest):
                        await self._retry.wait_before_retry(failures, error, idle_s=self._tracker.idle_s)
        finally:
            if total_failures:
                self._tracker.set_waiting(blob.digest, "")

    async def _consume(self, filled: Filled, consume: Consume) -> None:
        buffer, size = filled
        try:
            with memoryview(buffer) as view:
                await consume(view[:size])
        finally:
            self._buffers.release(buffer)

    async def _cancel(self, tasks: tuple[asyncio.Task[Filled], ...]) -> None:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, tuple):
                self._buffers.release(outcome[0])


def _writer(target: memoryview) -> Write:
    """Return a function that fills `target` in order. Raises `TransferError` for bytes beyond its end."""
    at = 0

    async def write(piece: memoryview) -> None:
        nonlocal at
        if at + len(piece) > len(target):
            raise TransferError(f"the source sent more than the {len(target)} requested bytes")
        target[at : at + len(piece)] = piece
        at += len(piece)

    return write

"""Moves bytes of blobs into memory: several ranges ahead, in order, with a fixed amount of memory for all of it.

All streams of one pull share one set of buffers. When decoding is slower than the network, the network waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.images.errors import TransferError
from agent.images.plan import MAX_RANGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Executor

    from agent.images.liblz4 import BlockCodec
    from agent.images.manifest import Blob
    from agent.images.meter import Meter
    from agent.images.retry import Retry
    from agent.images.sources.contract import Source

RANGES_AHEAD: Final = 4
"""Ranges of one blob under way at once."""
SPARE_BUFFERS: Final = 4
PROGRESS_BYTES: Final = 64 << 10
"""A try that brought less than this before it failed brought nothing."""
_MAX_FAILURES: Final = 40
"""Failures of one range, even if each try brought something."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a transfer works with. `streams` is how many chunks, and how many ranges, are under way at once."""

    executor: Executor
    codec: BlockCodec
    retry: Retry
    streams: int


class Buffers:
    """A fixed set of buffers, made when first needed and used again."""

    def __init__(self, count: int) -> None:
        self._free: asyncio.LifoQueue[bytearray | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._free.put_nowait(None)

    async def take(self) -> bytearray:
        """Wait for a free buffer of `MAX_RANGE_BYTES`. First come, first served."""
        return await self._free.get() or bytearray(MAX_RANGE_BYTES)

    def give(self, buffer: bytearray) -> None:
        """Put a buffer back."""
        self._free.put_nowait(buffer)


class Downloader:
    """Reads from one source for one pull."""

    def __init__(self, source: Source, tools: Tools, meter: Meter) -> None:
        self.source = source
        self._retry = tools.retry
        self._meter = meter
        self._buffers = Buffers(tools.streams + SPARE_BUFFERS)
        self._streams = asyncio.Semaphore(tools.streams)

    async def stream(
        self, blob: Blob, ranges: Iterable[tuple[int, int]], consume: Callable[[memoryview], Awaitable[None]]
    ) -> None:
        """Read `(start, size)` ranges of at most `MAX_RANGE_BYTES` each, and have each consumed in order."""
        left = iter(ranges)
        ahead: deque[asyncio.Task[tuple[bytearray, int]]] = deque()
        try:
            while True:
                while len(ahead) < RANGES_AHEAD and (part := next(left, None)) is not None:
                    ahead.append(asyncio.create_task(self._range(blob, *part)))
                if not ahead:
                    return
                buffer, size = await ahead[0]
                try:
                    with memoryview(buffer) as view:
                        await consume(view[:size])
                finally:
                    ahead.popleft()
                    self._buffers.give(buffer)
        finally:
            await self._abandon(tuple(ahead))

    async def fill(self, blob: Blob, start: int, into: memoryview) -> None:
        """Fill `into` with bytes of a blob, going on after each failure where the one before it got to."""
        filled = failures = failures_in_all = 0

        def received(count: int) -> None:
            nonlocal filled
            filled += count
            self._meter.received(count)

        while filled < len(into):
            before = filled
            try:
                await self.source.read(blob, start + filled, into[filled:], received)
            except TransferError as error:
                failures = 1 if filled - before >= PROGRESS_BYTES else failures + 1
                failures_in_all += 1
                if failures_in_all >= _MAX_FAILURES:
                    raise
                await self._retry.pause(failures, error)

    async def _range(self, blob: Blob, start: int, size: int) -> tuple[bytearray, int]:
        buffer = await self._buffers.take()
        try:
            async with self._streams:
                with memoryview(buffer) as view:
                    await self.fill(blob, start, view[:size])
        except BaseException:
            self._buffers.give(buffer)
            raise
        return buffer, size

    async def _abandon(self, tasks: tuple[asyncio.Task[tuple[bytearray, int]], ...]) -> None:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, tuple):
                self._buffers.give(outcome[0])


def parts(size: int) -> Iterable[tuple[int, int]]:
    """Return the ranges that a blob of `size` bytes is read in."""
    return ((start, min(MAX_RANGE_BYTES, size - start)) for start in range(0, size, MAX_RANGE_BYTES))

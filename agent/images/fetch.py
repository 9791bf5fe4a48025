"""Moves chunks from a source to the disk: many at once, large ones in ranges, with a fixed amount of memory.

Each worker owns one chunk from its first byte to its line in the journal, so an interruption costs at most one chunk
per worker. The bytes of all workers flow through one pool of buffers: when decoding is slower than the network, the
network waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from agent.images.chunk import ChunkWriter, CorruptChunkError
from agent.images.errors import CorruptImageError, TransferError
from agent.images.sparse import make_hole
from agent.images.threads import all_or_first_error, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from agent.images.liblz4 import BlockCodec
    from agent.images.manifest import Blob
    from agent.images.meter import Meter
    from agent.images.plan import Fetch
    from agent.images.retry import Retry
    from agent.images.sources.contract import Source

log = structlog.get_logger()

PART_BYTES: Final = 8 << 20
"""Bytes asked for at once: a chunk of our own pushes is one request, one of Tart's 512 MiB chunks is many."""
PARTS_AHEAD: Final = 4
"""Parts of one chunk under way at once."""
SPARE_BUFFERS: Final = 4
CORRUPT_ATTEMPTS: Final = 3
_MAX_FAILURES: Final = 100
"""Failures of one part, even if each try brought some bytes."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a fetch works with. `streams` is how many chunks, and how many ranges, are under way at once."""

    executor: Executor
    codec: BlockCodec
    retry: Retry
    streams: int


class Buffers:
    """A fixed set of buffers, made when first needed and used again."""

    def __init__(self, count: int) -> None:
        self._free: asyncio.Queue[bytearray | None] = asyncio.Queue()
        for _ in range(count):
            self._free.put_nowait(None)

    async def take(self) -> bytearray:
        """Wait for a free buffer of `PART_BYTES`. First come, first served."""
        return await self._free.get() or bytearray(PART_BYTES)

    def give(self, buffer: bytearray) -> None:
        """Put a buffer back."""
        self._free.put_nowait(buffer)


class ChunkFetcher:
    """Fetches the chunks of one image into one open disk file."""

    def __init__(self, source: Source, descriptor: int, tools: Tools, meter: Meter, *, dirty: bool) -> None:
        self._source = source
        self._descriptor = descriptor
        self._tools = tools
        self._meter = meter
        self._dirty = dirty  # the disk may hold bytes of an interrupted try where zeros belong
        self._buffers = Buffers(tools.streams + SPARE_BUFFERS)
        self._streams = asyncio.Semaphore(tools.streams)

    async def run(self, fetches: Iterable[Fetch], finished: Callable[[Fetch], None]) -> None:
        """Fetch all chunks, calling `finished` for each that is verified and in place. The first error ends all."""
        queue = iter(fetches)

        async def worker() -> None:
            for fetch in queue:
                await self._fetch(fetch)
                finished(fetch)
                self._meter.done(fetch.blob.size)

        await all_or_first_error([worker() for _ in range(self._tools.streams)])

    async def _fetch(self, fetch: Fetch) -> None:
        dirty = self._dirty
        for attempt in range(1, CORRUPT_ATTEMPTS + 1):
            if dirty:
                await in_thread(self._tools.executor, self._clear, fetch)
            writer = ChunkWriter(fetch, self._descriptor, self._tools.codec)
            try:
                await self._stream(fetch.blob, writer)
                await in_thread(self._tools.executor, writer.finish)
            except CorruptChunkError as error:
                log.warning("chunk-corrupt", blob=fetch.blob.digest, source=self._source.name, error=str(error))
                dirty = True
                last = error
                if attempt < CORRUPT_ATTEMPTS:
                    await self._tools.retry.sleep(self._tools.retry.delay_s(attempt, None))
            else:
                return
        raise CorruptImageError(
            f"{self._source.name} sends a corrupt blob {fetch.blob.digest}, {CORRUPT_ATTEMPTS} times over: {last}",
            remedy="push the image again, or check the registry's storage",
        )

    async def _stream(self, blob: Blob, writer: ChunkWriter) -> None:
        """Feed a blob to its writer in order, while the next parts are already on their way."""
        starts = iter(range(0, blob.size, PART_BYTES))
        ahead: deque[asyncio.Task[tuple[bytearray, int]]] = deque()
        try:
            while True:
                while len(ahead) < PARTS_AHEAD and (start := next(starts, None)) is not None:
                    ahead.append(asyncio.create_task(self._part(blob, start)))
                if not ahead:
                    return
                buffer, size = await ahead[0]
                try:
                    with memoryview(buffer) as view:
                        await in_thread(self._tools.executor, writer.feed, view[:size])
                finally:
                    ahead.popleft()
                    self._buffers.give(buffer)
        finally:
            await self._abandon(ahead)

    async def _abandon(self, tasks: Iterable[asyncio.Task[tuple[bytearray, int]]]) -> None:
        tasks = tuple(tasks)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, tuple):
                self._buffers.give(outcome[0])

    async def _part(self, blob: Blob, start: int) -> tuple[bytearray, int]:
        size = min(PART_BYTES, blob.size - start)
        buffer = await self._buffers.take()
        try:
            async with self._streams:
                with memoryview(buffer) as view:
                    await self._fill(blob, start, view[:size])
        except BaseException:
            self._buffers.give(buffer)
            raise
        return buffer, size

    async def _fill(self, blob: Blob, start: int, into: memoryview) -> None:
        filled = failures = failures_in_all = 0

        def received(count: int) -> None:
            nonlocal filled, failures
            filled += count
            failures = 0
            self._meter.received(count)

        while filled < len(into):
            try:
                await self._source.read(blob, start + filled, into[filled:], received)
            except TransferError as error:
                failures += 1
                failures_in_all += 1
                if failures_in_all >= _MAX_FAILURES:
                    raise
                await self._tools.retry.pause(failures, error)

    def _clear(self, fetch: Fetch) -> None:
        for offset in fetch.offsets:
            make_hole(self._descriptor, offset, fetch.chunk.raw_size)
